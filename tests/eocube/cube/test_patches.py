"""Source patches for training: what the files say in reflectance and decibels, by a search and by a cube's plan."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from eocube.cube.patches import KINDS, ScenePatches, open_search
from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.errors import InputError, SourceError
from eocube.ground.boxes import parse_bbox, parse_interval
from eocube.ground.grid import Lattice, grids_for
from eocube.ground.zones import to_zone
from eocube.plan.plan import build_plan
from eocube.products.eo_vae_document import Encoding, latents
from eocube.scenes.search import search
from eocube.sensors import get_sensor

SMALL = (9.06, 48.635, 9.085, 48.65)


def options(catalog: Path, **more: Any) -> dict[str, Any]:
    given = {"catalog": str(catalog), "sensor": "S2L2A", "bbox": SMALL, "datetime": DEMO_DATETIME, "size": 96}
    return given | {"bands": ["B02", "B04", "B08"]} | more


@pytest.fixture(scope="module")
def found(demo_catalog: Path) -> ScenePatches:
    return open_search(options(demo_catalog))


def test_patches_are_the_files_pixels_in_the_weights_unit(demo_catalog: Path, found: ScenePatches) -> None:
    sensor = get_sensor("S2L2A").subset(["B02", "B04", "B08"])
    scenes = search(str(demo_catalog), sensor, parse_bbox(*SMALL), parse_interval(DEMO_DATETIME)).scenes
    offsets = set()
    checked = 0
    for index, place in enumerate(found.places):
        patch = found.read(index)
        if patch is None or "+" in patch.name.split()[0]:
            continue  # a mosaic of two tiles
        scene = next(s for s in scenes if patch.name.startswith(s.id))
        assert patch.bands == ("B02", "B04", "B08") and patch.data.shape == (3, 96, 96)
        assert place.half == 480
        x, y = to_zone(32632, np.array([place.lon]), np.array([place.lat]))
        for channel, source in enumerate(sorted(scene.sources, key=lambda s: patch.bands.index(s.band))):
            with rasterio.open(source.href) as file:
                row, column = file.index(float(x[0]) - 480 + 5, float(y[0]) + 480 - 5)
                raw = file.read(1, window=((row, row + 96), (column, column + 96)), boundless=True)
            rule = source.radiometry
            expected = np.where(raw == 0, np.nan, (raw * rule.scale + rule.offset) * 1e4)
            there = np.isfinite(patch.data[channel])
            assert np.allclose(patch.data[channel][there], expected[there], atol=0.05)
            offsets.add(rule.offset)
        checked += 1
    assert checked >= 6 and len(offsets) == 2  # one date declares the offset in its pixels, the other had it removed


def test_patches_lie_side_by_side_on_the_lattice_and_cover_the_region(found: ScenePatches) -> None:
    corners = set()
    for place in found.places:
        x, y = to_zone(32632, np.array([place.lon]), np.array([place.lat]))
        left, top = float(x[0]) - 480, float(y[0]) + 480
        assert abs(left / 960 - round(left / 960)) < 1e-6 and abs(top / 960 - round(top / 960)) < 1e-6
        corners.add((round(left / 960), round(top / 960)))
    assert len(found.places) == 2 * len(corners)  # two dates
    assert min(p.lon for p in found.places) < SMALL[0] + 0.01 and max(p.lat for p in found.places) > SMALL[3] - 0.01


def test_what_no_scene_covers_whole_is_nan_and_what_is_too_cloudy_is_none(demo_catalog: Path) -> None:
    every = open_search(options(demo_catalog, bbox=list(DEMO_BBOX), bands=["B02"], size=264))
    kept = [every.read(i) for i in range(len(every))]
    shares = [np.isfinite(p.data).mean() for p in kept if p is not None]
    assert min(shares) < 1 and max(shares) == 1  # the swath's edge crosses the second date
    clear = open_search(options(demo_catalog, bbox=list(DEMO_BBOX), bands=["B02"], size=264, max_cloud=1))
    left = [clear.read(i) for i in range(len(clear))]
    assert sum(p is None for p in left) > sum(p is None for p in kept)
    for one, other in zip(kept, left, strict=True):
        assert other is None or (one is not None and np.array_equal(one.data, other.data, equal_nan=True))


def test_radar_comes_in_decibels(demo_catalog: Path) -> None:
    patches = open_search(options(demo_catalog, sensor="S1RTC", bands=None))
    patch = next(p for p in map(patches.read, range(len(patches))) if p is not None)
    assert patch.bands == ("VV", "VH") and -25 < np.nanmean(patch.data[0]) < 0
    assert np.nanmean(patch.data[0]) > np.nanmean(patch.data[1])


def test_a_search_travels_to_other_workers_with_its_plan(found: ScenePatches) -> None:
    copy = pickle.loads(pickle.dumps(found))
    assert copy.places == found.places
    one, other = found.read(3), copy.read(3)
    assert one is not None and other is not None and np.array_equal(one.data, other.data, equal_nan=True)


def test_a_cubes_plan_gives_its_own_cores(demo_catalog: Path, found: ScenePatches) -> None:
    encoding = Encoding("tiny", "tiny", "0" * 64, 4, 8, "fp32", "fp16")
    sensor = get_sensor("S2L2A").subset(["B02", "B04", "B08"])
    (grid,) = grids_for(SMALL, 10, core_px=96, halo_px=16, shard_px=96)
    scenes = search(str(demo_catalog), sensor, grid.search_boxes(), parse_interval(DEMO_DATETIME)).scenes
    plan = build_plan(latents(sensor, encoding, grid.lattice), grid, scenes, {})
    by_plan = ScenePatches.from_plans([plan])
    assert set(by_plan.places) == set(found.places) and by_plan.sensor == "S2L2A"
    index = found.places.index(by_plan.places[0])
    one, other = found.read(index), by_plan.read(0)
    assert one is not None and other is not None and np.array_equal(one.data, other.data, equal_nan=True)
    finer = ScenePatches.from_plans([plan], size=48)
    assert finer.places[0].half == 240 and len(finer) > 2 * len(by_plan)
    with pytest.raises(InputError, match="several sensors"):
        ScenePatches.from_plans([plan, replace(plan, product=replace(plan.product, inputs=(get_sensor("S1RTC"),)))])


def test_a_source_that_is_gone_names_item_and_asset(demo_catalog: Path, found: ScenePatches) -> None:
    lost = pickle.loads(pickle.dumps(found))
    entry = lost._entries[0]
    scene = entry.scenes[0]
    sources = tuple(replace(s, href=s.href + ".gone") for s in scene.sources)
    lost._entries[0] = replace(entry, scenes=(replace(scene, sources=sources),))
    with pytest.raises(SourceError, match=rf"item {scene.id}, asset "):
        lost.read(0)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("stac", {"size": 100}, "patches of 100 px: take a multiple of 24, such as 96"),
        ("stac", {"datetime": None}, "datetime is missing; keys are"),
        ("stac", {"color": 1}, "unknown key 'color'"),
        ("stac", {"size": "96"}, "patches: size must be a valid integer, not '96'"),
        ("stac", {"bbox": [1, "2", 3, 4]}, "patches: bbox.0.1 must be a valid number, not '2'"),
        ("stac", {"bbox": [1, 2, 3]}, "bbox takes four numbers"),
        ("stac", {"bbox": [-10, 30, 40, 70]}, "squares of 960 m, more than 250000: give several smaller boxes"),
        ("stac", {"sensor": "S9"}, "no sensor 'S9'"),
        ("stac", {"datetime": "2001-01-01/2001-02-01"}, "no scenes found: searched"),
        ("cube-sources", {}, "no eocube cube is there"),
    ],
)
def test_bad_input_is_said_in_one_line(
    demo_catalog: Path, tmp_path: Path, kind: str, given: dict[str, Any], said: str
) -> None:
    whole = options(demo_catalog, **given) if kind == "stac" else {"url": str(tmp_path / "none.zarr")}
    with pytest.raises(InputError, match=said) as caught:
        KINDS[kind](whole)
    assert "\n" not in str(caught.value)


def test_the_lattice_of_patches_has_no_halo() -> None:
    from eocube.cube.patches import _lattice

    assert _lattice(32632, 10, 264) == Lattice(32632, 10, 8, core_px=264, halo_px=0, shard_px=264)


@pytest.mark.real
def test_real_scenes_give_the_reflectance_of_the_same_ground_whatever_their_offset(
    catalog_json: Path, shared_dir: Path
) -> None:
    items = sorted((catalog_json.parent / "sentinel-2-l2a").glob("*/*.json"))
    patches = open_search(
        {"catalog": str(catalog_json), "sensor": "S2L2A", "bbox": [json.loads(i.read_text())["bbox"] for i in items],
         "size": 96, "datetime": "2015-01-01/2025-12-31", "bands": ["B03", "B08"]}
    )  # fmt: skip
    found: dict[str, list[Any]] = {}
    for index in range(len(patches)):
        patch = patches.read(index)
        if patch is not None:
            found.setdefault(patch.name.split()[0], []).append(patch.data)
    assert len(found) == 3
    for name, parts in found.items():
        tile = shared_dir / "data" / "raw" / "terramesh" / "S2L2A" / f"{name.removeprefix('S2L2A_')}.tif"
        with rasterio.open(tile) as file:
            whole = file.read([3, 8]).astype(np.float64)
        middle = np.nanmedian(np.concatenate([p.reshape(2, -1) for p in parts], axis=1), axis=1)
        # this one's pixels still carry the offset of baseline 04.00, which its item says and the raster does not
        offset = 1000 if "433D" in name else 0
        assert np.allclose(middle, np.median(whole.reshape(2, -1), axis=1) - offset, rtol=0.02, atol=10)
