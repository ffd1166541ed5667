"""Opens the cubes that are served, every zone of each, and says what the page needs to know of them."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from pyproj import CRS, Transformer

from eocube.cube.labels import CF_UNITS
from eocube.cube.opening import open as open_cube
from eocube.errors import InputError, StoreError
from eocube.ground.zones import zone_name
from eocube.net.objects import Objects
from eocube.net.redaction import redacted
from eocube.net.storage_options import options_for
from eocube.serve.layers import Layers
from eocube.store.commit_log import SEAL
from eocube.store.document import CubeInfo
from eocube.store.existing import zones_of
from eocube.store.layout import ROOT
from eocube.store.overview import ARRAY, FOLDER, made_key
from eocube.store.receipts import State
from eocube.store.remote_store import readable

Bounds = tuple[float, float, float, float]
"""left, bottom, right, top."""

EQUATOR = 2 * math.pi * 6378137.0
"""Metres around the equator of web mercator."""
TILE = 256
"""Pixels along a tile."""
CLOSER = 3
"""Zooms beyond the one at which a tile's pixel is as small as the cube's."""
UNKNOWN = 255
READERS = 8
"""Small objects that are read at once."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a cube's arrays lie: metres of its zone, cells from the upper left corner."""

    epsg: int
    left: float
    top: float
    cell: int
    pixel: float
    stride: int
    core: int
    shard: int
    shape: tuple[int, int]
    """Cells down and across."""
    extent: tuple[int, int, int, int]
    """The cores asked for, (row0, col0, row1, col1) in cells, half-open."""

    @property
    def core_m(self) -> int:
        """Metres along a core."""
        return self.core * self.cell

    @property
    def cores(self) -> tuple[int, int]:
        """Cores down and across."""
        return self.shape[0] // self.core, self.shape[1] // self.core

    @property
    def bounds(self) -> Bounds:
        """Metres, around the cores that were asked for."""
        row0, col0, row1, col1 = self.extent
        return (
            self.left + col0 * self.cell, self.top - row1 * self.cell,
            self.left + col1 * self.cell, self.top - row0 * self.cell,
        )  # fmt: skip

    def blocks_in(self, bounds: Bounds, cells: int) -> tuple[range, range]:
        """Rows and columns of the blocks of `cells` x `cells` that share ground with bounds, within what was asked."""
        own = self.bounds
        left, bottom = max(bounds[0], own[0]), max(bounds[1], own[1])
        right, top = min(bounds[2], own[2]), min(bounds[3], own[3])
        if left >= right or bottom >= top:
            return range(0), range(0)
        side = cells * self.cell
        return (
            range(math.floor((self.top - top) / side), math.ceil((self.top - bottom) / side)),
            range(math.floor((left - self.left) / side), math.ceil((right - self.left) / side)),
        )


@dataclass(frozen=True, eq=False)
class ServedCube:
    """One cube of one zone, open for reading from many threads."""

    id: str
    name: str
    url: str
    """Of the zone's own store."""
    ds: xr.Dataset
    group: zarr.Group
    info: CubeInfo
    frame: Frame
    layers: Layers
    options: Mapping[str, Any] | None = field(repr=False)
    opened: tuple[str, str | None]
    """The URL that was given, and the zone of it."""
    version: str
    """Of what the store had when it was opened (`version_of`)."""
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _figures: dict[str, npt.NDArray[Any]] = field(default_factory=dict, repr=False)

    @property
    def key(self) -> str:
        """What is kept of the cube is kept under this name: another one once it is opened anew."""
        return f"{self.id}@{self.version}"

    @cached_property
    def times(self) -> npt.NDArray[np.datetime64]:
        """(time,) as the store counts them."""
        return np.asarray(self.ds["time"].values)

    @cached_property
    def status(self) -> npt.NDArray[np.uint8]:
        """(time, wy, wx) how every window ended."""
        return np.asarray(self.ds["status"].values)

    def windows(self, variable: str, time: int) -> npt.NDArray[np.float32]:
        """(wy, wx) a figure of every window, NaN where there is none."""
        with self.lock:
            if variable not in self._figures:
                self._figures[variable] = np.asarray(self.ds[variable].values)
            found = self._figures[variable][time]
        if found.dtype.kind == "f":
            return np.asarray(found, np.float32)
        return np.asarray(np.where(found == UNKNOWN, np.nan, found), np.float32)

    def step(self, index: int) -> int:
        """A time step's number; InputError where the cube has none of it."""
        if not 0 <= index < len(self.times):
            raise InputError(f"no time step {index}: the cube has 0 to {len(self.times) - 1}")
        return index

    @cached_property
    def lonlat(self) -> Bounds:
        """west, south, east, north in degrees around what was asked for."""
        to = Transformer.from_crs(self.frame.epsg, 4326, always_xy=True)
        west, south, east, north = to.transform_bounds(*self.frame.bounds, densify_pts=21)
        return float(west), float(south), float(east), float(north)

    @cached_property
    def native_zoom(self) -> int:
        """The least zoom at which a tile's pixel is no larger than the cube's."""
        shrunk = math.cos(math.radians((self.lonlat[1] + self.lonlat[3]) / 2))
        return max(0, math.ceil(math.log2(EQUATOR * shrunk / TILE / self.frame.pixel)))

    def document(self, *, overview: bool, source: bool) -> dict[str, Any]:
        """Its part of `/api/cubes`."""
        sensor = self.info.sensor
        unit = CF_UNITS.get(sensor.unit, sensor.unit)
        optical = sensor.unit != "dB"
        return {
            "id": self.id, "name": self.name, "version": self.version, "bounds": list(self.lonlat),
            "zone": zone_name(self.frame.epsg),
            "epsg": self.frame.epsg, "resolution": self.frame.pixel, "times": self._times(),
            "bands": [
                {"name": b.name, "wavelength_um": b.wavelength if optical else None, "unit": unit}
                for b in sensor.bands
            ],
            "sensor": sensor.name, "min_zoom": 0, "max_zoom": self.native_zoom + CLOSER,
            "has_overview": overview, "has_source": source, "decodes": self.info.product.decodes,
            "layers": [layer.document() for layer in self.layers.known.values()],
        }  # fmt: skip

    def _times(self) -> list[dict[str, Any]]:
        asked = int((self.status[0] != State.OUTSIDE).sum()) if len(self.status) else 0
        found = []
        for step in np.argsort(self.times, kind="stable"):
            ok = self.status[step] == State.OK
            cloud = self.windows("cloud_percent", int(step))[ok] if "cloud_percent" in self.ds else np.empty(0)
            known = cloud[np.isfinite(cloud)]
            platform = str(self.ds["platform"].values[step]) if "platform" in self.ds.variables else ""
            found.append({
                "index": int(step), "time": f"{np.datetime_as_string(self.times[step], unit='s')}Z",
                "platform": platform, "ok": int(ok.sum()), "windows": asked,
                "cloud": round(float(known.mean()), 1) if known.size else None,
            })  # fmt: skip
        return found


