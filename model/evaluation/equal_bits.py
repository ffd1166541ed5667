"""Compares codecs at equal bits: latents as codes, KLTs with their entropy counted, JPEG 2000, JPEG XL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.eo_vae import EOVAE
from model.evaluation.codecs import JPEG2000, Codec, Coded, at_bytes
from model.evaluation.figures import Sums, measure, pooled
from model.evaluation.rates import Codes, Pack, Spread, blocks_of
from model.sensors import Floats, TrainedSensor
from model.training.eo_vae.evaluate import RANGES
from model.training.eo_vae.klt import Klt

RATES = (2, 4, 8, 12, 16, 24, 32, 48, 64)
"""Bytes an 8x8 block that codes are brought to, over all tiles of a sensor; the others follow what codes take."""
CODES = "codes"
Lines = Mapping[str, tuple["Row", ...]]
"""Codec -> its rows, in the order of the codes' sizes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One codec at one rate: `size` bytes an 8x8 block over the tiles; PSNR in dB of a fixed range, SAM in radians and
    NDVI's mean error (None without its bands), in physical units. `rate` is which of `RATES` was aimed at, or None: the
    weights' own steps, which is the default quality of a store of codes."""

    rate: int | None
    size: float
    psnr: float
    sam: float
    ndvi: float | None

    @property
    def default(self) -> bool:
        """Whether this is the rate of the default quality."""
        return self.rate is None


@dataclass(frozen=True, slots=True)
class Compared:
    """Rows over all tiles, and over those of each place alone; `range` is that of PSNR."""

    range: float
    tiles: int
    pooled: Lines
    places: Mapping[str, Lines]

    @classmethod
    def read(cls, item: Mapping[str, Any]) -> Compared:
        """Of the plain data that `dataclasses.asdict` makes of one."""
        places = {place: _lines(lines) for place, lines in item["places"].items()}
        return cls(item["range"], item["tiles"], _lines(item["pooled"]), places)


def _lines(plain: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, tuple[Row, ...]]:
    return {name: tuple(Row(**row) for row in rows) for name, rows in plain.items()}


@dataclass(frozen=True, slots=True)
class Yardsticks:
    """What the weights are compared with: KLTs by name, and codecs."""

    linear: Mapping[str, Klt]
    codecs: Sequence[Codec]


@dataclass(frozen=True, slots=True)
class _Tiles:
    """(C, H, W) z-scores of one sensor, sides multiples of 8, and each one's place."""

    sensor: TrainedSensor
    tiles: Sequence[Floats]
    grounds: Sequence[str]

    def sums(self, k: int, back: Floats) -> Sums:
        """What tile `k`, come back as `back`, adds to figures in physical units."""
        a, b = self.sensor.physical(back), self.sensor.physical(self.tiles[k])
        return measure(a, b, RANGES[self.sensor.unit], self.grounds[k], self.sensor.red_nir, similarity=False)

    def blocks(self, picks: Sequence[int]) -> float:
        """How many blocks the tiles picked have."""
        return sum(blocks_of(self.tiles[k]) for k in picks)


@dataclass(frozen=True, slots=True)
class _Filed:
    """One rate of a storage that codes each tile for itself: bytes and figures of each; None where it could not."""

    rate: int | None
    tiles: Sequence[tuple[int, Sums] | None]

    def row(self, tiles: _Tiles, picks: Sequence[int]) -> Row | None:
        """Over the tiles picked, if each of them could be coded."""
        done = [one for k in picks if (one := self.tiles[k]) is not None]
        if len(done) < len(picks):
            return None
        return _row(self.rate, sum(size for size, _ in done) / tiles.blocks(picks), [sums for _, sums in done])


