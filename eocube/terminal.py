"""Prints lines for people: what a catalogue or a store says is shown as it is, and does nothing to the terminal."""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

from eocube.net.redaction import redacted
from eocube.streams import PatientConsole, lament

_ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's controls, formats (which turn the direction of writing), lone surrogates, ends of lines and paragraphs."""
_SIGNS = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


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
