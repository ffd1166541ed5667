"""Draws the quicklook: source, decoded, error, values and window states of one time step, in one picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from pyproj import CRS, Transformer

from eocube.console import plain
from eocube.cube.colours import Stretch, composite
from eocube.cube.components import Basis, basis_of
from eocube.errors import InputError
from eocube.products.scores import DATA_RANGE, psnr, rmse, rmse_map, sam, seam_ratio
from eocube.store.document import CubeInfo
from eocube.store.receipts import STATES, State

Pixels = npt.NDArray[np.float32]
Source = xr.DataArray | npt.NDArray[Any] | Callable[[xr.DataArray], "xr.DataArray | npt.NDArray[Any]"]
"""Source pixels (band, y, x) in physical units, over the decoded ones' ground, or what gives them for those."""

MAX_CORES = 8
"""Cores a side that are drawn at most: of a larger cube, the part with the most windows that are ok."""
WIDTH, DPI = 2000, 125
"""The picture's width in pixels, and what makes type readable at it."""
EMPTY = "#e9e9e6"
INK = "#222222"
STATE_COLOURS = {
    State.NOT_ATTEMPTED: "#ffffff",
    State.OK: "#4c9f70",
    State.NODATA: "#b9bcc2",
    State.CLOUDY: "#8fb8de",
    State.OUTSIDE: EMPTY,
    State.READ_FAILED: "#d1495b",
    State.ENCODE_FAILED: "#edae49",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What is drawn: one time step over one box of ground. Arrays are (C, H, W); `source` has the decoded grid."""

    info: CubeInfo
    names: tuple[str, ...]
    decoded: Pixels
    source: Pixels | None
    latents: Pixels
    latents_extent: tuple[float, float, float, float]
    basis: Basis
    extent: tuple[float, float, float, float]
    """Metres: left, right, bottom, top of what is drawn, cut to where there are pixels."""
    origin: tuple[int, int]
    """Row and column of the first decoded pixel within its core."""
    crs: CRS | None
    when: str
    states: npt.NDArray[np.uint8] | None
    states_extent: tuple[float, float, float, float] | None


def quicklook(ds: xr.Dataset, out_png: str | Path, source: Source | None = None, time: int = 0) -> str:
    """Draw one time step of a cube into a picture about 2000 pixels wide; returns its path.

    Panels: the source (where given), the decoded pixels under the same stretch, their difference (root mean square over
    the bands), the first three principal components of the latents, the state of every window, and the figures.
    Of a cube larger than 8 x 8 cores, the part with the most windows that are ok.

    Args:
        ds: the cube, or a part of it.
        out_png: file to write; its ending says the format.
        source: pixels (band, y, x) in physical units: a DataArray over at least the ground drawn, an array of the
            decoded array's shape, or a function that gives either for the decoded DataArray.
        time: number of the time step.

    Raises:
        InputError: no such time step, a source of another shape, a place that cannot be written.
        StoreError: no cube, or no weights to decode it with.
    """
    figure = draw(ds, source=source, time=time)
    try:
        figure.savefig(str(out_png), dpi=DPI, facecolor="white")
    except (OSError, ValueError) as error:
        raise InputError(f"{out_png}: the picture cannot be written ({error})") from error
    return str(out_png)


def draw(ds: xr.Dataset, source: Source | None = None, time: int = 0) -> Figure:
    """The figure that `quicklook` writes."""
    return _figure(_gather(ds, source, time))


def _gather(ds: xr.Dataset, source: Source | None, time: int) -> Shown:
    """Decode what is drawn, and bring source, latents and states onto the same ground."""
    info: CubeInfo = ds.eocube.info
    whole = ds
    if "time" in ds.dims:
        if not 0 <= time < ds.sizes["time"]:
            raise InputError(f"no time step {time}: the cube has 0 to {ds.sizes['time'] - 1}")
        ds = ds.isel(time=time)
    decoded: xr.DataArray = ds.eocube.decode()
    states = ds.get("status")
    left, right, bottom, top = _edges(decoded, info.resolution)
    if states is not None:
        states = states.isel(
            wy=np.flatnonzero((states.wy.values < top) & (states.wy.values > bottom)),
            wx=np.flatnonzero((states.wx.values > left) & (states.wx.values < right)),
        )
        states = None if 0 in states.shape else states
    decoded = busiest(decoded, states, info)
    decoded = decoded.compute()
    truth = None if source is None else _on_grid(source, decoded)
    cut = data_in(decoded)
    decoded = decoded.isel(cut)
    left, right, bottom, top = extent = _edges(decoded, info.resolution)
    x, y = ds["x"].values, ds["y"].values
    reach = info.cell / 2  # cells that the picture shows a part of are drawn, and cut by its frame
    part = {
        "y": np.flatnonzero((y - reach < top) & (y + reach > bottom)),
        "x": np.flatnonzero((x + reach > left) & (x - reach < right)),
    }
    latents = ds.eocube.real_values().isel(part)
    if "valid" in ds:
        latents = latents.where(ds["valid"].isel(part) > 0)  # beyond the swath they describe mirrored filler
    core_px = info.core * info.stride
    return Shown(
        info=info,
        names=tuple(map(str, decoded["band"].values)),
        decoded=decoded.values,
        source=None if truth is None else truth[:, cut["y"], cut["x"]],
        latents=latents.values.astype(np.float32),
        latents_extent=_edges(latents, info.cell),
        basis=basis_of(whole),
        extent=extent,
        origin=(round(-top / info.resolution) % core_px, round(left / info.resolution) % core_px),
        crs=_crs(ds),
        when=str(np.datetime_as_string(ds["time"].values, unit="m")).replace("T", " ") + " UTC"
        if "time" in ds.coords
        else "",
        states=None if states is None else states.values,
        states_extent=None if states is None else _edges(states, info.cell * info.core, "wx", "wy"),
    )


def data_in(decoded: xr.DataArray) -> dict[str, slice]:
    """Slices of a decoded picture to the rows and columns that have any pixel; to all of them where none has."""
    seen = np.isfinite(decoded.values).all(axis=0)
    rows, cols = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not len(rows):
        return {"y": slice(None), "x": slice(None)}
    return {"y": slice(int(rows[0]), int(rows[-1]) + 1), "x": slice(int(cols[0]), int(cols[-1]) + 1)}


def busiest(decoded: xr.DataArray, states: xr.DataArray | None, info: CubeInfo) -> xr.DataArray:
    """At most MAX_CORES cores a side: those with the most windows that are ok, or the first when nothing tells."""
    core_px, core_m = info.core * info.stride, float(info.core * info.cell)
    limit = MAX_CORES * core_px
    if max(decoded.sizes["y"], decoded.sizes["x"]) <= limit:
        return decoded
    top, left = float(decoded.y[0]), float(decoded.x[0])
    if states is not None:
        ok = np.pad(np.cumsum(np.cumsum(states.values == State.OK, 0), 1), ((1, 0), (1, 0)))
        high, wide = (min(MAX_CORES, n) for n in states.shape)
        sums = ok[high:, wide:] - ok[:-high, wide:] - ok[high:, :-wide] + ok[:-high, :-wide]
        row, col = np.unravel_index(int(sums.argmax()), sums.shape)
        top, left = float(states.wy[row]) + core_m / 2, float(states.wx[col]) - core_m / 2
    box = decoded.isel(
        y=np.flatnonzero(decoded.y.values <= top)[:limit], x=np.flatnonzero(decoded.x.values >= left)[:limit]
    )
    return box


def _on_grid(source: Source, decoded: xr.DataArray) -> Pixels:
    """The source's pixels under the decoded ones; NaN beyond its ground."""
    given = source(decoded) if callable(source) else source
    if isinstance(given, xr.DataArray):
        if "time" in given.dims:
            given = given.squeeze("time")
        if "band" in given.coords and "band" in given.dims:
            given = given.sel(band=decoded["band"].values)
        step = abs(float(decoded.x[1] - decoded.x[0]))
        given = given.reindex(y=decoded.y, x=decoded.x, method="nearest", tolerance=step / 4)
        given = given.transpose("band", "y", "x").values
    if given.shape != decoded.shape:
        raise InputError(f"source of shape {given.shape}: the decoded pixels have {decoded.shape}, and it must too")
    return np.asarray(given, dtype=np.float32)


def _edges(array: xr.DataArray, step: float, x_name: str = "x", y_name: str = "y") -> tuple[float, float, float, float]:
    x, y = np.atleast_1d(array[x_name].values), np.atleast_1d(array[y_name].values)
    return float(x[0]) - step / 2, float(x[-1]) + step / 2, float(y[-1]) - step / 2, float(y[0]) + step / 2


def _crs(ds: xr.Dataset) -> CRS | None:
    attrs = ds["spatial_ref"].attrs if "spatial_ref" in ds.variables else {}
    wkt = attrs.get("crs_wkt") or attrs.get("spatial_ref")
    return CRS.from_wkt(wkt) if wkt else None


# -- drawing


def _figure(shown: Shown) -> Figure:
    picture = composite(shown.decoded, shown.names, shown.info.sensor)
    truth = None if shown.source is None else composite(shown.source, shown.names, shown.info.sensor)
    stretch = Stretch.fixed(picture, shown.info.sensor.unit)
    left, right, bottom, top = shown.extent
    panel = WIDTH / DPI / 3 - 0.9
    height = panel * min(max((top - bottom) / (right - left), 0.5), 1.6)
    rows = [height + 0.9, height + 1.3] if truth is not None else [height + 1.3, 0.9]
    engine = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(WIDTH / DPI, sum(rows) + 0.5), layout=engine)
    FigureCanvasAgg(figure)
    figure.suptitle(plain(_title(shown)), fontsize=15, color=INK, fontweight="bold", parse_math=False)
    grid = figure.add_gridspec(2, 3, height_ratios=rows)
    decoded_title = f"Decoded, {picture.label}, {stretch.said}"
    if truth is not None:
        _image(figure.add_subplot(grid[0, 0]), f"Source, {truth.label}, {stretch.said}", stretch(truth.layers), shown)
        _image(figure.add_subplot(grid[0, 1]), decoded_title, stretch(picture.layers), shown)
        _error(figure.add_subplot(grid[0, 2]), shown)
        _components(figure.add_subplot(grid[1, 0]), shown)
        _states(figure.add_subplot(grid[1, 1]), shown)
        _figures(figure.add_subplot(grid[1, 2]), shown, columns=1)
    else:
        _image(figure.add_subplot(grid[0, 0]), decoded_title, stretch(picture.layers), shown)
        _components(figure.add_subplot(grid[0, 1]), shown)
        _states(figure.add_subplot(grid[0, 2]), shown)
        _figures(figure.add_subplot(grid[1, :]), shown, columns=3)
    return figure


