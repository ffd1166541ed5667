"""One driver a store: a lease with an owner and an expiry, renewed while the run lives, taken over once it has expired.

The lease of a store is the object `commits/lease-<term>.json` of the highest term. A term is begun by creating its
object, which only one driver can: conditionally where the target can, read back and compared where a reply got lost.
Whoever takes over begins the next term and never touches the old one's object, so there is nothing to race for; the
old owner finds the next term when it renews, and stops.

Clocks: a driver counts its own lease on its own monotonic clock and stops a `MARGIN` before the end; another judges the
written expiry by its own clock. So the clocks of machines that drive one store must agree within `MARGIN` (15 s; NTP
keeps them within a fraction of one). On one machine an owner that is dead is seen at once, whatever the expiry.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType

from eocube.commit_log import FOLDER
from eocube.errors import LeaseError, StoreError
from eocube.target import Target

TERM = 90.0
"""Seconds a lease lasts without being renewed."""
RENEW = 20.0
"""Seconds between renewals."""
MARGIN = 15.0
"""Seconds before its expiry at which an owner that could not renew stops: what clocks may be apart."""
_KEY = re.compile(rf"{FOLDER}/lease-(\d{{8,}})\.json")


@dataclass(frozen=True, slots=True)
class LeaseNote:
    """What a lease's object says."""

    owner: str
    """User name of the driver's process."""
    host: str
    process: str
    """Names the process on this earth: boot, process namespace, number and start."""
    run: str
    token: str
    """Random: tells one's own note from another's after a lost reply."""
    acquired: str
    expires: str
    """ISO 8601 UTC by the owner's clock."""
    released: bool = False

    def to_json(self) -> bytes:
        """The object's bytes."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> LeaseNote:
        """Inverse of `to_json`; ValueError for anything else."""
        try:
            note = cls(**json.loads(data))
            datetime.fromisoformat(note.expires)
        except (TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"not a lease: {error}") from error
        return note

    def __str__(self) -> str:
        return f"run {self.run} of {self.owner} on {self.host}"


def lease_key(term: int) -> str:
    """Key of a term's object."""
    return f"{FOLDER}/lease-{term:08d}.json"


def is_lease(key: str) -> bool:
    """Whether an object of a store is a lease."""
    return _KEY.fullmatch(key) is not None


