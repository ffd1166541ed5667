"""Streams patches of cubes in a seeded order: each object read once an epoch, ahead on threads, exactly resumable."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from eocube.cube.stored_values import Values
from eocube.cube.window_index import Ground, Ints
from eocube.cube.windows import CubeWindows, LatentPatch, OpenUnit
from eocube.errors import InputError, StoreError

if TYPE_CHECKING:
    from torch.utils.data import IterableDataset

OnError = Literal["raise", "skip"]


class WindowStream:
    """The patches of one worker, epoch after epoch; within an epoch each comes once and each object is read once.

    Memory is bounded by `memory_bytes`: `open_units + ahead` units as stored; what `threads` that read hold beside
    them, the object's bytes and its pieces while they are unpacked, 3 units each at most; 32 bytes a patch of the
    epoch for its order. Patches that were given are the caller's.

    Args:
        windows: what to give.
        rank, world: this worker, and how many share the patches: ranks of a training run times loader processes.
        open_units: shards (or blocks of a pair) whose patches mix.
        ahead: units that are read before they are needed.
        threads: that read.
        epochs: how many are given; None goes on for ever.
        on_error: "raise" ends with the StoreError of what cannot be read; what was saved then tries it again. "skip"
            leaves out its patches and names it in `failed`; the order of the others is the same.

    Raises:
        InputError: as `CubeWindows.order`.
        StoreError: while iterating: an object that cannot be read, or an epoch without one patch.
    """

    def __init__(
        self,
        windows: CubeWindows,
        *,
        rank: int = 0,
        world: int = 1,
        open_units: int = 8,
        ahead: int = 2,
        threads: int = 2,
        epochs: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        if threads < 1 or ahead < 0 or on_error not in ("raise", "skip"):
            raise InputError(
                f"{threads} threads, {ahead} units ahead, on_error {on_error!r}: 1 or more, 0 or more, raise or skip"
            )
        self.windows, self.rank, self.world, self.epochs = windows, rank, world, epochs
        self._open, self._ahead, self._threads, self._on_error = open_units, ahead, threads, on_error
        self.failed: dict[str, str] = {}
        """What could not be read, by its unit's name, and why."""
        self._pool: ThreadPoolExecutor | None = None
        self._resident: dict[int, Future[OpenUnit]] = {}
        self._go_to(0, 0)

    def __iter__(self) -> WindowStream:
        return self

    def __next__(self) -> LatentPatch:
        while True:
            if self._position >= len(self._order):
                if not self._given:
                    why = next(iter(self.failed.values()), "no source pixel is valid in any patch")
                    raise StoreError(f"a whole epoch of {len(self._order)} patches gave none: {why}")
                self._go_to(self.epoch + 1, 0)
            if self.epochs is not None and self.epoch >= self.epochs:
                self.close()
                raise StopIteration
            patch = self._take()
            if patch is not None:
                self._given += 1
                return patch

    @property
    def patches_per_epoch(self) -> int:
        """This worker's patches in the present epoch, those without valid pixels included."""
        return len(self._order)

    @property
    def memory_bytes(self) -> int:
        """The bound of the class's docstring, in bytes."""
        held = self._open + self._ahead + 3 * self._threads
        return held * self.windows.unit_bytes + 32 * len(self._order)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and place in it: plain numbers and one hash."""
        return {"data": self._data, "epoch": self.epoch, "position": self._position, "given": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the very patch that would have come next. Objects that are still needed are read again.

        InputError where the state is of other patches: other cubes, ground, split, side, seed or worker; also of cubes
        that have grown since, which changes every order.
        """
        if state.get("data") != self._data:
            raise InputError(
                "the saved place is of other patches: resume with the same cubes, split, side, seed, open units and "
                "number of workers; where a cube has grown since, begin a new epoch"
            )
        self._go_to(int(state["epoch"]), int(state["position"]))
        self._given = int(state["given"])

    def close(self) -> None:
        """Stop reading ahead and let go of what is open. Drawing on reads it again."""
        for future in self._resident.values():
            future.cancel()
        self._resident = {}
        self._submitted = 0
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._plan_reading()

    @property
    def _data(self) -> str:
        return f"{self.windows.fingerprint}-{self.rank}/{self.world}-{self._open}"

    def _go_to(self, epoch: int, position: int) -> None:
        for future in self._resident.values():
            future.cancel()
        self.epoch, self._position, self._given = epoch, position, 0
        self._order: Ints = self.windows.order(epoch, self.rank, self.world, self._open)
        self._resident = {}
        self._plan_reading()

    def _plan_reading(self) -> None:
        """Which units are needed from here on, by when first, and for how many patches."""
        units = self.windows.index.unit_of(self._order[self._position :])
        names, first, counts = np.unique(units, return_index=True, return_counts=True)
        self._needed: list[int] = [int(u) for u in names[np.argsort(first)]]
        self._left: dict[int, int] = dict(zip(names.tolist(), counts.tolist(), strict=True))
        self._submitted = 0

    def _take(self) -> LatentPatch | None:
        """The patch at this place, None where it has nothing; a step on, unless reading it raises."""
        index = int(self._order[self._position])
        unit = int(self.windows.index.unit_of(np.array([index]))[0])
        self._read_ahead()
        try:
            patch = self.windows.cut(index, self._resident[unit].result())
        except StoreError as error:
            if self._on_error == "raise":
                del self._resident[unit]  # who goes on after it asks again
                self._needed.insert(self._submitted, unit)
                raise
            self.failed[f"unit {unit}"], patch = str(error), None
        self._position += 1
        self._left[unit] -= 1
        if self._left[unit] == 0:
            del self._resident[unit], self._left[unit]
        return patch

    def _read_ahead(self) -> None:
        """Have as many units on their way or here as memory is meant for; the one needed now is always among them."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="windows")
        while self._submitted < len(self._needed) and len(self._resident) < self._open + self._ahead:
            unit = self._needed[self._submitted]
            self._resident[unit] = self._pool.submit(self.windows.open_unit, unit)
            self._submitted += 1


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """Patches stacked: `values` (B, C, side, side), `valid` (B, side, side), `times` and `indices` (B,)."""

    values: Values
    valid: NDArray[np.uint8]
    times: NDArray[np.datetime64]
    indices: Ints
    grounds: tuple[Ground, ...]
    pair: LatentBatch | None = None

    @classmethod
    def of(cls, patches: Sequence[LatentPatch]) -> LatentBatch:
        """Stack them, their pairs as well."""
        pairs = [patch.pair for patch in patches if patch.pair is not None]
        return cls(
            np.stack([p.values for p in patches]),
            np.stack([p.valid for p in patches]),
            np.array([p.time for p in patches]),
            np.array([p.index for p in patches], np.int64),
            tuple(p.ground for p in patches),
            cls.of(pairs) if pairs else None,
        )


class WindowBatches:
    """Batches of `size` patches of a stream, `ahead` of them made on a thread while the network trains.

    The state is that after the last batch handed out. With a stream of so many epochs the last batch may be smaller.
    Adds at most (ahead + 2) * size * `CubeWindows.patch_bytes` * 2 to the stream's memory.
    """

    def __init__(self, stream: WindowStream, size: int, *, ahead: int = 2) -> None:
        if size < 1 or ahead < 1:
            raise InputError(f"batches of {size}, {ahead} ahead: 1 or more")
        self.stream, self.size, self._ahead = stream, size, ahead
        self._state = stream.state_dict()
        self._made: queue.Queue[tuple[LatentBatch | None, dict[str, Any], BaseException | None]] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __iter__(self) -> Iterator[LatentBatch]:
        return self

    def __next__(self) -> LatentBatch:
        if self._thread is None or self._made is None:
            self.stream.load_state_dict(self._state)
            self._made, self._stop = queue.Queue(self._ahead), threading.Event()
            work = (self._made, self._stop)
            self._thread = threading.Thread(target=self._work, args=work, name="window-batches", daemon=True)
            self._thread.start()
        batch, after, error = self._made.get()
        if error is not None or batch is None:
            self._end()
            raise error or StopIteration
        self._state = after
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The stream's after the last batch handed out."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the batch that would have come next. InputError as `WindowStream.load_state_dict`."""
        self._end()
        self.stream.load_state_dict(state)
        self._state = dict(state)

    def close(self) -> None:
        """Stop the thread and the stream's reading."""
        self._end()
        self.stream.close()

    def _work(self, made: queue.Queue[Any], stop: threading.Event) -> None:
        error: BaseException | None = None
        patches: list[LatentPatch] = []
        try:
            for patch in self.stream:
                patches.append(patch)
                if stop.is_set():
                    return
                if len(patches) == self.size:
                    self._hand(made, stop, (LatentBatch.of(patches), self.stream.state_dict(), None))
                    patches = []
        except Exception as found:  # handed to whoever draws
            error = found
        if patches and error is None:
            self._hand(made, stop, (LatentBatch.of(patches), self.stream.state_dict(), None))
        self._hand(made, stop, (None, {}, error))

    @staticmethod
    def _hand(made: queue.Queue[Any], stop: threading.Event, what: object) -> None:
        while not stop.is_set():
            try:
                made.put(what, timeout=0.1)
                return
            except queue.Full:
                continue

    def _end(self) -> None:
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
        self._thread, self._made = None, None


