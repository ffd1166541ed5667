"""Opens cubes in xarray, checked to be cubes, with chunks that fit their store."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from eocube.errors import InputError, StoreError
from eocube.net.redaction import redacted
from eocube.net.storage_options import options_for
from eocube.products.documents import stored_form
from eocube.read.coverage import ON_LATENTS
from eocube.store.document import KEY, CubeInfo, read_info


def open(
    url: str,
    storage_options: dict[str, Any] | None = None,
    expect_space_id: str | None = None,
    *,
    group: str | None = None,
    crop: bool | Sequence[float] = False,
) -> xr.Dataset:
    """Open a latent cube: what `xarray.open_zarr` gives, with chunks that fit the store, checked to be a cube.

    Latents are dask arrays whose chunks are whole shards (one object, one read each); `spatial_ref` is a coordinate, so
    that rioxarray and odc-geo find the CRS; the small arrays (`status`, ...) are read when looked at. Warns where time
    steps are not in order of time: dates that a store is extended with go behind those that are there.

    Args:
        url: path or URL of the store, anything fsspec knows.
        storage_options: for fsspec, such as `{"anon": True}`.
        expect_space_id: refuse a store whose latents mean something else.
        group: the zone, such as "utm32", of a store that holds one cube a zone.
        crop: True cuts to the ground that was asked for, (west, south, east, north) to that of a box in degrees:
            arrays cover whole shards. To decode a box, open all and `decode(bbox=...)`.

    Raises:
        StoreError: no store there, no cube in it, several cubes and no `group` (the message names them), another space,
            or one that says other things of its latents than when it was written.
    """
    import zarr

    from eocube.net import forks
    from eocube.net.objects import Objects
    from eocube.store.existing import half_moved
    from eocube.store.remote_store import readable

    shown = redacted(url)
    path = _group_url(url, group)
    forks.watch()  # what is opened here is lazy: a worker forked later may compute it
    try:
        source = readable(path, dict(options_for(path, storage_options)) or None)
        root = zarr.open_group(source, mode="r")
    except (OSError, ValueError, KeyError, ImportError) as error:
        where = shown if group is None else f"{shown}, group {group!r}"
        if isinstance(error, FileNotFoundError):  # there is an answer, and no root
            where = half_moved(Objects(path, storage_options)) or where
        raise StoreError(f"{where}: no Zarr store can be opened there ({_first_line(error)})") from error
    document = root.attrs.get(KEY)
    if not _is_cube(root):
        zones = document.get("zones") if isinstance(document, Mapping) else None
        named = zones if isinstance(zones, list) else [name for name, member in root.groups() if _is_cube(member)]
        cubes = sorted(map(str, named))
        if cubes:
            raise StoreError(f"{shown} holds one cube a zone: open it with group= one of {', '.join(cubes)}")
        raise StoreError(f"{shown}: a Zarr store, but no cube of eocube")
    ds: xr.Dataset = xr.open_zarr(
        source,
        consolidated=root.metadata.consolidated_metadata is not None,
        chunks=None,
        decode_coords="all",
    )
    info = read_info(ds, shown if group is None else f"{shown}, group {group!r}")
    _check_codes(ds, info, shown)
    if not ds.indexes["time"].is_monotonic_increasing:
        warnings.warn(
            f'{shown}: its time steps are not in order of time, since it was extended backwards; ds.sortby("time") '
            "sorts them and costs nothing",
            stacklevel=2,
        )
    if expect_space_id is not None and info.space_id != expect_space_id:
        raise StoreError(f"{shown} has space id {info.space_id}, not {expect_space_id}: its latents mean other things")
    values = ds[info.product.array]
    shards = values.encoding.get("shards") or values.encoding.get("chunks") or values.shape
    sizes = dict(zip(values.dims, shards, strict=True))
    for name in (info.product.array, *ON_LATENTS):
        if name in ds:
            ds[name] = ds[name].chunk({d: sizes[d] for d in ds[name].dims if d in sizes})
    if crop is False:
        return ds
    cut: xr.Dataset = ds.eocube.crop(None if crop is True else crop)
    return cut


def _check_codes(ds: xr.Dataset, info: CubeInfo, shown: str) -> None:
    """StoreError where stored codes mean one thing by the attribute and another by the coordinates beside it."""
    for name, (values, long_name) in info.product.storage.coordinates().items():
        if name in ds.coords and not np.array_equal(ds[name].values, values):
            raise StoreError(
                f"{shown}: the {long_name} is not that in its `eocube` attribute: one of them was edited "
                "or damaged; `eocube verify` tells which"
            )


def _is_cube(group: Any) -> bool:
    """Whether a group holds the array that its `eocube` attribute speaks of."""
    try:
        return stored_form(group.attrs[KEY])[0] in group
    except (KeyError, TypeError, ValueError, AttributeError, InputError):
        return False


def _group_url(url: str, group: str | None) -> str:
    if group is None:
        return url
    if re.fullmatch(r"\w+", group) is None:
        raise StoreError(f"group {group!r} is no zone's name, such as utm32")
    head, mark, query = url.partition("?")
    return f"{head.rstrip('/')}/{group.strip('/')}{mark}{query}"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {redacted(text[0])}" if text else type(error).__name__
