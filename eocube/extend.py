"""A request for more ground or more time than a store holds, as a plan that continues the store's own.

What is there stays where it is: time steps of the store keep their indices and new ones go behind them in order of
time, whatever their date, because inserting a step would rename every shard behind it while readers are at work. So
the time axis of a store that was extended backwards is not sorted; `ds.sortby("time")` is lazy and costs nothing, as
chunks hold one time each. Scenes that were frozen stay frozen: of an acquisition that the catalogue has processed
again the store keeps the processing it has; a tile that the catalogue did not have before joins its time step for
windows that are not done yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import shapely
from shapely.geometry import box

from eocube.differences import named_changes
from eocube.errors import StoreError
from eocube.layout import ROOT, eocube_document
from eocube.plan import Plan, TimeStep
from eocube.rebase import room_before
from eocube.root import create_root, read_root
from eocube.scene_ids import distinct, same_acquisition
from eocube.store import LatentStore
from eocube.target import Target

GROWING = ("bbox", "datetime")
"""What of a request may differ from the store's, when it holds all that the store's had."""


def grow_plans(url: str, stored: Sequence[Plan], asked: Sequence[Plan]) -> tuple[Plan, ...]:
    """The plans of a store, one a zone, made to hold what a new request asks for.

    Args:
        url: of the store, for messages.
        stored: its frozen plans.
        asked: plans of the new request, from a search of their own.

    Raises:
        StoreError: the request differs otherwise than by more ground or more time; the message says how.
    """
    old, new = ({p.grid.name: p for p in plans} for plans in (stored, asked))
    if all(name in old and old[name].hash == plan.hash for name, plan in new.items()) and len(old) == len(new):
        return tuple(asked)
    _check_request(url, stored[0], asked[0])
    for name, plan in old.items():
        if name in new:
            _check_meaning(url, plan, new[name])
    if len(stored) == 1 and new.keys() - old.keys():
        raise StoreError(
            f"{url} holds {stored[0].grid.name} alone and the box asked for reaches "
            f"{', '.join(sorted(new.keys() - old.keys()))} too: a store of one zone cannot become one of several; "
            "write to another --out"
        )
    # A zone that the new search has nothing for keeps what it has; a new one starts with what was found.
    both = {name: grown(url, old[name], new[name]) for name in old.keys() & new.keys()}
    return tuple(plan for _, plan in sorted({**old, **new, **both}.items()))


def join_zones(url: str, plans: Sequence[Plan], storage_options: Mapping[str, Any] | None) -> None:
    """Make the root over several zones, or let it know of new ones.

    A zone that is new gets its store before the root names it, and is named before the others grow: killed at any
    moment, the same command finds the zones' requests unlike each other, searches again and goes on. A zone whose
    objects are about to move is taken out of the root's metadata until `finalise_root` gathers them again.
    """
    target, names = Target(url, storage_options), [p.grid.name for p in plans]
    root = read_root(target, zones=True)
    known = None if root is None else root["attributes"]["eocube"].get("zones")
    if root is None or known is None:
        create_root(url, names, {"zones": names}, storage_options=storage_options)
        return
    for plan in plans:
        if plan.grid.name not in known:
            LatentStore.create(f"{url.rstrip('/')}/{plan.grid.name}", plan, storage_options=storage_options)
    root["attributes"]["eocube"]["zones"] = names
    members = root.get("consolidated_metadata", {}).get("metadata", {})
    moving = {p.grid.name for p in plans if _moves(members.get(p.grid.name), p)}
    for key in [k for k in members if k.split("/")[0] in moving]:
        del members[key]
    if moving or names != known:
        target.put(ROOT, json.dumps(root, indent=1, allow_nan=False).encode())


def _moves(member: Mapping[str, Any] | None, plan: Plan) -> bool:
    """Whether a zone's shards get new keys as it becomes the plan's, by its metadata in the root."""
    if member is None:
        return False
    document = member["attributes"]["eocube"]
    transform = document["grid"]["transform"]
    return document.get("plan_hash") in plan.extends and any(room_before((transform[2], transform[5]), plan.grid))


def _check_request(url: str, stored: Plan, asked: Plan) -> None:
    was, wanted = dict(stored.request), dict(asked.request)
    other = named_changes(*({k: v for k, v in r.items() if k not in GROWING} for r in (was, wanted)))
    if other:
        raise StoreError(f"{url} was made by another request: {other}; ask for the same, or write to another --out")
    first, last = was.get("datetime") or ("", "~")
    if not (wanted["datetime"][0] <= first and last <= wanted["datetime"][1]):
        raise StoreError(
            f"{url} holds {first[:10]}/{last[:10]} and {wanted['datetime'][0][:10]}/{wanted['datetime'][1][:10]} was "
            "asked: a store grows by a --datetime that holds its own; or write to another --out"
        )
    if not _covers(wanted["bbox"], was["bbox"]):
        raise StoreError(
            f"{url} holds the bbox {_said(was['bbox'])} and {_said(wanted['bbox'])} was asked: a store grows by a "
            "--bbox that holds its own; or write to another --out"
        )


def _check_meaning(url: str, stored: Plan, asked: Plan) -> None:
    was, wanted = eocube_document(stored), eocube_document(asked)
    for part in ("space", "storage", "quantisation"):
        changes = named_changes(was.get(part), wanted.get(part))
        if changes:
            raise StoreError(f"{url} is a store of another {part}: {changes}; write to another --out")


def _covers(larger: Iterable[Sequence[float]], smaller: Iterable[Sequence[float]]) -> bool:
    return bool(shapely.union_all([box(*b) for b in larger]).covers(shapely.union_all([box(*b) for b in smaller])))


def _said(boxes: Iterable[Sequence[float]]) -> str:
    return " and ".join(" ".join(f"{v:g}" for v in b) for b in boxes)


def grown(url: str, stored: Plan, asked: Plan) -> Plan:
    """One zone's plan: the ground that was asked for, the store's times, then the new ones.

    Raises:
        StoreError: ground that the store holds is not in what was asked for.
    """
    if not holds(asked, stored):
        raise StoreError(
            f"{url}: {stored.grid.name} holds ground that the box asked for does not: ask for a --bbox that holds the "
            "store's, or write to another --out"
        )
    asked = _named_as(stored, asked)
    steps = list(stored.times)
    at = {(s.platform, s.group): k for k, s in enumerate(steps)}
    scenes = {s.id: s for s in stored.scenes}
    refused = dict(stored.refused)
    fresh = asked.by_id
    for step in asked.times:
        key = (step.platform, step.group)
        if key not in at:
            steps.append(step)
            scenes.update({i: fresh[i] for i in step.scene_ids if i not in scenes})
            continue
        kept = steps[at[key]]
        more = []
        for scene in (fresh[i] for i in step.scene_ids if i not in scenes):
            twin = next((i for i in kept.scene_ids if same_acquisition(scenes[i], scene)), None)
            if twin is None:
                more.append(replace(scene, time=kept.time))
            else:
                refused[scene.id] = f"the store keeps {twin}, an earlier processing of the same acquisition"
        scenes.update({s.id: s for s in more})
        ids = tuple(sorted((*kept.scene_ids, *(s.id for s in more))))
        steps[at[key]] = TimeStep(kept.time, kept.platform, kept.group, ids)
    refused = {i: why for i, why in {**dict(asked.refused), **refused}.items() if i not in scenes}
    plan = replace(
        asked,
        encoding=stored.encoding,
        times=tuple(steps),
        scenes=tuple(sorted(scenes.values(), key=lambda s: (s.time, s.id))),
        refused=tuple(sorted(refused.items())),
        numerics=_numerics(stored.numerics, asked.numerics),
        extends=stored.extends,
    )
    return plan if plan.hash == stored.hash else replace(plan, extends=(*stored.extends, stored.hash))


def _named_as(stored: Plan, asked: Plan) -> Plan:
    """A plan with its scenes called what the store calls them, where items share an id."""
    scenes = distinct(asked.scenes, stored.scenes)
    if [s.id for s in scenes] == [s.id for s in asked.scenes]:
        return asked
    names = {was.id: now.id for was, now in zip(asked.scenes, scenes, strict=True)}
    times = tuple(replace(t, scene_ids=tuple(sorted(names[i] for i in t.scene_ids))) for t in asked.times)
    return replace(asked, scenes=scenes, times=times)


def holds(larger: Plan, smaller: Plan) -> bool:
    """Whether every core that one plan asks for is asked for by another of the same lattice, in its array too."""
    return all(larger.grid.requested(window) for window in smaller.grid.requested_windows())


def _numerics(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The store's numerics; those of the extension beside them where they are others."""
    before = [n for n in was.get("extended_with", ()) if n != dict(now)]
    if {k: v for k, v in was.items() if k != "extended_with"} == dict(now) and not before:
        return dict(was)
    return {**was, "extended_with": [*before, dict(now)]}
