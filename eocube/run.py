"""Carries out an encode request: resume or create the stores, run the engine, finalise, report in a few lines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from eocube.commits import State
from eocube.encode import EncodeOptions, Exit, Request, default_gpus, demo_options, make_plans, new_run_id, plan_summary
from eocube.engine import Cube, EngineOptions, RunTally
from eocube.engine import run as run_engine
from eocube.errors import StoreError
from eocube.plan import Plan, WorkUnit
from eocube.store import LatentStore, create_root, finalise_root
from eocube.worker import Limits

DEMO_FOLDER = "eocube-demo"
NAMED_FAILURES = 10
"""Failed sources listed at the end, at most."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    exit: Exit
    urls: tuple[str, ...]
    counts: Mapping[State, int]
    tally: RunTally | None = None
    picture: str | None = None


def encode_region(options: EncodeOptions, storage_options: Mapping[str, Any] | None = None) -> Outcome:
    """Encode a region as asked; the main job.

    Args:
        options: as the user gave them.
        storage_options: fsspec options of the target and of the catalogue.

    Raises:
        InputError, StoreError: what was asked for cannot be done; nothing was written.
    """
    console = Console(stderr=True, quiet=options.quiet, highlight=False, soft_wrap=True)
    if options.demo:
        with console.status("making the demonstration's scenes"):
            options = demo_options(options, Path(DEMO_FOLDER))
    gpus = default_gpus(options)
    request = Request.parse(options, on_gpu=gpus > 0)
    plans, stored = plans_of(request, storage_options)
    if options.plan:
        print(json.dumps([plan_summary(p) for p in plans], indent=1))
        return Outcome(Exit.DONE, (), {})
    cubes = open_cubes(request, plans, stored, storage_options)
    todo = [(k, unit) for k, cube in enumerate(cubes) for unit in units_left(cube, request, storage_options)]
    limits = Limits(max_cloud=request.max_cloud, verify_fraction=1.0 if options.demo else request.verify_fraction)
    engine = EngineOptions(
        actors=options.actors, gpus_per_actor=gpus, limits=limits, storage_options=storage_options,
        source_options=storage_options, quiet=options.quiet,
    )  # fmt: skip
    try:
        tally = run_engine(cubes, engine, todo, new_run_id()) if todo else RunTally()
    finally:
        for cube in cubes:
            LatentStore.open(cube.url, storage_options=storage_options).finalise()
        if len(cubes) > 1:
            finalise_root(request.out, storage_options=storage_options)
    outcome = report(console, cubes, tally, storage_options)
    if options.quicklook and outcome.counts.get(State.OK):
        outcome = replace(outcome, picture=draw(cubes, options.quicklook, storage_options))
        console.print(f"picture: {outcome.picture}")
    return outcome


def plans_of(request: Request, storage_options: Mapping[str, Any] | None) -> tuple[tuple[Plan, ...], bool]:
    """The plans frozen in the store by the same request, without a search; else new ones. Says which."""
    from eocube.encoders import load

    frozen = stored_plans(request.out, storage_options)
    if frozen and all(dict(p.request) == request.document() for p in frozen):
        weights = load(request.weights)
        changed = [p for p in frozen if p.encoding.sha256 != weights.meta.sha256]
        if changed:
            raise StoreError(
                f"{request.out} was made with other weights called {request.weights!r} "
                f"({changed[0].encoding.sha256[:12]}, now {weights.meta.sha256[:12]}): write to another --out"
            )
        return frozen, True
    return make_plans(request, load(request.weights), storage_options), False


def stored_plans(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Plan, ...]:
    """The plans of a store, one a zone; empty when there is no store."""
    texts = LatentStore.stored_plans(url, storage_options=storage_options)
    return tuple(Plan.from_json(t) for t in texts)


def open_cubes(
    request: Request, plans: Sequence[Plan], stored: bool, storage_options: Mapping[str, Any] | None
) -> tuple[Cube, ...]:
    """Create the stores, or open those of an earlier run of the same plan. One zone: the cube is the root itself."""
    if len(plans) == 1:
        cubes: tuple[Cube, ...] = (Cube(plans[0], request.out),)
    else:
        if not stored:
            names = [p.grid.name for p in plans]
            create_root(request.out, names, {"zones": names}, storage_options=storage_options)
        cubes = tuple(Cube(p, f"{request.out.rstrip('/')}/{p.grid.name}") for p in plans)
    for cube in cubes:
        LatentStore.create(cube.url, cube.plan, storage_options=storage_options)
    return cubes


