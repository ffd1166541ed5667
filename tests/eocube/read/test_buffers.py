"""Lent arrays: memory comes back with the last view, is lent again, never to two at once, and never more is kept."""

from __future__ import annotations

import numpy as np

from eocube.read.buffers import Buffers


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_lent_again_with_its_last_view_and_not_before() -> None:
    buffers = Buffers()
    first = buffers.array((4, 100, 100), "uint16")
    assert first.shape == (4, 100, 100) and first.dtype == np.uint16 and first.flags.writeable
    where, view = address(first), first[1, 10:20, 5:9]
    view[:] = 7
    del first
    other = buffers.array((4, 100, 100), "uint16")
    other[:] = 1
    assert not np.shares_memory(other, view) and (view == 7).all()
    del view
    smaller = buffers.array((100, 100), "float32")  # half as large: it may take it
    assert address(smaller) == where and smaller.dtype == np.float32


def test_no_more_is_kept_than_was_lent_at_once() -> None:
    buffers = Buffers()
    for size in (1000, 3000, 9000, 500, 9000, 2000):
        array = buffers.array((size,), "uint8")
        assert buffers._kept <= 9000
        del array
        assert buffers._kept <= 9000
    both = [buffers.array((9000,), "uint8") for _ in range(2)]
    both.clear()
    assert buffers._kept == 18000
