"""Reads the figures of training steps off the device, many steps in one copy: who asks after each one makes it wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Figures = Mapping[str, Tensor | float]
"""Name -> a scalar, still on the device or a number already."""

READ_EVERY = 25
"""Steps whose figures are read together where training computes on a GPU."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One optimiser step: the figures of each of its parts, the norm of its gradient, its share of the full rate."""

    total: int
    stage: str
    parts: tuple[Figures, ...]
    norm: Tensor
    factor: float


@dataclass(frozen=True, slots=True)
class Read:
    """The same as numbers, figures as means over the parts."""

    total: int
    stage: str
    values: dict[str, float]
    norm: float
    factor: float


@dataclass(slots=True)
class Readings:
    """Steps that nobody has read yet; `every` of them are due."""

    every: int
    _waiting: list[Reading] = field(init=False, default_factory=list)

    def add(self, reading: Reading) -> None:
        """Keep a step's figures where they are."""
        self._waiting.append(reading)

    @property
    def due(self) -> bool:
        """Whether so many wait that they should be read."""
        return len(self._waiting) >= self.every

    def take(self) -> list[Read]:
        """Read all that wait, in their order: one copy from the device, however many they are."""
        waiting, self._waiting = self._waiting, []
        scalars = [v for step in waiting for v in _scalars(step)]
        numbers = iter(torch.stack([s.detach().to(torch.float64) for s in scalars]).tolist() if scalars else ())
        found = []
        for step in waiting:
            values: dict[str, float] = {}
            for part in step.parts:
                for key, value in part.items():
                    number = next(numbers) if isinstance(value, Tensor) else value
                    values[key] = values.get(key, 0.0) + number / len(step.parts)
            found.append(Read(step.total, step.stage, values, next(numbers), step.factor))
        return found


def _scalars(step: Reading) -> list[Tensor]:
    """Its tensors, in the order in which they are read."""
    return [value for part in step.parts for value in part.values() if isinstance(value, Tensor)] + [step.norm]
