"""Writes a command's help: what it does, examples, the options most used in groups, and on request the rest."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eocube.commands.option_table import Option, options_of

WIDTH = 100
"""Columns at most; fewer on a narrower terminal."""
COLUMN = 28
REST = "Other options"
ENDS = (
    "Exit status: 0 done, 2 bad input, 3 something can be tried again, 1 a defect of eocube "
    "(docs/reference/exit_codes.md)."
)


@dataclass(frozen=True, slots=True)
class Page:
    """What a command's help shows beside its options."""

    examples: tuple[tuple[str, str], ...] = ()
    """(what it is for, what to type); at most three."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields by a title; what is in none is among the other options."""
    first: tuple[str, ...] = ()
    """Fields that `--help` shows, where there are too many for a screen. Empty: all."""
    about: str = ""
    """What it does, where the dataclass's own first paragraph does not say it."""


def help_text(kind: type[Any], prog: str, page: Page, *, whole: bool, width: int | None = None) -> str:
    """The help of a command with the options of a dataclass.

    Args:
        kind: the dataclass.
        prog: how the command is called.
        page: its examples and groups.
        whole: every option with its whole text; else those of `page.first`, each with its first sentence.
        width: columns; by default the terminal's.
    """
    options = options_of(kind)
    width = min(WIDTH, width or shutil.get_terminal_size((80, 24)).columns)
    brief = bool(page.first) and not whole
    words = " ".join(option.metavar for option in options if option.positional)
    out = [f"usage: {prog}{' ' + words if words else ''} [OPTIONS]", ""]
    out += textwrap.wrap(page.about or _about(kind), width)
    if page.examples:
        out += ["", *_examples(page.examples, width)]
    shown = [o for o in options if not brief or o.positional or o.name in page.first]
    groups = _groups(shown, page.groups)
    first = groups[0][0] if groups else ""
    for title, members in groups:
        # A first screen is to be one: its groups stand close.
        out += [
            *([] if brief and title != first else [""]),
            f"{title}:",
            *(line for option in members for line in _lines(option, width, brief=brief)),
        ]
    left = len(options) - len(shown)
    out += ["", f"--help-all lists {left} more options, and all that there is to say of these."] if brief else [""]
    return "\n".join([*out, *textwrap.wrap(ENDS, width)])


def _about(kind: type[Any]) -> str:
    own = kind.__dict__.get("__doc__") or ""
    first = inspect.cleandoc(own).split("\n\n")[0]
    return " ".join(first.split())


def _examples(examples: Sequence[tuple[str, str]], width: int) -> list[str]:
    return [line for what, typed in examples for line in (f"  # {what}"[:width], f"  {typed}")]


def _groups(options: Sequence[Option], groups: Mapping[str, tuple[str, ...]]) -> list[tuple[str, list[Option]]]:
    """Titles with their options, in the order of the groups; without groups all under one title."""
    of = {name: title for title, names in groups.items() for name in names}
    rest = REST if groups else "Options"
    found: dict[str, list[Option]] = {title: [] for title in ("Words", *groups, rest)}
    for option in options:
        found["Words" if option.positional else of.get(option.name, rest)].append(option)
    return [(title, members) for title, members in found.items() if members]


def _lines(option: Option, width: int, *, brief: bool) -> list[str]:
    """An option, and its text beside it."""
    head = option.metavar if option.positional else f"{option.flag} {option.metavar}".rstrip()
    text = first_sentence(option.text) if brief else option.text
    if option.usual:
        text = f"{text.rstrip('.')} [{option.usual}]"
    elif option.required and not option.positional:
        text = f"{text.rstrip('.')} (must be given)"
    beside = textwrap.wrap(text, max(20, width - COLUMN), break_on_hyphens=False, break_long_words=False) or [""]
    start = f"  {head}"
    if len(start) > COLUMN - 2:
        return [start, *(" " * COLUMN + line for line in beside)]
    return [start.ljust(COLUMN) + beside[0], *(" " * COLUMN + line for line in beside[1:])]


def first_sentence(text: str) -> str:
    """A text up to its first full stop or semicolon that ends a sentence, outside of brackets."""
    for found in re.finditer(r"(?<=[A-Za-z0-9)`])[.;](?= )", text):
        head = text[: found.start()]
        if head.count("(") == head.count(")"):
            return head
    return text.rstrip(".")
