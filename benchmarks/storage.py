"""The store: shards written and read, locally and over S3's wire, and a stored cube decoded, against the plain ways."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
import zarr
from rich.console import Console
from threadpoolctl import ThreadpoolController

import eocube
from benchmarks.forward import choose_device, positive, relative_error
from benchmarks.machine import describe, has_native_bf16
from benchmarks.results import OURS, Report, Variant
from benchmarks.s3_server import Bucket, bucket, missing
from benchmarks.scenes import scenes
from benchmarks.subjects import Asked, Subject, subject
from benchmarks.timing import Timed, interleave
from eocube.demo.catalogue import DEMO_BBOX
from eocube.errors import EocubeError, StoreError
from eocube.ground.boxes import parse_bbox, parse_interval
from eocube.plan.plan import Plan
from eocube.products import decoder_cache as decoders
from eocube.products import registry
from eocube.products.base import models_of
from eocube.run.asked import Running, Selection
from eocube.run.options import Limits
from eocube.run.request import Request, make_plans, product_of
from eocube.run.unit import UnitRunner
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from model.pixels import PixelPipeline
from model.weights import load_weights, save_weights

Block = npt.NDArray[Any]
WRITE_BASE, READ_BASE, DECODE_BASE = "zarr-python, write", "zarr-python, read", "unfused decode"
SHARDS = 4
"""Shards that a round writes, one a date."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where shards go: a local folder or a bucket of a server that counts its requests."""

    name: str
    url: str
    options: Mapping[str, Any] | None = None
    server: Bucket | None = None

    def requests(self) -> int | None:
        """Requests for shards so far, of any kind, by the server's own log; None for a folder."""
        return None if self.server is None else self.server.requests("latent(?:/|%2F)c")


def measure(options: Asked, console: Console) -> Report:
    """Make a cube of the demo scenes, write its shards again and again, and decode it in both ways.

    Raises:
        InputError: an unknown model or device.
        StoreError: the S3 server that is installed does not start.
    """
    positive(options.threads, "--threads")
    positive(options.repeats, "--repeats")
    device = choose_device(options.device)
    what = subject(options.model)
    machine = describe(device)
    threads = options.threads or torch.get_num_threads()
    repeats = options.repeats or (2 if options.quick else 5)
    not_run: dict[str, str] = {}
    variants: list[Variant] = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        console.print("encoding a cube to work with")
        plan, url = demo_cube(what, folder, device.type, threads, quick=options.quick)
        places = [_Place("local folder", str(folder))]
        if why := missing():
            not_run["S3"] = why
        else:
            there = stack.enter_context(bucket(folder))
            places.append(_Place("S3 wire", there.url, there.options, there))
        for place in places:
            console.print(f"shards: {place.name}")
            variants += _shards(plan, url, place, repeats)
        console.print("decoding")
        variants += _decoding(plan, url, device, threads, repeats)
    return Report(
        "store", {**machine, "threads": threads}, what.name,
        f"of each kind: {WRITE_BASE}; {READ_BASE}; {DECODE_BASE}", tuple(variants),
        {"repeats": repeats, "shard": [plan.product.channels, *[plan.grid.lattice.shard] * 2]}, not_run,
    )  # fmt: skip


def demo_cube(what: Subject, folder: Path, device: str, threads: int, *, quick: bool) -> tuple[Plan, str]:
    """A cube of `SHARDS` dates of the demo, the first of them encoded, without Ray; a quick one has fewer windows."""
    index, interval = scenes(folder / "scenes", SHARDS)
    weights = what.name
    if weights != "nano":
        assert what.vae.meta is not None
        weights = str(folder / f"{what.name}.safetensors")
        save_weights(what.vae, weights, what.vae.meta)
    west, south, east, north = DEMO_BBOX
    box = (west, south, (west + east) / 2, (south + north) / 2) if quick else DEMO_BBOX
    asked = Selection(
        boxes=parse_bbox(*box), interval=parse_interval(interval), catalog=str(index), weights=weights,
        out=str(folder / "cube.zarr"), storage="fp16",  # what the recorded figures are of
    )  # fmt: skip
    request = Request.parse(asked, Running(), on_gpu=device == "cuda")
    (plan,) = make_plans(request, product_of(request), None)
    store = CubeStore.create(asked.out, plan)
    limits = Limits(encode_threads=1 if device == "cuda" else threads)
    runner = UnitRunner(plan, store, models_of(registry.open(plan.product, device), device, plan.numerics), limits)
    store.commit([runner.run(unit) for unit in plan.units() if unit.time == 0 and not unit.empty])
    runner.close()
    store.finalise()
    return plan, asked.out


