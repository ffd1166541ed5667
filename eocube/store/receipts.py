"""Holds what a finished work unit tells the driver: window states, results and receipts, one JSON line each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import IntEnum
from math import isfinite
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from eocube.ground.lattice import ShardPlace
from eocube.read.coverage import CLEAR, deflated, inflated
from eocube.store.histogram import Histogram
from eocube.store.moments import Moments
from eocube.store.seams import Seams


class State(IntEnum):
    """The one state a window ends in; the value is what the store's `status` array holds."""

    NOT_ATTEMPTED = 0
    OK = 1
    NODATA = 2
    CLOUDY = 3
    OUTSIDE = 4
    READ_FAILED = 5
    ENCODE_FAILED = 6

    @property
    def label(self) -> str:
        """The name users see: "read_failed"."""
        return self.name.lower()

    @property
    def retryable(self) -> bool:
        """True where another run may end otherwise."""
        return self in (State.NOT_ATTEMPTED, State.READ_FAILED, State.ENCODE_FAILED)

    @classmethod
    def named(cls, label: str) -> State:
        """The state of that name; ValueError lists the names there are."""
        try:
            return cls[label.upper()]
        except KeyError:
            raise ValueError(f"no window state {label!r}; there are: {', '.join(STATES)}") from None


STATES: tuple[str, ...] = tuple(state.label for state in State)


@dataclass(frozen=True, slots=True)
class WindowResult:
    """How one window ended.

    `row`, `col` index the store's (wy, wx) arrays. `valid_percent`, `cloud_percent` are of the core, 255 where not
    known. `psnr` in dB and `sam` in radians, None where not measured; an ok window with a `reason` decoded worse than
    its weights allow, and the reason says how much. `valid_mask` is `pack_mask` of the (core, core) percent of valid
    source pixels, None where every pixel is valid. `missing` is `pack_missing` of the core's pixels that the source
    lacks in some band, None where it lacks none or, beside a `valid_mask`, by a version that did not keep them;
    `clouds` is `pack_clouds` of cloud and shadow over its latent pixels. `item` and `asset` name what cannot be read.
    """

    row: int
    col: int
    state: State
    reason: str | None = None
    valid_percent: int = 0
    cloud_percent: int = 255
    psnr: float | None = None
    sam: float | None = None
    valid_mask: str | None = None
    item: str | None = None
    asset: str | None = None
    missing: str | None = None
    clouds: str | None = None


_BY_VALUE = {int(state): state for state in State}
_CHECK = b',"crc32":"'
MAX_WINDOWS = 65_536
"""Windows of one unit: the default shard has a hundred."""
_DENSE = ("row", "col", "state", "valid_percent", "cloud_percent")
_SPARSE = ("reason", "psnr", "sam", "valid_mask", "item", "asset", "missing", "clouds")


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a finished work unit (time, shard) did. `shard` is the (row, col) of the shard in the store's array.

    `bytes_in` and `bytes_out` count bytes read and written, `seconds` is wall time, `retries` counts requests made
    again, `sha256` that of the shard object (None when every latent is fill, so that there is no object), `precision`
    counts windows by numeric precision, `created` is ISO 8601 UTC, `run` the id of the run that made it, `seams` what
    the borders looked at came to, `dark` how many ok windows with pixels of an item are too dark to be ground
    (`eocube.read.plausible`), by item, `term` that of the lease under which it was made (None where none).
    """

    unit: str
    time: int
    shard: ShardPlace
    windows: tuple[WindowResult, ...]
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    retries: int = 0
    sha256: str | None = None
    moments: Moments | None = None
    histogram: Histogram | None = None
    precision: Mapping[str, int] = field(default_factory=dict)
    created: str = ""
    run: str = ""
    seams: Seams | None = None
    rules: Mapping[str, str] = field(default_factory=dict)
    """Scene id -> the rule by which its numbers were read (`plan.rules.short`); empty in receipts of version 0.1."""
    dark: Mapping[str, int] = field(default_factory=dict)
    term: int | None = None

    @property
    def complete(self) -> bool:
        """False while a window of the unit was not attempted."""
        return all(window.state is not State.NOT_ATTEMPTED for window in self.windows)

    def to_json(self) -> str:
        """One line; windows go by column, optional values by the window's place, so that a unit is about 2 kB."""
        windows: dict[str, Any] = {name: [int(getattr(w, name)) for w in self.windows] for name in _DENSE}
        for name in _SPARSE:
            values = {str(i): v for i, w in enumerate(self.windows) if _is_given(v := getattr(w, name))}
            if values:
                windows[name] = values
        if clear := _runs([k for k, w in enumerate(self.windows) if w.clouds == CLEAR]):
            windows["clear"] = clear
        data = {
            "unit": self.unit,
            "time": self.time,
            "shard": list(self.shard),
            **({} if self.term is None else {"term": self.term}),
            "sha256": self.sha256,
            "windows": windows,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "seconds": self.seconds,
            "retries": self.retries,
            "moments": None if self.moments is None else self.moments.to_dict(),
            "precision": dict(self.precision),
            "created": self.created,
            "run": self.run,
        }
        if self.histogram is not None:
            data["histogram"] = self.histogram.to_dict()
        if self.seams is not None:
            data["seams"] = self.seams.to_dict()
        if self.rules:
            data["rules"] = dict(self.rules)
        if self.dark:
            data["dark"] = dict(self.dark)
        return with_check(data)

    @classmethod
    def from_json(cls, line: str | bytes) -> Receipt:
        """Inverse of `to_json`. Unknown fields are ignored.

        Raises:
            ValueError: the line is not a whole receipt, or not as it was written: `crc32`, its last field, is that of
                the line without it.
        """
        try:
            data = checked(line.encode() if isinstance(line, str) else line)
            moments, seams, histogram = data.get("moments"), data.get("seams"), data.get("histogram")
            row, col = data["shard"]
            if not all(0 <= int(v) < 2**31 for v in (data["time"], row, col)):
                raise ValueError(f"not a receipt: time {data['time']}, shard {data['shard']} are in no store")
            return cls(
                unit=str(data["unit"]),
                time=int(data["time"]),
                shard=ShardPlace(int(row), int(col)),
                windows=_windows(data["windows"]),
                bytes_in=int(data.get("bytes_in", 0)),
                bytes_out=int(data.get("bytes_out", 0)),
                seconds=float(data.get("seconds", 0.0)),
                retries=int(data.get("retries", 0)),
                sha256=data["sha256"],
                moments=None if moments is None else Moments.from_dict(moments),
                histogram=None if histogram is None else Histogram.from_dict(histogram),
                precision={str(k): int(v) for k, v in data.get("precision", {}).items()},
                created=str(data.get("created", "")),
                run=str(data.get("run", "")),
                seams=None if seams is None else Seams.from_dict(seams),
                rules={str(k): str(v) for k, v in data.get("rules", {}).items()},
                dark={str(k): int(v) for k, v in data.get("dark", {}).items()},
                term=None if data.get("term") is None else int(data["term"]),
            )
        except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a receipt: {type(error).__name__}: {error}") from error


