"""Packs an array block into the bytes of its one Zarr object and back, with no store in between."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from eocube.products.storage import Packing

if TYPE_CHECKING:  # zarr is imported by what packs or unpacks: a plan does neither
    import zarr
    from zarr.abc.buffer import Buffer
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    Compressors = tuple[ZstdCodec] | tuple[BloscCodec, Crc32cCodec]

Block = npt.NDArray[Any]
_PLANES = 2
_LEVEL, _PLANES_LEVEL = 3, 6
_NOWHERE = 2**64 - 1
"""What an index has of a chunk that is not stored."""


def compressors(packing: Packing = "zstd", chunks: Sequence[int] = (), dtype: str = "uint8") -> Compressors:
    """How a chunk is packed, with a checksum: the sharding codec's own crc32c covers only its index.

    Byte planes: all low bytes of a block first, then all high ones, which hardly ever differ in codes about 128. A
    block is `_PLANES` channels, so that those of few values have an alphabet of their own. On a chunk of 13 bands 16.8
    bytes a cell; 18.9 where a block is all channels, 18.5 as bit planes, 18.9 as int8, with no room for clouds.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    if packing == "zstd":
        return (ZstdCodec(level=_LEVEL, checksum=True),)
    block = _block(chunks, dtype)
    return BloscCodec(cname="zstd", clevel=_PLANES_LEVEL, shuffle="shuffle", blocksize=block), Crc32cCodec()


def _block(chunks: Sequence[int], dtype: str) -> int:
    return _PLANES * math.prod(chunks[2:]) * np.dtype(dtype).itemsize


