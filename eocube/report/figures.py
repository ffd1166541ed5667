"""Draws the report page's figures: pictures of states and ground as data URIs, charts as inline SVG."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from markupsafe import Markup
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.ticker import MaxNLocator

from eocube.cube.colours import Stretch, composite
from eocube.cube.components import Basis
from eocube.cube.quicklook import STATE_COLOURS, busiest, data_in
from eocube.plan.plan import Plan
from eocube.products.scores import DATA_RANGE, psnr, rmse, rmse_map
from eocube.report.fidelity import truth_pixels
from eocube.report.source_pixels import read_source
from eocube.store.receipts import State

SIDE = 640
"""Pixels a side of a picture, at most."""
WINDOW_SIDE, LEAST_LINED = 16, 5
"""Pixels a side of a window on the map of states, at most; from so many on there is a line between windows."""
ERROR_MOST = {"reflectance": 0.05, "dB": 3.0, "dn8": 25.0}
"""The error that is drawn brightest, by unit: the same for every date and cube, so that they compare."""
_WIDTH, _HEIGHT = 420, 190
"""A chart's size in its own units."""
_PAGES = {"bar": "#3f7f9f", "mark": "#c8553d", "soft": "#5d676e", "line": "#dfe3e0", "ink": "#1d2327"}
"""The page's own colours by the names that its style sheet has for them, by which they follow a dark screen."""
_TICKS = 4  # along the bottom: numbers of five digits still stand apart
_SAID = "said "
"""How the id of what is pointed at begins in matplotlib's SVG; the rest is what is shown then."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and what it shows."""

    title: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Ground:
    """A time step and its pictures."""

    time: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart, and what it shows in words."""

    title: str
    note: str
    svg: Markup


def states_picture(status: npt.NDArray[np.uint8], requested: npt.NDArray[np.bool_], title: str) -> Picture:
    """(wy, wx) states, cut to the windows asked for: squares, with lines between them where there is room."""
    rows, cols = np.flatnonzero(requested.any(1)), np.flatnonzero(requested.any(0))
    cut = status[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    colours = np.array([to_rgba(STATE_COLOURS[s]) for s in State], dtype=np.float32)
    colours[State.OUTSIDE, 3] = 0.0  # nothing was asked for there: the page shows through
    square = max(1, min(WINDOW_SIDE, SIDE // max(cut.shape)))
    drawn = colours[cut].repeat(square, axis=0).repeat(square, axis=1)
    if square >= LEAST_LINED:
        drawn[::square, :, 3] = drawn[:, ::square, 3] = 0.0
    return _picture(title, drawn)


def ground_pictures(
    ds: xr.Dataset,
    plan: Plan,
    time: int,
    basis: Basis,
    *,
    source: bool,
    source_options: Mapping[str, Any] | None = None,
) -> tuple[Picture, ...]:
    """One time step decoded, its latents, and with `source` what was encoded and the error; of a large cube its
    fullest part. Every date has the same stretch, the same basis of latents and the same scale of errors."""
    info = ds.eocube.info
    if not info.product.decodes:
        return ()
    step = ds.isel(time=time)
    decoded = busiest(step.eocube.decode(), step["status"], info).compute()
    if not np.isfinite(decoded.values).all(0).any():
        return ()
    decoded = decoded.isel(data_in(decoded))  # what lies beyond the scenes is not worth the room
    names = tuple(map(str, decoded["band"].values))
    picture = composite(decoded.values, names, info.sensor)
    stretch = Stretch.fixed(picture, info.sensor.unit)
    shown = f"{picture.label}, {stretch.said}"
    pictures: list[Picture] = []
    error: Picture | None = None
    if source:
        truth = read_source(plan, truth_pixels(plan), time, storage_options=source_options)
        truth = truth.reindex(y=decoded.y, x=decoded.x, method="nearest", tolerance=info.resolution / 4)
        values = truth.values.astype(np.float32)
        drawn = composite(values, names, info.sensor)
        if np.isfinite(drawn.layers).any():
            pictures.append(_picture(f"source ({shown})", stretch(drawn.layers)))
            error = _error(values, decoded.values, info.sensor.unit)
    pictures.append(_picture(f"decoded ({shown})", stretch(picture.layers)))
    pictures += [] if error is None else [error]
    half = info.cell / 2
    # Beyond the swath latents describe mirrored filler.
    latents = (
        step.eocube.real_values()
        .where(step["valid"] > 0)
        .isel(
            y=np.flatnonzero(
                (step.y.values - half < decoded.y.values[0]) & (step.y.values + half > decoded.y.values[-1])
            ),
            x=np.flatnonzero(
                (step.x.values + half > decoded.x.values[0]) & (step.x.values - half < decoded.x.values[-1])
            ),
        )
    )
    title = f"{info.product.array}s, 3 principal components of {basis.dates} date{'s' if basis.dates > 1 else ''}"
    pictures.append(_picture(title, basis(latents.values.astype(np.float32))))
    return tuple(pictures)


def _error(source: npt.NDArray[np.float32], decoded: npt.NDArray[np.float32], unit: str) -> Picture | None:
    """The error of every pixel, and of all of them in figures; None where no pixel has both."""
    both = np.isfinite(source).all(axis=0) & np.isfinite(decoded).all(axis=0)
    if not both.any():
        return None
    most = ERROR_MOST.get(unit)
    error = rmse_map(source, decoded)
    top = float(np.percentile(error[both], 99)) if most is None else most
    colours = colormaps["magma"](np.clip(np.nan_to_num(error) / max(top, 1e-9), 0.0, 1.0)).astype(np.float32)
    colours[..., 3] = both
    suffix = "" if unit == "reflectance" else f" {unit}"
    figures = [f"RMSE {rmse(source, decoded):.4g}{suffix}"]
    if unit in DATA_RANGE:
        figures.insert(0, f"PSNR {psnr(source, decoded, data_range=DATA_RANGE[unit]):.1f} dB")
    return _picture(f"error: {', '.join(figures)}; black 0, white {top:.3g}{suffix} and more", colours)


def _picture(title: str, colours: npt.NDArray[np.floating]) -> Picture:
    thin = max(1, -(-max(colours.shape[:2]) // SIDE))
    image = np.nan_to_num(np.clip(colours[::thin, ::thin], 0.0, 1.0))
    buffer = io.BytesIO()
    imsave(buffer, image, format="png", metadata={"Software": ""})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(title, f"data:image/png;base64,{data}", image.shape[1], image.shape[0])


def histogram(values: npt.NDArray[np.float64], label: str, *, bins: int = 24) -> Markup:
    """How many windows have which of some finite values, one at least; the mean is marked."""
    low, high, mean = float(values.min()), float(values.max()), float(values.mean())
    if high - low < 1e-9:
        low, high = low - 0.5 * max(abs(low), 1e-3), high + 0.5 * max(abs(high), 1e-3)
    counts, edges = np.histogram(values, bins=bins, range=(low, high))
    figure, axes = _bars(edges, counts.astype(np.float64), label, "windows")
    axes.axvline(mean, color=_PAGES["mark"], linestyle="--", clip_on=False)
    side, nudge = ("left", 4) if mean < low + 0.6 * (high - low) else ("right", -4)
    axes.annotate(
        f"mean {mean:.3g}", (mean, 1.0), (nudge, 0), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
        ha=side, va="top", size=11, color=_PAGES["ink"],
    )  # fmt: skip
    return _svg(figure, f"windows by {label}")


def over_time(edges: npt.NDArray[np.float64], rates: npt.NDArray[np.float64], mean: float) -> Markup:
    """Windows a second over working time, the mean as a line; `edges` in seconds."""
    scale, unit = (1.0, "s") if edges[-1] < 600 else (60.0, "min") if edges[-1] < 36000 else (3600.0, "h")
    label = f"working time, {unit}"
    figure, axes = _bars(edges / scale, rates, label, "windows/s")
    axes.axhline(mean, color=_PAGES["mark"], linestyle="--", clip_on=False)
    return _svg(figure, f"windows/s by {label}")


def _bars(
    edges: npt.NDArray[np.float64], heights: npt.NDArray[np.float64], label: str, unit: str
) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")
    axes = figure.add_subplot()
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        if height > 0:
            # What is cut off needs ids, and several charts of a page would have the same.
            (bar,) = axes.bar(left, height, 0.95 * (right - left), align="edge", color=_PAGES["bar"], clip_on=False)
            bar.set_gid(f"{_SAID}{left:.4g} to {right:.4g}: {height:.4g} {unit}")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0.0, 1.1 * float(heights.max()) or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(_TICKS))
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=unit == "windows"))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(label, size=11, color=_PAGES["soft"])
    axes.tick_params(length=0, labelsize=11, labelcolor=_PAGES["soft"])
    axes.grid(axis="y", color=_PAGES["line"], clip_on=False)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    return figure, axes


def _svg(figure: Figure, said: str) -> Markup:
    """The figure as an element of the page: in its colours and letters, with what is said of each bar."""
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = re.sub(rf'<g id="{_SAID}([^"]*)">', r"<g><title>\1</title>", svg[svg.index("<svg") :])
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for name, colour in _PAGES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(said)}"', 1))