def _title(shown: Shown) -> str:
    parts = [f"{shown.info.sensor.name} {shown.info.product.array} cube"]
    if shown.when:
        parts.append(shown.when)
    if shown.crs is not None:
        left, right, bottom, top = shown.extent
        to_degrees = Transformer.from_crs(shown.crs, 4326, always_xy=True)
        lon, lat = to_degrees.transform((left + right) / 2, (bottom + top) / 2)
        parts.append(f"{abs(lat):.3f}° {'N' if lat >= 0 else 'S'} {abs(lon):.3f}° {'E' if lon >= 0 else 'W'}")
    return ", ".join(parts)


def _ground(ax: Axes, title: str, shown: Shown, extent: tuple[float, float, float, float]) -> None:
    """A panel that shows ground: title, coordinates in km, nothing else."""
    ax.set_title(plain(title), fontsize=11, color=INK, loc="left", parse_math=False)
    ax.set_facecolor(EMPTY)
    left, right, bottom, top = extent
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_aspect("equal")
    for axis, span in ((ax.xaxis, right - left), (ax.yaxis, top - bottom)):
        digits = 0 if span >= 8000 else 1 if span >= 800 else 2
        axis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda metres, _, digits=digits: f"{metres / 1000:.{digits}f}"))
    ax.tick_params(labelsize=8, colors=INK, length=3)
    epsg = None if shown.crs is None else shown.crs.to_epsg()
    ax.set_xlabel("easting, km" + ("" if epsg is None else f" (EPSG:{epsg})"), fontsize=8, color=INK)
    ax.set_ylabel("northing, km", fontsize=8, color=INK)


