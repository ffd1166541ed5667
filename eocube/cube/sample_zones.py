"""Samples a cube at a URL at points, each in the zone whose ground it is on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eocube.cube.opening import open as open_cube
from eocube.cube.points import Points
from eocube.cube.sample import Rows, Wanted, tables_at
from eocube.errors import InputError
from eocube.ground.zones import zone_name
from eocube.store.existing import zones_of


def sample_url(
    url: str,
    points: Points,
    wanted: Wanted,
    *,
    interval: tuple[np.datetime64, np.datetime64] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[Rows]:
    """The tables of a cube at a URL, of one of several zones too: each point in the zone whose ground it is on.

    Points of zones that the cube does not have come out as `outside` of its first one. With several zones, a column
    `zone` names each.

    Raises:
        InputError: no time step in `interval` (first and last moment, both included).
    """
    options = None if storage_options is None else dict(storage_options)
    zones = zones_of(url, options)
    parts: list[tuple[str | None, NDArray[Any]]] = [(None, np.arange(len(points)))]
    if zones:
        own = points.zones()
        known = {zone_name(int(epsg)) if epsg else "": int(epsg) for epsg in np.unique(own)}
        spots = {zone: np.flatnonzero(own == known[zone]) for zone in zones if zone in known}
        rest = np.setdiff1d(np.arange(len(points)), np.concatenate([*spots.values(), np.zeros(0, np.int64)]))
        spots[zones[0]] = np.sort(np.concatenate([spots.get(zones[0], np.zeros(0, np.int64)), rest]))
        parts = [(zone, spots[zone]) for zone in zones if len(spots.get(zone, ()))]
    said = 0
    for zone, which in parts:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*not in order of time.*")  # tables come in order whatever
            ds = open_cube(url, options, group=zone)
        if interval is not None:
            moments = ds["time"].values
            ds = ds.isel(time=np.flatnonzero((moments >= interval[0]) & (moments <= interval[1])))
        for _, rows in tables_at(ds, points.some(which), wanted):
            said += 1
            rows["point"] = which[rows["point"]]
            yield rows if zone is None else {"point": rows.pop("point"), "zone": np.full(len(which), zone), **rows}
    if not said:
        raise InputError(f"{url} has no time step in what was asked for: eocube info lists them")
