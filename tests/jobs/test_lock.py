"""What tries the interpreter's lock finds it held while a thread holds it, and says how often it tried."""

from __future__ import annotations

import ctypes
import time

import pytest

from benchmarks import lock
from benchmarks.lock import LockSampler, held_share


def test_a_lock_that_is_held_is_found_held() -> None:
    try:
        sampler = LockSampler()
    except OSError as error:
        pytest.skip(str(error))
    while sampler.counts()[0] < 3:
        time.sleep(0.005)
    tries, held = sampler.counts()
    ctypes.PyDLL(None).usleep(300_000)  # keeps the lock
    while sampler.counts()[0] < tries + 100:  # tries that were due meanwhile count as well
        time.sleep(0.005)
    assert sampler.counts()[1] >= held + 100
    sampler.stop()
    ended = sampler.counts()
    time.sleep(0.02)
    assert sampler.counts() == ended
    ran = sampler.sums()
    assert ran[:2] == ended and ran[2] >= 0


def test_the_share_is_of_what_ran() -> None:
    """Of ten tries six find it held; threads ran for three quarters of the time in which they wanted to."""
    assert held_share((5, 1, 100, 50), (15, 7, 400, 150)) == pytest.approx(0.6 * 0.75)
    assert held_share((0, 0, 0, 0), (10, 5, 0, 0)) == 0.5, "nothing told"
    assert held_share((0, 0, 0, 0), (0, 0, 9, 9)) is None


def test_without_a_compiler_there_is_no_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.shutil, "which", lambda name: None)
    with pytest.raises(OSError, match="no C compiler"):
        LockSampler()
    from benchmarks import probe

    assert probe.tries_at_the_lock()() == (0, 0, 0, 0)
