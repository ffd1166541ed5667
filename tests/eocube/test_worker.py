"""One work unit in one process: threads that start together share one encoder."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eocube.limits import Limits
from eocube.store import LatentStore
from eocube.worker import Models, UnitRunner
from tests.eocube.cubes import make_plan, make_weights


def test_threads_that_start_together_build_one_encoder(tmp_path: Path) -> None:
    plan = make_plan(make_weights(tmp_path / "w.safetensors"))
    store = LatentStore.create(tmp_path / "cube.zarr", plan)
    made: list[object] = []
    together = threading.Barrier(4)

    def slow_maker() -> object:
        threading.Event().wait(0.05)  # long enough for the others to come by
        made.append(object())
        return made[-1]

    runner = UnitRunner(plan, store, Models({"fp32": slow_maker}, None, None), Limits())  # type: ignore[arg-type,dict-item]

    def ask(_: int) -> object:
        together.wait()
        return runner._encoder("fp32")

    with ThreadPoolExecutor(4) as threads:
        got = list(threads.map(ask, range(4)))
    runner.close()
    assert len(made) == 1 and all(encoder is made[0] for encoder in got)
