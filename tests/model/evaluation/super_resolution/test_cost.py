"""Timing stops at its bound, and memory that one run takes is found."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from model.evaluation.super_resolution.cost import interleaved, peak, timed

CPU = torch.device("cpu")


def test_it_warms_up_and_averages() -> None:
    calls: list[int] = []
    found = timed(lambda: calls.append(1), 5, 10.0, CPU)
    assert len(calls) == 8 and found.iterations == 5 and not found.limited
    assert found.fastest <= found.seconds <= found.slowest


def test_a_bound_of_time_comes_first() -> None:
    found = timed(lambda: time.sleep(0.02), 50, 0.01, CPU)
    assert found.iterations == 1 and found.limited and found.seconds >= 0.02


def test_runs_are_taken_in_turn() -> None:
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}  # type: ignore[misc]
    assert set(interleaved(runs, 3, 10.0, CPU)) == {"a", "b"} and calls == ["a", "b"] * 3
    calls.clear()
    interleaved(runs, 3, 0.0, CPU)
    assert calls == ["a", "b"]


def test_memory_of_one_run() -> None:
    found = peak(lambda: np.ones(64 * 2**20 // 8).sum(), CPU)
    if found.bytes is None:
        pytest.skip("no /proc here")
    assert 60 * 2**20 < found.bytes < 80 * 2**20 and "resident" in found.kind
