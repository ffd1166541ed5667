"""Asks what the machine's chip is good at: which precision a CPU is fastest in."""

from __future__ import annotations

from pathlib import Path

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


def fastest_cpu_dtype(flags: frozenset[str] | None = None) -> torch.dtype:
    """bfloat16 where the CPU multiplies it in hardware, else float32.

    Torch and oneDNN report bfloat16 as supported wherever there is AVX512; where it is emulated it takes twice as long
    as float32. So the CPU's own flags decide.
    """
    return torch.bfloat16 if BF16_FLAGS & (cpu_flags() if flags is None else flags) else torch.float32
