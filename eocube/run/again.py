"""Asks again what a store was made by: to try windows again, or to go on with what is new since its last run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from eocube.errors import InputError, StoreError
from eocube.ground.regions import Region
from eocube.plan.plan import Plan
from eocube.products.registry import DEFAULT
from eocube.run.asked import Running, Selection
from eocube.store.store import CubeStore


def asked_again(
    selection: Selection, running: Running, storage_options: Mapping[str, Any] | None, now: datetime | None = None
) -> Selection:
    """The selection with the store's own request in the place of what was not said, where a run goes on with a store.

    That is one with `since`, or one that tries windows again and says neither ground nor dates. With `since`
    the dates reach from the store's first to this moment (`now`, for tests).

    Raises:
        InputError: no store there, and no ground and dates to make one by.
        StoreError: a store whose request cannot be asked again by what it says of it.
    """
    unsaid = not selection.boxes and selection.region is None and selection.interval is None
    if not selection.out or not (selection.since or (unsaid and (running.retry or running.mend))):
        return selection
    texts = CubeStore.stored_plans(selection.out, storage_options=storage_options)
    if not texts and unsaid:
        raise InputError(
            f"--out {selection.out}: there is no store to go on with; say --bbox and --datetime to make one"
        )
    if texts:
        plan = Plan.from_json(texts[0])
        selection = _as_made(selection, plan) if unsaid else replace(selection, interval=_interval(plan))
    if selection.since and selection.interval is not None:
        moment = (now or datetime.now(UTC)).replace(microsecond=0)
        selection = replace(selection, interval=(selection.interval[0], max(selection.interval[1], moment)))
    return selection


def _as_made(given: Selection, plan: Plan) -> Selection:
    request = plan.request
    try:
        boxes, extent = (
            tuple((float(w), float(s), float(e), float(n)) for w, s, e, n in listed)
            for listed in (request["bbox"], request.get("extent", ()))
        )
        region = Region(plan.grid.region) if "region" in request else None
        return replace(
            given, boxes=() if region is not None else boxes, region=region, extent=extent, interval=_interval(plan),
            catalog=str(request["catalog"]), bands=tuple(map(str, request["bands"])),
            # A sensor of one's own lies in a file that the store does not name: it has to be said again.
            sensor=str(request["sensor"]) if given.sensor == Selection().sensor else given.sensor,
            resolution=float(request["resolution"]),
            max_cloud=None if request["max_cloud"] is None else float(request["max_cloud"]),
            offset=given.offset if request.get("offset") is None else float(request["offset"]),
            product=str(request.get("product", DEFAULT)),
            product_options={k: str(v) for k, v in request.get("product_options", {}).items()},
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise StoreError(
            f"{given.out} does not say what was asked for ({error!r}): run the command again whole"
        ) from error


def _interval(plan: Plan) -> tuple[datetime, datetime]:
    first, last = (datetime.fromisoformat(moment) for moment in plan.request["datetime"])
    return first, last