def units_left(cube: Cube, request: Request, storage_options: Mapping[str, Any] | None) -> list[WorkUnit]:
    """Units that the commit log does not hold, and those with windows in a state that is to be tried again."""
    store = LatentStore.open(cube.url, storage_options=storage_options)
    done = store.done_units()
    for state in request.retry:
        done -= store.units_with(state)
    return [u for u in cube.plan.units() if u.key not in done]


def report(
    console: Console, cubes: Sequence[Cube], tally: RunTally, storage_options: Mapping[str, Any] | None
) -> Outcome:
    """Print what the stores now hold and what went wrong; the exit status follows from the stores."""
    total: Counter[State] = Counter()
    failures: list[str] = []
    for cube in cubes:
        store = LatentStore.open(cube.url, storage_options=storage_options)
        counts = {State(s): n for s, n in store.status_counts().items() if n}
        total.update(counts)
        named = ", ".join(f"{n} {s.label}" for s, n in sorted(counts.items()) if s is not State.OUTSIDE)
        scores = store.scores()
        quality = "".join(
            f", {name} {value:.{digits}f}{unit}"
            for name, value, digits, unit in (("PSNR", scores.psnr, 1, " dB"), ("SAM", scores.sam, 3, " rad"))
            if value is not None
        )
        sample = f" (decoded again: {scores.windows} windows)" if quality else ""
        console.print(
            f"{cube.url}: {cube.plan.sensor.name}, EPSG:{cube.plan.grid.lattice.epsg}, "
            f"{len(cube.plan.times)} times, windows {named or 'none'}{quality}{sample}"
        )
        for item, why in cube.plan.refused[:NAMED_FAILURES]:
            console.print(f"  refused {item}: {why}")
        failures += sorted(
            {
                f"{w.item or '?'} {w.asset or ''}: {w.reason}"
                for r in store.receipts()
                for w in r.windows
                if w.state in (State.READ_FAILED, State.ENCODE_FAILED)
            }
        )
    if tally.units:
        windows = sum(tally.windows.values())
        console.print(
            f"  {windows} windows in {tally.seconds:.1f} s ({windows / max(tally.seconds, 1e-9):.1f}/s), "
            f"read {decimal(tally.bytes_in)}, wrote {decimal(tally.bytes_out)}"
        )
    for line in failures[:NAMED_FAILURES]:
        console.print(f"  failed {line}", style="red")
    if len(failures) > NAMED_FAILURES:
        console.print(f"  and {len(failures) - NAMED_FAILURES} more failures: eocube status", style="red")
    for unit in tally.lost:
        console.print(f"  unit {unit} killed its actor every time: not attempted", style="red")
    left = sum(n for s, n in total.items() if s.retryable)
    if tally.interrupted:
        console.print("interrupted: the same command goes on where it stopped")
    elif left:
        reasons = ",".join(s.label for s in (State.READ_FAILED, State.ENCODE_FAILED) if total[s])
        console.print(f"{left} windows can be tried again" + (f": add --retry {reasons}" if reasons else ""))
    return Outcome(Exit.RETRYABLE if left else Exit.DONE, tuple(c.url for c in cubes), dict(total), tally)


def draw(cubes: Sequence[Cube], path: str, storage_options: Mapping[str, Any] | None, time: int = 0) -> str:
    """The quicklook of the cube with the most data, its source read again for comparison."""
    import eocube
    from eocube.inspection import truth_pixels
    from eocube.source import read_source

    cube = max(cubes, key=lambda c: sum(1 for _ in c.plan.grid.requested_windows()))
    source = read_source(cube.plan, truth_pixels(cube.plan), time, storage_options=storage_options)
    ds = eocube.open(cube.url, storage_options=None if storage_options is None else dict(storage_options))
    return str(ds.eocube.quicklook(path, time=time, source=source))
