"""Feeds pairs to training: batches of conditions and targets, from memory or read ahead, each place at its weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Values = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PairBatch:
    """`condition` (B, C, h, w) and `target` (B, C, H, W): raw latents or pixels, any float type."""

    condition: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.target)

    def pinned(self) -> PairBatch:
        """The same in pinned memory."""
        return PairBatch(self.condition.pin_memory(), self.target.pin_memory())


class Rows(Protocol):
    """Pairs by number: a store's, or tensors in memory. `read` may be called from a thread."""

    def __len__(self) -> int: ...
    @property
    def places(self) -> Sequence[str]:
        """The place of each."""
        ...

    @property
    def resolutions(self) -> Sequence[float]:
        """The fine pixels' size of each, metres; empty where it is not known."""
        ...

    @property
    def sides(self) -> Sequence[int]:
        """The high-resolution side of each, in any unit: only pairs of one side make a batch."""
        ...

    def read(self, rows: Sequence[int]) -> PairBatch:
        """The pairs of these rows, all of one side."""
        ...


def row_weights(rows: Rows, balance: float, coarser: float = 1.0) -> NDArray[np.float64]:
    """(n,) how often each pair counts: its place's pairs**-balance, times `coarser` where its fine pixels are larger
    than the finest there are."""
    counts = Counter(rows.places)
    weight = np.array([counts[place] ** -balance for place in rows.places])
    if len(rows.resolutions):
        metres = np.asarray(rows.resolutions, np.float64)
        weight = np.where(metres > metres.min(), coarser * weight, weight)
    return weight


@dataclass(frozen=True, slots=True)
class HeldRows:
    """Pairs in memory: one tensor pair a side, fp16 as stored."""

    places: tuple[str, ...]
    sides: tuple[int, ...]
    groups: Mapping[int, PairBatch]
    resolutions: tuple[float, ...] = ()
    _at: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        seen: Counter[int] = Counter()
        at = []
        for side in self.sides:
            at.append(seen[side])
            seen[side] += 1
        object.__setattr__(self, "_at", tuple(at))

    @classmethod
    def of(cls, rows: Rows, batch: int = 64) -> HeldRows:
        """All of other rows, read once."""
        groups = {}
        for side in sorted(set(rows.sides)):
            chosen = [k for k, s in enumerate(rows.sides) if s == side]
            parts = [rows.read(chosen[k : k + batch]) for k in range(0, len(chosen), batch)]
            groups[side] = PairBatch(torch.cat([p.condition for p in parts]), torch.cat([p.target for p in parts]))
        return cls(tuple(rows.places), tuple(rows.sides), groups, tuple(rows.resolutions))

    def __len__(self) -> int:
        return len(self.sides)

    def read(self, rows: Sequence[int]) -> PairBatch:
        """Those rows."""
        held = self.groups[self.sides[rows[0]]]
        at = torch.tensor([self._at[k] for k in rows])
        return PairBatch(held.condition[at], held.target[at])


@dataclass(slots=True)
class PairSource:
    """An endless stream of batches of one worker, seeded; every batch is of pairs of one side.

    Batches of a side are drawn as often as the side has weight; within it pairs are drawn by their own
    (`row_weights`), with replacement. What a draw depends on is its number alone, so that resuming is counting.

    Raises:
        ValueError: no pairs.
    """

    rows: Rows
    seed: int = 0
    balance: float = 0.5
    share: tuple[int, int] = (0, 1)
    _drawn: int = field(init=False, default=0)
    _sides: list[int] = field(init=False)
    _chance: Values = field(init=False)
    _of_side: dict[int, tuple[Values, Values]] = field(init=False)

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise ValueError("there are no training pairs: the store's split train is empty")
        weight = row_weights(self.rows, self.balance)
        sides = np.asarray(self.rows.sides)
        self._sides = sorted({int(s) for s in sides})
        chance = np.array([weight[sides == s].sum() for s in self._sides])
        self._chance = chance / chance.sum()
        self._of_side = {}
        for side in self._sides:
            (at,) = np.nonzero(sides == side)
            self._of_side[side] = at, weight[at] / weight[at].sum()

    def draw(self, batch_size: int, patch: int) -> PairBatch:
        """The next batch of this worker's own stream; `patch` is not looked at: pairs are cut already."""
        rank, world = self.share
        rng = np.random.default_rng([self.seed, 0x5352, rank, world, self._drawn])
        side = self._sides[int(rng.choice(len(self._sides), p=self._chance))]
        at, chance = self._of_side[side]
        self._drawn += 1
        return self.rows.read([int(k) for k in rng.choice(at, batch_size, p=chance)])

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """As many batches as show this worker's share once, on average."""
        return max(1, len(self.rows) // (batch_size * self.share[1]))

    def state_dict(self) -> dict[str, Any]:
        """How many batches were drawn, and of how many pairs."""
        return {"drawn": self._drawn, "pairs": len(self.rows)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there. ValueError where the state is of other data."""
        if int(state["pairs"]) != len(self.rows):
            raise ValueError(
                f"the checkpoint was trained on {state['pairs']} pairs, this store has {len(self.rows)}: resume with it"
            )
        self._drawn = int(state["drawn"])