@torch.no_grad()
def compare(
    vae: EOVAE, steps: Sequence[float], sensor: TrainedSensor, tiles: Sequence[Floats], grounds: Sequence[str],
    pack: Pack, others: Yardsticks,
) -> Compared:  # fmt: skip
    """Each codec at each of `RATES` and at the default quality, at the bytes that codes really take there.

    Codes have one factor on their steps a rate, for all tiles; where codes cannot take as many or as few bytes, the row
    is at the size next to it (once, should several rates end there). Image codecs get, tile for tile, the bytes of
    that tile's codes. A KLT has one step and one table of frequencies over all tiles, and for the rows of a place a
    step and frequencies of that place alone, at the bytes that its codes take: so it is at equal bits on every place,
    and the frequencies are better for it than any that a coder could know. The principal components of the bands are
    those of all tiles together.

    Args:
        vae: in eval mode.
        steps: of its codes (channels,), for this sensor.
        sensor: whose bands the tiles have.
        tiles: (C, H, W) z-scores, sides multiples of 8.
        grounds: each tile's place.
        pack: what codes are packed into.
        others: what to compare with.
    """
    own = _Tiles(sensor, tiles, grounds)
    codes = Codes.of(vae, sensor, steps, tiles, pack)
    filed: dict[str, list[_Filed]] = {}
    rotation = _rotation(tiles) if len(sensor.bands) > 1 and JPEG2000 in others.codecs else None
    for rate, factor in _factors(codes):
        sizes = codes.sizes(factor)
        filed.setdefault(CODES, []).append(_file(own, rate, list(zip(sizes, codes.decoded(factor), strict=True))))
        for codec in others.codecs:
            filed.setdefault(codec.name, []).append(_by_codec(own, rate, codec, sizes))
        if rotation is not None:
            turned = _by_codec(own, rate, JPEG2000, sizes, rotation)
            filed.setdefault(f"PCA of bands, {JPEG2000.name}", []).append(turned)
    spreads = {name: [Spread.of(klt, [tile]) for tile in tiles] for name, klt in others.linear.items()}

    def lines(picks: Sequence[int]) -> dict[str, tuple[Row, ...]]:
        rows = {name: tuple(r for f in line if (r := f.row(own, picks)) is not None) for name, line in filed.items()}
        linear = {
            name: _linear(own, picks, klt, [spreads[name][k] for k in picks], rows[CODES])
            for name, klt in others.linear.items()
        }
        return {CODES: rows.pop(CODES), **linear, **{name: line for name, line in rows.items() if line}}

    whole = lines(range(len(tiles)))
    names = list(dict.fromkeys(grounds))
    alone = {n: lines([k for k, g in enumerate(grounds) if g == n]) for n in names} if len(names) > 1 else {}
    return Compared(RANGES[sensor.unit], len(tiles), whole, alone or {names[0]: whole})


def _factors(codes: Codes) -> list[tuple[int | None, float]]:
    """Rate and factor, finer steps last; the default quality, None and 1, among them."""
    found: dict[float, int | None] = {1.0: None}
    for rate in RATES:
        found.setdefault(codes.factor_for(rate), rate)
    return [(found[factor], factor) for factor in sorted(found, reverse=True)]


def _file(tiles: _Tiles, rate: int | None, coded: Sequence[tuple[int, Floats] | None]) -> _Filed:
    return _Filed(rate, [None if c is None else (c[0], tiles.sums(k, c[1])) for k, c in enumerate(coded)])


def _by_codec(
    tiles: _Tiles, rate: int | None, codec: Codec, budgets: Sequence[int], rotation: NDArray[np.float64] | None = None
) -> _Filed:
    """Each tile, its bands turned by `rotation` (C, C), in at most its budget of bytes."""
    coded: list[tuple[int, Floats] | None] = []
    for tile, budget in zip(tiles.tiles, budgets, strict=True):
        one: Coded | None = at_bytes(codec, tile if rotation is None else _turn(tile, rotation), budget)
        back = None if one is None else one.z if rotation is None else _turn(one.z, rotation.T)
        coded.append(None if one is None or back is None else (one.size, back))
    return _file(tiles, rate, coded)


def _linear(
    tiles: _Tiles, picks: Sequence[int], klt: Klt, spreads: Sequence[Spread], codes: Sequence[Row]
) -> tuple[Row, ...]:
    """A KLT at the sizes of the codes' rows, by the entropy over the tiles picked."""
    spread = Spread(np.concatenate([s.values for s in spreads]))
    rows = []
    for row in codes:
        step = spread.step_for(row.size)
        sums = [tiles.sums(k, klt.reconstruct(tiles.tiles[k], step)) for k in picks]
        rows.append(_row(row.rate, spread.size(step), sums))
    return tuple(rows)


def _row(rate: int | None, size: float, sums: Sequence[Sums]) -> Row:
    found = {key: values[0] for key, values in pooled(sums, np.ones((1, len(sums)))).items()}
    ndvi = float(found["ndvi_mae"]) if "ndvi_mae" in found else None
    return Row(rate, size, float(found["psnr"]), float(found["sam"]), ndvi)


def _rotation(tiles: Sequence[Floats]) -> NDArray[np.float64]:
    """(C, C) orthonormal: the principal components of the tiles' own bands; a rotation as good as any coder's."""
    pixels = np.concatenate([tile.reshape(len(tile), -1) for tile in tiles], axis=1).astype(np.float64)
    return np.asarray(np.linalg.eigh(np.cov(pixels))[1][:, ::-1].T)


def _turn(tile: Floats, rotation: NDArray[np.float64]) -> Floats:
    turned: Floats = np.einsum("kc,chw->khw", rotation, tile).astype(np.float32)
    return turned
