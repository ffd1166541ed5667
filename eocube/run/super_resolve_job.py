"""Makes a finer cube of a cube: checks what is asked, freezes plans, runs the engine, writes GeoTIFFs if asked."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from rich.console import Console

from eocube.console import for_people, say, tell
from eocube.cube.agreeing import agreeing
from eocube.cube.geotiff import write_geotiff
from eocube.cube.opening import open as open_cube
from eocube.cube.parent import ParentCube
from eocube.errors import Exit, InputError, StoreError
from eocube.ground.boxes import BBox, parse_interval
from eocube.ground.grid import CoreRange
from eocube.net.objects import Objects
from eocube.net.redaction import redacted
from eocube.net.storage_options import from_environment
from eocube.plan.derive import derived_plan, finer_grid
from eocube.plan.plan import Plan
from eocube.products import eo_vae_document
from eocube.products.super_resolved import MEAN, Derivation
from eocube.run.asked import Running, Showing
from eocube.run.choice import check_engine
from eocube.run.ending import Outcome, report
from eocube.run.job import carry_out, holding, open_cubes, stored_plans
from eocube.run.options import EngineOptions, Limits
from eocube.run.request import absolute, default_gpus, network_limits, new_run_id, one_of
from eocube.run.shard_seams import shard_seams
from eocube.store.differences import named_changes
from eocube.store.existing import zones_of
from eocube.store.receipts import State
from model.diffusion import METHODS
from model.super_resolution import SuperResolver, load_sr
from model.weights_meta import WeightsError

RING = 12
"""Cells of the parent around a shard that its canvas holds as well."""
SENSOR = "RGBN"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for, in values."""

    cube: str
    out: str
    weights: str
    steps: int = 8
    method: str = "dpmpp"
    seed: int = 0
    samples: int = 1
    consistent: bool = False
    boxes: tuple[BBox, ...] = ()
    time: str | None = None
    """An index, a date or A/B; None takes all times."""

    @property
    def as_picture(self) -> bool:
        """Whether a GeoTIFF is asked for, not a cube."""
        return self.out.endswith((".tif", ".tiff"))

    def request(self, sample: int) -> dict[str, Any]:
        """What decides one cube's plan, as the store tells it."""
        return {
            "cube": redacted(absolute(self.cube)),
            "weights": self.weights,
            "steps": self.steps,
            "method": self.method,
            "seed": self.seed,
            "sample": sample,
            "bbox": [list(box) for box in self.boxes],
            "time": self.time,
            **({"consistent": True} if self.consistent else {}),
        }


@dataclass(frozen=True, slots=True)
class _Target:
    """One cube that is made; what `carry_out` and `open_cubes` ask of a request."""

    out: str
    retry: tuple[State, ...] = ()
    mend: bool = False


@dataclass(frozen=True, slots=True)
class _Checked:
    """What is asked for with what it takes: the network, the parents, each with its times."""

    wanted: Wanted
    network: SuperResolver
    parents: tuple[ParentCube, ...]
    times: tuple[tuple[int, ...], ...]
    device: str


def super_resolve(wanted: Wanted, running: Running, showing: Showing) -> Outcome:
    """Make the cube or the GeoTIFF that is asked for.

    Raises:
        InputError, StoreError: it cannot be done; nothing was written.
    """
    console = for_people(quiet=showing.quiet)
    gpus = default_gpus(running.gpus_per_actor)
    check_engine(running.engine, running.actors, gpus)
    target_options = from_environment() if running.storage_options is None else running.storage_options
    sources = target_options if running.source_options is None else running.source_options
    checked = check(wanted, sources, "cuda" if gpus > 0 else "cpu")
    urls = places(wanted)
    plans = [plans_of(checked, sample) for sample in range(wanted.samples)]
    if note := untrained(checked):
        say(console, f"note: {note}")
    if showing.plan:
        tell(json.dumps([_planned(plan, wanted) for plan in plans[0]], indent=1))
        return Outcome(Exit.DONE, (), {})
    for url, made in zip(urls, plans, strict=True):
        refuse_other(url, made, target_options)
    engine = EngineOptions(
        engine=running.engine, actors=running.actors, gpus_per_actor=gpus, limits=Limits(),
        storage_options=target_options, source_options=sources, network=network_limits(running),
        unit_timeout=float(running.unit_timeout), quiet=showing.quiet, log_dir=running.log_dir,
    )  # fmt: skip
    outcomes = []
    for url, made in zip(urls, plans, strict=True):
        outcomes.append(_make(_Target(url, running.retry, running.mend), made, engine, console))
        if outcomes[-1].tally is not None and outcomes[-1].tally.interrupted:
            return replace(outcomes[-1], exit=Exit.RETRYABLE)
    written = _pictures(checked, urls, target_options, sources)
    for line in written:
        say(console, line)
    for url in urls if wanted.as_picture else urls[1:]:
        Objects(url, target_options).tidy(everything=True)
        remove(url, target_options)
    return replace(outcomes[0], exit=max(outcome.exit for outcome in outcomes))


