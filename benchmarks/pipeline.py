"""The whole job on COGs of a disk or a server, through the real engine, against the encoder alone; where time goes."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.console import Console

from benchmarks import probe
from benchmarks.file_server import Served, serving
from benchmarks.forward import ENCODER, choose_device, count_flops, positive
from benchmarks.machine import describe
from benchmarks.pipeline_job import Asked, Ended, run_apart
from benchmarks.results import OURS, Report, Variant
from benchmarks.s3_server import Bucket, bucket
from benchmarks.scenes import COLLECTION
from benchmarks.shard_scenes import shard_scenes
from benchmarks.subjects import Asked as Measured
from benchmarks.subjects import Subject, subject
from eocube.errors import EocubeError, InputError
from eocube.plan.plan import Plan
from eocube.products import registry
from eocube.products.base import Models, models_of
from eocube.read.reader import WindowReader
from eocube.run.asked import Running, Selection, Showing
from eocube.run.job import encode_region
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from model.weights import save_weights

ALONE, UNITS = "encoder alone", f"{OURS}, first pixel read to last shard written"
SOURCES = ("local", "http", "s3")
READERS = 8
SIDES = {"nano": 10}
"""Windows a side of what is encoded at each date: a whole shard of the small network's, a quarter of others'."""
SIDE = 5


class Options(Measured, Protocol):
    """What of the command line decides a run of the job."""

    @property
    def precision(self) -> str | None: ...
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
    def jp2(self) -> bool: ...
    @property
    def stub(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Job:
    """One run of the whole job."""

    windows: int
    whole: float
    """Seconds from the command to its report: search, plan, actors, units, metadata."""
    units: float
    """Seconds from the first unit's start to the last unit's end."""
    busy: Mapping[str, float]
    """Thread-seconds by kind of work, waiting included."""
    worked: Mapping[str, float]
    """Processor seconds of the same threads."""
    processor: float
    """Processor seconds of the actors, whatever for, from their first unit's start to their last one's end."""
    locked: float | None = None
    """Seconds for which threads ran with the interpreter's lock; None where that was not measured."""
    requests: int | None = None
    """Of the server, catalogue included; None of local files."""
    bytes: int | None = None

    def each(self, seconds: float) -> float:
        """Milliseconds a window."""
        return 1000 * seconds / self.windows

    def stages(self) -> dict[str, dict[str, float]]:
        """Milliseconds a window: of processor by stage, the rest that is none of them, and of waiting for files."""
        used = {kind: self.each(seconds) for kind, seconds in self.worked.items()}
        used["rest"] = self.each(self.processor) - sum(used.values())
        waits = {kind: self.each(self.busy[kind] - self.worked[kind]) for kind in (probe.OPEN, probe.READ)}
        return {
            "processor_ms_per_window": {"whole": round(self.each(self.processor), 2)}
            | {kind: round(ms, 2) for kind, ms in used.items()},
            "fetch_ms_per_window": {kind: round(ms, 2) for kind, ms in waits.items()},
        } | ({} if self.locked is None else {"lock_ms_per_window": {"whole": round(self.each(self.locked), 3)}})


