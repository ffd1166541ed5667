"""What a cube says of itself: info, status, verification and pictures, as plain documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import eocube
from eocube.commits import State
from eocube.errors import StoreError
from eocube.plan import Plan
from eocube.quality import DATA_RANGE, psnr, rmse, sam
from eocube.source import read_source
from eocube.store import LatentStore
from model.pixels import PixelPipeline


def cube_url(url: str, group: str | None) -> str:
    """The URL of one zone's cube."""
    return url if group is None else f"{url.rstrip('/')}/{group}"


def plan_of(url: str, group: str | None) -> Plan:
    """The frozen plan of a cube. StoreError when there is none, or several zones and none named."""
    texts = LatentStore.stored_plans(cube_url(url, group))
    if not texts:
        raise StoreError(f"{url}: no eocube cube is there")
    if len(texts) > 1:
        names = ", ".join(Plan.from_json(t).grid.name for t in texts)
        raise StoreError(f"{url} holds several zones: add --group with one of {names}")
    return Plan.from_json(texts[0])


def info(url: str, group: str | None = None) -> dict[str, Any]:
    """Sensor, ground, times, weights and space id of a cube."""
    plan = plan_of(url, group)
    lattice = plan.grid.lattice
    west, south, east, north = plan.grid.lonlat_bounds_with_halo()
    return {
        "url": cube_url(url, group),
        "sensor": plan.sensor.name,
        "bands": list(plan.sensor.band_names),
        "unit": plan.sensor.unit,
        "epsg": lattice.epsg,
        "resolution_m": lattice.resolution,
        "latent_pixel_m": lattice.cell,
        "window_px": lattice.window_px,
        "halo_px": lattice.halo_px,
        "bbox": [round(v, 5) for v in (west, south, east, north)],
        "array_shape": [len(plan.times), plan.channels, *plan.grid.shape],
        "times": [t.time for t in plan.times],
        "scenes": len(plan.scenes),
        "weights": plan.encoding.weights_name,
        "weights_sha256": plan.encoding.sha256,
        "precision": plan.encoding.precision,
        "storage": plan.encoding.storage,
        "space_id": plan.space_id,
        "plan": plan.hash,
    }


def status(url: str, group: str | None = None) -> dict[str, Any]:
    """Windows by state, what failed and why, and whether something can be tried again."""
    plan = plan_of(url, group)
    store = LatentStore.open(cube_url(url, group))
    counts = {State(s).label: int(n) for s, n in store.status_counts().items()}
    reasons: Counter[str] = Counter()
    for receipt in store.receipts():
        for window in receipt.windows:
            if window.state.retryable:
                reasons[f"{window.item or '?'} {window.asset or ''}: {window.reason}"] += 1
    attempted = sum(n for name, n in counts.items() if name not in ("outside", "not_attempted"))
    wanted = attempted + counts.get("not_attempted", 0)
    scores = store.scores()
    return {
        "url": cube_url(url, group),
        "times": len(plan.times),
        "windows": counts,
        "percent_done": round(100.0 * attempted / wanted, 2) if wanted else 100.0,
        "failures": dict(reasons.most_common()),
        "refused": {i: why for i, why in plan.refused},
        "psnr": scores.psnr,
        "sam": scores.sam,
        "scored_windows": scores.windows,
        "retryable": any(n and State.named(name).retryable for name, n in counts.items()),
    }


def verify(url: str, group: str | None = None, *, decode: bool = False) -> dict[str, Any]:
    """Read every shard back; with `decode` also compare each time step's decoded pixels with its sources."""
    plan = plan_of(url, group)
    store = LatentStore.open(cube_url(url, group))
    found: dict[str, Any] = {
        "url": cube_url(url, group),
        "findings": [f"{path}: {what}" for path, what in store.verify()],
    }
    if decode:
        found["decoded"] = fidelity(plan, cube_url(url, group))
    return found


def fidelity(plan: Plan, url: str) -> dict[str, dict[str, float]]:
    """PSNR (range 1 for reflectance, 40 dB for backscatter), RMSE and SAM of the decoded cube by time step.

    Sources are read again by the plan; pixels that either lacks are left out.
    """
    truth = truth_pixels(plan)
    ds = eocube.open(url)
    decoded = ds.eocube.decode()
    scores: dict[str, dict[str, float]] = {}
    for k, step in enumerate(plan.times):
        source = read_source(plan, truth, k)
        image = decoded.isel(time=k).compute()
        source = source.sel(x=image.x, y=image.y, method="nearest", tolerance=1e-3)
        both = np.isfinite(image.values).all(0) & np.isfinite(source.values).all(0)
        if not both.any():
            continue
        a, b = source.values[:, both], image.values[:, both]
        entry = {
            "pixels": float(both.sum()),
            "psnr": float(psnr(a, b, data_range=DATA_RANGE[plan.sensor.unit])),
            "rmse": float(rmse(a, b)),
        }
        if plan.sensor.unit == "reflectance":
            entry["sam"] = float(sam(a, b))
        scores[step.time] = entry
    return scores


def truth_pixels(plan: Plan) -> PixelPipeline:
    """What brings the plan's source pixels to one sampling in physical units, as its encoder does; needs no weights."""
    lattice = plan.grid.lattice
    return PixelPipeline(plan.sensor, lattice.resolution, lattice.window_px, torch.device("cpu"))


def quicklook(url: str, group: str | None, out: Path, time: int = 0, *, source: bool = True) -> str:
    """Draw a time step of a cube into a PNG. Returns its path."""
    plan = plan_of(url, group)
    if not 0 <= time < len(plan.times):
        raise StoreError(f"time step {time}: {url} has 0 to {len(plan.times) - 1}")
    pixels = read_source(plan, truth_pixels(plan), time) if source else None
    return str(eocube.open(cube_url(url, group)).eocube.quicklook(str(out), time=time, source=pixels))


def describe(document: Mapping[str, Any], indent: str = "") -> str:
    """A document as aligned lines for people."""
    lines: list[str] = []
    width = max((len(k) for k in document), default=0)
    for key, value in document.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{key}" + ("" if value else ": none"))
            if value:
                lines.append(describe(value, indent + "  "))
        elif isinstance(value, list):
            shown = ", ".join(str(v) for v in value) if value else "none"
            lines.append(f"{indent}{key:<{width}}  {shown}")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"{indent}{key:<{width}}  {shown}")
    return "\n".join(lines)
