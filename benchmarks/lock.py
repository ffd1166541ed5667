"""Measures what share of the time other threads of this process hold the interpreter's lock, by asking for it.

A thread in C sleeps for about a millisecond, notes the time, takes the lock, notes the time again and gives it back.
Where the lock is free that takes well under a microsecond, where somebody holds it the thread sleeps until it is free:
so the share of the tries that took longer is the share of the time in which the lock was held. It says nothing of who
held it, and holds for any CPython with such a lock. Beside other work a thread that holds the lock also waits for a
core: of that the kernel's figures on the threads tell how much, holders waiting as often as others.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

FREE = 5_000
"""Nanoseconds within which a free lock is taken: a thread that has to be woken takes longer."""
PERIOD = 1_000_000
"""Nanoseconds from one try to the next, on average."""

_SOURCE = """
#include <stdint.h>
#include <time.h>
extern void *PyEval_SaveThread(void);
extern void PyEval_RestoreThread(void *);
static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
void try_the_lock(volatile int64_t *going, int64_t period, int64_t quick, int64_t *tries, int64_t *held) {
    uint32_t random = 2463534242u;
    void *state = PyEval_SaveThread();
    int64_t next = now();
    while (*going) {
        const struct timespec until = {next / 1000000000, next % 1000000000};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
        const int64_t before = now();
        PyEval_RestoreThread(state);
        const int64_t after = now();
        state = PyEval_SaveThread();
        const int waited = after - before > quick;
        /* What was due while it waited would have found the lock held as well. */
        do {
            ++*tries;
            *held += waited;
            do {
                random ^= random << 13; random ^= random >> 17; random ^= random << 5;
                next += period / 2 + (int64_t)(random % (uint32_t)period);
            } while (next <= before); /* what was due before it woke, nobody knows */
        } while (next <= after);
    }
    PyEval_RestoreThread(state);
}
"""


class LockSampler:
    """A thread that tries the lock until it is stopped.

    Raises:
        OSError: no C compiler, or one that fails: then there is no measuring.
    """

    def __init__(self) -> None:
        compiler = next((c for c in (os.environ.get("CC"), "cc", "gcc", "clang") if c and shutil.which(c)), None)
        if compiler is None:
            raise OSError("no C compiler (cc, gcc, clang or $CC) to measure the interpreter's lock with")
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "lock.so"
            command = [compiler, "-O2", "-shared", "-fPIC", "-x", "c", "-", "-o", str(made)]
            done = subprocess.run(command, input=_SOURCE, capture_output=True, text=True, check=False)
            if done.returncode:
                raise OSError(f"{compiler} failed: {done.stderr.strip()}")
            self._library = ctypes.PyDLL(str(made))  # it gives the lock back itself
        self._going, self._tries, self._held = (ctypes.c_int64(value) for value in (1, 0, 0))
        given = (*map(ctypes.byref, (self._going,)), PERIOD, FREE, *map(ctypes.byref, (self._tries, self._held)))
        self._library.try_the_lock.argtypes = [
            ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
        ]  # fmt: skip
        self._library.try_the_lock.restype = None
        self._thread = threading.Thread(target=self._library.try_the_lock, args=given, name="lock", daemon=True)
        self._thread.start()

    def counts(self) -> tuple[int, int]:
        """Tries so far, and those that found the lock held."""
        return self._tries.value, self._held.value

    def sums(self) -> tuple[int, int, int, int]:
        """`counts`, and nanoseconds for which this process's threads ran and waited for a core; 0 where not told."""
        ran = waited = 0
        for told in Path("/proc/self/task").glob("*/schedstat"):
            with suppress(OSError, ValueError):  # it has just ended
                one, other = told.read_text().split()[:2]
                ran, waited = ran + int(one), waited + int(other)
        return (*self.counts(), ran, waited)

    def stop(self) -> None:
        """End the thread."""
        self._going.value = 0
        self._thread.join()


def held_share(start: Sequence[int], end: Sequence[int]) -> float | None:
    """Share of the time between two `LockSampler.sums` in which a thread held the lock and ran; None without a try."""
    tries, held, ran, waited = (after - before for before, after in zip(start, end, strict=True))
    if tries <= 0:
        return None
    return held / tries * (ran / (ran + waited) if ran > 0 and waited > 0 else 1.0)
