"""Writes the STAC Item that a store carries beside its arrays: where, when, and how its cube is laid out."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pystac
import shapely
from pyproj import Transformer

from eocube.store.layout import StorePlan

_EXTENSIONS = (
    "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "https://stac-extensions.github.io/datacube/v2.3.0/schema.json",
)
_ZARR = "application/vnd.zarr; version=3"


def cube_item(plan: StorePlan, name: str) -> bytes:
    """The Item as JSON. It depends on the plan and the name alone, so a resumed run writes the same one."""
    grid = plan.grid
    t, (ny, nx), cell = grid.transform, grid.shape, grid.lattice.cell
    row0, col0, row1, col1 = grid.extent
    left, right = t.c + col0 * cell, t.c + col1 * cell
    top, bottom = t.f - row0 * cell, t.f - row1 * cell
    geometry, bbox = lonlat_footprint(grid.lattice.epsg, (left, bottom, right, top))
    times = sorted(f"{step.time.rstrip('Z').split('.')[0]}Z" for step in plan.times)
    reference = f"EPSG:{grid.lattice.epsg}"
    space = plan.document().get("space", {})
    properties: dict[str, Any] = {
        "datetime": times[0] if len(times) == 1 else None,
        "start_datetime": times[0],
        "end_datetime": times[-1],
        "gsd": float(cell),
        "platform": ", ".join(sorted({step.platform for step in plan.times})),
        "proj:code": reference,
        "proj:shape": [ny, nx],
        "proj:transform": [t.a, t.b, t.c, t.d, t.e, t.f],
        "proj:bbox": [t.c, t.f - ny * cell, t.c + nx * cell, t.f],
        "cube:dimensions": {
            "time": {"type": "temporal", "values": times},
            "channel": {"type": "bands", "values": list(range(plan.product.channels))},
            "y": {"type": "spatial", "axis": "y", "extent": [t.f - (ny - 0.5) * cell, t.f - cell / 2], "step": -cell,
                  "reference_system": grid.lattice.epsg},
            "x": {"type": "spatial", "axis": "x", "extent": [t.c + cell / 2, t.c + (nx - 0.5) * cell], "step": cell,
                  "reference_system": grid.lattice.epsg},
        },
        "cube:variables": {
            plan.product.array: {
                "type": "data", "dimensions": ["time", "channel", "y", "x"], "data_type": plan.product.storage.dtype,
            },
            **{
                name: {"type": "auxiliary", "dimensions": ["time", "y", "x"], "unit": "%"}
                for name in ("valid", "cloud", "shadow")
            },
        },
        "eocube:space_id": plan.space_id,
        "eocube:sensor": space.get("sensor", {}).get("name"),
    }  # fmt: skip
    item = pystac.Item(name, geometry, bbox, None, properties, stac_extensions=list(_EXTENSIONS))
    if len(times) == 1:
        item.datetime = pystac.utils.str_to_datetime(times[0])
    item.add_asset("cube", pystac.Asset("./", title="latent cube", media_type=_ZARR, roles=["data"]))
    item.add_asset(
        "commits", pystac.Asset("./commits/", title="commit log", media_type="application/jsonl", roles=["metadata"])
    )
    return json.dumps(item.to_dict(include_self_link=False), indent=1, sort_keys=True).encode()


def lonlat_footprint(epsg: int, bounds: tuple[float, float, float, float]) -> tuple[dict[str, Any], list[float]]:
    """Footprint in degrees, split at the antimeridian, and its bbox, with west > east across it.

    Not by the package `antimeridian`: its rings have the same corners but start at another one, so that the bytes of
    every store's item would change.
    """
    outline = shapely.segmentize(shapely.box(*bounds), max(bounds[2] - bounds[0], bounds[3] - bounds[1]) / 8)
    x, y = shapely.get_coordinates(outline).T
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform(x, y)
    around = lon[0]
    lon = around + (lon - around + 180.0) % 360.0 - 180.0
    whole = shapely.make_valid(shapely.Polygon(list(zip(lon, lat, strict=True))))
    parts = []
    for shift in (-360.0, 0.0, 360.0):
        part = shapely.intersection(whole, shapely.box(-180.0 - shift, -90.0, 180.0 - shift, 90.0))
        if part.area > 0:
            parts.append(shapely.transform(part, lambda c, s=shift: np.add(c, (s, 0.0))))
    geometry = parts[0] if len(parts) == 1 else shapely.union_all(parts)
    west, south, east, north = (round(float(v), 7) for v in whole.bounds)
    wrap = [(v + 180.0) % 360.0 - 180.0 if abs(v) > 180.0 else v for v in (west, east)]
    return shapely.geometry.mapping(shapely.set_precision(geometry, 1e-7)), [wrap[0], south, wrap[1], north]
