"""Says in a few lines what a run's stores now hold and what went wrong, and what exit status follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.filesize import decimal

from eocube.console import say
from eocube.errors import Exit
from eocube.plan.plan import in_order
from eocube.read.plausible import dark_line
from eocube.run.driver import RunTally
from eocube.run.options import Cube
from eocube.run.pool import ATTEMPTS
from eocube.store.receipts import State
from eocube.store.seams import seams_line
from eocube.store.store import Summary

NAMED_FAILURES = 10
"""Failed sources listed at the end, at most."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to."""

    exit: Exit
    urls: tuple[str, ...]
    counts: Mapping[State, int]
    tally: RunTally | None = None
    picture: str | None = None


def report(console: Console, cubes: Sequence[Cube], tally: RunTally, summaries: Sequence[Summary]) -> Outcome:
    """Print what the stores now hold and what went wrong; the exit status follows from the stores."""
    total: Counter[State] = Counter()
    failures: list[str] = []
    for cube, summary in zip(cubes, summaries, strict=True):
        counts = {State(s): n for s, n in summary.counts.items() if n}
        total.update(counts)
        named = ", ".join(f"{n} {s.label}" for s, n in sorted(counts.items()) if s is not State.OUTSIDE)
        scores = summary.scores
        quality = "".join(
            f", {name} {value:.{digits}f}{unit}"
            for name, value, digits, unit in (("PSNR", scores.psnr, 1, " dB"), ("SAM", scores.sam, 3, " rad"))
            if value is not None
        )
        sample = f" (decoded again: {scores.windows} windows)" if quality else ""
        say(
            console,
            f"{cube.url}: {cube.plan.sensor.name}, EPSG:{cube.plan.grid.lattice.epsg}, "
            f"{len(cube.plan.times)} times, windows {named or 'none'}{quality}{sample}",
        )
        if cube.plan.disorder:
            say(console, f"  times {in_order(cube.plan.disorder)}")
        if summary.seams.borders:
            say(console, f"  {seams_line(summary.seams)}")
        if summary.breaches:
            say(console, f"  {summary.breaches} windows decode under the weights' floor: eocube status", "red")
        for item, windows in list(summary.dark.items())[:NAMED_FAILURES]:
            say(console, f"  warning: {dark_line(item, windows)}", "red")
        if len(summary.dark) > NAMED_FAILURES:
            say(console, f"  and {len(summary.dark) - NAMED_FAILURES} more items as dark: eocube status", "red")
        own = cube.plan.product.precision
        if others := ", ".join(f"{n} in {name}" for name, n in summary.precision.items() if name != own):
            say(console, f"  windows not encoded in {own} (overflow, or out of memory): {others}")
        for item, why in cube.plan.refused[:NAMED_FAILURES]:
            say(console, f"  refused {item}: {why}")
        failures += sorted({f"{f.item or '?'} {f.asset or ''}: {f.reason}" for f in summary.failures})
    if tally.units:
        windows = sum(tally.windows.values())
        say(
            console,
            f"  {windows} windows in {tally.seconds:.1f} s ({windows / max(tally.seconds, 1e-9):.1f}/s), "
            f"read {decimal(tally.bytes_in)}, wrote {decimal(tally.bytes_out)}"
            + (f", {tally.retries} requests made again" if tally.retries else ""),
        )
    for line in failures[:NAMED_FAILURES]:
        say(console, f"  failed {line}", "red")
    if len(failures) > NAMED_FAILURES:
        say(console, f"  and {len(failures) - NAMED_FAILURES} more failures: eocube status", "red")
    for unit in tally.lost:
        said = f"crashed its worker {ATTEMPTS} times; skipped: the same command tries it again"
        say(console, f"  unit {unit} {said}", "red")
    left = sum(n for s, n in total.items() if s.retryable)
    if tally.interrupted:
        say(console, "interrupted: the same command goes on where it stopped")
    elif left:
        reasons = ",".join(s.label for s in (State.READ_FAILED, State.ENCODE_FAILED) if total[s])
        say(console, f"{left} windows can be tried again" + (f": add --retry {reasons}" if reasons else ""))
    return Outcome(Exit.RETRYABLE if left else Exit.DONE, tuple(c.url for c in cubes), dict(total), tally)
