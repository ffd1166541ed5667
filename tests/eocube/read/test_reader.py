"""Windows of real COGs: right ground to the pixel, mosaics, edges, other samplings, failures that name their source."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.warp import transform_bounds
from rasterio.windows import from_bounds

from eocube.errors import SourceError
from eocube.ground.grid import Lattice, Window
from eocube.read.reader import WindowReader
from eocube.scenes.scene import BandSource, Scene
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from eocube.sensors.sensor import Sensor

LATTICE = Lattice(32633, 10)
WINDOW = Window(-2760, 209)
LEFT, BOTTOM, RIGHT, TOP = LATTICE.window_bounds(WINDOW)
DN = Radiometry(1e-4, -0.1, 0.0, "dn", "test")
POWER = Radiometry(1.0, 0.0, -32768.0, "power", "test")


def cog(path: Path, values: NDArray[Any], transform: Affine, epsg: int = 32633, nodata: float | None = 0) -> Path:
    """Write (H, W) or (C, H, W) as a real COG with overviews."""
    values = values if values.ndim == 3 else values[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", driver="COG", width=values.shape[2], height=values.shape[1], count=len(values),
                       dtype=values.dtype, crs=f"EPSG:{epsg}", transform=transform, nodata=nodata, blocksize=128,
                       overview_resampling="nearest") as target:  # fmt: skip
        target.write(values)
    return path


def scene(item: str, files: dict[str, Path | str], rule: Radiometry = DN, mask: Path | None = None) -> Scene:
    """A scene over those files; its bbox from the first."""
    bbox = (-180.0, -80.0, 180.0, 84.0)
    first = next(iter(files.values()))
    if Path(first).is_file() and Path(first).name != "gcps.tif":
        with rasterio.open(first) as source:
            bbox = transform_bounds(source.crs, 4326, *source.bounds)
    sources = tuple(BandSource(band, band.lower(), str(path), 1, rule) for band, path in files.items())
    cover = None if mask is None else BandSource("SCL", "scl", str(mask), 1, Radiometry(1, 0, 0, "dn", "classes"))
    return Scene(item, "c", "2023-08-15T09:57:57Z", "S2A", "g", "2023-08-15T09:57:57Z", 32633, bbox, None, None, None,
                 sources, cover)  # fmt: skip


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(1, 9000, (height, width)).astype(np.uint16)


def s2(*bands: str) -> Sensor:
    return get_sensor("S2L2A").subset(bands)


def around(side: float, margin: int = 2000) -> tuple[Affine, int]:
    """A transform on the zone's grid around the window, and its size in pixels."""
    left, top = (LEFT - margin) // side * side, -(-(TOP + margin) // side) * side
    return Affine(side, 0, left, 0, -side, top), int((2560 + 2 * margin) // side) + 2


def cut(path: Path, bounds: tuple[float, float, float, float]) -> NDArray[Any]:
    with rasterio.open(path) as source:
        return np.asarray(source.read(1, window=from_bounds(*bounds, transform=source.transform)))


def read(sensor: Sensor, scenes: Sequence[Scene], window: Window = WINDOW, lattice: Lattice = LATTICE) -> Any:
    with WindowReader(sensor, lattice) as reader:
        return reader.read(scenes, window)


def test_on_grid_windows_of_10_20_and_60_m_are_rasterio_s_own(tmp_path: Path) -> None:
    files: dict[str, Path | str] = {}
    for band, side in (("B01", 60), ("B02", 10), ("B05", 20), ("B12", 20)):
        transform, size = around(side)
        files[band] = cog(tmp_path / f"{band}.tif", noise(size, size, side), transform)
    pixels = read(s2("B01", "B02", "B05", "B12"), [scene("a", files)])
    assert {g: a.shape for g, a in pixels.groups.items()} == {10: (1, 256, 256), 20: (2, 130, 130), 60: (1, 44, 44)}
    assert all(a.dtype == np.uint16 for a in pixels.groups.values())
    for sampling, place, band in ((10, 0, "B02"), (20, 0, "B05"), (20, 1, "B12"), (60, 0, "B01")):
        truth = cut(Path(files[band]), LATTICE.group_bounds(WINDOW, sampling))
        np.testing.assert_array_equal(pixels.groups[sampling][place], truth)
    assert pixels.valid.shape == (24, 24) and (pixels.valid == 100).all()
    assert (pixels.valid_percent, pixels.cloud_percent, pixels.scene_ids) == (100, 255, ("a",))
    assert pixels.bytes_read == sum(a.nbytes for a in pixels.groups.values())


def test_a_pixel_s_value_lies_on_its_ground_off_grid_and_in_another_zone(tmp_path: Path) -> None:
    """A plane of easting and northing: whatever the source's grid, the window reads its own coordinates back."""
    steps = LEFT + 5 + np.arange(256) * 10.0, TOP - 5 - np.arange(256) * 10.0
    for epsg, shift in ((32633, 3.7), (32632, 4.1), (32633, 0.0)):
        x, y = Transformer.from_crs(32633, epsg, always_xy=True).transform(LEFT, TOP)
        transform = Affine(10, 0, x // 10 * 10 - 2000 + shift, 0, -10, y // 10 * 10 + 2000 + shift)
        px, py = np.meshgrid(transform.c + 5 + np.arange(700) * 10.0, transform.f - 5 - np.arange(700) * 10.0)
        ex, ny = Transformer.from_crs(epsg, 32633, always_xy=True).transform(px, py)
        east = cog(
            tmp_path / f"{epsg}{shift}e.tif", np.rint((ex - LEFT) * 4 + 20000).astype(np.uint16), transform, epsg
        )
        north = cog(
            tmp_path / f"{epsg}{shift}n.tif", np.rint((ny - BOTTOM) * 4 + 20000).astype(np.uint16), transform, epsg
        )
        pixels = read(s2("B02", "B03"), [scene("a", {"B02": east, "B03": north})])
        found = pixels.groups[10].astype(float) - 20000
        # A quarter metre a number; the source is rounded to half, the window again.
        assert np.abs(found[0] / 4 + LEFT - steps[0][None, :]).max() <= 0.26
        assert np.abs(found[1] / 4 + BOTTOM - steps[1][:, None]).max() <= 0.26


def test_the_file_s_own_transform_counts_not_the_item_s(tmp_path: Path) -> None:
    """Decimated samples: the item says 10 m, the file 120 m."""
    lattice = Lattice(32633, 120)
    window = Window(-230, 17)
    left, _, _, top = lattice.window_bounds(window)
    transform = Affine(120, 0, left - 1200, 0, -120, top + 1200)
    path = cog(tmp_path / "b.tif", noise(300, 300), transform)
    pixels = read(s2("B02", "B05"), [scene("a", {"B02": path, "B05": path})], window, lattice)
    assert list(pixels.groups) == [120]
    np.testing.assert_array_equal(pixels.groups[120][0], cut(path, lattice.window_bounds(window)))


def test_two_tiles_are_mosaicked_in_order_and_fill_each_other_s_gaps(tmp_path: Path) -> None:
    transform, size = around(10)
    first, second = noise(size, size, 1), noise(size, size, 2)
    first[:, size // 2 :] = 0
    second[:, : size // 2 - 20] = 0
    one, two = cog(tmp_path / "1.tif", first, transform), cog(tmp_path / "2.tif", second, transform)
    scenes = [scene("a", {"B02": one}), scene("b", {"B02": two})]
    pixels = read(s2("B02"), scenes)
    both = np.where(cut(one, (LEFT, BOTTOM, RIGHT, TOP)) > 0, cut(one, (LEFT, BOTTOM, RIGHT, TOP)),
                    cut(two, (LEFT, BOTTOM, RIGHT, TOP)))  # fmt: skip
    np.testing.assert_array_equal(pixels.groups[10][0], both)
    assert pixels.valid_percent == 100 and pixels.scene_ids == ("a", "b")
    other = read(s2("B02"), scenes[::-1])
    assert other.scene_ids == ("b", "a") and (other.groups[10] != pixels.groups[10]).any()


def test_the_swath_s_edge_is_mirrored_and_counted(tmp_path: Path) -> None:
    transform, size = around(10)
    values = noise(size, size, 3)
    edge = round((LEFT + 1600 - transform.c) / 10)  # 160 px of the window are inside the swath
    values[:, edge:] = 0
    pixels = read(s2("B02"), [scene("a", {"B02": cog(tmp_path / "e.tif", values, transform)})])
    found = pixels.groups[10][0]
    assert (found > 0).all()
    np.testing.assert_array_equal(found[:, 160:256], found[:, 158:62:-1])
    # The core's first pixel is the window's 32nd: 128 of 192 core columns are seen, 16 of 24 latents.
    assert (pixels.valid[:, :16] == 100).all() and (pixels.valid[:, 16:] == 0).all()
    assert pixels.valid_percent == 67


def test_a_file_that_ends_inside_the_window_shifts_nothing(tmp_path: Path) -> None:
    for name, transform in (("on", Affine(10, 0, LEFT + 700, 0, -10, TOP - 330)),
                            ("off", Affine(10, 0, LEFT + 703, 0, -10, TOP - 334))):  # fmt: skip
        px, _ = np.meshgrid(np.arange(500), np.arange(500))
        path = cog(tmp_path / f"{name}.tif", (px * 40 + 1000).astype(np.uint16), transform)
        pixels = read(s2("B02"), [scene("a", {"B02": path})])
        east = LEFT + 5 + np.arange(75, 256) * 10
        expected = (east - transform.c - 5) / 10 * 40 + 1000
        np.testing.assert_allclose(pixels.groups[10][0][40:, 75:], np.broadcast_to(expected, (216, 181)), atol=0.51)
        assert (pixels.groups[10] > 0).all() and 0 < pixels.valid_percent < 100


def test_nodata_inside_does_not_bleed_and_is_counted(tmp_path: Path) -> None:
    for shift in (0.0, 3.7):
        transform, size = around(10)
        values = np.full((size, size), 5000, dtype=np.uint16)
        row, col = round((transform.f - TOP) / 10) + 100, round((LEFT - transform.c) / 10) + 60
        values[row : row + 8, col : col + 4] = 0
        moved = Affine(10, 0, transform.c + shift, 0, -10, transform.f + shift)
        pixels = read(s2("B02"), [scene("a", {"B02": cog(tmp_path / f"{shift}.tif", values, moved)})])
        assert (pixels.groups[10] == 5000).all()
        gaps = 64 - np.rint(pixels.valid / 100 * 64)
        assert gaps.sum() == pytest.approx(32, abs=3) and pixels.valid_percent == 99


def test_windows_without_any_pixel_open_nothing_or_are_empty(tmp_path: Path) -> None:
    transform, size = around(10)
    empty = cog(tmp_path / "0.tif", np.zeros((size, size), dtype=np.uint16), transform)
    pixels = read(s2("B02"), [scene("a", {"B02": empty})])
    assert pixels.valid_percent == 0 and not pixels.valid.any() and pixels.scene_ids == ()
    far = replace(scene("far", {"B02": tmp_path / "not-there.tif"}), bbox=(20.0, 40.0, 21.0, 41.0))
    assert read(s2("B02"), [far]).valid_percent == 0  # a missing file that is not touched is not opened
    assert read(s2("B02"), []).valid_percent == 0
    # One band has no pixel at all: nothing real to fill it from.
    full = cog(tmp_path / "1.tif", noise(size, size), transform)
    assert read(s2("B02", "B03"), [scene("a", {"B02": full, "B03": empty})]).valid_percent == 0


def test_offsets_are_moved_to_the_travelling_form(tmp_path: Path) -> None:
    transform, size = around(10)
    path = cog(tmp_path / "o.tif", noise(size, size), transform)
    old = Radiometry(1e-4, 0.0, 0.0, "dn", "no offset")
    pixels = read(s2("B02"), [scene("a", {"B02": path}, old)])
    np.testing.assert_array_equal(pixels.groups[10][0], cut(path, (LEFT, BOTTOM, RIGHT, TOP)) + 1000)


@pytest.mark.parametrize("nodata", [-32768.0, 0.0])
def test_backscatter_is_resampled_as_power_and_then_turned_into_decibel(tmp_path: Path, nodata: float) -> None:
    transform, size = around(10)
    power = np.random.default_rng(5).uniform(1e-3, 1, (size, size)).astype(np.float32)
    row, col = round((transform.f - TOP) / 10) + 100, round((LEFT - transform.c) / 10) + 60
    power[row : row + 5, col : col + 5] = nodata
    half = Affine(10, 0, transform.c + 5, 0, -10, transform.f + 5)
    for name, moved in (("on", transform), ("off", half)):
        path = cog(tmp_path / f"{name}{nodata}.tif", power, moved, nodata=-32768)
        found = read(get_sensor("S1RTC"), [scene("a", {"VV": path, "VH": path}, POWER)])
        assert found.groups[10].dtype == np.float32 and np.isfinite(found.groups[10]).all()
        i, j = row - 100, col - 60
        part = power[i : i + 257, j - 1 : j + 256].astype(np.float64)
        part[part <= 0] = np.nan
        truth = (
            part[:256, 1:] if name == "on" else (part[:256, :256] + part[:256, 1:] + part[1:, :256] + part[1:, 1:]) / 4
        )
        seen = np.isfinite(truth)
        assert seen.mean() > 0.99
        np.testing.assert_allclose(found.groups[10][0][seen], 10 * np.log10(truth[seen]), atol=1e-4)
        assert 90 < found.valid_percent < 100


def test_finer_sources_are_averaged_from_the_image_or_an_overview(tmp_path: Path) -> None:
    lattice, window = Lattice(32633, 100), Window(-276, 21)
    left, _, _, top = lattice.window_bounds(window)
    transform = Affine(10, 0, left - 200, 0, -10, top + 200)
    values = noise(2700, 2700, 7)
    path = cog(tmp_path / "f.tif", values, transform)
    with rasterio.open(path) as source:
        assert 4 in source.overviews(1)
    pixels = read(s2("B02"), [scene("a", {"B02": path})], window, lattice)
    # The overview at 40 m is made by "nearest" here, so what was averaged shows: 2.5 x 2.5 pixels of it.
    assert pixels.bytes_read < 1e6 < values.nbytes
    assert pixels.groups[100].shape == (1, 256, 256)
    ramp = np.broadcast_to(np.arange(2700, dtype=np.uint16)[None, :] + 2000, (2700, 2700)).copy()
    smooth = cog(tmp_path / "r.tif", ramp, transform)
    found = read(s2("B02"), [scene("a", {"B02": smooth})], window, lattice).groups[100][0]
    inner = np.arange(256)[None, :] * 10 + 20 + 4.5 + 2000
    assert (
        np.abs(found[:, :248].astype(float) - inner[:, :248]).max() < 4
    )  # the overview's own phase, under half of 40 m
    twice = Lattice(32633, 20)
    at = Window(-1380, 105)
    exact = Affine(10, 0, twice.window_bounds(at)[0] - 200, 0, -10, twice.window_bounds(at)[3] + 200)
    path = cog(tmp_path / "t.tif", noise(700, 700, 8), exact)
    found = read(s2("B02"), [scene("a", {"B02": path})], at, twice).groups[20][0]
    with rasterio.open(path) as source:
        blocks = source.read(1)[20 : 20 + 512, 20 : 20 + 512].reshape(256, 2, 256, 2).astype(float).mean(axis=(1, 3))
    np.testing.assert_array_equal(found, np.rint(blocks))


def test_the_mask_counts_clouds_of_the_valid_part(tmp_path: Path) -> None:
    transform, size = around(10)
    scl, scl_size = around(20)
    classes = np.full((scl_size, scl_size), 4, dtype=np.uint8)
    left, _, _, top = LATTICE.core_bounds(WINDOW)
    row, col = round((scl.f - top) / 20), round((left - scl.c) / 20)
    classes[row : row + 48, col : col + 96] = 0
    classes[row + 48 : row + 60, col : col + 96] = 9
    path = cog(tmp_path / "b.tif", noise(size, size), transform)
    mask = cog(tmp_path / "scl.tif", classes, scl)
    here = scene("a", {"B02": path}, mask=mask)
    with WindowReader(s2("B02"), LATTICE) as reader:
        assert reader.mask([here], WINDOW) == (50, 25, 96 * 96)
        assert reader.mask([here], WINDOW) == (50, 25, 0)  # known, and its bytes were counted
        pixels = reader.read([here], WINDOW)
        assert (pixels.cloud_percent, pixels.valid_percent) == (25, 100)
        assert reader.mask([replace(here, mask=None)], WINDOW) == (255, 255, 0)
        off = Affine(20, 0, scl.c + 6, 0, -20, scl.f - 6)
        moved = scene("m", {"B02": path}, mask=cog(tmp_path / "m.tif", classes, off))
        valid, cloud, _ = reader.mask([moved], WINDOW)
        assert (valid, cloud) == (50, 25)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_failures_name_item_and_asset_and_hide_the_query(tmp_path: Path) -> None:
    transform, size = around(10)
    good = cog(tmp_path / "g.tif", noise(size, size), transform)
    cut_short = tmp_path / "cut.tif"
    cut_short.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    text = tmp_path / "text.tif"
    text.write_text("this is no raster")
    for bad in (tmp_path / "missing.tif", cut_short, text, "memory://nowhere/x.tif?sig=SECRET"):
        with pytest.raises(SourceError) as caught:
            read(s2("B02", "B03"), [scene("item-1", {"B02": good, "B03": bad})])
        message = str(caught.value)
        assert "item-1" in message and "b03" in message and "\n" not in message and "SECRET" not in message
        assert (caught.value.item, caught.value.asset) == ("item-1", "b03")
        assert caught.value.__cause__ is None and caught.value.__suppress_context__
    with pytest.raises(SourceError, match="no asset for band B03"):
        read(s2("B02", "B03"), [scene("item-1", {"B02": good})])
    bare = tmp_path / "gcps.tif"
    with rasterio.open(bare, "w", driver="GTiff", width=64, height=64, count=1, dtype="uint16") as target:
        target.write(noise(64, 64), 1)
    with pytest.raises(SourceError, match="terrain-corrected"):
        read(s2("B02"), [scene("item-1", {"B02": bare})])
    pixels = read(s2("B02"), [scene("item-1", {"B02": good})])
    assert pixels.valid_percent == 100


def test_any_fsspec_url_reads_the_same(tmp_path: Path) -> None:
    transform, size = around(10)
    path = cog(tmp_path / "b.tif", noise(size, size), transform)
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/reader-test/b.tif", path.read_bytes())
    truth = read(s2("B02"), [scene("a", {"B02": path})])
    for href in (path.as_uri(), "memory://reader-test/b.tif", f"simplecache::{path.as_uri()}"):
        found = read(s2("B02"), [replace(scene("a", {"B02": path}), sources=(BandSource("B02", "b02", href, 1, DN),))])
        np.testing.assert_array_equal(found.groups[10], truth.groups[10])


def test_bands_of_one_file_are_read_together(tmp_path: Path) -> None:
    transform, size = around(10)
    values = np.random.default_rng(0).integers(1, 255, (3, size, size)).astype(np.uint8)
    path = cog(tmp_path / "visual.tif", values, transform)
    sensor = get_sensor("S2RGB")
    rule = Radiometry(sensor.scale, sensor.offset, 0.0, "dn", "8 bit")
    sources = tuple(BandSource(b.name, "visual", str(path), b.index, rule) for b in sensor.bands)
    pixels = read(sensor, [replace(scene("a", {"B02": path}), sources=sources)])
    row, col = round((transform.f - TOP) / 10), round((LEFT - transform.c) / 10)
    indices = [b.index - 1 for b in sensor.bands]
    np.testing.assert_array_equal(pixels.groups[10], values[indices, row : row + 256, col : col + 256])


@pytest.mark.slow
def test_bytes_do_not_depend_on_thread_or_order(tmp_path: Path) -> None:
    x, y = Transformer.from_crs(32633, 32632, always_xy=True).transform(LEFT, TOP)
    transform = Affine(10, 0, x // 10 * 10 - 6003, 0, -10, y // 10 * 10 + 6004)
    path = cog(tmp_path / "z.tif", noise(1500, 1500), transform, 32632)
    windows = [Window(WINDOW.row + i, WINDOW.col + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    here = scene("a", {"B02": path, "B05": path})
    sensor = s2("B02", "B05")
    alone = {w: read(sensor, [here], w) for w in windows}
    found: dict[tuple[int, Window], Any] = {}
    with WindowReader(sensor, LATTICE) as reader:

        def work(turn: int) -> None:
            for window in windows if turn % 2 else windows[::-1]:
                found[turn, window] = reader.read([here], window)

        threads = [threading.Thread(target=work, args=(turn,)) for turn in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4 * len(windows)
    for (_, window), pixels in found.items():
        for sampling, values in pixels.groups.items():
            assert values.tobytes() == alone[window].groups[sampling].tobytes()
    # Neighbours agree where their halos overlap: 64 px are common to both.
    one, two = alone[windows[4]].groups[10], alone[windows[5]].groups[10]
    np.testing.assert_array_equal(one[:, :, 192:], two[:, :, :64])


@pytest.mark.real
def test_real_samples_lie_on_their_ground(shared_dir: Path) -> None:
    """The 120 m samples: their items say 10 m; a window equals GDAL's own read of the same ground."""
    folder = shared_dir / "data" / "raw" / "mapchete_eo" / "full_products" / "sentinel-2-l2a"
    item = folder / "S2A_33TWM_20230815_0_L2A"
    said = json.loads((item / "S2A_33TWM_20230815_0_L2A.json").read_text())
    files: dict[str, Path | str] = {band: item / f"{band}.tif" for band in ("B02", "B03", "B04", "B08")}
    here = replace(scene(said["id"], files, mask=item / "SCL.tif"), bbox=tuple(said["bbox"]))
    with rasterio.open(files["B04"]) as source:
        assert source.transform.a == 120
        x, y = source.xy(400, 500)
        lattice = Lattice(source.crs.to_epsg(), 120)
        side = lattice.core * lattice.cell
        window = Window(int(-y // side), int(x // side))
        pixels = read(s2("B02", "B03", "B04", "B08"), [here], window, lattice)
        left, _, _, top = lattice.window_bounds(window)
        row, col = int((top - y) // 120), int((x - left) // 120)
        assert list(pixels.groups) == [120]
        # The file lies half a pixel off the zone's 120 m grid: each pixel is the mean of the four around its centre.
        i = round((source.transform.f - (top - (row + 0.5) * 120)) / 120)
        j = round((left + (col + 0.5) * 120 - source.transform.c) / 120)
        assert abs(pixels.groups[120][2][row, col] - source.read(1)[i - 1 : i + 1, j - 1 : j + 1].mean()) <= 0.5
        assert pixels.cloud_percent <= 100
