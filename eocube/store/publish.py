"""Writes what follows from a plan or from the log, several objects at a time, in the order that readers need."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from eocube.net.objects import Objects
from eocube.store.layout import StorePlan, template
from eocube.store.stac_item import cube_item
from eocube.store.tables import Summary

ITEM = "stac.json"

AT_ONCE = 16  # objects of metadata on their way at the same time


def layout_objects(target: Objects, plan: StorePlan) -> dict[str, bytes]:
    """Every object that follows from the plan alone, but for the plan itself and the root's zarr.json."""
    name = target.url.rsplit("/", 1)[-1].removesuffix(".zarr") or "cube"
    return {**template(plan), ITEM: cube_item(plan, name)}


def from_log(summary: Summary, kind: str) -> dict[str, Any]:
    """What the `eocube` attribute holds of the results; `eocube.store.verify` compares it with the log again."""
    moments, seams = summary.moments, summary.seams
    found: dict[str, Any] = {}
    if kind == "moments":
        found["moments"] = {**moments.to_dict(), "std": list(moments.std)}
    elif kind == "histogram":
        found["histogram"] = summary.histogram.figures()
    return {**found, "seams": seams.figures()} if seams.borders else found


def publish(
    target: Objects, objects: Iterable[tuple[str, bytes | None]], present: Collection[str] = frozenset()
) -> None:
    """Write objects several at a time, holding few; one without bytes is removed when it is among `present`.

    An object of `status` waits for those before it: a reader finds what it says is ok.
    """
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="publish") as pool:
        flight: deque[Future[None]] = deque()
        for key, data in objects:
            while flight and key.startswith("status/"):
                flight.popleft().result()
            if data is not None:
                fresh = key.startswith("valid/c/") and key not in present
                flight.append(pool.submit(target.put, key, data, fresh=fresh))
            elif key in present:
                flight.append(pool.submit(target.delete, key))
            while len(flight) > 2 * AT_ONCE:
                flight.popleft().result()
        while flight:
            flight.popleft().result()