def _image(ax: Axes, title: str, colours: Pixels, shown: Shown) -> None:
    ax.imshow(colours, extent=shown.extent, interpolation="antialiased")
    _ground(ax, title, shown, shown.extent)
    _scale_bar(ax, shown.extent)


def _scale_bar(ax: Axes, extent: tuple[float, float, float, float]) -> None:
    """A bar of a round length, about a quarter of the panel."""
    left, right, bottom, top = extent
    wide, high = right - left, top - bottom
    power = 10.0 ** np.floor(np.log10(wide / 4))
    length = max(step * power for step in (1, 2, 5) if step * power <= wide / 4)
    x, y = left + 0.04 * wide, bottom + 0.04 * high
    outline = [withStroke(linewidth=5, foreground="black", alpha=0.7)]
    ax.plot([x, x + length], [y, y], color="white", linewidth=3, solid_capstyle="butt", path_effects=outline)
    ax.text(
        x + length / 2, y + 0.018 * high, f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m",
        color="white", fontsize=9, ha="center", va="bottom",
        path_effects=[withStroke(linewidth=2.5, foreground="black", alpha=0.8)],
    )  # fmt: skip


def _error(ax: Axes, shown: Shown) -> None:
    assert shown.source is not None
    error = rmse_map(shown.source, shown.decoded)
    seen = error[np.isfinite(error)]
    image = ax.imshow(
        np.ma.masked_invalid(error), extent=shown.extent, cmap="magma", interpolation="antialiased",
        vmin=0.0, vmax=float(np.percentile(seen, 99)) if seen.size else 1.0,
    )  # fmt: skip
    _ground(ax, f"Error, RMSE over {len(shown.names)} bands, {shown.info.sensor.unit}", shown, shown.extent)
    scale = ax.inset_axes((1.02, 0.0, 0.035, 1.0))
    bar = ax.figure.colorbar(image, cax=scale, extend="max")
    bar.ax.tick_params(labelsize=8, colors=INK, length=3)