def full_shard(plan: Plan, url: str) -> Block:
    """A whole shard (C, S, S) without gaps: the cube's own latents of its first time, repeated."""
    store = CubeStore.open(url)
    core = plan.grid.lattice.core
    cores = [
        block[:, i : i + core, j : j + core]
        for row, col in sorted(plan.grid.shards())
        for block in [store.read_shard(0, row, col)]
        for i in range(0, block.shape[1], core)
        for j in range(0, block.shape[2], core)
    ]
    there = [block for block in cores if np.isfinite(block.astype(np.float32)).all()]
    if not there:
        raise EocubeError("no window was encoded: run `python jobs/encode_region.py --demo` to see why")
    side = plan.grid.lattice.cores_per_shard
    rows = [np.concatenate([there[(i * side + j) % len(there)] for j in range(side)], axis=2) for i in range(side)]
    return np.ascontiguousarray(np.concatenate(rows, axis=1))


def _shards(plan: Plan, url: str, place: _Place, repeats: int) -> list[Variant]:
    """Write and read whole shards of real latents: ours, and zarr-python's assignment to the same arrays.

    Every round writes to stores that are new, as a run does.
    """
    block = full_shard(plan, url)
    options = None if place.options is None else dict(place.options)
    side, windows = plan.grid.lattice.shard, plan.grid.lattice.cores_per_shard**2
    row, col = min(plan.grid.shards())
    at = [(time, row, col) for time in range(len(plan.times))]

    def fresh(kind: str) -> list[str]:
        urls = [f"{place.url}/{kind}-{turn}.zarr" for turn in range(repeats + 1)]
        for one in urls:
            CubeStore.create(one, plan, storage_options=place.options)
        return urls

    targets = {kind: fresh(kind) for kind in ("ours", "zarr")}
    unused = {kind: iter(urls) for kind, urls in targets.items()}
    spots = [(t, slice(None), slice(r * side, (r + 1) * side), slice(c * side, (c + 1) * side)) for t, r, c in at]

    def ours_write() -> None:
        store = CubeStore.open(next(unused["ours"]), storage_options=place.options)
        for where in at:
            store.write_shard(*where, block)

    def zarr_write() -> None:
        latent: Any = zarr.open_group(next(unused["zarr"]), mode="r+", storage_options=options)["latent"]
        for spot in spots:
            latent[spot] = block

    def ours_read() -> list[Block]:
        store = CubeStore.open(targets["ours"][0], storage_options=place.options)
        return [store.read_shard(*where) for where in at]

    def zarr_read() -> list[Block]:
        latent: Any = zarr.open_group(targets["zarr"][0], mode="r", storage_options=options)["latent"]
        return [latent[spot] for spot in spots]

    def requests(work: Callable[[], None]) -> float | None:
        before = place.requests()
        work()
        after = place.requests()
        return None if before is None or after is None else (after - before) / len(at)

    asked = {"ours": requests(ours_write), "zarr": requests(zarr_write)}
    if any(not np.array_equal(found, block, equal_nan=True) for found in (*ours_read(), *zarr_read())):
        raise StoreError(f"{place.name}: a shard reads back differently from what was written")
    ways = {
        ("zarr", "write"): Timed(WRITE_BASE, zarr_write), ("ours", "write"): Timed(f"{OURS}, write", ours_write),
        ("zarr", "read"): Timed(READ_BASE, zarr_read), ("ours", "read"): Timed(f"{OURS}, read", ours_read),
    }  # fmt: skip
    cpu = torch.device("cpu")
    interleave(list(ways.values()), repeats, cpu)
    found = []
    for (whose, kind), way in ways.items():
        seconds = way.best(cpu) / len(at)
        more: dict[str, float | None] = {"megabytes_per_s": block.nbytes / 1e6 / seconds, "units_per_s": 1 / seconds}
        if kind == "write":
            more["requests_per_unit"] = asked[whose]
        found.append(Variant(
            f"{way.name}, {place.name}", "cpu", plan.product.storage.dtype, windows / seconds,
            ways["zarr", kind].best(cpu) / way.best(cpu), 0.0, None, None, more,
        ))  # fmt: skip
    return found


