"""Continues a store's plan with a request for more ground or more time than the store holds.

What is there stays where it is, and no object of a store is ever renamed: readers that have it open see their windows
in their places, before, while and after it grows. So the north-western corner that rows and columns count from is fixed
when a store is made: that of the bbox, or of `--extent`, which reserves ground to grow into; arrays get larger in the
south and east only, and ground north or west of the corner is refused. docs/explanation/growth.md says what else was
weighed.

Time steps of the store keep their indices too and new ones go behind them in order of time, whatever their date. So
the time axis of a store that was extended backwards is not sorted; `ds.sortby("time")` is lazy and costs nothing, as
chunks hold one time each. Scenes that were frozen stay frozen: of an acquisition that the catalogue has processed
again the store keeps the processing it has; a tile that the catalogue did not have before joins its time step for
windows that are not done yet.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from eocube.errors import StoreError
from eocube.ground.boxes import boxes_said, covers
from eocube.ground.grid import by_zone
from eocube.ground.zones import zone_name
from eocube.net.objects import Objects
from eocube.plan.plan import Plan, TimeStep, boxes_of, several_zones, stored_extent
from eocube.scenes.scene import Scene
from eocube.scenes.scene_ids import distinct, same_acquisition
from eocube.store.differences import named_changes
from eocube.store.existing import create_root, read_root
from eocube.store.fence import Fence
from eocube.store.layout import ROOT
from eocube.store.root import eocube_document
from eocube.store.store import CubeStore

GROWING = ("bbox", "region", "extent", "datetime")
"""What of a request may differ from the store's, when it holds all that the store's had."""


def grow_plans(url: str, stored: Sequence[Plan], asked: Sequence[Plan]) -> tuple[Plan, ...]:
    """The plans of a store, one a zone, made to hold what a new request asks for.

    Args:
        url: of the store, for messages.
        stored: its frozen plans.
        asked: plans of the new request, from a search of their own, with the store's extent where none was asked for.

    Raises:
        StoreError: the request differs otherwise than by more ground or more time, or by ground that the store has no
            room for; the message says how.
    """
    old, new = ({p.grid.name: p for p in plans} for plans in (stored, asked))
    further = {*new, *map(zone_name, by_zone(stored_extent(asked)))} - old.keys()
    if further and not several_zones(stored):
        raise StoreError(
            f"{url} holds {stored[0].grid.name} alone and what is asked for reaches {', '.join(sorted(further))} too: "
            "a store of one zone cannot become one of several; write to another --out, with an --extent that reaches "
            "them all"
        )
    if all(name in old and old[name].hash == plan.hash for name, plan in new.items()) and len(old) == len(new):
        # With what they grew from: an extension that was killed may still be going on.
        return tuple(replace(plan, extends=old[plan.grid.name].extends) for plan in asked)
    _check_request(url, stored, asked[0])
    for name, plan in old.items():
        if name in new:
            _check_meaning(url, plan, new[name])
    # A zone that the new search has nothing for keeps what it has; a new one starts with what was found.
    both = {name: grown(url, old[name], new[name]) for name in old.keys() & new.keys()}
    return tuple(plan for _, plan in sorted({**old, **new, **both}.items()))


def join_zones(
    url: str, plans: Sequence[Plan], storage_options: Mapping[str, Any] | None, fence: Fence | None = None
) -> None:
    """Make the root over several zones, or let it know of new ones.

    A zone that is new gets its store before the root names it, and is named before the others grow: killed at any
    moment, the same command finds the zones' requests unlike each other, searches again and goes on.
    """
    target, names = Objects(url, storage_options, fence=fence), [p.grid.name for p in plans]
    root = read_root(target, zones=True)
    known = None if root is None else root["attributes"]["eocube"].get("zones")
    if root is None or known is None:
        create_root(url, names, {"zones": names}, storage_options=storage_options, fence=fence)
        return
    for plan in plans:
        if plan.grid.name not in known:
            zone = f"{url.rstrip('/')}/{plan.grid.name}"
            CubeStore.create(zone, plan, storage_options=storage_options, fence=fence)
    if names != known:
        root["attributes"]["eocube"]["zones"] = names
        target.put(ROOT, json.dumps(root, indent=1, allow_nan=False).encode())


def _check_request(url: str, stored: Sequence[Plan], asked: Plan) -> None:
    was, wanted = dict(stored[0].request), dict(asked.request)
    # Items that were left open may be settled by hand later; what was settled so may not be settled otherwise.
    free = GROWING if "offset" in was else (*GROWING, "offset")
    other = named_changes(*({k: v for k, v in r.items() if k not in free} for r in (was, wanted)))
    if other:
        raise StoreError(f"{url} was made by another request: {other}; ask for the same, or write to another --out")
    first, last = was.get("datetime") or ("", "~")
    if not (wanted["datetime"][0] <= first and last <= wanted["datetime"][1]):
        raise StoreError(
            f"{url} holds {first[:10]}/{last[:10]} and {wanted['datetime'][0][:10]}/{wanted['datetime'][1][:10]} was "
            "asked: a store grows by a --datetime that holds its own; or write to another --out"
        )
    if not covers(wanted["bbox"], was["bbox"]):
        raise StoreError(
            f"{url} holds the bbox {boxes_said(was['bbox'])} and {boxes_said(wanted['bbox'])} was asked: a store grows "
            "by a --bbox that holds its own; or write to another --out"
        )
    had, wants = stored_extent(stored), boxes_of(asked, "extent")
    if had and not covers(wants, had):
        raise StoreError(
            f"{url} has room for the extent {boxes_said(had)} and {boxes_said(wants) or 'none'} was asked: ask for the "
            "same or leave --extent out"
        )


def _check_meaning(url: str, stored: Plan, asked: Plan) -> None:
    was, wanted = eocube_document(stored), eocube_document(asked)
    for part in ("space", "storage", "quantisation"):
        changes = named_changes(was.get(part), wanted.get(part))
        if changes:
            raise StoreError(f"{url} is a store of another {part}: {changes}; write to another --out")


def grown(url: str, stored: Plan, asked: Plan) -> Plan:
    """One zone's plan: the ground that was asked for in the store's arrays, the store's times, then the new ones.

    Raises:
        StoreError: ground that the store holds is not in what was asked for, or this lies beyond the store's corner.
    """
    _check_corner(url, stored, asked)
    asked = replace(asked, grid=asked.grid.anchored_at(stored.grid))
    if not holds(asked, stored):
        raise StoreError(
            f"{url}: {stored.grid.name} holds ground that the box asked for does not: ask for a --bbox that holds the "
            "store's, or write to another --out"
        )
    asked = _named_as(stored, asked)
    steps = list(stored.times)
    at = {(s.platform, s.group): k for k, s in enumerate(steps)}
    refused, fresh = dict(stored.refused), asked.by_id
    scenes = {s.id: _with_orbit(s, fresh.get(s.id)) for s in stored.scenes}
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
        product=stored.product,
        times=tuple(steps),
        scenes=tuple(sorted(scenes.values(), key=lambda s: (s.time, s.id))),
        refused=tuple(sorted(refused.items())),
        numerics=_numerics(stored.numerics, asked.numerics),
        extends=stored.extends,
    )
    return plan if plan.hash == stored.hash else replace(plan, extends=(*stored.extends, stored.hash))


def _with_orbit(scene: Scene, found: Scene | None) -> Scene:
    """A frozen scene with the orbit that its item says, which version 0.1 did not keep."""
    if found is None or scene.orbit_state is not None or scene.relative_orbit is not None:
        return scene
    return replace(scene, orbit_state=found.orbit_state, relative_orbit=found.relative_orbit)


def _named_as(stored: Plan, asked: Plan) -> Plan:
    """A plan with its scenes called what the store calls them, where items share an id."""
    scenes = distinct(asked.scenes, stored.scenes)
    if [s.id for s in scenes] == [s.id for s in asked.scenes]:
        return asked
    names = {was.id: now.id for was, now in zip(asked.scenes, scenes, strict=True)}
    times = tuple(replace(t, scene_ids=tuple(sorted(names[i] for i in t.scene_ids))) for t in asked.times)
    return replace(asked, scenes=scenes, times=times)


def _check_corner(url: str, stored: Plan, asked: Plan) -> None:
    """StoreError when ground asked for, or newly reserved, lies north or west of the store's corner."""
    lattice, grid = stored.grid.lattice, asked.grid
    n, km = lattice.cores_per_shard, lattice.shard * lattice.cell / 1000
    what, row, col = "the ground", grid.cores.row0 // n, grid.cores.col0 // n
    # The same extent has the same corner; compared as asked for, so that no rounding of a projection refuses it.
    if boxes_of(asked, "extent") != boxes_of(stored, "extent"):
        what, row, col = "the ground or extent", min(row, grid.shard_row0), min(col, grid.shard_col0)
    beyond = [
        f"{shards * km:g} km {side}"
        for side, shards in (("north", stored.grid.shard_row0 - row), ("west", stored.grid.shard_col0 - col))
        if shards > 0
    ]
    if beyond:
        raise StoreError(
            f"{url}: {what} asked for in {grid.name} takes shards up to {' and '.join(beyond)} of the store's "
            "north-western corner, which never moves: write to another --out, with an --extent that holds all the "
            "ground it is to grow over"
        )


def holds(larger: Plan, smaller: Plan) -> bool:
    """Whether every core that one plan asks for is asked for by another of the same lattice, in its array too."""
    return all(larger.grid.requested(window) for window in smaller.grid.requested_windows())


def _numerics(was: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """The store's numerics; those of the extension beside them where they are others."""
    before = [n for n in was.get("extended_with", ()) if n != dict(now)]
    if {k: v for k, v in was.items() if k != "extended_with"} == dict(now) and not before:
        return dict(was)
    return {**was, "extended_with": [*before, dict(now)]}
