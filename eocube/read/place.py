"""Tells whether an item meets a window, and whether its raster lies anywhere near where it says, all over the globe."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer

from eocube.ground.boxes import footprint_of
from eocube.ground.zones import BBox
from eocube.scenes.scene import Scene

TOLERANCE = 0.02
"""Degrees that a raster may lie beside its item and still count as there: items round, and hug their data."""
_TURNS = tuple(360.0 * k for k in range(-3, 3))
# An item's bbox is rounded and hugs its data; this many degrees around it still count as touched.
_BBOX_PAD = 1e-3
_NODES = 21
"""Places a side at which a raster's ground is asked for."""


def misplaced(scene: Scene, crs: str, transform: Affine, height: int, width: int) -> str | None:
    """What is wrong where a raster and its item's footprint share no ground: both places; None where they do.

    A raster that covers its footprint in part is no mistake: footprints are larger than data.
    """
    there = raster_box(crs, transform, height, width)
    said = said_boxes(scene)
    if there is None:
        return f"its ground ({_crs(crs)}) lies nowhere on the globe, its item says {_spelt(said[0])}"
    if any(_meet(there, box) for box in said):
        return None
    return (
        f"it lies at {_spelt(there)} ({_crs(crs)}), its item says {_spelt(said[0])} (west south east north): the CRS "
        "or the transform of the file is wrong, or the item is another file's"
    )


@lru_cache(maxsize=256)
def raster_box(crs: str, transform: Affine, height: int, width: int) -> BBox | None:
    """(west, south, east, north) of a raster in degrees, a little enlarged; east may pass 180. None: not on the globe.

    Asked at places all over it, not at its corners: those of a full disk lie in space, a pole may lie inside.
    """
    steps = np.linspace(0.0, 1.0, _NODES)
    cols, rows = np.meshgrid(steps * width, steps * height)
    a, b, c, d, e, f = transform[:6]
    with np.errstate(all="ignore"):
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
        lon, lat = (np.asarray(v) for v in _to_degrees(crs).transform(x, y))
    seen = np.isfinite(lon) & np.isfinite(lat)
    if not seen.any():
        return None
    west, east = _span(lon[seen])
    south, north = float(lat[seen].min()), float(lat[seen].max())
    pad = max(TOLERANCE, (north - south) / (_NODES - 1))
    wide = max(TOLERANCE, (east - west) / (_NODES - 1))
    south, north = south - pad, north + pad
    if north >= 90 or south <= -90:  # beside a pole every longitude is near
        return (-180.0, south, 180.0, north)
    return (west - wide, south, east + wide, north)


def _span(longitudes: NDArray[np.float64]) -> tuple[float, float]:
    """The shortest arc that holds all longitudes, as (west, east), east perhaps over 180."""
    around = np.unique(np.mod(longitudes, 360.0))
    gaps = np.diff(np.append(around, around[0] + 360.0))
    last = int(np.argmax(gaps))
    west = float(around[(last + 1) % len(around)])
    east = float(around[last])
    return west, east if east >= west else east + 360.0


@lru_cache(maxsize=64)
def _to_degrees(crs: str) -> Transformer:
    return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


@lru_cache(maxsize=256)
def said_boxes(scene: Scene) -> tuple[BBox, ...]:
    """Boxes around the parts of an item's footprint, in degrees; east may pass 180."""
    geometry = json.loads(scene.footprint) if scene.footprint else None
    outline = footprint_of({"geometry": geometry, "bbox": scene.bbox})
    assert outline is not None
    return tuple(shapely.bounds(part).tolist() for part in shapely.get_parts(outline))


def _meet(one: BBox, other: BBox) -> bool:
    if one[1] > other[3] or one[3] < other[1]:
        return False
    return any(one[0] + turn <= other[2] and one[2] + turn >= other[0] for turn in _TURNS)


def _crs(crs: str) -> str:
    return crs if len(crs) < 40 else crs.partition(",")[0][:60]


def _spelt(box: BBox) -> str:
    west, south, east, north = box
    west, east = ((v + 180.0) % 360.0 - 180.0 if abs(v) > 180 else v for v in (west, east))
    return " ".join(f"{v:.3f}" for v in (west, south, east, north))


def touches(scene: BBox, here: BBox) -> bool:
    """Whether an item's box meets another, in degrees; one over the antimeridian has its east west of its west."""
    west, south, east, north = scene
    if south - _BBOX_PAD > here[3] or north + _BBOX_PAD < here[1]:
        return False
    east = east + 360.0 if east < west else east
    return any(
        west + turn - _BBOX_PAD <= here[2] and east + turn + _BBOX_PAD >= here[0] for turn in (-360.0, 0.0, 360.0)
    )
