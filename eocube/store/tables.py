"""Turns the commit log into arrays and figures: status and its companions, counts, scores, failures, moments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product

import numpy as np
import numpy.typing as npt

from eocube.read.coverage import CLEAR, ON_LATENTS, unpack_clouds, unpack_missing
from eocube.store.commit_log import Latest
from eocube.store.histogram import Histogram
from eocube.store.layout import ArraySpec
from eocube.store.moments import Moments
from eocube.store.receipts import Receipt, State, WindowResult, unpack_mask
from eocube.store.seams import Seams
from eocube.store.shard_codec import Block

Encode = Callable[[Block], bytes | None]
Box = tuple[slice, slice]
"""Rows and columns of windows."""

_REMEMBERED = 256  # encoded blocks kept of an array beside the latents: some hundred kB each at worst

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
    histogram: Histogram
    scores: Scores
    failures: tuple[Failure, ...]
    seams: Seams = field(default_factory=Seams)
    breaches: int = 0
    dark: Mapping[str, int] = field(default_factory=dict)
    """Windows too dark to be ground, by the item that they have pixels of, the most first."""

    @property
    def retryable(self) -> int:
        """Windows that another run may end otherwise."""
        return sum(n for state, n in self.counts.items() if state.retryable)


def summarise(receipts: Iterable[Receipt], requested: npt.NDArray[np.bool_], times: int) -> Summary:
    """Figures over the receipts that count, in their order. `requested` is (wy, wx)."""
    totals = Totals(requested)
    for receipt in receipts:
        totals.add(receipt)
    return totals.summary(times)


@dataclass(slots=True)
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        self.total, self.count = self.total + value, self.count + 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class Totals:
    """A summary in the making, receipt by receipt: holds sums, not receipts. `requested` is (wy, wx)."""

    def __init__(self, requested: npt.NDArray[np.bool_]) -> None:
        self._requested = requested
        self._counts: Counter[State] = Counter()
        self._failed: Counter[tuple[State, str | None, str | None, str | None]] = Counter()
        self._precision: Counter[str] = Counter()
        self._dark: Counter[str] = Counter()
        self._psnr, self._sam = _Mean(), _Mean()
        self._moments, self._histogram, self._seams = Moments(0, (), ()), Histogram(), Seams()
        self._units = self._bytes_in = self._bytes_out = self._scored = self._breaches = 0
        self._seconds = 0.0

    def add(self, receipt: Receipt) -> None:
        """Count a receipt in. The last bits of the moments depend on the order: that of the log's `latest`."""
        self._units += 1
        self._bytes_in += receipt.bytes_in
        self._bytes_out += receipt.bytes_out
        self._seconds += receipt.seconds
        self._precision.update(receipt.precision)
        self._dark.update(receipt.dark)
        if receipt.moments is not None:
            self._moments = self._moments.merge(receipt.moments)
        if receipt.histogram is not None:
            self._histogram = self._histogram.merge(receipt.histogram)
        if receipt.seams is not None:
            self._seams = Seams.merged((self._seams, receipt.seams))
        for window in receipt.windows:
            if not self._requested[window.row, window.col]:
                continue
            self._counts[window.state] += 1
            if window.state in (State.READ_FAILED, State.ENCODE_FAILED):
                self._failed[(window.state, window.item, window.asset, window.reason)] += 1
            if window.psnr is not None:
                self._psnr.add(window.psnr)
            if window.sam is not None:
                self._sam.add(window.sam)
            self._breaches += window.state is State.OK and window.reason is not None
            self._scored += window.psnr is not None or window.sam is not None

    def summary(self, times: int) -> Summary:
        """What it came to, for a store of so many time steps."""
        counts, wanted = Counter(self._counts), int(self._requested.sum())
        counts[State.NOT_ATTEMPTED] += times * wanted - self._counts.total()
        counts[State.OUTSIDE] += times * (self._requested.size - wanted)
        order = sorted(self._failed.items(), key=lambda f: (-f[1], f[0][0], *(v or "" for v in f[0][1:])))
        return Summary(
            counts={state: counts[state] for state in State},
            units=self._units,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            seconds=self._seconds,
            precision=dict(sorted(self._precision.items())),
            moments=self._moments,
            histogram=self._histogram,
            scores=Scores(self._psnr.value, self._sam.value, self._scored),
            failures=tuple(Failure(*key, windows=n) for key, n in order),
            seams=self._seams,
            breaches=self._breaches,
            dark=dict(sorted(self._dark.items(), key=lambda d: (-d[1], d[0]))),
        )


