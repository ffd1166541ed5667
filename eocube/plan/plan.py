"""Freezes a run's plan: what is read, on which lattice, into which product; written before a pixel is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from shapely import STRtree
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from shapely.validation import make_valid

from eocube.errors import StoreError
from eocube.ground.boxes import footprint_of
from eocube.ground.grid import CubeGrid, Window, by_zone
from eocube.ground.lattice import ShardPlace
from eocube.ground.zones import BBox, central_meridian, to_zone
from eocube.products.documents import from_plan, to_attribute, to_plan
from eocube.products.identity import digest
from eocube.products.spec import Product
from eocube.products.super_resolved import Derivation
from eocube.scenes.scene_ids import doubled
from eocube.scenes.search import Scene
from eocube.sensors.sensor import Sensor

PLAN_FILE = "commits/plan.json"


@dataclass(frozen=True, slots=True)
class TimeStep:
    """One datatake: the scenes that share a moment."""

    time: str
    """ISO 8601 UTC, the datatake's start."""
    platform: str
    group: str
    scene_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Acquisition:
    """What is known of a time step beyond what makes it one."""

    orbit_state: str = ""
    """"ascending", "descending" or, not known, ""."""
    relative_orbit: int = 0
    """The track's number, 0 not known: they start at 1."""
    item_datetimes: tuple[str, ...] = ()
    """Each item's own moment (ISO 8601, UTC) in the order of the step's `scene_ids`, "" not known."""


@dataclass(frozen=True, slots=True, order=True)
class WorkUnit:
    """One shard at one time: read, encoded and written by one actor as one object."""

    time: int
    row: int
    """Shard row and column within the store's arrays."""
    col: int
    empty: bool = False
    """No scene touches it: it holds no data, and nobody needs to look."""
    keep: str | None = None
    """A receipt, as its JSON line, of windows that are done and stay as they are; the others are done now."""

    @property
    def shard(self) -> ShardPlace:
        """Its shard in the store's arrays."""
        return ShardPlace(self.row, self.col)

    @property
    def key(self) -> str:
        """The unit's name in the commit log."""
        return f"t{self.time:05d}/r{self.row:04d}/c{self.col:04d}"


