"""Feeds patches that can be read in any order: shuffled, shared out, read ahead on threads, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.training.sources.ledger import Ledger
from model.training.sources.patch import PatchLike, PatchSet
from model.training.sources.splits import BlockSplit
from model.training.sources.stream import Worker


@dataclass(slots=True)
class IndexedFeed:
    """A `PatchSet` without end, each epoch in another seeded order; within an epoch each of its patches comes once.

    With a `split` (and its `rule`) only the patches of that split are given. `ahead` patches are read before they are
    asked for, by `threads`. Patches that cannot be read are counted and named in `ledger`; those without data are
    counted as "empty".

    Raises:
        ValueError: no patches, or none of the split; while reading, a whole epoch without a usable one.
    """

    patches: PatchSet
    seed: int = 0
    worker: Worker = field(default_factory=Worker)
    rule: BlockSplit | None = None
    split: str | None = None
    threads: int = 4
    ahead: int = 16
    shuffle: bool = True
    ledger: Ledger = field(default_factory=Ledger)
    epoch: int = field(init=False, default=0)
    _position: int = field(init=False, default=0)
    _chosen: Sequence[int] = field(init=False, default=())
    _order: Sequence[int] = field(init=False, default=())
    _waiting: dict[tuple[int, int], Future[PatchLike | None]] = field(init=False, default_factory=dict)
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        if (self.rule is None) != (self.split is None):
            raise ValueError("a split needs its rule (block and margin in metres), and a rule a split")
        places = self.patches.places
        if not places:
            raise ValueError(f"no patches of {self.patches.sensor}: check where the data are and the patch size")
        self._chosen = range(len(places))
        if self.rule is not None and self.split is not None:
            self._chosen = self.rule.select(places, self.split)
            if not self._chosen:
                raise ValueError(
                    f"none of {len(places)} patches of {self.patches.sensor} is of split {self.split}: blocks of "
                    f"{self.rule.block:g} m may be too large for the region, or the margin too wide"
                )
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="patches")
        self._order = self._order_of(0)

    @property
    def sensors(self) -> tuple[str, ...]:
        """The one sensor of the patches."""
        return (self.patches.sensor,)

    @property
    def patches_per_epoch(self) -> int | None:
        """This worker's patches an epoch, those without data included."""
        return len(self._order)

    def next(self, sensor: str) -> PatchLike:
        """The next patch that has data."""
        unused = 0
        while unused <= 2 * len(self._order):
            position = self._step()
            index = self._order[position]
            try:
                patch = self._read_ahead(position).result()
            except (OSError, ValueError) as error:
                self.ledger.add("patch", f"{sensor} {index}", str(error))
                patch = None
            else:
                if patch is None:
                    self.ledger.counts["empty"] = self.ledger.counts.get("empty", 0) + 1
            if patch is not None:
                return patch
            unused += 1
        raise ValueError(f"a whole epoch of {len(self._order)} patches of {sensor} has no data: {self.ledger.excuse()}")

    def skip(self, name: str, why: str) -> None:
        """Note a patch that could not be used."""
        self.ledger.add("patch", name, why)

    def close(self) -> None:
        """Stop reading ahead."""
        self._forget()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, place within it, ledger."""
        return {
            "data": self.fingerprint,
            "epoch": self.epoch,
            "position": self._position,
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. ValueError where it is of other patches, seed or number of workers."""
        if state.get("data") != self.fingerprint:
            raise ValueError(
                "the saved place is of other patches, another seed, split or number of workers: resume with the same "
                "data arguments, or start a new run"
            )
        self._forget()
        self.epoch, self._position = int(state["epoch"]), int(state["position"])
        self._order = self._order_of(self.epoch)
        self.ledger.load_state_dict(state["ledger"])

    @property
    def fingerprint(self) -> str:
        """Hash of all that the order of patches depends on."""
        ground = [self.patches.places[index] for index in self._chosen]
        said = repr((self.patches.sensor, ground, self.seed, self.worker, self.shuffle))
        return hashlib.blake2b(said.encode(), digest_size=12).hexdigest()

    def _order_of(self, epoch: int) -> Sequence[int]:
        order: Sequence[int] = self._chosen
        if self.shuffle:
            order = [self._chosen[i] for i in np.random.default_rng([self.seed, epoch]).permutation(len(self._chosen))]
        # fewer patches than workers: a worker without any takes one that another has too
        return order[self.worker.index :: self.worker.count] or [order[self.worker.index % len(order)]]

    def _step(self) -> int:
        if self._position >= len(self._order):
            self._forget()
            self.epoch, self._position = self.epoch + 1, 0
            self._order = self._order_of(self.epoch)
        self._position += 1
        return self._position - 1

    def _read_ahead(self, position: int) -> Future[PatchLike | None]:
        for place in range(position, min(position + self.ahead, len(self._order))):
            if (self.epoch, place) not in self._waiting:
                self._waiting[self.epoch, place] = self._pool.submit(self.patches.read, self._order[place])
        return self._waiting.pop((self.epoch, position))

    def _forget(self) -> None:
        for waiting in self._waiting.values():
            waiting.cancel()
        self._waiting.clear()
