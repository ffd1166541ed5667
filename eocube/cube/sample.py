"""Samples a cube at points through time: latents, decoded pixels or both, each object read once, a state a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import dask
import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS

from eocube.cube.points import Points, points_from
from eocube.errors import InputError, StoreError
from eocube.sensors.sensor import nearest
from eocube.store.document import CubeInfo
from eocube.store.receipts import STATES, State

if TYPE_CHECKING:
    import pandas as pd

What = Literal["latents", "decoded", "both"]
WHAT = ("latents", "decoded", "both")
NO_SOURCE = "no_source"
"""State of a row whose window is ok while the pixel itself has no source: at the edge of a swath."""
MOST_AROUND = 10_000
"""Pixels around a point that are averaged at most."""
BESIDE = ("valid", "cloud", "shadow")
"""Arrays on the latent grid that go with every row: percent, 255 not known."""

Column = NDArray[Any]
Rows = dict[str, Column]
"""A table by column, a row a point."""


@dataclass(frozen=True, slots=True)
class Raster:
    """A lazy (1, bands, y, x) array on a square grid: its upper left corner and the side of its pixels, in metres."""

    data: Any
    left: float
    top: float
    side: float
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a cube at points: names, radius in metres, and by which decoder."""

    what: What = "decoded"
    bands: tuple[str, ...] | None = None
    radius: float = 0.0
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if self.what not in WHAT:
            raise InputError(f"what={self.what!r}: take {', '.join(WHAT)}")
        if not 0 <= self.radius < np.inf:
            raise InputError(f"radius={self.radius}: give metres, 0 for the cell or pixel that holds the point")
        if self.bands is not None and self.what == "latents":
            raise InputError("bands are of decoded pixels: take what='decoded' or 'both', or leave them out")


