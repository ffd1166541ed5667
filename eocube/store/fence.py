"""Keeps a run that lost its store from writing to it: every write asks the lease, and lands only where it was meant to.

A run can lose its lease and not know it: a laptop's lid was shut, a process was stopped, a request hung. What it had
begun to write then must not land on what the next run made of the store. So each write of a run, its driver's and its
actors', passes its fence:

On disk and in memory the lease's own objects are read and the write takes effect under one lock, which taking the
lease over takes too: no write of an old term lands after a newer one has begun. (Between machines that share a file
system this holds where its locks do.)

On S3 the lease is asked from memory right before each try of a request, and the request is conditional: on there being
nothing, or on the ETag of what was read before the lease was last read. So a request of an old term, however late,
never lands on what a newer one wrote. An ETag tells content, not age: where the newer run left an object as it was, a
request that was on its way for longer than the lease lasts can still land. The old run finds its lease lost when it has
the answer, and where its write came after the newer run had ended, by the storage's clock, it puts back what was there.
What came before is the newer run's to see to: having taken over from a run that never said it was done, it writes its
layout again at its end where that differs. (A removal cannot be told in time: it is said.)

Where storage has no conditional writes, or says 200 to them and ignores the condition (found out by a try as the
lease is taken), the lease is read right before and right after each write. What then lands in between, milliseconds as
a rule, lands on whatever is there: the old run says which object it was, and `verify` names it.

Shards are written by the same rules and mostly cost one request: nothing is there, and the condition is just that. One
that is there already, byte for byte, is left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from eocube.errors import LeaseError, StoreError
from eocube.net.objects import ChangedError, Objects, Seen, UnconditionalError
from eocube.net.storage_options import S3_SCHEMES, scheme_of
from eocube.store.lease_note import LOCK, LeaseNote, lease_key, read_note, terms_of

MARGIN = 15.0
"""Seconds before its expiry at which an owner that could not renew stops: what clocks may be apart."""
_TURNS = 5  # times an object may change under a write before that is an error
_LOCK_PATIENCE = 60.0  # seconds; the lock is held for less than a millisecond, unless its holder was stopped there
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_IN_PROCESS = threading.RLock()  # what `memory://` has instead of a file's lock


@dataclass(frozen=True, slots=True)
class Conditions:
    """Which conditional writes a storage holds to: where there is nothing, and where there is what was seen."""

    create: bool = False
    match: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """What lets an actor write for its driver: where the lease is, its term and token, and how storage writes."""

    url: str
    term: int
    token: str
    conditions: Conditions


class Fence:
    """A term of a store's lease as its writers know it. An actor's; the driver's own is `eocube.store.lease.Lease`.

    Args:
        target: where the lease is: the store, or the root over its zones; a target without a fence.
        given: the driver's pass.
    """

    def __init__(self, target: Objects, given: Pass) -> None:
        self.target = target
        self.term, self.conditions = given.term, given.conditions
        self._token = given.token
        self._sure_until = 0.0
        self._ended = False

    @classmethod
    def of(cls, given: Pass | None, storage_options: Mapping[str, Any] | None = None) -> Fence | None:
        """The fence of a driver's pass; None where it has none."""
        return None if given is None else cls(Objects(given.url, storage_options), given)

    def is_to_tell(self, url: str) -> bool:
        """Whether a store's log has still to be told that this term began, because the last owner may be asleep."""
        return False

    def end(self) -> None:
        """Let nothing through from now on: for the writers of a worker that is ended and may yet wake up."""
        self._ended = True

    # -- asking the lease

    @property
    def sure(self) -> bool:
        """Whether the lease lasts still, by what was last read of it."""
        return not self._ended and clock() < self._sure_until

    @property
    def exact(self) -> bool:
        """Whether asking and writing are one step, under a lock."""
        return self.target.local is not None or scheme_of(self.target.url) == "memory"

    def check(self) -> None:
        """Nothing where the term surely lasts; else the lease is read. LeaseError where it is lost."""
        if not self.sure:
            self.confirm()

    def confirm(self) -> None:
        """Read the lease; LeaseError where the term is over: another began the next, or the store is gone."""
        asked = clock()
        if self._ended:
            raise LeaseError(f"{self.target}: a worker that was ended writes no more")
        newer = read_note(self.target, self.term + 1)
        if newer is not None:
            self.lose(f"{newer} took over")
        own = read_note(self.target, self.term)
        if own is None:
            self.lose("its object is gone: the store was removed, or two other runs have had it since")
        if own.token != self._token:
            self.lose(f"{own} wrote over it")
        if own.released:
            self.lose("its driver has ended")
        self._sure_until = asked + own.left.total_seconds() - MARGIN

    def lose(self, why: str) -> NoReturn:
        """Raise what a run hears that lost its lease."""
        raise LeaseError(
            f"{self.target}: this run lost its lease ({why}) and stopped; "
            "run the same command again when the other run has ended"
        )

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Alone among the writers of this machine (disk) or process (memory); nothing elsewhere."""
        if self.target.local is not None:
            handle = _opened(self.target.local / LOCK)
            if handle is None:
                self.lose("the store was removed")
            try:
                _wait_for(handle, self.target.local / LOCK)
                yield
            finally:
                os.close(handle)
        elif self.exact:
            with _IN_PROCESS:
                yield
        else:
            yield

    @contextmanager
    def gate(self) -> Iterator[None]:
        """Around the moment at which a write takes effect. LeaseError where it must not."""
        if not self.exact:
            self.check()
            yield
            return
        with self.exclusive():
            self.confirm()
            yield

    # -- writing

    def put(self, target: Objects, key: str, data: bytes, *, fresh: bool = False) -> None:
        """Write an object whole; `fresh` where there is most likely none. LeaseError when the lease is lost.

        Nothing is written where it has these bytes already. StoreError where another keeps writing it.
        """
        self._ask()
        if self.exact:
            target.overwrite(key, data, self.gate)
            return
        was = None if fresh and self.conditions.create else target.look(key)
        for _ in range(_TURNS):
            if was is not None and was.data == data:
                self.check()
                return
            if was is not None:
                self.confirm()  # so that what was seen is from before any newer run began, whatever the clocks say
            if self._write(target, key, data, was):
                return
            was = target.look(key)
        raise StoreError(
            f"{target.at(key)} changes again and again while this run holds the store: make sure that nothing else "
            "writes there, and run the same command again"
        )

    def create(self, target: Objects, key: str, data: bytes) -> bool:
        """Write an object only where there is none; False when another's is there."""
        self._ask()
        if self.exact:
            return target.create_new(key, data, self.gate)
        if not self.conditions.create and (was := target.look(key)) is not None:
            return was.data == data
        if self._write(target, key, data, None):
            return True
        found = target.look(key)
        return found is not None and found.data == data

    def delete(self, target: Objects, key: str) -> None:
        """Remove an object; fine when there is none."""
        self._ask()
        if self.exact:
            target.remove(key, self.gate)
        elif (was := target.look(key)) is not None:
            self.confirm()
            target.remove(key, self.gate)
            self._settle(target, key, was, None, surely=False)

    def _ask(self) -> None:
        """Before a write is prepared: where that makes folders, it must not do so in a store that is gone."""
        if self.exact:
            self.confirm()
        else:
            self.check()

    def _write(self, target: Objects, key: str, data: bytes, was: Seen | None) -> bool:
        """Write where there is what was seen; False where there is not."""
        may = self.conditions.create if was is None else self.conditions.match and was.tag is not None
        if may:
            try:
                now = target.swap(key, data, was, self.gate)
            except ChangedError:
                return False
            except UnconditionalError:
                may = False
        if not may:
            self.confirm()
            target.overwrite(key, data, self.gate)
            now = Seen(data, None)
        self._settle(target, key, was, now, surely=may)
        return True

    def _settle(self, target: Objects, key: str, was: Seen | None, now: Seen | None, *, surely: bool) -> None:
        """After a write: where the lease was lost meanwhile, put back what was there, and say so."""
        if surely and self.sure:
            return
        try:
            self.confirm()
        except LeaseError as error:
            if self._put_back(target, key, was, now):
                raise
            raise LeaseError(f"{error}; {target.at(key)} was being written just then: eocube verify") from error

    def _put_back(self, target: Objects, key: str, was: Seen | None, now: Seen | None) -> bool:
        """Undo a write that landed after the newer run had ended; False where something of that one's may be harmed.

        By the storage's clock: one that landed before is known to the newer run, which wanted it so, wrote it anew, or
        sees to it at its end.
        """
        with suppress(StoreError, ChangedError, ValueError):
            newest = terms_of(self.target)[-1:]
            if not newest or newest[0] <= self.term:
                return True  # nobody has the store: as if this run had been killed after the write
            ended, found = self.target.look(lease_key(newest[0])), target.look(key)
            if ended is None or now is None or not LeaseNote.from_json(ended.data).released:
                return False
            if found is None or found.data != now.data:
                return True  # another's
            if found.modified is None or ended.modified is None or found.modified == ended.modified:
                return False  # before or after: who knows
            if found.modified < ended.modified:
                return True
            if self.conditions.match and now.tag is not None:
                if was is None:
                    target.remove(key)
                else:
                    target.swap(key, was.data, found)
                return True
        return False


