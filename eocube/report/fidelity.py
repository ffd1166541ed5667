"""Measures the quality of a stored cube on a sample of its windows, decoded, against sources read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eocube.cube.opening import open as open_cube
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


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How near the decoded pixels of a time step are to their sources, and of how many windows and pixels that is.

    `psnr` is in dB (range 1 for reflectance, 40 dB for backscatter), `sam` in radians, None of backscatter.
    """

    windows: float
    pixels: float
    psnr: float
    rmse: float
    sam: float | None = None

    def document(self) -> dict[str, float]:
        """What `eocube verify --decode --json` prints of it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def fidelity(
    plan: Plan,
    url: str,
    *,
    sample: int | None = SAMPLE,
    storage_options: Mapping[str, Any] | None = None,
    allow_local: bool = False,
) -> dict[str, Fidelity]:
    """PSNR, RMSE and SAM of the decoded cube by time step.

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
    scores: dict[str, Fidelity] = {}
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
        scores[step.time] = Fidelity(
            windows=float(len(pairs)),
            pixels=float(a.shape[1]),
            psnr=float(psnr(a, b, data_range=DATA_RANGE[plan.sensor.unit])),
            rmse=float(rmse(a, b)),
            sam=float(sam(a, b)) if plan.sensor.unit == "reflectance" else None,
        )
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
    return PixelPipeline(plan.sensor, lattice.metres, lattice.window_px, torch.device("cpu"))
