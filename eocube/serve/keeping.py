"""Keeps what was made, the latest used of it up to a number of bytes, and has each thing made once however many ask."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

OVERHEAD = 500
"""Bytes that a thing takes beside its own: its key and its place in the order."""


class Kept:
    """Things by key, of which the longest unused are forgotten where they take more than `limit` bytes together.

    Safe to use from several threads at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._things: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()
        self._making: dict[Hashable, Future[Any]] = {}
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """What is kept takes this much."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._things)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._things

    def get(self, key: Hashable) -> Any:
        """The thing, which counts as used; None where it is not kept."""
        with self._lock:
            found = self._things.get(key)
            if found is None:
                return None
            self._things.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, thing: Any, size: int) -> None:
        """Keep a thing of so many bytes; one that is larger than all that may be kept is not."""
        size += OVERHEAD
        with self._lock:
            old = self._things.pop(key, None)
            self._bytes -= 0 if old is None else old[1]
            if size > self.limit:
                return
            self._things[key] = thing, size
            self._bytes += size
            while self._bytes > self.limit:
                _, (_, freed) = self._things.popitem(last=False)
                self._bytes -= freed

    def once(self, key: Hashable, make: Callable[[], tuple[T, int]]) -> T:
        """The thing, made by the first who asks while others who ask meanwhile wait for it.

        `make` gives it with its bytes; what it raises, all who wait get.
        """
        with self._lock:
            found = self._things.get(key)
            if found is not None:
                self._things.move_to_end(key)
                kept: T = found[0]
                return kept
            making = self._making.get(key)
            mine = making is None
            if making is None:
                making = self._making[key] = Future()
        if not mine:
            waited: T = making.result()
            return waited
        try:
            thing, size = make()
            self.put(key, thing, size)
            making.set_result(thing)
        except BaseException as error:
            making.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._making[key]
        return thing
