"""Finds UTM zones: which part of a longitude/latitude box belongs to which, and the way between the two."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pyproj import Transformer

from eocube.errors import InputError

BBox = tuple[float, float, float, float]
"""(west, south, east, north) in degrees; west > east says that the box crosses the antimeridian."""

SOUTHERN_LIMIT, NORTHERN_LIMIT = -80.0, 84.0

# Where the 6 degree rule does not hold (Defense Mapping Agency TM 8358.2): south-west Norway and Svalbard.
_NORTHERN_EXCEPTIONS: dict[int, tuple[BBox, ...]] = {
    31: ((0, 0, 6, 56), (0, 56, 3, 64), (0, 64, 6, 72), (0, 72, 9, 84)),
    32: ((6, 0, 12, 56), (3, 56, 12, 64), (6, 64, 12, 72)),
    33: ((12, 0, 18, 72), (9, 72, 21, 84)),
    34: ((18, 0, 24, 72),),
    35: ((24, 0, 30, 72), (21, 72, 33, 84)),
    36: ((30, 0, 36, 72),),
    37: ((36, 0, 42, 72), (33, 72, 42, 84)),
}


def zone_epsg(zone: int, *, south: bool = False) -> int:
    """EPSG code of UTM zone 1..60 on WGS 84, of its northern or southern half."""
    return (32700 if south else 32600) + zone


def zone_number(epsg: int) -> tuple[int, bool]:
    """(zone 1..60, whether southern) of an EPSG code; InputError when the code is no WGS 84 UTM zone."""
    base, zone = divmod(epsg, 100)
    if base not in (326, 327) or not 1 <= zone <= 60:
        raise InputError(f"EPSG:{epsg} is no WGS 84 UTM zone; cubes lie in EPSG:32601-32660 or EPSG:32701-32760")
    return zone, base == 327


def zone_name(epsg: int) -> str:
    """The cube's name in a store of several zones: "utm32" in the north, "utm32s" in the south."""
    zone, south = zone_number(epsg)
    return f"utm{zone:02d}{'s' if south else ''}"


def zone_bands(epsg: int) -> tuple[BBox, ...]:
    """The longitude/latitude rectangles that make up the zone's own ground, exceptions included."""
    zone, south = zone_number(epsg)
    west = -180.0 + 6.0 * (zone - 1)
    if south:
        return ((west, SOUTHERN_LIMIT, west + 6.0, 0.0),)
    return _NORTHERN_EXCEPTIONS.get(zone, ((west, 0.0, west + 6.0, NORTHERN_LIMIT),))


def central_meridian(epsg: int) -> float:
    """Longitude of the zone's central meridian in degrees."""
    return -183.0 + 6.0 * zone_number(epsg)[0]


def split_antimeridian(bbox: BBox) -> tuple[BBox, ...]:
    """One box, or the two halves of a box whose west is greater than its east."""
    west, south, east, north = bbox
    if west <= east:
        return (bbox,)
    return tuple(half for half in ((west, south, 180.0, north), (-180.0, south, east, north)) if half[0] < half[2])


def zones_of(bbox: BBox) -> list[tuple[int, BBox]]:
    """Split a box into (EPSG code, longitude/latitude part) by UTM zone and hemisphere.

    Together the parts are the box, without overlap. A zone comes twice where an exception cuts its ground into two
    rectangles (Norway, Svalbard). Sorted by zone, north before south. InputError beyond 80 S or 84 N, where UTM ends.
    """
    if bbox[1] < SOUTHERN_LIMIT or bbox[3] > NORTHERN_LIMIT:
        raise InputError(
            f"bbox latitudes {bbox[1]:g}..{bbox[3]:g} leave UTM, which ends at 80 S and 84 N; cut the bbox there"
        )
    parts: list[tuple[int, BBox]] = []
    halves = split_antimeridian(bbox)
    for zone in range(1, 61):
        for south in (False, True):
            epsg = zone_epsg(zone, south=south)
            for band in zone_bands(epsg):
                for half in halves:
                    west, low = max(half[0], band[0]), max(half[1], band[1])
                    east, high = min(half[2], band[2]), min(half[3], band[3])
                    if west < east and low < high:
                        parts.append((epsg, (west, low, east, high)))
    return parts


@lru_cache(maxsize=256)
def _transformer(source: int, target: int) -> Transformer:
    return Transformer.from_crs(source, target, always_xy=True)


def to_zone(epsg: int, lon: ArrayLike, lat: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Degrees to (easting, northing) in metres of the zone."""
    x, y = _transformer(4326, epsg).transform(np.asarray(lon, np.float64), np.asarray(lat, np.float64))
    return np.asarray(x), np.asarray(y)


def to_lonlat(epsg: int, x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Metres of the zone to degrees. Longitudes are continuous around the zone's central meridian.

    So the halo of zone 60 gets longitudes a little over 180 and that of zone 1 a little below -180.
    """
    lon, lat = _transformer(epsg, 4326).transform(np.asarray(x, np.float64), np.asarray(y, np.float64))
    middle = central_meridian(epsg)
    return (np.asarray(lon) - middle + 180.0) % 360.0 - 180.0 + middle, np.asarray(lat)


def ring(left: float, bottom: float, right: float, top: float, step: float) -> NDArray[np.float64]:
    """A box's edge as (N, 2) points at most `step` apart, corners included, not closed."""
    across = np.linspace(left, right, max(int(np.ceil((right - left) / step)), 1) + 1)
    up = np.linspace(bottom, top, max(int(np.ceil((top - bottom) / step)), 1) + 1)
    return np.concatenate(
        [
            np.column_stack([across[:-1], np.full(len(across) - 1, bottom)]),
            np.column_stack([np.full(len(up) - 1, right), up[:-1]]),
            np.column_stack([across[:0:-1], np.full(len(across) - 1, top)]),
            np.column_stack([np.full(len(up) - 1, left), up[:0:-1]]),
        ]
    )
