"""A driver that sleeps at any storage call, through its lease, while another takes the store over and ends its work.

Asleep means: nothing in it runs, and its clock goes on. On disk and in memory it sleeps at a call of its target; on S3
also with a request on its way, behind every look at the lease, by a proxy that holds it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from eocube.net.objects import Objects
from eocube.store import fence, lease
from eocube.store.fence import Fence
from eocube.store.lease import Lease
from eocube.store.lease_note import lease_key, terms_of
from tests.faults.killing import WRITES
from tests.faults.proxy import FaultProxy

SLEEPER = "sleeper"
"""Run id of the driver that sleeps."""
_LONG = 1000.0


class Clock:
    """The clock of this machine, which can be set on."""

    def __init__(self) -> None:
        self.ahead, self._real = 0.0, fence.clock

    def __call__(self) -> float:
        return self._real() + self.ahead


@dataclass
class Sleep:
    """Sleeps at the n-th writing storage call of the sleeper, before or after it takes effect, while `other` runs.

    None for `at` only counts the calls.
    """

    url: str
    at: int | None = None
    after: bool = False
    other: Callable[[], None] = lambda: None
    options: Mapping[str, Any] | None = None
    only: str = ""
    """Requests whose path does not end so are not counted."""
    calls: int = 0
    slept: bool = False
    where: str = ""
    clock: Clock = field(default_factory=Clock)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _tokens: set[str] = field(default_factory=set)

    @contextmanager
    def upon_calls(self) -> Iterator[Sleep]:
        """At a call of a target: before anything is asked, or when all is done."""
        with self._patched() as patch:
            for name in WRITES:
                patch.setattr(Objects, name, self._guarded(getattr(Objects, name)))
            yield self

    @contextmanager
    def upon_requests(self, proxy: FaultProxy) -> Iterator[Sleep]:
        """At a request that the sleeper makes through a proxy: on its way there, or on its answer's way back."""

        def hold(after: bool) -> Callable[[int, str, str], None]:
            def held(_number: int, method: str, path: str) -> None:
                if method not in ("PUT", "POST", "DELETE"):
                    return
                with self._lock:
                    if self.after == after and not self.slept and path.endswith(self.only):
                        self.calls += 1
                        if self.calls == self.at:
                            self._sleep(f"{method} {path}")

            return held

        with self._patched():
            proxy.on_request, proxy.on_answer = hold(False), hold(True)
            try:
                yield self
            finally:
                proxy.on_request = proxy.on_answer = None

    @contextmanager
    def _patched(self) -> Iterator[pytest.MonkeyPatch]:
        with pytest.MonkeyPatch.context() as patch:
            for module in (fence, lease):
                patch.setattr(module, "clock", self.clock)
            yield patch

    def _guarded(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(target: Objects, key: str, *args: Any, **how: Any) -> Any:
            if not self._is_sleepers(target.fence):
                return call(target, key, *args, **how)
            with self._lock:  # nothing else of it runs meanwhile
                self.calls += 1
                mine = self.calls == self.at
                if mine and not self.after:
                    self._sleep(key)
                done = call(target, key, *args, **how)
                if mine and self.after:
                    self._sleep(key)
                return done

        return guarded

    def _is_sleepers(self, asked: Fence | None) -> bool:
        if isinstance(asked, Lease) and asked._note.run == SLEEPER:
            self._tokens.add(asked._token)
        return asked is not None and asked._token in self._tokens

    def _sleep(self, where: str) -> None:
        self.slept, self.where = True, where
        end_lease(Objects(self.url, self.options))
        self.clock.ahead += _LONG
        self.other()
        if self.options is not None:  # storage tells what came later by the second
            time.sleep(1.1)


def end_lease(target: Objects) -> None:
    """Make the lease of the last term one of another machine that has run out, unless it was given back."""
    terms = terms_of(target)
    note = json.loads(target.get(lease_key(terms[-1])) or b"{}") if terms else {}
    if note and not note["released"]:
        changed = {**note, "host": "laptop", "process": "", "expires": "2020-01-01T00:00:00Z"}
        target.put(lease_key(terms[-1]), json.dumps(changed).encode())
