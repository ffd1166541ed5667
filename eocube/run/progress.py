"""Shows a run's progress: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import suppress
from types import TracebackType

from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from eocube.console import PatientConsole, say
from eocube.run.run_log import of_a_unit
from eocube.store.receipts import Receipt, State

LINE_EVERY = 15.0
"""Seconds between plain lines where there is no terminal."""


class Progress:
    """Counts windows, bytes and states; a context manager.

    Args:
        total: windows to do; None when that is not known.
        quiet: show nothing.
    """

    def __init__(self, total: int | None, *, quiet: bool = False) -> None:
        self._console = PatientConsole(stderr=True, quiet=quiet)
        self._total = total
        self._done = 0
        self._states: Counter[State] = Counter()
        self._bytes_in = self._bytes_out = 0
        self._started = self._last = time.monotonic()
        self._bar: RichProgress | None = None
        if self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TextColumn("windows {task.fields[figures]}"),
                TimeRemainingColumn(), console=self._console,
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
        self._done += len(receipt.windows)
        self._states.update(w.state for w in receipt.windows)
        self._bytes_in += receipt.bytes_in
        self._bytes_out += receipt.bytes_out
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, figures=self._figures())
        elif time.monotonic() - self._last > LINE_EVERY:
            self._last = time.monotonic()
            of = "" if self._total is None else f"/{self._total}"
            self._console.print(f"{self._done}{of} windows {self._figures()}", highlight=False)

    def say(self, text: str) -> None:
        """Print a line for people, above the bar where there is one."""
        say(self._console, text)

    def _figures(self) -> str:
        rate = self._done / max(1e-9, time.monotonic() - self._started)
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
