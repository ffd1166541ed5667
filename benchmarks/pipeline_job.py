"""Runs one whole job in a process of its own, its worker in it as in production, and notes where its time goes.

Started by `benchmarks.pipeline` with JSON that says what: a fresh process, so that nothing of a job before is open, and
`probe.LOG` in its environment. It prints the windows that ended ok and the seconds from the command to its report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import probe
from eocube.errors import EocubeError


@dataclass(frozen=True, slots=True)
class Asked:
    """What the job encodes, and on what."""

    catalog: str
    box: tuple[float, float, float, float]
    """West south east north, degrees."""
    interval: str
    weights: str
    out: str
    precision: str | None
    gpu: bool
    threads: int
    """Cores that it may use."""
    source_options: Mapping[str, Any] | None = None
    """fsspec's, of catalogue and sources."""


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of it."""

    windows: int
    whole: float
    """Seconds from the command to its report, without the imports."""


def run_apart(asked: Asked, log: Path, *, stub: bool) -> Ended:
    """Run the job in a fresh process that notes its units in `log`. EocubeError with what it said where it fails."""
    here = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])]), probe.LOG: str(log),
    }  # fmt: skip
    if stub:
        environment[probe.STUB] = "1"
    command = [sys.executable, "-m", "benchmarks.pipeline_job", json.dumps(asdict(asked))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise EocubeError(f"the job ended with {done.returncode}: {said[-1] if said else 'nothing said'}")
    return Ended(**json.loads(done.stdout.splitlines()[-1]))


def main(argv: Sequence[str]) -> None:
    """`python -m benchmarks.pipeline_job JSON`, of `Asked`'s fields."""
    asked = Asked(**json.loads(argv[0]))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.threads])
    from eocube.ground.boxes import parse_bbox, parse_interval
    from eocube.run.asked import Running, Selection, Showing
    from eocube.run.job import encode_region
    from eocube.store.receipts import State

    probe.install()
    # As fp16, which the recorded figures are of; `benchmarks/stored.py` compares codes with it.
    selection = Selection(
        boxes=parse_bbox(*asked.box), interval=parse_interval(asked.interval), catalog=asked.catalog,
        weights=asked.weights, out=asked.out, precision=asked.precision, storage="fp16",
    )  # fmt: skip
    # Scored as production does it.
    running = Running(
        engine="local",
        gpus_per_actor=1.0 if asked.gpu else 0.0,
        source_options=asked.source_options,
        storage_options={},
    )
    began = time.perf_counter()
    outcome = encode_region(selection, running, Showing(quiet=True))
    ended = Ended(outcome.counts.get(State.OK, 0), time.perf_counter() - began)
    print(json.dumps(asdict(ended)))


if __name__ == "__main__":
    main(sys.argv[1:])