def measure(options: Options, console: Console) -> Report:
    """Run the job and the encoder alone in turn.

    Raises:
        InputError: an unknown model, device or precision.
        EocubeError: no window was encoded.
    """
    for value, flag in (
        (options.threads, "--threads"),
        (options.repeats, "--repeats"),
        (options.dates, "--dates"),
    ):
        positive(value, flag)
    if options.source not in SOURCES:
        raise InputError(f"--source is {', '.join(SOURCES[:-1])} or {SOURCES[-1]}, not {options.source}")
    device = choose_device(options.device)
    gpu = device.type == "cuda"
    what = subject(options.model)
    machine = describe(device)
    threads = options.threads or torch.get_num_threads()
    repeats = options.repeats or (1 if options.quick else 3)
    dates = options.dates or ((6 if options.quick else 24) if gpu else (2 if options.quick else 6))
    side = 10 if gpu else SIDES.get(what.name, SIDE)
    jobs: list[Job] = []
    alone: list[float] = []
    with contextlib.ExitStack() as open_:
        folder = Path(open_.enter_context(tempfile.TemporaryDirectory()))
        console.print(f"making scenes of {dates} dates")
        index, interval, box = shard_scenes(folder / "scenes", dates, side, options.block, jpeg2000=options.jp2)
        served: Served | None = None
        bucketed: Bucket | None = None
        there = str(index.parent)
        if options.source == "http":
            served = open_.enter_context(serving(index.parent, options.delay, options.rate))
            there = served.url
        elif options.source == "s3":
            bucketed = open_.enter_context(bucket(folder))
            bucketed.take(index.parent)
            there = bucketed.url
        given = {} if bucketed is None else bucketed.options
        weights = what.name if what.name == "nano" else str(saved_weights(what, folder / f"{what.name}.safetensors"))
        plan: Plan | None = None
        for turn in range(repeats):
            asked = Asked(
                f"{there}/{index.name}", box, interval, weights, str(folder / f"cube-{turn}.zarr"), options.precision,
                gpu, threads, given,
            )  # fmt: skip
            console.print(f"the whole job, {turn + 1} of {repeats}")
            jobs.append(local_job(asked, folder / "spans", served or bucketed, stub=options.stub))
            if options.stub:
                continue
            if plan is None:
                (text,) = CubeStore.stored_plans(asked.out)
                # The encoder alone reads no source: its windows come from the files themselves, whoever serves them.
                plan = Plan.from_json(text.replace(there, str(index.parent)))
                windows = _pixels(plan)
                encode = _encoder_alone(plan, weights, device.type, threads)
            console.print(f"the encoder alone, {turn + 1} of {repeats}")
            alone.append(len(windows) / encode(windows))
        server_alone = None if bucketed is None else bucketed.alone(COLLECTION)
    best = max(jobs, key=lambda job: job.windows / job.units)
    rate = best.windows / best.units
    whole = max(job.windows / job.whole for job in jobs)
    reference = max(alone) if alone else rate
    lanes = 1 if gpu else threads
    flops, dtype = count_flops(ENCODER, what) / 1e12, plan.product.precision if plan else "none"
    idle = max(0.0, 1 - best.busy[probe.ENCODE] / (lanes * best.units))

    def variant(name: str, found: float) -> Variant:
        done = None if options.stub else found * flops
        return Variant(name, device.type, dtype, found, found / reference, None, done, None)

    ours = (variant(UNITS, rate), variant(f"{OURS}, whole job with its start", whole))
    figures: dict[str, Any] = {"rates": [job.windows / job.units for job in jobs], **best.stages()}
    if best.requests is not None:
        figures["requests_per_window"] = best.requests / best.windows
    if best.bytes is not None:
        figures["kB_per_window"] = best.bytes / best.windows / 1e3
    if server_alone is not None:
        figures["server_alone_MB_per_s"] = server_alone
    if not options.stub:
        figures |= {"share_of_encoder": rate / reference, "device_idle_share": idle}
    return Report(
        "pipeline", {**machine, "threads": threads}, what.name, ALONE if alone else UNITS,
        ours if options.stub else (variant(ALONE, reference), *ours),
        {
            "windows": best.windows, "dates": dates, "repeats": repeats, "batch": 1 if not gpu else "see numerics",
            "numerics": dict(plan.numerics) if plan else {}, "source": options.source, "block": options.block,
            "files": "JPEG 2000" if options.jp2 else "COG", "stub": options.stub,
            **({"delay_ms": options.delay, "MB/s": options.rate} if served else {}),
            "thread_seconds": {kind: round(seconds, 2) for kind, seconds in best.busy.items()},
            "cpu_seconds": {kind: round(seconds, 2) for kind, seconds in best.worked.items()},
        },
        {},
        {**figures, "start_and_end_s": min(job.whole - job.units for job in jobs)},
    )  # fmt: skip


@contextlib.contextmanager
def private_ray(threads: int, log: Path, *, gpu: bool) -> Iterator[None]:
    """A private Ray of so many cores whose workers note what they do in `log`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    here = str(Path(__file__).resolve().parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    ray.init(
        address="local", num_cpus=threads, num_gpus=None if gpu else 0, include_dashboard=False, log_to_driver=False,
        logging_level=logging.ERROR, object_store_memory=128 * 2**20,
        runtime_env={
            "env_vars": {"PYTHONPATH": os.pathsep.join(paths), probe.LOG: str(log)},
            "worker_process_setup_hook": f"{probe.__name__}.{probe.install.__name__}",
        },
    )  # fmt: skip
    try:
        yield
    finally:
        ray.shutdown()


def saved_weights(what: Subject, path: Path) -> Path:
    """The subject's weights as a file that actors can load."""
    assert what.vae.meta is not None
    save_weights(what.vae, path, what.vae.meta)
    return path


