"""Makes pairs of one image by Wald's protocol: what is seen is the high resolution, its degraded self the low one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from eocube.errors import InputError, SourceError
from eocube.pairs.encoding import core_of
from eocube.pairs.pixel_pairs import NOWHERE, Floats, PairNote, PixelPair, Transform
from eocube.products.lone_windows import HALO
from model.wald import degrade, mtf_of, reach

STEP = 8
"""Pixels along a cell: sides are multiples of the scale times this, so that both images are whole cells."""


class WaldImage(Protocol):
    """An image that is cut into pairs: reflectance with NaN where there is none."""

    @property
    def name(self) -> str: ...
    @property
    def place(self) -> str: ...
    @property
    def level(self) -> str: ...
    @property
    def bands(self) -> tuple[str, ...]: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def resolution(self) -> float: ...
    @property
    def epsg(self) -> int | None: ...
    @property
    def transform(self) -> Transform: ...
    @property
    def split(self) -> str | None: ...
    def window(self, row: int, col: int, rows: int, cols: int) -> Floats:
        """(C, rows, cols) float32 reflectance."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ArrayImage:
    """An image in memory, (C, H, W) float32 reflectance with NaN where there is none."""

    name: str
    place: str
    level: str
    bands: tuple[str, ...]
    data: Floats
    resolution: float
    epsg: int | None = None
    transform: Transform = NOWHERE
    split: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.data.shape[1], self.data.shape[2]

    def window(self, row: int, col: int, rows: int, cols: int) -> Floats:
        """A part of it."""
        return self.data[:, row : row + rows, col : col + cols]


@dataclass(frozen=True, slots=True)
class FileImage:
    """A raster file that is read window by window: reflectance = number * scale + offset."""

    path: str
    name: str
    level: str
    bands: tuple[str, ...]
    shape: tuple[int, int]
    resolution: float
    epsg: int | None
    transform: Transform
    scale: float
    offset: float
    split: str | None = None

    @property
    def place(self) -> str:
        """Its name: a file is a place."""
        return self.name

    @classmethod
    def open(cls, path: str, bands: Sequence[str], *, level: str, scale: float, offset: float) -> FileImage:
        """Look at a file. InputError where it cannot be read, or has another number of bands than named."""
        try:
            with rasterio.open(path) as dataset:
                if dataset.count != len(bands):
                    raise InputError(
                        f"{path} has {dataset.count} bands, {len(bands)} are wanted ({', '.join(bands)}): name its own "
                        "with --bands"
                    )
                crs = dataset.crs
                t = dataset.transform
                return cls(
                    path, path.rsplit("/", 1)[-1].rsplit(".", 1)[0], level, tuple(bands), dataset.shape,
                    abs(float(t.a)), None if crs is None else crs.to_epsg(), (t.a, t.b, t.c, t.d, t.e, t.f), scale,
                    offset,
                )  # fmt: skip
        except rasterio.errors.RasterioIOError as error:
            raise InputError(f"{path} cannot be read as a raster: {str(error).splitlines()[0]}") from None

    def window(self, row: int, col: int, rows: int, cols: int) -> Floats:
        """A part of it. SourceError where it cannot be read."""
        try:
            with rasterio.open(self.path) as dataset:
                raw, nodata = dataset.read(window=Window(col, row, cols, rows)), dataset.nodata
        except rasterio.errors.RasterioError as error:
            raise SourceError(f"{self.path} cannot be read: {str(error).splitlines()[0]}") from None
        return where_data(raw, nodata) * np.float32(self.scale) + np.float32(self.offset)


def where_data(raw: NDArray[Any], nodata: float | None) -> Floats:
    """Numbers as float32, NaN where they are a file's nodata value.

    Nothing else masks: GDAL takes the fourth band of many a file for its transparency, and it is near infrared.
    """
    values = raw.astype(np.float32)
    return values if nodata is None else np.where(raw == nodata, np.float32(np.nan), values)


