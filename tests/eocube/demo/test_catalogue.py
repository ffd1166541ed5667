"""The demo scenes: reproducible to the byte, true COGs on the right ground, honest STAC, plausible numbers."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from pyproj import Transformer

from eocube.demo import catalogue
from eocube.demo.catalogue import (
    BANDS,
    DEMO_BBOX,
    DEMO_BOUNDS,
    DEMO_DATETIME,
    DEMO_EPSG,
    KEYS,
    NATIVE,
    demo_reflectance,
    make_demo,
)

SMALL = (504960, 5387520, 507360, 5389920)  # 2.4 km a side, across the start of the second tile


def items(catalog: Path, collection: str) -> list[tuple[Path, dict[str, Any]]]:
    """The items of a collection, found by its links alone."""
    path = catalog.parent / collection / "collection.json"
    links = json.loads(path.read_text())["links"]
    found = [path.parent / link["href"] for link in links if link["rel"] == "item"]
    return [(f, json.loads(f.read_text())) for f in found]


def read(item_path: Path, asset: dict[str, Any]) -> np.ndarray[Any, Any]:
    with rasterio.open(item_path.parent / asset["href"]) as src:
        return np.asarray(src.read(1))


def digests(root: Path) -> dict[str, str]:
    return {
        str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in root.rglob("*") if f.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo(tmp_path_factory.mktemp("small"), bounds=SMALL)


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_on_any_number_of_threads_and_another_seed_does_not(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 5):
        monkeypatch.setattr(catalogue, "_threads", lambda number=number: number)
        again = make_demo(tmp_path / f"again-{number}", bounds=SMALL)
        assert digests(again.parent) == digests(small.parent)
    other = make_demo(tmp_path / "other", bounds=SMALL, seed=7)
    changed = digests(other.parent)
    assert all(changed[k] != v for k, v in digests(small.parent).items() if k.endswith(("B04.tif", "vv.tif")))


def test_a_whole_catalogue_is_kept_and_a_damaged_one_is_made_again(small: Path, tmp_path: Path) -> None:
    shutil.copytree(small.parent, tmp_path, dirs_exist_ok=True)
    catalog = tmp_path / small.name
    before = digests(tmp_path)
    stamp = catalog.stat().st_mtime_ns
    assert make_demo(tmp_path, bounds=SMALL).stat().st_mtime_ns == stamp
    next(tmp_path.rglob("B08.tif")).unlink()
    make_demo(tmp_path, bounds=SMALL)
    assert digests(tmp_path) == before


def test_bounds_off_the_60_m_grid_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiples of 60"):
        make_demo(tmp_path, bounds=(504970, 5387520, 507360, 5389920))
    assert not list(tmp_path.iterdir())


def test_scenes_are_cogs_with_overviews_on_the_items_grid(demo_catalog: Path) -> None:
    scenes = items(demo_catalog, "sentinel-2-l2a")
    assert len(scenes) == 4
    for path, item in scenes:
        for key, gsd in zip(KEYS, NATIVE, strict=True):
            asset = item["assets"][key]
            with rasterio.open(path.parent / asset["href"]) as src:
                assert src.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                assert src.crs.to_epsg() == DEMO_EPSG == item["properties"]["proj:epsg"]
                assert [*src.transform][:6] == asset["proj:transform"]
                assert src.res == (gsd, gsd) and src.nodata == 0 and src.dtypes == ("uint16",)
                assert src.bounds.left % 60 == 0 and src.bounds.top % 60 == 0
                if gsd < 60:
                    assert src.overviews(1)
    ((path, radar),) = items(demo_catalog, "sentinel-1-rtc")
    with rasterio.open(path.parent / radar["assets"]["vv"]["href"]) as src:
        assert src.dtypes == ("float32",) and src.nodata == -32768 and src.overviews(1)
        assert src.bounds.left % 10 == 5, "the radar grid lies between the optical pixels, as RTC products may"


def test_the_bbox_lies_in_the_scenes_with_room_for_a_halo() -> None:
    to_metres = Transformer.from_crs(4326, DEMO_EPSG, always_xy=True)
    west, south, east, north = DEMO_BBOX
    left, bottom, right, top = DEMO_BOUNDS
    for lon in np.linspace(west, east, 9):
        for lat in np.linspace(south, north, 9):
            x, y = to_metres.transform(lon, lat)
            assert 503040 < x < 510720 and 5385600 < y < 5391360, "inside the twelve cores of 1920 m"
    assert 503040 - left >= 320 <= right - 510720 and 5385600 - bottom >= 320 <= top - 5391360


def test_items_lie_in_bbox_and_dates_and_name_their_datatake(demo_catalog: Path) -> None:
    first, last = DEMO_DATETIME.split("/")
    takes: dict[str, set[str]] = {}
    for _, item in items(demo_catalog, "sentinel-2-l2a"):
        p, box = item["properties"], item["bbox"]
        assert first <= p["datetime"][:10] <= last
        assert box[0] < DEMO_BBOX[2] and box[2] > DEMO_BBOX[0] and box[1] < DEMO_BBOX[1] and box[3] > DEMO_BBOX[3]
        assert p["s2:datatake_id"].endswith("_N05.10") and p["s2:processing_baseline"] == "05.10"
        assert p["s2:product_uri"].split("_")[2] == p["s2:datatake_id"].split("_")[1]
        assert 1 < p["eo:cloud_cover"] < 30 and p["eocube:synthetic"] is True
        takes.setdefault(p["s2:datatake_id"], set()).add(p["grid:code"])
    assert list(takes.values()) == [{"MGRS-32UMU", "MGRS-32UNU"}] * 2


def test_one_date_carries_the_offset_and_the_other_only_declares_it(demo_catalog: Path) -> None:
    dark = {}
    for path, item in items(demo_catalog, "sentinel-2-l2a"):
        asset = item["assets"]["swir22"]
        assert asset["raster:bands"][0]["offset"] == -0.1
        pixels = read(path, asset)
        dark.setdefault(item["properties"]["earthsearch:boa_offset_applied"], []).append(
            np.percentile(pixels[pixels > 0], 1)
        )
    assert min(dark[False]) > 1000 > 400 > max(dark[True])


def test_tiles_of_a_date_agree_where_they_overlap(demo_catalog: Path) -> None:
    pair = [(p, i) for p, i in items(demo_catalog, "sentinel-2-l2a") if "20240514" in i["id"]]
    west, east = (read(p, i["assets"]["red"]) for p, i in pair)
    shared = (pair[0][1]["bbox"][2] > pair[1][1]["bbox"][0], west.shape[1] - (505560 - 502560) // 10)
    assert shared[0] and shared[1] > 192
    np.testing.assert_array_equal(west[:, -shared[1] :], east[:, : shared[1]])


def test_the_swath_edge_is_nodata_in_every_band_and_mask(demo_catalog: Path) -> None:
    path, item = next((p, i) for p, i in items(demo_catalog, "sentinel-2-l2a") if "32UNU_20240728" in i["id"])
    fine = read(path, item["assets"]["red"]) == 0
    assert 0.05 < fine.mean() < 0.3 and not fine[:, 0].any() and fine[:, -1].all()
    coarse = read(path, item["assets"]["nir09"]) == 0
    np.testing.assert_array_equal(coarse, fine.reshape(coarse.shape[0], 6, -1, 6).any(axis=(1, 3)))
    np.testing.assert_array_equal(read(path, item["assets"]["scl"]) == 0, fine.reshape(336, 2, -1, 2).any(axis=(1, 3)))
    from rasterio.features import geometry_mask
    from rasterio.warp import transform_geom

    outline = transform_geom("EPSG:4326", f"EPSG:{DEMO_EPSG}", item["geometry"])
    with rasterio.open(path.parent / item["assets"]["red"]["href"]) as src:
        outside = geometry_mask([outline], src.shape, src.transform)
    assert (outside != fine).mean() < 0.01, "the item's geometry is the footprint of its data"


def test_spectra_are_those_of_the_covers(demo_catalog: Path) -> None:
    path, item = next((p, i) for p, i in items(demo_catalog, "sentinel-2-l2a") if "32UMU_20240514" in i["id"])
    at_20 = {}
    for key, band, gsd in zip(KEYS, BANDS, NATIVE, strict=True):
        refl = read(path, item["assets"][key]) * 1e-4 - 0.1
        step = 20 // gsd
        at_20[band] = refl.reshape(336, step, -1, step).mean(axis=(1, 3)) if step else np.kron(refl, np.ones((3, 3)))
    scl = read(path, item["assets"]["scl"])
    plants, water, cloud, shadow = (scl == code for code in (4, 6, 9, 3))
    assert min(m.sum() for m in (plants, water, cloud, shadow)) > 100
    mean = {b: {n: v[m].mean() for n, m in (("p", plants), ("w", water), ("c", cloud), ("s", shadow))}
            for b, v in at_20.items()}  # fmt: skip
    assert mean["B08"]["p"] > 4 * mean["B04"]["p"] and mean["B05"]["p"] < mean["B06"]["p"] < mean["B07"]["p"]
    assert mean["B12"]["w"] < 0.05 < 0.5 < mean["B02"]["c"] and mean["B12"]["c"] < 0.7 * mean["B08"]["c"]
    assert mean["B08"]["s"] < 0.6 * mean["B08"]["p"]
    assert all(np.abs(v).max() < 1.5 and v.min() > -0.02 for v in at_20.values())


def test_radar_is_linear_power_with_the_speckle_of_about_five_looks(demo_catalog: Path) -> None:
    ((path, item),) = items(demo_catalog, "sentinel-1-rtc")
    vv, vh = (read(path, item["assets"][k]) for k in ("vv", "vh"))
    seen = vv != -32768
    assert 0.9 < seen.mean() < 1 and (vv[seen] > 0).all()
    assert -16 < 10 * np.log10(vv[seen].mean()) < -4 and vh[seen].mean() < 0.5 * vv[seen].mean()
    blocks = vv[:664, 40:840].reshape(83, 8, 100, 8).swapaxes(1, 2).reshape(-1, 64)
    looks = blocks.mean(axis=1) ** 2 / blocks.var(axis=1)
    assert 4 < np.percentile(looks, 90) < 9, "64 pixels of even ground show the number of looks"


@pytest.mark.slow
def test_training_patches_differ_by_seed_and_reach_snow_and_cloud() -> None:
    patches = [demo_reflectance(seed, 96) for seed in range(12)]
    assert all(p.shape == (12, 96, 96) and p.dtype == np.float32 and np.isfinite(p).all() for p in patches)
    np.testing.assert_array_equal(patches[3], demo_reflectance(3, 96))
    means = [float(p[3].mean()) for p in patches]
    assert len(set(means)) == 12 and max(p.max() for p in patches) > 0.7
    snowy = demo_reflectance(1, 96, snow=1.0)
    assert snowy[1].mean() > 0.5 and snowy[10].mean() < 0.3, "snow is bright in the blue and dark at 1.6 micrometres"
    sharp = demo_reflectance(2, 96, native=False)
    assert np.abs(np.diff(sharp[0], axis=1)).mean() > 1.5 * np.abs(np.diff(demo_reflectance(2, 96)[0], axis=1)).mean()
    with pytest.raises(ValueError, match="multiples of 6"):
        demo_reflectance(1, 100)
