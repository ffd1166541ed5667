"""Draws the demo landscape at 5 m, the same on every date: relief, water, forest, fields, town, roads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from eocube.demo.noise import F32, Draws, Mask, fractal, smoothstep, stream
from eocube.demo.spectra import CROPS, Cover

FINE = 5.0  # metres a cell
NO_CROP = 255
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ground:
    """What lies where; every array is (H, W) at 5 m, row 0 in the north."""

    elevation: F32  # metres
    crop: U8  # index into CROPS, NO_CROP where no field is
    vigour: F32  # per field, -1..1: how early and how dense its crop stands
    patchiness: F32  # unit variance within fields: where the soil is thin
    rows: F32  # brightness of drill rows and tramlines, about 1
    margin: Mask  # grassy strips between fields
    cover: U8  # Cover of everything that is not a field
    green: F32  # fraction of the ground that plants hide, outside fields
    forest: Mask
    water: Mask
    built: Mask
    moisture: F32  # 0 dry .. 1 moist soil


def _grid(shape: tuple[int, int]) -> tuple[F32, F32]:
    """Metres from the north-western corner: southwards and eastwards, of each cell's centre."""
    down = (np.arange(shape[0], dtype=np.float32) + 0.5) * FINE
    right = (np.arange(shape[1], dtype=np.float32) + 0.5) * FINE
    y, x = np.broadcast_arrays(down[:, None], right[None])
    return np.asarray(y, dtype=np.float32), np.asarray(x, dtype=np.float32)


def _distance_to(points_yx: NDArray[np.float64], shape: tuple[int, int]) -> F32:
    """Metres from each cell to the nearest of the points that lie inside; far everywhere if none does."""
    cells = np.floor(points_yx / FINE).astype(int)
    inside = ((cells >= 0) & (cells < np.array(shape))).all(axis=1)
    line = np.ones(shape, dtype=bool)
    line[tuple(cells[inside].T)] = False
    if line.all():
        return np.full(shape, 1e5, dtype=np.float32)
    return np.asarray(ndimage.distance_transform_edt(line) * FINE, dtype=np.float32)


