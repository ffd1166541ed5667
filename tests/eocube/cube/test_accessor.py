"""`eocube.open` and `ds.eocube` on real stores with small random weights."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr

import eocube
from eocube.cube.decode import mirror_fill
from eocube.errors import InputError, StoreError
from eocube.products import decoder_cache as decoders
from eocube.products.scores import seam_ratio
from eocube.store.receipts import STATES, State
from model.fused import FusedDecoder
from model.weights import load_weights
from tests.eocube.cubes import CORE, HALO, Made, make_plan, make_store, make_weights

CLOUDY, FAILED = (0, 1, 2), (1, 0, 1)
STRIDE, METRES = 8, 10


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two times; one window cloudy at the first, one not read at the second; one latent without source pixels."""
    plan = make_plan(weights)
    valid = np.full(plan.grid.shape, 100, "uint8")
    row, col = plan.grid.extent[:2]
    valid[row + 2, col + 3] = 0
    bad = {CLOUDY: State.CLOUDY, FAILED: State.READ_FAILED}
    return make_store(str(tmp_path_factory.mktemp("cube") / "cube.zarr"), plan, bad, valid)


@pytest.fixture(scope="module")
def ds(made: Made) -> xr.Dataset:
    return eocube.open(made.url)


@pytest.fixture(scope="module")
def decoded(ds: xr.Dataset) -> xr.DataArray:
    return ds.eocube.decode().compute()


def direct(made: Made, time: int, row: int, col: int) -> np.ndarray:
    """The core at (row, col) of the status arrays as FusedDecoder decodes its window, what is missing mirrored."""
    r, c = row * CORE, col * CORE
    padded = np.pad(made.latents[time], ((0, 0), (HALO, HALO), (HALO, HALO)), constant_values=np.nan)
    window = padded[:, r : r + CORE + 2 * HALO, c : c + CORE + 2 * HALO]
    window = mirror_fill(window, np.isfinite(window).all(axis=0))
    decoder = FusedDecoder(load_weights(made.plan.product.weights), made.plan.sensor, "cpu", torch.float32)
    margin = HALO * STRIDE
    return decoder(torch.from_numpy(window)[None]).numpy()[0, :, margin:-margin, margin:-margin]


# -- open


