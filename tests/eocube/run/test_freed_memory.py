"""Freed memory stays with a process that asked for it: no page is faulted in twice."""

from __future__ import annotations

import subprocess
import sys

import pytest

ROUNDS = """
import ctypes, resource, sys
from eocube.run.memory_limit import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    raise SystemExit("no mallopt")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 24 * 2**20
for turn in range(6):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    """Pages faulted in by five rounds of the same three blocks, after a first one, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", ROUNDS, how], capture_output=True, text=True)
    if "no mallopt" in done.stderr:
        pytest.skip("this C library has no mallopt")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
def test_what_is_freed_is_used_again() -> None:
    kept = faults("keep")
    assert kept < 100
    assert faults("plain") > 2 * kept  # else the wish would be needless
