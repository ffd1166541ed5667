"""Lends large arrays again and again: new memory costs a page fault every 4 kB, more than what is done with it."""

from __future__ import annotations

from math import prod
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Buffers:
    """Memory for arrays, which comes back with the last view of each. For many threads at once.

    Never more is kept, lent or not, than was lent at once before.
    """

    def __init__(self) -> None:
        self._idle: list[Bytes] = []
        self._lent = self._most = 0
        self._lock = RLock()  # the collector may give something back in the midst of lending

    def array(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """An array with whatever was in it."""
        kind = np.dtype(dtype)
        size = prod(shape) * kind.itemsize
        with self._lock:
            fit = min((b for b in self._idle if size <= b.nbytes <= 2 * size), key=lambda b: b.nbytes, default=None)
            if fit is None:
                block = np.empty(size, np.uint8)
            else:
                block = fit
                self._idle = [b for b in self._idle if b is not fit]
            self._lent += block.nbytes
            self._most = max(self._most, self._lent)
            while self._idle and self._kept > self._most:
                self._idle.pop(0)
        return np.asarray(_Loan(self, block))[:size].view(kind).reshape(shape)

    def back(self, block: Bytes) -> None:
        """Take a loan's memory back."""
        with self._lock:
            self._lent -= block.nbytes
            if self._kept + block.nbytes <= self._most:
                self._idle.append(block)

    @property
    def _kept(self) -> int:
        return self._lent + sum(block.nbytes for block in self._idle)


class _Loan:
    """What an array and all its views hold on to."""

    def __init__(self, buffers: Buffers, block: Bytes) -> None:
        self._buffers, self._block = buffers, block
        self.__array_interface__ = block.__array_interface__

    def __del__(self) -> None:
        self._buffers.back(self._block)
