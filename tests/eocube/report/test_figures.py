"""Charts of the report page: what they say of themselves, and that several of them bear being on one page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np

from eocube.report.figures import histogram, over_time

SVG = "{http://www.w3.org/2000/svg}"


def titles(svg: str) -> list[str]:
    return [title.text or "" for title in ET.fromstring(svg).iter(f"{SVG}title")]


def test_every_bar_says_its_range_and_how_many_windows_it_is() -> None:
    svg = histogram(np.array([0.0, 0.1, 0.1, 1.0]), "a < b", bins=2)
    assert titles(svg) == ["0 to 0.5: 3 windows", "0.5 to 1: 1 windows"]
    assert "mean 0.3" in svg and ET.fromstring(svg).attrib["aria-label"] == "windows by a < b"


def test_values_that_are_all_alike_are_one_bar() -> None:
    for value in (0.0, -3.0, 41.5):
        (said,) = titles(histogram(np.full(5, value), "dB"))
        assert said.endswith(": 5 windows")


def test_time_is_told_in_a_fitting_unit() -> None:
    rates = np.array([1.0, 0.0, 3.0])
    for seconds, unit in ((30.0, "s"), (3600.0, "min"), (90000.0, "h")):
        svg = over_time(np.linspace(0.0, seconds, 4), rates, 4 / 3)
        assert f"working time, {unit}<" in svg and len(titles(svg)) == 2
    assert titles(over_time(np.linspace(0.0, 30.0, 4), np.zeros(3), 0.0)) == []


def test_charts_take_the_pages_colours_and_no_ids() -> None:
    svg = histogram(np.arange(9.0), "dB")
    assert svg == histogram(np.arange(9.0), "dB") and " id=" not in svg and "<?xml" not in svg
    assert set(re.findall(r"var\(--(\w+)\)", svg)) == {"bar", "mark", "soft", "line", "ink"}
    assert not re.search(r"#[0-9a-f]{6}", svg)


def test_numbers_below_the_bars_stand_apart_and_windows_are_whole() -> None:
    """What was seen: spectral angles of 0.02025, 0.0205, ... ran into each other, and windows were counted by 0.8."""
    svg = histogram(0.02 + 1e-4 * np.array([0.0, 1.0, 5.0, 14.0, 21.0]), "spectral angle, rad")
    texts = [text.text or "" for text in ET.fromstring(svg).iter(f"{SVG}text")]
    below = [text for text in texts if text.startswith("0.02")]
    assert 2 <= len(below) <= 5
    assert all(float(text).is_integer() for text in texts if re.fullmatch(r"\d(\.\d+)?", text) and text not in below)
