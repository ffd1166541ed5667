"""Two items of one id: each date holds its own item's pixels, in plans, extensions and patches; old plans are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from eocube.cube.patches import ScenePatches
from eocube.errors import StoreError
from eocube.ground.grid import CubeGrid, grids_for
from eocube.plan.plan import Plan, build_plan
from eocube.products.eo_vae_document import Encoding, latents
from eocube.read.reader import WindowReader
from eocube.report.info import verify
from eocube.run.arguments import EncodeOptions
from eocube.run.extend import grown
from eocube.run.job import plans_of
from eocube.scenes.scene_ids import distinct, doubled
from eocube.scenes.search import Scene, parse_interval, search
from eocube.sensors import get_sensor
from eocube.store.store import CubeStore
from tests.eocube.cubes import parsed

ENCODING = Encoding("nano", "nano", "0" * 64, 32, 8, "fp32", "fp16")
SENSOR = get_sensor("RGBN").subset(["B04"])
EAST, NORTH, SIDE = 600_000.0, 5_300_160.0, 96
FIRST, SECOND = "2020-01-01", "2020-07-01"


def item(folder: Path, day: str, number: int, *, west: float = EAST, name: str = "scene") -> dict[str, Any]:
    """An item of Sentinel-2 whose pixels all hold `number`."""
    path = folder / f"{day}-{number}.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=SIDE, height=SIDE, count=1, dtype="uint16", crs="EPSG:32632",
        transform=from_origin(west, NORTH, 10, 10),
    ) as file:  # fmt: skip
        file.write(np.full((SIDE, SIDE), number, np.uint16), 1)
    w, s, e, n = box_at(west)
    return {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "mine", "bbox": [w, s, e, n],
        "geometry": {"type": "Polygon", "coordinates": [[[w, s], [e, s], [e, n], [w, n], [w, s]]]}, "links": [],
        "properties": {
            "datetime": f"{day}T10:00:00Z", "platform": "sentinel-2a", "s2:processing_baseline": "02.12",
        },
        "assets": {"B04": {"href": str(path)}},
    }  # fmt: skip


def box_at(west: float) -> tuple[float, float, float, float]:
    return transform_bounds("EPSG:32632", "EPSG:4326", west, NORTH - 10 * SIDE, west + 10 * SIDE, NORTH)  # type: ignore[no-any-return]


def found(folder: Path, *items: dict[str, Any]) -> tuple[Scene, ...]:
    listing = folder / "items.json"
    listing.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
    result = search(str(listing), SENSOR, box_at(EAST), parse_interval("2019-01-01/2024-12-31"))
    assert not result.refused
    return result.scenes


def grid_of() -> CubeGrid:
    (grid,) = grids_for(box_at(EAST), 10, core_px=48, halo_px=16, shard_px=96)
    return grid


def plan_of(scenes: tuple[Scene, ...], days: str = "") -> Plan:
    days = days or f"{FIRST}/{SECOND}"
    request = {"bbox": [list(box_at(EAST))], "datetime": days.split("/")}
    return build_plan(latents(SENSOR, ENCODING, grid_of().lattice), grid_of(), scenes, request)


def numbers(plan: Plan) -> list[int]:
    """What each date's pixels hold in the middle of the ground, in the source's own numbers."""
    lattice, held = plan.grid.lattice, []
    window = list(plan.grid.requested_windows())[len(list(plan.grid.requested_windows())) // 2]
    with WindowReader(SENSOR, lattice) as reader:
        for time in range(len(plan.times)):
            pixels = reader.read(plan.scenes_of(time, window), window).groups[10]
            held.append(int(np.median(pixels[pixels > 0])) - 1000)
    return held


def test_both_dates_hold_their_own_pixels(tmp_path: Path) -> None:
    plan = plan_of(found(tmp_path, item(tmp_path, FIRST, 800), item(tmp_path, SECOND, 1200)))
    assert numbers(plan) == [800, 1200]
    assert [s.item_id for s in plan.scenes] == ["scene"] * 2 and len(plan.by_id) == 2 and not plan.doubled
    again = Plan.from_json(plan.to_json())
    assert again == plan and again.hash == plan.hash and numbers(again) == [800, 1200]


def test_the_order_of_a_catalogue_does_not_matter(tmp_path: Path) -> None:
    items = [item(tmp_path, FIRST, 800), item(tmp_path, SECOND, 1200)]
    assert plan_of(found(tmp_path, *items)).hash == plan_of(found(tmp_path, *items[::-1])).hash


def test_tiles_of_one_id_and_moment_are_all_read(tmp_path: Path) -> None:
    beside = EAST + 10 * SIDE / 2
    west, east = item(tmp_path, FIRST, 800, west=EAST - 10 * SIDE / 2), item(tmp_path, FIRST, 1200, west=beside)
    plan = plan_of(found(tmp_path, west, east))
    assert len(plan.times) == 1 and len(plan.times[0].scene_ids) == 2
    assert {s.sources[0].href for s in plan.scenes_at(0)} == {i["assets"]["B04"]["href"] for i in (west, east)}


def test_an_item_that_is_listed_twice_is_one_scene(tmp_path: Path) -> None:
    one = item(tmp_path, FIRST, 800)
    scenes = found(tmp_path, one, one)
    assert len(scenes) == 1 and scenes[0].item is None
    assert distinct([*scenes, *scenes]) == scenes


@pytest.mark.parametrize("first", [0, 1])
def test_a_store_that_grows_tells_them_apart_whichever_it_held(first: int, tmp_path: Path) -> None:
    items = [item(tmp_path, FIRST, 800), item(tmp_path, SECOND, 1200)]
    days = [FIRST, SECOND]
    stored = plan_of(found(tmp_path, items[first]), f"{days[first]}/{days[first]}")
    assert [s.id for s in stored.scenes] == ["scene"]
    plan = grown("cube.zarr", stored, plan_of(found(tmp_path, *items)))
    assert numbers(plan) == [[800, 1200], [1200, 800]][first]
    assert plan.scenes_at(0) == stored.scenes, "what was frozen stays as it is"
    assert grown("cube.zarr", plan, plan_of(found(tmp_path, *items))).hash == plan.hash


def test_patches_of_both_dates(tmp_path: Path) -> None:
    scenes = found(tmp_path, item(tmp_path, FIRST, 800), item(tmp_path, SECOND, 1200))
    old = [replace(s, id="scene", item=None) for s in scenes]
    for given in (scenes, old):
        plan = replace(plan_of(scenes), scenes=tuple(given))
        patches = ScenePatches.from_plans([plan], size=24)
        values = {round(float(np.nanmedian(p.data))) for k in range(len(patches)) if (p := patches.read(k)) is not None}
        assert values == {800, 1200}


def test_ordinary_scenes_keep_their_names_and_their_json(tmp_path: Path) -> None:
    scenes = found(tmp_path, item(tmp_path, FIRST, 800, name="a"), item(tmp_path, SECOND, 1200, name="b"))
    assert [s.id for s in scenes] == ["a", "b"] and doubled(scenes) == ()
    assert distinct(scenes) == scenes and distinct(scenes, scenes) == scenes
    assert all("item" not in s.to_dict() for s in scenes)


def test_a_store_of_version_0_1_that_mixed_them_up_is_named(tmp_path: Path) -> None:
    scenes = found(tmp_path, item(tmp_path, FIRST, 800), item(tmp_path, SECOND, 1200))
    plan = plan_of(scenes)
    old = replace(
        plan,
        scenes=tuple(replace(s, id="scene", item=None) for s in scenes),
        times=tuple(replace(t, scene_ids=("scene",)) for t in plan.times),
    )
    url = str(tmp_path / "cube.zarr")
    CubeStore.create(url, old)
    assert any("several items are called 'scene'" in finding for finding in verify(url).findings)
    w, s, e, n = (str(v) for v in box_at(EAST))
    options = EncodeOptions(bbox=(w, s, e, n), datetime=f"{FIRST}/{SECOND}", sensor="RGBN", bands="B04", out=url)
    with pytest.raises(StoreError, match="several items called 'scene'"):
        plans_of(parsed(options), None)