def torch_dataset(windows: CubeWindows, rank: int = 0, world: int = 1, **how: Any) -> IterableDataset[dict[str, Any]]:
    """A torch IterableDataset for `DataLoader`: an epoch an iteration, shared out over its worker processes.

    Items are mappings of arrays: "values", "valid", and "pair_values", "pair_valid" of pairs. `how` goes to
    `WindowStream`. Start workers with `multiprocessing_context="spawn"` where cubes are remote. `set_epoch` before each
    iteration chooses the order; memory and open units are those of every process.
    """
    found: IterableDataset[dict[str, Any]] = _dataset_class()(windows, rank, world, how)
    return found


@cache
def _dataset_class() -> Any:
    from torch.utils.data import IterableDataset, get_worker_info

    class WindowDataset(IterableDataset[dict[str, Any]]):
        def __init__(self, windows: CubeWindows, rank: int, world: int, how: Mapping[str, Any]) -> None:
            self.windows, self.rank, self.world, self.how, self.epoch = windows, rank, world, dict(how), 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[dict[str, Any]]:
            info = get_worker_info()
            number, count = (0, 1) if info is None else (info.id, info.num_workers)
            stream = WindowStream(
                self.windows,
                rank=self.rank * count + number,
                world=self.world * count,
                epochs=self.epoch + 1,
                **self.how,
            )
            stream.load_state_dict({**stream.state_dict(), "epoch": self.epoch})
            try:
                for patch in stream:
                    item = {"values": patch.values, "valid": patch.valid}
                    if patch.pair is not None:
                        item |= {"pair_values": patch.pair.values, "pair_valid": patch.pair.valid}
                    yield item
            finally:
                stream.close()

        def __reduce__(self) -> Any:
            return _dataset_again, (self.windows, self.rank, self.world, self.how, self.epoch)

    return WindowDataset


def _dataset_again(windows: CubeWindows, rank: int, world: int, how: Mapping[str, Any], epoch: int) -> Any:
    found = _dataset_class()(windows, rank, world, how)
    found.set_epoch(epoch)
    return found
