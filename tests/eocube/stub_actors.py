"""Actors for tests of the engine: they die on demand, or write shards without encoding anything."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from eocube.plan.plan import Plan, WorkUnit
from eocube.run.options import EngineOptions
from eocube.run.placement import Place, here
from eocube.store.moments import Moments
from eocube.store.receipts import Receipt, State, WindowResult, now
from eocube.store.store import CubeStore


def receipt_of(unit: WorkUnit, row: int = 0) -> Receipt:
    """A receipt of one ok window."""
    return Receipt(unit.key, unit.time, (unit.row, unit.col), (WindowResult(row, 0, State.OK),))


class Mortal:
    """Its process dies on a unit as often as the file of that unit's column says."""

    def __init__(self, urls: Any, options: EngineOptions, device: str, run_id: str) -> None:
        self.folder = Path(urls[0])

    def ready(self) -> Place:
        return here()

    def heard(self) -> tuple[str, ...]:
        return ()

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        lives = self.folder / str(unit.col)
        if lives.exists() and (left := int(lives.read_text())) > 0:
            lives.write_text(str(left - 1))
            os._exit(1)
        return receipt_of(unit).to_json(), ()


class NoOp(Mortal):
    """Does nothing, quickly: what is left is the cost of scheduling."""

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        return receipt_of(unit).to_json(), ()


class Writer:
    """Writes each unit's shard with latents that follow from its name; dies on the unit that the file `kill` names.

    `EngineOptions.source_options` may give `seconds`, how long a unit takes.
    """

    def __init__(self, urls: Any, options: EngineOptions, device: str, run_id: str) -> None:
        self.run_id = run_id
        self.seconds = float((options.source_options or {}).get("seconds", 0.0))
        self.kill = Path(urls[0]) / "kill"
        self.plans, self.stores = [], []
        for url in urls:
            (text,) = CubeStore.stored_plans(url, storage_options=options.storage_options)
            self.plans.append(Plan.from_json(text))
            self.stores.append(CubeStore.open(url, storage_options=options.storage_options))

    def ready(self) -> Place:
        return here()

    def heard(self) -> tuple[str, ...]:
        return ()

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        if self.kill.exists() and self.kill.read_text() == unit.key:
            os._exit(1)
        time.sleep(self.seconds)
        plan, store = self.plans[cube], self.stores[cube]
        lattice, grid = plan.grid.lattice, plan.grid
        values = np.random.default_rng([unit.time, unit.row, unit.col]).normal(
            size=(plan.product.channels, lattice.shard, lattice.shard)
        )
        results, there = [], np.full(values.shape, np.nan, np.float32)
        for window in grid.windows_of_shard(unit.row, unit.col):
            if grid.requested(window):
                row, col = grid.place_in_shard(window)
                box = np.s_[:, row : row + lattice.core, col : col + lattice.core]
                there[box] = values[box]
                results.append(WindowResult(*grid.place_in_status(window), state=State.OK, valid_percent=100))
        stored = store.storage.pack(there)
        size, sha256 = store.write_shard(unit.time, unit.row, unit.col, stored)
        return (
            Receipt(
                unit.key, unit.time, (unit.row, unit.col), tuple(results), bytes_out=size, sha256=sha256,
                moments=Moments.of(store.storage.unpack(stored)), created=now(), run=self.run_id,
            ).to_json(),
            (),
        )  # fmt: skip
