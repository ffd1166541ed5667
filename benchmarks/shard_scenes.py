"""Local scenes over a shard, the demo's ground mirrored until it fills it: each date by files of its own names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
from rasterio.shutil import copy as gdal_copy
from rasterio.warp import transform_bounds

from benchmarks.scenes import COLLECTION, EVERY, redated
from eocube.demo.catalogue import DEMO_BOUNDS, DEMO_EPSG, make_demo
from eocube.demo.files import BLOCK, catalog, collection, item, read_json, write_cog, write_json
from eocube.ground.grid import Lattice
from eocube.ground.zones import BBox

_BEYOND = 1200
"""Metres of ground around what is asked for: more than any halo, and a multiple of every sampling."""
_INSIDE = 100.0
"""Metres that the box keeps from the outermost windows' edges, which lines of longitude do not follow."""


def shard_scenes(
    folder: Path, dates: int, side: int, block: int = BLOCK, *, jpeg2000: bool = False
) -> tuple[Path, str, BBox]:
    """One Sentinel-2 scene a date over `side` x `side` windows of one shard, from its north-western corner on.

    jpeg2000: files as the mission's own products have them, lossless, where archives give nothing else.
    The dates' files are links to the first's: written once, and yet opened and unpacked date by date.

    Returns:
        The catalogue's path, the interval that holds the dates, and the box whose windows are those.
    """
    lattice = Lattice(DEMO_EPSG, 10)
    shard = lattice.shard * lattice.cell
    left, top = DEMO_BOUNDS[0] // shard * shard, -(-DEMO_BOUNDS[3] // shard) * shard
    ground = side * lattice.core * lattice.cell
    original = min((make_demo(folder / "demo").parent / COLLECTION).glob("*/*.json"))
    described = read_json(original)
    assert described is not None
    first = date.fromisoformat(described["properties"]["datetime"][:10])
    days = [first + timedelta(days=EVERY * turn) for turn in range(dates)]
    written = folder / "written"
    written.mkdir(parents=True)
    assets = {
        key: _widened(original.parent / asset["href"], written, asset, left - _BEYOND, top + _BEYOND,
                      ground + 2 * _BEYOND, block, jpeg2000)
        for key, asset in described["assets"].items() if key != "visual"
    }  # fmt: skip
    items = []
    for day in days:
        dated = redated(described, first, day)
        where = folder / COLLECTION / dated["id"]
        where.mkdir(parents=True)
        for file in written.iterdir():
            os.link(file, where / file.name)
        west, north, east, south = left - _BEYOND, top + _BEYOND, left + ground + _BEYOND, top - ground - _BEYOND
        outline = ((west, north), (east, north), (east, south), (west, south))
        properties = {k: v for k, v in dated["properties"].items() if not k.startswith("proj:")}
        items.append(item(dated["id"], COLLECTION, DEMO_EPSG, outline, properties, assets))
        write_json(where / f"{dated['id']}.json", items[-1])
    write_json(folder / COLLECTION / "collection.json", collection(COLLECTION, "Made-up scenes over a shard", items))
    write_json(folder / "catalog.json", catalog("shard", "Made-up scenes over a shard", [COLLECTION], {}))
    box = (left + _INSIDE, top - ground + _INSIDE, left + ground - _INSIDE, top - _INSIDE)
    return folder / "catalog.json", f"{days[0]}/{days[-1]}", transform_bounds(DEMO_EPSG, 4326, *box)


def _widened(
    source: Path,
    folder: Path,
    asset: Mapping[str, Any],
    left: float,
    top: float,
    ground: float,
    block: int,
    jpeg2000: bool,
) -> dict[str, Any]:
    """Write an asset's pixels, mirrored until they cover `ground` metres a side; the asset that leads there."""
    with rasterio.open(source) as raster:
        image: npt.NDArray[Any] = raster.read()
        pixel, nodata = raster.res[0], raster.nodata
    for band in image:  # the demo's swath has an edge, which would come again and again
        band[band == nodata] = np.median(band[band != nodata])
    size = round(ground / pixel)
    spare = [(0, max(0, size - have)) for have in image.shape[1:]]
    wide = np.pad(image, [(0, 0), *spare], mode="symmetric")[:, :size, :size]
    classes = image.dtype == np.uint8
    resampling = "nearest" if classes else "average"
    write_cog(folder / source.name, wide, DEMO_EPSG, left, top, pixel, nodata, resampling, block)
    described = {k: v for k, v in asset.items() if not k.startswith("proj:")}
    if not jpeg2000:
        return described | {"href": f"./{source.name}"}
    name = f"{source.stem}.jp2"
    gdal_copy(
        folder / source.name, folder / name, driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES",
        BLOCKXSIZE=str(block), BLOCKYSIZE=str(block),
    )  # fmt: skip
    (folder / f"{name}.aux.xml").unlink(missing_ok=True)  # archives have none
    (folder / source.name).unlink()
    return described | {"href": f"./{name}", "type": "image/jp2"}
