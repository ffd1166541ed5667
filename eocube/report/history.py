"""Tells how a cube came to be, run by run, from its receipts: its rate, and throughput over time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from eocube.store.receipts import Receipt


@dataclass(slots=True)
class Run:
    """One run's share: windows and bytes, and when its first unit began and its last ended (seconds since 1970)."""

    id: str
    begun: float
    ended: float
    units: int = 0
    windows: int = 0
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def seconds(self) -> float:
        """Wall time of the run as its receipts tell it, at least a second: receipts are stamped to the second."""
        return max(self.ended - self.begun, 1.0)

    @property
    def rate(self) -> float:
        """Windows a second."""
        return self.windows / self.seconds


@dataclass(frozen=True, slots=True)
class Work:
    """One unit's work: its run, when it ran (seconds since 1970) and how many windows it settled."""

    run: str
    begun: float
    ended: float
    windows: int


@dataclass(frozen=True, slots=True)
class History:
    """The runs in order of their beginning, and every unit's work."""

    runs: tuple[Run, ...]
    work: tuple[Work, ...]

    @classmethod
    def of(cls, receipts: Iterable[Receipt]) -> History:
        """From the receipts that count. Units that no scene touches took no work and are left out."""
        runs: dict[str, Run] = {}
        work: list[Work] = []
        for receipt in receipts:
            if not receipt.created or receipt.seconds <= 0:
                continue
            ended = moment(receipt.created)
            begun = ended - receipt.seconds
            run = runs.setdefault(receipt.run, Run(receipt.run, begun, ended))
            run.begun, run.ended = min(run.begun, begun), max(run.ended, ended)
            run.units += 1
            run.windows += len(receipt.windows)
            run.bytes_in += receipt.bytes_in
            run.bytes_out += receipt.bytes_out
            work.append(Work(receipt.run, begun, ended, len(receipt.windows)))
        return cls(tuple(sorted(runs.values(), key=lambda r: (r.begun, r.id))), tuple(work))

    @property
    def last(self) -> Run | None:
        """The run that began last; None when nothing was done."""
        return self.runs[-1] if self.runs else None

    def throughput(self, bins: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Windows a second over working time: (edges in seconds, rate in each bin).

        Working time is the runs' wall times one after the other, without the pauses between them; a unit's windows are
        spread evenly over the time it took.
        """
        starts, at = dict[str, tuple[float, float]](), 0.0
        for run in self.runs:
            starts[run.id] = (run.begun, at)
            at += run.seconds
        edges = np.linspace(0.0, max(at, 1.0), bins + 1)
        done = np.zeros(bins)
        for unit in self.work:
            begun, offset = starts[unit.run]
            low, high = unit.begun - begun + offset, unit.ended - begun + offset
            overlap = np.minimum(edges[1:], high) - np.maximum(edges[:-1], low)
            share = np.clip(overlap, 0.0, None)
            if share.sum() > 0:
                done += unit.windows * share / share.sum()
        return edges, done / np.diff(edges)


def moment(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 UTC time."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC).timestamp()
