"""Measures the quality of a stored cube on a sample of its windows, decoded, against sources read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eocube.cube.accessor import open as open_cube
from eocube.errors import InputError
from eocube.ground.grid import Window
from eocube.net.storage_options import scoped
from eocube.plan.plan import Plan
from eocube.products.identity import digest
from eocube.products.scores import DATA_RANGE, psnr, rmse, sam
from eocube.report.source_pixels import read_windows
from eocube.store.receipts import State
from model.pixels import PixelPipeline

SAMPLE = 64
"""Windows of a time step that are compared, at most, unless asked otherwise."""


def fidelity(
    plan: Plan,
    url: str,
    *,
    sample: int | None = SAMPLE,
    storage_options: Mapping[str, Any] | None = None,
    allow_local: bool = False,
) -> dict[str, dict[str, float]]:
    """PSNR (range 1 for reflectance, 40 dB for backscatter), RMSE and SAM of the decoded cube by time step.

    Sources are read again by the plan; pixels that either lacks are left out. Of more than `sample` ok windows of a
    time step, that many drawn by their place; None takes all.
    `allow_local` lets the plan of a cube from elsewhere lead to files of this machine.
    """
    if not plan.product.decodes:
        raise InputError(
            f"{plan.product.array} cubes ({plan.product.kind}) are not decoded: there is nothing to compare"
        )
    truth = truth_pixels(plan)
    ds = open_cube(url, storage_options=None if storage_options is None else dict(storage_options))
    sources = scoped(storage_options, url, trusted=allow_local)
    decoded = ds.eocube.decode()
    scores: dict[str, dict[str, float]] = {}
    for k, step in enumerate(plan.times):
        windows = chosen_windows(plan, ds["status"].isel(time=k).values, sample)
        pairs = []
        for source in read_windows(plan, truth, k, windows, storage_options=sources):
            image = decoded.isel(time=k).sel(x=source.x, y=source.y, method="nearest", tolerance=1e-3).compute()
            both = np.isfinite(image.values).all(0) & np.isfinite(source.values).all(0)
            if both.any():
                pairs.append((source.values[:, both], image.values[:, both]))
        if not pairs:
            continue
        a, b = (np.concatenate(parts, axis=1) for parts in zip(*pairs, strict=True))
        entry = {
            "windows": float(len(pairs)),
            "pixels": float(a.shape[1]),
            "psnr": float(psnr(a, b, data_range=DATA_RANGE[plan.sensor.unit])),
            "rmse": float(rmse(a, b)),
        }
        if plan.sensor.unit == "reflectance":
            entry["sam"] = float(sam(a, b))
        scores[step.time] = entry
    return scores


def chosen_windows(plan: Plan, status: npt.NDArray[np.uint8], sample: int | None) -> Sequence[Window]:
    """The ok windows of a time step, or `sample` of them, the same ones every time."""
    ok = [plan.grid.window_at(int(r), int(c)) for r, c in zip(*np.nonzero(status == State.OK), strict=True)]
    if sample is None or len(ok) <= sample:
        return ok
    return sorted(sorted(ok, key=lambda w: digest([w.row, w.col]))[:sample])


def truth_pixels(plan: Plan) -> PixelPipeline:
    """What brings the plan's source pixels to one sampling in physical units, as its encoder does; needs no weights."""
    lattice = plan.grid.lattice
    return PixelPipeline(plan.sensor, lattice.resolution, lattice.window_px, torch.device("cpu"))