def check(wanted: Wanted, options: Mapping[str, Any] | None, device: str) -> _Checked:
    """Everything that can be told before something is written. InputError or StoreError with what is wrong first."""
    if not wanted.out.endswith((".tif", ".tiff", ".zarr")):
        raise InputError(f"--out {wanted.out}: give a name that ends in .zarr, or in .tif for a GeoTIFF")
    if wanted.steps < 1:
        raise InputError(f"--steps {wanted.steps}: choose 1 or more")
    if wanted.samples < 1:
        raise InputError(f"--samples {wanted.samples}: choose 1 or more; from 2 on there is a mean and a spread")
    if not 0 <= wanted.seed < 2**63:
        raise InputError(f"--seed {wanted.seed}: choose 0 or more")
    one_of(wanted.method, (*METHODS, MEAN), "--method")
    if wanted.method == MEAN and wanted.samples > 1:
        raise InputError(f"--samples {wanted.samples} with --method {MEAN}: the mean is the same every time")
    zones = zones_of(wanted.cube, options)
    home = absolute(wanted.cube).rstrip("/")
    if home == absolute(wanted.out).rstrip("/"):
        raise InputError(f"--out {wanted.out} is the cube that is read: write to another target")
    parents = tuple(ParentCube(url, options) for url in ([f"{home}/{zone}" for zone in zones] or [home]))
    if wanted.as_picture and len(parents) > 1:
        raise InputError(f"{wanted.cube} holds {', '.join(zones)}: a GeoTIFF has one zone, name it: {home}/{zones[0]}")
    product = parents[0].plan.product
    if product.kind != eo_vae_document.KIND:
        raise InputError(f"{wanted.cube} holds {product.array}s ({product.kind}): only cubes of EO-VAE latents can be")
    if parents[0].plan.derived is not None:
        raise InputError(f"{wanted.cube} is super-resolved itself: take the cube it was made from")
    if product.sensor.name != SENSOR:
        raise InputError(f"{wanted.cube} is of sensor {product.sensor.name}: encode with --sensor {SENSOR}")
    try:
        network = load_sr(wanted.weights, device=device)
        network.check_encoder(product.weights_sha256, product.sensor.band_names)
    except WeightsError as error:
        raise InputError(f"--weights {wanted.weights}: {error}") from error
    config, lattice = network.config, parents[0].plan.grid.lattice
    if config.space != product.array:
        raise InputError(f"--weights {wanted.weights} make pixels, a cube holds latents: take weights of latents")
    if lattice.core % config.scale or lattice.stride % config.scale or lattice.cell % config.scale:
        raise InputError(
            f"{wanted.cube}: cores of {lattice.core} cells of {lattice.cell} m cannot be cut into {config.scale} parts"
        )
    times = tuple(times_of(parent, wanted.time) for parent in parents)
    if wanted.as_picture and len(times[0]) > 1:
        raise InputError(f"{wanted.cube} has {len(times[0])} times: a GeoTIFF holds one, name it with --time")
    return _Checked(wanted, network, parents, times, device)


def times_of(parent: ParentCube, asked: str | None) -> tuple[int, ...]:
    """Indices of the times asked for. InputError where there is none."""
    starts = [np.datetime64(step.time.rstrip("Z"), "s") for step in parent.plan.times]
    if asked is None:
        return tuple(range(len(starts)))
    if asked.lstrip("-").isdigit() and len(asked) < 4:
        if not 0 <= int(asked) < len(starts):
            raise InputError(f"--time {asked}: the cube has times 0 to {len(starts) - 1}")
        return (int(asked),)
    first, last = (np.datetime64(moment.replace(tzinfo=None), "s") for moment in parse_interval(asked))
    found = tuple(i for i, start in enumerate(starts) if first <= start <= last)
    if not found:
        raise InputError(f"--time {asked}: the cube has none of its {len(starts)} times then ({min(starts)} on)")
    return found


