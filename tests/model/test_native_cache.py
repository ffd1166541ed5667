"""The cached kernel library is checked before it is loaded: cut short, flipped or built twice at once, it is sound."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from model import native
from model.native import NativeUnavailableError, native_steps

ROOT = Path(__file__).resolve().parents[2]
USE = """
import torch
from model.native import Norm, native_steps
steps = native_steps()
norm = Norm(torch.ones(8), torch.zeros(8), 2, 1e-6)
found = steps.norm(torch.arange(2048.0).reshape(1, 8, 16, 16), norm, silu=False)
assert abs(float(found.mean())) < 1e-5
print(steps.name)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    try:
        native_steps()
    except NativeUnavailableError as error:
        pytest.skip(f"no kernels on this machine: {error}")


def start(cache: Path) -> subprocess.Popen[str]:
    """A process of its own that uses the kernels out of this cache."""
    env = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    return subprocess.Popen(
        [sys.executable, "-c", USE], env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def name_of(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, (process.returncode, err[-2000:])
    return out.strip()


def cut_short(data: bytes) -> bytes:
    return data[: len(data) // 3]


def emptied(data: bytes) -> bytes:
    return b""


def flipped(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 4]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("damage", [cut_short, emptied, flipped])
def test_a_damaged_library_is_built_again(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """As a full disk or a machine that went down while it was written leaves it."""
    assert name_of(start(tmp_path)).startswith("native-")
    (library,) = (tmp_path / "eocube").glob("*.so")
    sound = library.read_bytes()
    library.write_bytes(damage(sound))
    name_of(start(tmp_path))
    (again,) = (tmp_path / "eocube").glob("*.so")
    kept = again.stat().st_mtime_ns
    name_of(start(tmp_path))
    assert again.stat().st_mtime_ns == kept, "a sound one is not built again"
    assert len(again.read_bytes()) == len(sound)


def test_two_that_build_at_once_both_load_what_is_sound(tmp_path: Path) -> None:
    both = [start(tmp_path) for _ in range(2)]
    assert len({name_of(p) for p in both}) == 1
    name_of(start(tmp_path))
    assert [f for f in (tmp_path / "eocube").iterdir() if f.suffix != ".so"] == []


def test_what_is_cached_is_safe_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it gets its name: otherwise a machine that goes down leaves the name on nothing."""
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(native.os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), real(fd)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_steps.cache_clear()
    try:
        native_steps()
    finally:
        native_steps.cache_clear()
    assert any(path.endswith(".so") for path in synced) and str(tmp_path / "eocube") in synced
