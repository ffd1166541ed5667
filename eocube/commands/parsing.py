"""Parses a command's arguments and runs it: a user's mistake is one line and exit status 2."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tyro

from eocube.commands.help_page import Page, first_sentence, help_text
from eocube.commands.option_table import NUMBERS, Option, options_of
from eocube.console import complain, lament, open_streams, tell
from eocube.errors import ClusterError, EocubeError, Exit, InputError, StoreError

Options = TypeVar("Options")
BOXES = ("--bbox", "--extent")
"""Options of four numbers."""
HELP, HELP_ALL = ("-h", "--help"), "--help-all"
NO_PAGE = Page()


def parse(kind: type[Options], argv: Sequence[str], prog: str, page: Page = NO_PAGE) -> Options:
    """Arguments as a dataclass. A mistake is one line on stderr and exit status 2; `--help` prints the page, status 0.

    What is certain to be wrong is said in our words, with what was meant; tyro decides the rest. It draws a box around
    its errors: its words are kept, the box is not.
    """
    open_streams()
    words = _spread(argv)
    if HELP_ALL in words or any(word in HELP for word in words):
        tell(help_text(kind, prog, page, whole=HELP_ALL in words))
        raise SystemExit(int(Exit.DONE))
    if wrong := mistake(options_of(kind), words):
        _refuse(f"{wrong} ({prog} --help)")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=words, prog=prog)
    except SystemExit as end:
        if end.code in (0, None):
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[─-╿]", " ", said.getvalue())
        text = re.sub(r"For full helptext, .*|Argument helptext: .*", "", " ".join(text.split()))
        text = re.sub(r"^(Parsing error|Unrecognized options) (?=\w)", "", text).strip()
        _refuse(f"{text} ({prog} --help)")
        raise AssertionError from None  # not reached


def _refuse(text: str) -> None:
    complain(text)
    raise SystemExit(int(Exit.BAD_INPUT)) from None


def mistake(options: Sequence[Option], words: Sequence[str]) -> str | None:
    """What is certainly wrong with a command's words, in one line; None where nothing is."""
    known = {option.flag: option for option in options if not option.positional}
    switches = {f"--no-{flag[2:]}": option for flag, option in known.items() if option.kind is bool}
    given: set[str] = set()
    alone: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            alone.append(word)
            continue
        flag, mark, value = word.partition("=")
        flag = flag.replace("_", "-")
        option = known.get(flag) or switches.get(flag)
        if option is None:
            return f"no option {flag}{meant(flag, known)}"
        given.add(option.name)
        if option.kind is bool:
            if mark:
                return f"{flag} takes no value"
            continue
        values = [value] if mark else list(_values(rest, option))
        rest = rest if mark else rest[len(values) :]
        if not values and not (option.many and not option.required):
            return f"{flag} needs a value: {flag} {option.metavar}"
        for one in values:
            if wrong := _unfit(flag, one, option):
                return wrong
    return _out_of_place(options, alone) or _lacking(options, alone, given)


def _out_of_place(options: Sequence[Option], alone: Sequence[str]) -> str | None:
    """A word that belongs to no option and has no place of its own."""
    places = [option for option in options if option.positional]
    if any(option.many for option in places) or len(alone) <= len(places):
        return None
    return f"{alone[len(places)]!r} is one word too many"


def _lacking(options: Sequence[Option], alone: Sequence[str], given: set[str]) -> str | None:
    needed = [option for option in options if option.required]
    words = [option for option in needed if option.positional][len(alone) :]
    if words:
        what = first_sentence(words[0].text)
        return f"{words[0].metavar} must be given: {what[:1].lower()}{what[1:]}"
    flags = [f"{o.flag} {o.metavar}" for o in needed if not o.positional and o.name not in given]
    return f"{' and '.join(flags)} must be given" if flags else None


def _values(rest: list[str], option: Option) -> Sequence[str]:
    """The words after an option that are its own."""
    end = next((k for k, word in enumerate(rest) if word.startswith("--")), len(rest))
    return rest[: end if option.many else min(end, 1)]


def _unfit(flag: str, value: str, option: Option) -> str | None:
    if option.choices and value not in option.choices:
        near = difflib.get_close_matches(value, option.choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"{flag}: no {value!r}, there is {', '.join(option.choices)}{hint}"
    if option.kind in NUMBERS and not option.many:
        try:
            option.kind(value)
        except ValueError:
            return f"{flag}: {value!r} is not {NUMBERS[option.kind]}"
    return None


def meant(word: str, known: Mapping[str, Any]) -> str:
    """What was probably meant, to go behind what there is not."""
    near = difflib.get_close_matches(word.lower(), known, n=1)
    near += [name for name in known if len(word) > 3 and name.startswith(word.lower())]
    return f"; did you mean {near[0]}?" if near else ""


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
    from eocube.run.arguments import number

    if not words:
        return None
    values = [number(value, flag) for word in words for value in word.split(",") if value.strip()]
    if len(values) != 4:
        raise InputError(f"{flag} takes four numbers, west south east north; {len(values)} given")
    return tuple(values)


def interval_given(text: str | None) -> tuple[np.datetime64, np.datetime64] | None:
    """First and last moment of a date or A/B; None where none was given."""
    from eocube.ground.boxes import parse_interval

    if text is None:
        return None
    first, last = (np.datetime64(t.replace(tzinfo=None), "ns") for t in parse_interval(text))
    return first, last
