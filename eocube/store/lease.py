"""Lets one driver at a store: a lease with an owner and an expiry, renewed while the run lives, taken over after it.

The lease of a store is the object `commits/lease-<term>.json` of the highest term. A term is begun by creating its
object, which only one driver can: conditionally where the target can, read back and compared where a reply got lost.
Whoever takes over begins the next term and never touches the old one's object, so there is nothing to race for; the
old owner finds the next term when it renews or writes (`eocube.store.fence`), and stops.

Storage that has no conditional writes, or ignores their condition, is found out by a try right after the creation.
There drivers that race write over each other, and the last one has it: each waits `SETTLE` seconds and goes on only
where its own token is still there. That is one of them, because none that wrote later than half that time after its
look counts its own writing.

Clocks: a driver counts its own lease on its own monotonic clock and stops a `MARGIN` before the end; another judges the
written expiry by its own clock. So the clocks of machines that drive one store must agree within `MARGIN` (15 s; NTP
keeps them within a fraction of one). On one machine an owner that is dead is seen at once, whatever the expiry.
"""

from __future__ import annotations

import secrets
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import NoReturn

from eocube.errors import LeaseError, StoreError
from eocube.net.objects import Objects, storing
from eocube.store.commit_log import FOLDER
from eocube.store.fence import MARGIN, Conditions, Fence, Pass, clock, may_have_conditions, tried
from eocube.store.lease_note import (
    LeaseNote,
    is_lease,
    lease_key,
    process_name,
    read_note,
    refuse_while_held,
    terms_of,
    user_name,
)

__all__ = ["MARGIN", "Lease", "LeaseNote", "is_lease", "lease_key"]

TERM = 90.0
"""Seconds a lease lasts without being renewed."""
RENEW = 20.0
"""Seconds between renewals."""
SETTLE = 6.0
"""Seconds that a driver waits before it believes that it has a lease on storage without conditional writes."""
_TRIES = 5


