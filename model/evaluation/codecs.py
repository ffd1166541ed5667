"""Makes baselines of the same size: image codecs of GDAL at the latents' bytes, and bilinear downsampling."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import rasterio
import torch
import torch.nn.functional as F
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from model.sensors import Floats

_HEADER = 8  # the two float32 that bring the integers back to z-scores
_TRIES = 14
_CLOSE = 0.98


@dataclass(frozen=True, slots=True)
class Codec:
    """A lossy GDAL driver with one knob. A larger `knob` makes larger files if `rising`.

    `joint`: all bands in one file; otherwise one file a band, all with the same knob. `bits` of the integers coded.
    """

    name: str
    driver: str
    knob: str
    least: float
    most: float
    rising: bool = True
    joint: bool = True
    bits: int = 16
    whole: bool = False
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        """Whether this GDAL has the driver."""
        with rasterio.Env() as env:
            return self.driver in env.drivers()


# QUALITY of OpenJPEG is the size in percent of the raw one. No colour transform: bands are no RGB.
JPEG2000 = Codec(
    "JPEG 2000", "JP2OpenJPEG", "QUALITY", 0.01, 100.0,
    options={"REVERSIBLE": "NO", "YCC": "NO", "CODEC": "J2K"},
)  # fmt: skip
JPEG_XL = Codec("JPEG XL", "JPEGXL", "DISTANCE", 0.01, 25.0, rising=False, joint=False, options={"LOSSLESS": "NO"})
AVIF = Codec("AVIF", "AVIF", "QUALITY", 1, 99, joint=False, bits=12, whole=True, options={"NBITS": "12"})
CODECS = (JPEG2000, JPEG_XL, AVIF)


@dataclass(frozen=True, slots=True)
class Coded:
    """A decoded image (C, H, W) and the bytes it took."""

    z: Floats
    size: int


def at_bytes(codec: Codec, z: Floats, budget: int) -> Coded | None:
    """z-scores (C, H, W) coded in at most `budget` bytes, as near to it as bisection of the knob comes; None if none.

    All bands share one affine map to integers, so that an error weighs the same in every band's z-scores.
    """
    low, high = math.log(codec.least), math.log(codec.most)
    best: list[bytes] | None = None
    for _ in range(_TRIES):
        middle = (low + high) / 2
        files = _written(codec, z, math.exp(middle))
        size = _size(files)
        if size <= budget:
            if best is None or size >= _size(best):
                best = files
            if size >= _CLOSE * budget:
                break
        if (size <= budget) == codec.rising:
            low = middle
        else:
            high = middle
    return None if best is None else Coded(_read(codec, best, z), _size(best))


def encode(codec: Codec, z: Floats, knob: float) -> Coded:
    """z-scores (C, H, W) through the codec with one setting of its knob."""
    files = _written(codec, z, knob)
    return Coded(_read(codec, files, z), _size(files))


def _size(files: list[bytes]) -> int:
    return _HEADER + sum(len(f) for f in files)


def _scale(codec: Codec, z: Floats) -> tuple[float, float]:
    """Floor and step of the integers."""
    floor = float(z.min())
    return floor, (float(z.max()) - floor) / (2**codec.bits - 1) or 1.0


def _written(codec: Codec, z: Floats, knob: float) -> list[bytes]:
    """The file of all bands, or one file a band."""
    floor, step = _scale(codec, z)
    kind = np.uint16 if codec.bits > 8 else np.uint8
    values = np.round((z.astype(np.float64) - floor) / step).astype(kind)
    options = dict(codec.options) | {codec.knob: str(round(knob)) if codec.whole else f"{knob:.6g}"}
    files = []
    for stack in [values] if codec.joint else [band[None] for band in values]:
        count, height, width = stack.shape
        shape = {"driver": codec.driver, "count": count, "height": height, "width": width, "dtype": stack.dtype.name}
        with _quiet(), MemoryFile() as memory:
            with memory.open(**shape, **options) as dataset:
                dataset.write(stack)
            files.append(bytes(memory.getbuffer()))
    return files


def _read(codec: Codec, files: list[bytes], z: Floats) -> Floats:
    """The decoded z-scores of what `_written` made of `z`."""
    floor, step = _scale(codec, z)
    parts = []
    for file in files:
        with _quiet(), MemoryFile(file) as memory, memory.open() as dataset:
            parts.append(dataset.read().astype(np.float64))
    return (np.concatenate(parts) * step + floor).astype(np.float32)


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread (tiles are small: a pool of them only waits), and no warning that they lie nowhere."""
    with rasterio.Env(GDAL_NUM_THREADS="1"), warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def downsampled(z: Floats, values: int) -> Floats:
    """(C, H, W) averaged down to `values` numbers in all (bilinear, anti-aliased) and bilinearly back."""
    height, width = z.shape[1:]
    factor = max(1.0, math.sqrt(z.size / values))
    rows, columns = max(1, math.floor(height / factor)), max(1, math.floor(width / factor))
    x = torch.from_numpy(np.ascontiguousarray(z))[None]
    small = F.interpolate(x, size=(rows, columns), mode="bilinear", align_corners=False, antialias=True)
    return F.interpolate(small, size=(height, width), mode="bilinear", align_corners=False)[0].numpy()
