"""Writes a pair store: units one after the other, their rows on threads, a receipt after each; goes on after a kill.

This is no Ray run: the engine's units are shards of a zone's lattice at a time, read from a frozen plan of scenes, and
pairs are neither on a lattice nor of scenes. What is the same is the same: the fused encoder, one thread a window, the
shard codec, whole objects, a lease, receipts after the objects they speak of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from typing import Any
from uuid import uuid4

import torch

from eocube.net.objects import Objects
from eocube.pairs.encoding import Maker
from eocube.pairs.pair_plan import PairPlan
from eocube.pairs.pair_store import PairStore, PairWriter
from eocube.store.lease import Lease

Told = Callable[[int, int], None]


def write_pairs(
    url: str | PathLike[str],
    plan: PairPlan,
    maker: Maker,
    *,
    threads: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    told: Told = lambda done, total: None,
) -> PairStore:
    """Make a pair store, or finish the one that an earlier run of the same plan began.

    Args:
        url: local path or any fsspec URL.
        plan: what it is to hold.
        maker: makes its rows.
        threads: windows at once; None takes the processors there are. Their number changes no bit.
        storage_options: fsspec options of the URL.
        told: called with units done and units in all.

    Raises:
        InputError: the target holds something else. LeaseError: another run writes it. StoreError: it refuses.
        SourceError: a pair cannot be read.
    """
    open_target = Objects(url, storage_options)
    PairWriter.refuse(open_target, plan)
    with Lease(open_target, uuid4().hex[:12]) as lease:
        writer = PairWriter(Objects(url, storage_options, fence=lease), plan)
        told(len(writer.done), plan.units)
        count = threads or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(count, "encode", lambda: torch.set_num_threads(1)) as pool:
            for unit in writer.pending:
                rows = [plan.rows[k] for k in plan.of_unit(unit)]
                made = pool.map(lambda row: maker.make(row.source, row.note, row.note.split in plan.image_splits), rows)
                writer.write(unit, list(made))
                told(len(writer.done), plan.units)
        return writer.finalise(maker)
