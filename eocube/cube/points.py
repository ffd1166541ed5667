"""Takes points as users have them: a file, a table, a GeoDataFrame, shapely points or pairs of numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer

from eocube.errors import InputError
from eocube.ground.vectors import LONLAT, Features, of_table, parse_crs, read_features
from eocube.ground.zones import zones_of

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Points:
    """(N,) coordinates in a CRS, and what is carried along with each, by column."""

    x: Floats
    y: Floats
    crs: CRS
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def within(self, epsg: int | CRS) -> tuple[Floats, Floats]:
        """Their coordinates in another CRS, infinite where it has none for them."""
        across, up = Transformer.from_crs(self.crs, epsg, always_xy=True).transform(self.x, self.y)
        return np.asarray(across, np.float64), np.asarray(up, np.float64)

    def lonlat(self) -> tuple[Floats, Floats]:
        """Degrees, as in longitude -180 to 180."""
        lon, lat = (self.x, self.y) if self.crs == LONLAT else self.within(LONLAT)
        return (lon + 180.0) % 360.0 - 180.0, lat

    def some(self, which: NDArray[Any]) -> Points:
        """Those at some indices."""
        return Points(self.x[which], self.y[which], self.crs, {k: v[which] for k, v in self.columns.items()})

    def zones(self) -> NDArray[np.int64]:
        """(N,) EPSG code of the UTM zone in whose own ground each lies, 0 beyond UTM."""
        lon, lat = self.lonlat()
        found = np.zeros(len(self), np.int64)
        for epsg, (west, south, east, north) in zones_of((-180.0, -80.0, 180.0, 84.0)):
            found[(lon >= west) & (lon < east) & (lat >= south) & (lat < north)] = epsg
        return found


def points_from(given: Any, crs: str | None = None, storage_options: Mapping[str, Any] | None = None) -> Points:
    """Points out of what a user has.

    Args:
        given: the path of a file (`eocube.ground.vectors.read_features`), a GeoDataFrame or GeoSeries, a table with the
            columns lon and lat (or x and y), shapely points, or an (N, 2) array of lon, lat (of x, y with `crs`).
        crs: of what does not say its own; degrees by default.
        storage_options: of fsspec, for a file.

    Raises:
        InputError: anything else, no point at all, features that are no points, coordinates that are not finite.
    """
    stated = None if crs is None else parse_crs(crs)
    if isinstance(given, Points):
        return given
    if isinstance(given, str | PathLike):
        return of_features(read_features(given, crs=crs, storage_options=storage_options), str(given))
    if hasattr(given, "geometry") and hasattr(given, "crs"):
        own = stated if given.crs is None else CRS.from_user_input(given.crs)
        names = [] if not hasattr(given, "columns") else [c for c in given.columns if c != given.geometry.name]
        rest = {str(name): given[name].to_numpy() for name in names}
        return of_features(Features(np.asarray(given.geometry, np.object_), own or LONLAT, rest), "the points")
    if hasattr(given, "columns"):
        columns = {str(name): np.asarray(given[name]) for name in given.columns}
        return of_features(of_table("the table", columns, stated), "the table")
    array = np.asarray(given)
    if array.dtype == np.object_ and array.ndim == 1 and shapely.is_geometry(array).all():
        return of_features(Features(array, stated or LONLAT), "the points")
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "fiu":
        raise InputError("points are a file, a GeoDataFrame, a table with lon and lat, or an (N, 2) array of lon, lat")
    return _checked(Points(array[:, 0].astype(float), array[:, 1].astype(float), stated or LONLAT), "the points")


def of_features(features: Features, where: str) -> Points:
    """Features that are points, a multipoint of one too."""
    geometries = features.geometries
    several = shapely.get_type_id(geometries) == shapely.GeometryType.MULTIPOINT
    alone = several & (shapely.get_num_geometries(geometries) == 1)
    geometries = np.where(alone, shapely.get_geometry(geometries, 0), geometries)
    kinds = shapely.get_type_id(geometries)
    for k in np.flatnonzero((kinds != shapely.GeometryType.POINT) & (kinds != -1))[:1]:
        raise InputError(
            f"{where}: feature {k + 1} is a {geometries[k].geom_type}, not a point: take points within it, such as its "
            "centroid"
        )
    return _checked(Points(shapely.get_x(geometries), shapely.get_y(geometries), features.crs, features.columns), where)


def _checked(points: Points, where: str) -> Points:
    if not len(points):
        raise InputError(f"{where}: there is no point in it")
    lost = np.flatnonzero(~(np.isfinite(points.x) & np.isfinite(points.y)))
    if len(lost):
        raise InputError(
            f"{where}: {len(lost)} of {len(points)} points have no coordinates, the first is {lost[0] + 1}"
        )
    if points.crs == LONLAT and np.abs(points.y).max() > 90:
        raise InputError(
            f"{where}: latitudes beyond 90: is it longitude first, and in degrees? --crs names another CRS"
        )
    return points
