"""Tells how large a plan's assets are: as the catalogue says, else as a sample of them says, else by their pixels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem

from eocube.net.storage_options import filesystem_for
from eocube.plan.plan import Plan, footprint
from eocube.scenes.scene import BandSource
from eocube.scenes.search import sign

SAMPLE = 8
"""Scenes whose assets are asked for their size where the catalogue does not give it."""
_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class AssetSizes:
    """Bytes by (scene id, asset key), and from where: counts of "catalogue", "asked", "like others", "uncompressed"."""

    bytes: Mapping[tuple[str, str], float]
    source: Mapping[str, int]


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
