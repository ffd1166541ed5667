"""Says what a run will take, before a pixel is read: bytes in and out, device hours, dollars."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from shapely import STRtree
from shapely.geometry import box

from eocube.net.storage_options import filesystem_for
from eocube.plan.packed import packed
from eocube.plan.plan import Plan, footprint
from eocube.plan.rates import Rate
from eocube.plan.rules import rules_of, short
from eocube.scenes.scene import BandSource, Scene
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


@dataclass(frozen=True, slots=True)
class ListedScene:
    """A scene as a plan lists it.

    `time` is the cube's time coordinate, the start of the datatake; `datetime` the item's own, which the store keeps
    in `item_datetimes`. `read_as` is the offset that is added to its numbers and what settled it ("-0.1 metadata").
    """

    id: str
    time: str
    datetime: str
    platform: str
    cloud_cover: float | None
    baseline: str | None
    read_as: str


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A plan in figures, as `eocube plan --json` begins: the fields' names and order are its keys'.

    `extent` is of boxes in degrees, `array_km` west to east and north to south, None of several zones together;
    `refused` has items with the reason, `rules` scene ids with theirs; `windows` counts every time step's.
    """

    zone: str
    epsg: int
    extent: tuple[tuple[float, ...], ...]
    array_km: tuple[float, float] | None
    requested_percent: float
    space_id: str
    storage: str
    plan: str
    times: int
    scenes: int
    refused: tuple[tuple[str, str], ...]
    rules: Mapping[str, str]
    units: int
    units_without_data: int
    windows: int
    latent_bytes_raw: int
    km2: float
    dates: Mapping[str, str]
    """What is read at each time step: its items, with their cloud cover where they say it."""
    scene_list: tuple[ListedScene, ...]
    """Every scene, in the order of the time steps."""


@dataclass(frozen=True, slots=True)
class PlannedWork:
    """What of a plan needs no look at the sources.

    `bytes_decoded` counts the source arrays as a receipt's `bytes_in` does, halos included; `bytes_out` the latents
    before compression. Windows that turn out empty or cloudy need less of both; windows where scenes overlap read more.
    """

    windows_with_scenes: int
    bytes_decoded: int
    bytes_out: int


@dataclass(frozen=True, slots=True)
class Cost(PlannedWork):
    """A plan's cost, as `eocube plan --json` ends: the fields' names and order are its keys'.

    `bytes_out` is what the store is expected to hold of latents, by sizes measured on others of the same weights and
    storage; `bytes_out_from` says which, or that there are none and they are counted before compression.
    `bytes_in` is what leaves the sources: of every asset the share of its footprint under the windows. It leaves out
    that whole compressed blocks are fetched, which counts where the ground is small. `device_hours` are those of one
    device (a GPU, or the CPUs of one machine) at `windows_per_s`; more devices take as many hours together. None where
    nothing is known.
    """

    bytes_out_from: str
    bytes_in: int
    asset_sizes_from: Mapping[str, int]
    device: str
    windows_per_s: float | None
    rate_from: str
    device_hours: float | None
    price_per_hour: float | None
    dollars: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a zone's plan comes to."""

    summary: PlanSummary
    cost: Cost

    def document(self) -> dict[str, Any]:
        """What `eocube plan --json` prints of it."""
        return {**asdict(self.summary), **asdict(self.cost)}


def touched(plan: Plan) -> tuple[int, dict[str, int]]:
    """How many windows any scene touches, over all times, and how many each scene does (its core, without halo)."""
    lattice = plan.grid.lattice
    tree = STRtree([box(*lattice.core_bounds(w)) for w in plan.grid.requested_windows()])
    by_scene = {s.id: np.asarray(tree.query(footprint(s, lattice.epsg), predicate="intersects")) for s in plan.scenes}
    total = 0
    for step in plan.times:
        total += int(np.unique(np.concatenate([by_scene[i] for i in step.scene_ids])).size)
    return total, {i: int(found.size) for i, found in by_scene.items()}


def work(plan: Plan) -> PlannedWork:
    """Windows with a scene, and bytes decoded and written."""
    lattice, sensor = plan.grid.lattice, plan.sensor
    windows, _ = touched(plan)
    itemsize = np.dtype(sensor.dtype).itemsize
    side = lattice.window_px * lattice.metres
    a_window = sum(
        len(members) * itemsize * ((side + 2 * lattice.margin(sampling)) / sampling) ** 2
        for sampling, members in sensor.groups(lattice.metres).items()
    )
    if any(s.mask is not None for s in plan.scenes):
        a_window += (lattice.core_px * lattice.metres / _MASK_SAMPLING) ** 2
    latents = lattice.core**2 * plan.product.unpacked_cell_bytes
    return PlannedWork(windows, round(windows * a_window), windows * latents)


