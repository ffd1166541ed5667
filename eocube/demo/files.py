"""Writes the demo scenes: byte-reproducible cloud-optimised GeoTIFFs and a static STAC catalogue around them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.io import MemoryFile
from rasterio.shutil import copy as gdal_copy
from rasterio.transform import from_origin
from rasterio.warp import transform_geom

COG_TYPE = "image/tiff; application=geotiff; profile=cloud-optimized"
EXTENSIONS = [
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v1.1.0", "eo/v1.1.0", "raster/v1.1.0", "view/v1.0.0")
]
BLOCK = 256

Json = dict[str, Any]


def write_bytes(path: Path, data: bytes) -> None:
    """Write through a neighbour and a rename, so that no reader ever sees half a file."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def write_json(path: Path, document: Json) -> None:
    """Write one STAC document, indented, with a closing newline."""
    write_bytes(path, (json.dumps(document, indent=1) + "\n").encode())


def write_cog(
    path: Path, image: NDArray[Any], epsg: int, left: float, top: float, pixel: float, nodata: float, resampling: str,
    block: int = BLOCK,
) -> None:  # fmt: skip
    """Write (C, H, W) as a COG with overviews. The bytes depend on the arguments and GDAL's version alone.

    left, top: metres of the north-western corner. resampling: of the overviews ("average", "nearest"). block:
    side of the blocks, pixels.
    """
    count, height, width = image.shape
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", dtype=image.dtype.name, count=count, height=height, width=width, nodata=nodata,
            crs=f"EPSG:{epsg}", transform=from_origin(left, top, pixel, pixel),
        ) as plain:  # fmt: skip
            plain.write(image)
        part = path.with_name(path.name + ".part.tif")
        with memory.open() as plain:
            gdal_copy(
                plain, part, driver="COG", COMPRESS="DEFLATE", LEVEL="6", PREDICTOR="YES", BLOCKSIZE=str(block),
                OVERVIEWS="IGNORE_EXISTING", OVERVIEW_RESAMPLING=resampling.upper(), NUM_THREADS="1",
            )  # fmt: skip
    os.replace(part, path)


def item(
    name: str, collection: str, epsg: int, outline: Sequence[tuple[float, float]], properties: Json,
    assets: Mapping[str, Json],
) -> Json:  # fmt: skip
    """A STAC Item. outline: the corners of what the scene shows, metres in its own projection, not closed."""
    ring = [list(point) for point in (*outline, outline[0])]
    shape = transform_geom(f"EPSG:{epsg}", "EPSG:4326", {"type": "Polygon", "coordinates": [ring]}, precision=7)
    corners = np.array(shape["coordinates"][0])
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": EXTENSIONS,
        "id": name,
        "collection": collection,
        "bbox": [float(v) for v in (*corners.min(axis=0), *corners.max(axis=0))],
        "geometry": {"type": "Polygon", "coordinates": [corners.tolist()]},
        "properties": {**properties, "proj:epsg": epsg, "eocube:synthetic": True},
        "assets": dict(assets),
        "links": [
            {"rel": "collection", "href": "../collection.json", "type": "application/json"},
            {"rel": "parent", "href": "../collection.json", "type": "application/json"},
            {"rel": "root", "href": "../../catalog.json", "type": "application/json"},
        ],
    }


def collection(name: str, description: str, items: Sequence[Json]) -> Json:
    """A STAC Collection over items that lie in folders of their own beside it."""
    boxes = np.array([i["bbox"] for i in items])
    times = sorted(i["properties"]["datetime"] for i in items)
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": description,
        "license": "CC0-1.0",
        "extent": {
            "spatial": {"bbox": [[*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist()]]},
            "temporal": {"interval": [[times[0], times[-1]]]},
        },
        "links": [
            {"rel": "root", "href": "../catalog.json", "type": "application/json"},
            {"rel": "parent", "href": "../catalog.json", "type": "application/json"},
            *(
                {"rel": "item", "href": f"./{i['id']}/{i['id']}.json", "type": "application/geo+json"}
                for i in items
            ),
        ],
    }  # fmt: skip


def catalog(name: str, description: str, collections: Sequence[str], extra: Json) -> Json:
    """The root Catalog."""
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": name,
        "description": description,
        **extra,
        "links": [
            {"rel": "root", "href": "./catalog.json", "type": "application/json"},
            *({"rel": "child", "href": f"./{c}/collection.json", "type": "application/json"} for c in collections),
        ],
    }


def read_json(path: Path) -> Json | None:
    """The document, or None where there is none that can be read."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) else None


def gdal_version() -> str:
    """The GDAL that writes the files: another one may lay out other bytes."""
    return str(rasterio.__gdal_version__)
