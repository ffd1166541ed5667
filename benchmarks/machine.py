"""The machine a benchmark ran on, in words that name neither host nor path, and where its torch can compile."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

import torch

from model.chip import cpu_flags, fastest_cpu_dtype

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
"""Flags of a CPU that decide how fast convolutions can be."""


def _cpu_model() -> str:
    """The CPU's name, from the kernel where it tells."""
    plain = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return plain
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), plain)


def has_native_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself, by its flags: oneDNN's own report says yes where it only emulates."""
    return fastest_cpu_dtype() is torch.bfloat16


def has_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in ((named,) if named else ("g++", "clang++", "c++")))


def describe(device: torch.device) -> dict[str, object]:
    """The machine: CPU, flags of interest, cores, threads, load, GPU or None, versions."""
    flags = cpu_flags()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": cores,
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
