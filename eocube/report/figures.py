"""Draws the report page's pictures as data URIs: window states, decoded ground, sources, values."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.colors import to_rgba
from matplotlib.image import imsave

from eocube.cube.colours import Composite, Stretch, composite, principal_components
from eocube.cube.quicklook import STATE_COLOURS, busiest
from eocube.plan.plan import Plan
from eocube.report.fidelity import truth_pixels
from eocube.report.source_pixels import read_source
from eocube.store.receipts import State

SIDE = 640
"""Pixels a side of a picture, at most."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and what it shows."""

    title: str
    uri: str
    width: int
    height: int


def states_picture(status: npt.NDArray[np.uint8], requested: npt.NDArray[np.bool_], title: str) -> Picture:
    """(wy, wx) states as one pixel a window, cut to the windows asked for; the page draws it larger."""
    rows, cols = np.flatnonzero(requested.any(1)), np.flatnonzero(requested.any(0))
    cut = status[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    colours = np.array([to_rgba(STATE_COLOURS[s]) for s in State], dtype=np.float32)
    colours[State.OUTSIDE, 3] = 0.0  # nothing was asked for there: the page shows through
    return _picture(title, colours[cut])


def ground_pictures(
    ds: xr.Dataset, plan: Plan, time: int, *, source: bool, source_options: Mapping[str, Any] | None = None
) -> list[Picture]:
    """One time step decoded, its latents, and with `source` what was encoded; of a large cube its fullest part."""
    info = ds.eocube.info
    if not info.product.decodes:
        return []
    step = ds.isel(time=time)
    decoded = busiest(step.eocube.decode(), step["status"], info).compute()
    if not np.isfinite(decoded.values).all(0).any():
        return []
    seen = np.isfinite(decoded.values).all(0)  # what lies beyond the scenes is not worth the room
    rows, cols = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    decoded = decoded.isel(y=slice(rows[0], rows[-1] + 1), x=slice(cols[0], cols[-1] + 1))
    names = tuple(map(str, decoded["band"].values))
    picture = composite(decoded.values, names, info.sensor)
    pictures: list[Picture] = []
    stretch = Stretch.of(picture)
    if source:
        truth = read_source(plan, truth_pixels(plan), time, storage_options=source_options)
        truth = truth.reindex(y=decoded.y, x=decoded.x, method="nearest", tolerance=info.resolution / 4)
        drawn = composite(truth.values.astype(np.float32), names, info.sensor)
        if np.isfinite(drawn.layers).any():
            stretch = Stretch.of(drawn)
            pictures.append(_picture("source", stretch(drawn.layers)))
    pictures.append(_picture("decoded", stretch(picture.layers)))
    half = info.resolution / 2
    # Beyond the swath latents describe mirrored filler.
    latents = (
        step.eocube.real_values()
        .where(step["valid"] > 0)
        .isel(
            y=np.flatnonzero(
                (step.y.values < decoded.y.values[0] + half) & (step.y.values > decoded.y.values[-1] - half)
            ),
            x=np.flatnonzero(
                (step.x.values > decoded.x.values[0] - half) & (step.x.values < decoded.x.values[-1] + half)
            ),
        )
    )
    layers = Composite(principal_components(latents.values.astype(np.float32)), "", joint=False)
    pictures.append(_picture(f"{info.product.array}s, 3 principal components", Stretch.of(layers)(layers.layers)))
    return pictures


def _picture(title: str, colours: npt.NDArray[np.floating]) -> Picture:
    thin = max(1, -(-max(colours.shape[:2]) // SIDE))
    image = np.nan_to_num(np.clip(colours[::thin, ::thin], 0.0, 1.0))
    buffer = io.BytesIO()
    imsave(buffer, image, format="png", metadata={"Software": ""})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(title, f"data:image/png;base64,{data}", image.shape[1], image.shape[0])