def untrained(checked: _Checked) -> str | None:
    """What is to be said where the weights have never seen the resolution; None where they have."""
    meta, scale = checked.network.meta, checked.network.config.scale
    metres = checked.parents[0].plan.grid.lattice.resolution
    if meta is None or any(abs(low - metres) < 1e-6 for low, _ in meta.resolutions):
        return None
    known = ", ".join(f"{low:g} to {high:g} m" for low, high in meta.resolutions) or "no stated resolution"
    return (
        f"{meta.name} was trained at {known}; {metres:g} to {metres / scale:g} m is beyond that, and no truth was seen "
        "there: what it adds is plausible, not measured"
    )


def places(wanted: Wanted) -> list[str]:
    """Where each sample's cube goes: the first is the result where a cube is asked for, the others work."""
    out = absolute(wanted.out)
    head, _, name = out.rpartition("/")
    work = [f"{head}/{name}.sample-{k}.zarr" for k in range(wanted.samples)]
    return work if wanted.as_picture else [out, *work[1:]]


def plans_of(checked: _Checked, sample: int) -> tuple[Plan, ...]:
    """One plan a zone. InputError where the box touches no ground of the cube."""
    wanted, network, plans = checked.wanted, checked.network, []
    scale, meta = network.config.scale, network.meta
    for parent, times in zip(checked.parents, checked.times, strict=True):
        lattice = parent.plan.grid.lattice
        grid = finer_grid(parent.plan.grid, scale, wanted.boxes)
        if grid is None:
            continue
        box = CoreRange(*(edge // scale for edge in grid.cores))
        around = CoreRange(box.row0 - 1, box.col0 - 1, box.row1 + 1, box.col1 + 1)
        derivation = Derivation(
            parent=redacted(parent.url), parent_plan=parent.plan.hash, parent_log=parent.digest(times, around),
            resolution=lattice.resolution, scale=scale, weights=wanted.weights,
            weights_name="" if meta is None else meta.name, weights_sha256="" if meta is None else meta.sha256,
            method=wanted.method, steps=1 if wanted.method == MEAN else wanted.steps, seed=wanted.seed, sample=sample,
            tile=(lattice.core, lattice.halo, min(RING, lattice.core)), consistent=wanted.consistent,
        )  # fmt: skip
        plans.append(derived_plan(parent.plan, derivation, grid, times, wanted.request(sample), numerics(checked)))
    if not plans:
        raise InputError(f"--bbox touches no ground that {wanted.cube} was asked for")
    return tuple(plans)


def numerics(checked: _Checked) -> dict[str, Any]:
    """What decides the last bits beside the plan's hash (DESIGN 3.12)."""
    name = torch.cuda.get_device_name() if checked.device == "cuda" and torch.cuda.is_available() else checked.device
    return {
        "device": name,
        "batch": 1,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
    }


def refuse_other(url: str, plans: Sequence[Plan], options: Mapping[str, Any] | None) -> None:
    """StoreError where a store lies at a place that is not the one these plans make, with what differs."""
    stored = stored_plans(url, options)
    if not stored or sorted(p.hash for p in stored) == sorted(p.hash for p in plans):
        return
    was, now = stored[0], plans[0]
    if was.derived is None:
        raise StoreError(f"{url} is a cube of its own, not one made from {plans[0].derived}: write to another --out")
    assert now.derived is not None
    if was.derived.identity() | {"parent_log": ""} == now.derived.identity() | {"parent_log": ""} != {}:
        if was.derived.parent_log != now.derived.parent_log:
            raise StoreError(
                f"{url} was begun from another state of {now.derived.parent}, which has changed since: write to "
                "another --out"
            )
        raise StoreError(f"{url} holds other ground or other times than asked for: write to another --out")
    changes = named_changes(was.derived.identity(), now.derived.identity())
    raise StoreError(f"{url} was made in another way ({changes}): write to another --out")


def _make(target: _Target, plans: tuple[Plan, ...], engine: EngineOptions, console: Console) -> Outcome:
    """One cube: create or resume, run, finalise, report."""
    run_id, options = new_run_id(), engine.storage_options
    with holding(target.out, run_id, options) as lease:
        refuse_other(target.out, plans, options)
        cubes = open_cubes(target, stored_plans(target.out, options) or plans, options, lease)
        tally, summaries = carry_out(cubes, target, replace(engine, lease=lease.to_pass), run_id, lease)
    outcome = report(console, cubes, tally, summaries)
    for cube in cubes:
        if (found := shard_seams(cube.url, options)) is not None:
            say(console, f"  seam ratio over {found[1]} borders between shards: latent {found[0]:.2f}")
    return outcome


def _pictures(
    checked: _Checked, urls: Sequence[str], options: Mapping[str, Any] | None, sources: Mapping[str, Any] | None
) -> list[str]:
    """Write the GeoTIFFs that are asked for; a line on each."""
    wanted = checked.wanted
    lines = []
    opened: list[xr.DataArray] = []
    if wanted.as_picture or wanted.samples > 1:
        opened = [open_cube(url, None if options is None else dict(options)).eocube.decode() for url in urls]
    if wanted.consistent and wanted.as_picture:
        (parent,), ((time,),) = checked.parents, checked.times
        coarse = open_cube(parent.url, None if sources is None else dict(sources)).eocube.decode().isel(time=time)
        mtf = checked.network.transfer(parent.plan.product.sensor.band_names)
        opened = [agreeing(one.isel(time=0), coarse, mtf).expand_dims("time") for one in opened]
    if wanted.as_picture:
        write_geotiff(opened[0].isel(time=0), wanted.out, options)
        lines.append(f"{wanted.out}: {' x '.join(str(n) for n in opened[0].shape[1:])}")
    if wanted.samples > 1:
        stem = wanted.out.rpartition(".")[0]
        both = known_and_invented(opened)
        for i, time in enumerate(both["time"].values):
            when = "" if both.sizes["time"] == 1 else f".{np.datetime_as_string(time, unit='s').replace(':', '')}Z"
            out = f"{stem}.samples{when}.tif"
            write_geotiff(both.isel(time=i), out, options)
            lines.append(f"{out}: mean and spread of {wanted.samples} samples")
    return lines


def known_and_invented(samples: Sequence[xr.DataArray]) -> xr.DataArray:
    """Mean and spread (standard deviation, divisor n - 1) of decoded samples, lazily: bands "B04 mean", "B04 spread".

    Where the spread is small, the parent's pixels settle what is there; where it is large, a sample invents.
    """
    total: xr.DataArray = sum(samples[1:], samples[0])
    mean = total / len(samples)
    squares = [(one - mean) ** 2 for one in samples]
    spread = (sum(squares[1:], squares[0]) / (len(samples) - 1)) ** 0.5
    parts = []
    for what, part in (("mean", mean), ("spread", spread)):
        names = [f"{band} {what}" for band in samples[0]["band"].values]
        parts.append(part.assign_coords(band=names).astype(np.float32))
    return xr.concat(parts, "band").assign_coords(spatial_ref=samples[0]["spatial_ref"])


def remove(url: str, options: Mapping[str, Any] | None) -> None:
    """Remove a cube that was made on the way to something else, its root first, so that no half of it opens."""
    target = Objects(url, options)
    for key in sorted(target.keys(""), key=lambda key: key != "zarr.json"):
        target.delete(key)
    if "://" not in url:
        for folder in sorted(Path(url).rglob("*"), reverse=True):
            folder.rmdir()
        Path(url).rmdir()


def _planned(plan: Plan, wanted: Wanted) -> dict[str, Any]:
    """What will be made, for people and programmes."""
    grid, how = plan.grid, plan.derived
    assert how is not None
    windows = int(np.asarray(grid.requested_mask).sum())
    row0, col0, row1, col1 = grid.extent
    return {
        "plan": plan.hash,
        "space_id": plan.space_id,
        "crs": f"EPSG:{grid.lattice.epsg}",
        "from_m": how.resolution,
        "to_m": grid.lattice.resolution,
        "cell_m": grid.lattice.cell,
        "cells": [row1 - row0, col1 - col0],
        "pixels": [(row1 - row0) * grid.lattice.stride, (col1 - col0) * grid.lattice.stride],
        "times": [step.time for step in plan.times],
        "windows": windows * len(plan.times),
        "shards": sum(1 for _ in grid.shards()) * len(plan.times),
        "samples": wanted.samples,
        "derived": how.to_dict(),
    }
