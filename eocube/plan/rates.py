"""Tells how many windows a second a machine does: from recorded benchmarks, or measured on windows of the plan."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from eocube.errors import InputError, SourceError
from eocube.net.trust import here
from eocube.plan.plan import Plan
from eocube.read.reader import WindowPixels, WindowReader

RECORDED = Path(__file__).parent / "recorded"
"""Benchmarks that ship with the package: those of whole jobs under `benchmarks/`, copied by its `readme_table.py`."""
_WEIGHTS = {"published": ("eo-vae",), "nano": ("nano", "nano2")}
"""What a benchmark calls a model -> what weights of its sizes, which take as long, call themselves."""
_DTYPES = {"fp32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "float16": "fp16"}
_NOT_OURS = ("eager", "published", "autocast", "torch.compile", "reference", "encoder alone", "its start")


@dataclass(frozen=True, slots=True)
class Rate:
    """Windows a second of one device (or one machine's CPU), and in words where the figure comes from."""

    windows_per_s: float
    source: str


def machine_name(device: str) -> str:
    """What the rate depends on: the GPU's name, or the CPU's."""
    if device == "cuda":
        import torch

        return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else "a GPU"
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def recorded(plan: Plan, device: str, path: str | None = None) -> Rate | None:
    """The recorded rate of the plan's model on a device; None where nothing fits.

    Args:
        plan: names model and precision.
        device: "cpu" or "cuda".
        path: a benchmark's JSON to take; None takes those that ship with the package.

    Of several, one of the same machine, of the whole pipeline rather than the encoder alone, over sources as near as
    the plan's, and the fastest. What differs is said with it.

    Raises:
        InputError: `path` cannot be read or is no benchmark.
    """
    machine_here = machine_name(device)
    remote = any(not here(source.href) for scene in plan.scenes for source in scene.sources)
    found: list[tuple[bool, bool, bool, float, str]] = []
    for file in [Path(path)] if path is not None else sorted(RECORDED.glob("*.json")):
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            model, machine, variants = document["model"], document["machine"], document["variants"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: no benchmark that jobs/benchmark.py wrote ({error})") from error
        if document.get("benchmark", "encoder") not in ("encoder", "pipeline"):
            continue
        far = document.get("settings", {}).get("source") == "http"
        if plan.product.network not in _WEIGHTS.get(model, (model,)):
            continue
        on = str(machine.get("gpu") if device == "cuda" else machine.get("cpu"))
        for variant in variants:
            name, rate = str(variant["name"]), variant.get("windows_per_s")
            kind, dtype = str(variant["device"]).split(":")[0], _DTYPES.get(str(variant["dtype"]).split(".")[-1])
            if kind != device or dtype != plan.product.precision or not rate or any(w in name for w in _NOT_OURS):
                continue
            whole = "pipeline" in name or "share_of_encoder" in document
            found.append((on == machine_here, whole, not whole or far == remote, float(rate), on))
    if path is not None and not found:
        raise InputError(
            f"{path} has no figure for {plan.product.network} in {plan.product.precision} on {device}: "
            "measure with --calibrate 16"
        )
    if not found:
        return None
    same, whole, alike, rate, on = max(found)
    what = "whole job" if whole else "encoder alone"
    if not alike:
        what += f", its sources {'on a disk' if remote else 'far away'}"
    return Rate(rate, f"recorded on {on}, {what}" + ("" if same else "; not this machine: --calibrate 16 measures it"))


def calibrate(
    plan: Plan,
    device: str,
    count: int,
    storage_options: Mapping[str, Any] | None = None,
) -> Rate:
    """Read and encode `count` windows of the plan here, and time them; nothing is written.

    InputError when no window can be read.
    """
    import torch

    from eocube.products import registry
    from eocube.products.base import models_of

    codec = registry.open(plan.product, device)
    numerics = plan.numerics or registry.kind(plan.product.kind).numerics(plan.product, device)
    models = models_of(codec, device, numerics)
    encoder = next(iter(models.encoders.values()))()
    threads = 1 if device == "cuda" else len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    places = ((t, w) for t in range(len(plan.times)) for w in plan.grid.requested_windows() if plan.scenes_of(t, w))
    chosen = list(islice(places, count))
    with WindowReader(plan.sensor, plan.grid.lattice, storage_options=storage_options) as reader:

        def encode(batch: Sequence[WindowPixels]) -> None:
            groups = {}
            for sampling, first in batch[0].groups.items():
                stacked = np.zeros((models.batch, *first.shape), dtype=first.dtype)
                for place, pixels in enumerate(batch):
                    stacked[place] = pixels.groups[sampling]
                groups[sampling] = torch.from_numpy(stacked).to(device)
            encoder(groups).float().cpu()

        def one(places: Sequence[tuple[int, Any]]) -> int:
            read = []
            for t, window in places:
                try:
                    pixels = reader.read(plan.scenes_of(t, window), window)
                except SourceError:
                    continue
                if pixels.valid.any():
                    read.append(pixels)
            if read:
                encode(read)
            return len(read)

        with ThreadPoolExecutor(threads, initializer=_one_thread if device == "cpu" else None) as pool:
            list(pool.map(one, [chosen[:1]] * threads))  # the first forward pass of each thread is no measure
            batches = [chosen[k : k + models.batch] for k in range(0, len(chosen), models.batch)]
            started = time.perf_counter()
            done = sum(pool.map(one, batches))
            seconds = time.perf_counter() - started
    if not done:
        raise InputError("no window could be read to calibrate with: leave --calibrate out, or look at the sources")
    return Rate(done / seconds, f"measured on {done} windows on {machine_name(device)}")


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # as the engine does on a CPU: a window a thread
