"""Makes composites of a cube, lazily: monthly or seasonal, of decoded pixels or latents, without clouds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from eocube.errors import InputError

How = Literal["median", "mean", "min", "max"]
SEASONS = "QS-DEC"
"""Quarters from December on: winter, spring, summer, autumn of the north."""
COUNT = "observations"
Floats = NDArray[np.float32]


def composite(
    ds: xr.Dataset,
    period: str,
    how: How = "median",
    clear: float | None = 20.0,
    *,
    what: Literal["decoded", "latents"] = "decoded",
    bands: Sequence[str] | str | None = None,
    **decoding: Any,
) -> xr.DataArray:
    """One picture a period: see `EocubeAccessor.composite`."""
    if how not in _REDUCERS:
        raise InputError(f"how={how!r}: take {', '.join(_REDUCERS)}")
    if clear is not None and not 0 <= clear <= 100:
        raise InputError(
            f"clear={clear:g}: percent of cloud and shadow that a cell may have, 0 to 100, or None for all"
        )
    if what not in ("decoded", "latents"):
        raise InputError(f"what={what!r}: take decoded or latents")
    if "time" not in ds.dims or not ds.sizes["time"]:
        raise InputError("the dataset has no time steps: there is nothing to composite")
    ds = ds.sortby("time")
    values = ds.eocube.decode(bands, **decoding) if what == "decoded" else ds.eocube.latents()
    if clear is not None:
        values = values.where(_clear(ds, clear, values))
    band = "band" if what == "decoded" else "channel"
    bins = _bins(ds["time"].values, period)
    starts = xr.Variable("time", np.array([start for start, _ in bins], "datetime64[ns]"), dict(ds["time"].attrs))
    pictures, counts = zip(*(_one(values.isel(time=steps), how, band) for _, steps in bins), strict=True)
    joined: dict[str, Any] = {"coords": "minimal", "compat": "override"}
    made: xr.DataArray = xr.concat(pictures, starts, **joined)
    made = made.assign_coords({COUNT: xr.concat(counts, starts, **joined)})
    said = f"{how} of each period of {period}" + ("" if clear is None else f", cells with up to {clear:g} % of cloud")
    kept = {k: v for k, v in values.attrs.items() if k != "cell_methods"}
    made.attrs = {**kept, "cell_methods": f"time: {how}", "comment": said}
    return made.transpose("time", band, "y", "x")


def _bins(times: NDArray[np.datetime64], period: str) -> list[tuple[pd.Timestamp, NDArray[np.int64]]]:
    """(start, time steps) of every period that has any. InputError for what is no period."""
    steps = pd.Series(np.arange(len(times)), index=pd.DatetimeIndex(times))
    try:
        grouped = steps.resample(SEASONS if period == "season" else period)
        return [(start, group.to_numpy()) for start, group in grouped if len(group)]
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"period {period!r}: take 1MS (months), season, 1YS, 10D, ... as pandas names frequencies"
        ) from None


def _clear(ds: xr.Dataset, most: float, values: xr.DataArray) -> xr.DataArray:
    """(time, y, x) of `values`: whether its cell has no more cloud and shadow than that; unknown counts as clear."""
    if "cloud" not in ds:
        raise InputError("the cube does not know clouds by cell: clear=None takes all of its windows")
    known = {name: ds[name].where(ds[name] <= 100, 0).astype(np.float32) for name in ("cloud", "shadow") if name in ds}
    total = sum(known.values(), start=xr.zeros_like(known["cloud"]))
    fine = (total <= most).sel(y=values["y"], x=values["x"], method="nearest")
    fine = fine.assign_coords(y=values["y"], x=values["x"]).transpose("time", "y", "x")
    return fine.chunk({d: values.chunksizes[d] for d in fine.dims}) if values.chunks is not None else fine


def _one(values: xr.DataArray, how: How, band: str) -> tuple[xr.DataArray, xr.DataArray]:
    """A period's picture, and how many observations each pixel has."""
    whole = values.chunk({"time": -1}) if values.chunks is not None else values
    found: xr.DataArray = xr.apply_ufunc(
        _REDUCERS[how], whole, input_core_dims=[["time"]], dask="parallelized", output_dtypes=[np.float32],
        keep_attrs=True,
    )  # fmt: skip
    count = whole.isel({band: 0}, drop=True).notnull().sum("time").astype(np.uint16)
    gone = [name for name, c in found.coords.items() if "time" in c.dims]
    return found.drop_vars(gone), count.drop_vars(gone, errors="ignore")


def _median(values: Floats) -> Floats:
    """Over the last axis, of what is there; NaN sorts last, and numpy's own warns of empty slices and is slower."""
    ordered, count = np.sort(values, axis=-1), np.isfinite(values).sum(axis=-1, keepdims=True)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[-1] - 1)
    middle = np.take_along_axis(ordered, low, -1) + np.take_along_axis(ordered, high, -1)
    return _of(middle[..., 0] / 2, count[..., 0])


def _mean(values: Floats) -> Floats:
    there = np.isfinite(values)
    count = there.sum(axis=-1)
    return _of(np.where(there, values, 0).sum(axis=-1) / np.maximum(count, 1), count)


def _min(values: Floats) -> Floats:
    there = np.isfinite(values)
    return _of(np.where(there, values, np.inf).min(axis=-1), there.sum(axis=-1))


def _max(values: Floats) -> Floats:
    there = np.isfinite(values)
    return _of(np.where(there, values, -np.inf).max(axis=-1), there.sum(axis=-1))


def _of(values: NDArray[Any], count: NDArray[Any]) -> Floats:
    return np.where(count > 0, values, np.nan).astype(np.float32)


_REDUCERS: dict[str, Callable[[Floats], Floats]] = {"median": _median, "mean": _mean, "min": _min, "max": _max}
