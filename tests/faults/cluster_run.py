"""A run of the engine on a Ray cluster of several nodes on this machine, in a process of its own: FOLDER/result.json.

    python -m tests.faults.cluster_run SCENARIO FOLDER

Scenarios: `elastic` starts on one node, gains two, and loses one of the three without warning; `gpus` has made-up GPUs
shared by halves. The cube is made in FOLDER; its shards are written by stub actors, without an encoder.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from eocube.plan.plan import WorkUnit
from eocube.run import driver as engine
from eocube.run import pool
from eocube.run.options import Cube, EngineOptions
from eocube.store.store import CubeStore
from tests.eocube.cubes import make_plan, make_weights
from tests.eocube.stub_actors import Writer

GATE = 8
"""Time step from which units wait for three nodes."""
TIMES = tuple(f"2023-{month:02d}-{day:02d}T09:57:57Z" for month in range(1, 13) for day in range(1, 29))


class Located(Writer):
    """A writer that logs on which node, and on which share of which GPU, it did a unit.

    From the unit's sixth on it waits until three nodes are at work, so that the test does not hang on how fast the
    machine starts processes.
    """

    def __init__(self, urls: Any, *given: Any) -> None:
        super().__init__(urls, *given)
        context = ray.get_runtime_context()
        self.node, self.actor = context.get_node_id(), context.get_actor_id()
        self.gpus = context.get_accelerator_ids().get("GPU", [])
        self.nodes = Path(urls[0]).parent / "nodes"
        self.nodes.mkdir(exist_ok=True)
        (self.nodes / self.node).touch()

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        until = time.monotonic() + 200
        while unit.time >= GATE and len(list(self.nodes.iterdir())) < 3 and time.monotonic() < until:
            time.sleep(0.1)
        line, _ = super().run(cube, unit)
        where = {"node": self.node, "gpus": self.gpus, "actor": self.actor}
        return line, (json.dumps({"event": "located", "unit": unit.key, **where}),)


def main(scenario: str, folder: Path) -> None:
    """Run a scenario and write down what it came to."""
    plan = make_plan(make_weights(folder / "w.safetensors"), times=TIMES[:48])
    url = str(folder / "cube.zarr")
    CubeStore.create(url, plan)
    todo = [(0, WorkUnit(t, r, c)) for t in range(len(plan.times)) for r, c in sorted(plan.grid.shards())]
    gpus = {"num_gpus": 1} if scenario == "gpus" else {}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20, **gpus})
    nodes = [
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20, **gpus)
        for _ in range(0 if scenario == "elastic" else 2)
    ]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    pool.RECHECK = 0.5

    drawn = queue.Queue[int | None]()

    options = EngineOptions(
        gpus_per_actor=0.5 if scenario == "gpus" else 0.0, source_options={"seconds": 0.2}, quiet=True,
        log_dir=str(folder / "logs"),
    )  # fmt: skip
    with ThreadPoolExecutor(1) as thread:
        # In a thread: nodes can only be added from the main one.
        running = thread.submit(
            engine.run, [Cube(plan, url)], options, told(todo, drawn), "cluster", actor_class=Located
        )
        running.add_done_callback(lambda _: drawn.put(None))
        while (at := drawn.get()) is not None:
            if scenario == "elastic" and at == 10:
                nodes.extend(cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2))
            if scenario == "elastic" and at == len(todo) // 2:
                cluster.remove_node(nodes[0], allow_graceful=False)
        tally = running.result()
    store = CubeStore.open(url)
    store.finalise()
    log = [r.unit for r in store.log.receipts()]
    lines = [json.loads(line) for line in (folder / "logs" / "cluster.jsonl").read_text().splitlines()]
    found = {
        "units": len(todo),
        "logged": len(log),
        "different": len(set(log)),
        "requeued": tally.requeued,
        "deaths": tally.deaths,
        "lost": tally.lost,
        "findings": [list(f) for f in store.verify()],
        "located": [line for line in lines if line["event"] == "located"],
        "started": [line["node"] for line in lines if line["event"] == "actor_started"],
        "runs": sorted({line["run"] for line in lines if line["event"] != "located"}),
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(found))
    ray.shutdown()
    cluster.shutdown()


def told(todo: list[tuple[int, WorkUnit]], drawn: queue.Queue[int | None]) -> Iterator[tuple[int, WorkUnit]]:
    """The units, with a word on how many have been drawn."""
    for at, item in enumerate(todo):
        drawn.put(at)
        yield item


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
