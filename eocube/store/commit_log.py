"""Keeps the commit log: receipts in segments `commits/00000000.jsonl`, each written once and whole by the one driver.

A receipt carries the term of the lease under which it was made. A run that takes a store over from one that never said
that it was done first writes a segment of one line, `{"begins": <its term>, ...}`, and only then reads the log: what
it reads before that line is what it builds on, and a receipt of an older term behind it is of an owner that did not
know it had lost the store, perhaps about another extension's rows and times: it is as if it were not there, and so
is a segment that holds nothing else. A log of older versions has neither terms nor such lines; receipts without a term
always count.
"""

from __future__ import annotations

import json
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt

from eocube.errors import StoreError
from eocube.ground.lattice import ShardPlace
from eocube.net.objects import Objects
from eocube.store.receipts import Receipt, checked, is_whole, states_in, with_check

FOLDER = "commits"
PLAN = f"{FOLDER}/plan.json"
LAYOUT = f"{FOLDER}/layout.json"
SEAL = f"{FOLDER}/segments.json"
"""What the log held when the store was last finalised: a segment that went since is known to have gone."""
MOVING = f"{FOLDER}/moving.json"
"""Where version 0.1 noted how far it had come in moving a store's shards."""
_SEGMENT = re.compile(rf"{FOLDER}/(\d{{8,}})\.jsonl")
_PLACE = re.compile(rb'\{"unit":"[^"\\]*","time":(\d{1,9}),"shard":\[(\d{1,9}),(\d{1,9})\],(?:"term":(\d+),)?')
_SHIFT = b'{"shift":'
_BEGINS = b'{"begins":'
_NO_TERM = 2**62  # of a receipt that carries none: never too old
_TOGETHER = 64  # segments read at once: bounds memory, hides latency
_LINES = 1024  # receipts parsed ahead of their reader, at about 2 kB
_HELD = 32 * 2**20  # bytes of segments kept for reading them again
Place = tuple[int, int, int]
"""(time, shard row, shard column)."""
_ROW = np.dtype([(name, np.int32) for name in ("time", "row", "col", "segment", "start", "length")])


def segment_key(number: int) -> str:
    """Key of a segment."""
    return f"{FOLDER}/{number:08d}.jsonl"


class _At(NamedTuple):
    """Where a receipt counts, and of which term of the lease it is."""

    time: int
    row: int
    col: int
    term: int


