"""Decodes on a GPU what several threads want as one batch, in half precision where that comes out finite."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eocube.products.base import Decoder
from model.host import to_host

log = logging.getLogger(__name__)

SIZES = (16, 4, 1)
"""Windows of a batch, largest first: few sizes, as each is captured once as a graph of its own."""
Values = npt.NDArray[Any]
Pixels = npt.NDArray[np.float32]


class Widening:
    """A fast decoder, and an exact one for the windows of a batch that are not finite by it.

    float16 overflows where a network adds up more than 65,504: seldom, and never unnoticed.
    """

    def __init__(self, fast: Decoder, exact: Callable[[], Decoder]) -> None:
        self._fast, self._make = fast, exact
        self._exact: Decoder | None = None
        self._making = threading.Lock()

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            pixels = self._fast(values)
            finite: list[bool] = pixels.isfinite().flatten(1).all(1).tolist()
            for place, good in enumerate(finite):
                if not good:
                    pixels[place] = self._exactly(values[place : place + 1])[0]
            return pixels

    def _exactly(self, values: torch.Tensor) -> torch.Tensor:
        with self._making:
            if self._exact is None:
                self._exact = self._make()
        return self._exact(values)


@dataclass(slots=True)
class _Wish:
    values: Values
    pixels: Pixels | None = None
    error: BaseException | None = None

    @property
    def open(self) -> bool:
        return self.pixels is None and self.error is None


class SharedBatches:
    """One window a call, from any number of threads; whoever comes while the device is busy shares the next batch.

    Nobody waits for a batch to fill: alone, a window is decoded alone. So the batch that a window is in depends on the
    moment, and with it the last bits; `sizes` (1,) gives the same ones every time.

    Args:
        decoder: (B, C, h, w) -> (B, bands, H, W) on its device.
        device: a lock of the device, so that batches of several decoders do not add up in its memory.
        sizes: of batches, largest first, 1 among them.
    """

    def __init__(self, decoder: Decoder, device: AbstractContextManager[Any], sizes: Sequence[int] = SIZES) -> None:
        self._decoder, self._device, self._sizes = decoder, device, tuple(sizes)
        self._waiting: list[_Wish] = []
        self._guard = threading.Lock()

    def __call__(self, values: Values) -> Pixels:
        """(C, h, w) -> (bands, H, W), float32. Raises what decoding its batch raised."""
        wish = _Wish(values)
        with self._guard:
            self._waiting.append(wish)
        with self._device:
            while wish.open:  # else another thread decoded it while this one waited for the device
                self._decode(self._next())
        if wish.error is not None:
            raise wish.error
        assert wish.pixels is not None
        return wish.pixels

    def _next(self) -> list[_Wish]:
        """The largest batch that waits, of one shape, first come first."""
        with self._guard:
            first = self._waiting[0].values
            alike = [w for w in self._waiting if (w.values.shape, w.values.dtype) == (first.shape, first.dtype)]
            size = next(size for size in self._sizes if size <= len(alike))
            chosen = alike[:size]
            self._waiting = [w for w in self._waiting if not any(w is taken for taken in chosen)]
        return chosen

    def _decode(self, batch: list[_Wish]) -> None:
        try:
            found = to_host(self._decoder(torch.from_numpy(np.stack([wish.values for wish in batch]))).float())
            for wish, pixels in zip(batch, found.numpy(), strict=True):
                wish.pixels = pixels
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            self._sizes = tuple(size for size in self._sizes if size < len(batch))
            log.warning("out of device memory: decoding %d windows at once from now on", self._sizes[0])
            with self._guard:
                self._waiting = [*batch, *self._waiting]
        except Exception as error:  # each of the threads that wait for it has to hear of it
            for wish in batch:
                wish.error = error
