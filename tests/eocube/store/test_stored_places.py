"""Hrefs of a stored plan are checked as a catalogue's are: a cube from elsewhere leads to no file of this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eocube.cli import main
from eocube.errors import SourceError, StoreError
from eocube.net.storage_options import scoped
from eocube.raster.opening import gdal_environment, open_raster
from eocube.read.reader import WindowReader
from eocube.report import info as inspection
from eocube.report.fidelity import truth_pixels
from eocube.report.source_pixels import read_source, read_windows
from tests.eocube.cubes import make_plan, make_weights
from tests.eocube.rasters import LATTICE, WINDOW, digital, ground, over, s2, tif
from tests.eocube.run.test_unit import over as over_files

ELSEWHERE = ("https://somebody.example.org/cube.zarr", "s3://somebody/cube.zarr", "memory://somebody/cube.zarr")
REACHES = (
    "/etc/B02.tif",
    "file:///etc/B02.tif",
    "/vsizip//etc/x.zip/b.tif",
    "zip::file:///etc/x.zip",
    "GTIFF_DIR:1:/etc/x",
)


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_cube_from_elsewhere_that_names_files_of_this_machine_is_refused(url: str, tmp_path: Path) -> None:
    plan = over_files(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    truth, options = truth_pixels(plan), scoped({}, url)
    with pytest.raises(StoreError, match=r"item scene-.*, asset band .*files.*--allow-local-sources"):
        read_source(plan, truth, 0, storage_options=options)
    windows = list(plan.grid.requested_windows())[:1]
    with pytest.raises(StoreError, match="--allow-local-sources"):
        list(read_windows(plan, truth, 0, windows, storage_options=options))
    for allowed in (scoped({}, url, trusted=True), scoped({}, str(tmp_path / "cube.zarr")), None):
        assert np.isfinite(read_source(plan, truth, 0, storage_options=allowed).values).any()


@pytest.mark.parametrize("url", ELSEWHERE[:2])
def test_no_read_opens_what_its_options_may_not_name(url: str, tmp_path: Path) -> None:
    """Where actors resume a stored plan, the same holds: by the catalogue that this run's user names."""
    path = tif(tmp_path / "b.tif", digital(ground()))
    options = scoped({}, url)
    for href in (str(path), path.as_uri(), *REACHES):
        with (
            pytest.raises(SourceError, match=r"item item-1, asset b02: .*--allow-local-sources"),
            WindowReader(s2(), LATTICE, storage_options=options, retries=0) as reader,
        ):
            reader.read([over(href)], WINDOW)
    with gdal_environment({}):
        open_raster(str(path), scoped({}, str(tmp_path / "catalog.json"))).close()


def test_quicklook_verify_and_report_say_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = over_files(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    plan = replace(plan, times=plan.times[:1])
    monkeypatch.setattr(inspection, "plan_of", lambda *_, **__: plan)
    assert main(["quicklook", ELSEWHERE[0], "--out", str(tmp_path / "q.png")]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "--allow-local-sources" in said[0]
    given: list[Any] = []
    monkeypatch.setattr(inspection, "read_source", lambda *_, storage_options, **__: given.append(storage_options))
    monkeypatch.setattr(inspection, "open_cube", lambda *_, **__: (_ for _ in ()).throw(StoreError("enough")))
    assert main(["quicklook", ELSEWHERE[0], "--allow-local-sources"]) == 2
    assert read_source(plan, truth_pixels(plan), 0, storage_options=given[0]).sizes["band"] == len(plan.sensor.bands)
