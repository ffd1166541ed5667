"""Shows a run's progress: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from types import TracebackType

from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from eocube.console import PatientConsole, say
from eocube.run.run_log import of_a_unit
from eocube.run.time_left import TimeLeft
from eocube.store.receipts import Receipt, State

LINE_EVERY = 15.0
"""Seconds between plain lines where there is no terminal."""


class LeftColumn(ProgressColumn):
    """The time left, counted down between units too."""

    def __init__(self, time_left: TimeLeft) -> None:
        super().__init__()
        self._time_left = time_left

    def render(self, task: Task) -> Text:
        """As rich asks for it, ten times a second."""
        left = self._time_left.left(time.monotonic())
        return Text("" if left is None else str(left), style="progress.remaining")


class Progress:
    """Counts windows, bytes and states; a context manager.

    Args:
        total: windows to do; None when that is not known.
        quiet: show nothing.
    """

    def __init__(self, total: int | None, *, quiet: bool = False) -> None:
        self._console = PatientConsole(stderr=True, quiet=quiet)
        self._total = total
        self._states: Counter[State] = Counter()
        self._bytes_in = self._bytes_out = 0
        self._last = time.monotonic()
        self._time = TimeLeft(total, self._last)
        self._bar: RichProgress | None = None
        if self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TextColumn("windows {task.fields[figures]}"),
                LeftColumn(self._time), console=self._console,
            )  # fmt: skip
            self._task = self._bar.add_task("encode", total=total, figures="")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError, ValueError):  # the terminal is gone; the run is not
                self._bar.stop()

    def add(self, receipt: Receipt) -> None:
        """Count one finished unit in."""
        self._time.done(len(receipt.windows), time.monotonic())
        self._states.update(w.state for w in receipt.windows)
        self._bytes_in += receipt.bytes_in
        self._bytes_out += receipt.bytes_out
        if self._bar is not None:
            self._bar.update(self._task, completed=self._time.count, figures=self._figures())
        elif time.monotonic() - self._last > LINE_EVERY:
            self._last = time.monotonic()
            of = "" if self._total is None else f"/{self._total}"
            left = self._time.left(self._last)
            shown = "" if left is None else f" {left}"
            self._console.print(f"{self._time.count}{of} windows {self._figures()}{shown}", highlight=False)

    def say(self, text: str) -> None:
        """Print a line for people, above the bar where there is one."""
        say(self._console, text)

    def _figures(self) -> str:
        rate = self._time.rate(time.monotonic())
        bad = sum(self._states[s] for s in (State.READ_FAILED, State.ENCODE_FAILED))
        failed = f" [red]{bad} failed[/red]" if bad else ""
        return f"{rate:.1f}/s in {decimal(self._bytes_in)} out {decimal(self._bytes_out)}{failed}"


class SaidBy(logging.Handler):
    """Shows what is logged as a warning or worse as a line of the progress. Failed windows are counted, not told."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(logging.WARNING)
        self._progress = progress

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message."""
        if not of_a_unit(record):
            self._progress.say(record.getMessage())