class Lease:
    """The right to write a store's metadata, held as a context: taken on entry, given back on exit.

    A thread renews it. When it is lost (another run began the next term, or it could not be renewed in time) `check`
    raises from then on and `lost` is called once, in that thread.

    Args:
        target: the store, or the root over its zones.
        run: id of the run.
        lost: called once when the lease is lost.
        term: seconds that it lasts; `renew` seconds between renewals, `margin` seconds that clocks may be apart.
    """

    def __init__(
        self,
        target: Target,
        run: str,
        *,
        lost: Callable[[], None] | None = None,
        term: float = TERM,
        renew: float = RENEW,
        margin: float = MARGIN,
    ) -> None:
        self._target, self._lost_hook = target, lost
        self._term, self._every, self._margin = term, renew, margin
        self._note = LeaseNote(_user(), socket.gethostname(), _process(), run, secrets.token_hex(8), "", "")
        self._number: int | None = None
        self._deadline = 0.0
        self._why: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    # -- taking and giving back

    def __enter__(self) -> Lease:
        self.acquire()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(self._every)
        self.release()

    def acquire(self) -> None:
        """Begin the next term. LeaseError when another run holds the store: who, and until when."""
        while True:
            current = self._current()
            number = 0
            if current is not None:
                number, note = current[0] + 1, current[1]
                if note is not None:
                    self._refuse_while_held(note)
            started = _clock()
            note = self._dated(acquired=True)
            # False: another driver began this term between the look and the write; look again.
            if self._target.create(lease_key(number), note.to_json()):
                self._note, self._number, self._deadline = note, number, started + self._term
                self._forget_older(number)
                return

    def release(self) -> None:
        """Say that the store is free. Quiet where that fails: the lease then ends by itself."""
        if self._number is None or self._why is not None:
            return
        number, self._number = self._number, None
        with suppress(StoreError):
            if self._read(lease_key(number)) == self._note:
                self._target.put(lease_key(number), replace(self._note, released=True).to_json())

    # -- holding it

    @property
    def held(self) -> bool:
        """Whether the run may still write."""
        if self._why is None and self._number is not None and _clock() > self._deadline - self._margin:
            self._lose("it could not be renewed in time")
        return self._why is None and self._number is not None

    def check(self) -> None:
        """Nothing while the lease is held; LeaseError once it is lost."""
        if not self.held:
            raise LeaseError(
                f"{self._target}: this run lost its lease ({self._why or 'it was given back'}) and stopped; "
                "run the same command again when the other run has ended"
            )

    def renew(self) -> None:
        """Extend the lease; it is lost where another run has begun the next term. StoreError when that cannot be told.

        The next term is looked for after the write: a run that begins it in between is seen now or by its own look.
        """
        if self._number is None or not self.held:
            return
        started = _clock()
        note = self._dated()
        self._target.put(lease_key(self._number), note.to_json())
        self._note = note
        other = self._read(lease_key(self._number + 1))
        if other is not None:
            self._lose(f"{other} took over")
        else:
            self._deadline = started + self._term

    def _keep(self) -> None:
        while not self._stop.wait(self._every):
            with suppress(StoreError):  # tried again until the deadline
                self.renew()
            if not self.held:
                if self._lost_hook is not None:
                    self._lost_hook()
                return

    def _lose(self, why: str) -> None:
        self._why = why

    # -- the objects

    def _current(self) -> tuple[int, LeaseNote | None] | None:
        """The highest term and its note; the note is None where it cannot be read as one."""
        terms = [int(m[1]) for key in self._target.keys(FOLDER) if (m := _KEY.fullmatch(key))]
        return (max(terms), self._read(lease_key(max(terms)))) if terms else None

    def _read(self, key: str) -> LeaseNote | None:
        data = self._target.get(key)
        try:
            return None if data is None else LeaseNote.from_json(data)
        except ValueError as error:
            raise LeaseError(
                f"{self._target.at(key)} is damaged ({error}): make sure that no other run writes the store, then "
                "remove that object"
            ) from error

    def _refuse_while_held(self, note: LeaseNote) -> None:
        if note.released or _is_dead(note):
            return
        expires = datetime.fromisoformat(note.expires)
        if datetime.now(UTC) <= expires + timedelta(seconds=self._margin):
            raise LeaseError(
                f"{self._target} is being written by {note}, whose lease runs until {note.expires}: wait for it to "
                "end; a run that died is taken over then"
            )

    def _dated(self, *, acquired: bool = False) -> LeaseNote:
        now = datetime.now(UTC)
        until = _iso(now + timedelta(seconds=self._term))
        return replace(self._note, expires=until, acquired=_iso(now) if acquired else self._note.acquired)

    def _forget_older(self, number: int) -> None:
        """Remove the terms before the last one; that one stays, so that its owner's look cannot err."""
        for key in self._target.keys(FOLDER):
            if (found := _KEY.fullmatch(key)) and int(found[1]) < number - 1:
                self._target.delete(key)


def _clock() -> float:
    """Seconds that go on while the machine sleeps, where the system has such a clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _process(pid: int | None = None) -> str:
    """Names a process so that no other on any machine has the name; "" where the system does not say (not Linux)."""
    number = os.getpid() if pid is None else pid
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
        # The start is the 22nd field; the second is the command in brackets and may hold anything.
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return f"{boot}/{space}/{number}/{fields[19]}" if fields[0] not in "ZX" else ""


def _is_dead(note: LeaseNote) -> bool:
    """Whether a lease's owner was a process of this machine, as it sees processes, that is there no more."""
    here, _, _ = _process().rpartition("/")
    where, _, _ = note.process.rpartition("/")
    if not here or not where or here.rpartition("/")[0] != where.rpartition("/")[0]:
        return False
    return _process(int(where.rpartition("/")[2])) != note.process
