"""The whole job against what people do today, in turns: each a cold process, from the same scenes to an open cube."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import psutil
import torch
import xarray as xr
from rich.console import Console

from benchmarks.file_server import Served, serving
from benchmarks.forward import positive
from benchmarks.machine import describe
from benchmarks.pipeline import SIDE, SIDES, saved_weights
from benchmarks.results import OURS, BadInputError, Report, Variant
from benchmarks.scenes import COLLECTION
from benchmarks.shard_scenes import shard_scenes
from benchmarks.subjects import Asked, subject
from benchmarks.usual_way import Work
from eocube.ground.boxes import parse_bbox, parse_interval
from eocube.plan.plan import Plan
from eocube.run.asked import Running, Selection
from eocube.run.request import Request, make_plans, product_of
from eocube.store.receipts import State

USUAL = "odc-stac, dask, eager network, to_zarr"
WHOLE = f"{OURS}, whole job"
SOURCES = ("local", "http")
TICK = 0.05
"""Seconds between two looks at a process's memory."""
TOLERANCE = {"fp32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
"""Relative L2 distance that the latents of both may have, by the precision of ours: the usual way's 20 and 60 m bands
are rounded to whole numbers as they are warped, and both are stored as fp16."""


class Options(Asked, Protocol):
    """What of the command line decides a race."""

    @property
    def dates(self) -> int | None: ...
    @property
    def source(self) -> str: ...
    @property
    def delay(self) -> float: ...
    @property
    def rate(self) -> float: ...
    @property
    def block(self) -> int: ...
    @property
    def catalog(self) -> str | None: ...
    @property
    def bbox(self) -> tuple[float, ...]: ...
    @property
    def datetime(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Ground:
    """What both encode."""

    catalog: str
    interval: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Lap:
    """One run of one side."""

    seconds: float
    """From its process's start to its end."""
    processor: float
    """Processor seconds of its processes."""
    memory: int
    """Greatest resident bytes of its processes together."""
    requests: int | None
    bytes: int | None


def measure(options: Options, console: Console) -> Report:
    """Run both in turn, the other one first each time, and compare what they leave.

    Raises:
        BadInputError: an unknown model or source; ground of several zones, or half of a catalogue's description.
        InputError: what is asked for cannot be planned.
    """
    for value, flag in ((options.threads, "--threads"), (options.repeats, "--repeats"), (options.dates, "--dates")):
        positive(value, flag)
    if options.source not in SOURCES:
        raise BadInputError(f"--source is {' or '.join(SOURCES)}, not {options.source}")
    if options.catalog is not None and not (len(options.bbox) == 4 and options.datetime):
        raise BadInputError("--catalog needs --bbox W S E N and --datetime A/B of what to encode")
    what, machine = subject(options.model), describe(torch.device("cpu"))
    threads = options.threads or len(os.sched_getaffinity(0))
    repeats, dates = options.repeats or 3, options.dates or 4
    side = SIDE if options.quick else SIDES.get(what.name, SIDE)
    laps: dict[str, list[Lap]] = {USUAL: [], WHOLE: []}
    with contextlib.ExitStack() as open_:
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory()))
        served: Served | None = None
        if options.catalog is not None:
            west, south, east, north = options.bbox
            ground = Ground(options.catalog, str(options.datetime), (west, south, east, north))
        else:
            console.print(f"making scenes of {dates} dates")
            index, interval, box = shard_scenes(folder / "scenes", dates, side, options.block)
            if options.source == "http":
                served = open_.enter_context(serving(index.parent, options.delay, options.rate))
            ground = Ground(f"{served.url}/{index.name}" if served else str(index), interval, box)
        weights = what.name if what.name == "nano" else str(saved_weights(what, folder / f"{what.name}.safetensors"))
        plan = _plan(ground, weights)
        sides = {USUAL: _usual(plan, ground, weights, threads), WHOLE: _ours(ground, weights)}
        for turn in range(repeats):
            for name in sorted(sides, reverse=bool(turn % 2)):
                console.print(f"{name}, {turn + 1} of {repeats}")
                laps[name].append(_lap(sides[name], folder / f"{name[:4]}-{turn}.zarr", threads, served))
        usual, ours = (_latents(folder / f"{name[:4]}-{repeats - 1}.zarr") for name in (USUAL, WHOLE))
        windows, error = compared(usual, ours, plan)
    precision = plan.product.precision

    def variant(name: str, dtype: str, off: float | None) -> Variant:
        own = laps[name]
        seconds = statistics.median(lap.seconds for lap in own)
        usual = statistics.median(lap.seconds for lap in laps[USUAL])
        return Variant(
            name, "cpu", dtype, windows / seconds, usual / seconds, off, None,
            statistics.median(lap.memory for lap in own) / 1e9, _figures(own), limit=TOLERANCE[precision],
        )  # fmt: skip

    return Report(
        "race", {**machine, "threads": threads}, what.name, USUAL,
        (variant(USUAL, "fp32", None), variant(WHOLE, precision, error)),
        {"windows": windows, "dates": len(plan.times), "repeats": repeats, "source": options.source,
         "block": options.block, "tolerance": TOLERANCE[precision],
         **({"delay_ms": options.delay, "MB/s": options.rate} if served else {})},
        {},
        {"load_after": round(os.getloadavg()[0], 1),
         "wall_ratios": [a.seconds / b.seconds for a, b in zip(laps[USUAL], laps[WHOLE], strict=True)],
         "processor_ratios": [a.processor / b.processor for a, b in zip(laps[USUAL], laps[WHOLE], strict=True)],
         "memory_share": statistics.median(b.memory / a.memory for a, b in zip(laps[USUAL], laps[WHOLE], strict=True))},
    )  # fmt: skip


