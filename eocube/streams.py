"""Speaks to people by streams that may be closed, full or of an encoding that lacks a letter, without ending a run."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console


def open_streams() -> None:
    """Give a process that was started without one of its three streams (`2>&-`) an empty one.

    Else the next file that is opened gets the stream's number, and what libraries say goes into it. A letter that the
    terminal's encoding lacks (a non-UTF-8 locale) is written as its number.
    """
    for number, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if stream is None and _is_free(number):
            given = os.open(os.devnull, os.O_RDWR)
            os.dup2(given, number)  # which children inherit, unlike what was opened
            if given != number:
                os.close(given)
            else:
                os.set_inheritable(number, True)
    sys.stdout, sys.stderr = _usable(sys.stdout), _usable(sys.stderr)


def _is_free(number: int) -> bool:
    """Whether nothing is there, or nothing but the empty file, which a library opened before we came."""
    try:
        return os.fstat(number).st_rdev == os.stat(os.devnull).st_rdev
    except OSError:
        return True


def _usable(stream: TextIO | None) -> TextIO:
    if stream is None:  # what Python makes of a stream that was closed as it started; its number may be another's now
        return open(os.devnull, "w", encoding="utf-8")
    reconfigure: Any = getattr(stream, "reconfigure", None)
    if reconfigure is not None and getattr(stream, "errors", "") in ("strict", "surrogateescape"):
        reconfigure(errors="backslashreplace")
    return stream


def lament(text: str) -> None:
    """Print a line on standard error, if it takes one."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def tell(text: str) -> None:
    """Print a command's answer. A reader that has left (`| head`) changes nothing of what the command came to."""
    try:
        print(text, flush=True)
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (what is left in the old one would be flushed at the end)


class PatientConsole(Console):
    """A console on which a line that cannot be written is lost, and nothing else: a full disk, a reader that left."""

    def print(self, *objects: Any, **how: Any) -> None:
        """As rich's own."""
        with suppress(OSError, ValueError):
            super().print(*objects, **how)