def local_job(asked: Asked, log: Path, server: Served | Bucket | None, *, stub: bool) -> Job:
    """Run the job once, cold and in a process of its own, and say what that noted."""
    before = len(probe.units(log))
    asked_before = server.requests() if isinstance(server, Bucket) else 0
    if isinstance(server, Served):
        server.counts()
    ended = run_apart(asked, log, stub=stub)
    counts = server.counts() if isinstance(server, Served) else {}
    if isinstance(server, Bucket):
        counts = {"requests": server.requests() - asked_before}
    return _job(ended, probe.units(log)[before:], counts)


def whole_job(asked: Selection, running: Running, log: Path) -> Job:
    """Run the job once on the Ray that there is, and say what its actors noted."""
    before = len(probe.units(log))
    began = time.perf_counter()
    outcome = encode_region(asked, running, Showing(quiet=True))
    ended = Ended(outcome.counts.get(State.OK, 0), time.perf_counter() - began)
    return _job(ended, probe.units(log)[before:], {})


def _job(ended: Ended, noted: Sequence[probe.Noted], counts: Mapping[str, int]) -> Job:
    """EocubeError where nothing was encoded."""
    if not ended.windows:
        raise EocubeError("no window was encoded: run `python jobs/encode_region.py --demo` to see why")
    return Job(
        ended.windows, ended.whole, probe.elapsed(noted), {kind: probe.busy(noted, kind) for kind in probe.STAGES},
        {kind: probe.worked(noted, kind) for kind in probe.STAGES}, probe.processor(noted),
        probe.locked(noted), counts.get("requests"), counts.get("bytes"),
    )  # fmt: skip


def _pixels(plan: Plan) -> list[dict[int, torch.Tensor]]:
    """Every window that the job encodes, read into memory."""
    reader = WindowReader(plan.sensor, plan.grid.lattice)

    def read(unit_window: tuple[int, Any]) -> dict[int, torch.Tensor] | None:
        time_index, window = unit_window
        seen = plan.scenes_of(time_index, window)
        pixels = reader.read(seen, window) if seen else None
        if pixels is None or not pixels.valid.any():
            return None
        return {gsd: torch.from_numpy(np.ascontiguousarray(block)) for gsd, block in pixels.groups.items()}

    wanted = [(unit.time, w) for unit in plan.units() for w in plan.grid.windows_of_shard(*unit.shard)
              if plan.grid.requested(w)]  # fmt: skip
    with reader, ThreadPoolExecutor(READERS) as pool:
        return [groups for groups in pool.map(read, wanted) if groups is not None]


def _encoder_alone(
    plan: Plan, weights: str, device: str, threads: int
) -> Callable[[list[dict[int, torch.Tensor]]], float]:
    """Encoding windows that are in memory as an actor does it, latents back in memory; gives the seconds it took."""
    models: Models = models_of(registry.open(plan.product, device), device, plan.numerics)
    encoder = models.encoders[plan.product.precision]()
    probe.warm(encoder, plan, models)
    lanes = 1 if device == "cuda" else threads

    def one(batch: list[dict[int, torch.Tensor]]) -> None:
        stacked = {gsd: torch.stack([groups[gsd] for groups in batch]).to(device) for gsd in batch[0]}
        encoder(stacked).float().cpu()

    def run(windows: list[dict[int, torch.Tensor]]) -> float:
        batches = [windows[k : k + models.batch] for k in range(0, len(windows), models.batch)]
        batches[-1] += windows[: models.batch - len(batches[-1])]
        # As in `eocube.run.unit`: on a CPU a window is one thread's.
        single = (lambda: torch.set_num_threads(1)) if device == "cpu" else None
        with ThreadPoolExecutor(lanes, initializer=single) as pool:
            list(pool.map(one, batches[:lanes]))  # each thread's first call sets up what it keeps
            began = time.perf_counter()
            list(pool.map(one, batches))
            return time.perf_counter() - began

    return run
