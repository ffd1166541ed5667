"""The count and the time left that a run shows never jump back, whatever its units take."""

from __future__ import annotations

import io
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from eocube.console import PatientConsole
from eocube.run import progress as module
from eocube.run.progress import Progress
from eocube.run.time_left import CAUTION, TimeLeft, clock
from eocube.store.receipts import State

UNITS = st.lists(
    st.tuples(st.integers(0, 300), st.floats(0, 5000), st.lists(st.floats(0, 2000), max_size=3)), max_size=40
)
"""Windows of a unit, the seconds until it ends, and when the screen is drawn in between."""


@given(units=UNITS, total=st.integers(1, 4000))
def test_count_and_time_left_never_jump_back(units: list[tuple[int, float, list[float]]], total: int) -> None:
    now, shown, counts = 100.0, [], []
    left = TimeLeft(total, now)
    for windows, took, drawn in units:
        for after in sorted(drawn):
            if after <= took:
                shown.append(left.left(now + after))
        now += took
        left.done(windows, now)
        shown.append(left.left(now))
        counts.append(left.count)
        assert left.rate(now) >= 0
    seconds = [one.seconds for one in shown if one is not None]
    assert seconds == sorted(seconds, reverse=True) and all(s >= 0 for s in seconds)
    assert counts == sorted(counts) and all(0 <= c <= total for c in counts)
    if counts and counts[-1] == total:
        assert shown[-1] is not None and shown[-1].seconds == 0 and not shown[-1].more


@given(windows=st.integers(1, 200), took=st.floats(0.1, 500), units=st.integers(2, 50))
def test_a_steady_run_is_foretold(windows: int, took: float, units: int) -> None:
    left, now, total = TimeLeft(windows * units, 0.0), 0.0, windows * units
    for done in range(1, units):
        now += took
        left.done(windows, now)
        found = left.left(now)
        if found is not None:
            true = (units - done) * took
            assert true * 0.999 <= found.seconds <= true * CAUTION * 1.001 and not found.more
    assert total > left.count


def test_a_run_that_slows_down_says_more_and_not_a_larger_figure() -> None:
    left = TimeLeft(1000, 0.0)
    for k in range(1, 11):
        left.done(10, float(k))
    before = left.left(10.0)
    assert before is not None and not before.more
    left.done(10, 500.0)
    after = left.left(500.0)
    assert after is not None and after.more and after.seconds <= before.seconds and str(after).startswith("> ")


def test_nothing_is_foretold_of_the_first_units_or_without_a_total() -> None:
    left = TimeLeft(10_000, 0.0)
    left.done(1, 0.1)
    assert left.left(0.2) is None and left.left(40.0) is not None
    unknown = TimeLeft(None, 0.0)
    unknown.done(5, 1.0)
    assert unknown.left(2.0) is None and unknown.count == 5
    assert (clock(0), clock(65.4), clock(3600 * 3 + 61)) == ("0:00", "1:05", "3:01:01")


class _Receipt:
    bytes_in = bytes_out = 1000

    def __init__(self, many: int) -> None:
        self.windows = [type("W", (), {"state": State.OK})() for _ in range(many)]


def test_a_bar_shows_rate_and_time_left_and_heeds_no_color(monkeypatch: Any) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    said = io.StringIO()

    def terminal(**how: Any) -> Console:
        return PatientConsole(file=said, force_terminal=True, width=150)

    monkeypatch.setattr(module, "PatientConsole", terminal)
    with Progress(20) as progress:
        progress.add(_Receipt(10))  # type: ignore[arg-type]
        progress.add(_Receipt(10))  # type: ignore[arg-type]
    text = said.getvalue()
    assert "20/20" in text and "/s in" in text and "0:00 left" in text
    assert "\x1b[3" not in text and "\x1b[9" not in text, "NO_COLOR leaves no colour"