def may_have_conditions(target: Objects) -> bool:
    """Whether it is worth trying a conditional write."""
    return target.local is None and scheme_of(target.url) != "memory"


def tried(target: Objects, key: str, data: bytes) -> Conditions:
    """Which conditional writes a storage holds to, tried on an object that is there with these bytes.

    Writes that a storage should refuse, and were one not refused it would change nothing. Two requests.
    """
    create = _refused(target, key, data, None)
    there = create and scheme_of(target.url) in S3_SCHEMES
    return Conditions(create, there and _refused(target, key, data, Seen(b"", f'"{"0" * 32}"')))


def _refused(target: Objects, key: str, data: bytes, was: Seen | None) -> bool:
    try:
        target.swap(key, data, was)
    except ChangedError:
        return True
    except UnconditionalError:
        return False
    return False


def _opened(path: Path) -> int | None:
    """The file that is locked, made where it is not there; None where its folder is gone."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:  # made by another user of a shared store
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _wait_for(handle: int, path: Path) -> None:
    """Lock it; where the file system has no locks, as if alone. LeaseError where its holder does not go on."""
    until, wait = time.monotonic() + _LOCK_PATIENCE, 0.0005
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise LeaseError(
                    f"{path} is locked by a process that does not go on: it was stopped while it wrote (`fuser {path}` "
                    "names it); continue or end it, then run the same command again"
                ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            raise
        time.sleep(wait)
        wait = min(2 * wait, 0.05)


def clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()
