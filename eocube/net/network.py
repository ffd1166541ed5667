"""Treats hosts well: retries with jittered waits, a limit on requests, a circuit breaker for outages."""

from __future__ import annotations

import contextvars
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TypeVar

from eocube.net import forks
from eocube.net.failures import Failure, judge
from eocube.net.redaction import one_line

log = logging.getLogger(__name__)

T = TypeVar("T")

DRIVER_PART = 0.1
"""The driver's part of the run's limit on requests while actors are at work; these have the rest in equal parts."""


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """Bounds of what one process asks of one host."""

    requests_per_second: float | None = None
    """Of the whole run. None: as many as the threads make."""
    part: float = 1.0
    """This process's part of them."""
    tries: int = 6
    """Times a request is made before it has failed, unless its host is down."""
    first_wait: float = 0.25
    """Seconds before the first retry, about; twice as long before each further one."""
    longest_wait: float = 20.0
    trip: int = 6
    """Failures on end, of all threads together, after which a host that answered before counts as down."""
    first_pause: float = 2.0
    """Seconds before a host that is down is asked once; twice as long before it is asked again."""
    longest_pause: float = 60.0
    patience: float = 600.0
    """Seconds that a host which is down is waited for; after them requests to it fail."""

    @property
    def own_rate(self) -> float | None:
        """Requests a second of this process; None where there is no limit."""
        return None if self.requests_per_second is None else self.requests_per_second * self.part

    def shared(self, among: int) -> NetworkLimits:
        """One actor's part when so many are at work beside the driver."""
        return replace(self, part=(1.0 - DRIVER_PART) / max(1, among))

    def beside_actors(self) -> NetworkLimits:
        """The driver's part while actors are at work: all it does then is to write the log and renew its lease."""
        return replace(self, part=DRIVER_PART)


@dataclass(slots=True)
class Tally:
    """What a piece of work cost on the network."""

    retries: int = 0


_tally: contextvars.ContextVar[Tally | None] = contextvars.ContextVar("eocube_network_tally", default=None)


@contextmanager
def counting() -> Iterator[Tally]:
    """Count the retries made inside, in this thread and in those that run in a copy of its context."""
    tally = Tally()
    token = _tally.set(tally)
    try:
        yield tally
    finally:
        _tally.reset(token)


@dataclass(slots=True)
class _Host:
    """State of one host; guarded by its condition."""

    name: str
    changed: threading.Condition = field(default_factory=threading.Condition)
    answered: bool = False
    failures: int = 0
    down_since: float | None = None
    ask_again: float = 0.0
    pause: float = 0.0
    probing: bool = False
    given_up: bool = False
    next_slot: float = 0.0
    why: str = ""


