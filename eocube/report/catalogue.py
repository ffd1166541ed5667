"""Catalogues cubes: a STAC collection with one Item a time step, and opens what it finds there by place and time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eocube.cube.opening import open as open_cube
from eocube.errors import InputError
from eocube.ground.boxes import parse_bbox, parse_interval, parse_moment
from eocube.ground.zones import zone_name
from eocube.store.existing import zones_of
from eocube.store.receipts import STATES, State
from eocube.store.stac_item import lonlat_footprint

if TYPE_CHECKING:
    import pystac
    import xarray as xr

EXTENSIONS = tuple(
    f"https://stac-extensions.github.io/{name}/schema.json"
    for name in ("projection/v2.0.0", "datacube/v2.3.0", "raster/v2.0.0", "processing/v1.2.0")
)
ZARR = "application/vnd.zarr; version=3"
ID = "cubes"
PARQUET = "items.parquet"


@dataclass(frozen=True, slots=True)
class Written:
    """What a catalogue came to."""

    path: str
    cubes: int
    items: int


def write_catalogue(
    urls: Sequence[str],
    out: str,
    *,
    name: str = ID,
    geoparquet: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Written:
    """Write a STAC collection of cubes into the folder `out`: one Item a time step and zone that has any window.

    Hrefs are relative for cubes of this machine, so that a folder with both may move. With `geoparquet` the Items also
    stand in `items.parquet`, a row each, as stac-geoparquet has them; its hrefs are absolute.

    Raises:
        InputError: stac-geoparquet is asked for and not installed; no cube, a folder that is not of this machine, two
            cubes whose Items would have one id.
    """
    import pystac

    if not urls:
        raise InputError("no cube: name one or more to catalogue")
    if "://" in out:
        raise InputError(f"--out {out}: give a folder of this machine; copy it where it is to be served")
    options = None if storage_options is None else dict(storage_options)
    items = [item for url in urls for item in _items(url, options)]
    if not items:
        raise InputError("none of these cubes has an ok window yet: there is nothing to catalogue")
    ids = [item.id for item in items]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise InputError(f"two cubes have the Item {twice[0]}: give their folders different names")
    boxes = np.array([item.bbox for item in items])
    moments = sorted(item.datetime for item in items if item.datetime is not None)
    west, east = (-180.0, 180.0) if (boxes[:, 0] > boxes[:, 2]).any() else (boxes[:, 0].min(), boxes[:, 2].max())
    box = [float(west), float(boxes[:, 1].min()), float(east), float(boxes[:, 3].max())]
    spaces = sorted({item.properties["eocube:space_id"] for item in items})
    made = pystac.Collection(
        name, "Latent cubes of eocube, an Item a time step",
        pystac.Extent(pystac.SpatialExtent([box]), pystac.TemporalExtent([[moments[0], moments[-1]]])),
        title="Latent cubes", license="other", keywords=["latents", "embeddings", "Zarr"],
        summaries=pystac.Summaries({
            "eocube:space_id": spaces,
            "eocube:sensor": sorted({item.properties["eocube:sensor"] for item in items}),
            "platform": sorted({item.properties["platform"] for item in items}),
            "gsd": sorted({item.properties["gsd"] for item in items}),
            "eocube:weights": sorted({item.properties["eocube:weights"] for item in items}),
            "eocube:product": sorted({item.properties["eocube:product"] for item in items}),
        }),
    )  # fmt: skip
    folder = Path(out).absolute()
    if geoparquet:
        folder.mkdir(parents=True, exist_ok=True)
        link = {"rel": "collection", "type": "application/json", "href": str(folder / "collection.json")}
        rows = [item.to_dict() for item in items]
        named = [{**row, "collection": name, "links": [*row["links"], link]} for row in rows]
        _write_parquet(named, folder / PARQUET)
    made.add_items(items)
    made.normalize_hrefs(str(folder))
    made.make_all_asset_hrefs_relative()
    made.save(catalog_type=pystac.CatalogType.SELF_CONTAINED)
    return Written(str(folder / "collection.json"), len(urls), len(items))


def _write_parquet(items: Sequence[dict[str, Any]], path: Path) -> None:
    """A row an Item. InputError where stac-geoparquet is not installed."""
    try:
        from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet
    except ImportError as error:
        raise InputError(f'--geoparquet needs stac-geoparquet ({error}): pip install "eocube[stac]"') from error
    to_parquet(parse_stac_items_to_arrow(items), str(path))


def open_collection(
    path: str,
    bbox: Sequence[float] | None = None,
    datetime: str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> list[xr.Dataset]:
    """The cubes of a collection that `write_catalogue` made, each with the time steps that fit, in order of place.

    Args:
        path: its collection.json, or the folder of it.
        bbox: west, south, east, north in degrees; a time step fits where its windows touch it.
        datetime: a date or A/B, UTC.
        storage_options: for fsspec, of the cubes.

    Raises:
        InputError: no collection there, or none of its Items fits.
    """
    import pystac
    import shapely

    where = path if path.endswith(".json") else f"{path.rstrip('/')}/collection.json"
    try:
        collection = pystac.Collection.from_file(where)
    except (OSError, ValueError, KeyError, pystac.STACError) as error:
        raise InputError(f"{where}: no STAC collection can be read there ({type(error).__name__})") from None
    area = None if bbox is None else shapely.union_all([shapely.box(*b) for b in parse_bbox(*map(float, bbox))])
    interval = None if datetime is None else parse_interval(datetime)
    found: dict[str, list[np.datetime64]] = {}
    for item in collection.get_items():
        moment, asset = parse_moment(item.properties.get("datetime")), item.assets.get("cube")
        if moment is None or asset is None:
            continue
        if interval is not None and not interval[0] <= moment <= interval[1]:
            continue
        if area is not None and not shapely.geometry.shape(item.geometry).intersects(area):
            continue
        href = asset.get_absolute_href() or asset.href
        found.setdefault(href, []).append(np.datetime64(moment.replace(tzinfo=None), "s"))
    if not found:
        raise InputError(f"{where}: none of its Items fits what was asked for")
    opened = []
    for href, moments in sorted(found.items()):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not in order of time.*")
            ds = open_cube(href, storage_options)
        times = ds["time"].values.astype("datetime64[s]")
        opened.append(ds.isel(time=np.flatnonzero(np.isin(times, np.array(moments)))).sortby("time"))
    return opened


def _items(url: str, options: dict[str, Any] | None) -> list[pystac.Item]:
    stem = Path(url.partition("?")[0].rstrip("/")).name.removesuffix(".zarr")
    found = []
    zones = zones_of(url, options)
    for zone in zones or (None,):
        place = url if zone is None else f"{url.rstrip('/')}/{zone}"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not in order of time.*")
            ds = open_cube(place, options)
        status = ds["status"].values
        for step in range(ds.sizes["time"]):
            if (status[step] == State.OK).any():
                name = stem if zone is None else f"{stem}_{zone}"
                found.append(_item(ds, place, name, step, status[step]))
    return found


def _item(ds: xr.Dataset, url: str, name: str, step: int, status: np.ndarray) -> pystac.Item:
    import pystac

    import eocube

    info, stored = ds.eocube.info, ds.attrs["eocube"]["grid"]
    epsg, transform = int(str(stored["crs"]).rpartition(":")[2]), [float(v) for v in stored["transform"]]
    cell, core = info.cell, info.cell * info.core
    rows, cols = np.nonzero(status == State.OK)
    wx, wy = ds["wx"].values, ds["wy"].values
    bounds = (
        wx[cols.min()] - core / 2,
        wy[rows.max()] - core / 2,
        wx[cols.max()] + core / 2,
        wy[rows.min()] + core / 2,
    )
    geometry, bbox = lonlat_footprint(epsg, tuple(map(float, bounds)))  # type: ignore[arg-type]
    moment = ds["time"].values[step].astype("datetime64[us]").astype(datetime).replace(tzinfo=UTC)
    made = info.product
    cloud = ds["cloud_percent"].values[step][status == State.OK].astype(float) if "cloud_percent" in ds else np.zeros(0)
    cloud = cloud[cloud <= 100]
    counts = {label: int((status == code).sum()) for code, label in enumerate(STATES) if (status == code).any()}
    x, y = ds["x"].values, ds["y"].values
    properties: dict[str, Any] = {
        "platform": str(ds["platform"].values[step]) if "platform" in ds.coords else "",
        "gsd": float(info.resolution),
        "proj:code": f"EPSG:{epsg}",
        "proj:shape": [ds.sizes["y"], ds.sizes["x"]],
        "proj:transform": transform,
        "proj:bbox": [float(v) for v in bounds],
        "cube:dimensions": {
            "time": {"type": "temporal", "values": [moment.isoformat().replace("+00:00", "Z")]},
            "channel": {"type": "bands", "values": list(made.channel_names) or list(range(made.channels))},
            "y": {"type": "spatial", "axis": "y", "extent": [float(y[-1]), float(y[0])], "step": -cell,
                  "reference_system": epsg},
            "x": {"type": "spatial", "axis": "x", "extent": [float(x[0]), float(x[-1])], "step": cell,
                  "reference_system": epsg},
        },
        "cube:variables": {
            made.array: {"variable_type": "data", "dimensions": ["time", "channel", "y", "x"],
                         "data_type": made.storage.dtype},
        },
        "processing:software": {"eocube": eocube.__version__},
        "processing:lineage": f"{made.long_name} of {made.sensor.name} by {made.network} ({made.kind})",
        "eocube:space_id": info.space_id,
        "eocube:sensor": made.sensor.name,
        "eocube:weights": made.network,
        "eocube:product": made.kind,
        "eocube:windows": counts,
        "eocube:zone": zone_name(epsg),
    }  # fmt: skip
    if "scene_ids" in ds.coords:
        properties["eocube:scene_ids"] = str(ds["scene_ids"].values[step]).splitlines()
    if len(cloud):
        properties["eo:cloud_cover"] = round(float(cloud.mean()), 2)
    stamp = moment.strftime("%Y%m%dT%H%M%SZ")
    item = pystac.Item(f"{name}_{stamp}", geometry, bbox, moment, properties, stac_extensions=list(EXTENSIONS))
    about = {"raster:spatial_resolution": float(cell), "data_type": made.storage.dtype, "eocube:time_index": step}
    href = url if "://" in url else str(Path(url).absolute())
    item.add_asset("cube", pystac.Asset(href, f"{made.array} cube", None, ZARR, ["data"], about))
    return item
