"""Asks what the machine's chips are good at, without torch, which takes a second or more to import."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""CPU flags, as Linux spells them, of which one means multiplication of bfloat16 in hardware."""


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of the first processor that Linux lists; empty where it lists none (other systems, ARM)."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def multiplies_bf16(flags: frozenset[str] | None = None) -> bool:
    """Whether the CPU multiplies bfloat16 in hardware.

    Torch and oneDNN report bfloat16 as supported wherever there is AVX512; where it is emulated it takes twice as long
    as float32. So the CPU's own flags decide.
    """
    return bool(BF16_FLAGS & (cpu_flags() if flags is None else flags))


def fastest_cpu_dtype(flags: frozenset[str] | None = None) -> torch.dtype:
    """bfloat16 where the CPU multiplies it in hardware, else float32."""
    import torch

    return torch.bfloat16 if multiplies_bf16(flags) else torch.float32


def may_have_gpu() -> bool:
    """Whether torch could see a GPU: False where the driver's library is not there, which torch would need."""
    if sys.platform != "linux" or Path("/dev/kfd").exists():  # AMD's, which has no library of a fixed name
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True
