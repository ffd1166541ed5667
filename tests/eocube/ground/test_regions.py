"""Outlines out of files: any CRS, parts, holes, the antimeridian, zones; and the windows that they ask for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from pyproj import CRS, Transformer

from eocube.cli import encode_main
from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.errors import InputError, StoreError
from eocube.ground.grid import CubeGrid, grids_for
from eocube.ground.regions import Region
from eocube.ground.vectors import Features
from eocube.plan.derive import finer_grid
from eocube.plan.plan import Plan
from eocube.run.extend import grow_plans
from tests.faults.killing import plan_of, scene

WINDOWS = {"core_px": 48, "halo_px": 16, "shard_px": 96}
TRIANGLE = shapely.Polygon([(11.4, 48.0), (11.6, 48.02), (11.5, 48.1)])
ISLES = shapely.MultiPolygon([shapely.box(11.4, 48.0, 11.42, 48.01), shapely.box(11.5, 48.05, 11.51, 48.06)])


def region(*shapes: shapely.Geometry, crs: str = "EPSG:4326") -> Region:
    return Region.of(Features(np.array([*shapes, None], object)[:-1], CRS.from_user_input(crs)), "it")


def grid_of(wanted: Region, resolution: float = 10) -> CubeGrid:
    (grid,) = grids_for(wanted.boxes, resolution, (), wanted, **WINDOWS)
    return grid


@pytest.mark.parametrize("shape", [TRIANGLE, ISLES, TRIANGLE.buffer(0.02).difference(TRIANGLE.buffer(-0.01))])
def test_just_the_windows_whose_core_has_ground_in_it_are_asked_for(shape: shapely.Geometry) -> None:
    grid = grid_of(region(shape))
    to = Transformer.from_crs(4326, 32632, always_xy=True)
    area = shapely.transform(
        shapely.segmentize(shape, 0.001), lambda c: np.column_stack(to.transform(c[:, 0], c[:, 1]))
    )
    asked = {(w.row, w.col) for w in grid.requested_windows()}
    for row in range(grid.windows_shape[0]):
        for col in range(grid.windows_shape[1]):
            window = grid.window_at(row, col)
            shared = shapely.box(*grid.lattice.core_bounds(window)).intersection(area).area
            if shared > 5 or shared == 0:  # m2: chords of edges may differ by less
                assert ((window.row, window.col) in asked) == (shared > 0)
    (box,) = grids_for(region(shape).boxes, 10, **WINDOWS)
    assert 0 < len(asked) < len(list(box.requested_windows()))
    assert CubeGrid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid
    assert "region" not in box.to_dict()


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:3857", "EPSG:3035"])
def test_a_region_in_another_crs_is_the_same_ground(crs: str) -> None:
    to = Transformer.from_crs(4326, crs, always_xy=True)
    dense = shapely.segmentize(TRIANGLE, 0.001)
    there = shapely.transform(dense, lambda c: np.column_stack(to.transform(c[:, 0], c[:, 1])))
    assert (grid_of(region(there, crs=crs)).requested_mask == grid_of(region(TRIANGLE)).requested_mask).all()


def test_over_the_antimeridian_it_is_the_same_however_it_is_written() -> None:
    halves = region(shapely.box(179.9, -17, 180, -16.9), shapely.box(-180, -17, -179.9, -16.9))
    turned = region(shapely.Polygon([(179.9, -17), (-179.9, -17), (-179.9, -16.9), (179.9, -16.9)]))
    beyond = region(shapely.box(179.9, -17, 180.1, -16.9))
    assert shapely.equals(halves.outline, turned.outline) and shapely.equals(halves.outline, beyond.outline)
    assert sorted(beyond.boxes) == [(-180.0, -17.0, -179.9, -16.9), (179.9, -17.0, 180.0, -16.9)]
    assert sorted(g.name for g in grids_for(beyond.boxes, 10, (), beyond, **WINDOWS)) == ["utm01s", "utm60s"]


def test_zones_between_its_parts_are_left_out() -> None:
    far = region(shapely.box(9, 48, 9.01, 48.01), shapely.box(21, 48, 21.01, 48.01))
    assert [g.name for g in grids_for(far.boxes, 10, (), far, **WINDOWS)] == ["utm32", "utm34"]
    halves = region(shapely.box(11.98, 48.02, 12.02, 48.03))
    assert [g.name for g in grids_for(halves.boxes, 10, (), halves, **WINDOWS)] == ["utm32", "utm33"]


def test_a_finer_cube_has_the_same_ground() -> None:
    grid = grid_of(region(TRIANGLE))
    fine = finer_grid(grid, 4)
    assert fine is not None
    n = len(list(grid.requested_windows()))
    assert len(list(fine.requested_windows())) == 16 * n
    cut = finer_grid(grid, 4, [(11.4, 48.0, 11.5, 48.1)])
    assert cut is not None and 0 < len(list(cut.requested_windows())) < 16 * n


def plans_of(wanted: Region) -> list[Plan]:
    plan = plan_of(wanted.boxes[0], [scene(10)])
    lattice = plan.grid.lattice
    room = region(TRIANGLE).boxes
    grid = CubeGrid.over(lattice, wanted.boxes, room, wanted.wkb)
    request = {**plan.request, "bbox": [list(b) for b in wanted.boxes], "region": wanted.digest}
    request["extent"] = [list(b) for b in room]
    return [replace(plan, grid=grid, request=request)]


def test_a_store_grows_by_a_region_that_holds_its_own_and_by_no_other() -> None:
    small, large = region(TRIANGLE.buffer(-0.01)), region(TRIANGLE)
    stored, asked = plans_of(small), plans_of(large)
    assert stored[0].hash != asked[0].hash
    (grown,) = grow_plans("cube.zarr", stored, asked)
    assert grown.grid.region == large.wkb and grown.extends == (stored[0].hash,)
    other = region(TRIANGLE.difference(TRIANGLE.buffer(-0.015)))  # as wide, but with a hole
    with pytest.raises(StoreError, match="holds ground that the box asked for does not"):
        grow_plans("cube.zarr", asked, plans_of(other))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"type": "Point", "coordinates": [11, 48]}', "holds a Point: a region is of polygons"),
        ('{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        (
            '{"type": "Polygon", "coordinates": [[[4e5, 5e6], [5e5, 5e6], [5e5, 6e6], [4e5, 5e6]]]}',
            "is its CRS the one",
        ),
        ('{"type": "Polygon"}', "is no GeoJSON"),
    ],
)
def test_what_is_no_region_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    (tmp_path / "r.geojson").write_text(text)
    argv = ["--region", str(tmp_path / "r.geojson"), "--datetime", "2024-07", "--out", str(tmp_path / "o.zarr")]
    assert encode_main(argv) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert encode_main([*argv, "--bbox", "1", "2", "3", "4"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_too_many_vertices_are_refused() -> None:
    angles = np.linspace(0, 2 * np.pi, 250_000)
    with pytest.raises(InputError, match="simplify it"):
        region(shapely.Polygon(np.column_stack([11 + np.cos(angles), 48 + np.sin(angles)])))


def test_shapefiles_and_geopackages_are_read_where_pyogrio_is(tmp_path: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio", reason="needs pyogrio, of the extra `tables`")
    to = Transformer.from_crs(4326, 32633, always_xy=True)
    there = shapely.transform(shapely.segmentize(TRIANGLE, 0.001), lambda c: np.column_stack(to.transform(*c.T)))
    for name in ("r.shp", "r.gpkg"):
        pyogrio.raw.write(
            tmp_path / name, shapely.to_wkb([there]), [np.array(["a"], object)], ["name"],
            geometry_type="Polygon", crs="EPSG:32633",
        )  # fmt: skip
        found = grid_of(Region.read(tmp_path / name))
        assert (found.requested_mask == grid_of(region(TRIANGLE)).requested_mask).all()


@pytest.mark.slow
def test_a_run_encodes_no_window_outside_and_resumes_without_a_search(
    demo_catalog: Path, tmp_path: Path, ray_local: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from eocube.report.info import status
    from eocube.run import job

    west, south, east, north = DEMO_BBOX
    corner = shapely.Polygon([(west, south), (east, south), (west, north)])
    (tmp_path / "r.geojson").write_text(shapely.to_geojson(corner))
    argv = ["--region", str(tmp_path / "r.geojson"), "--datetime", DEMO_DATETIME, "--catalog", str(demo_catalog),
            "--out", str(tmp_path / "c.zarr"), "--bands", "B02,B03,B04,B08", "--quiet"]  # fmt: skip
    assert encode_main([*argv, "--plan"]) == 0
    (planned,) = json.loads(capsys.readouterr().out)
    assert encode_main(argv) == 0
    found = status(str(tmp_path / "c.zarr")).windows
    whole = len(list(grids_for(DEMO_BBOX, 10)[0].requested_windows())) * status(str(tmp_path / "c.zarr")).times
    assert planned["windows"] == sum(n for s, n in found.items() if s != "outside") < whole
    monkeypatch.setattr(job, "make_plans", lambda *a: pytest.fail("searched again"))
    assert encode_main(argv) == 0
