"""Checks a STAC item once, where it comes in: what is read of it later is of the type and size that it must be.

An item that fails is refused by name and the others go on. Behind this door the code relies on what it says here, and
nothing catches a TypeError or a KeyError on the item's behalf: those are defects of this package and come through.
Fields that nobody reads may hold anything.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

from eocube.errors import SourceError
from eocube.ground.boxes import footprint_of, parse_moment

MAX_ASSETS = 5_000
"""Assets of one item: the richest catalogues give some fifty."""
MAX_VERTICES = 200_000
"""Positions in one footprint."""
MAX_TEXT = 1_000
"""Characters of an id or of a field that is read."""
MAX_HREF = 10_000

_TIMES = ("datetime", "start_datetime", "end_datetime")
# What is read as one word or number: of which kind, its reader says; a list or an object it cannot be.
_SCALARS = (
    "platform", "constellation", "created", "updated", "grid:code", "proj:epsg", "proj:code",
    "mgrs:utm_zone", "mgrs:latitude_band", "mgrs:grid_square",
    "processing:version", "processing:datetime", "sar:product_type", "sat:relative_orbit", "sat:orbit_state",
    "sat:absolute_orbit", "s1:product_identifier", "s1:processing_datetime",
    "s2:datatake_id", "s2:product_uri", "s2:product_type", "s2:mgrs_tile", "s2:tile_id", "s2:granule_id",
    "s2:generation_time", "s2:sequence", "s2:processing_baseline",
    "sentinel2:product_title", "sentinel2:relative_orbit_number", "sentinel2:generation_time",
    "sentinel2:processing_baseline", "sentinel2:orbit_direction",
    "sentinel:product_id", "sentinel:mgrs", "sentinel:sequence", "sentinel:utm_zone", "sentinel:latitude_band",
    "sentinel:grid_square", "sentinel:boa_offset_applied",
    "earthsearch:boa_offset_applied", "earthsearch:s3_path",
)  # fmt: skip
_ASSET_SCALARS = ("proj:epsg", "proj:code", "type", "title")
_BANDS = ("raster:bands", "eo:bands", "bands")
# Coordinates of which geometry nest how deep around a position.
_DEPTHS = {"Point": 0, "MultiPoint": 1, "LineString": 1, "MultiLineString": 2, "Polygon": 2, "MultiPolygon": 3}


def name_of(item: Any, otherwise: str) -> str:
    """What an item is called in a message: its id if that is text, else `otherwise`."""
    name = item.get("id") if isinstance(item, Mapping) else None
    return name[:MAX_TEXT] if isinstance(name, str) and name.strip() else otherwise


def check_item(item: Any) -> None:
    """SourceError, with the reason, for what is no STAC item or holds what no item can.

    Judged are id, collection, geometry, bbox, the moments, and the properties that tell datatake, tile, processing and
    projection; of the assets only that there are some. Each asset is judged by `asset_fault` where it is wanted: a
    broken thumbnail costs nothing.
    """
    if not isinstance(item, Mapping):
        raise SourceError(f"is no STAC item but {_kind(item)}")
    if (fault := _text_fault(item.get("id"))) is not None:
        raise SourceError(f"its id {fault}")
    if item.get("collection") is not None and (fault := _text_fault(item["collection"])) is not None:
        raise SourceError(f"its collection {fault}")
    assets, properties = item.get("assets"), item.get("properties")
    if not isinstance(assets, Mapping) or not isinstance(properties, Mapping):
        raise SourceError("is no STAC item: it has no assets or no properties")
    if len(assets) > MAX_ASSETS:
        raise SourceError(f"has {len(assets)} assets, more than the {MAX_ASSETS} that are taken")
    for key in _TIMES:
        if properties.get(key) is not None and parse_moment(properties[key]) is None:
            raise SourceError(f"its {key} {_said(properties[key])} is no time")
    for key in _SCALARS:
        if (fault := _scalar_fault(properties.get(key))) is not None:
            raise SourceError(f"its {key} {fault}")
    _check_geometry(item.get("geometry"))
    _check_bbox(item.get("bbox"))
    footprint = footprint_of(item)
    if footprint is not None and footprint.is_empty:
        raise SourceError("its footprint is empty")


def asset_fault(asset: Any) -> str | None:
    """What is wrong with an asset as far as it is read, as the end of "its asset x ..."; None where nothing is.

    Its numbers are judged here, not passed over: pixels whose scale is unreadable must not be taken for unscaled ones.
    """
    if not isinstance(asset, Mapping):
        return f"is no asset but {_kind(asset)}"
    href = asset.get("href")
    if not isinstance(href, str) or not href.strip():
        return "has no href"
    if len(href) > MAX_HREF or _control(href):
        return "has an href that is too long or holds control characters"
    places: list[Mapping[str, Any]] = [asset]
    for key in _BANDS:
        bands = asset.get(key)
        if bands is None:
            continue
        if not isinstance(bands, list) or not all(isinstance(band, Mapping) for band in bands):
            return f"has {key} that are no list of objects"
        places += bands[:1]
    for place in places:
        for name in ("scale", "offset", "nodata", "data_type", "unit"):
            for spelling in (name, f"raster:{name}"):
                if (fault := _field_fault(name, place.get(spelling))) is not None:
                    return f"has a {spelling} that {fault}"
    for key in _ASSET_SCALARS:
        if (fault := _scalar_fault(asset.get(key))) is not None:
            return f"has a {key} that {fault}"
    return None


def _field_fault(name: str, value: Any) -> str | None:
    """What is wrong with one field of `raster:bands`; None for one that is not given."""
    if value is None:
        return None
    if name in ("data_type", "unit"):
        return None if isinstance(value, str) and len(value) <= MAX_TEXT else "is no text"
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return "is no number"
    if name == "nodata":
        return "is no number" if isinstance(value, bool) else None
    if not math.isfinite(number):
        return "is no number"
    return "is not above 0" if name == "scale" and number <= 0 else None


def _check_geometry(geometry: Any) -> None:
    """SourceError for a geometry that is no GeoJSON, or not on the globe. None, and one of no coordinates, will do."""
    if geometry is None:
        return
    kind = geometry.get("type") if isinstance(geometry, Mapping) else None
    if kind == "GeometryCollection":
        return  # its box stands in
    if not isinstance(kind, str) or kind not in _DEPTHS:
        raise SourceError("its geometry is no GeoJSON")
    nested = geometry.get("coordinates")
    if nested is None or (isinstance(nested, list | tuple) and not nested):
        return
    sizes = set[int]()
    if _check_positions(nested, _DEPTHS[kind], 3 if kind.endswith("Polygon") else 1, sizes) > MAX_VERTICES:
        raise SourceError(f"its footprint has more than the {MAX_VERTICES} vertices that are taken")
    if len(sizes) > 1:
        raise SourceError("its geometry is no GeoJSON: some of its positions have a height and some have none")


def _check_positions(nested: Any, depth: int, fewest: int, sizes: set[int]) -> int:
    """How many positions there are in coordinates of that depth, every one on the globe; `sizes` gets their lengths."""
    if depth == 0:
        _check_position(nested)
        sizes.add(len(nested))
        return 1
    if not isinstance(nested, list | tuple) or not nested:
        raise SourceError("its geometry is no GeoJSON")
    if depth == 1 and len(nested) < fewest:
        raise SourceError(f"its footprint has a ring of {len(nested)} positions")
    count = 0
    for part in nested:
        count += _check_positions(part, depth - 1, fewest, sizes)
        if count > MAX_VERTICES:
            break
    return count


def _check_position(position: Any) -> None:
    """A position is two numbers in degrees, and a height maybe; longitudes may run once more around the globe."""
    if not isinstance(position, list | tuple) or len(position) not in (2, 3) or not all(map(_is_finite, position)):
        raise SourceError(f"its footprint holds {_said(position)}, which is no position")
    if abs(position[0]) > 540 or abs(position[1]) > 90.001:
        raise SourceError(f"its footprint holds {_said(position)}, which is not on the globe")


def _check_bbox(bbox: Any) -> None:
    if bbox is None:
        return
    if not isinstance(bbox, list | tuple) or len(bbox) not in (4, 6):
        raise SourceError("its bbox is not four or six numbers")
    half = len(bbox) // 2
    for corner in (bbox[:half], bbox[half:]):
        _check_position(corner)


def _is_finite(value: Any) -> bool:
    """Whether it is a JSON number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -1e300 < value < 1e300


def _text_fault(value: Any) -> str | None:
    """What is wrong with an id; None where nothing is."""
    if not isinstance(value, str):
        return f"is no text but {_kind(value)}"
    if not value.strip():
        return "is empty"
    if len(value) > MAX_TEXT:
        return f"has {len(value)} characters, more than the {MAX_TEXT} that are taken"
    return "holds control characters" if _control(value) else None


def _scalar_fault(value: Any) -> str | None:
    """What is wrong with a field that is to be one word, number or yes and no; None where nothing is."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        return _text_fault(value) if value.strip() else None
    if isinstance(value, int | float):
        return None if _is_finite(value) else "is no finite number"
    return f"is {_kind(value)}"


def _control(text: str) -> bool:
    """Whether there are characters that end lines, move cursors, or are no text at all (lone surrogates)."""
    return not text.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def _kind(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else "a text" if isinstance(value, str) else "a number"


def _said(value: Any) -> str:
    """A value as it is repeated in a message: short, whatever it is."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_said(v) if not isinstance(v, list | tuple) else "[...]" for v in value[:3]) + "]"
    return ascii(value)[:60] if isinstance(value, str) else str(value)[:60]
