"""Training steps a second with patches streamed from shards, against the same steps on data already in memory.

    python -m benchmarks.loader [--steps 12] [--rounds 5] [--batch 8] [--patch 128] [--device cpu]

Makes TerraMesh shards on the spot (12 bands, 264 px, Blosc), trains the shipped network's architecture on them, and
prints one JSON object: the ratio of step rates, streamed over in memory, each pair timed back to back so that what
disturbs the machine disturbs both; the same ratio of the process's CPU seconds, which others' work hardly touches (on
a CPU, whose cores a step fills, it is what the ratio becomes when all is quiet); the rate of the loader by itself; and
how busy the machine was (`load_before`). The ratio of rates is to be believed on a quiet machine alone: run it there.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numcodecs
import numpy as np
import torch
import xarray as xr
from torch import nn

from benchmarks.machine import describe
from model.eo_vae import EOVAE
from model.losses import charbonnier
from model.training.sampler import Batch
from model.training.sensors import S2L2A, SENSORS
from model.training.sources.batching import PatchBatches
from model.training.sources.prefetch import Prefetch
from model.training.sources.terramesh import SIDE, TerraMesh
from model.weights import load_weights

SAMPLES, SHARDS = 48, 3


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="training steps a timing")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of timings")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=128, help="pixels a side")
    parser.add_argument("--depth", type=int, default=4, help="batches made ahead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    machine = describe(device)
    with tempfile.TemporaryDirectory() as folder:
        packed = make_shards(Path(folder))
        print(json.dumps(measure(asked, device, Path(folder)) | {"sample_bytes": packed, "machine": machine}, indent=1))


def make_shards(folder: Path) -> int:
    """Write the shards; mean bytes of a sample. Smooth scenes with noise of a few counts, so that they pack as real."""
    rng = np.random.default_rng(0)
    target, total = folder / "sample.zarr", 0
    (folder / "S2L2A").mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / "S2L2A" / f"bench_shard_{shard:06d}.tar", "w") as tar:
            for number in range(SAMPLES):
                relief = np.kron(rng.random((12, 33, 33)), np.ones((8, 8)))
                data = (S2L2A_LEVEL + 900 * relief + rng.normal(0, 12, (12, SIDE, SIDE))).astype(np.int16)
                payload = pack(data, target)
                total += len(payload)
                info = tarfile.TarInfo(f"bench_{shard * SAMPLES + number:07d}.zarr.zip")
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    return total // (SHARDS * SAMPLES)


S2L2A_LEVEL = np.array(S2L2A.mean, np.float32)[:, None, None] - 900


def pack(data: np.ndarray, target: Path) -> bytes:
    """One sample as TerraMesh packs it."""
    cube = xr.Dataset(
        {"bands": (("time", "band", "y", "x"), data[None]), "center_lon": ((), 11.0), "center_lat": ((), 48.0)},
        {"band": list(S2L2A.bands)},
    )
    encoding = {"bands": {"compressors": [numcodecs.Blosc()], "chunks": (1, *data.shape)}}
    cube.to_zarr(target, mode="w", zarr_format=2, consolidated=True, encoding=encoding)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(target.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(target).as_posix())
    return packed.getvalue()


def measure(asked: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, object]:
    """The ratio of each round, and the loader's own rate."""

    def source() -> PatchBatches:
        feed = TerraMesh.open(f"{folder}/S2L2A/*.tar", ["S2L2A"], buffer=64)
        return PatchBatches(feed, SENSORS)

    ready = source()
    held = [on(ready.draw(asked.batch, asked.patch), device) for _ in range(asked.depth)]
    step = trainer(device)
    streamed = Prefetch(source(), asked.depth, pin=device.type == "cuda")
    turns = {"memory": 0}

    def in_memory() -> None:
        turns["memory"] += 1
        step(held[turns["memory"] % len(held)])

    def from_shards() -> None:
        step(on(streamed.draw(asked.batch, asked.patch), device))

    for work in (in_memory, from_shards):
        spent(work, 3, device)
    pairs, processor = [], []
    for turn in range(asked.rounds):
        order = (in_memory, from_shards) if turn % 2 == 0 else (from_shards, in_memory)
        taken = {work: spent(work, asked.steps, device) for work in order}
        pairs.append((taken[in_memory][0], taken[from_shards][0]))
        processor.append((taken[in_memory][1], taken[from_shards][1]))
    streamed.close()
    alone, alone_busy = spent(lambda: ready.draw(asked.batch, asked.patch), asked.steps, torch.device("cpu"))
    return {
        "ratio": round(statistics.median(m / s for m, s in pairs), 3),
        "ratios": [round(m / s, 3) for m, s in pairs],
        "ratio_cpu_seconds": round(statistics.median(m / s for m, s in processor), 3),
        "ratios_cpu_seconds": [round(m / s, 3) for m, s in processor],
        "steps_per_second_in_memory": round(1 / min(m for m, _ in pairs), 3),
        "steps_per_second_streamed": round(1 / min(s for _, s in pairs), 3),
        "loader_alone_patches_per_second": round(asked.batch / alone, 1),
        "cpu_seconds_a_patch": {
            "loader": round(alone_busy / asked.batch, 4),
            "step": round(min(m for m, _ in processor) / asked.batch, 4),
        },
        "batch": asked.batch,
        "patch": asked.patch,
        "ahead": asked.depth,
    }


def trainer(device: torch.device) -> Callable[[Batch], None]:
    """One step of training the shipped architecture: forward, Charbonnier, backward, Adam."""
    vae: EOVAE = load_weights("nano").to(device).train().requires_grad_(True)
    optimiser = torch.optim.Adam(vae.parameters(), lr=1e-6)
    half = device.type == "cuda"

    def step(batch: Batch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            out = vae.reconstruct(batch.x, batch.wavelengths.to(device))
        loss = charbonnier(out.float(), batch.x)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()

    return step


def on(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device."""
    return Batch(batch.x.to(device, non_blocking=True), batch.sensor)


def spent(work: Callable[[], object], count: int, device: torch.device) -> tuple[float, float]:
    """Seconds a call, and seconds of CPU of all the process's threads."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(count):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / count, (time.process_time() - busy) / count


if __name__ == "__main__":
    main()
