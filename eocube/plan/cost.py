"""Says what a run will take, before a pixel is read: bytes in and out, device hours, dollars."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from shapely import STRtree
from shapely.geometry import box

from eocube.net.storage_options import filesystem_for
from eocube.plan.plan import Plan, footprint
from eocube.plan.rates import Rate
from eocube.plan.rules import rules_of
from eocube.scenes.scene import BandSource
from eocube.scenes.search import sign

SAMPLE = 8
"""Scenes whose assets are asked for their size where the catalogue does not give it."""
_AT_ONCE = 8
_MASK_SAMPLING = 20


@dataclass(frozen=True, slots=True)
class AssetSizes:
    """Bytes by (scene id, asset key), and from where: counts of "catalogue", "asked", "like others", "uncompressed"."""

    bytes: Mapping[tuple[str, str], float]
    source: Mapping[str, int]


def touched(plan: Plan) -> tuple[int, dict[str, int]]:
    """How many windows any scene touches, over all times, and how many each scene does (its core, without halo)."""
    lattice = plan.grid.lattice
    tree = STRtree([box(*lattice.core_bounds(w)) for w in plan.grid.requested_windows()])
    by_scene = {s.id: np.asarray(tree.query(footprint(s, lattice.epsg), predicate="intersects")) for s in plan.scenes}
    total = 0
    for step in plan.times:
        total += int(np.unique(np.concatenate([by_scene[i] for i in step.scene_ids])).size)
    return total, {i: int(found.size) for i, found in by_scene.items()}


def work(plan: Plan) -> dict[str, Any]:
    """What of the plan needs no look at the sources: windows, bytes decoded and written.

    `bytes_decoded` counts the source arrays as a receipt's `bytes_in` does, halos included; `bytes_out` the latents
    before compression, which takes some percent off half floats and more off codes. Windows that turn out empty or
    cloudy need less of both; windows where scenes overlap read more.
    """
    lattice, sensor = plan.grid.lattice, plan.sensor
    windows, _ = touched(plan)
    itemsize = np.dtype(sensor.dtype).itemsize
    side = lattice.window_px * lattice.resolution
    a_window = sum(
        len(members) * itemsize * ((side + 2 * lattice.margin(sampling)) / sampling) ** 2
        for sampling, members in sensor.groups(lattice.resolution).items()
    )
    if any(s.mask is not None for s in plan.scenes):
        a_window += (lattice.core_px * lattice.resolution / _MASK_SAMPLING) ** 2
    latents = lattice.core**2 * plan.product.channels * np.dtype(plan.product.storage.dtype).itemsize
    return {
        "windows_with_scenes": windows,
        "bytes_decoded": round(windows * a_window),
        "bytes_out": windows * latents,
    }


def cost(plan: Plan, sizes: AssetSizes, rate: Rate | None, device: str, price: float | None) -> dict[str, Any]:
    """The plan's cost in figures.

    `bytes_in` is what leaves the sources: of every asset the share of its footprint under the windows. It leaves out
    that whole compressed blocks are fetched, which counts where the ground is small. `device_hours` are those of one
    device (a GPU, or the CPUs of one machine) at `rate`; more devices take as many hours together. None where nothing
    is known.
    """
    found = work(plan)
    lattice = plan.grid.lattice
    core = float(lattice.core * lattice.cell) ** 2
    _, by_scene = touched(plan)
    share = {s.id: min(1.0, by_scene[s.id] * core / max(footprint(s, lattice.epsg).area, 1.0)) for s in plan.scenes}
    hours = None if rate is None else found["windows_with_scenes"] / rate.windows_per_s / 3600.0
    return {
        **found,
        "bytes_in": round(sum(size * share[scene] for (scene, _), size in sizes.bytes.items())),
        "asset_sizes_from": dict(sizes.source),
        "device": device,
        "windows_per_s": None if rate is None else round(rate.windows_per_s, 3),
        "rate_from": "no benchmark of this model here: --calibrate 16 measures it" if rate is None else rate.source,
        "device_hours": None if hours is None else round(hours, 4),
        "price_per_hour": price,
        "dollars": None if hours is None or price is None else round(hours * price, 2),
    }


def total(documents: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The sums over several zones of what adds up; None where a zone does not know."""
    names = (
        "scenes", "units", "windows", "windows_with_scenes", "bytes_in", "bytes_decoded", "bytes_out", "device_hours",
        "dollars",
    )  # fmt: skip
    return {n: None if any(d[n] is None for d in documents) else sum(d[n] for d in documents) for n in names}


