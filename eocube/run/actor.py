"""Does the units of a run: `Worker` in whatever process it is, `EncodeActor` in a process of its own on a Ray node."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from eocube.net import redaction
from eocube.net.network import shared_network
from eocube.plan.plan import Plan, WorkUnit
from eocube.run.memory_limit import keep_freed_memory, memory_limit
from eocube.run.options import EngineOptions
from eocube.run.placement import Place, here
from eocube.run.prometheus import ActorMetrics, BusyClock
from eocube.run.run_log import event, log_in_actor, of_unit
from eocube.store.fence import Fence
from eocube.store.receipts import Receipt, State
from eocube.store.store import CubeStore

if TYPE_CHECKING:
    from eocube.run.super_resolve_unit import SuperResolveRunner
    from eocube.run.unit import UnitRunner


class Worker:
    """Holds the encoder and runs several units at once on threads. Pixels never leave its process.

    Args:
        urls: of the cubes. The frozen plan comes from each store itself: a worker that starts anew finds it there too.
        options: how the run is carried out; its limits are this worker's own.
        device: "cpu" or "cuda".
        run_id: goes into every receipt.
    """

    def __init__(self, urls: Sequence[str], options: EngineOptions, device: str, run_id: str) -> None:
        keep_freed_memory()
        self.busy = BusyClock()
        self._runners: list[UnitRunner | SuperResolveRunner] = []
        self._fence = Fence.of(options.lease, options.storage_options)
        for url in urls:
            (text,) = CubeStore.stored_plans(url, storage_options=options.storage_options)
            plan = Plan.from_json(text)
            store = CubeStore.open(url, storage_options=options.storage_options, fence=self._fence)
            self._runners.append(_runner(plan, store, options, device, run_id, self.busy))

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        """Do one unit; its receipt as one line of JSON, and what was logged since the last where that is kept."""
        with of_unit(unit.key):
            receipt = self._runners[cube].run(unit)
            for window in receipt.windows:
                if window.state in (State.READ_FAILED, State.ENCODE_FAILED):
                    event(
                        "window_failed", level=logging.WARNING, row=window.row, col=window.col,
                        state=window.state.label, reason=window.reason, item=window.item, asset=window.asset,
                    )  # fmt: skip
            if receipt.dark:
                event("windows_dark", level=logging.WARNING, windows=dict(receipt.dark))
            event(
                "unit_done", cube=cube, seconds=round(receipt.seconds, 3), bytes_in=receipt.bytes_in,
                bytes_out=receipt.bytes_out, windows=by_state(receipt),
            )  # fmt: skip
        return receipt.to_json(), ()

    def close(self) -> None:
        """Write nothing from now on, begin nothing, and let go of threads and sources.

        A window that is being read or encoded is waited for; the unit it belongs to ends with an error.
        """
        if self._fence is not None:
            self._fence.end()
        for runner in self._runners:
            runner.close()


class EncodeActor(Worker):
    """A worker in a process of its own, which it sets up: its log, its part of the run's requests, its metrics."""

    def __init__(self, urls: Sequence[str], options: EngineOptions, device: str, run_id: str) -> None:
        self._lines = log_in_actor(run_id, secrets_of(options))
        self._network = options.network
        shared_network().configure(self._network)
        super().__init__(urls, options, device, run_id)
        self._metrics = ActorMetrics(run_id, self.busy, lambda: shared_network().retries.total())

    def ready(self) -> Place:
        """Answered once the encoder is loaded: where it is."""
        return here()

    def heard(self) -> tuple[str, ...]:
        """What was logged since the last answer."""
        return self._lines.take()

    def share(self, among: int) -> None:
        """Take a part of the run's limit on requests, now that so many actors share it."""
        shared_network().configure(self._network.shared(among))

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        """Do one unit; its receipt, and what was logged since the last."""
        receipt, _ = super().run(cube, unit)
        return receipt, self._lines.take()


def _runner(
    plan: Plan, store: CubeStore, options: EngineOptions, device: str, run_id: str, busy: BusyClock
) -> UnitRunner | SuperResolveRunner:
    """What does a plan's units: encodes scenes, or makes a finer cube of another."""
    from eocube.products import registry
    from eocube.products.base import models_of
    from eocube.run.memory import card_memory, fitted
    from eocube.run.unit import UnitRunner

    sources = options.source_options
    if plan.derived is not None:
        from eocube.run.super_resolve_unit import SuperResolveRunner

        return SuperResolveRunner(
            plan, store, threads=options.limits.encode_threads, device=device, storage_options=sources, run_id=run_id,
            busy=busy,
        )  # fmt: skip
    models = models_of(registry.open(plan.product, device), device, plan.numerics)
    card = card_memory(options.gpus_per_actor) if device == "cuda" else None
    limits = fitted(plan, options.limits, memory_limit(), batch=models.batch, card=card)
    return UnitRunner(plan, store, models, limits, storage_options=sources, run_id=run_id, busy=busy)


def secrets_of(options: EngineOptions) -> tuple[str, ...]:
    """Values of the storage options that no log may show."""
    return tuple({*redaction.secrets_of(options.storage_options), *redaction.secrets_of(options.source_options)})


def by_state(receipt: Receipt) -> dict[str, int]:
    """Windows of a unit by the name of their state."""
    return {state.label: n for state, n in sorted(Counter(w.state for w in receipt.windows).items())}
