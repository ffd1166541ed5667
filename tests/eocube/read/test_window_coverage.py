"""What a window knows of its source's pixels and of the cloud over its latents, read from real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import xarray as xr
from affine import Affine
from pyproj import Transformer
from rasterio.enums import Resampling
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT

from eocube.ground.grid import Window
from eocube.plan.plan import WorkUnit
from eocube.products.base import Models
from eocube.read.coverage import from_cells
from eocube.read.reader import WindowPixels
from eocube.read.source_shares import as_classes, class_counts, cloud_cells
from eocube.read.window_pixels import Mask
from eocube.report.fidelity import truth_pixels
from eocube.report.source_pixels import read_source
from eocube.run.options import Limits
from eocube.run.selfcheck import SelfCheck
from eocube.run.unit import UnitRunner
from eocube.sensors import get_sensor
from eocube.store.receipts import Receipt, State
from eocube.store.store import CubeStore
from tests.eocube.cubes import make_plan, make_weights
from tests.eocube.read.test_reader import LATTICE, LEFT, TOP, around, cog, noise, read, s2, scene
from tests.eocube.run.test_unit import Means, over

HALO = LATTICE.halo_px


def test_missing_pixels_are_those_that_some_band_lacks_at_its_own_sampling(tmp_path: Path) -> None:
    files: dict[str, Path | str] = {}
    expected = np.zeros((192, 192), bool)
    holes = {"B02": (10, 50, 60, 3, 4), "B05": (20, 90, 20, 5, 2), "B01": (60, 120, 60, 2, 3)}
    for band, (side, row, col, tall, wide) in holes.items():
        transform, size = around(side)
        values, times = noise(size, size, side), side // 10
        top = round((transform.f - TOP) / side) + (HALO + row) // times
        left = round((LEFT - transform.c) / side) + (HALO + col) // times
        values[top : top + tall, left : left + wide] = 0
        files[band] = cog(tmp_path / f"{band}.tif", values, transform)
        y, x = transform.f - top * side, transform.c + left * side  # the hole's own ground
        first, start = round((TOP - y) / 10) - HALO, round((x - LEFT) / 10) - HALO
        expected[first : first + tall * times, start : start + wide * times] = True
    pixels = read(s2("B01", "B02", "B05"), [scene("a", files)])
    np.testing.assert_array_equal(pixels.missing, expected)
    assert ((pixels.valid < 100) == expected.reshape(24, 8, 24, 8).any(axis=(1, 3))).all()


def test_whole_windows_and_gaps_in_the_halo_alone_miss_nothing(tmp_path: Path) -> None:
    transform, size = around(10)
    values = noise(size, size)
    assert read(s2("B02"), [scene("a", {"B02": cog(tmp_path / "a.tif", values, transform)})]).missing is None
    values[:, : round((LEFT - transform.c) / 10) + HALO - 3] = 0
    assert read(s2("B02"), [scene("a", {"B02": cog(tmp_path / "b.tif", values, transform)})]).missing is None


@pytest.mark.parametrize("epsg", [32633, 32632])
def test_off_the_grid_no_pixel_is_said_to_be_there_that_gdal_does_not_have(tmp_path: Path, epsg: int) -> None:
    """Off its source's edge by half a pixel at most, as GDAL's bilinear warp is the other way."""
    x, y = Transformer.from_crs(32633, epsg, always_xy=True).transform(LEFT, TOP)
    transform = Affine(10, 0, x // 10 * 10 + 703.7, 0, -10, y // 10 * 10 - 604.1)
    path = cog(tmp_path / "b.tif", noise(224, 224), transform, epsg)
    pixels = read(s2("B02"), [scene("a", {"B02": path})])
    grid = from_origin(LEFT + 320, TOP - 320, 10, 10)
    with (
        rasterio.open(path) as source,
        WarpedVRT(source, crs="EPSG:32633", transform=grid, width=192, height=192, resampling=Resampling.bilinear,
                  src_nodata=0, nodata=0) as warped,
    ):  # fmt: skip
        truth = warped.read(1) > 0
    there = ~pixels.missing
    assert 0.3 < there.mean() < 0.9
    assert (there & ~truth).sum() <= 0.001 * there.sum() and (truth & ~there).sum() <= 0.005 * truth.sum()


def test_cloud_and_shadow_are_those_of_each_latents_own_samples(tmp_path: Path) -> None:
    band, size = around(10)
    classes_at, classes_size = around(20)
    classes = np.random.default_rng(4).integers(0, 12, (classes_size, classes_size)).astype(np.uint8)
    row, col = round((classes_at.f - TOP + 320) / 20), round((LEFT + 320 - classes_at.c) / 20)
    classes[row : row + 4, col : col + 4] = 0
    classes[row : row + 4, col + 4 : col + 8] = 8
    classes[row : row + 4, col + 8 : col + 12] = 3
    mask = cog(tmp_path / "scl.tif", classes, classes_at)
    files: dict[str, Path | str] = {"B02": cog(tmp_path / "b.tif", noise(size, size), band)}
    pixels = read(s2("B02"), [scene("a", files, mask=mask)])
    samples = classes[row : row + 96, col : col + 96].reshape(24, 4, 24, 4).transpose(0, 2, 1, 3).reshape(24, 24, 16)
    valid = (samples != 0).sum(-1)
    for found, kinds in zip(pixels.clouds, ((8, 9, 10), (3,)), strict=True):
        share = 100 * np.isin(samples, kinds).sum(-1) / np.maximum(valid, 1)
        np.testing.assert_allclose(found[valid > 0], share[valid > 0], atol=0.51)
        assert (found[valid == 0] == 255).all() and found[0, 0] == 255
    assert pixels.clouds[:, 0, 1].tolist() == [100, 0] and pixels.clouds[:, 0, 2].tolist() == [0, 100]
    assert read(s2("B02"), [scene("a", files)]).clouds is None  # nothing says it


def test_percent_is_none_only_for_none_and_all_only_for_all() -> None:
    classes = np.full((300, 300), 4, np.uint8)
    classes[0, 0], classes[100:200, :100] = 9, 9
    classes[150, 50] = 4
    assert cloud_cells(class_counts(classes, 3, 3))[0].tolist() == [[1, 0, 0], [99, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.int16])
def test_a_mask_s_percents_are_of_its_valid_samples(kind: type) -> None:
    for values, valid, cloud in (([0, 0, 3, 8, 9, 10, 4, 4], 75, 50), ([0] * 8, 0, 255), ([4] * 8, 100, 0)):
        classes = as_classes(np.repeat(np.array(values, kind), 2).reshape(4, 4))
        counts = class_counts(classes, 2, 2)
        mask = Mask.of_counts(counts, classes.size, 7, cloud_cells(counts))
        assert (mask.valid_percent, mask.cloud_percent, mask.bytes_read) == (valid, cloud, 7)
    numbers = np.array([[300, -1], [4, 0]], np.int16)
    assert class_counts(as_classes(numbers), 1, 1).ravel().tolist() == [3, 0, 0]  # they are classes of some kind


def test_a_unit_carries_both_to_the_store(tmp_path: Path) -> None:
    plan = over(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    with rasterio.open(tmp_path / "band.tif") as source:
        image, transform = source.read(1), source.transform
    y, x = np.mgrid[: len(image), : len(image)]
    image[x > 150 + 0.4 * (y - 100)] = 0  # a swath's edge, over all of the shard
    cog(tmp_path / "band.tif", image, transform, plan.grid.lattice.epsg)
    store = CubeStore.create(tmp_path / "cube.zarr", plan)
    runner = UnitRunner(plan, store, Models({"fp32": Means}, None, None), Limits(encode_threads=2))  # type: ignore[arg-type]
    receipts = [runner.run(WorkUnit(0, *shard)) for shard in plan.grid.shards()]
    runner.close()
    store.commit(receipts)
    store.finalise()
    assert store.verify() == []
    assert all(Receipt.from_json(r.to_json()).windows == r.windows for r in receipts)
    ds = xr.open_zarr(tmp_path / "cube.zarr").isel(time=0)
    bits = from_cells(ds.missing.values, 8)
    with rasterio.open(tmp_path / "band.tif") as source:
        left, top = (round(v / 10) for v in (source.transform.c - plan.grid.transform.c,
                                             plan.grid.transform.f - source.transform.f))  # fmt: skip
        image = np.pad(source.read(1), 2 * plan.grid.lattice.shard * 8) > 0
    start = 2 * plan.grid.lattice.shard * 8
    there = image[start - top :, start - left :][: bits.shape[0], : bits.shape[1]]
    ok = np.kron(ds.status.values == State.OK, np.ones((plan.grid.lattice.core_px,) * 2, bool))
    np.testing.assert_array_equal(bits, ok & ~there)
    assert bits.any() and (there & ok).any()
    known = ds.valid.values > 0
    assert set(np.unique(ds.cloud.values[known])) <= {*range(101)} and (ds.cloud.values[known] == 100).any()
    assert (ds.cloud.values[known] == 0).any() and not ds.shadow.values[known].any()
    # What pictures are compared with has the same gaps.
    truth = read_source(plan, truth_pixels(plan), 0)
    row, col, stop, end = (8 * n for n in plan.grid.extent)
    seen = np.repeat(np.repeat(known, 8, 0), 8, 1) & ~bits
    np.testing.assert_array_equal(np.isfinite(truth.values).all(axis=0), seen[row:stop, col:end])


def test_scores_count_the_pixels_that_have_a_source_and_no_other() -> None:
    from tests.eocube.store.test_seams import grid

    place, sensor = grid((11.50, 48.10, 11.55, 48.12)), get_sensor("S2L2A").subset(["B02", "B03", "B04", "B08"])
    lattice = place.lattice
    truth = torch.rand(1, 4, lattice.window_px, lattice.window_px)
    missing = np.zeros((lattice.core_px,) * 2, bool)
    missing[:, -12:] = True  # a latent and a half
    valid = np.full((lattice.core,) * 2, 100, np.uint8)
    valid[:, -2:] = 50, 0
    decoded = truth.clone()
    inner = decoded[:, :, HALO : HALO + lattice.core_px, HALO : HALO + lattice.core_px]
    inner[..., -12:] += 5.0  # ground that nobody has
    inner[..., -16:-12] += 0.1  # ground of a latent that the swath ends in
    check = SelfCheck(place, sensor, 1.0, decoder=lambda z: decoded, truth=lambda g: truth, device="cpu", floor=None)
    pixels = WindowPixels({}, valid, 95, 0, (), 0, missing)
    window = next(iter(place.requested_windows()))
    latents = np.zeros((8, lattice.window_px // 8, lattice.window_px // 8), np.float32)
    psnr = check.check(window, pixels, latents, {}).scores.psnr
    share = 4 / (lattice.core_px - 12)
    assert psnr == pytest.approx(-10 * np.log10(0.01 * share), abs=0.05)
    whole = replace(pixels, missing=None, valid=np.full_like(valid, 100))
    assert check.check(Window(window.row, window.col), whole, latents, {}).scores.psnr < 20  # type: ignore[operator]
