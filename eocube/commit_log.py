"""The commit log: receipts in segments `commits/00000000.jsonl`, each written once and whole by the one driver."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from threading import Lock

from eocube.commits import Receipt
from eocube.errors import StoreError
from eocube.target import Target

FOLDER = "commits"
PLAN = f"{FOLDER}/plan.json"
LAYOUT = f"{FOLDER}/layout.json"
_SEGMENT = re.compile(rf"{FOLDER}/(\d{{8,}})\.jsonl")
_TOGETHER = 64  # segments read at once: bounds memory, hides latency

Place = tuple[int, int, int]
"""(time, shard row, shard column)."""


class CommitLog:
    """The receipts of a store. The last receipt of a (time, shard) counts; earlier ones are history."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._next: int | None = None
        self._lock = Lock()

    def segments(self) -> list[str]:
        """Keys of the segments in the order they were written."""
        numbered = [(int(m[1]), key) for key in self._target.keys(FOLDER) if (m := _SEGMENT.fullmatch(key))]
        return [key for _, key in sorted(numbered)]

    def append(self, receipts: Iterable[Receipt]) -> str | None:
        """Write receipts as one new segment, in one request; its key, or None when there are none."""
        lines = [receipt.to_json() + "\n" for receipt in receipts]
        if not lines:
            return None
        with self._lock:
            if self._next is None:
                last = self.segments()[-1:]
                match = _SEGMENT.fullmatch(last[0]) if last else None
                self._next = int(match[1]) + 1 if match else 0
            key = f"{FOLDER}/{self._next:08d}.jsonl"
            self._target.put(key, "".join(lines).encode())
            self._next += 1
        return key

    def receipts(self) -> Iterator[Receipt]:
        """Every receipt in the order logged, those that a later one replaced too.

        A segment's torn last line is left out: its unit is simply not done. StoreError for damage elsewhere.
        """
        for _, receipt in self._read():
            yield receipt

    def latest(self) -> Latest:
        """What counts: the last receipt of every (time, shard)."""
        lines: dict[Place, bytes] = {}
        for line, receipt in self._read():
            lines[(receipt.time, *receipt.shard)] = line
        return Latest(lines)

    def _read(self) -> Iterator[tuple[bytes, Receipt]]:
        keys = self.segments()
        for start in range(0, len(keys), _TOGETHER):
            batch = keys[start : start + _TOGETHER]
            for key, data in zip(batch, self._target.get_many(batch), strict=True):
                lines = data.split(b"\n")
                for number, line in enumerate(lines, 1):
                    if not line.strip():
                        continue
                    try:
                        receipt = Receipt.from_json(line)
                    except (ValueError, json.JSONDecodeError) as error:
                        if number == len(lines):  # no newline after it: torn
                            break
                        raise StoreError(
                            f"{self._target.at(key)} line {number} is damaged ({error}): remove the segment and run "
                            "the same command again; its units are done again"
                        ) from error
                    yield line, receipt


class Latest:
    """The receipts that count, by (time, shard row, shard column) in that order whatever the log's; held as lines."""

    def __init__(self, lines: dict[Place, bytes]) -> None:
        self._lines = lines
        self._places = sorted(lines)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Receipt]:
        return (Receipt.from_json(self._lines[place]) for place in self._places)

    def of_times(self, start: int, stop: int) -> Iterator[Receipt]:
        """Those of times start <= t < stop."""
        return (Receipt.from_json(self._lines[p]) for p in self._places if start <= p[0] < stop)
