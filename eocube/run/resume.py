"""Finds what of a plan is still to be done, by the commit log: whole units, and windows of those done in part."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

import numpy as np

from eocube.plan.plan import Plan, WorkUnit
from eocube.store.commit_log import Latest, Place
from eocube.store.receipts import State, WindowResult

_TO_DO, _DONE, _PART = 0, 1, 2


class Remaining:
    """The units of a plan that are to be done, and how many windows that is. One byte a unit.

    Args:
        plan: the frozen plan.
        latest: the receipts that count.
        again: states whose windows are done again; the others of their units stay as they are.
        damaged: units (time, shard row, shard column) whose objects are not the logged ones: all of them is done again.
    """

    def __init__(
        self, plan: Plan, latest: Latest, again: Collection[State] = (), damaged: Collection[Place] = ()
    ) -> None:
        self._plan, self._latest, self._again = plan, latest, frozenset(again)
        grid, n = plan.grid, plan.grid.lattice.cores_per_shard
        self._mask = grid.requested_mask
        wanted = self._mask.reshape(grid.shard_rows, n, grid.shard_cols, n).sum(axis=(1, 3))
        self._state = np.zeros((len(plan.times), grid.shard_rows, grid.shard_cols), np.uint8)
        self.windows = int(wanted.sum()) * len(plan.times)
        """Windows to do."""
        stays = np.array([s is not State.NOT_ATTEMPTED and s not in self._again for s in State])
        for (time, row, col), (wy, wx, states) in latest.states():
            if (time, row, col) in damaged:
                continue
            stay = int((stays[states] & self._mask[wy, wx]).sum())
            self._state[time, row, col] = _DONE if stay == wanted[row, col] else _PART
            self.windows -= stay

    def _stays(self, window: WindowResult) -> bool:
        again = window.state is State.NOT_ATTEMPTED or window.state in self._again
        return not again and bool(self._mask[window.row, window.col])

    def units(self) -> Iterator[WorkUnit]:
        """Every unit to do, in the plan's order; one done in part carries the receipt of what stays."""
        for unit in self._plan.units():
            state = self._state[unit.time, unit.row, unit.col]
            if state == _TO_DO:
                yield unit
            elif state == _PART:
                receipt = self._latest.of(unit.time, unit.row, unit.col)
                windows = tuple(w for w in receipt.windows if self._stays(w))
                yield replace(unit, keep=replace(receipt, windows=windows).to_json())
