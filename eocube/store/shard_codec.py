"""Packs an array block into the bytes of its one Zarr object and back, with no store in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

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


def compressors(packing: Packing = "zstd", chunks: Sequence[int] = (), dtype: str = "uint8") -> Compressors:
    """How a chunk is packed, with a checksum: the sharding codec's own crc32c covers only its index.

    Byte planes: all low bytes of a block first, then all high ones, which hardly ever differ in codes about 128. A
    block is `_PLANES` channels, so that those of few values have an alphabet of their own. On a chunk of 13 bands 16.8
    bytes a cell; 18.9 where a block is all channels, 18.5 as bit planes, 18.9 as int8, with no room for clouds.
    """
    from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

    if packing == "zstd":
        return (ZstdCodec(level=3, checksum=True),)
    block = _PLANES * math.prod(chunks[2:]) * np.dtype(dtype).itemsize
    return BloscCodec(cname="zstd", clevel=6, shuffle="shuffle", blocksize=block), Crc32cCodec()


@dataclass(frozen=True, slots=True)
class ShardCodec:
    """Encodes and decodes one shard of an array; the same block always gives the same bytes.

    zarr reads the old object before any sharded write, even of a whole shard. So the shard is written to memory as an
    array of just its shape, through zarr's public API, and its bytes then go out in one request.
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
        objects: dict[str, Buffer] = {}
        self._array(objects)[tuple(slice(0, n) for n in block.shape)] = block
        made = objects.get(self._key)
        return None if made is None else made.to_bytes()

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