def cost(plan: Plan, sizes: AssetSizes, rate: Rate | None, device: str, price: float | None) -> Cost:
    """The plan's cost at a rate and at `price` dollars an hour, where they are known."""
    found, size = work(plan), packed(plan)
    lattice = plan.grid.lattice
    core = float(lattice.core * lattice.cell) ** 2
    _, by_scene = touched(plan)
    share = {s.id: min(1.0, by_scene[s.id] * core / max(footprint(s, lattice.epsg).area, 1.0)) for s in plan.scenes}
    hours = None if rate is None else found.windows_with_scenes / rate.windows_per_s / 3600.0
    return Cost(
        windows_with_scenes=found.windows_with_scenes,
        bytes_decoded=found.bytes_decoded,
        bytes_out=round(found.windows_with_scenes * lattice.core**2 * size.bytes_a_cell),
        bytes_out_from=size.source,
        bytes_in=round(sum(size * share[scene] for (scene, _), size in sizes.bytes.items())),
        asset_sizes_from=dict(sizes.source),
        device=device,
        windows_per_s=None if rate is None else round(rate.windows_per_s, 3),
        rate_from="no benchmark of this model here: --calibrate 16 measures it" if rate is None else rate.source,
        device_hours=None if hours is None else round(hours, 4),
        price_per_hour=price,
        dollars=None if hours is None or price is None else round(hours * price, 2),
    )


def total(zones: Sequence[Forecast]) -> Forecast:
    """Several zones together: the sums of what adds up, None where a zone does not know; the rest is the first's."""
    first, summaries, costs = zones[0], [z.summary for z in zones], [z.cost for z in zones]
    summary = replace(
        first.summary,
        array_km=None,
        refused=(),
        rules={},
        dates={},
        scene_list=(),
        scenes=sum(s.scenes for s in summaries),
        units=sum(s.units for s in summaries),
        windows=sum(s.windows for s in summaries),
    )
    whole = replace(
        first.cost,
        windows_with_scenes=sum(c.windows_with_scenes for c in costs),
        bytes_in=sum(c.bytes_in for c in costs),
        bytes_decoded=sum(c.bytes_decoded for c in costs),
        bytes_out=sum(c.bytes_out for c in costs),
        device_hours=_sum(c.device_hours for c in costs),
        dollars=_sum(c.dollars for c in costs),
    )
    return Forecast(summary, whole)


def _sum(values: Iterable[float | None]) -> float | None:
    known = list(values)
    found = [value for value in known if value is not None]
    return sum(found) if len(found) == len(known) else None


def plan_summary(plan: Plan) -> PlanSummary:
    """The plan in figures, before a pixel is read."""
    units = list(plan.units())
    windows = sum(1 for _ in plan.grid.requested_windows())
    lattice = plan.grid.lattice
    height, width = plan.grid.shape
    cores = windows * len(plan.times)
    return PlanSummary(
        zone=plan.grid.name,
        epsg=lattice.epsg,
        extent=tuple(tuple(box) for box in plan.request.get("extent") or ()),
        array_km=(width * lattice.cell / 1000.0, height * lattice.cell / 1000.0),
        requested_percent=round(100.0 * windows / plan.grid.requested_mask.size, 2),
        space_id=plan.space_id,
        storage=plan.product.storage.name,
        plan=plan.hash,
        times=len(plan.times),
        scenes=len(plan.scenes),
        refused=plan.refused,
        rules=rules_of(plan),
        units=len(units),
        units_without_data=sum(u.empty for u in units),
        windows=cores,
        latent_bytes_raw=cores * lattice.core**2 * plan.product.unpacked_cell_bytes,
        km2=windows * (lattice.core * lattice.cell / 1000.0) ** 2,
        dates={step.time: ", ".join(map(_named, plan.scenes_at(k))) for k, step in enumerate(plan.times)},
        scene_list=tuple(
            ListedScene(s.id, step.time, s.datetime, s.platform, s.cloud_cover, s.baseline, short(s))
            for k, step in enumerate(plan.times)
            for s in plan.scenes_at(k)
        ),
    )


def _named(scene: Scene) -> str:
    cloud = "" if scene.cloud_cover is None else f" ({scene.cloud_cover:.0f} % cloud)"
    return f"{scene.id}{cloud}"


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
