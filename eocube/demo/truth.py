"""Tells what the demo landscape is drawn of: covers by cell, fields with their crops, fine reflectance, to test on.

No cloud, season or optics are in it: it is what lies on the ground. It is drawn ground, and easier than real ground.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from scipy import ndimage

from eocube.demo.catalogue import DEMO_BOUNDS, DEMO_EPSG, DEMO_SEED, PASSES, Bounds
from eocube.demo.ground import FINE, NO_CROP, Ground, make_ground
from eocube.demo.noise import Mask
from eocube.demo.scene import atmosphere, dress, radiance
from eocube.demo.spectra import BANDS, CROPS, Cover

CROP_NAMES = (
    "winter wheat", "winter barley", "oilseed rape", "maize", "sugar beet", "meadow", "spring cereal", "fallow"
)  # fmt: skip
"""In the order of `CROPS`."""
COVER_NAMES = (*CROP_NAMES, "broadleaf", "conifer", "built", "water", "other")
"""What `demo_cover` counts: crops, woods, the town, water, and all the rest (roads, banks, hedges, field margins)."""
_BROADLEAF, _CONIFER, _BUILT, _WATER, OTHER = range(len(CROPS), len(COVER_NAMES))


@dataclass(frozen=True, slots=True)
class Field:
    """A point well inside a field: metres of the demo's projection, what grows there, hectares of the field."""

    x: float
    y: float
    crop: str
    hectares: float


@lru_cache(maxsize=1)
def _drawn(seed: int, bounds: Bounds) -> Ground:
    """Drawing takes seconds, and who asks once often asks again."""
    left, bottom, right, top = bounds
    return make_ground(seed, (int((top - bottom) / FINE), int((right - left) / FINE)))


def demo_cover(gsd: int = 10, *, seed: int = DEMO_SEED, bounds: Bounds = DEMO_BOUNDS) -> NDArray[np.float32]:
    """Share of each cover in every cell of `gsd` metres: (len(COVER_NAMES), H, W), row 0 in the north.

    The cells begin at the north-western corner of `bounds` (left, bottom, right, top, metres of EPSG:32632).

    Raises:
        ValueError: cells that are no multiple of 5 m, or that do not fill the bounds.
    """
    left, bottom, right, top = bounds
    if gsd % int(FINE) or (right - left) % gsd or (top - bottom) % gsd or gsd <= 0:
        raise ValueError(
            f"cells of {gsd} m: give a multiple of {FINE:g} m that fills {right - left} x {top - bottom} m"
        )
    ground = _drawn(seed, bounds)
    codes = np.full(ground.crop.shape, OTHER, dtype=np.uint8)
    in_field = ground.crop != NO_CROP
    codes[in_field & ~ground.margin] = ground.crop[in_field & ~ground.margin]
    codes[ground.forest & (ground.cover == Cover.BROADLEAF)] = _BROADLEAF
    codes[ground.forest & (ground.cover == Cover.CONIFER)] = _CONIFER
    codes[ground.built] = _BUILT
    codes[ground.water] = _WATER
    n = gsd // int(FINE)
    blocks = codes.reshape((top - bottom) // gsd, n, (right - left) // gsd, n)
    return np.stack([(blocks == k).mean(axis=(1, 3), dtype=np.float32) for k in range(len(COVER_NAMES))])


def demo_fine(
    day: str, bands: Sequence[str], *, seed: int = DEMO_SEED, bounds: Bounds = DEMO_BOUNDS
) -> NDArray[np.float32]:
    """Reflectance as drawn, (len(bands), H, W) at 5 m, before optics, noise and 10 m pixels: finer than any scene.

    Clouds, haze and shadows of that date are in it. `day` is that of one of the demo's Sentinel-2 scenes.

    Raises:
        ValueError: no scene of that day, or no such band.
    """
    known = {flight.day: flight for flight in PASSES}
    if day not in known:
        raise ValueError(f"no demo scene of {day}: there are {', '.join(known)}")
    if unknown := [band for band in bands if band not in BANDS]:
        raise ValueError(f"no band {unknown[0]}: there are {', '.join(BANDS)}")
    flight = known[day]
    ground = _drawn(seed, bounds)
    draw = seed * 8 + flight.draw
    surface, air = dress(ground, flight.season, draw), atmosphere(ground, flight.sky, draw)
    return np.stack([radiance(surface, air, BANDS.index(band)) for band in bands])


def demo_fields(least: float = 1.5, *, seed: int = DEMO_SEED, bounds: Bounds = DEMO_BOUNDS) -> list[Field]:
    """A point in every field of `least` hectares or more whose heart is 30 m or more from its border.

    In the order of the fields from north to south. Two fields of one crop that touch are two fields.
    """
    ground = _drawn(seed, bounds)
    labels = _labelled(ground)
    # Distance to the nearest cell of another field: a field's border is where its label ends, not where fields end.
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[1:] |= labels[:-1] != labels[1:]
    edge[:, 1:] |= labels[:, :-1] != labels[:, 1:]
    edge[[0, -1]] = edge[:, [0, -1]] = True  # the drawing ends there, and nobody knows what comes next
    inside = ndimage.distance_transform_edt(~edge & (labels > 0)) * FINE
    numbers = np.arange(1, int(labels.max()) + 1)
    sizes = np.bincount(labels.ravel(), minlength=len(numbers) + 1)[1:] * FINE * FINE / 1e4
    found = []
    for number, (row, col) in zip(numbers, ndimage.maximum_position(inside, labels, numbers), strict=True):
        if sizes[number - 1] >= least and inside[row, col] >= 30:
            x, y = bounds[0] + (col + 0.5) * FINE, bounds[3] - (row + 0.5) * FINE
            crop = CROP_NAMES[ground.crop[row, col]]
            found.append(Field(float(x), float(y), crop, round(float(sizes[number - 1]), 2)))
    return sorted(found, key=lambda field: (-field.y, field.x))


def write_fields(path: Path | str, fields: Sequence[Field] | None = None) -> Path:
    """Write fields (by default `demo_fields()`) as a GeoJSON of points in degrees with `crop` and `hectares`."""
    to_degrees = Transformer.from_crs(DEMO_EPSG, 4326, always_xy=True)
    features = []
    for field in demo_fields() if fields is None else fields:
        lon, lat = to_degrees.transform(field.x, field.y)
        features.append({
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [round(lon, 7), round(lat, 7)]},
            "properties": {"crop": field.crop, "hectares": field.hectares},
        })  # fmt: skip
    Path(path).write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n", encoding="utf-8")
    return Path(path)


def _labelled(ground: Ground) -> NDArray[np.int32]:
    """Fields numbered from 1, (H, W); 0 where none is. A field's vigour is its own, so that touching fields differ in
    it; where a flood plain turns a part of one to meadow, that part is a field of its own."""
    whole: Mask = (ground.crop != NO_CROP) & ~ground.margin
    _, vigours = np.unique(ground.vigour, return_inverse=True)
    drawn = vigours.reshape(whole.shape) * len(CROPS) + np.where(whole, ground.crop, 0)
    _, dense = np.unique(np.where(whole, drawn, -1), return_inverse=True)  # 0 is no field, if there is such ground
    ids = dense.reshape(whole.shape).astype(np.int32) + int(whole.all())
    labels = np.zeros(whole.shape, dtype=np.int32)
    count = 0
    for k, where in enumerate(ndimage.find_objects(ids), start=1):
        if where is not None:
            parts, number = ndimage.label(ids[where] == k)
            labels[where][parts > 0] = parts[parts > 0] + count
            count += number
    return labels
