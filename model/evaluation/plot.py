"""Draws rate against quality: a panel a sensor, a line a codec, one legend below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Spot = tuple[float, float]
"""Rate and quality."""


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines of spots by name, over rates on a logarithmic axis; `marked` are spots with a ring around them."""

    lines: Mapping[str, Sequence[Spot]]
    rate: str
    quality: str
    marked: Sequence[Spot] = ()


def draw(panels: Mapping[str, Panel], path: Path, marked: str = "") -> None:
    """One panel a title, written as PNG; a line of one name looks alike in all. `marked` says what the rings mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(line for panel in panels.values() for line in panel.lines))
    colours = {line: f"C{k}" for k, line in enumerate(names)}
    markers = {line: mark for line, mark in zip(names, "osD^vP*X", strict=False)}
    ring: dict[str, Any] = {
        "marker": "o",
        "markersize": 11,
        "markerfacecolor": "none",
        "color": "black",
        "linestyle": "none",
    }
    handles = [Line2D([], [], color=colours[n], marker=markers.get(n, "o"), markersize=4.5, label=n) for n in names]
    if marked:
        handles.append(Line2D([], [], **ring, label=marked))
    abreast = 1 if columns == 1 else min(1 + columns, len(handles))  # two names are wider than one panel
    height = 3.9 * rows + 0.3 + 0.2 * -(-len(handles) // abreast)
    figure, axes = plt.subplots(rows, columns, figsize=(4.8 * columns, height), squeeze=False, layout="constrained")
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        for line, spots in panel.lines.items():
            axis.plot(
                [x for x, _ in spots], [y for _, y in spots], marker=markers.get(line, "o"), markersize=4.5,
                linewidth=1.6, color=colours[line], label=line,
            )  # fmt: skip
        axis.plot([x for x, _ in panel.marked], [y for _, y in panel.marked], **ring)
        axis.set_xscale("log", base=2)
        rates = [x for spots in panel.lines.values() for x, _ in spots]
        steps = np.arange(np.floor(np.log2(min(rates))), np.ceil(np.log2(max(rates))) + 1)
        axis.xaxis.set_major_locator(FixedLocator([float(2.0**s) for s in steps]))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(title)
        axis.set_xlabel(panel.rate)
        axis.set_ylabel(panel.quality)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(panels) :]:
        axis.set_visible(False)
    figure.legend(handles=handles, loc="outside lower center", ncols=abreast, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)
