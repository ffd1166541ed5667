"""Computes what requests wait for: on one thread a core, the latest asked first, nothing that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from eocube.errors import EocubeError

Make = Callable[[], Any]
Key = TypeVar("Key", bound=Hashable)


class LeftError(EocubeError):
    """The client left before what it asked for was made."""


class Leave:
    """Tells whoever works on a request that its client has left, once or never."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: list[Callable[[], None]] = []
        self.left = False

    def now(self) -> None:
        """The client has left."""
        with self._lock:
            self.left, told = True, self._told
            self._told = []
        for tell in told:
            tell()

    def then(self, tell: Callable[[], None]) -> None:
        """Call this when the client leaves; at once where it has left."""
        with self._lock:
            if not self.left:
                self._told.append(tell)
                return
        tell()


class _Job:
    __slots__ = ("future", "key", "make", "waiting")

    def __init__(self, key: Hashable, make: Make) -> None:
        self.key, self.make, self.waiting = key, make, 0
        self.future: Future[Any] = Future()


class LatestFirst:
    """Threads that compute jobs by key: who asks for what is under way waits for that.

    Of a map that is dragged about, what is in sight was asked for last. A job that all have left before it began is
    dropped.
    """

    def __init__(self, threads: int, name: str = "decode") -> None:
        self._change = threading.Condition()
        self._stack: list[_Job] = []
        self._jobs: dict[Hashable, _Job] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{k}", daemon=True) for k in range(max(1, threads))
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """Jobs that wait or are under way."""
        return len(self._jobs)

    def all(self, wanted: Mapping[Key, Make], leave: Leave | None = None) -> dict[Key, Any]:
        """What the jobs give, by key, when all are done.

        Raises:
            LeftError: the client left meanwhile, or the server is ending.
        """
        with self._change:
            if self._closed:
                raise LeftError("the server is ending")
            jobs = []
            for key, make in wanted.items():
                job = self._jobs.get(key)
                if job is None:
                    job = self._jobs[key] = _Job(key, make)
                    self._stack.append(job)
                job.waiting += 1
                jobs.append(job)
            # Jobs that wait already and are asked for again are as new as the others.
            again = {id(job) for job in jobs}
            self._stack.sort(key=lambda job: id(job) in again)
            self._change.notify_all()
        if leave is not None:
            leave.then(lambda: self._left(jobs))
        try:
            return {key: job.future.result() for key, job in zip(wanted, jobs, strict=True)}
        except CancelledError:  # which asyncio would take for its own
            raise LeftError("the client left before it was made") from None

    def close(self) -> None:
        """Take no more, drop what waits, and let what is under way end."""
        with self._change:
            self._closed = True
            for job in self._stack:
                self._jobs.pop(job.key, None)
                job.future.cancel()
            self._stack.clear()
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _left(self, jobs: list[_Job]) -> None:
        with self._change:
            for job in jobs:
                job.waiting -= 1
                if job.waiting <= 0 and job in self._stack:
                    self._stack.remove(job)
                    self._jobs.pop(job.key, None)
                    job.future.cancel()

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._stack and not self._closed:
                    self._change.wait()
                if not self._stack:
                    return
                job = self._stack.pop()
                job.future.set_running_or_notify_cancel()
            try:
                made = job.make()
            except BaseException as error:
                self._done(job)
                job.future.set_exception(error)
            else:
                self._done(job)
                job.future.set_result(made)

    def _done(self, job: _Job) -> None:
        with self._change:
            self._jobs.pop(job.key, None)
