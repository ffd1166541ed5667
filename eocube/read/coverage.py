"""Packs which source pixels are there under a latent pixel and how cloudy they are, for receipts and for the store.

`missing` is on pixels: set where the source has none in at least one band. Bands of 20 and 60 m count at their own
sampling. In the store each latent pixel holds its stride x stride pixels as bits, row by row, the first pixel the
highest bit of the first byte (`numpy.packbits`); the last bits are 0 where the square is no multiple of eight.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Bytes = npt.NDArray[np.uint8]

ON_LATENTS = ("missing", "cloud", "shadow", "valid")
"""The arrays beside the latents that follow from the commit log; stores of earlier versions have `valid` alone."""
UNKNOWN_PERCENT = 255
CLEAR = ""
"""`pack_clouds` of a window with neither cloud nor shadow: known, and worth no byte."""


def deflated(data: bytes) -> str:
    """Bytes as text that JSON takes."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def inflated(text: str, size: int) -> Bytes:
    """Inverse of `deflated`, (size,) uint8. ValueError when it is no such text or holds another number of bytes."""
    machine = zlib.decompressobj()
    try:
        data = machine.decompress(base64.b64decode(text), size + 1)
    except zlib.error as error:
        raise ValueError(f"not a packed mask: {error}") from error
    if len(data) != size:
        raise ValueError(f"a packed mask of {len(data)}{' or more' if len(data) > size else ''} bytes, not {size}")
    return np.frombuffer(data, np.uint8)


def pack_missing(missing: Mask | None, stride: int) -> str | None:
    """(core * stride, core * stride) bits for a receipt, as the store holds them; None when none is set."""
    if missing is None or not missing.any():
        return None
    return deflated(to_cells(missing, stride).tobytes())


def unpack_missing(packed: str, core: int, size: int) -> Bytes:
    """Inverse of `pack_missing`: (core, core, size), `size` bytes a latent pixel."""
    return inflated(packed, core**2 * size).reshape(core, core, size)


def cell_bytes(stride: int) -> int:
    """Bytes that the bits of one latent pixel take."""
    return -(-(stride**2) // 8)


def to_cells(missing: Mask, stride: int) -> Bytes:
    """(h * stride, w * stride) bits -> (h, w, `cell_bytes`) bytes."""
    height, width = (n // stride for n in missing.shape)
    cells = missing.reshape(height, stride, width, stride).transpose(0, 2, 1, 3).reshape(height, width, -1)
    return np.packbits(cells, axis=-1)


def from_cells(cells: Bytes, stride: int) -> Mask:
    """Inverse of `to_cells`."""
    height, width, _ = cells.shape
    bits = np.unpackbits(cells, axis=-1, count=stride**2).reshape(height, width, stride, stride)
    return bits.transpose(0, 2, 1, 3).reshape(height * stride, width * stride).astype(np.bool_)


def unseen(valid: Bytes, missing: Bytes | None, min_valid: int, everywhere: bool, stride: int) -> Mask | None:
    """Pixels (h * stride, w * stride) without a source; None where there are none.

    Args:
        valid: (h, w) percent of source pixels.
        missing: (h, w, bytes), or None of a store that has none.
        min_valid: latents with less than this percent have no pixel at all, where their pixels are not known.
        everywhere: `min_valid` counts also where they are known.
        stride: pixels a latent pixel.
    """
    if (valid == 100).all():
        return None
    gone = valid == 0
    below = (valid < min_valid) & ~gone
    if missing is None:
        gone |= below
        return fine(gone, stride) if gone.any() else None
    known = missing.any(axis=-1)
    gone |= below if everywhere else below & ~known
    pixels = fine(gone, stride)
    if known.any():
        pixels |= from_cells(missing, stride)
    return pixels if pixels.any() else None


def fine(mask: npt.NDArray[Any], stride: int) -> npt.NDArray[Any]:
    """A mask of latent pixels on pixels."""
    return np.repeat(np.repeat(mask, stride, 0), stride, 1)


def pack_clouds(clouds: Bytes | None) -> str | None:
    """(2, core, core) percent of cloud and shadow for a receipt; None when not known, `CLEAR` when both are 0."""
    if clouds is None:
        return None
    return deflated(np.ascontiguousarray(clouds, dtype=np.uint8).tobytes()) if clouds.any() else CLEAR


def unpack_clouds(packed: str | None, core: int) -> Bytes:
    """Inverse of `pack_clouds`: (2, core, core), `UNKNOWN_PERCENT` throughout when not known."""
    if not packed:
        return np.full((2, core, core), UNKNOWN_PERCENT if packed is None else 0, np.uint8)
    return inflated(packed, 2 * core**2).reshape(2, core, core)
