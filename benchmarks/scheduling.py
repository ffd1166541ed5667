"""What scheduling costs the driver: units a second with actors that do nothing, and its memory over a long plan.

    python benchmarks/scheduling.py [--units 10000] [--plan 1000000] [--dispatch 100000] [--actors 2]

Prints one JSON object. The engine's rate (units drawn from a plan, dispatched, receipts parsed, logged to a store on
disk in segments) is set against bare Ray calls to the same actors, with as many in flight, in turns in the same run.
The memory is the driver's resident set while a plan of that many units goes through: first its units without data,
which need no actor, to the end of the plan, then `--dispatch` units with data through the actors, with their rate in
wall time and in processor seconds of the driver: the second does not hang on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eocube.ground.grid import CubeGrid
from eocube.ground.lattice import CoreRange, Lattice
from eocube.plan.plan import Plan, TimeStep, WorkUnit
from eocube.products.eo_vae_document import Encoding, latents
from eocube.run import driver as engine
from eocube.run.options import Cube, EngineOptions
from eocube.run.placement import Place, here
from eocube.run.pool import UNITS_PER_ACTOR
from eocube.run.ray_session import ray_session
from eocube.sensors import get_sensor
from eocube.store.receipts import Receipt, State, WindowResult
from eocube.store.store import CubeStore


class NoOp:
    """Does nothing and says so with a receipt of one window."""

    def __init__(self, *_: Any) -> None:
        return

    def ready(self) -> Place:
        return here()

    def heard(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        window = WindowResult(unit.row, unit.col, State.NODATA)
        return Receipt(unit.key, unit.time, unit.shard, (window,)).to_json(), ()


def plan_of(units: int) -> Plan:
    """A plan of about so many units: a shard of one core, a hundred by a hundred of them, as many times as it takes."""
    lattice = Lattice(32632, 10, core_px=48, halo_px=16, shard_px=48)
    times = -(-units // 10_000)
    first = np.datetime64("2017-01-01T10:00:00")
    steps = tuple(TimeStep(f"{first + np.timedelta64(k, 'D')}Z", "s2", f"g{k}", ()) for k in range(times))
    # 100 x 100 cores of 480 m around 9 E, 48 N.
    x, y = 500_000 // 480, 5_316_000 // 480
    cores = CoreRange(-y, x, -y + 100, x + 100)
    grid = CubeGrid(lattice, cores.row0, cores.col0, 100, 100, cores, ((8.0, 46.0, 11.0, 49.0),))
    return Plan(
        latents(get_sensor("RGBN"), Encoding("none", "none", "00", 4, 8, "fp32", "fp16"), lattice), grid, steps, ()
    )


def bare_rate(ray: Any, actors: list[Any], units: list[WorkUnit]) -> float:
    """Calls a second, with as many in flight as the engine has."""
    source, flight = iter(units), {}
    start = time.perf_counter()
    for actor in actors:
        for unit in islice(source, UNITS_PER_ACTOR):
            flight[actor.run.remote(0, unit)] = actor
    while flight:
        (ref,), _ = ray.wait(list(flight), num_returns=1)
        actor = flight.pop(ref)
        ray.get(ref)
        following = next(source, None)
        if following is not None:
            flight[actor.run.remote(0, following)] = actor
    return len(units) / (time.perf_counter() - start)


def with_data(plan: Plan, count: int) -> Iterator[tuple[int, WorkUnit]]:
    """Units of the plan as if scenes touched them."""
    for unit in islice(plan.units(), count):
        yield 0, WorkUnit(unit.time, unit.row, unit.col)


class Memory:
    """The driver's resident set, looked at now and then, in megabytes; and its time from the first look on."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.curve: list[int] = []
        self._marks: list[tuple[int, float, float]] = []

    def watch(self, units: Iterator[tuple[int, WorkUnit]], every: int) -> Iterator[tuple[int, WorkUnit]]:
        """The units, with a look after each `every` of them."""
        for k, unit in enumerate(units):
            if k % every == 0:
                self.curve.append(round(self._process.memory_info().rss / 1e6))
                used = self._process.cpu_times()
                self._marks.append((k, time.perf_counter(), used.user + used.system))
            yield unit

    def rates(self) -> dict[str, int]:
        """Units a second from the second look (the actors have started) to the last: of wall time, of the driver's."""
        (k0, wall0, used0), (k1, wall1, used1) = self._marks[1], self._marks[-1]
        return {
            "dispatched_per_second": round((k1 - k0) / (wall1 - wall0)),
            "dispatched_per_driver_cpu_second": round((k1 - k0) / (used1 - used0)),
        }


def measure(units: int, planned: int, actors: int, dispatch: int, folder: Path) -> dict[str, Any]:
    """All figures."""
    import ray

    options = EngineOptions(actors=actors, quiet=True)
    small = plan_of(units)
    rates: dict[str, list[float]] = {"engine": [], "bare": []}
    remote: Any = ray.remote(NoOp)
    handles = [remote.options(num_cpus=0, max_concurrency=UNITS_PER_ACTOR + 1).remote() for _ in range(actors)]
    ray.get([h.ready.remote() for h in handles])
    some = [unit for _, unit in with_data(small, units)]
    for turn in range(3):
        rates["bare"].append(bare_rate(ray, handles, some))
        store = str(folder / f"rate-{turn}.zarr")
        CubeStore.create(store, small)
        reached: list[float] = []

        def stamped(reached: list[float] = reached) -> Iterator[tuple[int, WorkUnit]]:
            for item in with_data(small, units):
                reached.append(time.perf_counter())
                yield item

        engine.run([Cube(small, store)], options, stamped(), "bench", actor_class=NoOp)
        # From the first unit after the actors had started: starting them is no cost of a unit.
        begun = reached[2 * actors * UNITS_PER_ACTOR]
        rates["engine"].append((units - 2 * actors * UNITS_PER_ACTOR) / (time.perf_counter() - begun))
    for handle in handles:
        ray.kill(handle)
    long = plan_of(planned)
    store = str(folder / "long.zarr")
    CubeStore.create(store, long)
    memory = Memory()
    start = time.perf_counter()
    empty = ((0, unit) for unit in long.units())
    tally = engine.run([Cube(long, store)], options, memory.watch(empty, planned // 20), "bench", actor_class=NoOp)
    walked = time.perf_counter() - start
    busy = Memory()
    drawn = busy.watch(with_data(long, dispatch), dispatch // 25)
    dispatched = engine.run([Cube(long, store)], options, drawn, "more", actor_class=NoOp)
    best = {name: max(values) for name, values in rates.items()}
    return {
        "engine_units_per_second": [round(r) for r in rates["engine"]],
        "bare_calls_per_second": [round(r) for r in rates["bare"]],
        "engine_to_bare": round(best["engine"] / best["bare"], 2),
        "actors": actors,
        "plan_units": tally.units,
        "plan_seconds": round(walked, 1),
        "plan_rss_mb": memory.curve,
        "dispatched": dispatched.units,
        **busy.rates(),
        "dispatched_rss_mb": busy.curve,
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--plan", type=int, default=1_000_000)
    parser.add_argument("--dispatch", type=int, default=100_000)
    parser.add_argument("--actors", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ray_session(gpus=False):
        figures = measure(given.units, given.plan, given.actors, given.dispatch, Path(folder))
    import torch  # after the measuring: it would be most of the memory

    from benchmarks.machine import describe

    print(json.dumps({"machine": describe(torch.device("cpu")), **figures}, indent=1))


if __name__ == "__main__":
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main()