class CommitLog:
    """The receipts of a store. The last receipt of a (time, shard) counts; earlier ones are history.

    Version 0.1 moved the corner that rows and columns count from when a store grew northwards or westwards: a `shift`
    line in the log of such a store says so, and receipts before it are read as if they had been written after it. No
    such line is written any more.
    """

    def __init__(self, target: Objects) -> None:
        self._target = target
        self._next: int | None = None
        self._lock = Lock()

    def segments(self) -> list[str]:
        """Keys of the segments in the order they were written."""
        numbered = [(int(m[1]), key) for key in self._target.keys(FOLDER) if (m := _SEGMENT.fullmatch(key))]
        return [key for _, key in sorted(numbered)]

    def next_number(self) -> int:
        """Number of the segment that comes next."""
        last = self.segments()[-1:]
        match = _SEGMENT.fullmatch(last[0]) if last else None
        return int(match[1]) + 1 if match else 0

    def append(self, receipts: Iterable[Receipt]) -> str | None:
        """Write receipts as one new segment, in one request; its key, or None when there are none.

        A segment that is there is never overwritten, whoever wrote it: receipts merge in any order.
        """
        fence = self._target.fence
        if fence is not None:
            receipts = (r if r.term is not None else replace(r, term=fence.term) for r in receipts)
        return self._write("".join(receipt.to_json() + "\n" for receipt in receipts).encode())

    def begin(self, term: int) -> None:
        """Say that a term has begun whose owner took the store over: older ones' receipts behind it do not count."""
        self._write((with_check({"begins": term}) + "\n").encode())

    def _write(self, data: bytes) -> str | None:
        if not data:
            return None
        with self._lock:
            if self._next is None:
                self._next = self.next_number()
            while not self._target.create(segment_key(self._next), data):
                self._next += 1
            self._next += 1
            return segment_key(self._next - 1)

    def receipts(self) -> Iterator[Receipt]:
        """Every receipt in the order logged, those that a later one replaced too.

        A segment's torn last line is left out: its unit is simply not done. StoreError for damage elsewhere.
        """
        keys = self.segments()
        shifts = {k: self._shift(keys[k], data) for k, data in self._each(keys) if data.startswith(_SHIFT)}
        moves, begun = _Moves(shifts, len(keys)), 0
        for k, data in self._each(keys):
            begun = max(begun, self._begins(keys[k], data))
            for number, (start, length) in enumerate(_lines(data), 1):
                line = data[start : start + length]
                if line.startswith((_SHIFT, _BEGINS)):
                    continue
                if (at := self._place(keys[k], number, line, data)) is not None and at.term >= begun:
                    yield moves.apply(k, Receipt.from_json(line))

    def latest(self) -> Latest:
        """What counts: the last receipt of every (time, shard). Memory: about 60 bytes a unit while it is made."""
        keys = self.segments()
        held = _Held(self._target, keys)
        rows: list[npt.NDArray[Any]] = []
        sums: dict[str, str] = {}
        begun = 0
        shifts: dict[int, tuple[int, ...]] = {}
        for k, data in self._each(keys):
            held.keep(k, data)
            begun = max(begun, self._begins(keys[k], data))
            found, late = [], 0
            for number, (start, length) in enumerate(_lines(data), 1):
                line = data[start : start + length]
                if line.startswith(_SHIFT):
                    shifts[k] = self._shift(keys[k], line)
                elif line.startswith(_BEGINS):
                    continue
                elif (at := self._place(keys[k], number, line, data)) is not None:
                    if at.term >= begun:
                        found.append((at.time, at.row, at.col, k, start, length))
                    else:
                        late += 1
            if found or not late:
                sums[keys[k]] = f"{crc32(data):08x}"
            rows.append(np.array(found, _ROW))
        if self._target.fence is not None:
            self._target.fence.confirm()  # so that what was read is of this run's store, not of one grown since
        table = np.concatenate(rows) if rows else np.empty(0, _ROW)
        del rows
        moves = _Moves(shifts, len(keys))
        table["row"] += moves.rows[table["segment"]]
        table["col"] += moves.cols[table["segment"]]
        # By place, and by age within a place: the last of each place counts.
        order = np.lexsort((table["start"], table["segment"], table["col"], table["row"], table["time"]))
        table = table[order]
        if len(table):
            places = [table[name] for name in ("time", "row", "col")]
            last = np.ones(len(table), np.bool_)
            last[:-1] = np.logical_or.reduce([p[1:] != p[:-1] for p in places])
            table = table[last]
        return Latest(table, held, moves, sums)

    def mend(self, known: Mapping[str, str], wanted: Callable[[Receipt], bool]) -> Mended:
        """Write the segments that are not what they were without the lines that are damaged, or not `wanted`.

        Every line has a check of its own: those that are whole stay, in their segment, so that a receipt does not
        become younger than one which replaced it. A segment without a whole line is removed.

        Args:
            known: CRC-32 of the segments as the store was last finalised.
            wanted: whether a receipt of a segment that is not as it was belongs to the store.
        """
        keys = self.segments()
        damaged = []
        for k, data in self._each(keys):
            key, lines = keys[k], [data[start : start + length] for start, length in _lines(data)]
            whole = [line for line in lines if is_whole(line)]
            if known[key] == f"{crc32(data):08x}" if key in known else len(whole) == len(lines):
                continue
            damaged.append(key)
            kept = b"".join(
                line + b"\n" for line in whole if line.startswith((_SHIFT, _BEGINS)) or _passes(line, wanted)
            )
            if not kept:
                self._target.delete(key)
            elif kept != data:
                self._target.put(key, kept)
        self._next = None
        return Mended(tuple(damaged), tuple(key for key in known if key not in keys))

    def _each(self, keys: Sequence[str]) -> Iterator[tuple[int, bytes]]:
        """Every segment's number in `keys` and its bytes, few at a time."""
        for first in range(0, len(keys), _TOGETHER):
            batch = keys[first : first + _TOGETHER]
            yield from enumerate(self._target.get_many(batch), first)

    def _place(self, key: str, number: int, line: bytes, data: bytes) -> _At | None:
        """A line's place and term, parsed where it is not as this version writes them; None for a torn last line."""
        if is_whole(line) and (found := _PLACE.match(line)):
            return _At(int(found[1]), int(found[2]), int(found[3]), _NO_TERM if found[4] is None else int(found[4]))
        try:
            receipt = Receipt.from_json(line)
            return _At(receipt.time, *receipt.shard, _NO_TERM if receipt.term is None else receipt.term)
        except (ValueError, json.JSONDecodeError) as error:
            if data.endswith(line):  # no newline after it: torn
                return None
            raise self._damaged(key, number, error) from error

    def _shift(self, key: str, data: bytes) -> tuple[int, ...]:
        """The shift that a segment of one line holds: (shard rows, shard columns, window rows, window columns)."""
        try:
            found = checked(data.rstrip(b"\n"))
            return tuple(int(v) for v in (*found["shift"], *found["windows"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(key, 1, error) from error

    def _begins(self, key: str, data: bytes) -> int:
        """The term that a segment says began with it; 0 where it says nothing of the kind."""
        if not data.startswith(_BEGINS):
            return 0
        try:
            return int(checked(data.rstrip(b"\n"))["begins"])
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(key, 1, error) from error

    def _damaged(self, key: str, number: int, error: Exception) -> StoreError:
        return StoreError(
            f"{self._target.at(key)} line {number} is damaged ({error}): remove the segment and run "
            "the same command again; its units are done again"
        )


class Mended(NamedTuple):
    """Segments that were not what they were, and those that were gone."""

    damaged: tuple[str, ...]
    gone: tuple[str, ...]


class _Moves:
    """How far what a segment says lies from where it is counted now."""

    def __init__(self, shifts: dict[int, tuple[int, ...]], segments: int) -> None:
        self._total = np.zeros((segments + 1, 4), np.int32)
        for k, shift in shifts.items():
            self._total[:k] += np.array(shift, np.int32)

    @property
    def rows(self) -> npt.NDArray[np.int32]:
        """Shard rows to add, by segment."""
        return self._total[:, 0]

    @property
    def cols(self) -> npt.NDArray[np.int32]:
        """Shard columns to add, by segment."""
        return self._total[:, 1]

    def windows(self, segment: int) -> npt.NDArray[np.int32]:
        """(2, 1): window rows and columns to add to what a segment says."""
        return self._total[segment, 2:, None]

    def apply(self, segment: int, receipt: Receipt) -> Receipt:
        """A receipt of a segment as it would be written now."""
        drow, dcol, dwy, dwx = (int(v) for v in self._total[segment])
        if not (drow or dcol):
            return receipt
        shard = ShardPlace(receipt.shard.row + drow, receipt.shard.col + dcol)
        return replace(
            receipt,
            unit=f"t{receipt.time:05d}/r{shard.row:04d}/c{shard.col:04d}",
            shard=shard,
            windows=tuple(replace(w, row=w.row + dwy, col=w.col + dwx) for w in receipt.windows),
        )


class _Held:
    """Segments by their number, the last ones read kept up to a bound."""

    def __init__(self, target: Objects, keys: Sequence[str]) -> None:
        self._target, self._keys = target, keys
        self._data: OrderedDict[int, bytes] = OrderedDict()
        self._size = 0

    def keep(self, number: int, data: bytes) -> None:
        """Remember a segment, and forget the longest unused ones."""
        if number in self._data:
            return
        self._data[number] = data
        self._size += len(data)
        while self._size > _HELD and len(self._data) > 1:
            self._size -= len(self._data.popitem(last=False)[1])

    def get(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Segments, those that are not kept read several at a time."""
        absent = [n for n in numbers if n not in self._data]
        for number in numbers:
            if number in self._data:
                self._data.move_to_end(number)
                yield number, self._data[number]
        for first in range(0, len(absent), _TOGETHER):
            batch = absent[first : first + _TOGETHER]
            for number, data in zip(batch, self._target.get_many([self._keys[n] for n in batch]), strict=True):
                self.keep(number, data)
                yield number, data


class Latest:
    """The receipts that count, by (time, shard row, shard column) in that order whatever the log's.

    Only where each lies is held, 24 bytes a unit; the receipts themselves are read again as they are asked for.
    """

    def __init__(self, table: npt.NDArray[Any], held: _Held, moves: _Moves, segments: Mapping[str, str]) -> None:
        self._table, self._held, self._moves = table, held, moves
        self.segments = segments
        """CRC-32 of every segment of the log that counts, by its key."""

    def seal(self) -> bytes:
        """What `commits/segments.json` is to hold."""
        return with_check({"segments": dict(self.segments)}).encode()

    def __len__(self) -> int:
        return len(self._table)

    def __iter__(self) -> Iterator[Receipt]:
        return self._between(0, len(self._table))

    def of_times(self, start: int, stop: int) -> Iterator[Receipt]:
        """Those of times start <= t < stop."""
        first, last = np.searchsorted(self._table["time"], (start, stop))
        return self._between(int(first), int(last))

    def of(self, time: int, row: int, col: int) -> Receipt:
        """The receipt of one unit, which is there."""
        first, last = np.searchsorted(self._table["time"], (time, time + 1))
        part = self._table[first:last]
        (at,) = np.flatnonzero((part["row"] == row) & (part["col"] == col))
        return next(self._between(int(first + at), int(first + at) + 1))

    def states(self) -> Iterator[tuple[Place, npt.NDArray[np.int64]]]:
        """Each unit's (time, row, column), and (3, windows) of row, column and state: cheaper than its receipt."""
        places = zip(*(self._table[name].tolist() for name in ("time", "row", "col")), strict=True)
        for place, (line, segment) in zip(places, self._raw(0, len(self._table)), strict=True):
            found = states_in(line)
            found[:2] += self._moves.windows(segment)
            yield place, found

    def dark(self) -> dict[str, int]:
        """Windows too dark to be ground, by item; receipts that name none are not parsed."""
        found: Counter[str] = Counter()
        for line, _ in self._raw(0, len(self._table)):
            if b'"dark":' in line:
                found.update(checked(line).get("dark", {}))
        return dict(sorted(found.items(), key=lambda d: (-d[1], d[0])))

    def _between(self, first: int, last: int) -> Iterator[Receipt]:
        return (self._moves.apply(segment, Receipt.from_json(line)) for line, segment in self._raw(first, last))

    def _raw(self, first: int, last: int) -> Iterator[tuple[bytes, int]]:
        """Lines with their segment's number, in the order of the table."""
        for begin in range(first, last, _LINES):
            part = self._table[begin : min(begin + _LINES, last)]
            lines: list[bytes] = [b""] * len(part)
            for number, data in self._held.get([int(n) for n in np.unique(part["segment"])]):
                for i in np.flatnonzero(part["segment"] == number):
                    lines[i] = data[part["start"][i] : part["start"][i] + part["length"][i]]
            yield from zip(lines, part["segment"].tolist(), strict=True)


def _passes(line: bytes, wanted: Callable[[Receipt], bool]) -> bool:
    """Whether a line is a receipt that is wanted."""
    try:
        return wanted(Receipt.from_json(line))
    except (ValueError, StoreError):
        return False


def _lines(data: bytes) -> Iterator[tuple[int, int]]:
    """(start, length) of every line that is not empty. Numbers count these lines."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start)
        end = len(data) if end < 0 else end
        if data[start:end].strip():
            yield start, end - start
        start = end + 1
