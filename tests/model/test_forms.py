"""Forms: what users write is taken as written or refused in one line, and credentials are not repeated."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field

from model.forms import Form, Items, Number, Text


class StrangeError(ValueError):
    """What this form raises."""


class Search(Form):
    refusal = StrangeError

    name: Text
    size: int
    share: Number = 1.0
    bands: Items[str] = Field(default_factory=list)
    mix: dict[str, Number] = Field(default_factory=dict)
    deep: bool = False
    storage_options: dict[str, Any] | None = None


LEAST: dict[str, Any] = {"name": "a", "size": 96}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": None}, "d: size is missing; keys are name, size, share, bands, mix, deep, storage_options"),
        ({"size": "96"}, "d: size must be a valid integer, not '96'"),
        ({"size": True}, "d: size must be a valid integer, not True"),
        ({"size": 96.0}, "d: size must be a valid integer, not 96.0"),
        ({"share": "1"}, "d: share must be a valid number, not '1'"),
        ({"share": True}, "d: share must be a valid number, not True"),
        ({"share": float("nan")}, "d: share must be a finite number, not nan"),
        ({"share": "1e999"}, "d: share must be a finite number, not inf"),
        ({"name": True}, "d: name must be a valid string, not True"),
        ({"bands": "B02"}, "d: bands must be a valid list, not 'B02'"),
        ({"bands": ["B02", 3]}, "d: bands.1 must be a valid string, not 3"),
        ({"mix": {"a\nb": "c\nd"}}, r"d: mix.a b must be a valid number, not 'c\nd'"),
        ({"deep": 1}, "d: deep must be a valid boolean, not 1"),
        ({"storage_options": "key=secret"}, "d: storage_options must be a valid dictionary"),
        ({1: 2}, "d: unknown key '1'; keys are name, size, share, bands, mix, deep, storage_options"),
    ],
)
def test_what_does_not_fit_is_one_line_with_the_key(change: dict[Any, Any], said: str) -> None:
    with pytest.raises(StrangeError) as caught:
        Search.read(LEAST | change, "d")
    assert str(caught.value) == said


def test_a_mistyped_key_is_said_before_the_one_it_leaves_missing() -> None:
    with pytest.raises(StrangeError, match="unknown key 'sise'"):
        Search.read({"name": "a", "sise": 96}, "d")
    with pytest.raises(StrangeError, match="expected keys name, size"):
        Search.read(["name"], "d")


@pytest.mark.parametrize("text", ["5e4", "5E4", "5.e+4", "50.0e3", "50000", "+5e4"])
def test_numbers_that_yaml_reads_as_text_are_numbers(text: str) -> None:
    assert Search.read(LEAST | yaml.safe_load(f"share: {text}"), "d").share == 50000


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("2024-06-01", "2024-06-01"),
        (datetime.date(2024, 6, 1), "2024-06-01"),
        (2024, "2024"),
        (Path("a.yaml"), "a.yaml"),
    ],
)
def test_names_and_dates_are_text_whatever_yaml_makes_of_them(name: object, read: str) -> None:
    assert Search.read({"name": name, "size": 8}, "d").name == read


def test_null_is_as_good_as_none_and_a_tuple_as_a_list() -> None:
    found = Search.read(LEAST | {"share": None, "mix": None, "bands": ("B02",)}, "d")
    assert (found.share, found.mix, found.bands) == (1.0, {}, ["B02"])
