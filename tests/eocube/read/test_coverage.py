"""Which pixels have a source, and what cloud lies over a latent: packed, stored, and what decoding makes of it."""

from __future__ import annotations

import base64
import json
import shutil
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import eocube
from eocube.cube.export import export
from eocube.cube.quicklook import _gather
from eocube.errors import InputError
from eocube.plan.plan import Plan, TimeStep
from eocube.read.coverage import (
    CLEAR,
    from_cells,
    inflated,
    pack_clouds,
    pack_missing,
    to_cells,
    unpack_clouds,
    unpack_missing,
    unseen,
)
from eocube.store.receipts import Receipt, State, WindowResult
from eocube.store.store import CubeStore
from tests.eocube.cubes import CORE, Made, make_plan, make_store, make_weights

STRIDE = 8
STORES = Path(__file__).parents[2] / "data" / "stores"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def gone_of(plan: Plan) -> np.ndarray[Any, Any]:
    """Pixels without a source: everything east of a slanted swath's edge through the ground asked for."""
    row, col, stop, end = plan.grid.extent
    ny, nx = (n * STRIDE for n in plan.grid.shape)
    y, x = np.mgrid[:ny, :nx]
    gone = x > (col + end) / 2 * STRIDE + 0.3 * (y - (row + stop) / 2 * STRIDE)
    gone[(row + 1) * STRIDE + 3, (col + 1) * STRIDE + 5] = True  # and one pixel of no data
    return gone


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    plan = make_plan(weights)
    clouds = np.zeros((2, *plan.grid.shape), np.uint8)
    clouds[0, : plan.grid.extent[0] + CORE] = 55
    clouds[1, :, plan.grid.extent[1] + 2] = 7
    folder = tmp_path_factory.mktemp("coverage")
    return make_store(str(folder / "cube.zarr"), plan, {(1, 0, 1): State.CLOUDY}, None, gone_of(plan), clouds)


@pytest.fixture(scope="module")
def ds(made: Made) -> xr.Dataset:
    return eocube.open(made.url)


