"""Measures the seams between the shards of a super-resolved cube: each is sampled on its own canvas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eocube.plan.plan import Plan
from eocube.store.seams import Squares
from eocube.store.store import CubeStore

MOST_BORDERS = 16
"""Borders between shards that are looked at."""


def shard_seams(url: str, options: Mapping[str, Any] | None) -> tuple[float, int] | None:
    """The latents' seam ratio between shards, and over how many borders, the first ones; None without neighbours.

    Steps across the border over steps within the two shards at the same phase of the parent's cells.
    """
    store = CubeStore.open(url, storage_options=options)
    (text,) = CubeStore.stored_plans(url, storage_options=options)
    plan = Plan.from_json(text)
    assert plan.derived is not None
    scale, side = plan.derived.scale, plan.grid.lattice.shard
    held = {(r.time, *r.shard) for r in store.receipts() if r.sha256 is not None}
    across, inside, borders = Squares(), Squares(), 0
    for time, row, col in sorted(held):
        for axis, ahead in ((2, (time, row, col + 1)), (1, (time, row + 1, col))):
            if ahead not in held or borders == MOST_BORDERS:
                continue
            a, b = (
                np.moveaxis(store.storage.unpack(store.read_shard(*at)), axis, -1)
                for at in ((time, row, col), ahead)
            )  # fmt: skip
            at = np.arange(scale, side, scale)
            steps = Squares.of(b[..., 0] - a[..., -1])
            if steps.count:
                across, borders = across + steps, borders + 1
                inside += Squares.of(a[..., at] - a[..., at - 1]) + Squares.of(b[..., at] - b[..., at - 1])
    if across.root_mean is None or not inside.root_mean:
        return None
    return across.root_mean / inside.root_mean, borders
