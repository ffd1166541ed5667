"""Mixes several sources of batches: each batch comes from one of them, by chance, the same one on every worker."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.training.batch import Batch
from model.training.sources.patch import BatchSource


@dataclass(slots=True)
class Mixture:
    """Draws from `sources` in proportion to `shares` (default: alike). `seed` must be the same on all workers.

    ValueError for no source, or shares of none.
    """

    sources: Mapping[str, BatchSource]
    shares: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.shares = dict(self.shares) or dict.fromkeys(self.sources, 1.0)
        if set(self.shares) != set(self.sources) or not self.sources:
            raise ValueError(f"a mixture needs a share of each source: {list(self.sources)}, got {list(self.shares)}")
        if min(self.shares.values()) < 0 or not sum(self.shares.values()) > 0:
            raise ValueError(f"shares {dict(self.shares)} must be 0 or more and not all 0")
        self._rng = np.random.default_rng([self.seed, 2])

    def draw(self, batch_size: int, patch: int) -> Batch:
        """One batch of one source."""
        names = list(self.sources)
        chances = np.array([self.shares[name] for name in names])
        return self.sources[names[self._rng.choice(len(names), p=chances / chances.sum())]].draw(batch_size, patch)

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """The sources' steps together; None where one of them has no end."""
        steps = [source.steps_per_epoch(batch_size) for source in self.sources.values()]
        return None if any(s is None for s in steps) else sum(s for s in steps if s is not None)

    def state_dict(self) -> dict[str, Any]:
        """The choice's random state and each source's state."""
        return {
            "rng": deepcopy(self._rng.bit_generator.state),
            "sources": {name: source.state_dict() for name, source in self.sources.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. ValueError where it is of other sources."""
        if set(state.get("sources", ())) != set(self.sources):
            raise ValueError(f"the saved state is of other sources than {', '.join(self.sources)}")
        self._rng.bit_generator.state = deepcopy(state["rng"])
        for name, source in self.sources.items():
            source.load_state_dict(state["sources"][name])