@dataclass(frozen=True)
class Plan:
    """Everything a run will do, on one zone.

    Raises nothing by itself: it is made by `build_plan` and read back by `from_json`.
    """

    product: Product
    grid: CubeGrid
    times: tuple[TimeStep, ...]
    scenes: tuple[Scene, ...]
    request: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, without secrets: bbox, datetime, catalog, ...; the same request resumes without a search."""
    refused: tuple[tuple[str, str], ...] = ()
    """Items that were found and not taken, with the reason."""
    numerics: Mapping[str, Any] = field(default_factory=dict)
    """Device, batch and libraries: same numerics, same bytes; not part of any hash (DESIGN 3.12)."""
    extends: tuple[str, ...] = ()
    """Hashes of the plans that this one grew from, the oldest first (`eocube.run.extend`)."""
    derived: Derivation | None = None
    """How the cube is made from another; None where it is read from its scenes. Then its scenes only say whose ground
    and time it is."""

    @property
    def sensor(self) -> Sensor:
        """The sensor that is read."""
        return self.product.sensor

    @cached_property
    def space_id(self) -> str:
        """Hash of the product's meaning: stores whose space ids differ never mix."""
        return self.product.space_id

    @cached_property
    def hash(self) -> str:
        """Hash of the whole plan: space, ground, times, scenes, storage."""
        return digest(
            {
                "space": self.space_id,
                "grid": self.grid.to_dict(),
                "storage": self.product.storage.name,
                "times": [asdict(t) for t in self.times],
                "scenes": [s.identity() for s in self.scenes],
                **({} if self.derived is None else {"derived": self.derived.identity()}),
            }
        )

    @property
    def disorder(self) -> int:
        """Time steps that lie behind a later one, as dates do that a store was extended with backwards."""
        seen, behind = "", 0
        for step in self.times:
            behind += step.time < seen
            seen = max(seen, step.time)
        return behind

    @property
    def doubled(self) -> tuple[str, ...]:
        """Item ids that several scenes share, as plans of version 0.1 may have them: their dates hold one's pixels."""
        return doubled(self.scenes)

    @cached_property
    def by_id(self) -> dict[str, Scene]:
        """The plan's scenes by their id."""
        return {s.id: s for s in self.scenes}

    @property
    def acquisitions(self) -> tuple[Acquisition, ...]:
        """Orbit and moments of every time step, as far as its scenes say."""
        found = []
        for step in self.times:
            scenes = [self.by_id[i] for i in step.scene_ids if i in self.by_id]
            state = next((s.orbit_state for s in scenes if s.orbit_state), "")
            track = next((s.relative_orbit for s in scenes if s.relative_orbit), 0)
            moments = tuple(self.by_id[i].datetime if i in self.by_id else "" for i in step.scene_ids)
            found.append(Acquisition(state, track, moments))
        return tuple(found)

    def scenes_at(self, time: int) -> tuple[Scene, ...]:
        """The scenes of a time step, in mosaic order."""
        return tuple(self.by_id[i] for i in self.times[time].scene_ids)

    @cached_property
    def _footprints(self) -> dict[str, BaseGeometry]:
        return {s.id: footprint(s, self.grid.lattice.epsg) for s in self.scenes}

    def scenes_of(self, time: int, window: Window) -> tuple[Scene, ...]:
        """The scenes of a time step whose footprint touches a window, halo included, in mosaic order."""
        return self.scenes_of_each(time, (window,))[0]

    def scenes_of_each(self, time: int, windows: Sequence[Window]) -> list[tuple[Scene, ...]]:
        """`scenes_of` of some windows, looked for together."""
        areas = shapely.box(*np.array([self.grid.lattice.window_bounds(w) for w in windows]).reshape(-1, 4).T)
        scenes = self.scenes_at(time)
        touched = [shapely.intersects(self._footprints[scene.id], areas).tolist() for scene in scenes]
        return [tuple(s for s, hit in zip(scenes, touched, strict=True) if hit[k]) for k in range(len(windows))]

    def units(self) -> Iterator[WorkUnit]:
        """Every unit with a requested window, by time, then row, then column.

        Of a cube made from another none is empty beforehand: that cube's log says what there is.
        """
        if self.derived is not None:
            yield from (WorkUnit(t, row, col) for t in range(len(self.times)) for row, col in self.grid.shards())
            return
        lattice = self.grid.lattice
        shards = list(self.grid.shards())
        reach = lattice.halo_px * lattice.resolution
        areas = [box(*self.grid.shard_bounds(r, c)).buffer(reach, join_style="mitre") for r, c in shards]
        tree = STRtree(areas)
        for index, step in enumerate(self.times):
            touched = {int(k) for i in step.scene_ids for k in tree.query(self._footprints[i], predicate="intersects")}
            for k, (row, col) in enumerate(shards):
                yield WorkUnit(index, row, col, empty=k not in touched)

    def document(self) -> dict[str, Any]:
        """What the store says of itself in its `eocube` attribute."""
        return {
            "space_id": self.space_id,
            "space": dict(self.product.meaning),
            "plan_hash": self.hash,
            **to_attribute(self.product),
            "extent": list(self.grid.extent),
            "request": dict(self.request),
            "refused": [list(r) for r in self.refused],
            "numerics": dict(self.numerics),
            **({} if self.derived is None else {"derived": self.derived.to_dict()}),
        }

    def to_json(self) -> str:
        """The plan as JSON: what `commits/plan.json` holds."""
        return json.dumps(
            {
                **to_plan(self.product),
                **({} if self.derived is None else {"derived": self.derived.to_dict()}),
                "grid": self.grid.to_dict(),
                "times": [asdict(t) for t in self.times],
                "scenes": [s.to_dict() for s in self.scenes],
                "request": dict(self.request),
                "refused": [list(r) for r in self.refused],
                "numerics": dict(self.numerics),
                "extends": list(self.extends),
                "hash": self.hash,
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote. StoreError, in one line, for a text that is none."""
        try:
            return cls._read(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            why = f"{type(error).__name__}: {str(error)[:120]}"
            raise StoreError(
                f"the store's plan ({PLAN_FILE}) is damaged ({why}): eocube repair may bring it back"
            ) from error

    @classmethod
    def _read(cls, d: Mapping[str, Any]) -> Plan:
        grid = CubeGrid.from_dict(d["grid"])
        product = from_plan(d, grid.lattice)
        lattice = grid.lattice
        if (product.cell_px, product.core_px, product.halo_px) != (lattice.cell_px, lattice.core_px, lattice.halo_px):
            raise ValueError("its product has other windows than its lattice")
        return cls(
            product=product,
            grid=grid,
            times=tuple(TimeStep(**{**t, "scene_ids": tuple(t["scene_ids"])}) for t in d["times"]),
            scenes=tuple(Scene.from_dict(s) for s in d["scenes"]),
            request=d["request"],
            refused=tuple((i, why) for i, why in d["refused"]),
            numerics=d["numerics"],
            extends=tuple(d.get("extends", ())),
            derived=Derivation.from_dict(d["derived"]) if "derived" in d else None,
        )


_AROUND = 40.0
"""Degrees of longitude either side of a zone's middle within which its projection is one to one."""


def footprint(scene: Scene, epsg: int) -> BaseGeometry:
    """A scene's footprint in a zone's CRS, its edges densified, a little enlarged so that rounding loses nothing.

    Empty for a scene on the other side of the globe, of which a zone's projection would make ground nearby.
    """
    geometry = json.loads(scene.footprint) if scene.footprint else None
    outline = footprint_of({"geometry": geometry, "bbox": scene.bbox})
    assert outline is not None
    middle, parts = central_meridian(epsg), []
    for turn in (-360.0, 0.0, 360.0):
        near = outline.intersection(box(middle - _AROUND - turn, -88.0, middle + _AROUND - turn, 88.0))
        if near.is_empty:
            continue
        part = shapely.transform(near.segmentize(0.05), lambda c: np.column_stack(to_zone(epsg, c[:, 0], c[:, 1])))
        parts.append(part if part.is_valid else make_valid(part))
    return shapely.union_all(parts).buffer(100.0)


def group_times(scenes: Sequence[Scene]) -> tuple[TimeStep, ...]:
    """Scenes grouped into time steps by datatake, in order of time; within a step in mosaic order, by id."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for s in scenes:
        groups.setdefault((s.time, s.platform, s.group), []).append(s.id)
    return tuple(TimeStep(t, p, g, tuple(sorted(ids))) for (t, p, g), ids in sorted(groups.items()))


def build_plan(
    product: Product,
    grid: CubeGrid,
    scenes: Sequence[Scene],
    request: Mapping[str, Any],
    refused: Sequence[tuple[str, str]] = (),
    numerics: Mapping[str, Any] | None = None,
) -> Plan:
    """Freeze a run on one zone: scenes that touch no requested core are left out, times without a scene too.

    `scenes` are those of a search over the grid's windows, halos included, so that a window's scenes do not depend
    on the box that was asked for. InputError where a sampling of the sensor does not fit the cores.
    """
    for band in product.sensor.bands:
        if band.gsd > grid.lattice.resolution:
            grid.lattice.margin(band.gsd)
    requested = [box(*grid.lattice.core_bounds(w)) for w in grid.requested_windows()]
    tree = STRtree(requested)
    touching = {s.id for s in scenes if len(tree.query(footprint(s, grid.lattice.epsg), predicate="intersects")) > 0}
    times = tuple(t for t in group_times(scenes) if any(i in touching for i in t.scene_ids))
    used = {i for t in times for i in t.scene_ids}
    kept = tuple(sorted((s for s in scenes if s.id in used), key=lambda s: (s.time, s.id)))
    return Plan(product, grid, times, kept, request, tuple(refused), dict(numerics or {}))


def stored_extent(plans: Sequence[Plan]) -> tuple[BBox, ...]:
    """The ground that a store was made to have room for; empty where none was reserved."""
    boxes = [boxes_of(plan, "extent") for plan in plans]
    return max(boxes, key=lambda reserved: sum((e - w) * (n - s) for w, s, e, n in reserved), default=())


def several_zones(plans: Sequence[Plan]) -> bool:
    """Whether a store of these plans is a group with one cube a zone: so many there are, or its extent reaches."""
    return len(plans) > 1 or len(by_zone(stored_extent(plans))) > 1


def boxes_of(plan: Plan, name: str) -> tuple[BBox, ...]:
    return tuple((float(w), float(s), float(e), float(n)) for w, s, e, n in plan.request.get(name) or ())


def in_order(behind: int) -> str:
    """What is to be known of the time axis, by how many steps lie behind a later one."""
    return "in order" if not behind else f'not in order: {behind} steps lie behind later ones; use ds.sortby("time")'