def derived_objects(
    specs: Mapping[str, ArraySpec],
    latest: Latest,
    requested: npt.NDArray[np.bool_],
    *,
    valid: bool = True,
    seen: Callable[[Receipt], None] | None = None,
) -> Iterator[tuple[str, bytes | None]]:
    """The objects that follow from the log, every one of them: (key, bytes), None for one that is not to be there.

    Each receipt is read once, in the log's order, and none is kept. Those beside the latents come time by time, then
    those of `WINDOW_ARRAYS` for the times that share their objects: memory holds one time of the former, where there
    is ground, and one row of objects of the latter.

    Args:
        specs: the store's arrays.
        latest: the receipts that count.
        requested: (wy, wx).
        valid: whether the objects of the arrays beside the latents are wanted too.
        seen: is shown every receipt.
    """
    status = specs["status"]
    assert status.shards is not None
    times, together = status.shape[0], status.shards[0]
    beside = Beside(specs) if valid else None
    tabled = [name for name in WINDOW_ARRAYS if name in specs]  # a product that is not decoded has no scores
    # Ground that is only reserved takes no memory, and its blocks are all alike.
    encode = {name: _remembering(specs[name].codec.encode) for name in tabled}
    asked = _asked(requested, status.shards[1:])
    for start in range(0, times, together):
        stop = min(start + together, times)
        tables: dict[str, Block] = {
            name: np.full((stop - start, *requested[asked].shape), specs[name].fill, specs[name].dtype)
            for name in tabled
        }
        tables["status"][:, ~requested[asked]] = State.OUTSIDE
        for time in range(start, stop):
            for receipt in latest.of_times(time, time + 1):
                if seen is not None:
                    seen(receipt)
                _fill_windows(tables, receipt, time - start, requested, asked)
                if beside is not None:
                    beside.add(receipt)
            if beside is not None:
                yield from beside.objects(time)
        for name in tabled:
            blank = State.OUTSIDE if name == "status" else specs[name].fill
            yield from _objects(specs[name], tables[name], asked, blank, start // together, encode[name])


def _asked(requested: npt.NDArray[np.bool_], block: Sequence[int]) -> Box:
    """The box of whole blocks (as far as the array reaches) that holds every window asked for: rows and columns."""
    if not requested.any():
        return slice(0, 0), slice(0, 0)
    (top, bottom), (left, right) = (
        (int(found[0]) // side * side, int(found[-1]) // side * side + side)
        for found, side in zip((np.flatnonzero(requested.any(axis)) for axis in (1, 0)), block, strict=True)
    )
    return slice(top, min(bottom, requested.shape[0])), slice(left, min(right, requested.shape[1]))


def _fill_windows(
    tables: Mapping[str, Block], receipt: Receipt, at: int, requested: npt.NDArray[np.bool_], asked: Box
) -> None:
    windows = [w for w in receipt.windows if requested[w.row, w.col]]
    if not windows:
        return
    rows, cols = asked
    place = (at, [w.row - rows.start for w in windows], [w.col - cols.start for w in windows])
    tables["status"][place] = [int(w.state) for w in windows]
    tables["valid_percent"][place] = [w.valid_percent for w in windows]
    tables["cloud_percent"][place] = [w.cloud_percent for w in windows]
    for score in ("psnr", "sam"):
        if score in tables:
            found = [getattr(window, score) for window in windows]
            tables[score][place] = [np.nan if value is None else value for value in found]


class Beside:
    """The arrays beside the latents, of one time: filled window by window, given out object by object.

    Only the blocks that a window lies in take memory; the others have no object.
    """

    def __init__(self, specs: Mapping[str, ArraySpec]) -> None:
        self._specs = {name: specs[name] for name in ON_LATENTS if name in specs}
        valid = specs["valid"]
        assert valid.shards is not None
        self._core, self._side = valid.shape[1] // specs["status"].shape[1], valid.shards[1]
        self._grid = tuple(-(-n // self._side) for n in valid.shape[1:])
        self._encode = {name: _remembering(spec.codec.encode) for name, spec in self._specs.items()}
        self._blocks: dict[tuple[str, int, int], Block] = {}

    def add(self, receipt: Receipt) -> None:
        """Fill in the windows of a receipt that are ok."""
        for window in receipt.windows:
            if window.state is not State.OK:
                continue
            whole = window.valid_mask is None
            self._fill("valid", window, 100 if whole else unpack_mask(window.valid_mask, self._core))
            if window.clouds is not None and "cloud" in self._specs:
                cloud, shadow = (0, 0) if window.clouds == CLEAR else unpack_clouds(window.clouds, self._core)
                self._fill("cloud", window, cloud)
                self._fill("shadow", window, shadow)
            if window.missing is not None and "missing" in self._specs:
                size = self._specs["missing"].shape[3]
                self._fill("missing", window, unpack_missing(window.missing, self._core, size))

    def objects(self, time: int) -> Iterator[tuple[str, bytes | None]]:
        """Every object of that time, (key, bytes); forgets what was filled in."""
        blocks, self._blocks = self._blocks, {}
        for name, spec in self._specs.items():
            for i, j in product(*map(range, self._grid)):
                block = blocks.pop((name, i, j), None)
                key = spec.key(time, i, j, *[0] * (len(spec.shape) - 3))
                yield key, None if block is None else self._encode[name](block[None])

    def _fill(self, name: str, window: WindowResult, values: Block | int) -> None:
        per = self._side // self._core
        i, j = window.row // per, window.col // per
        if (name, i, j) not in self._blocks:
            spec = self._specs[name]
            height, width = (min(self._side, n - k * self._side) for n, k in zip(spec.shape[1:3], (i, j), strict=True))
            self._blocks[name, i, j] = np.full((height, width, *spec.shape[3:]), spec.fill, spec.dtype)
        row, col = window.row % per * self._core, window.col % per * self._core
        self._blocks[name, i, j][row : row + self._core, col : col + self._core] = values


def _remembering(encode: Encode) -> Encode:
    """The same, but blocks seen before are not encoded again: full coverage looks the same at every time."""
    seen: dict[Hashable, bytes | None] = {}

    def remembered(block: Block) -> bytes | None:
        uniform = block.min() == block.max()
        digest = (block.shape, int(block.flat[0]) if uniform else sha256(block.tobytes()).digest())
        if digest not in seen:
            if len(seen) >= _REMEMBERED:
                del seen[next(iter(seen))]
            seen[digest] = encode(block)
        return seen[digest]

    return remembered


def _objects(
    spec: ArraySpec, table: Block, box: Box, blank: float | str, at: int, encode: Encode
) -> Iterator[tuple[str, bytes | None]]:
    """The objects of one place along time: the array cut into its shards of the other two dimensions.

    `table` is what the array holds in a box of whole blocks, (times, rows, columns); elsewhere it is `blank`.
    """
    assert spec.shards is not None
    _, height, width = spec.shards
    (_, rows, cols), (down, across) = spec.shape, box
    for i, j in product(range(-(-rows // height)), range(-(-cols // width))):
        top, left = i * height, j * width
        if down.start <= top < down.stop and across.start <= left < across.stop:
            block = table[:, top - down.start :, left - across.start :][:, :height, :width]
        else:
            shape = len(table), min(height, rows - top), min(width, cols - left)
            block = np.full(shape, blank, spec.dtype)
        yield spec.key(at, i, j), encode(block)
