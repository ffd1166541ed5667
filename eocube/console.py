"""Speaks to people: lines that do nothing to the terminal, by streams that may be closed, full or lack a letter."""

from __future__ import annotations

import os
import sys
import unicodedata
from contextlib import suppress
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from eocube.net.redaction import redacted

_ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's controls, formats (which turn the direction of writing), lone surrogates, ends of lines and paragraphs."""
_SIGNS = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


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


def plain(text: object) -> str:
    r"""A text on one line, in which every character that would act on a terminal is spelt out: "\x1b", "\u202e"."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(_sign(c) if unicodedata.category(c) in _ACTING else c for c in shown)


def _sign(character: str) -> str:
    code = ord(character)
    short = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    return _SIGNS.get(character, short if code < 0x10000 else f"\\U{code:08x}")


def for_people(*, quiet: bool = False) -> Console:
    """A console on standard error, for `say`."""
    return PatientConsole(stderr=True, quiet=quiet, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say(console: Console, text: object, style: str = "") -> None:
    """Print one line: no markup of rich in it is followed, and credentials are taken out."""
    console.print(Text(plain(redacted(text)), style), soft_wrap=True)


def complain(error: object) -> None:
    """An error as one line on standard error."""
    lament(f"error: {plain(redacted(' '.join(str(error).split())))}")


def plain_all(value: Any) -> Any:
    """A document whose texts, keys as well, are `plain`."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, dict):
        return {plain(key) if isinstance(key, str) else key: plain_all(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [plain_all(inside) for inside in value]
    return value