def _decoding(plan: Plan, url: str, device: torch.device, threads: int, repeats: int) -> list[Variant]:
    """The first time of the cube to pixels: `ds.eocube.decode` against the same with the unfused network in fp32."""
    ds = eocube.open(url)
    windows = int((ds["status"].isel(time=0) == State.OK).sum())

    def decoded(dtype: str) -> Callable[[], Block]:
        lazy = ds.eocube.decode(device=device.type, dtype=dtype).isel(time=0)
        return lambda: np.asarray(lazy.compute(scheduler="threads", num_workers=threads).values)

    with mock.patch.object(decoders, "decode_one", _Unfused(plan, device)):
        unfused = decoded("fp32")
    faster = ("fp16", "bf16") if device.type == "cuda" else ("bf16", "mixed") if has_native_bf16() else ()
    ways = {(DECODE_BASE, "fp32"): unfused, **{(f"{OURS}, decode", d): decoded(d) for d in (*faster, "fp32")}}
    exact = ways[DECODE_BASE, "fp32"]()
    errors = {}
    for which, work in ways.items():
        out = work()
        seen = np.isfinite(exact)
        if not np.array_equal(seen, np.isfinite(out)):
            raise StoreError(f"{which[0]} {which[1]}: other pixels are missing than in the unfused decode")
        errors[which] = relative_error(torch.from_numpy(out[seen]), torch.from_numpy(exact[seen]))
    timed = {which: Timed(" ".join(which), work) for which, work in ways.items()}
    cpu = torch.device("cpu")  # the work ends in the host's memory: its clock is the right one
    interleave(list(timed.values()), repeats, cpu)
    base = timed[DECODE_BASE, "fp32"].best(cpu)
    return [
        Variant(
            name, device.type, dtype, windows / way.best(cpu), base / way.best(cpu), errors[name, dtype], None, None
        )
        for (name, dtype), way in timed.items()
    ]


class _Unfused:
    """Stands in for `eocube.products.decoder_cache.decode_one`: the network as published, kernels made every time."""

    def __init__(self, plan: Plan, device: torch.device) -> None:
        self._vae = load_weights(plan.product.weights, device=device).eval()
        self._pixels = PixelPipeline(plan.sensor, 1, 1, device)
        self._wavelengths = torch.tensor([band.wavelength for band in plan.sensor.bands], device=device)
        self._device = device
        self._pools, self._turn = ThreadpoolController(), threading.Lock()

    def __call__(self, spec: object, latents: Block) -> Block:
        """(z, h, w) latents -> (bands, h * stride, w * stride) in physical units."""
        z = torch.from_numpy(np.ascontiguousarray(latents, dtype=np.float32))[None].to(self._device)
        if self._device.type == "cuda":
            with self._turn, torch.inference_mode():
                return self._decoded(z)
        torch.get_num_threads()  # torch sets OpenMP's number at its first use in a thread: before the limit
        with torch.inference_mode(), self._pools.limit(limits=1, user_api="openmp"):
            return self._decoded(z)

    def _decoded(self, z: torch.Tensor) -> Block:
        y = self._vae.decode(z, self._wavelengths)
        found: Block = self._pixels.from_zscore(y)[0].float().cpu().numpy()
        return found
