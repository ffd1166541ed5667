"""Gives every scene an id of its own: catalogues may call two items the same, and a plan's time steps go by id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

import shapely
from shapely.geometry import box, shape
from shapely.geometry.base import BaseGeometry

from eocube.ground.boxes import overlap
from eocube.scenes.scene import Scene

# Two items of one tile and datatake that share more than this of the smaller footprint are the same acquisition
# processed twice; the halves of a tile that was downlinked in two strips barely overlap and are both kept.
SAME_ACQUISITION = 0.5


def distinct(scenes: Iterable[Scene], held: Sequence[Scene] = ()) -> tuple[Scene, ...]:
    """The scenes in their order, no two of one id; an item that is listed twice counts once.

    The first item of an id keeps it; another one's ends in "~" and a hash of its collection, moment and hrefs, and
    `Scene.item` has the catalogue's own. A scene that `held` has is called what it is called there: the same item, or
    another processing of the same datatake over the same ground.
    """
    known: dict[str, list[Scene]] = {}
    for scene in held:
        known.setdefault(scene.item_id, []).append(scene)
    taken, seen, found = {scene.id for scene in held}, set[tuple[str, ...]](), list[Scene]()
    for scene in scenes:
        said = (scene.item_id, *_what(scene))
        if said in seen:
            continue
        seen.add(said)
        twin = _twin(scene, known.get(scene.item_id, []))
        if twin is not None:
            known[scene.item_id].remove(twin)
        name = _free(scene, taken) if twin is None else twin.id
        taken.add(name)
        found.append(replace(scene, id=name, item=None if name == scene.item_id else scene.item_id))
    return tuple(found)


def doubled(scenes: Iterable[Scene]) -> tuple[str, ...]:
    """The ids that more than one scene has, as plans of version 0.1 may say."""
    seen, twice = set[str](), set[str]()
    for scene in scenes:
        (twice if scene.id in seen else seen).add(scene.id)
    return tuple(sorted(twice))


def same_acquisition(one: Scene, other: Scene) -> bool:
    """Whether two scenes of a datatake are one tile's, processed twice: most of the smaller footprint is shared."""
    if one.footprint is not None and one.footprint == other.footprint:
        return True
    return overlap(_outline(one), _outline(other)) > SAME_ACQUISITION


def _outline(scene: Scene) -> BaseGeometry:
    if scene.footprint:
        return shapely.make_valid(shape(json.loads(scene.footprint)))
    west, south, east, north = scene.bbox
    return box(west, south, east if east >= west else east + 360, north)


def _what(scene: Scene) -> tuple[str, ...]:
    """What tells an item from another of its id."""
    return scene.collection, scene.datetime, *(source.href for source in scene.sources)


def _twin(scene: Scene, among: Sequence[Scene]) -> Scene | None:
    exact = next((one for one in among if _what(one) == _what(scene)), None)
    return exact or next((one for one in among if one.group == scene.group and same_acquisition(one, scene)), None)


def _free(scene: Scene, taken: Container[str]) -> str:
    """The item's id, or that and as much of the hash as it takes to be no other scene's."""
    mark = hashlib.sha256(json.dumps(_what(scene)).encode()).hexdigest()
    names = (scene.item_id, *(f"{scene.item_id}~{mark[:length]}" for length in range(8, len(mark) + 1)))
    return next(name for name in names if name not in taken)
