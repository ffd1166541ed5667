"""A shard read as one gives of every window what the window reader gives of it alone, to the bit, or leaves it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform_bounds

from eocube.errors import SourceError
from eocube.ground.grid import Lattice, Window
from eocube.raster.opening import Raster
from eocube.raster.warp import Region
from eocube.read.areas import Area, areas
from eocube.read.bands import read_raw
from eocube.read.reader import WindowReader
from eocube.read.shard import Asked
from eocube.read.window_pixels import WindowPixels
from eocube.scenes.scene import BandSource, Scene
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from eocube.sensors.sensor import Sensor
from tests.eocube.rasters import now

LATTICE = Lattice(32633, 10, core_px=48, halo_px=16, shard_px=192)
WINDOWS = [Window(row, col) for row in range(-11041, -11037) for col in range(836, 840)]
LEFT = LATTICE.window_bounds(WINDOWS[0])[0] // 60 * 60 - 600
TOP = LATTICE.window_bounds(WINDOWS[0])[3] // 60 * 60 + 600
GROUND = 3840
"""Metres a side that hold every window with 600 m to spare, more than any margin."""
SIDES = {"B01": 60, "B02": 10, "B03": 10, "B05": 20}
SENSOR = get_sensor("S2L2A").subset(tuple(SIDES))
POWER = Radiometry(1.0, 0.0, -32768.0, "power", "test")
CLASSES = Radiometry(1, 0, 0, "dn", "classes")


def write(path: Path, values: NDArray[Any], left: float, top: float, side: float, **profile: Any) -> Path:
    values = values if values.ndim == 3 else values[None]
    given = {
        "driver": "GTiff", "width": values.shape[2], "height": values.shape[1], "count": len(values),
        "dtype": values.dtype, "crs": "EPSG:32633", "transform": Affine(side, 0, left, 0, -side, top), "tiled": True,
        "blockxsize": 64, "blockysize": 64, "compress": "deflate", **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **given) as target:
        target.write(values)
    return path


class Maker:
    """Makes scenes at random."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng, self.folder, self.made = np.random.default_rng(seed), folder, 0

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def scene(self, rule: Radiometry, *, odd: bool = False) -> Scene:
        """One over a random part of the ground, with gaps; an odd one lies off the grid, or is broken somewhere."""
        rng, self.made = self.rng, self.made + 1
        west, north = (0 if self.chance(0.5) else int(rng.integers(0, 40)) * 60 for _ in range(2))
        wide, high = (GROUND - at if self.chance(0.5) else int(rng.integers(10, 60)) * 60 for at in (west, north))
        shift = float(rng.choice([0.0, 3.7])) if odd else 0.0
        epsg = int(rng.choice([32633, 32632])) if odd and shift == 0 else 32633
        left, top = LEFT + west + shift, TOP - north - shift
        where = self.folder / f"{self.made}"
        where.mkdir()
        gaps = [tuple(int(v) for v in rng.integers(0, GROUND, 2)) for _ in range(int(rng.integers(0, 3)))]
        files: dict[str, tuple[Path, int]] = {}
        for band, side in SIDES.items():
            values = rng.integers(1, 9000, (high // side, wide // side)).astype(np.uint16)
            for x, y in gaps:
                values[y // side : (y + 700) // side, x // side : (x + 300) // side] = 0
            if self.chance(0.3):
                values[rng.random(values.shape) < 0.001] = 0
            if self.chance(0.2):
                values = values.astype(np.int32)
                values[rng.random(values.shape) < 0.0005] = 100_000
            files[band] = write(where / f"{band}.tif", values, left, top, side, nodata=0), 1
        if self.chance(0.3):  # two bands in one file
            with rasterio.open(files["B02"][0]) as one, rasterio.open(files["B03"][0]) as two:
                both = np.concatenate([one.read(), two.read().astype(one.dtypes[0])])
            both = write(where / "both.tif", both, left, top, 10, nodata=0)
            files |= {"B02": (both, 1), "B03": (both, 2)}
        if epsg != 32633:
            for path in {path for path, _ in files.values()}:
                moved = transform_bounds(32633, epsg, left, top - high, left + wide, top)
                with rasterio.open(path, "r+") as target:
                    side = target.transform.a
                    target.crs, target.transform = f"EPSG:{epsg}", Affine(side, 0, moved[0], 0, -side, moved[3])
        if odd and self.chance(0.5):
            broken = files[str(rng.choice(list(SIDES)))][0]
            data = bytearray(broken.read_bytes())
            data[len(data) // 2 : len(data) // 2 + 400] = bytes(400)
            broken.write_bytes(data)
        mask = None
        if self.chance(0.7):
            classes = rng.choice(np.array([0, 3, 4, 5, 8, 9, 10], np.uint8), (high // 60, wide // 60))
            classes = np.repeat(np.repeat(classes, 3, 0), 3, 1)
            mask = BandSource("SCL", "scl", str(write(where / "scl.tif", classes, left, top, 20)), 1, CLASSES)
        bounds = left, top - high, left + wide, top
        if self.chance(0.2):  # the item says less than its files hold
            bounds = left, top - high, left + wide / 2, top
        sources = tuple(BandSource(b, b.lower(), str(path), k, rule) for b, (path, k) in files.items())
        if odd and self.chance(0.2):
            sources = sources[1:]
        return Scene(
            f"s{self.made}", "c", "2023-08-15T09:57:57Z", "S2A", "g", "2023-08-15T09:57:57Z", 32633,
            transform_bounds(32633, 4326, *bounds), None, None, None, sources, mask,
        )  # fmt: skip


def same(one: WindowPixels, other: WindowPixels) -> None:
    assert one.groups.keys() == other.groups.keys()
    for sampling, values in one.groups.items():
        assert values.dtype == other.groups[sampling].dtype
        np.testing.assert_array_equal(values, other.groups[sampling])
    for name in ("valid", "missing", "clouds"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for name in ("valid_percent", "cloud_percent", "scene_ids", "bytes_read"):
        assert getattr(one, name) == getattr(other, name), name


def check(
    sensor: Sensor, wanted: Mapping[Window, Sequence[Scene]], max_cloud: float | None = None, lattice: Lattice = LATTICE
) -> dict[Window, Asked]:
    """What a shard gives, each window compared with the window reader's; where that fails, none may be given."""
    with WindowReader(sensor, lattice) as reader:
        found = reader.read_shard(wanted, max_cloud, now)
    with WindowReader(sensor, lattice) as reader:
        for window, (mask, pixels) in found.items():
            assert (mask.valid_percent, mask.cloud_percent, mask.bytes_read) == reader.mask(wanted[window], window)
            if pixels is None:
                assert max_cloud is not None and 255 != mask.cloud_percent > max_cloud
                continue
            alone = reader.read(wanted[window], window)
            # The reader counts a mask's bytes with the first who asks for it.
            same(replace(pixels, bytes_read=pixels.bytes_read - mask.bytes_read), alone)
        for window in wanted.keys() - found.keys():
            try:
                reader.read(wanted[window], window)
            except SourceError:
                continue
    return found


@pytest.mark.parametrize("seed", range(12))
def test_windows_of_a_shard_are_those_read_alone_whatever_the_scenes(tmp_path: Path, seed: int) -> None:
    make = Maker(tmp_path, seed)
    rng = make.rng
    odd = seed % 3 == 2
    scenes = []
    for _ in range(int(rng.integers(1, 4))):
        rule = Radiometry(1e-4, float(rng.choice([0.0, -0.1])), 0.0 if make.chance(0.8) else None, "dn", "test")
        scenes.append(make.scene(rule, odd=odd and make.chance(0.5)))
    share = float(rng.choice([0.2, 0.6, 1.0]))
    wanted = {w: tuple(scenes) for w in WINDOWS if make.chance(share)}
    found = check(SENSOR, wanted, None if make.chance(0.5) else float(rng.integers(20, 60)))
    if not odd and all(transform_whole(scene) for scene in scenes):
        assert found.keys() == wanted.keys()  # copying is all there is to do


def transform_whole(scene: Scene) -> bool:
    """Whether an item says of its files no less than they hold."""
    with rasterio.open(scene.sources[0].href) as source:
        return transform_bounds(source.crs, 4326, *source.bounds)[2] <= scene.bbox[2] + 1e-9


def plain(folder: Path, side: int, values: NDArray[Any], band: str = "B02", **profile: Any) -> BandSource:
    """A band's values over all the ground."""
    rule = POWER if values.dtype.kind == "f" else Radiometry(1e-4, 0.0, 0.0, "dn", "test")
    path = write(folder / f"{band}.tif", values, LEFT, TOP, side, **profile)
    return BandSource(band, band.lower(), str(path), 1, rule)


def of(*sources: BandSource, mask: BandSource | None = None) -> Scene:
    bbox = transform_bounds(32633, 4326, LEFT, TOP - GROUND, LEFT + GROUND, TOP)
    return Scene("s", "c", "2023-08-15T09:57:57Z", "S2A", "g", "", 32633, bbox, None, None, None, sources, mask)


def test_backscatter_is_settled_as_one_and_what_looks_like_decibel_left_out(tmp_path: Path) -> None:
    rng, size = np.random.default_rng(1), GROUND // 10
    power = rng.uniform(1e-3, 1, (size, size)).astype(np.float32)
    power[rng.random(power.shape) < 0.01] = -0.001  # noise was subtracted
    power[200:210, 100:130] = -32768
    sensor = get_sensor("S1RTC")
    both = of(*(plain(tmp_path, 10, power, band, nodata=-32768) for band in ("VV", "VH")))
    assert len(check(sensor, {w: [both] for w in WINDOWS})) == len(WINDOWS)
    power[round((TOP - LATTICE.window_bounds(WINDOWS[0])[3]) / 10) + 150 :] = -12.0  # the last row of windows, mostly
    decibel = of(*(plain(tmp_path, 10, power, band, nodata=-32768) for band in ("VV", "VH")))
    found = check(sensor, {w: [decibel] for w in WINDOWS})
    assert {w.row for w in found} == {w.row for w in WINDOWS[:-4]}


def test_a_coarser_store_reads_its_bands_as_one(tmp_path: Path) -> None:
    coarse = Lattice(32633, 20, core_px=24, halo_px=8, shard_px=96)
    scene = of(plain(tmp_path, 20, np.random.default_rng(2).integers(1, 9000, (192, 192)).astype(np.uint16), "B05"))
    found = check(SENSOR.subset(["B05"]), {w: [scene] for w in WINDOWS}, lattice=coarse)
    assert len(found) == len(WINDOWS)


def test_a_broken_block_costs_the_windows_over_it_and_no_other(tmp_path: Path) -> None:
    values = np.random.default_rng(3).integers(1, 9000, (GROUND // 10, GROUND // 10)).astype(np.uint16)
    source = plain(tmp_path, 10, values)
    with rasterio.open(source.href) as file:
        offset = int(file.get_tag_item("BLOCK_OFFSET_3_2", "TIFF", bidx=1))
    data = bytearray(Path(source.href).read_bytes())
    data[offset + 20 : offset + 400] = bytes(380)
    Path(source.href).write_bytes(data)
    found = check(SENSOR.subset(["B02"]), {w: [of(source)] for w in WINDOWS})
    broken = LEFT + 3 * 640, TOP - 3 * 640, LEFT + 4 * 640, TOP - 2 * 640
    over = set()
    for window in WINDOWS:
        left, bottom, right, top = LATTICE.window_bounds(window)
        if left < broken[2] and right > broken[0] and bottom < broken[3] and top > broken[1]:
            over.add(window)
    assert 0 < len(over) < len(WINDOWS) and found.keys() == set(WINDOWS) - over


def test_nothing_is_read_beside_what_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = GROUND // 10
    source = plain(tmp_path, 10, np.full((size, size), 500, np.uint16))
    classes = np.full((size // 2, size // 2), 9, np.uint8)
    mask = replace(plain(tmp_path, 20, classes, "SCL"), radiometry=CLASSES)
    read: list[Region] = []

    def noted(raster: Raster, sources: Sequence[BandSource], inside: Region, kind: Sensor | None) -> NDArray[Any]:
        read.append(inside)
        return read_raw(raster, sources, inside, kind)

    monkeypatch.setattr("eocube.read.shard.read_raw", noted)
    cloudy = of(source, mask=mask)
    found = check(SENSOR.subset(["B02"]), {w: [cloudy] for w in WINDOWS}, 50.0)
    assert all(pixels is None for _, pixels in found.values()) and len(read) == 1  # the mask, once
    read.clear()
    corners = [WINDOWS[0], WINDOWS[-1]]
    check(SENSOR.subset(["B02"]), {w: [of(source)] for w in corners})
    assert [(r.row1 - r.row0, r.col1 - r.col0) for r in read] == [(80, 80), (80, 80)]


def test_few_rectangles_cover_what_is_wanted() -> None:
    full = [Window(r, c) for r in range(10) for c in range(10)]
    assert areas(full) == [(Area(0, 0, 10, 10), full)]
    site = [Window(3, 4), Window(3, 5), Window(4, 4)]
    assert areas(site) == [(Area(3, 4, 5, 6), site)]
    apart = areas([Window(0, 0), Window(0, 9), Window(9, 9)])
    assert sum(area.count for area, _ in apart) == 3
    rng = np.random.default_rng(0)
    for _ in range(50):
        some = [w for w in full if rng.random() < 0.3] or full[:1]
        parts = areas(some)
        assert sorted(w for _, windows in parts for w in windows) == some
        assert all(area == Area.around(windows) for area, windows in parts)


@pytest.mark.parametrize("epsg", [32633, 32632])
def test_scenes_off_the_grid_are_read_once_and_warped_window_by_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epsg: int
) -> None:
    size = GROUND // 10
    values = np.random.default_rng(4).integers(1, 9000, (size, size)).astype(np.uint16)
    classes = np.random.default_rng(5).choice(np.array([4, 9], np.uint8), (size // 2, size // 2))
    left, _, _, top = transform_bounds(32633, epsg, LEFT, TOP - GROUND, LEFT + GROUND, TOP)
    where = {"crs": f"EPSG:{epsg}", "nodata": 0}
    band = plain(tmp_path, 10, values, transform=Affine(10, 0, left + 3, 0, -10, top - 3), **where)
    mask = plain(tmp_path, 20, classes, "SCL", transform=Affine(20, 0, left + 3, 0, -20, top - 3), **where)
    scene = of(band, mask=replace(mask, radiometry=CLASSES))
    read: list[str] = []
    monkeypatch.setattr(
        "eocube.read.held.read_raw", lambda raster, *more: read.append(raster.dataset.name) or read_raw(raster, *more)
    )
    sensor = SENSOR.subset(["B02"])
    assert check(sensor, {w: [scene] for w in WINDOWS}).keys() == set(WINDOWS)
    assert sorted(read) == sorted([band.href, mask.href])
    cloud = sorted(mask.cloud_percent for mask, _ in check(sensor, {w: [scene] for w in WINDOWS}).values())
    found = check(sensor, {w: [scene] for w in WINDOWS}, float(cloud[8]))
    assert sum(pixels is None for _, pixels in found.values()) == sum(c > cloud[8] for c in cloud)
