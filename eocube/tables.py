"""What the commit log says, as arrays and figures: status and its companions, counts, scores, failures, moments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product

import numpy as np
import numpy.typing as npt

from eocube.commit_log import Latest
from eocube.commits import Receipt, State, unpack_mask
from eocube.layout import ArraySpec
from eocube.moments import Moments
from eocube.seams import Seams
from eocube.shard_codec import Block

Encode = Callable[[Block], bytes | None]

_REMEMBERED = 256  # encoded blocks of `valid` kept: some hundred kB each at worst

# `status` last: what it says is ok is there in all the others by then.
WINDOW_ARRAYS = ("valid_percent", "cloud_percent", "psnr", "sam", "status")


@dataclass(frozen=True, slots=True)
class Failure:
    """A source or window that failed, and how many windows it cost."""

    state: State
    item: str | None
    asset: str | None
    reason: str | None
    windows: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Mean PSNR in dB and mean SAM in radians over the windows that were measured; None where none was."""

    psnr: float | None
    sam: float | None
    windows: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a store holds, from its commit log. `seconds` is work time summed over units, `precision` counts windows.

    `breaches` counts the ok windows that decode worse than their weights allow.
    """

    counts: Mapping[State, int]
    units: int
    bytes_in: int
    bytes_out: int
    seconds: float
    precision: Mapping[str, int]
    moments: Moments
    scores: Scores
    failures: tuple[Failure, ...]
    seams: Seams = field(default_factory=Seams)
    breaches: int = 0

    @property
    def retryable(self) -> int:
        """Windows that another run may end otherwise."""
        return sum(n for state, n in self.counts.items() if state.retryable)


def summarise(receipts: Iterable[Receipt], requested: npt.NDArray[np.bool_], times: int) -> Summary:
    """Figures over the receipts that count, in their order. `requested` is (wy, wx)."""
    counts: Counter[State] = Counter()
    failed: Counter[tuple[State, str | None, str | None, str | None]] = Counter()
    precision: Counter[str] = Counter()
    psnr: list[float] = []
    sam: list[float] = []
    parts: list[Moments] = []
    seams: list[Seams] = []
    breaches = 0
    units = bytes_in = bytes_out = logged = scored = 0
    seconds = 0.0
    for receipt in receipts:
        units += 1
        bytes_in += receipt.bytes_in
        bytes_out += receipt.bytes_out
        seconds += receipt.seconds
        precision.update(receipt.precision)
        if receipt.moments is not None:
            parts.append(receipt.moments)
        if receipt.seams is not None:
            seams.append(receipt.seams)
        for window in receipt.windows:
            if not requested[window.row, window.col]:
                continue
            counts[window.state] += 1
            logged += 1
            if window.state in (State.READ_FAILED, State.ENCODE_FAILED):
                failed[(window.state, window.item, window.asset, window.reason)] += 1
            if window.psnr is not None:
                psnr.append(window.psnr)
            if window.sam is not None:
                sam.append(window.sam)
            breaches += window.state is State.OK and window.reason is not None
            scored += window.psnr is not None or window.sam is not None
    wanted = int(requested.sum())
    counts[State.NOT_ATTEMPTED] += times * wanted - logged
    counts[State.OUTSIDE] += times * (requested.size - wanted)
    order = sorted(failed.items(), key=lambda f: (-f[1], f[0][0], *(v or "" for v in f[0][1:])))
    return Summary(
        counts={state: counts[state] for state in State},
        units=units,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        seconds=seconds,
        precision=dict(sorted(precision.items())),
        moments=Moments.merged(parts),
        scores=Scores(_mean(psnr), _mean(sam), scored),
        failures=tuple(Failure(*key, windows=n) for key, n in order),
        seams=Seams.merged(seams),
        breaches=breaches,
    )


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def window_objects(
    specs: Mapping[str, ArraySpec], latest: Latest, requested: npt.NDArray[np.bool_]
) -> Iterator[tuple[str, bytes | None]]:
    """The objects of the (time, wy, wx) arrays as the log has them: (key, bytes), every one of them, in the order of
    `WINDOW_ARRAYS` for the times of an object.
    """
    status = specs["status"]
    assert status.shards is not None
    times, together = status.shape[0], status.shards[0]
    for start in range(0, times, together):
        stop = min(start + together, times)
        tables: dict[str, Block] = {
            name: np.full((stop - start, *status.shape[1:]), specs[name].fill, specs[name].dtype)
            for name in WINDOW_ARRAYS
        }
        tables["status"][:, ~requested] = State.OUTSIDE
        for receipt in latest.of_times(start, stop):
            _fill_windows(tables, receipt, receipt.time - start, requested)
        for name in WINDOW_ARRAYS:
            yield from _objects(specs[name], tables[name], start // together, specs[name].codec.encode)


def _fill_windows(tables: Mapping[str, Block], receipt: Receipt, at: int, requested: npt.NDArray[np.bool_]) -> None:
    windows = [w for w in receipt.windows if requested[w.row, w.col]]
    if not windows:
        return
    place = (at, [w.row for w in windows], [w.col for w in windows])
    tables["status"][place] = [int(w.state) for w in windows]
    tables["valid_percent"][place] = [w.valid_percent for w in windows]
    tables["cloud_percent"][place] = [w.cloud_percent for w in windows]
    tables["psnr"][place] = [np.nan if w.psnr is None else w.psnr for w in windows]
    tables["sam"][place] = [np.nan if w.sam is None else w.sam for w in windows]


def valid_objects(specs: Mapping[str, ArraySpec], latest: Latest, core: int) -> Iterator[tuple[str, bytes | None]]:
    """The objects of `valid`, one time after the other: (key, bytes), None where nothing is valid."""
    spec = specs["valid"]
    encode = _remembering(spec.codec.encode)
    for time in range(spec.shape[0]):
        table = np.zeros((1, *spec.shape[1:]), np.uint8)
        for receipt in latest.of_times(time, time + 1):
            for window in receipt.windows:
                if window.state is State.OK:
                    rows = slice(window.row * core, (window.row + 1) * core)
                    cols = slice(window.col * core, (window.col + 1) * core)
                    table[0, rows, cols] = unpack_mask(window.valid_mask, core)
        yield from _objects(spec, table, time, encode)


def _remembering(encode: Encode) -> Encode:
    """The same, but blocks seen before are not encoded again: full coverage looks the same at every time."""
    seen: dict[bytes, bytes | None] = {}

    def remembered(block: Block) -> bytes | None:
        digest = sha256(repr(block.shape).encode() + block.tobytes()).digest()
        if digest not in seen:
            if len(seen) >= _REMEMBERED:
                del seen[next(iter(seen))]
            seen[digest] = encode(block)
        return seen[digest]

    return remembered


def _objects(spec: ArraySpec, table: Block, at: int, encode: Encode) -> Iterator[tuple[str, bytes | None]]:
    """The objects of one place along time: the table cut into its shards of the other two dimensions."""
    assert spec.shards is not None
    _, height, width = spec.shards
    for i, j in product(range(-(-table.shape[1] // height)), range(-(-table.shape[2] // width))):
        block = table[:, i * height : (i + 1) * height, j * width : (j + 1) * width]
        yield spec.key(at, i, j), encode(block)
