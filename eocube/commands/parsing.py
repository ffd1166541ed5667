"""Parses a command's arguments and runs it: a user's mistake is one line and exit status 2."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import tyro

from eocube.console import complain, lament, open_streams
from eocube.errors import ClusterError, EocubeError, InputError, StoreError
from eocube.ground.boxes import parse_interval
from eocube.run.arguments import number
from eocube.run.request import Exit

Options = TypeVar("Options")
BOXES = ("--bbox", "--extent")
"""Options of four numbers."""


def parse(kind: type[Options], argv: Sequence[str], prog: str) -> Options:
    """Arguments as a dataclass. A mistake is one line on stderr and exit status 2.

    tyro draws a box around its errors; its words are kept, the box is not.
    """
    open_streams()
    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            return tyro.cli(kind, args=_spread(argv), prog=prog)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[─-╿]", " ", words.getvalue())
        text = " ".join(text.split()).removeprefix("Parsing error").strip()
        complain(text)
        raise SystemExit(int(Exit.BAD_INPUT)) from None


def _spread(argv: Sequence[str]) -> list[str]:
    """Arguments with boxes in four words: -3.7,40.2,-3.5,40.4 would else look like an option."""
    words: list[str] = []
    for word in argv:
        flag, mark, value = word.partition("=")
        if mark and flag in BOXES:
            words += [flag, *value.replace(",", " ").split()]
        elif words and words[-1] in BOXES and "," in word:
            words += word.replace(",", " ").split()
        else:
            words.append(word)
    return words


def guarded(command: Callable[[], int]) -> int:
    """Run a command; what eocube raises on purpose becomes one line on stderr and exit status 2.

    Where threads of a run hang, for which Python would wait, the process ends here.
    """
    status = _guarded(command)
    engine = sys.modules.get("eocube.run.local_engine")
    if engine is not None and engine.threads_left():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status


def _guarded(command: Callable[[], int]) -> int:
    open_streams()
    try:
        return int(command())
    except (InputError, StoreError, ClusterError) as error:
        complain(error)
        return int(Exit.BAD_INPUT)
    except EocubeError as error:
        complain(error)
        return int(Exit.DEFECT)
    except KeyboardInterrupt:
        lament("interrupted")
        return int(Exit.RETRYABLE)


def names_of(text: str | None) -> tuple[str, ...] | None:
    """Names as B04,B03,B02; None where none were given."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def box_given(words: Sequence[str], flag: str = "--bbox") -> tuple[float, ...] | None:
    """Four numbers, with spaces or commas between them; None where none were given. InputError for anything else."""
    if not words:
        return None
    values = [number(value, flag) for word in words for value in word.split(",") if value.strip()]
    if len(values) != 4:
        raise InputError(f"{flag} takes four numbers, west south east north; {len(values)} given")
    return tuple(values)


def interval_given(text: str | None) -> tuple[np.datetime64, np.datetime64] | None:
    """First and last moment of a date or A/B; None where none was given."""
    if text is None:
        return None
    first, last = (np.datetime64(t.replace(tzinfo=None), "ns") for t in parse_interval(text))
    return first, last