def test_importing_eocube_imports_neither_torch_nor_ray() -> None:
    # Of `model` the table of bands and statistics alone, which needs nothing.
    code = (
        "import sys, eocube, xarray; heavy = {'torch', 'ray', 'matplotlib'} & set(sys.modules); "
        "print(sorted(heavy | {m for m in sys.modules if m.split('.')[0] == 'model'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['model', 'model.sensors']"


def test_chunks_are_whole_shards_and_the_crs_is_a_coordinate(ds: xr.Dataset, made: Made) -> None:
    shard = made.plan.grid.lattice.shard
    assert ds["latent"].chunksizes["y"][0] == ds["latent"].chunksizes["x"][0] == shard
    assert ds["latent"].chunksizes["channel"] == (4,) and set(ds["latent"].chunksizes["time"]) == {1}
    assert "spatial_ref" in ds.coords
    np.testing.assert_array_equal(ds["latent"].values.astype("float32"), made.latents)


def test_open_checks_the_space_id(made: Made) -> None:
    assert eocube.open(made.url, expect_space_id=made.plan.space_id).eocube.space_id == made.plan.space_id
    with pytest.raises(StoreError, match=f"{made.plan.space_id}, not 0123"):
        eocube.open(made.url, None, "0123")


def test_open_refuses_what_is_no_cube(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nothing\.zarr: no Zarr store"):
        eocube.open(f"{tmp_path}/nothing.zarr?token=secret")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="no cube of eocube"):
        eocube.open(str(tmp_path / "other.zarr"))
    with pytest.raises(StoreError, match="no `eocube` attribute"):
        _ = xr.Dataset({"latent": ("x", [1.0])}).eocube.space_id


def test_a_store_of_several_zones_names_them(made: Made, tmp_path: Path) -> None:
    root = tmp_path / "two.zarr"
    zarr.create_group(root)
    for zone in ("utm32", "utm33"):
        shutil.copytree(made.url, root / zone)
    with pytest.raises(StoreError, match="one of utm32, utm33"):
        eocube.open(str(root))
    assert eocube.open(str(root), group="utm33").eocube.space_id == made.plan.space_id
    with pytest.raises(StoreError, match="group 'utm31'"):
        eocube.open(str(root), group="utm31")


def test_open_reads_object_storage(made: Made, s3_server: Any) -> None:
    import s3fs

    bucket = s3_server.bucket()
    s3fs.S3FileSystem(**s3_server.storage_options).put(made.url, f"{bucket}/cube.zarr", recursive=True)
    remote = eocube.open(f"s3://{bucket}/cube.zarr", storage_options=s3_server.storage_options)
    np.testing.assert_array_equal(remote["latent"].values.astype("float32"), made.latents)
    with pytest.raises(StoreError, match="no Zarr store"):
        eocube.open(f"s3://{bucket}/none.zarr", storage_options=s3_server.storage_options)


# -- decode: what it looks like


def test_decoding_is_lazy_and_labelled(ds: xr.Dataset, made: Made) -> None:
    lazy = ds.eocube.decode()
    assert lazy.chunks is not None and lazy.dims == ("time", "band", "y", "x") and lazy.dtype == np.float32
    assert lazy.name == "reflectance" and "units" not in lazy.attrs and lazy.attrs["grid_mapping"] == "spatial_ref"
    assert lazy.band.values.tolist() == ["B02", "B03", "B04", "B08"] == list(ds.eocube.bands)
    np.testing.assert_array_equal(lazy.time, ds.time)
    assert lazy.platform.values.tolist() == ["sentinel-2a"] * 2
    row0, col0, row1, col1 = made.plan.grid.extent
    assert lazy.shape[2:] == ((row1 - row0) * STRIDE, (col1 - col0) * STRIDE)
    assert set(lazy.chunksizes["y"]) == {CORE * STRIDE}


def test_coordinates_are_those_of_the_ground(decoded: xr.DataArray, ds: xr.Dataset, made: Made) -> None:
    import odc.geo.xr  # noqa: F401  registers .odc
    import rioxarray  # noqa: F401  registers .rio

    grid = made.plan.grid
    left = grid.transform.c + grid.extent[1] * 80
    top = grid.transform.f - grid.extent[0] * 80
    np.testing.assert_array_equal(decoded.x, left + (np.arange(decoded.sizes["x"]) + 0.5) * METRES)
    np.testing.assert_array_equal(decoded.y, top - (np.arange(decoded.sizes["y"]) + 0.5) * METRES)
    for part in (decoded, decoded.isel(x=slice(7, 90), y=slice(13, 33))):
        corner = float(part.x[0]) - 5, float(part.y[0]) + 5
        for transform in (part.rio.transform(), part.odc.geobox.transform):
            assert tuple(transform)[:6] == (10, 0, corner[0], 0, -10, corner[1])
        assert part.rio.crs.to_epsg() == part.odc.geobox.crs.epsg == grid.lattice.epsg
        assert part.odc.geobox.shape == part.shape[2:]
    mean = decoded.isel(time=0, band=0).coarsen(x=8, y=8).mean()
    np.testing.assert_array_equal(mean.x, ds.x[grid.extent[1] : grid.extent[3]])


def test_bands_come_as_asked_for(ds: xr.Dataset, decoded: xr.DataArray) -> None:
    rgb = ds.eocube.decode(bands=["B04", "B03", "B02"])
    assert rgb.band.values.tolist() == ["B04", "B03", "B02"] and rgb.wavelength.values.tolist() == [0.665, 0.56, 0.49]
    np.testing.assert_allclose(rgb, decoded.sel(band=["B04", "B03", "B02"]), atol=1e-5)
    assert ds.eocube.decode(bands="B08").shape[1] == 1
    with pytest.raises(InputError, match=r"B05.*(did you mean|known are)"):
        ds.eocube.decode(bands=["B05"])
    with pytest.raises(InputError, match="no bands"):
        ds.eocube.decode(bands=[])


def test_backscatter_is_in_decibels(weights: Path, tmp_path: Path) -> None:
    made = make_store(str(tmp_path / "s1.zarr"), make_plan(weights, "S1RTC"))
    decoded = eocube.open(made.url).eocube.decode()
    assert decoded.name == "backscatter" and decoded.attrs["units"] == "dB"
    assert decoded.band.values.tolist() == ["VV", "VH"]
    assert -60 < float(decoded.isel(time=0).mean()) < 30


def test_crop_false_keeps_whole_shards(ds: xr.Dataset, made: Made, decoded: xr.DataArray) -> None:
    whole = ds.eocube.decode(crop=False)
    assert whole.shape[2:] == tuple(n * STRIDE for n in made.plan.grid.shape)
    np.testing.assert_array_equal(whole.sel(x=decoded.x, y=decoded.y), decoded)
    assert int(np.isfinite(whole).sum()) == int(np.isfinite(decoded).sum()), "nothing is ok beyond what was asked for"


# -- decode: the pixels


@pytest.mark.parametrize(("time", "row", "col", "neighbours"), [(1, 1, 3, 8), (0, 1, 3, 7), (0, 0, 4, 3)])
def test_a_window_equals_the_decoder_on_the_same_latents(
    ds: xr.Dataset, made: Made, time: int, row: int, col: int, neighbours: int
) -> None:
    around = ds.status.isel(time=time, wy=slice(max(row - 1, 0), row + 2), wx=slice(col - 1, col + 2))
    assert int((around == State.OK).sum()) == neighbours + 1
    px = CORE * STRIDE
    cut = ds.eocube.decode(blend=False, crop=False).isel(time=time)
    core = cut.isel(y=slice(row * px, (row + 1) * px), x=slice(col * px, (col + 1) * px))
    np.testing.assert_array_equal(core, direct(made, time, row, col))


def test_windows_that_are_not_ok_and_latents_without_source_are_nan(decoded: xr.DataArray, made: Made) -> None:
    row0, col0, row1, col1 = made.plan.grid.extent
    expected = ~np.isfinite(made.latents[:, 0, row0:row1, col0:col1])
    assert expected.any(axis=(1, 2)).all()
    expected[:, 2, 3] = True
    pixels = expected.repeat(STRIDE, 1).repeat(STRIDE, 2)
    for band in range(4):
        np.testing.assert_array_equal(np.isnan(decoded.values[:, band]), pixels)


def test_blending_lowers_the_seams(ds: xr.Dataset) -> None:
    cut, blended = (ds.eocube.decode(blend=b).compute().values for b in (False, True))
    px = CORE * STRIDE
    before, after = seam_ratio(cut, px), seam_ratio(blended, px)
    assert after < before
    middle = np.s_[..., HALO * STRIDE : px - HALO * STRIDE, HALO * STRIDE : px - HALO * STRIDE]
    np.testing.assert_array_equal(cut[middle], blended[middle])


def test_decoding_is_deterministic_under_any_scheduler(ds: xr.Dataset, decoded: xr.DataArray) -> None:
    for options in ({"scheduler": "synchronous"}, {"scheduler": "threads", "num_workers": 4}):
        np.testing.assert_array_equal(ds.eocube.decode().compute(**options), decoded)


def test_every_window_is_decoded_once(ds: xr.Dataset, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = decoders.decode_one

    def counted(spec: decoders.DecoderSpec, latents: np.ndarray) -> np.ndarray:
        calls.append(1)
        return real(spec, latents)

    monkeypatch.setattr(decoders, "decode_one", counted)
    lazy = ds.eocube.decode()
    xr.Dataset({"mean": lazy.mean("band"), "all": lazy}).compute()
    assert len(calls) == int((ds.status == State.OK).sum())


def test_computing_leaves_torch_threads_alone(ds: xr.Dataset) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        ds.eocube.decode(bands="B08").isel(time=0).compute(scheduler="synchronous")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# -- decode: parts of a cube


def test_one_time_gives_an_image_without_time(ds: xr.Dataset, decoded: xr.DataArray) -> None:
    one = ds.isel(time=1).eocube.decode()
    assert one.dims == ("band", "y", "x") and one.time.item() == decoded.time[1].item()
    np.testing.assert_array_equal(one, decoded.isel(time=1))
    np.testing.assert_array_equal(ds.isel(time=[1, 0]).eocube.decode(), decoded.isel(time=[1, 0]))


def test_a_part_cut_at_cores_differs_only_near_the_cut(ds: xr.Dataset, made: Made, decoded: xr.DataArray) -> None:
    col0 = made.plan.grid.extent[1]
    part = ds.isel(x=slice(col0 + CORE, col0 + 4 * CORE)).eocube.decode()
    same = decoded.sel(x=part.x)
    margin = CORE * STRIDE + HALO * STRIDE  # the core at the cut has other neighbours, and fades into the next
    np.testing.assert_array_equal(part[..., margin:], same[..., margin:])
    np.testing.assert_array_equal(np.isnan(part), np.isnan(same))


def test_a_part_cut_anywhere_lies_on_its_ground(ds: xr.Dataset, decoded: xr.DataArray, made: Made) -> None:
    grid = made.plan.grid
    left, top = grid.transform.c + grid.extent[1] * 80, grid.transform.f - grid.extent[0] * 80
    part = ds.sel(x=slice(left + 200, left + 1250), y=slice(top - 410, top - 1100)).eocube.decode()
    assert part.sizes["x"] % STRIDE == part.sizes["y"] % STRIDE == 0
    assert np.isin(part.x, decoded.x).all() and np.isin(part.y, decoded.y).all()
    same = decoded.sel(x=part.x, y=part.y)
    np.testing.assert_array_equal(np.isnan(part), np.isnan(same))
    near = np.corrcoef(*(v.values[np.isfinite(same.values)] for v in (part, same)))[0, 1]
    assert near > 0.8, "the same ground, decoded with less around it"


def test_a_single_latent_decodes(ds: xr.Dataset, made: Made) -> None:
    row0, col0 = made.plan.grid.extent[:2]
    one = ds.isel(time=0, x=[col0 + 1], y=[row0 + 1]).eocube.decode().compute()
    assert one.shape == (4, STRIDE, STRIDE) and np.isfinite(one).all()
    assert float(one.x[0]) == float(ds.x[col0 + 1]) - 35


def test_arrays_in_memory_decode_too(ds: xr.Dataset, decoded: xr.DataArray) -> None:
    np.testing.assert_array_equal(ds.compute().eocube.decode(), decoded)


def test_plain_xarray_opens_what_decodes(made: Made, decoded: xr.DataArray) -> None:
    plain = xr.open_zarr(made.url)
    np.testing.assert_array_equal(plain.eocube.decode(), decoded)
    bare = plain[["latent"]]
    assert np.isfinite(bare.eocube.decode()).sum() > np.isfinite(decoded).sum(), "without `valid` nothing is masked"


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ({"channel": slice(0, 2)}, "2 latent channels: decoding needs all 4"),
        ({"channel": 0}, "without channel"),
        ({"x": 8}, "without x"),
        ({"x": slice(None, None, 2)}, "do not adjoin"),
        ({"y": slice(None, None, -1)}, "do not adjoin"),
        ({"x": slice(0, 0)}, "nothing selected along x"),
        ({"x": slice(0, 2)}, "outside of what the cube was asked for"),
    ],
)
def test_parts_that_cannot_be_decoded_say_so(ds: xr.Dataset, select: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ds.isel(select).eocube.decode()


def test_latents_off_the_lattice_are_refused(ds: xr.Dataset) -> None:
    with pytest.raises(InputError, match="off the lattice of 80 m"):
        ds.assign_coords(x=ds.x + 10).eocube.decode(crop=False)


# -- decode: weights


def test_other_weights_are_refused(ds: xr.Dataset, tmp_path: Path) -> None:
    other = make_weights(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(StoreError, match=r"not those the store was encoded with: sha256 .* in the store"):
        ds.eocube.decode(weights=str(other))
    with pytest.raises(StoreError, match=r"decode\(weights=\.\.\.\)"):
        ds.eocube.decode(weights=str(tmp_path / "gone.safetensors"))


def test_the_same_weights_may_lie_elsewhere(
    ds: xr.Dataset, weights: Path, tmp_path: Path, decoded: xr.DataArray
) -> None:
    moved = shutil.copy(weights, tmp_path / "moved.safetensors")
    np.testing.assert_array_equal(ds.eocube.decode(weights=str(moved)), decoded)


def test_precisions_agree_and_bad_ones_are_refused(ds: xr.Dataset, decoded: xr.DataArray) -> None:
    half = ds.eocube.decode(dtype="bf16", device="cpu").compute()
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, decoded, atol=0.05)
    # These weights are random, and their blocks add much: mixed precision is too far off, and float32 is taken.
    np.testing.assert_array_equal(ds.eocube.decode(dtype=torch.float32), decoded)
    np.testing.assert_array_equal(ds.eocube.decode(dtype="mixed"), decoded)
    with pytest.raises(InputError, match="dtype 'fp12'"):
        ds.eocube.decode(dtype="fp12")


def test_weights_are_loaded_once_a_process(ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    ds.eocube.decode(bands="B03").isel(time=0).compute()

    def twice(*_: object, **__: object) -> None:
        raise AssertionError("loaded again")

    monkeypatch.setattr("model.weights.load_weights", twice)
    monkeypatch.setattr("model.fused.FusedDecoder", twice)
    ds.eocube.decode(bands="B03").isel(time=1).compute(num_workers=4)


# -- latents and states


@pytest.mark.parametrize("storage", ["int8", "codes"])
def test_codes_are_dequantised(weights: Path, tmp_path: Path, storage: str) -> None:
    made = make_store(str(tmp_path / "cube.zarr"), make_plan(weights, storage=storage), {CLOUDY: State.CLOUDY})
    cube = eocube.open(made.url)
    latents = cube.eocube.latents().values
    assert latents.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(latents), np.isnan(made.latents))
    np.testing.assert_allclose(latents, made.latents, atol=0.0251)
    assert np.isfinite(cube.eocube.decode()).any()


def test_normalised_latents_have_mean_0_and_spread_1(ds: xr.Dataset) -> None:
    values = ds.eocube.latents_normalised().values
    assert values.shape == ds["latent"].shape
    np.testing.assert_allclose(np.nanmean(values, axis=(0, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(np.nanstd(values, axis=(0, 2, 3)), 1, atol=1e-4)


def test_status_counts_windows_by_state_and_time(ds: xr.Dataset, made: Made) -> None:
    status = ds.eocube.status()
    assert tuple(status.columns) == STATES and list(status.index) == list(ds.time.values)
    requested = int(made.plan.grid.requested_mask.sum())
    assert status["ok"].tolist() == [requested - 1, requested - 1]
    assert status["cloudy"].tolist() == [1, 0] and status["read_failed"].tolist() == [0, 1]
    assert (status.sum(axis=1) == made.plan.grid.requested_mask.size).all()
    assert ds.isel(time=1).eocube.status()["read_failed"].tolist() == [1]
    row0, col0, row1, col1 = made.plan.grid.extent
    asked = ds.isel(x=slice(col0, col1), y=slice(row0, row1)).eocube.status()
    assert asked["ok"].tolist() == status["ok"].tolist() and asked["outside"].sum() < status["outside"].sum()
    with pytest.raises(StoreError, match="no `status`"):
        ds[["latent"]].eocube.status()


def test_sensor_and_space_are_those_of_the_plan(ds: xr.Dataset, made: Made) -> None:
    sensor = ds.eocube.sensor
    assert sensor.name == "S2L2A" and sensor.unit == "reflectance" and sensor.scale == made.plan.sensor.scale
    assert [(b.name, b.wavelength, b.mean, b.std) for b in sensor.bands] == [
        (b.name, b.wavelength, b.mean, b.std) for b in made.plan.sensor.bands
    ]