class Network:
    """Every request to another machine goes through `call`. For many threads at once.

    A host is down when it answered before and then failed `trip` times on end: all its requests then wait, one at a
    time asks whether it is back, and all go on when it is. A host that never answered is a mistake, not an outage:
    its requests fail after their tries.

    Args:
        limits: the bounds.
        seed: of the jitter.
        say: takes one line when a pause begins or ends.
    """

    def __init__(
        self,
        limits: NetworkLimits | None = None,
        *,
        seed: int | None = None,
        say: Callable[[str], None] = log.warning,
    ) -> None:
        self.limits = limits or NetworkLimits()
        self.retries: Counter[str] = Counter()
        self._say = say
        self._random = random.Random(seed)
        self.after_fork()
        forks.watch(self)

    def after_fork(self) -> None:
        """Know nothing of hosts, as a new process: threads of the parent may have held the locks as it forked."""
        self._hosts: dict[str, _Host] = {}
        self._lock = threading.Lock()

    def configure(self, limits: NetworkLimits) -> None:
        """Take other bounds from now on."""
        self.limits = limits

    @contextmanager
    def keeping_to(self, limits: NetworkLimits) -> Iterator[None]:
        """Inside, other bounds."""
        before = self.limits
        self.configure(limits)
        try:
            yield
        finally:
            self.configure(before)

    @property
    def limited(self) -> bool:
        """Whether requests are counted out, so that none may be made past `call`."""
        return self.limits.requests_per_second is not None

    def call(
        self,
        host: str,
        do: Callable[[], T],
        *,
        tries: int | None = None,
        judge: Callable[[Exception], Failure] = judge,
        failed: Callable[[], None] | None = None,
        request: bool = True,
        patient: bool = True,
    ) -> T:
        """Make a request, again where its failure may pass, as often as the limits allow.

        Args:
            host: whose limit and breaker it counts for.
            do: makes the request.
            tries: instead of the limits' own.
            judge: what a failure means. An error with an attribute `retry_after` (seconds) is waited for at least as
                long.
            failed: called after each failure, before the next try.
            request: False where `do` makes several requests, each of them through `call`: it takes no slot itself.
            patient: whether the host is waited for when it is down; False where a user waits for the answer.

        Raises whatever the last try raised.
        """
        at = self._host(host)
        left = tries or self.limits.tries
        turn = 0
        while True:
            self._enter(at, request, patient)
            try:
                result = do()
            except Exception as error:
                meaning = judge(error)
                if meaning is Failure.FINAL:
                    self._answered(at)
                if failed is not None:
                    failed()
                if meaning is Failure.FINAL:
                    raise
                if meaning is Failure.DOWN and patient and self._failed(at, error):
                    turn = 0  # the host's failure, not the request's: it waits, and starts anew when the host is back
                else:
                    if meaning is Failure.AGAIN or not patient:
                        self._left(at)
                    turn += 1
                    if turn >= left or at.given_up:
                        raise
                    self._wait(turn, getattr(error, "retry_after", None))
                self._count(host)
            except BaseException:
                self._left(at)
                raise
            else:
                self._answered(at)
                return result

    def _host(self, name: str) -> _Host:
        with self._lock:
            return self._hosts.setdefault(name, _Host(name))

    def _count(self, host: str) -> None:
        with self._lock:
            self.retries[host] += 1
            tally = _tally.get()
            if tally is not None:
                tally.retries += 1

    def _wait(self, turn: int, at_least: float | None) -> None:
        limits = self.limits
        longest = min(limits.longest_wait, limits.first_wait * 2 ** (turn - 1))
        with self._lock:
            spread = self._random.uniform(0.5, 1.5)
        time.sleep(max(longest * spread, min(at_least or 0.0, limits.longest_pause)))

    def _enter(self, at: _Host, request: bool, patient: bool) -> None:
        """Wait until the host may be asked: it is not down, and there is a slot."""
        with at.changed:
            while patient and at.down_since is not None and not at.given_up:
                left = at.ask_again - time.monotonic()
                if left <= 0 and not at.probing:
                    at.probing = True
                    break
                at.changed.wait(max(left, 0.05) if not at.probing else 1.0)
        rate = self.limits.own_rate
        if rate is None or not request:
            return
        with at.changed:
            slot = max(time.monotonic(), at.next_slot)
            at.next_slot = slot + 1.0 / rate
        time.sleep(max(0.0, slot - time.monotonic()))

    def _answered(self, at: _Host) -> None:
        with at.changed:
            since, told = at.down_since, not at.given_up
            at.answered, at.failures, at.down_since, at.probing, at.given_up = True, 0, None, False, False
            if since is None:
                return
            at.changed.notify_all()
        if told:
            self._say(f"{at.name} answers again after {time.monotonic() - since:.0f} s: the run goes on")

    def _failed(self, at: _Host, error: Exception) -> bool:
        """Count a failure; whether the host is down and is to be waited for."""
        line, limits = None, self.limits
        with at.changed:
            now = time.monotonic()
            at.failures += 1
            if at.down_since is None:
                if not at.answered or at.failures < limits.trip:
                    return False
                at.down_since, at.pause, at.why = now, limits.first_pause, one_line(error)[:120] or type(error).__name__
                at.ask_again = now + at.pause
                line = (
                    f"{at.name} does not answer ({at.why}): the run pauses, asks again, and goes on by itself; it "
                    f"waits {limits.patience:.0f} s at most"
                )
            elif at.given_up:
                return False
            elif at.probing:
                at.probing = False
                at.pause = min(2 * at.pause, limits.longest_pause)
                at.ask_again = now + at.pause
                if now - at.down_since > limits.patience:
                    at.given_up = True
                    line = f"{at.name} has not answered for {now - at.down_since:.0f} s: what needs it fails"
            waits = not at.given_up
            at.changed.notify_all()
        if line is not None:
            self._say(line)
        return waits

    def _left(self, at: _Host) -> None:
        """A request ended and said nothing about the host: let another ask in its place."""
        with at.changed:
            at.probing = False
            at.changed.notify_all()


@lru_cache(maxsize=1)
def shared_network() -> Network:
    """This process's own: a host's limit is a limit on the process, whichever of its threads and readers asks."""
    return Network()
