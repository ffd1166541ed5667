"""Draws what the methods make of a pair of each place, and what more steps do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.evaluation.super_resolution.methods import BICUBIC, LATENT, MEAN, ONE_STEP, RIDGE
from model.evaluation.super_resolution.study import Shown
from model.sensors import COLOURS, Floats

COLUMNS = (BICUBIC, RIDGE, f"{LATENT}_{ONE_STEP}", f"{LATENT}_{MEAN}", LATENT)
MOST_ROWS = 6
_WIDE = 128
"""Pixels a side that are shown of a pair: all of a larger one would be too small to judge."""


def picture(shown: Sequence[Shown], bands: Sequence[str], path: Path) -> None:
    """A row a pair: input, methods, spread of the draws, truth; one stretch a row, the truth's 1 to 99 %.

    The spread has a scale of its own, 0 to its own 99 %, written below it.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = list(shown)[:MOST_ROWS]
    names = [name for name in COLUMNS if name in rows[0].results]
    spread = any(row.spread is not None for row in rows)
    columns = 2 + len(names) + spread
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(2.3 * columns, 2.5 * len(rows)), squeeze=False, layout="constrained"
    )
    picks = [list(bands).index(b) for b in COLOURS] if set(COLOURS) <= set(bands) else [0, 0, 0]
    for line, row in zip(axes, rows, strict=True):
        where = _corner(row.truth)
        factor = row.truth.shape[-1] // row.low.shape[-1]
        low = np.repeat(np.repeat(row.low, factor, 1), factor, 2)
        panels = {"input": low, **{name: row.results[name] for name in names}}
        stretch = _stretch(row.truth[picks])
        for axis, (name, image) in zip(line, panels.items(), strict=False):
            axis.imshow(_shown(image[picks][:, *where], stretch), interpolation="nearest")
            axis.set_title(name.replace("_", " "), fontsize=8)
        if spread:
            axis = line[len(panels)]
            if row.spread is not None:
                of = row.spread[picks].mean(0)[*where]
                most = max(float(np.percentile(of, 99)), 1e-6)
                axis.imshow(of, cmap="magma", vmin=0, vmax=most, interpolation="nearest")
                axis.set_xlabel(f"0 to {most:.4f}", fontsize=7)
            axis.set_title("spread", fontsize=8)
        line[-1].imshow(_shown(row.truth[picks][:, *where], stretch), interpolation="nearest")
        line[-1].set_title("truth", fontsize=8)
        line[0].set_ylabel(row.place, fontsize=8)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _corner(truth: Floats) -> tuple[slice, slice]:
    """The part with the most relief of as many pixels as are shown."""
    height, width = truth.shape[1:]
    best, found = -1.0, (slice(0, min(_WIDE, height)), slice(0, min(_WIDE, width)))
    for top in range(0, max(1, height - _WIDE + 1), 32):
        for left in range(0, max(1, width - _WIDE + 1), 32):
            where = (slice(top, top + _WIDE), slice(left, left + _WIDE))
            part = truth[:, *where]
            relief = float(np.std(part)) if np.isfinite(part).all() else 0.0
            if relief > best:
                best, found = relief, where
    return found


def _stretch(truth: Floats) -> tuple[Floats, Floats]:
    low, high = (np.nanpercentile(truth, q, axis=(1, 2), keepdims=True) for q in (1, 99))
    return low.astype(np.float32), np.maximum(high - low, 1e-4).astype(np.float32)


def _shown(image: Floats, stretch: tuple[Floats, Floats]) -> NDArray[np.float32]:
    found = np.clip((np.nan_to_num(image) - stretch[0]) / stretch[1], 0, 1).transpose(1, 2, 0)
    return np.asarray(found, np.float32)


def curve(report: Mapping[str, Any], path: Path) -> None:
    """Two panels: steps against PSNR of single draws and against sharpness; the yardsticks as lines across."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    labels = {"psnr": "PSNR of one draw in dB, range 1", "sharpness": "energy above Nyquist, truth = 1"}
    for axis, (key, label) in zip(axes, labels.items(), strict=True):
        for k, (sampler, points) in enumerate(report["curve"]["samplers"].items()):
            steps = sorted(points, key=int)
            axis.plot([int(s) for s in steps], [points[s][key] for s in steps], marker="osD"[k % 3], label=sampler)
        if key == "sharpness":
            axis.axhline(1, color="black", linewidth=0.8, linestyle="--", label="truth")
            axis.set_yscale("log")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("steps")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)