def cropped(plan: Plan, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    row, col, stop, end = (n * STRIDE for n in plan.grid.extent)
    return pixels[row:stop, col:end]


# -- packing


@given(st.sampled_from([1, 3, 4, 8, 16]), st.integers(1, 3), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_bits_of_a_latent_pixel_read_back(stride: int, height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height * stride, width * stride)) < 0.3
    cells = to_cells(mask, stride)
    assert cells.shape == (height, width, -(-(stride**2) // 8))
    np.testing.assert_array_equal(from_cells(cells, stride), mask)
    own = np.unpackbits(cells[0, 0])[: stride**2].reshape(stride, stride)  # as the array's attributes say
    np.testing.assert_array_equal(own.astype(bool), mask[:stride, :stride])


def test_masks_of_receipts_read_back_and_whole_ones_cost_nothing() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((24 * 8, 24 * 8)) < 0.1
    packed = pack_missing(mask, 8)
    assert packed is not None
    np.testing.assert_array_equal(unpack_missing(packed, 24, 8), to_cells(mask, 8))
    assert pack_missing(None, 8) is None and pack_missing(np.zeros((16, 16), bool), 8) is None
    clouds = rng.integers(0, 101, (2, 24, 24)).astype(np.uint8)
    text = pack_clouds(clouds)
    np.testing.assert_array_equal(unpack_clouds(text, 24), clouds)
    assert pack_clouds(None) is None and (unpack_clouds(None, 4) == 255).all()
    assert pack_clouds(np.zeros((2, 4, 4), np.uint8)) == CLEAR and not unpack_clouds(CLEAR, 4).any()


def test_a_packed_mask_of_another_size_is_refused_before_it_fills_memory() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(50_000_000), 9)).decode()
    with pytest.raises(ValueError, match="or more bytes, not 9"):
        inflated(bomb, 9)
    for text in ("AAAA", "no base 64!", base64.b64encode(zlib.compress(b"123")).decode()):
        with pytest.raises(ValueError):
            inflated(text, 4)


def test_a_unit_without_cloud_costs_its_receipt_a_few_bytes_and_what_is_not_known_stays_so() -> None:
    windows = tuple(WindowResult(k // 10, k % 10, State.OK, valid_percent=100, cloud_percent=0) for k in range(100))
    plain = Receipt("u", 0, (0, 0), windows)
    clear = replace(plain, windows=tuple(replace(w, clouds=CLEAR) for w in windows))
    assert len(clear.to_json()) - len(plain.to_json()) < 25
    mixed = replace(clear, windows=(*clear.windows[:3], windows[3], replace(windows[4], clouds="abc"), windows[5]))
    for receipt in (plain, clear, mixed):
        assert Receipt.from_json(receipt.to_json()) == receipt


# -- what counts as seen


def test_pixels_without_a_source_by_what_a_store_knows() -> None:
    valid = np.array([[100, 0, 60, 60]], np.uint8)
    mask = np.zeros((4, 16), bool)
    mask[1, 9], mask[:, 4:8] = True, True
    cells = to_cells(mask, 4)  # of the third latent a pixel, of the second all, of the fourth nothing is known
    whole = unseen(valid, cells, 100, False, 4)
    assert whole is not None
    expected = mask.copy()
    expected[:, 12:] = True
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(unseen(valid, cells, 50, False, 4), mask)
    np.testing.assert_array_equal(unseen(valid, cells, 61, True, 4)[0], [0] * 4 + [1] * 12)  # type: ignore[index]
    np.testing.assert_array_equal(unseen(valid, None, 50, False, 4)[0], [0] * 4 + [1] * 4 + [0] * 8)  # type: ignore[index]
    assert unseen(np.full((1, 4), 100, np.uint8), cells, 100, True, 4) is None
    assert unseen(np.full((1, 4), 60, np.uint8), None, 60, True, 4) is None


# -- the store


def test_plain_xarray_reads_bits_cloud_and_shadow(made: Made) -> None:
    ds = xr.open_zarr(made.url)
    assert ds.missing.dims == ("time", "y", "x", "cell_byte") and ds.missing.dtype == np.uint8
    assert ds.chunks["y"] == ds.valid.chunksizes["y"]  # raises where variables disagree
    ok = np.repeat(np.repeat(ds.status.values == State.OK, CORE, 1), CORE, 2)
    gone = gone_of(made.plan)
    for time in range(2):
        bits = from_cells(ds.missing.values[time], STRIDE)
        np.testing.assert_array_equal(bits, gone & np.repeat(np.repeat(ok[time], STRIDE, 0), STRIDE, 1))
    assert (ds.cloud.values[~ok] == 255).all() and (ds.shadow.values[~ok] == 255).all()
    row, col = made.plan.grid.extent[:2]
    assert (ds.cloud.values[0, row : row + CORE][ok[0, row : row + CORE]] == 55).all()
    assert set(np.unique(ds.cloud.values[ok])) == {0, 55} and set(np.unique(ds.shadow.values[ok])) == {0, 7}
    assert (ds.shadow.values[0, :, col + 2][ok[0, :, col + 2]] == 7).all()


def test_ground_covered_whole_has_no_bits_and_radar_no_cloud(weights: Path, tmp_path: Path) -> None:
    made = make_store(str(tmp_path / "cube.zarr"), make_plan(weights, "S1RTC"))
    for name in ("missing", "cloud", "shadow"):
        assert [p.name for p in (tmp_path / "cube.zarr" / name).iterdir()] == ["zarr.json"]
    assert CubeStore.open(made.url).verify() == []
    assert (xr.open_zarr(made.url).cloud == 255).all() and not xr.open_zarr(made.url).missing.any()


@pytest.mark.parametrize("name", ["missing", "cloud", "shadow"])
def test_verify_names_what_is_wrong_beside_the_latents(made: Made, tmp_path: Path, name: str) -> None:
    url = tmp_path / "cube.zarr"
    shutil.copytree(made.url, url)
    store = CubeStore.open(url)
    assert store.verify() == []
    objects = sorted(p for p in (url / name / "c").rglob("*") if p.is_file())
    key = objects[0].relative_to(url).as_posix()
    whole = objects[0].read_bytes()
    for data in (whole[:-1], whole[:40] + bytes([whole[40] ^ 4]) + whole[41:], b""):
        objects[0].write_bytes(data)
        assert [f.path for f in store.verify()] == [key]
    objects[0].unlink()
    assert [f.path for f in store.verify()] == [key]
    (url / key.replace("c/0", "c/7", 1)).parent.mkdir(parents=True)
    (url / key.replace("c/0", "c/7", 1)).write_bytes(whole)
    assert key.replace("c/0", "c/7", 1) in [f.path for f in store.verify()]
    (url / name / "zarr.json").write_text("{}")
    assert f"{name}/zarr.json" in [f.path for f in store.verify()]


def test_windows_done_again_whole_take_their_bits_away(made: Made, tmp_path: Path) -> None:
    url = tmp_path / "cube.zarr"
    shutil.copytree(made.url, url)
    store = CubeStore.open(url)
    assert list((url / "missing" / "c").rglob("0"))
    store.commit(
        [
            replace(r, windows=tuple(replace(w, missing=None, valid_mask=None, clouds=None) for w in r.windows))
            for r in store.receipts()
        ]
    )
    store.finalise()
    assert store.verify() == []
    for name in ("missing", "cloud", "shadow"):
        assert not [p for p in (url / name).rglob("*") if p.is_file() and p.name != "zarr.json"]


# -- stores of earlier versions


def unpacked(name: str, folder: Path) -> Path:
    with zipfile.ZipFile(STORES / f"{name}.zip") as packed:
        packed.extractall(folder)
    return folder


@pytest.mark.parametrize("name", ["s1rtc-int8-shifted", pytest.param("s2l2a-fp16", marks=pytest.mark.slow)])
def test_an_old_store_goes_on_without_the_arrays_and_gets_them_as_it_grows(name: str, tmp_path: Path) -> None:
    url = unpacked(name, tmp_path / "cube.zarr")
    plan = Plan.from_json((url / "commits" / "plan.json").read_text())
    store = CubeStore.create(url, plan)
    store.finalise()
    assert store.verify() == [] and not (url / "missing").exists()
    before = eocube.open(str(url))
    seen = shown_about_an_edge(before)

    step = plan.times[-1]
    more = TimeStep("2031-01-01T00:00:00Z", step.platform, "later", ())
    grown = replace(plan, times=(*plan.times, more), extends=(*plan.extends, plan.hash))
    store = CubeStore.create(url, grown)
    store.finalise()
    assert store.verify() == []
    after = eocube.open(str(url))
    assert {"missing", "cloud", "shadow"} <= set(after.data_vars) and after.sizes["time"] == len(grown.times)
    assert not after.missing.any() and (after.cloud == 255).all()
    np.testing.assert_array_equal(shown_about_an_edge(after), seen)


def shown_about_an_edge(ds: xr.Dataset) -> np.ndarray[Any, Any]:
    """Which pixels of a core are decoded, one with latents that are covered in part if there is one: the whole ones."""
    valid = ds.valid.isel(time=0).values
    core = ds.eocube.info.core
    row, col = (
        int(k[0]) // core * core for k in np.nonzero((valid > 0) & (valid < 100) if (valid % 100).any() else valid)
    )
    part = ds.isel(time=0, y=slice(row, row + core), x=slice(col, col + core))
    finite = np.isfinite(part.eocube.decode(bands=ds.eocube.bands[0], crop=False).values[0])
    whole = np.repeat(np.repeat(part.valid.values == 100, STRIDE, 0), STRIDE, 1)
    np.testing.assert_array_equal(finite, whole)
    return finite


# -- decoding and what is made of it


def test_decoding_gives_the_pixels_that_have_a_source_and_no_other(made: Made, ds: xr.Dataset) -> None:
    gone = cropped(made.plan, gone_of(made.plan))
    everything = ds.eocube.decode(mask=False).compute()
    ok = np.isfinite(everything.values)
    assert ok[0].all() and not ok[1].all()
    decoded = ds.eocube.decode().compute()
    np.testing.assert_array_equal(np.isfinite(decoded.values), ok & ~gone)
    np.testing.assert_array_equal(decoded.values[np.isfinite(decoded.values)], everything.values[ok & ~gone])
    part = ds.isel(time=0, x=slice(made.plan.grid.extent[1] + 3, made.plan.grid.extent[1] + 20)).eocube.decode(
        crop=False
    )
    row = made.plan.grid.extent[0] * STRIDE
    shown = np.isfinite(part.values[0])[row : row + 8 * STRIDE]
    np.testing.assert_array_equal(shown, ~gone[: 8 * STRIDE, 3 * STRIDE : 20 * STRIDE])


def test_where_pixels_are_not_known_only_whole_latents_are_given(made: Made, ds: xr.Dataset) -> None:
    valid = cropped(made.plan, np.repeat(np.repeat(ds.valid.values[0], STRIDE, 0), STRIDE, 1))
    unknown = ds.drop_vars("missing").isel(time=0)

    def shown(**options: Any) -> np.ndarray[Any, Any]:
        return np.isfinite(unknown.eocube.decode(bands="B04", **options).values[0])

    np.testing.assert_array_equal(shown(), valid == 100)
    np.testing.assert_array_equal(shown(min_valid=40), valid >= 40)
    np.testing.assert_array_equal(shown(min_valid=1), valid > 0)
    assert np.isfinite(ds.drop_vars(["missing", "valid"]).isel(time=0).eocube.decode().values).all()
    fuller = np.isfinite(ds.isel(time=0).eocube.decode(bands="B04", min_valid=60).values[0])
    np.testing.assert_array_equal(fuller, (valid >= 60) & ~cropped(made.plan, gone_of(made.plan)))
    for wrong in (0, 101):
        with pytest.raises(InputError, match="from 1 to 100"):
            ds.eocube.decode(min_valid=wrong)


def test_pictures_and_errors_show_no_ground_without_a_source(made: Made, ds: xr.Dataset) -> None:
    shown = _gather(ds, None, 0)
    gone = cropped(made.plan, gone_of(made.plan))
    rows, cols = np.flatnonzero(~gone.all(axis=1)), np.flatnonzero(~gone.all(axis=0))  # pictures are cut to their data
    gone = gone[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    np.testing.assert_array_equal(np.isnan(shown.decoded).any(axis=0), gone)


def test_a_geotiff_holds_no_ground_without_a_source(made: Made, tmp_path: Path) -> None:
    export(made.url, str(tmp_path / "out.tif"), bands=["B04"])
    with rasterio.open(tmp_path / "out.tif") as image:
        np.testing.assert_array_equal(image.read_masks(1) == 0, cropped(made.plan, gone_of(made.plan)))


def test_the_item_beside_the_store_names_the_cloud(made: Made) -> None:
    item = json.loads((Path(made.url) / "stac.json").read_text())
    assert {"latent", "valid", "cloud", "shadow"} <= set(item["properties"]["cube:variables"])
