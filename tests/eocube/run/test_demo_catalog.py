"""Checks `--catalog demo`: the demonstration's scenes, drawn once, unless a folder has that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from eocube.run.asked import Selection
from eocube.run.request import with_demo_catalog


def test_the_demo_is_a_catalogue_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    drawn: list[Path] = []

    def draw(folder: Path) -> Path:
        drawn.append(folder)
        return folder / "catalog.json"

    monkeypatch.setattr("eocube.demo.catalogue.make_demo", draw)
    asked = Selection(catalog="demo")
    assert with_demo_catalog(asked, Path("here")).catalog == str(Path("here/catalog/catalog.json"))
    assert drawn == [Path("here/catalog")]
    other = Selection(catalog="earth-search")
    assert with_demo_catalog(other, Path("here")) is other and len(drawn) == 1
    (tmp_path / "demo").mkdir()
    assert with_demo_catalog(asked, Path("here")) is asked and len(drawn) == 1
