"""Threads that want windows decoded share batches: each gets its own window, errors included, whatever the batch."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from eocube.products.shared_batches import SharedBatches, Widening


class Doubling:
    """Twice the values, on a device that is busy with its first batch until everybody else waits."""

    def __init__(self, hold: threading.Event | None = None, room: int = 99) -> None:
        self.sizes: list[int] = []
        self._hold, self._room = hold, room

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(values))
        if self._hold is not None and len(self.sizes) == 1:
            assert self._hold.wait(10)
        if len(values) > self._room:
            raise torch.OutOfMemoryError("full")
        if bool((values < 0).any()):
            raise ValueError("negative")
        return values * 2


def asked(shared: SharedBatches, values: list[float], hold: threading.Event) -> list[float | str]:
    """Ask for all values at once, each from a thread; the device goes on once all of them wait."""

    def one(value: float) -> float | str:
        try:
            return float(shared(np.full((1, 2, 2), value, np.float32))[0, 0, 0])
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(len(values)) as threads:
        first = threads.submit(one, values[0])
        until = time.monotonic() + 10
        while not shared._decoder.sizes and time.monotonic() < until:  # type: ignore[attr-defined]
            time.sleep(0.001)
        rest = [threads.submit(one, value) for value in values[1:]]
        while len(shared._waiting) < len(rest) and time.monotonic() < until:
            time.sleep(0.001)
        hold.set()
        return [future.result() for future in (first, *rest)]


def test_whoever_waits_shares_the_next_batch() -> None:
    hold = threading.Event()
    decoder = Doubling(hold)
    values = [float(k) for k in range(22)]
    assert asked(SharedBatches(decoder, threading.Lock()), values, hold) == [2 * v for v in values]
    assert decoder.sizes == [1, 16, 4, 1]


def test_one_by_one_where_bits_are_to_be_the_same() -> None:
    hold = threading.Event()
    decoder = Doubling(hold)
    assert asked(SharedBatches(decoder, threading.Lock(), (1,)), [1.0, 2.0, 3.0], hold) == [2.0, 4.0, 6.0]
    assert decoder.sizes == [1, 1, 1]


def test_an_error_reaches_all_who_wait_for_it_and_nobody_else() -> None:
    hold = threading.Event()
    values = [1.0, -1.0, 2.0, 3.0, 4.0]
    found = asked(SharedBatches(Doubling(hold), threading.Lock()), values, hold)
    assert found == [2.0, "negative", "negative", "negative", "negative"]


def test_a_full_device_gets_smaller_batches() -> None:
    hold = threading.Event()
    decoder = Doubling(hold, room=4)
    shared = SharedBatches(decoder, threading.Lock())
    values = [float(k) for k in range(18)]
    assert asked(shared, values, hold) == [2 * v for v in values]
    assert decoder.sizes[:3] == [1, 16, 4] and shared._sizes == (4, 1)
    with pytest.raises(torch.OutOfMemoryError):
        SharedBatches(Doubling(room=0), threading.Lock())(np.zeros((1, 2, 2), np.float32))


def test_what_overflows_in_half_precision_is_decoded_again() -> None:
    made: list[int] = []

    def exact() -> Doubling:
        made.append(1)
        return Doubling()

    widening = Widening(lambda values: (values.half() * 2).float(), exact)
    values = torch.tensor([1.0, 40_000.0, 3.0, 50_000.0]).reshape(4, 1, 1, 1)
    assert torch.equal(widening(values[:1]), 2 * values[:1]) and not made
    assert torch.equal(widening(values), 2 * values) and made == [1]
