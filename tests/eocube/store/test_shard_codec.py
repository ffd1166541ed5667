"""Shards are, to the byte, what zarr would write: it judges order, index, checksums and what is left out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from zarr.abc.buffer import Buffer
from zarr.core.indexing import morton_order_iter

from eocube.products.storage import Packing
from eocube.store.shard_codec import Block, ShardCodec, z_order

FORMS = (
    ((1, 4, 18, 30), (1, 4, 6, 6)),
    ((1, 3, 8, 8), (1, 3, 8, 8)),
    ((1, 3, 7, 4, 8), (1, 1, 7, 2, 4)),
    ((6, 4), (2, 4)),
)
FILLS: dict[str, tuple[float | int, ...]] = {
    "float16": (np.nan, 0.0), "float32": (np.nan,), "int8": (-128,), "int16": (-32768,), "uint8": (0, 255),
    "uint16": (65535,),
}  # fmt: skip


def by_zarr(codec: ShardCodec, block: Block) -> bytes | None:
    objects: dict[str, Buffer] = {}
    codec._array(objects)[tuple(slice(0, n) for n in block.shape)] = block
    made = objects.get(codec._key)
    return None if made is None else made.to_bytes()


def random_block(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, fill: float | int) -> Block:
    """Numbers, holes of fill, a zero of either sign."""
    block = rng.integers(0, 100, shape).astype(dtype)
    block[rng.random(shape) < 0.1] = 0
    if dtype.startswith("float"):
        block[rng.random(shape) < 0.1] *= -1
    holes = np.ones(shape, bool)
    for axis, size in enumerate(shape):
        one, other = sorted(rng.integers(0, size + 1, 2))
        where = np.zeros(size, bool)
        where[one:other] = True
        holes &= where.reshape([-1 if k == axis else 1 for k in range(len(shape))]) | (rng.random() < 0.3)
    block[holes] = fill
    return block


@pytest.mark.parametrize("packing", ["zstd", "byte planes"])
@pytest.mark.parametrize(("shape", "chunks"), FORMS, ids=str)
def test_a_shard_is_what_zarr_would_write(shape: tuple[int, ...], chunks: tuple[int, ...], packing: Packing) -> None:
    rng, compared = np.random.default_rng(0), 0
    for dtype, fills in FILLS.items():
        for fill, keep_empty in itertools.product(fills, (False, True)):
            codec = ShardCodec(shape, chunks, dtype, fill, keep_empty, packing)
            empty = np.full(shape, fill, dtype)
            whole = random_block(rng, shape, dtype, fill)
            edge = whole[..., : max(1, shape[-1] - 1)]
            for block in (empty, whole, edge, np.asarray(whole[..., ::-1]), empty[..., :1]):
                expected = by_zarr(codec, block)
                assert codec.encode(block) == expected, (dtype, fill, keep_empty)
                compared += expected is not None
                if expected is not None:
                    decoded = codec.decode(expected)[tuple(slice(0, n) for n in block.shape)]
                    np.testing.assert_array_equal(decoded, block)
    assert compared > 20


def test_chunks_lie_in_zarrs_order() -> None:
    for grid in [(1, 1, 10, 10), (1, 1, 5, 3), (4,), (3, 2, 7), (1, 1), (1, 8, 1, 9)]:
        assert list(z_order(grid)) == [tuple(int(v) for v in place) for place in morton_order_iter(grid)]