def _components(ax: Axes, shown: Shown) -> None:
    ax.imshow(shown.basis(shown.latents), extent=shown.latents_extent, interpolation="nearest")
    name = shown.info.product.array.capitalize()
    of = f"of {shown.basis.dates} dates" if shown.basis.dates > 1 else "of this date"
    title = f"{name}s, 3 principal components {of}"
    _ground(ax, title, shown, shown.extent)


def _states(ax: Axes, shown: Shown) -> None:
    if shown.states is None or shown.states_extent is None:
        ax.set_axis_off()
        return
    colours = ListedColormap([STATE_COLOURS[state] for state in State])
    norm = BoundaryNorm(np.arange(len(STATES) + 1) - 0.5, len(STATES))
    left, right, bottom, top = shown.states_extent
    rows, cols = shown.states.shape
    x, y = np.linspace(left, right, cols + 1), np.linspace(top, bottom, rows + 1)
    inside = (shown.extent[1] - shown.extent[0]) / ((right - left) / cols)
    thin = 1.2 if inside <= 24 else 0.6 if inside <= 64 else 0.0
    ax.pcolormesh(x, y, shown.states, cmap=colours, norm=norm, edgecolors="white" if thin else "none", linewidth=thin)
    # On the picture's own ground, so that a window is found in it; the counts below are of all windows of the date.
    _ground(ax, f"Windows by state ({rows} x {cols} in all)", shown, shown.extent)
    counts = np.bincount(shown.states.ravel(), minlength=len(STATES))
    handles = [
        Patch(facecolor=STATE_COLOURS[state], edgecolor="#999999", label=f"{state.label.replace('_', ' ')} {count}")
        for state in State
        if (count := int(counts[state]))
    ]
    below = -0.55 * ax.figure.dpi / ax.get_window_extent().height  # inches: clear of the axis label on flat panels
    ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(-0.01, min(-0.13, below)), ncol=3, fontsize=9, frameon=False,
        labelcolor=INK, borderaxespad=0.0, borderpad=0.0, handlelength=1.2, columnspacing=1.2,
    )  # fmt: skip


def _figures(ax: Axes, shown: Shown, columns: int) -> None:
    """The numbers: names and values side by side, in so many columns."""
    ax.set_axis_off()
    facts = _facts(shown)
    lines = -(-len(facts) // columns)
    step = min(0.08 if columns == 1 else 0.4, 0.98 / lines)
    for number, (name, value) in enumerate(facts):
        x, y = number // lines / columns, 0.98 - number % lines * step
        ax.text(x, y, plain(name), parse_math=False, transform=ax.transAxes, fontsize=10, color="#666666", va="top")
        ax.text(
            x + 0.34 / columns,
            y,
            plain(value),
            parse_math=False,
            transform=ax.transAxes,
            fontsize=10,
            color=INK,
            va="top",
        )


def _facts(shown: Shown) -> list[tuple[str, str]]:
    info, unit = shown.info, shown.info.sensor.unit
    left, right, bottom, top = shown.extent
    names = shown.names
    facts = [
        ("sensor", f"{info.sensor.name}, {len(names)} band{'s' if len(names) > 1 else ''}"),
        ("bands", ", ".join(names) if len(names) <= 5 else f"{names[0]}, {names[1]} ... {names[-1]}"),
        ("ground drawn", f"{(right - left) / 1000:.2f} x {(top - bottom) / 1000:.2f} km at {info.resolution} m"),
        (f"{info.product.array} pixel", f"{info.cell} m, {shown.latents.shape[0]} channels"),
        ("window", f"{info.core} + 2 x {info.halo} {info.product.array}s"),
        ("space id", info.space_id),
    ]
    if shown.source is None:
        return facts
    source, decoded = shown.source, shown.decoded
    both = np.isfinite(source).all(axis=0) & np.isfinite(decoded).all(axis=0)
    if not both.any():
        return [*facts, ("quality", "no pixel has both source and decoded")]
    data_range = DATA_RANGE.get(unit)
    suffix = "" if unit == "reflectance" else f" {unit}"
    if data_range is not None:
        facts.append(("PSNR", f"{psnr(source, decoded, data_range=data_range):.2f} dB (range {data_range:g}{suffix})"))
    facts.append(("RMSE", f"{rmse(source, decoded):.4g}{suffix}"))
    if unit == "reflectance" and len(names) > 1:
        facts.append(("spectral angle", f"{sam(source, decoded):.4f} rad"))
    core_px = info.core * info.stride
    facts.append(("seam ratio", f"{seam_ratio(decoded - source, core_px, origin=shown.origin):.3f} (of the error)"))
    return facts
