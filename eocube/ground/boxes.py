"""Reads boxes and intervals as users type them, and footprints: antimeridian, swapped axes, overlap."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import shapely
from shapely.affinity import translate
from shapely.geometry.base import BaseGeometry

from eocube.errors import InputError

BBox = tuple[float, float, float, float]
Interval = tuple[datetime, datetime]


def parse_bbox(west: float, south: float, east: float, north: float) -> tuple[BBox, ...]:
    """A box in degrees -> one (west, south, east, north), or two where it crosses the antimeridian.

    west > east crosses the antimeridian where the wrapped box is narrower than 180 degrees; anything else of the kind,
    numbers out of range, empty boxes and NaN raise `InputError`, with a hint where longitude and latitude were swapped.
    """
    if not all(math.isfinite(value) for value in (west, south, east, north)):
        raise InputError(f"bbox {_say(west, south, east, north)}: all four must be finite numbers")
    if not (-90 <= south <= 90 and -90 <= north <= 90):
        hint = ""
        if max(abs(west), abs(east)) <= 90 and max(abs(south), abs(north)) <= 180 and west < east:
            hint = f"; longitude and latitude look swapped, did you mean {_say(south, west, north, east)}?"
        raise InputError(f"bbox {_say(west, south, east, north)}: latitude must lie in -90..90{hint}")
    if not (-180 <= west <= 180 and -180 <= east <= 180):
        turned = _say(_turn(west), south, _turn(east), north)
        raise InputError(
            f"bbox {_say(west, south, east, north)}: longitude must lie in -180..180; did you mean {turned}?"
        )
    if south >= north:
        what = "is empty: south equals north" if south == north else "has south above north; the order is W S E N"
        raise InputError(f"bbox {_say(west, south, east, north)} {what}")
    if west == east:
        raise InputError(f"bbox {_say(west, south, east, north)} is empty: west equals east")
    if west < east:
        return ((west, south, east, north),)
    if east - west + 360 >= 180:
        raise InputError(
            f"bbox {_say(west, south, east, north)} has west > east: the order is W S E N (a box over the antimeridian "
            f"must be narrower than 180 degrees; this one would be {east - west + 360:g})"
        )
    parts = ((west, south, 180.0, north), (-180.0, south, east, north))
    return tuple(part for part in parts if part[0] < part[2])


def split_box(box: BBox) -> tuple[BBox, ...]:
    """A box made by a programme (west > east, or longitudes past 180, over the antimeridian) -> one or two plain ones.

    Unlike `parse_bbox` it takes boxes of any width and clips latitudes: halos reach past the ends of the map. Empty
    boxes and NaN raise `InputError`.
    """
    west, south, east, north = box
    south, north = max(south, -90.0), min(north, 90.0)
    if not all(math.isfinite(value) for value in box) or south >= north or west == east:
        raise InputError(f"bbox {_say(*box)} is empty")
    width = east - west if east > west else east - west + 360
    if width >= 360:
        return ((-180.0, south, 180.0, north),)
    west = _turn(west)
    if west + width <= 180:
        return ((west, south, west + width, north),)
    parts = ((west, south, 180.0, north), (-180.0, south, west + width - 360, north))
    return tuple(part for part in parts if part[0] < part[2])


def covers(larger: Iterable[Sequence[float]], smaller: Iterable[Sequence[float]]) -> bool:
    """Whether boxes hold others whole, all (west, south, east, north) and none over the antimeridian."""
    one, other = (shapely.union_all([shapely.box(*b) for b in boxes]) for boxes in (larger, smaller))
    return bool(one.covers(other))


def boxes_said(boxes: Iterable[Sequence[float]]) -> str:
    """Boxes in words, for messages."""
    return " and ".join(_say(*box) for box in boxes)


def _say(*values: float) -> str:
    return " ".join(f"{value:g}" for value in values)


def _turn(longitude: float) -> float:
    """The same meridian within -180..180."""
    return (longitude + 180) % 360 - 180 if abs(longitude) > 180 else longitude


def parse_interval(text: str) -> Interval:
    """ "A/B", or one date, -> (first, last) moment in UTC, both included.

    Dates may be years, months, days or full ISO 8601 times (UTC where they name no zone): the first moment of A to the
    last microsecond of B. `InputError` for anything else, open ends and reversed order.
    """
    parts = [part.strip() for part in text.split("/")]
    if not 1 <= len(parts) <= 2 or any(part in ("", "..") for part in parts):
        raise InputError(f"datetime {text!r}: give A/B with both ends, such as 2024-06-01/2024-08-31, or one date")
    first, last = _span(parts[0], text)[0], _span(parts[-1], text)[1]
    if first > last:
        raise InputError(f"datetime {text!r}: {parts[0]} is after {parts[1]}; give the earlier date first")
    return first, last


def _span(part: str, text: str) -> Interval:
    """The first and last moment that a date, month, year or time means."""
    try:
        if re.fullmatch(r"\d{4}", part):
            start, after = datetime(int(part), 1, 1), datetime(int(part) + 1, 1, 1)
        elif re.fullmatch(r"\d{4}-\d{2}", part):
            start = datetime.strptime(part, "%Y-%m")
            after = (start + timedelta(days=32)).replace(day=1)
        elif re.fullmatch(r"\d{4}-\d{2}-\d{2}", part):
            start = datetime.strptime(part, "%Y-%m-%d")
            after = start + timedelta(days=1)
        else:
            moment = datetime.fromisoformat(part)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
            return moment, moment
    except (ValueError, OverflowError):
        raise InputError(f"datetime {text!r}: {part!r} is no date; write it as 2024-06-01") from None
    return start.replace(tzinfo=UTC), after.replace(tzinfo=UTC) - timedelta(microseconds=1)


def parse_moment(text: Any) -> datetime | None:
    """An ISO time of a STAC item in UTC (zone-less ones are UTC), or None."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):  # the latter for a time that another zone puts before year 1
        return None