def _meander(rng: np.random.Generator, extent: tuple[float, float]) -> NDArray[np.float64]:
    """A river's course, (N, 2) points y, x in metres: the sine-generated curve of Langbein and Leopold (1966)."""
    step = 2.5
    n = int(2.2 * (extent[1] + 4000) / step)
    s = np.arange(n) * step
    drift = np.cumsum(rng.standard_normal(n // 400 + 2)) * 1.3
    phase = np.interp(s, np.arange(len(drift)) * 1000.0, drift)
    swing = 1.05 + 0.42 * np.sin(s / 1900.0 + rng.uniform(0, 6.28)) + 0.15 * np.sin(s / 530.0 + rng.uniform(0, 6.28))
    bend = 0.35 * np.sin(s / 620.0 + rng.uniform(0, 6.28)) + 0.25 * np.sin(s / 1270.0 + rng.uniform(0, 6.28))
    bearing = rng.uniform(-0.22, 0.08) + bend + swing * np.sin(2 * np.pi * s / 1700.0 + phase)
    x = -1500 + np.cumsum(np.cos(bearing)) * step
    y = np.cumsum(np.sin(bearing)) * step
    return np.stack([y - np.interp(0.45 * extent[1], x, y) + rng.uniform(0.52, 0.66) * extent[0], x], axis=1)


def _blocks(rng: np.random.Generator, y: F32, x: F32, spacing: float, bend: F32) -> tuple[I32, NDArray[np.float64]]:
    """Voronoi cells of jittered points, their borders bent by `bend` metres: (labels, centres y x)."""
    rows = np.arange(-1.5 * spacing, y[-1, 0] + 1.5 * spacing, spacing)
    cols = np.arange(-1.5 * spacing, x[0, -1] + 1.5 * spacing, spacing)
    centres = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    centres = centres + rng.uniform(-0.42, 0.42, centres.shape) * spacing
    places = np.stack([(y + bend).ravel(), (x - bend).ravel()], axis=1)
    labels = cKDTree(centres).query(places, workers=1)[1].astype(np.int32).reshape(y.shape)
    return labels, centres


def _edges(labels: I32) -> Mask:
    """Cells whose southern or eastern neighbour has another label."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return edge


def _turned(y: F32, x: F32, labels: I32, centres: NDArray[np.float64], angle: F32) -> tuple[F32, F32]:
    """Coordinates along and across each block's own direction, metres from its centre."""
    origin = centres.astype(np.float32)[labels]
    dy, dx = y - origin[..., 0], x - origin[..., 1]
    return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


@dataclass(frozen=True, slots=True)
class _Fields:
    crop: U8
    vigour: F32
    rows: F32
    margin: Mask


def _fields(seed: int, y: F32, x: F32, labels: I32, centres: NDArray[np.float64], meadow: Mask) -> _Fields:
    """Strips of uneven width in each block, parted crosswise into fields of one crop each."""
    one = Draws(seed)
    ids = np.arange(len(centres), dtype=np.int32)
    angle = (one(0, ids) * np.pi)[labels]
    along, across = _turned(y, x, labels, centres, angle)
    width = (62 + 190 * one(1, ids) ** 1.6)[labels]
    length = (230 + 380 * one(2, ids))[labels]
    wave = across + 0.32 * width * np.sin(2 * np.pi * across / (2.9 * width) + 6.28 * one(3, ids)[labels])
    strip = np.floor(wave / width).astype(np.int32)
    shift = length * one(4, labels, strip)
    part = np.floor((along + shift) / length).astype(np.int32)
    draw = one(5, labels, strip, part)
    shares = np.cumsum([crop.share for crop in CROPS])
    crop = np.minimum(np.searchsorted(shares / shares[-1], draw, side="right"), len(CROPS) - 1).astype(np.uint8)
    crop[meadow & (one(6, labels, strip, part) < 0.75)] = 5
    drill = np.floor(across / 9.0).astype(np.int32)
    rows = 1 + 0.07 * (one(7, labels, strip, drill) - 0.5) - 0.05 * (np.mod(across, 36.0) < 5.0)
    key = (one(8, labels, strip, part) * 2**24).astype(np.int32)
    margin = _edges(key) & (one(9, labels, strip) < 0.6)
    return _Fields(crop, 2 * one(10, labels, strip, part) - 1, rows.astype(np.float32), margin)


@dataclass(frozen=True, slots=True)
class _Settlement:
    area: Mask
    cover: U8
    green: F32


def _settlements(seed: int, y: F32, x: F32, bend: F32, rough: F32, dry: Mask) -> _Settlement:
    """A town and villages: streets on turned grids, houses on lots, halls at the town's edge, gardens between."""
    rng = stream(seed, 5)
    extent = (float(y[-1, 0]), float(x[0, -1]))
    labels, centres = _blocks(rng, y, x, 420.0, bend * 0.6)
    town = np.array([rng.uniform(0.30, 0.48) * extent[0], rng.uniform(0.28, 0.48) * extent[1]])
    radius = float(np.clip(0.15 * min(extent), 260, 950))
    reach = np.hypot(y - town[0], x - town[1]) / radius + 0.30 * rough
    for _ in range(4):
        place = rng.uniform(0.06, 0.94, 2) * extent
        if np.hypot(*(place - town)) > 1.8 * radius:
            reach = np.minimum(reach, np.hypot(y - place[0], x - place[1]) / rng.uniform(150, 270) + 0.35 * rough)
    hall = town + radius * 1.15 * np.array([np.sin(a := rng.uniform(0, 6.28)), np.cos(a)])
    industry = (np.hypot(y - hall[0], x - hall[1]) + 90 * rough < 0.42 * radius) & dry
    area = ((reach < 1) & dry) | industry
    one = Draws(seed, 32)
    ids = np.arange(len(centres), dtype=np.int32)
    along, across = _turned(y, x, labels, centres, (one(0, ids) * np.pi)[labels])
    lot_l = np.where(industry, 110, 24).astype(np.float32)
    lot_w = np.where(industry, 80, 31).astype(np.float32)
    street = (np.mod(along, 192.0) < 9.0) | (np.mod(across, np.where(industry, 160.0, 71.0)) < 8.5) | _edges(labels)
    i, j = np.floor(along / lot_l).astype(np.int32), np.floor(across / lot_w).astype(np.int32)
    dense = np.clip(1 - reach, 0, 1)
    inside_l = np.mod(along, lot_l) / lot_l
    inside_w = np.mod(across, lot_w) / lot_w
    fill = 0.34 + 0.16 * one(1, labels, i, j) + 0.28 * dense + 0.22 * industry
    house = (inside_l > 0.14) & (inside_l < 0.14 + fill * 1.15) & (inside_w > 0.12) & (inside_w < 0.12 + fill)
    house &= one(2, labels, i, j) < np.where(industry, 0.8, 0.62 + 0.36 * dense)
    kind = one(3, labels, i, j)
    roof = np.where(kind < 0.60, Cover.TILE_ROOF, np.where(kind < 0.9, Cover.SLATE_ROOF, Cover.CONCRETE))
    halls = np.where(kind < 0.25, Cover.METAL_ROOF, np.where(kind < 0.6, Cover.CONCRETE, Cover.SLATE_ROOF))
    cover = np.where(house, np.where(industry, halls, roof), np.where(industry, Cover.ASPHALT, Cover.SOIL_DARK))
    cover = np.where(street, Cover.ASPHALT, cover).astype(np.uint8)
    lawn = np.where(industry, 0.35, 0.97 - 0.30 * dense) * (0.7 + 0.3 * one(4, labels, i, j))
    green = np.where(house, 0.02, np.where(street, 0.06, lawn)).astype(np.float32)
    return _Settlement(area, cover, green)


_NOISE = {
    1: (1400.0, 3.0), 2: (900.0, 2.2), 3: (800.0, 1.6), 6: (3200.0, 2.35), 8: (2600.0, 2.1), 9: (500.0, 2.0),
    10: (1500.0, 2.5), 11: (1100.0, 2.7), 12: (900.0, 1.3), 13: (260.0, 1.5),
}  # fmt: skip
"""Of each fractal field that the ground is made of, by its stream: largest wavelength in metres, exponent."""


def make_ground(seed: int, shape: tuple[int, int], offset: float = 0.0, threads: int = 1) -> Ground:
    """The geography for a seed on (H, W) cells of 5 m, the same whatever the number of threads.

    offset: metres added to the elevation.
    """
    with ThreadPoolExecutor(threads) as pool:
        return _made(pool, seed, shape, offset)


def _made(pool: ThreadPoolExecutor, seed: int, shape: tuple[int, int], offset: float) -> Ground:
    y, x = _grid(shape)
    extent = (shape[0] * FINE, shape[1] * FINE)
    rivers = pool.submit(lambda: _distance_to(_meander(stream(seed, 4), extent), shape))
    drawn = pool.map(
        lambda which: fractal(stream(seed, which), shape, _NOISE[which][0] / FINE, _NOISE[which][1]), _NOISE
    )
    noise = dict(zip(_NOISE, drawn, strict=True))
    bend, rough, moist, hills, copse, pits = 70 * noise[1], noise[2], noise[3], noise[6], noise[9], noise[11]
    river = rivers.result()
    settled = pool.submit(_settlements, seed, y, x, bend, rough, river > 60)

    upland = smoothstep(250, 1700, river + 220 * rough)
    elevation = 330 + offset + 85 * upland + (8 + 46 * upland) * hills

    labels, centres = _blocks(stream(seed, 7), y, x, 640.0, bend)
    floodplain = river < 260 + 80 * rough
    parted = pool.submit(_fields, seed, y, x, labels, centres, floodplain)

    wood = noise[8] + 0.55 * hills + 0.9 * (upland - 0.62)
    forest = wood > 0.55
    forest |= (copse > 2.25) | ((river < 70) & (copse > 0.35))

    width = 22 + 6 * noise[10]
    lake = (river > 140) & (river < 800) & (pits > 1.5)
    stream_bed = river < width
    water = stream_bed | lake
    bank = (river < width + 11) & (copse < -0.8) & ~water

    road = _roads(seed, y, x, labels, bend)
    town, fields = settled.result(), parted.result()

    cover = np.full(shape, Cover.SOIL_DARK, dtype=np.uint8)
    green = np.zeros(shape, dtype=np.float32)
    crop = fields.crop.copy()
    hedge = ndimage.binary_dilation(_edges(labels)) & (Draws(seed)(60, labels) < 0.30)

    def lay(where: Mask, what: U8 | int, plants: F32 | float) -> None:
        cover[where] = what[where] if isinstance(what, np.ndarray) else what
        green[where] = plants[where] if isinstance(plants, np.ndarray) else plants
        crop[where] = NO_CROP

    leafy = noise[12] > 0.1
    trees = np.where(leafy, Cover.BROADLEAF, Cover.CONIFER).astype(np.uint8)
    built = town.area & ~water
    forest &= ~built
    lay(hedge, Cover.BROADLEAF, 0.85)
    lay(forest, trees, 0.96)
    orchard = (copse < -1.9) & ~forest
    lay(orchard, Cover.ORCHARD, 0.75)
    lay(bank, Cover.GRAVEL, 0.40)
    lay(built, town.cover, town.green)
    lay(water, np.where(lake, Cover.LAKE, Cover.RIVER).astype(np.uint8), 0.0)
    water = water & ~road.paved
    lay(road.track & ~forest & ~built & ~water, Cover.GRAVEL, 0.25)
    lay(road.paved & ~lake, Cover.ASPHALT, 0.05)
    return Ground(
        elevation=elevation.astype(np.float32), crop=crop, vigour=fields.vigour,
        patchiness=noise[13], rows=fields.rows,
        margin=fields.margin, cover=cover, green=green, forest=forest & ~road.paved & ~water,
        water=water, built=built & ~road.paved, moisture=smoothstep(-1.5, 1.5, moist - 0.5 * upland + 0.4),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Roads:
    paved: Mask
    track: Mask


def _roads(seed: int, y: F32, x: F32, labels: I32, bend: F32) -> _Roads:
    """Country roads and farm tracks along block borders, and one motorway across the whole scene."""
    rng = stream(seed, 14)
    paved, track = np.zeros(y.shape, dtype=bool), np.zeros(y.shape, dtype=bool)
    for axis in (0, 1):
        a, b = (labels[:-1], labels[1:]) if axis == 0 else (labels[:, :-1], labels[:, 1:])
        draw = Draws(seed)(61, np.minimum(a, b), np.maximum(a, b))
        here = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        paved[here] |= (a != b) & (draw < 0.28)
        track[here] |= (a != b) & (draw > 0.45)
    extent = float(x[0, -1])
    slope, start, sway = rng.uniform(-0.35, 0.35), rng.uniform(0.12, 0.30), rng.uniform(250, 500)
    centre = start * float(y[-1, 0]) + slope * x[0] + sway * np.sin(x[0] / extent * 4.2 + rng.uniform(0, 6.28))
    tilt = np.sqrt(1 + np.gradient(centre, FINE) ** 2)
    off = np.abs(y - centre.astype(np.float32)[None]) / tilt.astype(np.float32)[None]
    return _Roads(ndimage.binary_dilation(paved) | (off < 13), track)