def sample(
    ds: xr.Dataset,
    points: Any,
    what: What = "decoded",
    *,
    bands: Sequence[str] | str | None = None,
    radius: float = 0.0,
    crs: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> pd.DataFrame:
    """A row a point and time: see `EocubeAccessor.sample`."""
    import pandas as pd

    named = (bands,) if isinstance(bands, str) else None if bands is None else tuple(bands)
    found = points_from(points, crs)
    tables = [rows for _, rows in tables_at(ds, found, Wanted(what, named, float(radius), device, dtype))]
    if not tables:
        raise InputError("the dataset has no time step: there is nothing to sample")
    joined = {name: np.concatenate([rows[name] for rows in tables]) for name in tables[0]}
    return pd.DataFrame(joined)


def tables_at(ds: xr.Dataset, points: Points, wanted: Wanted) -> Iterator[tuple[np.datetime64, Rows]]:
    """Tables of one time step after the other, in order of time, so that memory holds one of them."""
    info: CubeInfo = ds.eocube.info
    if "status" not in ds:
        raise StoreError("the dataset has no `status` variable: keep it when selecting variables")
    for band in wanted.bands or ():
        if band not in info.sensor.band_names:
            raise InputError(f"the cube has no band {band!r}: {nearest(band, info.sensor.band_names)}")
    if info.product.summary == "histogram" and wanted.radius:
        raise InputError(f"{info.product.array} cubes hold codes, of which there is no mean: radius is 0")
    if "time" not in ds.dims:
        ds = ds.expand_dims("time")
    ds = ds.assign(status=ds["status"].compute())
    x, y = points.within(CRS.from_user_input(ds["spatial_ref"].attrs["crs_wkt"]))
    lon, lat = points.lonlat()
    near = _near(ds, info, x, y)
    for step in np.argsort(ds["time"].values, kind="stable"):
        one = ds.isel(time=[int(step)])
        moment = one["time"].values[0]
        rows: Rows = {"point": np.arange(len(points), dtype=np.int64), "time": np.full(len(points), moment)}
        rows |= {_free(name): values for name, values in points.columns.items()}
        rows |= {"lon": lon, "lat": lat}
        states = _states(one, info, x, y)
        here = one if near is None else one.isel(near)
        values = _values(here, info, wanted, x, y) if (states == State.OK).any() else {}
        rows |= _complete(states, values, info, wanted, len(points))
        yield moment, rows


def _free(name: str) -> str:
    """A column of the user's under a name that no column of ours has."""
    return f"{name}_" if name in ("point", "time", "lon", "lat", "state", "pixels", *BESIDE) else name


def _names(info: CubeInfo) -> tuple[str, ...]:
    made = info.product
    return tuple(made.channel_names) or tuple(f"{made.array}_{k:02d}" for k in range(made.channels))


def _states(one: xr.Dataset, info: CubeInfo, x: Column, y: Column) -> NDArray[np.uint8]:
    """(N,) how the window that holds each point ended; outside where there is none."""
    side = info.cell * info.core
    wx, wy, status = one["wx"].values, one["wy"].values, one["status"].values[0]
    row, col, inside = _places(x, y, wx[0] - side / 2, wy[0] + side / 2, side, status.shape)
    found = np.full(len(x), State.OUTSIDE, np.uint8)
    found[inside] = status[row[inside], col[inside]]
    return found


def _places(
    x: Column, y: Column, left: float, top: float, side: float, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Row and column of the square that holds each point, and whether the array has it."""
    across, down = (x - left) / side, (top - y) / side
    inside = (across >= 0) & (across < shape[1]) & (down >= 0) & (down < shape[0])
    row, col = (np.floor(np.where(inside, v, 0)).astype(np.int64) for v in (down, across))
    return row, col, inside


def _near(ds: xr.Dataset, info: CubeInfo, x: Column, y: Column) -> dict[str, slice] | None:
    """The part of a cube that decoding at these points can need: their cores, those around them and their halos."""
    left, top = ds["x"].values[0] - info.cell / 2, ds["y"].values[0] + info.cell / 2
    row, col, inside = _places(x, y, left, top, info.cell, (ds.sizes["y"], ds.sizes["x"]))
    if not inside.any():
        return None
    reach = info.core * (2 + -(-info.halo // info.core))
    cut: dict[str, slice] = {}
    for name, index in (("y", row[inside]), ("x", col[inside])):
        cut[name] = slice(max(0, int(index.min()) - reach), int(index.max()) + reach + 1)
    return cut


def _values(one: xr.Dataset, info: CubeInfo, wanted: Wanted, x: Column, y: Column) -> Rows:
    """What the arrays hold at the points, in one `compute`: every object of the store is read once."""
    rasters: dict[str, Raster] = {}
    cell_left, cell_top = one["x"].values[0] - info.cell / 2, one["y"].values[0] + info.cell / 2
    tasks: list[Any] = []
    for name in BESIDE:
        if name in one:
            lazy = one[name] if one[name].chunks is not None else one[name].chunk()
            data = lazy.transpose("time", "y", "x").data[:, None]
            rasters[name] = Raster(data, cell_left, cell_top, info.cell, (name,))
    if wanted.what in ("latents", "both"):
        held = one.eocube.values().transpose("time", "channel", "y", "x")
        held = held if held.chunks is not None else held.chunk()
        rasters["values"] = Raster(held.data, cell_left, cell_top, info.cell, _names(info))
    for name, raster in rasters.items():
        tasks += _gathered(name, raster, x, y, wanted.radius if name == "values" else 0.0)
    if wanted.what in ("decoded", "both"):
        for name, raster, which in _decoded(one, info, wanted, x, y):
            rasters[name] = raster
            tasks += _gathered(name, raster, x, y, wanted.radius, which)
    return _summed(dask.compute(*tasks), rasters, len(x))  # type: ignore[attr-defined,no-untyped-call]


def _decoded(
    one: xr.Dataset, info: CubeInfo, wanted: Wanted, x: Column, y: Column
) -> Iterator[tuple[str, Raster, NDArray[np.bool_]]]:
    """The decoded pixels, blended for points near a core's border; the others need their own window alone."""
    side = info.resolution
    how: dict[str, Any] = {"bands": wanted.bands, "device": wanted.device, "dtype": wanted.dtype, "crop": False}
    core, blend = info.core * info.cell, info.halo * info.cell + wanted.radius
    with np.errstate(invalid="ignore"):  # points that the zone's projection has no place for
        from_edge = [np.minimum(v % core, -v % core) for v in (x, y)]
    edge = (from_edge[0] <= blend + side) | (from_edge[1] <= blend + side)
    # A core of which any point needs its neighbours is decoded with them for all of its points.
    cores = np.stack([np.where(np.isfinite(v), v, 0.0) // core for v in (x, y)]).astype(np.int64)
    _, group = np.unique(cores, axis=1, return_inverse=True)
    group = np.asarray(group).reshape(-1)
    blended = (np.bincount(group, weights=edge) > 0)[group]
    for name, which, mixed in (("blended", blended, True), ("alone", ~blended, False)):
        if which.any():
            pixels = one.eocube.decode(blend=mixed, **how)
            left, top = pixels.x.values[0] - side / 2, pixels.y.values[0] + side / 2
            yield name, Raster(pixels.data, left, top, side, tuple(map(str, pixels.band.values))), which


def _gathered(
    name: str, raster: Raster, x: Column, y: Column, radius: float, which: NDArray[np.bool_] | None = None
) -> list[Any]:
    """One delayed `_take` a chunk that holds pixels of any of the points."""
    data, offsets = raster.data, _around(radius, raster.side)
    row, col, inside = _places(x, y, raster.left, raster.top, raster.side, data.shape[-2:])
    inside = inside if which is None else inside & which
    index = np.flatnonzero(inside)
    rows, cols = row[index], col[index]
    # Measured from the point, not from the centre of its own pixel.
    dx = x[index] - (raster.left + (cols + 0.5) * raster.side)
    dy = (raster.top - (rows + 0.5) * raster.side) - y[index]
    edges = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in data.chunks[-2:]]
    reach = int(np.abs(offsets).max())
    tasks = []
    blocks = data.to_delayed()[0, 0]
    touched = set()
    for down in {-reach, 0, reach}:
        for across in {-reach, 0, reach}:
            i = np.searchsorted(edges[0], np.clip(rows + down, 0, edges[0][-1] - 1), side="right") - 1
            j = np.searchsorted(edges[1], np.clip(cols + across, 0, edges[1][-1] - 1), side="right") - 1
            touched |= set(zip(i.tolist(), j.tolist(), strict=True))
    order = np.argsort(rows, kind="stable")
    by_row = rows[order]
    take = dask.delayed(_take, pure=True)  # type: ignore[attr-defined]
    for i, j in sorted(touched):
        r0, r1, c0, c1 = int(edges[0][i]), int(edges[0][i + 1]), int(edges[1][j]), int(edges[1][j + 1])
        band = order[np.searchsorted(by_row, r0 - reach) : np.searchsorted(by_row, r1 + reach)]
        here = np.sort(band[(cols[band] >= c0 - reach) & (cols[band] < c1 + reach)])
        if len(here):
            own = (index[here], rows[here] - r0, cols[here] - c0, dx[here], dy[here])
            tasks.append(take(name, blocks[i, j], own, offsets, radius, raster.side))
    return tasks


def _around(radius: float, side: float) -> NDArray[np.int64]:
    """(K, 2) steps in pixels to all that may lie within a radius of a point in the pixel at (0, 0)."""
    reach = int(np.ceil(radius / side)) if radius else 0
    if (2 * reach + 1) ** 2 > MOST_AROUND:
        raise InputError(f"radius={radius:g} m takes {(2 * reach + 1) ** 2} pixels a point: {MOST_AROUND} at most")
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.stack([down.ravel(), across.ravel()], 1).astype(np.int64)


def _take(
    name: str, block: NDArray[Any], own: tuple[Column, ...], offsets: NDArray[np.int64], radius: float, side: float
) -> tuple[str, Column, Column, Column]:
    """(name, indices of points, (n, bands) sums over a chunk's pixels around each, (n,) how many there were).

    At radius 0 the pixel itself, NaN where it has no value, is the sum of one.
    """
    index, rows, cols, dx, dy = own
    values = block[0]
    if not radius:
        return name, index, values[:, rows, cols].T, np.ones(len(index), np.int64)
    total = np.zeros((len(index), len(values)), np.float64)
    count = np.zeros(len(index), np.int64)
    for down, across in offsets:
        near = np.hypot(across * side - dx, down * side - dy) <= radius
        r, c = rows + down, cols + across
        near |= (down == 0) & (across == 0)  # a radius under half a pixel still means the pixel
        near &= (r >= 0) & (r < values.shape[1]) & (c >= 0) & (c < values.shape[2])
        at = np.flatnonzero(near)
        pixels = values[:, r[at], c[at]].T
        there = np.isfinite(pixels).all(axis=1)
        total[at[there]] += pixels[there]
        count[at[there]] += 1
    return name, index, total, count


def _summed(parts: Sequence[tuple[str, Column, Column, Column]], rasters: Mapping[str, Raster], n: int) -> Rows:
    """Columns out of the chunks' sums: means, and how many pixels each is of."""
    found: Rows = {}
    for name, raster in rasters.items():
        own = [part for part in parts if part[0] == name]
        if not own:
            continue
        kind = own[0][2].dtype
        total = np.zeros((n, len(raster.names)), np.float64 if kind.kind == "f" else kind)
        count = np.zeros(n, np.int64)
        for _, index, values, many in own:
            total[index] += values
            count[index] += many
        hit = count > 0
        if kind.kind == "f":
            total[~hit] = np.nan
            total[hit] /= count[hit, None]
        found[f"{name}:count"] = count
        for k, column in enumerate(raster.names):
            made = total[:, k]
            if name in ("blended", "alone") and column in found:  # each point is in one of the two
                made = np.where(hit, made, found[column])
            found[column] = made
        if name in ("blended", "alone"):
            found["pixels"] = found.get("pixels", np.zeros(n, np.int64)) + np.where(hit, count, 0)
    return found


def _complete(states: NDArray[np.uint8], values: Rows, info: CubeInfo, wanted: Wanted, n: int) -> Rows:
    """The state and values of every row, with the columns that there always are."""
    labels = np.array(STATES, dtype=np.object_)[states]
    ok = states == State.OK
    rows: Rows = {"state": labels}
    for name in BESIDE:
        empty = 0 if name == "valid" else 255
        rows[name] = (
            np.where(ok, values[name], empty).astype(np.uint8) if name in values else np.full(n, empty, np.uint8)
        )
    names: tuple[str, ...] = ()
    if wanted.what in ("latents", "both"):
        names += _names(info)
    if wanted.what in ("decoded", "both"):
        names += wanted.bands or info.sensor.band_names
        if wanted.radius:
            rows["pixels"] = np.where(ok, values["pixels"], 0) if "pixels" in values else np.zeros(n, np.int64)
    whole = info.product.summary == "histogram"
    for name in names:
        if whole and name in _names(info):
            rows[name] = np.where(ok, values[name], -1).astype(np.int32) if name in values else np.full(n, -1, np.int32)
            continue
        made = values.get(name, np.full(n, np.nan))
        rows[name] = np.where(ok, made, np.nan).astype(np.float32)
    # An ok window whose pixel is not there: the swath ends within it.
    if wanted.what == "latents":
        lost = ok & (rows["valid"] == 0) if "valid" in values else np.zeros(n, np.bool_)
    else:
        lost = ok & ~np.isfinite(rows[names[-1]])
    rows["state"][lost] = NO_SOURCE
    return rows