def footprint_of(item: Mapping[str, Any]) -> BaseGeometry | None:
    """The item's footprint on an unrolled globe: longitudes may run past 180 so that no part wraps. None: unknown.

    Geometries whose ring jumps over the antimeridian (longitudes near -180 and near 180 in one ring) are unrolled; a
    box with west > east likewise. Geometry goes before bbox, since boxes of such items often span the whole globe.
    """
    geometry = item.get("geometry")
    if isinstance(geometry, Mapping) and geometry.get("coordinates"):
        shape = shapely.geometry.shape({name: geometry[name] for name in ("type", "coordinates")})
        parts = [_unrolled(part) for part in getattr(shape, "geoms", [shape])]
        return shapely.union_all([shapely.make_valid(part) for part in parts])
    bbox = item.get("bbox")
    if isinstance(bbox, Sequence) and len(bbox) in (4, 6):
        half = len(bbox) // 2
        west, south, east, north = float(bbox[0]), float(bbox[1]), float(bbox[half]), float(bbox[half + 1])
        return shapely.box(west, south, east if east >= west else east + 360, north)
    return None


def _unrolled(part: BaseGeometry) -> BaseGeometry:
    """One ring's polygon with its western longitudes shifted by 360 where it spans more than half the globe.

    One whose corners all lie on the antimeridian stays: it goes around the globe and crosses nothing. The package
    `antimeridian` does the opposite, it splits at 180; here and in a plan's footprints its parts would be joined again.
    """
    west, _, east, _ = part.bounds
    if east - west <= 180:
        return part
    turned = shapely.transform(part, lambda xy: _shift_west(xy))
    return turned if turned.bounds[2] > turned.bounds[0] else part


def _shift_west(xy: Any) -> Any:
    xy[:, 0] = [x + 360 if x < 0 else x for x in xy[:, 0]]
    return xy


def bbox_of(footprint: BaseGeometry) -> BBox:
    """(west, south, east, north) of a footprint, in -180..180; west > east where it crosses the antimeridian."""
    west, south, east, north = footprint.bounds
    if east - west >= 360:
        return (-180.0, south, 180.0, north)
    return (_turn(west), south, _turn(east), north)


def meets(footprint: BaseGeometry, boxes: Sequence[BBox]) -> bool:
    """Whether the footprint touches any of the boxes, whichever way round the globe each is written."""
    turned = [translate(footprint, xoff=offset) for offset in (-360.0, 0.0, 360.0)]
    return any(shape.intersects(shapely.box(*box)) for box in boxes for shape in turned)


def overlap(one: BaseGeometry, other: BaseGeometry) -> float:
    """Shared area over the smaller one's area, 0 to 1, on the unrolled globe."""
    smaller = min(one.area, other.area)
    if smaller == 0:
        return float(one.intersects(other))
    shared = max(one.intersection(translate(other, xoff=offset)).area for offset in (-360.0, 0.0, 360.0))
    return float(shared / smaller)
