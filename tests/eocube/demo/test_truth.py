"""What the demo landscape says of itself agrees with its scenes, and with itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio

from eocube.demo.catalogue import make_demo
from eocube.demo.truth import COVER_NAMES, CROP_NAMES, demo_cover, demo_fields, demo_fine, write_fields

SMALL = (504960, 5387520, 507360, 5389920)  # 2.4 km a side


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("scenes"), bounds=SMALL).parent


def test_covers_share_every_cell_and_coarser_cells_are_means_of_finer_ones() -> None:
    fine, coarse = demo_cover(10, bounds=SMALL), demo_cover(80, bounds=SMALL)
    assert fine.shape == (len(COVER_NAMES), 240, 240) and coarse.shape == (len(COVER_NAMES), 30, 30)
    np.testing.assert_allclose(fine.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(fine.reshape(-1, 30, 8, 30, 8).mean((2, 4)), coarse, atol=1e-6)


def test_the_fine_drawing_averages_to_the_scene(scenes: Path) -> None:
    """The scene adds optics and noise to it: equal ground, date and offset show in how close both are."""
    day, fine = "2024-05-14", demo_fine("2024-05-14", ("B04", "B08"), bounds=SMALL)
    path = next(
        p for p in (scenes / "sentinel-2-l2a").iterdir() if day.replace("-", "") in p.name and "32UMU" in p.name
    )
    for k, band in enumerate(("B04", "B08")):
        with rasterio.open(path / f"{band}.tif") as tif:
            seen = tif.read(1) * 1e-4 - 0.1
        drawn = fine[k].reshape(240, 2, 240, 2).mean((1, 3))[:, : seen.shape[1]]
        assert np.corrcoef(seen.ravel(), drawn.ravel())[0, 1] > 0.97
        assert abs(float(seen.mean() - drawn.mean())) < 0.002


def test_a_field_has_its_crop_around_its_point() -> None:
    fields = demo_fields(bounds=SMALL)
    assert len(fields) > 20 and len({(f.x, f.y) for f in fields}) == len(fields)
    cover = demo_cover(5, bounds=SMALL)
    for field in fields:
        row, col = int((SMALL[3] - field.y) / 5), int((field.x - SMALL[0]) / 5)
        around = cover[CROP_NAMES.index(field.crop), max(row - 3, 0) : row + 4, max(col - 3, 0) : col + 4]
        assert around.min() == 1 and field.hectares >= 1.5


def test_fields_are_written_as_points_of_geojson(tmp_path: Path) -> None:
    fields = demo_fields(bounds=SMALL)
    document = json.loads(write_fields(tmp_path / "fields.geojson", fields).read_text())
    assert [f["properties"]["crop"] for f in document["features"]] == [f.crop for f in fields]
    lon, lat = document["features"][0]["geometry"]["coordinates"]
    assert 9.0 < lon < 9.2 and 48.6 < lat < 48.7


def test_bad_cells_days_and_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 5 m"):
        demo_cover(7, bounds=SMALL)
    with pytest.raises(ValueError, match="no demo scene of 2024-06-01"):
        demo_fine("2024-06-01", ("B04",), bounds=SMALL)
    with pytest.raises(ValueError, match="no band B99"):
        demo_fine("2024-05-14", ("B99",), bounds=SMALL)
