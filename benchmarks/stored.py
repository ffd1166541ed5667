"""Times encoding and decoding with each storage, in turn: `python -m benchmarks.stored`.

What is compared is the whole job's steady rate (first pixel read to last shard written, through the real engine) and
`ds.eocube.decode` of the first date of what it made. Every round runs both storages, the first one another each time;
the ratio is the median of the rounds' own ratios, so that what slows the machine for a while weighs little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eocube
from benchmarks.machine import describe
from benchmarks.pipeline import private_ray, whole_job
from benchmarks.shard_scenes import shard_scenes
from benchmarks.timing import clock
from eocube.ground.boxes import parse_bbox, parse_interval
from eocube.run.asked import Running, Selection
from eocube.store.receipts import State
from eocube.store.store import CubeStore

REFERENCE, DEFAULT = "fp16", "codes"


@dataclass(frozen=True, slots=True)
class Options:
    """How much is timed."""

    weights: str | None = None
    rounds: int = 5
    dates: int = 3
    side: int = 10
    """Windows a side of what is encoded at each date."""
    decode_rounds: int = 7
    threads: int | None = None


def measure(options: Options, folder: Path) -> dict[str, Any]:
    """Windows a second of either storage, a round each, and the ratios."""
    threads = options.threads or torch.get_num_threads()
    machine = describe(torch.device("cpu"))
    encode: dict[str, list[float]] = {REFERENCE: [], DEFAULT: []}
    decode: dict[str, list[float]] = {REFERENCE: [], DEFAULT: []}
    written: dict[str, int] = {}
    index, interval, box = shard_scenes(folder / "scenes", options.dates, options.side)
    with private_ray(threads, folder / "spans", gpu=False):
        running = Running(verify_fraction=0, gpus_per_actor=0.0, actors=1)
        for turn in range(options.rounds):
            for storage in _order(turn):
                asked = Selection(
                    boxes=parse_bbox(*box), interval=parse_interval(interval), catalog=str(index),
                    weights=options.weights, storage=storage, out=str(folder / f"{storage}-{turn}.zarr"),
                )  # fmt: skip
                found = whole_job(asked, running, folder / "spans")
                encode[storage].append(found.windows / found.units)
    ways = {}
    for storage in (REFERENCE, DEFAULT):
        url = str(folder / f"{storage}-0.zarr")
        written[storage] = sum(receipt.bytes_out for receipt in CubeStore.open(url).receipts())
        ds = eocube.open(url)
        windows = int((ds["status"].isel(time=0) == State.OK).sum())
        lazy = ds.eocube.decode().isel(time=0)
        ways[storage] = lambda lazy=lazy: np.asarray(lazy.compute(scheduler="threads", num_workers=threads).values)
        ways[storage]()
    for turn in range(options.decode_rounds):
        for storage in _order(turn):
            decode[storage].append(windows / clock(ways[storage], 1, torch.device("cpu")))
    return {
        "machine": {**machine, "threads": threads}, "windows": windows, "dates": options.dates,
        "encode": _compared(encode), "decode": _compared(decode), "bytes": written,
    }  # fmt: skip


def _order(turn: int) -> tuple[str, str]:
    return (REFERENCE, DEFAULT) if turn % 2 == 0 else (DEFAULT, REFERENCE)


def _compared(rates: dict[str, list[float]]) -> dict[str, Any]:
    ratios = [new / old for new, old in zip(rates[DEFAULT], rates[REFERENCE], strict=True)]
    return {
        "windows_per_s": {name: [round(rate, 2) for rate in found] for name, found in rates.items()},
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 4),
        "ratio_of_best": round(max(rates[DEFAULT]) / max(rates[REFERENCE]), 4),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=None, help="as jobs/encode_region.py takes them (default: its own)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of jobs")
    parser.add_argument("--dates", type=int, default=3, help="dates of a job, 100 windows each")
    parser.add_argument("--decode-rounds", type=int, default=7, help="pairs of decoding a date")
    parser.add_argument("--json", type=Path, default=None, help="write the figures there")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        options = Options(asked.weights, asked.rounds, asked.dates, decode_rounds=asked.decode_rounds)
        text = json.dumps(measure(options, Path(folder)), indent=1)
    print(text)
    if asked.json is not None:
        asked.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
