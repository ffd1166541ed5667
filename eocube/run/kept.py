"""Keeps what an earlier run left in a shard: windows that are done stay, to the byte, when others are done again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from eocube.errors import StoreError
from eocube.ground.grid import Window
from eocube.plan.plan import Plan, WorkUnit
from eocube.store.receipts import Receipt, State, WindowResult
from eocube.store.seams import Seams
from eocube.store.shard_codec import Block
from eocube.store.store import CubeStore


@dataclass(frozen=True, slots=True)
class Kept:
    """Windows of a unit that are not done again: how they ended, and the stored latents (C, core, core) of ok ones."""

    results: Mapping[Window, WindowResult] = field(default_factory=dict)
    latents: Mapping[Window, Block] = field(default_factory=dict)
    precision: Mapping[str, int] = field(default_factory=dict)
    seams: Seams | None = None
    """What the borders between the windows that stay came to."""
    rules: Mapping[str, str] = field(default_factory=dict)
    """The rules that their scenes were read by."""
    dark: Mapping[str, int] = field(default_factory=dict)
    """How many of those windows are too dark to be ground, by item."""


def read_kept(plan: Plan, store: CubeStore, unit: WorkUnit) -> Kept:
    """What of a unit's shard stays. Nothing does when its object is not the one that was logged.

    That is so where a run was killed between writing the shard again and logging it, or the object was damaged: then
    the whole unit is done again, which gives the same bytes.
    """
    if unit.keep is None:
        return Kept()
    receipt = Receipt.from_json(unit.keep)
    grid, core = plan.grid, plan.grid.lattice.core
    results = {grid.window_at(w.row, w.col): w for w in receipt.windows}
    good = [window for window, w in results.items() if w.state is State.OK]
    if not good:
        return Kept(results)
    data = store.target.get(store.shard_key(unit.time, unit.row, unit.col))
    if data is None or hashlib.sha256(data).hexdigest() != receipt.sha256:
        return Kept()
    try:
        block = store.values.codec.decode(data)[0]
    except Exception as error:
        raise StoreError(f"{store.target}: shard {unit.key} has the logged hash and cannot be decoded") from error
    latents = {}
    for window in good:
        row, col = grid.place_in_shard(window)
        latents[window] = block[:, row : row + core, col : col + core].copy()
    return Kept(results, latents, receipt.precision, receipt.seams, receipt.rules, receipt.dark)