def open_cubes(
    urls: Sequence[str], group: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> tuple[ServedCube, ...]:
    """The cubes at some URLs, every zone of those that have several, numbered in that order.

    Raises:
        StoreError: no cube at one of them.
        InputError: no URL.
    """
    if not urls:
        raise InputError("no cube: give the path or URL of one, or of several")
    found: list[ServedCube] = []
    for url in urls:
        options = options_for(url, storage_options)
        zones = (group,) if group is not None else zones_of(url, options) or (None,)
        found += [_open(str(len(found) + k), url, zone, options, len(zones) > 1) for k, zone in enumerate(zones)]
    return tuple(found)


def renewed(cube: ServedCube) -> ServedCube | None:
    """The cube opened anew where its store has been written to since; None where it is as it was.

    Raises:
        StoreError: the store cannot be read any more.
    """
    if (version := version_of(cube.url, cube.options)) == cube.version:
        return None
    url, zone = cube.opened
    return replace(_open(cube.id, url, zone, cube.options or {}, several=False, version=version), name=cube.name)


def version_of(url: str, options: Mapping[str, Any] | None) -> str:
    """Tells states of a store apart, by a few small objects: what was finalised last, and the overview of each time."""
    target = Objects(url, options)
    keys = [ROOT, SEAL]
    # Not by a listing, which a store behind a plain web server does not give.
    if (picture := target.get(f"{FOLDER}/0/{ARRAY}/zarr.json")) is not None:
        keys += [made_key(time) for time in range(int(json.loads(picture)["shape"][0]))]
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(target.get, keys))
    return hashlib.sha256(b"|".join(data or b"" for data in found)).hexdigest()[:12]


def _open(
    id_: str, url: str, zone: str | None, options: Mapping[str, Any], several: bool, version: str | None = None
) -> ServedCube:
    own = url if zone is None else f"{url.rstrip('/')}/{zone}"
    # Told first: what is written meanwhile is then taken for new, not for seen.
    version = version or version_of(own, options)
    ds = open_cube(url, dict(options) or None, group=zone)
    info: CubeInfo = ds.eocube.info
    values = ds[info.product.array]
    if info.origin is None:
        raise StoreError(f"{redacted(url)} does not say where its arrays lie: it was written by an early version")
    shards = values.encoding.get("shards") or values.encoding.get("chunks") or values.shape
    shape = (ds.sizes["y"], ds.sizes["x"])
    epsg = CRS.from_user_input(ds["spatial_ref"].attrs["crs_wkt"]).to_epsg()
    assert epsg is not None, "a zone's CRS has a code"
    frame = Frame(
        epsg, info.origin[0], info.origin[1], info.cell, float(info.resolution), info.stride, info.core,
        int(shards[-1]), shape, info.extent or (0, 0, *shape),
    )  # fmt: skip
    title = redacted(url).partition("?")[0].rstrip("/").rpartition("/")[2] or redacted(url)
    group = zarr.open_group(readable(own, dict(options) or None), mode="r")
    name = f"{title} {zone}" if several else title
    layers = Layers.of(info, tuple(map(str, ds.data_vars)))
    return ServedCube(id_, name, own, ds, group, info, frame, layers, options, (url, zone), version)