def plan_summary(plan: Plan) -> dict[str, Any]:
    """The plan in figures, before a pixel is read."""
    units = list(plan.units())
    windows = sum(1 for _ in plan.grid.requested_windows())
    lattice = plan.grid.lattice
    cores = windows * len(plan.times)
    return {
        "zone": plan.grid.name,
        "epsg": lattice.epsg,
        "extent": [list(box) for box in plan.request.get("extent") or ()],
        "array_km": [side * lattice.cell / 1000.0 for side in reversed(plan.grid.shape)],
        "requested_percent": round(100.0 * windows / plan.grid.requested_mask.size, 2),
        "space_id": plan.space_id,
        "plan": plan.hash,
        "times": len(plan.times),
        "scenes": len(plan.scenes),
        "refused": [list(r) for r in plan.refused],
        "rules": rules_of(plan),
        "units": len(units),
        "units_without_data": sum(u.empty for u in units),
        "windows": cores,
        "latent_bytes_raw": cores
        * lattice.core**2
        * plan.product.channels
        * np.dtype(plan.product.storage.dtype).itemsize,
        "km2": windows * (lattice.core * lattice.cell / 1000.0) ** 2,
    }


def asset_sizes(plan: Plan, storage_options: Mapping[str, Any] | None = None) -> AssetSizes:
    """The size of every asset that the plan reads.

    `file:size` of the catalogue counts first. Of what is left the assets of `SAMPLE` scenes spread over the plan are
    asked (HEAD or stat); assets of the same band count like their mean. What is left counts uncompressed: every pixel
    under the footprint in the sensor's type, which is an upper bound.
    """
    known: dict[tuple[str, str], float] = {}
    origin: Counter[str] = Counter()
    bands: dict[tuple[str, str], str] = {}
    unknown: dict[tuple[str, str], tuple[BandSource, str | None]] = {}
    for scene in plan.scenes:
        for source in (*scene.sources, *([scene.mask] if scene.mask is not None else [])):
            key = (scene.id, source.key)
            bands[key] = source.band
            if source.size is not None:
                if key not in known:
                    origin["catalogue"] += 1
                known[key] = float(source.size)
            else:
                unknown[key] = (source, scene.signer)
    if unknown:
        lacking = sorted({scene for scene, _ in unknown})
        chosen = {lacking[int(k)] for k in np.linspace(0, len(lacking) - 1, min(SAMPLE, len(lacking))).round()}
        sampled = [(key, *unknown[key]) for key in unknown if key[0] in chosen]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            sizes = pool.map(lambda entry: _ask(entry[1], entry[2], storage_options), sampled)
            for (key, _, _), size in zip(sampled, sizes, strict=True):
                if size is not None:
                    known[key] = size
                    origin["asked"] += 1
    by_band: dict[str, list[float]] = defaultdict(list)
    for key, size in known.items():
        by_band[bands[key]].append(size)
    itemsize = np.dtype(plan.sensor.dtype).itemsize
    gsd = {b.name: b.gsd for b in plan.sensor.bands}
    for key, (source, _) in unknown.items():
        if key in known:
            continue
        if by_band[source.band]:
            known[key] = float(np.mean(by_band[source.band]))
            origin["like others"] += 1
        else:
            area = footprint(plan.by_id[key[0]], plan.grid.lattice.epsg).area
            known[key] = area / gsd.get(source.band, 20) ** 2 * (itemsize if source.band in gsd else 1)
            origin["uncompressed"] += 1
    return AssetSizes(known, dict(origin))


def _ask(source: BandSource, signer: str | None, storage_options: Mapping[str, Any] | None) -> float | None:
    """The bytes of one asset as its server or file system says; None when it does not."""
    try:
        fs, path = filesystem_for(source.href, storage_options)
        if not isinstance(fs, LocalFileSystem):
            fs, path = filesystem_for(sign(source.href, signer), storage_options)
        size = fs.info(path).get("size")
    except Exception:  # whatever a backend raises: an estimate goes on without this asset
        return None
    return None if size is None else float(size)