class Lease(Fence):
    """The right to write a store, held as a context: taken on entry, given back on exit. The driver's fence.

    A thread renews it. When it is lost (another run began the next term, it could not be renewed in time, or the store
    was removed) `check` and every fenced write raise from then on.

    Args:
        target: the store, or the root over its zones.
        run: id of the run.
        term: seconds that it lasts; `renew` seconds between renewals, `margin` seconds that clocks may be apart,
            `settle` seconds of `SETTLE`, 0 where nobody races.
    """

    def __init__(
        self,
        target: Objects,
        run: str,
        *,
        term: float = TERM,
        renew: float = RENEW,
        margin: float = MARGIN,
        settle: float = SETTLE,
    ) -> None:
        token = secrets.token_hex(8)
        super().__init__(target, Pass(target.url, -1, token, Conditions()))
        self._lasts, self._every, self._margin, self._settling = term, renew, margin, settle
        self._note = LeaseNote(user_name(), socket.gethostname(), process_name(), run, token, "", "")
        self._number: int | None = None
        self._deadline = 0.0
        self._why: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.took_over = False
        """Whether the run before never said that it was done: it may be asleep, with writes on their way."""
        self._told: set[str] = set()

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
        if self.target.local is not None:  # the lock lies in it
            with storing("write", str(self.target)):
                (self.target.local / FOLDER).mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):
            looked = clock()
            number, took_over, begun = self._next_term()
            started, note = clock(), self._dated(acquired=True)
            with self.exclusive():
                if begun:
                    self.target.put(lease_key(number), note.to_json())
                # False: another driver began this term between the look and the write; look again.
                elif not self.target.create(lease_key(number), note.to_json()):
                    continue
            if not self._is_mine(number, note, looked):
                continue
            self._note, self._number, self.term = note, number, number
            self._deadline, self.took_over = started + self._lasts, took_over
            self._forget_older(number)
            return
        raise LeaseError(f"{self.target}: other runs begin at the same moment: run the same command again")

    def _next_term(self) -> tuple[int, bool, bool]:
        """The term to begin, whether the last owner never gave it back, whether this driver began it a moment ago.

        LeaseError while another holds it.
        """
        terms = terms_of(self.target)
        note = read_note(self.target, terms[-1]) if terms else None
        if note is None:
            return (terms[-1] + 1 if terms else 0), bool(terms), False
        if note.token == self._note.token:
            return terms[-1], len(terms) > 1, True
        refuse_while_held(self.target, terms[-1], note, self._margin)
        return terms[-1] + 1, not note.released, False

    def _is_mine(self, number: int, note: LeaseNote, looked: float) -> bool:
        """Whether a term just begun is this driver's. LeaseError where it turns out to be another's."""
        if may_have_conditions(self.target):
            self.conditions = tried(self.target, lease_key(number), note.to_json())
            if not self.conditions.create:
                if self._settling and clock() - looked > self._settling / 2:
                    return False
                time.sleep(self._settling)
        found = read_note(self.target, number)
        if found is None:
            return False
        if found.token != note.token:
            refuse_while_held(self.target, number, found, self._margin)
            return False
        return True

    def release(self) -> None:
        """Say that the store is free. Quiet where that fails: the lease then ends by itself."""
        if self._number is None or self._why is not None:
            return
        number, self._number = self._number, None
        with suppress(StoreError), self.exclusive():
            if read_note(self.target, number) == self._note:
                self.target.put(lease_key(number), replace(self._note, released=True).to_json())

    # -- holding it

    @property
    def to_pass(self) -> Pass:
        """What actors need for a fence of their own."""
        return Pass(self.target.url, self.term, self._token, self.conditions)

    def is_to_tell(self, url: str) -> bool:
        """The first time that it is asked for a store's log, where the store was taken over."""
        first = self.took_over and url not in self._told
        self._told.add(url)
        return first

    @property
    def sure(self) -> bool:
        """Whether the run holds the lease by its own clocks, so that nobody can have taken it over.

        By the calendar too: the other clock stands still in a virtual machine that is paused.
        """
        return self.held and self._note.left.total_seconds() > self._margin

    @property
    def held(self) -> bool:
        """Whether the run may still write."""
        if self._why is None and self._number is not None and clock() > self._deadline - self._margin:
            self._why = "it could not be renewed in time"
        return self._why is None and self._number is not None

    def check(self) -> None:
        """Nothing while the lease is held; LeaseError once it is lost."""
        if not self.held:
            super().lose(self._why or "it was given back")
        if not self.sure:
            super().confirm()

    def confirm(self) -> None:
        """The same, with the lease read anew."""
        if not self.held:
            super().lose(self._why or "it was given back")
        super().confirm()

    def lose(self, why: str) -> NoReturn:
        """Lose the lease for good."""
        self._why = self._why or why
        super().lose(self._why)

    def renew(self) -> None:
        """Extend the lease; it is lost where another run has begun the next term. StoreError when that cannot be told.

        The next term is looked for after the write too: a run that begins it in between is seen now or by its own look.
        """
        if self._number is None or not self.held:
            return
        with suppress(LeaseError):
            with self.exclusive():
                super().confirm()
                started, note = clock(), self._dated()
                self.target.put(lease_key(self._number), note.to_json())
            self._note = note
            super().confirm()
            self._deadline = started + self._lasts

    def _keep(self) -> None:
        while not self._stop.wait(self._every):
            with suppress(StoreError):  # tried again until the deadline
                self.renew()
            if not self.held:
                return

    def _dated(self, *, acquired: bool = False) -> LeaseNote:
        now = datetime.now(UTC)
        until = _iso(now + timedelta(seconds=self._lasts))
        return replace(self._note, expires=until, acquired=_iso(now) if acquired else self._note.acquired)

    def _forget_older(self, number: int) -> None:
        """Remove the terms before the last one; that one stays, so that its owner's look cannot err."""
        for term in terms_of(self.target):
            if term < number - 1:
                self.target.delete(lease_key(term))


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="seconds").replace("+00:00", "Z")
