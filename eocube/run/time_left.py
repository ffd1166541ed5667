"""Estimates how long a run still takes, from what is done: a count and a time left that never jump back."""

from __future__ import annotations

from dataclasses import dataclass

LATE = 1.25
"""An estimate that is by so much above the time shown is said to be more than that."""
SOON = 5.0
"""Seconds by which it may be above without a word."""
FIRST_SHARE, FIRST_SECONDS = 0.05, 30.0
"""What must be done, or how long it must have gone, before anything is shown: the first units tell little."""
CAUTION = 1.1
"""The first figure is by so much too high: it may fall, not rise."""
RECENT = 0.3
"""Weight of the newest unit's rate beside that of the whole run: a run that slows down is seen to."""


@dataclass(frozen=True, slots=True)
class Left:
    """What is shown of the time left."""

    seconds: float
    """Never more than what was shown before."""
    more: bool
    """Whether it will take longer than that: the run has become slower than it was."""

    def __str__(self) -> str:
        return f"{'> ' if self.more else ''}{clock(self.seconds)} left"


class TimeLeft:
    """The time left of a run that does `total` windows, unit by unit.

    What is shown falls, or stands still: where a run becomes slower than it was, it stands and is said to be more than
    that, rather than to go up. The count never falls either, though units may be done twice.

    Args:
        total: windows to do; None when that is not known.
        now: seconds, of the clock that `done` and `left` are given too.
    """

    def __init__(self, total: int | None, now: float) -> None:
        self._total, self._started, self._last = total, now, now
        self._count = 0
        self._rate = 0.0
        self._shown: float | None = None

    @property
    def count(self) -> int:
        """Windows done, at most the total."""
        return self._count if self._total is None else min(self._count, self._total)

    def done(self, windows: int, now: float) -> None:
        """So many more windows are done."""
        if windows <= 0:
            return
        self._count += windows
        whole = self._count / max(1e-9, now - self._started)
        newest = windows / max(1e-9, now - self._last)
        # Units of several actors end in bunches: a single unit's rate alone would tell nothing.
        self._rate = (1 - RECENT) * whole + RECENT * min(newest, 2 * whole)
        self._last = max(self._last, now)

    def rate(self, now: float) -> float:
        """Windows a second of the whole run so far."""
        return self._count / max(1e-9, now - self._started)

    def left(self, now: float) -> Left | None:
        """What to show now; None before enough is done to tell, and where there is no total."""
        if self._total is None or not self._count:
            return None
        remaining = self._total - self.count
        if not remaining:
            self._shown = 0.0
            return Left(0.0, False)
        if self._shown is None and self._count < FIRST_SHARE * self._total and now - self._started < FIRST_SECONDS:
            return None
        estimate = max(0.0, remaining / self._rate - (now - self._last))
        self._shown = estimate * CAUTION if self._shown is None else min(self._shown, estimate)
        return Left(self._shown, not estimate or estimate > LATE * self._shown + SOON)


def clock(seconds: float) -> str:
    """A span as 0:42, 12:05 or 3:20:00, as a clock would count it down."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