class WaldPairs:
    """Squares of `side` pixels, every `stride`, of images, each with its degraded self.

    Images smaller than `side` give squares of the largest side that fits them and is a multiple of 8 * `factor`, where
    that is `least` or more. The last squares of a row or column end at the image's edge where there the grid of coarse
    pixels allows. The low resolution of a square is that of its whole image: beyond the square its neighbours are seen.
    Squares that lack a pixel, their own or one that their low resolution depends on, are no pairs. An image that has
    the very pixels of another one is left out.

    Args:
        images: what is cut.
        factor: high-resolution pixels along a low-resolution one.
        side, stride, least: in high-resolution pixels.
        mtf: of the bands at the low resolution's Nyquist; None takes those of Sentinel-2.

    Raises:
        InputError: images of different bands, or sides that are no multiples of 8 * `factor`.
    """

    def __init__(
        self,
        images: Sequence[WaldImage],
        factor: int = 4,
        side: int = 256,
        stride: int | None = None,
        least: int = 96,
        mtf: Sequence[float] | None = None,
    ) -> None:
        step = STEP * factor
        if factor < 2 or side % step or side < step or least < step or (stride is not None and stride < 1):
            raise InputError(
                f"--wald {factor} --side {side}: a factor of 2 or more, sides of multiples of {step} px, strides of 1"
            )
        if not images:
            raise InputError("there are no images to make pairs of: name some with --images, or a --listing")
        for image in images:
            if image.bands != images[0].bands:
                raise InputError(
                    f"{image.name} has bands {', '.join(image.bands)}, {images[0].name} {', '.join(images[0].bands)}: "
                    "all need the same"
                )
        self.bands, self.scale = images[0].bands, factor
        try:
            self.mtf = tuple(mtf) if mtf is not None else mtf_of(self.bands)
        except ValueError as error:
            raise InputError(f"{error}; give --mtf") from None
        if len(self.mtf) != len(self.bands):
            raise InputError(f"--mtf names {len(self.mtf)}: give one for each of {', '.join(self.bands)}")
        self._images, self._margin = images, reach(self.mtf, factor)
        self.skipped: Counter[str] = Counter()
        self._at: list[tuple[int, int, int]] = []
        self.notes: list[PairNote] = []
        for number, image in self._distinct():
            size = min(side, min(image.shape) // step * step)
            if size < min(least, side):
                self.skipped[f"images under {min(least, side)} px a side"] += 1
                continue
            for row, col in _corners(image.shape, size, stride or size, factor):
                if np.isfinite(self._around(image, row, col, size, self._margin)[0]).all():
                    self._at.append((number, row, col))
                    self.notes.append(_note(image, row, col, size))
                else:
                    self.skipped["squares that lack pixels"] += 1

    @property
    def document(self) -> dict[str, Any]:
        """How low resolution was made of high."""
        return {"kind": "wald", "mtf": dict(zip(self.bands, self.mtf, strict=True)), "low_pass": "gaussian-1"}

    def read(self, index: int) -> PixelPair:
        """One pair."""
        number, row, col = self._at[index]
        image, note, k = self._images[number], self.notes[index], self.scale
        n = note.side
        around, up, left = self._around(image, row, col, n, self._margin + HALO * k)
        low = degrade(torch.from_numpy(np.ascontiguousarray(around)), self.mtf, k).numpy()
        hr, lr = _cut(around, up, left, n), _cut(low, up // k, left // k, n // k)
        return PixelPair(
            note.id, core_of(lr, HALO), core_of(hr, HALO), self.bands, note.epsg, note.transform, note.place,
            note.split, lr, hr,
        )  # fmt: skip

    def _around(self, image: WaldImage, row: int, col: int, side: int, margin: int) -> tuple[Floats, int, int]:
        """A square with a margin, and how much lies above and to the left of it.

        Where the image ends, it ends: there `degrade` repeats its border, as it would of the whole image.
        """
        height, width = (n // self.scale * self.scale for n in image.shape)
        top, first = max(0, row - margin), max(0, col - margin)
        bottom, last = min(height, row + side + margin), min(width, col + side + margin)
        return image.window(top, first, bottom - top, last - first), row - top, col - first

    def _distinct(self) -> Iterator[tuple[int, WaldImage]]:
        """Images but for those with the very pixels of an earlier one of the same place."""
        seen: set[tuple[str, str]] = set()
        for number, image in enumerate(self._images):
            if isinstance(image, ArrayImage):
                key = image.place, hashlib.blake2b(image.data.tobytes(), digest_size=12).hexdigest()
                if key in seen:
                    self.skipped["images with the pixels of another"] += 1
                    continue
                seen.add(key)
            yield number, image


def wald_pairs(images: Sequence[WaldImage], factor: int, side: int, **how: Any) -> Iterator[PixelPair]:
    """The pairs of images one after the other; `how` as `WaldPairs` takes it."""
    pairs = WaldPairs(images, factor, side, **how)
    return (pairs.read(k) for k in range(len(pairs.notes)))


def _corners(shape: tuple[int, int], side: int, stride: int, factor: int) -> Iterator[tuple[int, int]]:
    """Upper left corners on the grid of coarse pixels: every `stride`, and one at the far edge."""
    stride = max(factor, stride // factor * factor)

    def along(n: int) -> list[int]:
        last = (n // factor * factor - side) // factor * factor
        return sorted({*range(0, last + 1, stride), last})

    for row in along(shape[0]):
        for col in along(shape[1]):
            yield row, col


def _cut(x: Floats, row: int, col: int, side: int) -> Floats:
    """(C, side + 2 HALO, ...) of an image about a square of it, NaN where the image has ended."""
    found = np.full((len(x), side + 2 * HALO, side + 2 * HALO), np.nan, np.float32)
    top, left = row - HALO, col - HALO
    part = x[:, max(0, top) : row + side + HALO, max(0, left) : col + side + HALO]
    y, x0 = max(0, -top), max(0, -left)
    found[:, y : y + part.shape[1], x0 : x0 + part.shape[2]] = part
    return found


def _note(image: WaldImage, row: int, col: int, side: int) -> PairNote:
    a, b, c, d, e, f = image.transform
    corner: Transform = (a, b, c + a * col + b * row, d, e, f + d * col + e * row)
    name = f"{image.name}/{row:05d}_{col:05d}"
    return PairNote(name, image.place, image.level, image.resolution, side, image.split, image.epsg, corner)
