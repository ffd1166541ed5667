"""Reads what users write in YAML or JSON as pydantic models: what does not fit is refused in one line with the way out.

Numbers must be numbers: no text that looks like one, no `true` for 1, no 96.0 for a whole one. Two things that YAML 1.1
makes of plain words are taken for what was meant: 5e4, which it reads as text (`Number`), and a name or a date that it
reads as a number or a date (`Text`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")
# pydantic's names for a key that the form lacks, the more telling fault: a mistyped key is a missing one too.
_UNKNOWN = ("extra_forbidden", "invalid_key")


def _number(given: Any) -> Any:
    return float(given) if isinstance(given, str) and _EXPONENT.fullmatch(given) else given


def _text(given: Any) -> Any:
    plain = isinstance(given, (int, float, date, PurePath)) and not isinstance(given, bool)
    return str(given) if plain else given


Number = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, BeforeValidator(_text)]
T = TypeVar("T")
Items = Annotated[list[T], Field(strict=False)]
"""A list, or the tuple that a caller gives for one; never the letters of a text."""


class Form(BaseModel):
    """Base of a mapping that users write. Its fields are the keys: others are refused, `null` is as good as none."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    refusal: ClassVar[type[ValueError]] = ValueError
    """What `read` raises."""

    @classmethod
    def read(cls, given: object, where: str) -> Self:
        """`given` as this form; `refusal` names `where`, the key that is wrong and the keys there are."""
        fields = cls.model_fields
        if not isinstance(given, Mapping):
            raise cls.refusal(f"{where}: expected keys {', '.join(fields)}")
        try:
            return cls.model_validate({key: v for key, v in given.items() if v is not None or key not in fields})
        except ValidationError as error:
            raise cls.refusal(f"{where}: {_said(error, ', '.join(fields))}") from None


def _said(error: ValidationError, known: str) -> str:
    faults = error.errors(include_url=False)
    fault = next((f for f in faults if f["type"] in _UNKNOWN), faults[0])
    key = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    if fault["type"] in _UNKNOWN:
        return f"unknown key {key[:40]!r}; keys are {known}"
    if fault["type"] == "missing":
        return f"{key} is missing; keys are {known}"
    must = fault["msg"].replace("Input should be", "must be")
    # Where keys and values should be, storage options may have been meant: credentials are not repeated.
    given = "" if fault["type"] == "dict_type" else f", not {repr(fault['input'])[:40]}"
    return " ".join(f"{key} {must}{given}".split())
