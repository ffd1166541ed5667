"""Verifies a store whole: every zone and the root over them, also where damage keeps it from being opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from eocube.errors import StoreError
from eocube.net.objects import Objects
from eocube.store.commit_log import LAYOUT, PLAN, Place
from eocube.store.existing import gathered, read_root
from eocube.store.layout import ROOT
from eocube.store.store import CubeStore
from eocube.store.verify import Finding

_ZONE = re.compile(r"utm\d\ds?")
_SHARD = re.compile(r"(\w+)/c/(\d+)/0/(\d+)/(\d+)")
Options = Mapping[str, Any] | None
Progress = Callable[[int, int], None] | None


def zones_in(target: Objects) -> tuple[str, ...]:
    """The zones of a store of several, by the folders there are; empty for a store of one.

    Folders, because a root that is damaged may say anything.
    """
    names = target.names()
    return () if "status" in names else tuple(sorted(name for name in names if _ZONE.fullmatch(name)))


def places(url: str, storage_options: Options = None, group: str | None = None) -> tuple[tuple[str | None, str], ...]:
    """(zone, URL) of each cube of a store; (None, url) for a store of one. StoreError when there is none."""
    if group is not None:
        return ((group, f"{url.rstrip('/')}/{group}"),)
    zones = zones_in(Objects(url, storage_options))
    return tuple((zone, f"{url.rstrip('/')}/{zone}") for zone in zones) or ((None, url),)


def survey(
    url: str, storage_options: Options = None, group: str | None = None, progress: Progress = None
) -> list[Finding]:
    """What is wrong anywhere in a store, zones named in the paths. StoreError when no eocube store is there.

    Args:
        url: of the store.
        storage_options: fsspec options of it.
        group: one zone alone.
        progress: called with shards done and all, of one cube after the other.
    """
    cubes = places(url, storage_options, group)
    findings = [
        found if zone is None else Finding(f"{zone}/{found.path}", found.what)
        for zone, place in cubes
        for found in _cube(place, storage_options, progress)
    ]
    if cubes[0][0] is not None and group is None:
        findings += _over_zones(Objects(url, storage_options), [str(zone) for zone, _ in cubes], findings)
    return findings


def _cube(url: str, storage_options: Options, progress: Progress) -> list[Finding]:
    target = Objects(url, storage_options)
    try:
        store = CubeStore.open(url, storage_options=storage_options, check=False)
    except StoreError as error:
        if target.get(LAYOUT) is None and target.get(PLAN) is None:
            raise
        lacks = target.get(ROOT) is None
        return [Finding(ROOT, "is missing" if lacks else f"is damaged ({error})")]
    return store.verify(progress)


def _over_zones(target: Objects, zones: list[str], findings: Iterable[Finding]) -> list[Finding]:
    """Whether the root's zarr.json says of the zones what they say of themselves."""
    data = target.get(ROOT)
    if data is None:
        return [Finding(ROOT, "is missing")]
    if any(path.endswith(f"/{ROOT}") and path.count("/") == 1 for path, _ in findings):
        return []  # a zone's own is damaged: there is nothing to compare with
    try:
        root = read_root(target, zones=True)
        sound = root is not None and gathered(target, zones, root) == data and set(root["attributes"]) == {"eocube"}
        sound = sound and root is not None and root["attributes"]["eocube"] == {"zones": zones}
    except StoreError:
        sound = False
    return [] if sound else [Finding(ROOT, "is not what its zones' metadata give")]


def damaged_units(findings: Iterable[Finding], array: str, units: Collection[Place]) -> frozenset[Place]:
    """The units of a cube whose shard is among the findings, as (time, row, column); what is no unit's is a stray.

    Shards are objects of `array`.
    """
    found = (_SHARD.fullmatch(path) for path, _ in findings)
    places = {(int(m[2]), int(m[3]), int(m[4])) for m in found if m and m[1] == array}
    return frozenset(places & set(units))