def _figures(laps: Sequence[Lap]) -> dict[str, Any]:
    """Medians, and the spread of what the machine's other work moves."""
    seconds = [lap.seconds for lap in laps]
    found: dict[str, Any] = {
        "wall_s": statistics.median(seconds), "fastest_s": min(seconds), "slowest_s": max(seconds),
        "cpu_s": statistics.median(lap.processor for lap in laps),
    }  # fmt: skip
    requests, taken = [lap.requests for lap in laps], [lap.bytes for lap in laps]
    if None not in requests and None not in taken:
        found |= {
            "requests": statistics.median(filter(None, requests)),
            "MB": statistics.median(filter(None, taken)) / 1e6,
        }
    return found


def _plan(ground: Ground, weights: str) -> Plan:
    """What eocube will do: where its windows lie, and in which precision."""
    asked = Selection(boxes=parse_bbox(*ground.box), interval=parse_interval(ground.interval), catalog=ground.catalog,
                      weights=weights, storage="fp16")  # fmt: skip
    request = Request.parse(asked, Running(allow_local_sources=True), on_gpu=False, writes=False)
    plans = make_plans(request, product_of(request), None)
    if len(plans) > 1:
        raise BadInputError(f"--bbox lies in {len(plans)} UTM zones: race over one")
    return plans[0]


def _usual(plan: Plan, ground: Ground, weights: str, threads: int) -> list[str]:
    """The command of the usual way, `{out}` in the place of its store."""
    lattice, cores = plan.grid.lattice, plan.grid.cores
    side = lattice.core_px * lattice.metres
    first, last = parse_interval(ground.interval)
    work = Work(
        ground.catalog, COLLECTION, (first.isoformat(), last.isoformat()), weights, "{out}", lattice.epsg,
        float(cores.col0 * side), float(-cores.row0 * side), cores.row1 - cores.row0, cores.col1 - cores.col0,
        lattice.core_px, lattice.halo_px, lattice.metres, threads=threads,
    )  # fmt: skip
    return [sys.executable, "-m", "benchmarks.usual_way", json.dumps(asdict(work))]


def _ours(ground: Ground, weights: str) -> list[str]:
    job = Path(__file__).resolve().parents[1] / "jobs" / "encode_region.py"
    return [
        sys.executable, str(job), "--catalog", ground.catalog, "--bbox", *map(str, ground.box),
        "--datetime", ground.interval, "--weights", weights, "--storage", "fp16", "--out", "{out}", "--quiet",
    ]  # fmt: skip


def _lap(command: Sequence[str], out: Path, threads: int, served: Served | None) -> Lap:
    """Run one side in a fresh process. BadInputError with its last line where it fails."""
    here = str(Path(__file__).resolve().parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads)}
    if served is not None:
        served.counts()
    before, began = os.times(), time.perf_counter()
    filled = [word.replace("{out}", str(out)) for word in command]
    with subprocess.Popen(filled, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        peak = _Peak(process.pid)
        _, said = process.communicate()
        seconds = time.perf_counter() - began
        memory = peak.end()
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise BadInputError(f"{filled[1]} ended with {process.returncode}: {lines[-1] if lines else 'nothing said'}")
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    counts: Mapping[str, int] = served.counts() if served is not None else {}
    return Lap(seconds, used, memory, counts.get("requests"), counts.get("bytes"))


class _Peak:
    """Looks at a process and its children every now and then."""

    def __init__(self, pid: int) -> None:
        self._process, self._most, self._over = psutil.Process(pid), 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(TICK):
            with contextlib.suppress(psutil.Error):
                tree = [self._process, *self._process.children(recursive=True)]
                self._most = max(self._most, sum(_resident(p) for p in tree))

    def end(self) -> int:
        """The greatest sum seen, bytes."""
        self._over.set()
        self._thread.join()
        return self._most


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _latents(store: Path) -> xr.Dataset:
    """A cube as plain xarray opens it, in memory."""
    cube: xr.Dataset = xr.open_zarr(store)
    return cube.load()


def compared(usual: xr.Dataset, ours: xr.Dataset, plan: Plan) -> tuple[int, float]:
    """Windows that both have, and the relative L2 distance of their latents over those with a pixel everywhere.

    Raises:
        BadInputError: other dates than each other's, or no window to compare.
    """
    order = np.argsort(ours.time.values)
    theirs, mine = (np.unique(ds.time.values.astype("datetime64[D]")) for ds in (usual, ours))
    if not np.array_equal(theirs, mine):
        raise BadInputError(f"the usual way has dates {theirs}, eocube {mine}: the race is not about the same scenes")
    core = plan.grid.lattice.core
    ours = ours.isel(time=order)
    status, valid = ours.status.values, ours.valid_percent.values
    windows, squares, difference = 0, 0.0, 0.0
    left, top = float(usual.x[0]), float(usual.y[0])
    a: npt.NDArray[Any] = usual.latent.sortby("time").values
    row0, col0 = (round(v / plan.grid.lattice.cell) for v in (float(ours.y[0]) - top, left - float(ours.x[0])))
    for step, row, col in zip(*np.nonzero(status == State.OK), strict=True):
        windows += 1
        y, x = row * core - row0, col * core - col0
        if valid[step, row, col] < 100:
            continue
        b = ours.latent.values[step, :, row * core : (row + 1) * core, col * core : (col + 1) * core].astype(np.float32)
        other = a[step, :, y : y + core, x : x + core].astype(np.float32)
        squares += float((other**2).sum())
        difference += float(((other - b) ** 2).sum())
    if not squares:
        raise BadInputError("no window without a gap: nothing tells whether both made the same")
    return windows, (difference / squares) ** 0.5
