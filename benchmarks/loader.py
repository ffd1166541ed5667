"""Training steps a second with patches streamed from shards, against the same steps on data already in memory.

    python -m benchmarks.loader [--steps 24] [--rounds 5] [--batch 8] [--patch 128] [--threads 2] [--device cpu]

Makes TerraMesh shards on the spot (12 bands, 264 px, Blosc) and finetunes `nano` on them by the recipe `adapt` in the
loop that `jobs/finetune.py` runs, once with the batches made beforehand and once with the very same batches streamed,
as the job streams them; each pair back to back, so that what disturbs the machine disturbs both, in turns of order.
Nothing is read ahead before a run begins or while the other one is timed, and its first steps are not counted: as many
batches are made in the time that counts as are used.

Prints one JSON object: the ratio of step rates, streamed over in memory; the same ratio of the process's CPU seconds,
which others' work hardly touches (on a CPU, whose cores a step fills, it is what the ratio becomes when all is quiet);
the largest difference between the two runs' weights, 0 where they took the same steps; the loader's rate by itself; and
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import torch
import xarray as xr

from benchmarks.machine import describe
from model.eo_vae import EOVAE
from model.sensors import S2L2A, SENSORS
from model.training.batch import Batch
from model.training.distributed import Team
from model.training.eo_vae.recipe import EOVAERecipe
from model.training.eo_vae.task import EOVAETask
from model.training.loop import Loop
from model.training.sources.batching import PatchBatches
from model.training.sources.patch import BatchSource
from model.training.sources.prefetch import Prefetch
from model.training.sources.terramesh import SIDE, TerraMesh
from model.weights import load_weights

SAMPLES, SHARDS, BUFFER = 48, 3, 64


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24, help="training steps a timing")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of timings")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=128, help="pixels a side")
    parser.add_argument("--depth", type=int, default=4, help="batches made ahead")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads (default: its own)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
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


@dataclass(slots=True)
class Held:
    """Batches that lie in memory, one after the other."""

    batches: Sequence[Batch]
    _next: int = field(init=False, default=0)

    def draw(self, batch_size: int, patch: int) -> Batch:
        """The next one: it has this size."""
        self._next += 1
        return self.batches[self._next - 1]

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """All of them."""
        return len(self.batches)

    def state_dict(self) -> dict[str, Any]:
        """Which is next."""
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        self._next = int(state["next"])


@dataclass(slots=True)
class Timed:
    """A source that notes (seconds, CPU seconds of all the process's threads) whenever a batch is asked for."""

    source: BatchSource
    device: torch.device
    marks: list[tuple[float, float]] = field(default_factory=list)

    def draw(self, batch_size: int, patch: int) -> Batch:
        """The source's."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.marks.append((time.perf_counter(), time.process_time()))
        return self.source.draw(batch_size, patch)

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """The source's."""
        return self.source.steps_per_epoch(batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The source's."""
        return self.source.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The source's."""
        self.source.load_state_dict(state)


def train(source: BatchSource, recipe: EOVAERecipe, device: torch.device, warm: int) -> tuple[float, float, EOVAE]:
    """Seconds and CPU seconds a step after the first `warm`, and the network that the run came to."""
    timed = Timed(source, device)
    vae = load_weights("nano").requires_grad_(True)
    Loop(EOVAETask(vae, recipe), recipe, timed, Team(device=device)).run()
    (began, busy), (ended, done) = timed.marks[warm], timed.marks[-1]
    steps = len(timed.marks) - 1 - warm
    return (ended - began) / steps, (done - busy) / steps, vae


def measure(asked: argparse.Namespace, device: torch.device, folder: Path) -> dict[str, object]:
    """The ratio of each round, and the loader's own rate."""
    warm = asked.depth + 1
    recipe = EOVAERecipe.load("adapt")
    stage = replace(recipe.stages[0], steps=warm + asked.steps + 1, batch=asked.batch, patch=asked.patch)
    recipe = replace(recipe, stages=(stage,), evaluate_minutes=float("inf"))
    pin = device.type == "cuda"

    def source() -> PatchBatches:
        feed = TerraMesh.open(f"{folder}/S2L2A/*.tar", ["S2L2A"], buffer=BUFFER)
        return PatchBatches(feed, SENSORS, turns="batch")

    ready = source()
    held = [ready.draw(asked.batch, asked.patch) for _ in range(stage.steps or 0)]
    if pin:
        held = [replace(batch, x=batch.x.pin_memory()) for batch in held]
    began, busy = time.perf_counter(), time.process_time()
    for _ in range(asked.steps):
        ready.draw(asked.batch, asked.patch)
    alone, alone_busy = time.perf_counter() - began, time.process_time() - busy

    def in_memory() -> tuple[float, float, EOVAE]:
        return train(Held(held), recipe, device, warm)

    def from_shards() -> tuple[float, float, EOVAE]:
        streamed = Prefetch(source(), asked.depth, pin=pin)
        try:
            return train(streamed, recipe, device, warm)
        finally:
            streamed.close()

    train(Held(held), replace(recipe, stages=(replace(stage, steps=warm + 2),)), device, warm)  # libraries' first calls
    pairs, processor, apart = [], [], 0.0
    for turn in range(asked.rounds):
        order = (in_memory, from_shards) if turn % 2 == 0 else (from_shards, in_memory)
        taken = {work: work() for work in order}
        memory, shards = taken[in_memory], taken[from_shards]
        pairs.append((memory[0], shards[0]))
        processor.append((memory[1], shards[1]))
        apart = max(apart, difference(memory[2], shards[2]))
    return {
        "ratio": round(statistics.median(m / s for m, s in pairs), 3),
        "ratios": [round(m / s, 3) for m, s in pairs],
        "ratio_cpu_seconds": round(statistics.median(m / s for m, s in processor), 3),
        "ratios_cpu_seconds": [round(m / s, 3) for m, s in processor],
        "weights_apart": apart,
        "steps_per_second_in_memory": round(1 / min(m for m, _ in pairs), 3),
        "steps_per_second_streamed": round(1 / min(s for _, s in pairs), 3),
        "loader_alone_patches_per_second": round(asked.steps * asked.batch / alone, 1),
        "cpu_seconds_a_patch": {
            "loader": round(alone_busy / asked.steps / asked.batch, 4),
            "step": round(min(m for m, _ in processor) / asked.batch, 4),
        },
        "batch": asked.batch,
        "patch": asked.patch,
        "ahead": asked.depth,
        "precision": recipe.precision,
    }


def difference(one: EOVAE, other: EOVAE) -> float:
    """The largest difference between two networks' parameters."""
    return max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


if __name__ == "__main__":
    main()
