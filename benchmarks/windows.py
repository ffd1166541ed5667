"""Times training from a cube's stored values against the same training from memory, pair by pair.

Both trainings see the same patches in the same order; the networks they come to must be equal.

    python -m benchmarks.windows --json benchmarks/windows-cpu.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.machine import describe
from benchmarks.storage import demo_cube, full_shard
from benchmarks.subjects import subject
from eocube.cube.window_stream import WindowBatches, WindowStream
from eocube.cube.windows import CubeWindows
from eocube.ground.lattice import ShardPlace
from eocube.net.objects import Objects
from eocube.plan.plan import Plan, TimeStep
from eocube.store.receipts import Receipt, State, WindowResult
from eocube.store.store import CubeStore

WIDTH, LAYERS = 160, 4
DATES = 8


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24, help="training steps a timing")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of timings")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--side", type=int, default=24, help="cells a side of a patch")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads (default: its own)")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    asked = parser.parse_args()
    if asked.threads is not None:
        torch.set_num_threads(asked.threads)
    machine = describe(torch.device("cpu"))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(asked, make_cube(Path(folder)))
    text = json.dumps({**found, "machine": machine}, indent=1)
    print(text)
    if asked.json is not None:
        asked.json.write_text(text + "\n")


def make_cube(folder: Path) -> str:
    """A cube of whole default shards at `DATES` times, of the demo's own latents, so that they pack as real ones."""
    plan, url = demo_cube(subject("nano"), folder, "cpu", torch.get_num_threads(), quick=True)
    block = full_shard(plan, url)
    last = plan.times[-1]
    times = tuple(
        TimeStep(f"2021-01-{day + 1:02d}T10:00:00Z", last.platform, f"copy-{day}", last.scene_ids)
        for day in range(DATES)
    )
    copies: Plan = replace(plan, times=times)
    there = str(folder / "whole.zarr")
    store = CubeStore.create(there, copies)
    cores = plan.grid.lattice.cores_per_shard
    row, col = min(plan.grid.shards())
    for day in range(DATES):
        # the same latents, each date's shifted by whole cells: no two objects have the same bytes
        _, sha256 = store.write_shard(day, row, col, torch.roll(torch.from_numpy(block), day + 1, dims=2).numpy())
        windows = tuple(
            WindowResult(row * cores + i, col * cores + j, State.OK, valid_percent=100)
            for i in range(cores)
            for j in range(cores)
        )
        store.commit([Receipt(f"{day}-{row}-{col}", day, ShardPlace(row, col), windows, sha256=sha256)])
    return there


def network(channels: int) -> nn.Module:
    """A denoiser of about a million parameters."""
    torch.manual_seed(0)
    inner = [m for _ in range(LAYERS) for m in (nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU())]
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1), nn.SiLU(), *inner, nn.Conv2d(WIDTH, channels, 3, padding=1)
    )


def train(batches: Iterable[Tensor], channels: int, warm: int, steps: int) -> tuple[float, float, nn.Module]:
    """Seconds and CPU seconds a step after the first `warm`, and the network that it came to."""
    net = network(channels)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-4)
    generator = torch.Generator().manual_seed(1)
    began = busy = 0.0
    for number, z in enumerate(batches):
        if number == warm:
            began, busy = time.perf_counter(), time.process_time()
        if number == warm + steps:
            break
        noise = torch.randn(z.shape, generator=generator)
        loss = (net(z + 0.1 * noise) - z).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return (time.perf_counter() - began) / steps, (time.process_time() - busy) / steps, net


def measure(asked: argparse.Namespace, url: str) -> dict[str, object]:
    """The ratio of each round; objects asked for and memory in a pass of their own."""
    windows = CubeWindows(url, side=asked.side)
    warm = 4

    def stream() -> WindowStream:
        return WindowStream(windows, open_units=4)

    def streamed() -> tuple[float, float, nn.Module]:
        batches = WindowBatches(stream(), asked.batch)
        try:
            return train((torch.from_numpy(b.values) for b in batches), windows.channels, warm, asked.steps)
        finally:
            batches.close()

    held = []
    batches = WindowBatches(stream(), asked.batch)
    for _ in range(warm + asked.steps + 1):
        held.append(torch.from_numpy(next(batches).values))
    batches.close()

    def in_memory() -> tuple[float, float, nn.Module]:
        return train(held, windows.channels, warm, asked.steps)

    in_memory()  # libraries' first calls
    pairs, processor, apart = [], [], 0.0
    for turn in range(asked.rounds):
        order = (in_memory, streamed) if turn % 2 == 0 else (streamed, in_memory)
        taken = {work: work() for work in order}
        memory, cube = taken[in_memory], taken[streamed]
        pairs.append((memory[0], cube[0]))
        processor.append((memory[1], cube[1]))
        both = zip(memory[2].parameters(), cube[2].parameters(), strict=True)
        apart = max(apart, *(float((a - b).detach().abs().max()) for a, b in both))
    return {
        "ratio": round(statistics.median(m / s for m, s in pairs), 3),
        "ratios": [round(m / s, 3) for m, s in pairs],
        "ratio_cpu_seconds": round(statistics.median(m / s for m, s in processor), 3),
        "weights_apart": apart,
        "parameters": sum(p.numel() for p in network(windows.channels).parameters()),
        "steps_per_second_in_memory": round(1 / min(m for m, _ in pairs), 3),
        "steps_per_second_streamed": round(1 / min(s for _, s in pairs), 3),
        **alone(windows),
        "batch": asked.batch,
        "side": asked.side,
        "patches_an_epoch": len(windows),
    }


def alone(windows: CubeWindows) -> dict[str, object]:
    """One epoch without a network: its rate, what it asks for, and its memory against the stated bound."""
    stream = WindowStream(windows, open_units=4, epochs=1)
    began, busy = time.perf_counter(), time.process_time()
    patches = sum(1 for _ in stream)
    seconds, processor = time.perf_counter() - began, time.process_time() - busy
    asked: Counter[str] = Counter()
    get = Objects.get

    def counted(self: Objects, key: str) -> bytes | None:
        asked[key] += 1
        return get(self, key)

    stream = WindowStream(windows, open_units=4, epochs=1)
    tracemalloc.start()
    with mock.patch.object(Objects, "get", counted):
        for _ in stream:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "loader_alone_patches_per_second": round(patches / seconds, 1),
        "loader_cpu_seconds_a_patch": round(processor / patches, 5),
        "objects": len(asked),
        "most_requests_of_an_object": max(asked.values()),
        "peak_bytes": peak,
        "bound_bytes": stream.memory_bytes,
    }


if __name__ == "__main__":
    main()
