"""Computes the memory-bound steps between convolutions: our C++ where a compiler is there, else torch's own.

Both work on channels-last tensors of float32 or bfloat16 on the CPU. The kernels are `native_kernels.cpp`, built once a
machine in about two seconds and kept in the user's cache folder. A library's own hash is part of its file's name and
is looked at before it is loaded: code that was cut short ends the process (SIGBUS), which nobody can catch.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

SOURCE = Path(__file__).with_name("native_kernels.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-fno-math-errno", "-fno-trapping-math")
X86_FLAGS = ("-mprefer-vector-width=512",)
BUILD_SECONDS = 120.0
"""A compiler that takes longer than this is given up."""

_KINDS = {torch.float32: 0, torch.bfloat16: 1}
_SOURCES = {torch.uint8: 0, torch.uint16: 1, torch.int16: 2, torch.float32: 3}


class NativeUnavailableError(RuntimeError):
    """The kernels cannot be built or loaded here; says why."""


@dataclass(frozen=True, slots=True)
class Norm:
    """A GroupNorm's affine parameters, float32 (C,), its groups and epsilon."""

    weight: Tensor
    bias: Tensor
    groups: int
    eps: float


class Steps(Protocol):
    """What happens between convolutions. Tensors are (B, C, H, W), channels last, unless said otherwise."""

    @property
    def name(self) -> str:
        """What a store records: results of equal names and machines are equal to the bit."""
        ...

    def norm(self, x: Tensor, norm: Norm, *, silu: bool, in_place: bool = False) -> Tensor:
        """GroupNorm, then SiLU where asked; statistics in float32 or wider. `in_place` may overwrite x."""
        ...

    def softmax(self, x: Tensor, factor: float) -> Tensor:
        """Softmax of x * factor over the rows of (rows, columns), in float32."""
        ...

    def interleave(self, x: Tensor) -> Tensor:
        """(B, 4C, h + 1, w + 1) -> (B, C, 2h, 2w): pixel (2i + a, 2j + b) is channel block 2a + b at (i + a, j + b)."""
        ...


class TorchSteps:
    """The steps in torch's own operations, on any device and in any precision."""

    name = "torch"

    def norm(self, x: Tensor, norm: Norm, *, silu: bool, in_place: bool = False) -> Tensor:
        weight, bias = norm.weight.to(x.device, x.dtype), norm.bias.to(x.device, x.dtype)
        if x.dtype == torch.float32 and x.device.type == "cpu":
            # Torch's channels-last kernel sums a million values into one float32: a decoded picture ends up 1e-3 off.
            x = x.contiguous(memory_format=torch.contiguous_format)
            y = F.group_norm(x, norm.groups, weight, bias, norm.eps).contiguous(memory_format=torch.channels_last)
        else:
            y = F.group_norm(x, norm.groups, weight, bias, norm.eps)
        return F.silu(y, inplace=True) if silu else y

    def softmax(self, x: Tensor, factor: float) -> Tensor:
        return torch.softmax(x.float() * factor, -1).to(x.dtype)

    def interleave(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1] // 4, x.shape[2] - 1, x.shape[3] - 1
        parts = x.unflatten(1, (4, channels))  # type: ignore[no-untyped-call]
        out = x.new_empty(x.shape[0], channels, 2 * height, 2 * width).contiguous(memory_format=torch.channels_last)
        for a in (0, 1):
            for b in (0, 1):
                out[:, :, a::2, b::2] = parts[:, 2 * a + b, :, a : a + height, b : b + width]
        return out


