"""Keeps what a run has loaded for its plan until its worker takes it, so that weights are not loaded twice."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

_open: list[dict[Hashable, Any]] = []


@contextmanager
def shelf() -> Iterator[None]:
    """Inside, `put` keeps things; what nobody took is let go in the end."""
    things: dict[Hashable, Any] = {}
    _open.append(things)
    try:
        yield
    finally:
        _open.remove(things)


def put(key: Hashable, thing: Any) -> None:
    """Keep a thing for whoever needs it next; nothing where no shelf is open."""
    if _open:
        _open[-1][key] = thing


def clear() -> None:
    """Let go of what is kept: who would take it is in another process."""
    for things in _open:
        things.clear()


def take(key: Hashable) -> Any | None:
    """What is kept by that name, from then on the caller's alone; None where there is nothing."""
    return _open[-1].pop(key, None) if _open else None
