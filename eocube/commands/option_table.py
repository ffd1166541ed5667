"""Reads a command's options out of its dataclass: names, types, defaults and texts, for help and checks."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
import typing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import tyro

METAVARS = {
    "bbox": "W S E N", "extent": "W S E N", "datetime": "A/B", "out": "PATH", "bands": "B04,B03,..",
    "storage_options": "NAME=VALUE ..", "source_options": "NAME=VALUE ..", "product_options": "NAME=VALUE ..",
    "url": "CUBE", "urls": "CUBE ..", "cube": "CUBE", "region": "FILE", "points": "FILE", "group": "ZONE",
    "resolution": "METRES", "max_cloud": "PERCENT", "clear": "PERCENT", "time": "DATE", "price": "DOLLARS",
    "memory": "GB", "patience": "SECONDS", "unit_timeout": "SECONDS", "log_dir": "FOLDER", "quicklook": "PNG",
    "benchmark": "JSON", "sensor": "NAME", "catalog": "NAME", "weights": "NAME", "offset": "NUMBER",
    "max_requests_per_second": "NUMBER", "verify_fraction": "SHARE", "radius": "METRES", "crs": "EPSG:N",
    "shell": "SHELL", "retry": "STATES", "since": "last",
}  # fmt: skip
"""What stands for a value of an option of that name, in every command alike."""
NUMBERS: dict[Any, str] = {int: "a whole number", float: "a number"}


@dataclass(frozen=True, slots=True)
class Option:
    """One option or word of a command, as a user sees it."""

    name: str
    """The dataclass's field."""
    positional: bool
    kind: Any
    """bool, int, float, str or Path: of one value."""
    many: bool
    """Takes as many words as follow."""
    choices: tuple[str, ...]
    """All that it may be, where that is fixed."""
    required: bool
    default: Any
    text: str
    """What it does, without line ends."""

    @property
    def flag(self) -> str:
        """The option as it is typed."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def metavar(self) -> str:
        """What stands for its value: empty for a switch."""
        if self.kind is bool and not self.positional:
            return ""
        if self.choices:
            return "|".join(self.choices)
        known = METAVARS.get(self.name)
        other = "PATH" if self.kind is Path else self.name.split("_")[-1].upper()
        one = known or ("N" if self.kind in NUMBERS else other)
        return f"{one} .." if self.many and known is None else one

    @property
    def usual(self) -> str:
        """Its default, where there is one to speak of."""
        value = self.default
        if self.required or value is None or value is False or value in (0, "", (), [], {}):
            return ""
        if value is True:
            return f"on; --no-{self.flag[2:]} turns it off"
        return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def options_of(kind: type[Any]) -> tuple[Option, ...]:
    """A dataclass's options in their order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        texts |= _texts(base) if dataclasses.is_dataclass(base) else {}
    return tuple(_option(field, hints[field.name], texts) for field in dataclasses.fields(kind) if field.init)


def _option(field: dataclasses.Field[Any], hint: Any, texts: dict[str, str]) -> Option:
    extras: tuple[Any, ...] = ()
    if typing.get_origin(hint) is typing.Annotated:
        hint, *more = typing.get_args(hint)
        extras = tuple(more)
    said = next((str(extra.help) for extra in extras if getattr(extra, "help", None)), texts.get(field.name, ""))
    single, many, choices = _single(hint)
    made = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
    required = made is dataclasses.MISSING
    positional = any(extra is tyro.conf.Positional for extra in extras)
    text = " ".join(said.split())
    return Option(field.name, positional, single, many, choices, required, None if required else made, text)


def _single(hint: Any) -> tuple[Any, bool, tuple[str, ...]]:
    """A hint's type of one value, whether it takes several, and what it may be."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (one for one in typing.get_args(hint) if one is not type(None))
    origin = typing.get_origin(hint)
    if origin is Literal:
        return str, False, tuple(map(str, typing.get_args(hint)))
    if origin in (tuple, list):
        inner, _, choices = _single(typing.get_args(hint)[0])
        return inner, True, choices
    if origin is dict:
        return str, True, ()
    return hint, False, ()


def _texts(kind: type[Any]) -> dict[str, str]:
    """The string below each field of a class's source; none where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return {}
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef))
    found = {}
    for one, after in pairwise(body):
        if (
            isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        ):  # fmt: skip
            found[one.target.id] = after.value.value
    return found