class NativeSteps:
    """The steps in the C++ kernels; `place` is theirs alone. Tensors of float32 and bfloat16 on the CPU."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._library, self.name = library, name

    def norm(self, x: Tensor, norm: Norm, *, silu: bool, in_place: bool = False) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        out = x if in_place else torch.empty_like(x)
        images, channels, height, width = x.shape
        _call(
            self._library.eocube_group_norm, _KINDS[x.dtype], x.data_ptr(), out.data_ptr(),
            norm.weight.data_ptr(), norm.bias.data_ptr(), images, height * width, channels, norm.groups, norm.eps,
            int(silu), torch.get_num_threads(),
        )  # fmt: skip
        return out

    def softmax(self, x: Tensor, factor: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        _call(
            self._library.eocube_softmax, _KINDS[x.dtype], x.data_ptr(), out.data_ptr(), x.shape[0], x.shape[1],
            factor, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def interleave(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, height, width = x.shape[0], x.shape[1] // 4, x.shape[2] - 1, x.shape[3] - 1
        out = torch.empty(
            (images, channels, 2 * height, 2 * width), dtype=x.dtype, memory_format=torch.channels_last
        )  # fmt: skip
        _call(
            self._library.eocube_interleave, _KINDS[x.dtype], x.data_ptr(), out.data_ptr(), images, height, width,
            channels, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def place(
        self,
        source: Tensor,
        out: Tensor,
        places: Tensor,
        scale: Tensor,
        shift: Tensor,
        rows: tuple[Tensor, Tensor, Tensor],
        columns: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        """One sampling group into its channels of `out`: bilinear, then value * scale + shift.

        Args:
            source: (B, bands, h, w), uint8, uint16, int16 or float32, contiguous.
            out: (B, C, H, W), channels last; only the channels `places` are written.
            places: (bands,) int32.
            scale, shift: (bands,) float32.
            rows, columns: lower and upper source place (int32) and the upper one's weight (float32) of each of the H
                rows and W columns.
        """
        images, bands, height, width = source.shape
        _call(
            self._library.eocube_place, _SOURCES[source.dtype], _KINDS[out.dtype], source.data_ptr(), out.data_ptr(),
            images, bands, height, width, out.shape[2], out.shape[3], out.shape[1], places.data_ptr(),
            scale.data_ptr(), shift.data_ptr(), *(t.data_ptr() for t in (*rows, *columns)), torch.get_num_threads(),
        )  # fmt: skip


def can_place(dtype: torch.dtype) -> bool:
    """Whether `NativeSteps.place` takes pixels of this type."""
    return dtype in _SOURCES


@cache
def native_steps() -> NativeSteps:
    """The kernels, built on first use on this machine.

    Raises:
        NativeUnavailableError: no compiler, a compiler that fails, or a result that does not load.
    """
    compiler = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)
    if compiler is None:
        raise NativeUnavailableError("no C++ compiler (c++, g++, clang++ or $CXX) was found")
    flags = FLAGS + (X86_FLAGS if platform.machine() in ("x86_64", "AMD64") else ())
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
        # -march=native means another thing on another chip: homes may be shared between machines.
        identity = "\n".join((SOURCE.read_text(), *flags, version, cpu_identity()))
        name = hashlib.sha256(identity.encode()).hexdigest()[:12]
        folder = _folder()
        path = _sound(folder, name) or _build(compiler, flags, folder, name)
        library = ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout or "").strip().splitlines()
        raise NativeUnavailableError(f"{compiler} cannot build them: {words[0] if words else error}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{compiler}: {error}") from error
    _declare(library)
    return NativeSteps(library, f"native-{name}")


def cpu_identity() -> str:
    """The chip's model and instruction sets, as Linux tells them; elsewhere what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("vendor_id", "cpu family", "model\t", "model name", "flags", "Features", "CPU part")
    # one processor's worth: they are all alike
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _folder() -> Path:
    """A folder that only this user can write to: what lies in it is loaded as code."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (root / "eocube", Path(tempfile.gettempdir()) / f"eocube-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            held = folder.stat()
        except OSError:
            continue
        if held.st_uid == os.getuid() and not held.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    raise OSError(f"no folder of one's own to build in: neither {root} nor the temporary one will do")


def _sound(folder: Path, name: str) -> Path | None:
    """The library of that name whose bytes are those that were built; what is damaged is removed."""
    for path in sorted(folder.glob(f"kernels-{name}-*.so")):
        with suppress(FileNotFoundError):  # another process removed it just now
            if path == _place(folder, name, path.read_bytes()):
                return path
            path.unlink()
    return None


def _place(folder: Path, name: str, library: bytes) -> Path:
    """Where a library belongs: its hash is in the file's name, so that one rename puts both there."""
    return folder / f"kernels-{name}-{hashlib.sha256(library).hexdigest()[:16]}.so"


def _build(compiler: str, flags: tuple[str, ...], folder: Path, name: str) -> Path:
    # Built aside and renamed: several processes may build at once, and none may see half a file.
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        made = Path(aside) / f"kernels-{name}.so"
        subprocess.run(
            [compiler, *flags, str(SOURCE), "-o", str(made)],
            capture_output=True, text=True, check=True, timeout=BUILD_SECONDS,
        )  # fmt: skip
        path = _place(folder, name, made.read_bytes())
        _sync(made)
        made.replace(path)
    _sync(folder)
    return path


def _sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _declare(library: ctypes.CDLL) -> None:
    integer, long, real, number, address = (
        ctypes.c_int, ctypes.c_int64, ctypes.c_double, ctypes.c_float, ctypes.c_void_p,
    )  # fmt: skip
    library.eocube_group_norm.argtypes = [
        integer, *[address] * 4, *[long] * 4, real, integer, integer,
    ]  # fmt: skip
    library.eocube_softmax.argtypes = [integer, address, address, long, long, number, integer]
    library.eocube_interleave.argtypes = [integer, address, address, *[long] * 4, integer]
    library.eocube_place.argtypes = [
        integer, integer, address, address, *[long] * 7, *[address] * 9, integer,
    ]  # fmt: skip


def _call(function: object, *arguments: object) -> None:
    status = function(*arguments)  # type: ignore[operator]
    if status:
        raise ValueError("the kernels know float32 and bfloat16 tensors of uint8, uint16, int16 or float32 pixels")