@dataclass(frozen=True, slots=True)
class ShardCodec:
    """Encodes and decodes one shard of an array; the same block always gives the same bytes.

    zarr reads the old object before any sharded write, even of a whole shard, and makes some ten tasks of each chunk:
    half of the time for which an encoding actor held the interpreter's lock went there. So a shard is put together
    here, its chunks packed by the library that packs zarr's, to the bytes that zarr would write. zarr reads it.
    """

    shape: tuple[int, ...]
    """Of the shard."""
    chunks: tuple[int, ...]
    """Of an inner chunk."""
    dtype: str
    fill: float | int
    keep_empty: bool
    """Whether a chunk of nothing but fill is stored all the same."""
    packing: Packing = "zstd"

    @property
    def _key(self) -> str:
        return "/".join(["c", *["0"] * len(self.shape)])

    def _array(self, objects: dict[str, Buffer]) -> zarr.Array[Any]:
        import zarr
        from zarr.storage import MemoryStore

        return zarr.create_array(
            MemoryStore(objects), shape=self.shape, shards=self.shape, chunks=self.chunks, dtype=self.dtype,
            fill_value=self.fill, compressors=compressors(self.packing, self.chunks, self.dtype),
            config={"write_empty_chunks": self.keep_empty},
        )  # fmt: skip

    def encode(self, block: Block) -> bytes | None:
        """Bytes of the shard object; None when the block is all fill and `keep_empty` is off, so that there is none.

        The block may be smaller than the shard, at the far edges of an array: the rest is fill.
        """
        dtype = np.dtype(self.dtype)
        stored = dtype.newbyteorder("<")
        grid = tuple(n // c for n, c in zip(self.shape, self.chunks, strict=True))
        index = np.full((*grid, 2), _NOWHERE, "<u8")
        parts: list[bytes] = []
        pack, size = _packer(self.packing, self.chunks, self.dtype), 0
        # Chunks that a smaller block has nothing of are fill: at the far edges of tables they are nearly all.
        reach = tuple(-(-n // c) for n, c in zip(block.shape, self.chunks, strict=True))
        for place in z_order(grid, reach):
            box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, self.chunks, strict=True))
            chunk = block[box]
            if not self.keep_empty and _all(chunk, self.fill):
                continue
            if chunk.shape != self.chunks:
                whole = np.full(self.chunks, self.fill, dtype)
                whole[tuple(slice(0, n) for n in chunk.shape)] = chunk
                chunk = whole
            packed = pack(np.ascontiguousarray(chunk, stored).reshape(-1).view(np.uint8))
            index[place] = size, len(packed)
            parts.append(packed)
            size += len(packed)
        return b"".join([*parts, _checked(index.tobytes())]) if parts else None

    def damage(self, data: bytes) -> str | None:
        """Which part of a shard object is damaged, by its own checksums: the index or inner chunks; None for none."""
        objects: dict[str, Buffer] = {}
        array = self._array(objects)
        objects[self._key] = _buffer(data)
        bad: list[str] = []
        places = list(product(*(range(n // c) for n, c in zip(self.shape, self.chunks, strict=True))))
        for place in places:
            box = tuple(slice(i * c, (i + 1) * c) for i, c in zip(place, self.chunks, strict=True))
            try:
                array[box]
            except Exception:  # whatever the codecs raise on damage
                bad.append(str(place[-2:]).replace(" ", ""))
        if len(bad) == len(places) > 1:
            return "its index is damaged, or the object is cut off"
        named = ", ".join(bad[:8]) + (" ..." if len(bad) > 8 else "")
        return f"inner chunks (row,column) {named} are damaged" if bad else None

    def decode(self, data: bytes) -> Block:
        """The whole shard. Raises ValueError or RuntimeError when index or chunks are damaged."""
        objects: dict[str, Buffer] = {}
        array = self._array(objects)
        objects[self._key] = _buffer(data)
        return np.asarray(array[...])


def _buffer(data: bytes) -> Buffer:
    from zarr.buffer.cpu import Buffer as CpuBuffer

    return CpuBuffer.from_bytes(data)


@lru_cache(maxsize=64)
def z_order(grid: tuple[int, ...], reach: tuple[int, ...] | None = None) -> tuple[tuple[int, ...], ...]:
    """Places of a grid in the order of a shard's chunks in zarr: by a bit of each coordinate in turn (Morton's).

    Of those before `reach` alone, where that is given: as many along each axis.
    """
    if reach is not None:
        return tuple(place for place in z_order(grid) if all(at < n for at, n in zip(place, reach, strict=True)))
    bits = [(n - 1).bit_length() for n in grid]
    turns = [(axis, bit) for bit in range(max(bits, default=0)) for axis in range(len(grid)) if bit < bits[axis]]
    found = []
    for code in range(2 ** sum(bits)):
        place = [0] * len(grid)
        for k, (axis, bit) in enumerate(turns):
            place[axis] |= (code >> k & 1) << bit
        if all(at < n for at, n in zip(place, grid, strict=True)):
            found.append(tuple(place))
    return tuple(found)


def _packer(packing: Packing, chunks: Sequence[int], dtype: str) -> Callable[[npt.NDArray[np.uint8]], bytes]:
    """What `compressors` make of a chunk's bytes."""
    from numcodecs import Blosc, Zstd

    if packing == "zstd":
        zstd = Zstd(level=_LEVEL, checksum=True)
        return lambda data: bytes(zstd.encode(data))
    blosc = Blosc(
        cname="zstd", clevel=_PLANES_LEVEL, shuffle=Blosc.SHUFFLE, blocksize=_block(chunks, dtype),
        typesize=np.dtype(dtype).itemsize,
    )  # fmt: skip
    return lambda data: _checked(bytes(blosc.encode(data)))


def _checked(data: bytes) -> bytes:
    """Bytes with their CRC32C behind them."""
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def _all(chunk: Block, fill: float | int) -> bool:
    """Whether all is fill; 0.0 and -0.0 are two."""
    if fill != fill:
        return bool(np.isnan(chunk).all())
    if chunk.dtype.kind == "f" and fill == 0:
        return not np.ascontiguousarray(chunk).view(np.uint8).any()
    return bool((chunk == fill).all())
