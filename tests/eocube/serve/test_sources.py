"""The scenes a cube was made of are shown beside it where that is allowed, on the same grid, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyproj import Transformer

from eocube.cli import main
from eocube.demo.catalogue import DEMO_BBOX
from eocube.report.fidelity import truth_pixels
from eocube.report.info import plan_of
from eocube.report.source_pixels import read_source
from eocube.serve.app import Serving
from eocube.serve.cube import open_cubes
from eocube.serve.layers import LEAST
from eocube.serve.tiles import Ask
from tests.eocube.cubes import make_weights
from tests.eocube.serve.running import Running, running, tile_at

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(demo_catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cube of real scenes at 40 m, by random weights."""
    folder = tmp_path_factory.mktemp("sources")
    words = ["--catalog", str(demo_catalog), "--weights", str(make_weights(folder / "tiny.safetensors"))]
    words += ["--bands", "B02,B03,B04,B08", "--resolution", "40", "--datetime", "2024-05-01/2024-12-31", "--quiet"]
    assert main(["encode", *words, "--out", str(folder / "a.zarr"), "--bbox", *map(str, DEMO_BBOX)]) == 0
    return str(folder / "a.zarr")


@pytest.fixture(scope="module")
def server(url: str) -> Iterator[Running]:
    with running(open_cubes([url]), Serving(memory=400_000_000, source=True)) as one:
        yield one


def test_source_tiles_are_the_scenes_read_again(server: Running, url: str) -> None:
    shown = server.service.of("0")
    plan = plan_of(url, None)
    want = read_source(plan, truth_pixels(plan), 0).sel(band=["B04", "B03", "B02"])
    raster = shown.ground(Ask("true-colour", 0, source=True), shown.cube.frame.bounds)
    assert raster is not None
    assert raster.left == float(want.x[0]) - 20 and raster.top == float(want.y[0]) + 20
    np.testing.assert_array_equal(raster.data, want.values)
    (cube,) = server.get("/api/cubes").json()["cubes"]
    assert cube["has_source"]
    west, south, east, north = cube["bounds"]
    x, y = tile_at((west + east) / 2, (south + north) / 2, 13)
    source = server.get(f"/tiles/0/true-colour/0/13/{x}/{y}.png?source=1&stretch=fixed")
    decoded = server.get(f"/tiles/0/true-colour/0/13/{x}/{y}.png?stretch=fixed")
    assert source.status == decoded.status == 200 and source.body != decoded.body
    assert ((source.pixels()[3] > 0) == (decoded.pixels()[3] > 0)).mean() > 0.98
    assert server.get(f"/tiles/0/pca/0/13/{x}/{y}.png?source=1").status == 400


def test_a_point_has_the_source_beside_what_is_decoded(server: Running, url: str) -> None:
    west, south, east, north = server.get("/api/cubes").json()["cubes"][0]["bounds"]
    lon, lat = (west + east) / 2 + 0.003, (south + north) / 2
    found = server.get(f"/api/point/0?lon={lon}&lat={lat}&source=1").json()
    plan = plan_of(url, None)
    x, y = Transformer.from_crs(4326, plan.grid.lattice.epsg, always_xy=True).transform(lon, lat)
    for one in found["times"]:
        want = read_source(plan, truth_pixels(plan), one["index"]).sel(x=x, y=y, method="nearest")
        for band in ("B02", "B08"):
            value = float(want.sel(band=band))
            assert one["source"][band] == (pytest.approx(value, rel=1e-4) if np.isfinite(value) else None)
    for course, held in (("indices", "decoded"), ("source_indices", "source")):
        for ndvi, one in zip(found[course]["ndvi"], found["times"], strict=True):
            near, red = (one[held][band] for band in ("B08", "B04"))
            want = None if near is None or red is None else (max(near, LEAST) - max(red, LEAST)) / (
                max(near, LEAST) + max(red, LEAST)
            )  # fmt: skip
            assert ndvi == (None if want is None else pytest.approx(want, abs=1e-4))


def test_without_leave_no_source_is_read(url: str) -> None:
    with running(open_cubes([url])) as server:
        (cube,) = server.get("/api/cubes").json()["cubes"]
        assert not cube["has_source"] and server.service.of("0").sources is None
        west, south, east, north = cube["bounds"]
        found = server.get(f"/api/point/0?lon={(west + east) / 2}&lat={(south + north) / 2}&source=1")
        assert found.status == 400 and "--source" in found.json()["error"]
