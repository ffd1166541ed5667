"""Learning-rate schedules and the number of optimiser steps, computed per step from the real length of the data."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(progress: float, final: float = 0.0) -> float:
    """Factor on the base rate: 1 at `progress` 0, `final` at 1, half a cosine between."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress))))


def warmed_cosine(step: int, progress: float, *, warmup: int, final: float = 0.0) -> float:
    """The nano recipe's factor: a cosine over the whole stage times a ramp that is 1 from step `warmup` - 1 on."""
    return cosine(progress, final) * min(1.0, (step + 1) / max(1, warmup))


def warmup_cosine(step: int, *, warmup: int, total: int, final: float = 0.0) -> float:
    """The published factor at optimiser step `step` (from 0): linear from 0 over `warmup`, then a cosine to `final`.

    Source: EO-VAE specification, section 9; there `total` is 200 000 fixed in code, here it is the data's real length.
    """
    if step < warmup:
        return step / warmup
    return cosine((step - warmup) / max(1, total - warmup), final)


def epoch_steps(steps_per_epoch: Callable[[int], int | None], batch: int, accumulate: int = 1) -> int | None:
    """Optimiser steps in one pass over the data: whole batches drawn in `accumulate` parts; None without a length."""
    draws = steps_per_epoch(batch // accumulate)
    return None if draws is None else max(1, draws // accumulate)
