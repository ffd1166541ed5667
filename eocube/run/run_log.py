"""Writes structured logs: one JSON line an event, with the run's id, from the driver and from every actor."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from eocube.errors import StoreError
from eocube.net.objects import Objects
from eocube.net.redaction import redacted

FOLDER = "commits/runs"
"""Where a run's log lies in its store: `commits/runs/<run id>/000000.jsonl`, far from the shards."""
SEGMENT_SECONDS = 30.0
SEGMENT_LINES = 5000
"""A segment is written when it is this old or this long; an object store cannot append."""
KEPT = 1000
"""Lines an actor keeps until its next unit takes them to the driver; older ones give way and are counted."""

_unit: ContextVar[str] = ContextVar("eocube_unit", default="")


@contextmanager
def of_unit(key: str) -> Iterator[None]:
    """What is logged inside, on this thread, carries the unit's name."""
    token = _unit.set(key)
    try:
        yield
    finally:
        _unit.reset(token)


def of_a_unit(record: logging.LogRecord) -> bool:
    """Whether a record that is being handled tells of a unit what its receipt tells too, window by window."""
    return hasattr(record, "eocube_event") and bool(_unit.get())


def event(name: str, message: str = "", *, level: int = logging.INFO, **fields: Any) -> None:
    """Log something that happened, by name, with its figures; `message` is what a person reads."""
    logging.getLogger("eocube.run").log(level, message or name, extra={"eocube_event": name, "eocube_fields": fields})


class JsonLines(logging.Formatter):
    """A log record as one line of JSON: time, run, level, event, message, host, pid, unit, and the event's figures.

    Queries and credentials of URLs, and the given secrets, are taken out of every text.
    """

    def __init__(self, run_id: str, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        self._run, self._secrets = run_id, tuple(secrets)
        self._host, self._pid = socket.gethostname(), os.getpid()

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "run": self._run,
            "level": record.levelname.lower(),
            "event": getattr(record, "eocube_event", "message"),
            "message": record.getMessage(),
            "host": self._host,
            "pid": self._pid,
        }
        if unit := _unit.get():
            line["unit"] = unit
        line.update(getattr(record, "eocube_fields", {}))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(self._clean(line))

    def _clean(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {k: self._clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self._clean(v) for v in value]
        return value if isinstance(value, int | float | None) else redacted(value, self._secrets)


class Kept(logging.Handler):
    """Keeps the newest lines until they are taken away. For actors: their lines travel with the next receipt."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=KEPT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self._lines.append(self.format(record))

    def take(self) -> tuple[str, ...]:
        """The lines kept so far, which are then forgotten."""
        taken = []
        while True:
            try:
                taken.append(self._lines.popleft())
            except IndexError:
                return tuple(taken)


class Sink(Protocol):
    """Where lines end up."""

    def write(self, lines: Iterable[str]) -> None:
        """Take lines."""
        ...

    def close(self) -> None:
        """Write what waits."""
        ...


class FileSink:
    """A local file `<run id>.jsonl`, written line by line: `tail -f` follows it.

    A file that cannot be written any more (a full disk) is given up, said once, as a log in the store is.
    """

    def __init__(self, folder: str, run_id: str) -> None:
        path, self._lost = Path(folder).expanduser(), False
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = (path / f"{run_id}.jsonl").open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise StoreError(f"cannot write logs to {path}: {error.strerror}; give another --log-dir") from None

    def write(self, lines: Iterable[str]) -> None:
        """Append lines."""
        if not self._lost:
            try:
                self._file.writelines(f"{line}\n" for line in lines)
            except (OSError, ValueError) as error:
                self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._lost:
            self._lost = True
            logging.getLogger(__name__).warning("the run's log is given up: %s: %s", self._file.name, error)


class StoreSink:
    """Segments in the store's own `commits/runs/`, each one object written once, by a thread of its own.

    A log that cannot be written is given up, said once: it must never end a run whose shards are well.
    """

    def __init__(self, target: Objects, run_id: str) -> None:
        self._target, self._folder = target, f"{FOLDER}/{run_id}"
        self._waiting: list[str] = []
        self._next, self._last, self._lost = 0, time.monotonic(), False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runlog")
        self._writing: Future[None] | None = None

    def write(self, lines: Iterable[str]) -> None:
        """Take lines; a segment is written when it is long or old enough. Lines that cannot be written give way."""
        self._waiting.extend(lines)
        due = len(self._waiting) >= SEGMENT_LINES or time.monotonic() - self._last >= SEGMENT_SECONDS
        if due and (self._writing is None or self._writing.done()):
            self._flush()
        del self._waiting[: -10 * SEGMENT_LINES]

    def close(self) -> None:
        """Write what waits."""
        self._flush()
        self._thread.shutdown()

    def _flush(self) -> None:
        lines, self._waiting, self._last = self._waiting, [], time.monotonic()
        if lines:
            self._writing = self._thread.submit(self._put, lines)

    def _put(self, lines: list[str]) -> None:
        if self._lost:
            return
        try:
            self._target.put(f"{self._folder}/{self._next:06d}.jsonl", "".join(f"{line}\n" for line in lines).encode())
            self._next += 1
        except StoreError as error:
            self._lost = True
            logging.getLogger(__name__).warning("the run's log is given up: %s", error)


class RunLog(logging.Handler):
    """The driver's log of a run: everything under the logger `eocube` and the lines that actors send, in one file."""

    def __init__(self, run_id: str, sink: Sink, secrets: Iterable[str] = ()) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(JsonLines(run_id, secrets))
        self._sink = sink
        self._lines_lock = threading.RLock()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of this process."""
        try:
            self.take([self.format(record)])
        except Exception:  # as logging's own handlers do: a log must not end what it tells of
            self.handleError(record)

    def take(self, lines: Iterable[str]) -> None:
        """Write lines that an actor sent."""
        with self._lines_lock:
            self._sink.write(lines)

    def close(self) -> None:
        """Write what waits."""
        self._sink.close()  # not under the lock: the thread that writes the last segment may log as well
        super().close()


@contextmanager
def attached(*handlers: logging.Handler) -> Iterator[None]:
    """Handlers at the logger `eocube` for as long as the block lasts, which then lets events through."""
    logger = logging.getLogger("eocube")
    before = logger.level
    for handler in handlers:
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(before)
        for handler in handlers:
            logger.removeHandler(handler)
        for handler in handlers:
            try:
                handler.close()
            except Exception:  # what was logged is not what was done
                logger.warning("a log could not be closed", exc_info=True)


def warnings_in(lines: Iterable[str]) -> Iterator[str]:
    """What people should read of an actor's lines: its plain warnings, such as that a host is down and waited for.

    Events are left out: failed windows are counted, not told one by one.
    """
    for line in lines:
        said = json.loads(line)
        if said.get("event") == "message" and said.get("level") in ("warning", "error", "critical"):
            yield f"{said.get('host', 'an actor')}: {said.get('message', '')}"


def log_in_actor(run_id: str, secrets: Iterable[str] = ()) -> Kept:
    """Set an actor's process up: its lines go to its standard error, which Ray keeps on the node, and to the driver."""
    kept, stderr = Kept(), logging.StreamHandler()
    logger = logging.getLogger("eocube")
    for handler in (kept, stderr):
        handler.setFormatter(JsonLines(run_id, secrets))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return kept
