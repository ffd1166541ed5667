"""Runs a pool's one worker in this process, its units on threads: no cluster to wait for, and nothing set apart.

What this costs: a source file that crashes the process ends the run (the same command goes on with it, on Ray), and a
thread that hangs cannot be ended: it is left alone, may write nothing more, and the process does not wait for it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from eocube.errors import EocubeError
from eocube.net.redaction import one_line
from eocube.run.memory_limit import cpu_limit, give_freed_memory_back
from eocube.run.options import EngineOptions
from eocube.run.placement import Node, Place, Wanted, WorkerDiedError

log = logging.getLogger(__name__)

NODE = "local"
GRACE = 10.0
"""Seconds that a worker that is ended has for the windows that it is at; then its threads are left to themselves."""
_left: list[threading.Thread] = []


class LocalEngine:
    """One worker at a time in this process.

    Args:
        urls: of the cubes.
        options: of the run.
        run_id: of the run.
        worker_class: what does the work; made of the three and a device.
    """

    apart = False
    parting = "is left alone, as a thread cannot be ended"

    def __init__(self, urls: Sequence[str], options: EngineOptions, run_id: str, worker_class: type[Any]) -> None:
        self._urls, self._options, self._run_id, self._class = list(urls), options, run_id, worker_class

    def nodes(self) -> list[Node]:
        """This machine: the cores that this process may use, one GPU where the run is on one."""
        return [Node(NODE, float(usable_cpus()), self._options.gpus_per_actor)]

    def start(self, wanted: Wanted) -> LocalWorker:
        """A worker that is made by its first thread."""
        limits = replace(self._options.limits, encode_threads=wanted.encode_threads, mates=wanted.beside)
        options, device = replace(self._options, limits=limits), "cuda" if self._options.gpus_per_actor > 0 else "cpu"
        return LocalWorker(lambda: self._class(self._urls, options, device, self._run_id))

    def ask(self, worker: LocalWorker, what: str, *given: Any) -> Future[Any]:
        """Call a worker's method on a thread of its own."""
        if what == "ready":
            return worker.do(worker.make)
        return worker.do(lambda: getattr(worker.made, what)(*given))

    def ended(self, asked: Sequence[Future[Any]], patience: float = 0.0) -> list[Future[Any]]:
        """The calls that have returned or raised; where none has, waits so many seconds for one."""
        return list(wait(asked, patience, FIRST_COMPLETED).done)

    def answer(self, asked: Future[Any]) -> Any:
        """What a call returned. Raises what it raised; `WorkerDiedError` where the worker could not be made."""
        return asked.result()

    def end(self, worker: LocalWorker) -> None:
        """Have a worker write and begin nothing more, and wait a little for the windows that it is at."""
        left = worker.end(GRACE)
        if left:
            _left.extend(left)
            log.warning("%d threads of an ended worker go on by themselves; nothing of them is written", len(left))


class LocalWorker:
    """A worker and the threads that it is asked on. They are daemons: a process does not wait for them to end.

    Args:
        maker: makes what does the work.
    """

    def __init__(self, maker: Callable[[], Any]) -> None:
        self.made: Any = None
        self._maker, self._over = maker, False
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def make(self) -> Place:
        """Make what does the work; where it is. `WorkerDiedError` where it cannot be made."""
        try:
            made = self._maker()
        except Exception as error:
            kind = "" if isinstance(error, EocubeError) else f"{type(error).__name__}: "
            raise WorkerDiedError(kind + one_line(error), unmade=True) from error
        with self._lock:
            self.made, over = made, self._over
        if over:
            _close(made)
        return Place(NODE, socket.gethostname(), os.getpid())

    def do(self, call: Callable[[], Any]) -> Future[Any]:
        """Have a thread make a call."""
        asked: Future[Any] = Future()

        def answer() -> None:
            try:
                asked.set_result(call())
            except BaseException as error:  # the thread ends here: whoever looks at the answer hears of it
                asked.set_exception(error)

        return self._begin(answer, asked)

    def _begin(self, target: Callable[[], None], asked: Future[Any]) -> Future[Any]:
        thread = threading.Thread(target=target, name="unit", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()
        return asked

    def end(self, grace: float) -> list[threading.Thread]:
        """Close what does the work; the threads that are still at it after `grace` seconds."""
        with self._lock:
            self._over, made = True, self.made
        if made is not None:
            self.do(lambda: _close(made))
        until = time.monotonic() + grace
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        left = [t for t in self._threads if t.is_alive()]
        if not left:
            self.made = None
            give_freed_memory_back()
        return left


def _close(made: Any) -> None:
    with suppress(AttributeError):
        made.close()


@contextmanager
def threads_as_before() -> Iterator[None]:
    """Torch's threads are as many after it as before: encoding threads take one each, which later ones would too."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def threads_left() -> bool:
    """Whether threads of ended workers are still at something, for which the end of this process would wait."""
    return any(thread.is_alive() for thread in _left)


def usable_cpus() -> int:
    """Cores that this process may use: those it is bound to, at most what its control group allows."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(bound, int(cpu_limit() or bound)))