def with_check(document: Mapping[str, Any]) -> str:
    """A document as one line of JSON whose last field, `crc32`, is that of the line without it."""
    body = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return f'{body[:-1]}{_CHECK.decode()}{crc32(body.encode()):08x}"}}'


def is_whole(line: bytes) -> bool:
    """Whether a line is as `with_check` wrote it."""
    body, _, check = line.strip().rpartition(_CHECK)
    return check == b'%08x"}' % crc32(body + b"}")


def checked(line: bytes) -> dict[str, Any]:
    """The document of a line that `with_check` wrote; ValueError when it is not whole."""
    if not is_whole(line):
        raise ValueError("not a whole receipt: its checksum is missing or wrong")
    found: dict[str, Any] = json.loads(line)
    return found


def states_in(line: bytes) -> npt.NDArray[np.int64]:
    """(3, windows): row, column and state of a receipt's windows, at a tenth of what parsing the whole costs."""
    columns = checked(line)["windows"]
    return np.array([columns[name] for name in _DENSE[:3]], np.int64).reshape(3, -1)


def _is_given(value: str | float | None) -> bool:
    """Whether there is a value JSON can hold: a PSNR of infinity (nothing differs) counts as not measured."""
    return value is not None and (value != "" if isinstance(value, str) else isfinite(value))


def _runs(places: Sequence[int]) -> list[list[int]]:
    """Rising places as half-open runs: most units are clear from the first window to the last, which is 15 bytes."""
    runs: list[list[int]] = []
    for place in places:
        if runs and runs[-1][1] == place:
            runs[-1][1] += 1
        else:
            runs.append([place, place + 1])
    return runs


def _windows(columns: Mapping[str, Any]) -> tuple[WindowResult, ...]:
    rows: list[Sequence[int]] = [columns[name] for name in _DENSE]
    if len(rows[0]) > MAX_WINDOWS:
        raise ValueError(f"not a receipt: {len(rows[0])} windows, more than the {MAX_WINDOWS} that a shard can have")
    clouds: list[str | None] = [None] * len(rows[0])
    for first, stop in columns.get("clear", ()):
        for place in range(max(0, first), min(stop, len(clouds))):
            clouds[place] = CLEAR
    results = [
        WindowResult(row, col, _BY_VALUE[state], None, valid, cloud, clouds=clear)
        for row, col, state, valid, cloud, clear in zip(*rows, clouds, strict=True)
    ]
    extra: dict[int, dict[str, Any]] = {}
    for name in _SPARSE:
        for place, value in columns.get(name, {}).items():
            extra.setdefault(int(place), {})[name] = value
    for place, values in extra.items():
        results[place] = replace(results[place], **values)
    return tuple(results)


def pack_mask(valid: npt.NDArray[np.uint8]) -> str | None:
    """The (core, core) uint8 percents as base64 of zlib; None when every one is 100, which needs no mask."""
    if (valid == 100).all():
        return None
    return deflated(np.ascontiguousarray(valid, dtype=np.uint8).tobytes())


def unpack_mask(packed: str | None, core: int) -> npt.NDArray[np.uint8]:
    """Inverse of `pack_mask`: (core, core) uint8. ValueError when the size is not core x core."""
    if packed is None:
        return np.full((core, core), 100, np.uint8)
    return inflated(packed, core**2).reshape(core, core)


def now() -> str:
    """This moment as ISO 8601 UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
