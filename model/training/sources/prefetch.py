"""Makes batches ahead on a thread, in the very order in which they would have been drawn, state included."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Generic

from model.training.task import B, Source


@dataclass(frozen=True, slots=True)
class _Made(Generic[B]):
    batch: B | None
    after: Mapping[str, Any]
    error: Exception | None = None


class Prefetch(Generic[B]):
    """`source`, with up to `depth` batches drawn while the network trains.

    Reading, unpacking and numpy's arithmetic leave the interpreter's lock, so a thread is enough beside a step on a
    GPU or in torch's own threads. The state is that after the last batch handed out: what lies in the queue is drawn
    again after a resume. Another batch or patch size starts from there too. `pin` puts batches into pinned memory.
    """

    def __init__(self, source: Source[B], depth: int = 4, *, pin: bool = False) -> None:
        if depth < 1:
            raise ValueError(f"prefetching {depth} batches: 1 or more")
        self._source, self._depth, self._pin = source, depth, pin
        self._state: Mapping[str, Any] = source.state_dict()
        self._ahead = False
        self._asked: tuple[int, int] | None = None
        self._made: queue.Queue[_Made[B]] = queue.Queue()
        self._room = threading.Semaphore(0)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def draw(self, batch_size: int, patch: int) -> B:
        """The next batch; raises what the source raised on making it."""
        if self._asked != (batch_size, patch):
            self._end()
            self._start(batch_size, patch)
        made = self._made.get()
        self._room.release()
        if made.error is not None or made.batch is None:
            self._end()
            raise made.error or RuntimeError("the prefetching thread ended without a batch")
        self._state = made.after
        return made.batch

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """As the source's."""
        return self._source.steps_per_epoch(batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The source's state after the last batch that was handed out."""
        return deepcopy(dict(self._state))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._end()
        self._source.load_state_dict(state)
        self._state, self._ahead = deepcopy(dict(state)), False

    def close(self) -> None:
        """Stop the thread. The source is left where the thread had come to; drawing on goes back first."""
        self._end()

    def _start(self, batch_size: int, patch: int) -> None:
        if self._ahead:  # going back may read much again: only where somebody draws on
            self._source.load_state_dict(self._state)
            self._ahead = False
        self._asked = (batch_size, patch)
        self._made, self._stop = queue.Queue(), threading.Event()
        self._room = threading.Semaphore(self._depth)
        arguments = (batch_size, patch, self._made, self._room, self._stop)
        self._thread = threading.Thread(target=self._work, args=arguments, name="prefetch", daemon=True)
        self._thread.start()

    def _work(
        self,
        batch_size: int,
        patch: int,
        made: queue.Queue[_Made[B]],
        room: threading.Semaphore,
        stop: threading.Event,
    ) -> None:
        while True:
            room.acquire()
            if stop.is_set():
                return
            try:
                batch = self._source.draw(batch_size, patch)
                made.put(_Made(batch.pinned() if self._pin else batch, self._source.state_dict()))
            except Exception as error:  # handed to whoever draws
                made.put(_Made(None, {}, error))
                return

    def _end(self) -> None:
        """Stop the thread; the source is then somewhere ahead."""
        if self._thread is not None:
            self._stop.set()
            self._room.release()
            self._thread.join()
            self._ahead = True
        self._thread, self._asked = None, None
