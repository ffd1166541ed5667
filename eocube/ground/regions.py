"""Makes one outline in degrees of the polygons in a file: any CRS, several parts, over the antimeridian."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from eocube.errors import InputError
from eocube.ground.boxes import BBox
from eocube.ground.vectors import LONLAT, Features, read_features

MOST_VERTICES = 200_000
"""An outline of more is refused: it goes into every plan, 32 bytes a vertex."""
_GRID = 1e-7
"""Degrees that vertices are rounded to, about 1 cm."""
_STEPS = 500
"""Chords along the longer side of a projected region, so that its edges bend in degrees as they do on the ground."""


@dataclass(frozen=True)
class Region:
    """An outline in degrees, within -180..180, as the hexadecimal WKB of a multipolygon; what plans keep."""

    wkb: str

    @classmethod
    def read(cls, path: str | PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Region:
        """The polygons of a file (`eocube.ground.vectors.read_features`) as one outline.

        Raises:
            InputError: no such file, no polygon in it, lines or points, no CRS, too many vertices.
        """
        return cls.of(read_features(path, storage_options=storage_options), str(path))

    @classmethod
    def of(cls, features: Features, where: str) -> Region:
        """Polygons as one outline; `where` names them in errors."""
        polygons = _polygons(features.geometries, where)
        if features.crs != LONLAT:
            polygons = _to_degrees(polygons, features.crs, where)
        bounds = shapely.total_bounds(polygons)
        if not np.isfinite(bounds).all() or not (
            bounds[1] >= -90 and bounds[3] <= 90 and np.abs(bounds[::2]).max() <= 540
        ):
            raise InputError(f"{where}: its coordinates are no longitudes and latitudes: is its CRS the one it says?")
        whole = shapely.union_all(shapely.make_valid([_unrolled(p) for p in polygons]))
        turned = []
        for turn in (-360.0, 0.0, 360.0):
            part = shapely.intersection(whole, shapely.box(-180.0 + turn, -90.0, 180.0 + turn, 90.0))
            turned.append(shapely.transform(part, lambda c, by=turn: c - (by, 0.0)))
        outline = shapely.set_precision(shapely.union_all(turned), _GRID)
        parts = [g for g in shapely.get_parts(outline) if g.geom_type == "Polygon" and g.area > 0]
        if not parts:
            raise InputError(f"{where} covers no ground")
        found = shapely.normalize(shapely.MultiPolygon(parts))
        if (count := int(shapely.get_num_coordinates(found))) > MOST_VERTICES:
            raise InputError(
                f"{where} has {count} vertices, {MOST_VERTICES} at most: simplify it, 100 m is fine enough"
            )
        return cls(shapely.to_wkb(found, hex=True, byte_order=1, output_dimension=2))

    @cached_property
    def outline(self) -> shapely.Geometry:
        """The multipolygon, in degrees."""
        return shapely.from_wkb(self.wkb)

    @cached_property
    def digest(self) -> str:
        """Names the outline in requests."""
        return hashlib.sha256(self.wkb.encode()).hexdigest()[:16]

    @property
    def boxes(self) -> tuple[BBox, ...]:
        """(west, south, east, north) around it: one, or two where it meets the antimeridian on both sides."""
        west, south, east, north = map(float, shapely.bounds(self.outline))
        if west > -180.0 or east < 180.0:
            return ((west, south, east, north),)
        parts = shapely.get_parts(self.outline)
        middle = shapely.bounds(parts)[:, [0, 2]].mean(axis=1)
        sides = [parts[middle >= 0], parts[middle < 0]]
        boxes = [tuple(map(float, shapely.total_bounds(side))) for side in sides if len(side)]
        return tuple((w, s, e, n) for w, s, e, n in boxes)

    def meets(self, boxes: tuple[BBox, ...]) -> bool:
        """Whether it has ground in any of some boxes."""
        return any(shapely.intersection(self.outline, shapely.box(*box)).area > 0 for box in boxes)


def _polygons(geometries: NDArray[np.object_], where: str) -> NDArray[np.object_]:
    """The polygons of features, collections and multipolygons taken apart."""
    held = shapely.force_2d(geometries[np.array([g is not None and not g.is_empty for g in geometries], np.bool_)])
    parts = shapely.get_parts(held)
    while (shapely.get_num_geometries(parts) > 1).any():
        parts = shapely.get_parts(parts)
    for part in parts[shapely.get_type_id(parts) != shapely.GeometryType.POLYGON][:1]:
        raise InputError(f"{where} holds a {part.geom_type}: a region is of polygons (buffer lines and points)")
    if not len(parts):
        raise InputError(f"{where} holds no polygon")
    return np.asarray(parts, np.object_)


def _to_degrees(polygons: NDArray[np.object_], crs: CRS, where: str) -> NDArray[np.object_]:
    west, south, east, north = shapely.total_bounds(polygons)
    if not crs.is_geographic:
        polygons = shapely.segmentize(polygons, max(east - west, north - south) / _STEPS)
    to = Transformer.from_crs(crs, LONLAT, always_xy=True)
    found = shapely.transform(polygons, lambda c: np.column_stack(to.transform(c[:, 0], c[:, 1])))
    if not np.isfinite(shapely.get_coordinates(found)).all():
        raise InputError(f"{where}: some of its coordinates lie beyond what its CRS covers")
    return np.asarray(found, np.object_)


def _unrolled(polygon: shapely.Geometry) -> shapely.Geometry:
    """A polygon whose rings step over the antimeridian, going on beyond it: edges are less than half way round."""

    def ring(line: shapely.Geometry) -> NDArray[np.float64]:
        points: NDArray[np.float64] = shapely.get_coordinates(line).copy()
        step = np.diff(points[:, 0])
        turns = np.where((np.abs(step) > 180.0) & (np.abs(step) < 360.0), -360.0 * np.sign(step), 0.0)
        points[1:, 0] += np.cumsum(turns)
        return points

    shell = ring(polygon.exterior)
    holes = []
    for line in polygon.interiors:
        hole = ring(line)
        # Beside the shell that it is cut out of.
        hole[:, 0] += 360.0 * np.round((shell[:, 0].mean() - hole[:, 0].mean()) / 360.0)
        holes.append(hole)
    return shapely.Polygon(shell, holes)
