"""Says what a cube is: info, status, verification and pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eocube.console import plain_all
from eocube.cube.opening import open as open_cube
from eocube.errors import StoreError
from eocube.ground.boxes import BBox
from eocube.net.storage_options import scoped
from eocube.plan.plan import Plan, in_order, stored_extent
from eocube.plan.rules import counted, rules_of
from eocube.report.fidelity import SAMPLE, Fidelity, fidelity, truth_pixels
from eocube.report.history import History
from eocube.report.source_pixels import read_source
from eocube.store.existing import zoned
from eocube.store.receipts import Receipt, State
from eocube.store.seams import Seams
from eocube.store.store import CubeStore
from eocube.store.survey import survey
from eocube.store.tables import Failure, Totals
from eocube.store.verify import STRAY, told_otherwise

__all__ = [
    "Info", "Status", "Verified", "brief", "cube_url", "describe", "fidelity", "info", "plan_of", "quicklook", "status",
    "truth_pixels", "verify",
]  # fmt: skip

LISTED = 20
"""Scenes whose rules are printed at most."""

Options = Mapping[str, Any] | None
"""fsspec options of a cube, by its own store's place of its sources too; None takes the environment's."""


@dataclass(frozen=True, slots=True)
class Info:
    """What a cube is. `eocube info --json` has these fields in this order, by their names but for the array's.

    `pixel_m` is the side of a pixel of the product's `array`; `bbox` and `extent` are in degrees; `rules` are by scene
    id and say by which rule its numbers are read, `read_as` how many by which; `too_dark` counts windows by item.
    """

    url: str
    sensor: str
    bands: tuple[str, ...]
    unit: str
    epsg: int
    resolution_m: float
    product: str
    array: str
    pixel_m: int
    window_px: int
    halo_px: int
    bbox: tuple[float, ...]
    extent: tuple[BBox, ...]
    array_shape: tuple[int, ...]
    requested_percent: float
    times: tuple[str, ...]
    scenes: int
    read_as: Mapping[str, int]
    rules: Mapping[str, str]
    weights: str
    weights_sha256: str
    precision: str
    storage: str
    space_id: str
    plan: str
    histogram: Mapping[str, Any] | None
    too_dark: Mapping[str, int]

    def document(self) -> dict[str, Any]:
        """What is printed: the array's name goes into its pixels' key, and what has no histogram does not name one."""
        left_out = {"array"} if self.histogram is not None else {"array", "histogram"}
        found = {name: value for name, value in asdict(self).items() if name not in left_out}
        return {f"{self.array}_{name}" if name == "pixel_m" else name: value for name, value in found.items()}


@dataclass(frozen=True, slots=True)
class Status:
    """How a cube's windows ended. `eocube status --json` has these fields in this order, by their names.

    `windows` counts by the states' labels, `failures` and `below_floor` by what is said of them, `too_dark` by item;
    `rate` is that of the last run, in windows a second of its wall time, `eta_seconds` what is left at that rate.
    """

    url: str
    times: int
    time_order: str
    windows: Mapping[str, int]
    percent_done: float
    rate: float | None
    eta_seconds: int | None
    bytes_in: int
    bytes_out: int
    failures: Mapping[str, int]
    below_floor: Mapping[str, int]
    too_dark: Mapping[str, int]
    refused: Mapping[str, str]
    psnr: float | None
    sam: float | None
    scored_windows: int
    seams: Seams
    retryable: bool
    to_do: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """What is printed: the seams as ratios."""
        return {**asdict(self), "seams": self.seams.figures()}


@dataclass(frozen=True, slots=True)
class Verified:
    """What is wrong with a cube, how many windows nobody attempted, and which command would mend it.

    `decoded` is by time step, with its zone where there are several; None where nothing was to be decoded.
    """

    url: str
    findings: tuple[str, ...]
    not_attempted: int
    mend: str | None = None
    decoded: Mapping[str, Fidelity] | None = None

    def document(self) -> dict[str, Any]:
        """What `eocube verify --json` prints."""
        found: dict[str, Any] = {"url": self.url, "findings": self.findings, "not_attempted": self.not_attempted}
        if self.mend is not None:
            found["mend"] = self.mend
        if self.decoded is not None:
            found["decoded"] = {step: scores.document() for step, scores in self.decoded.items()}
        return found


def cube_url(url: str, group: str | None) -> str:
    """The URL of one zone's cube. StoreError for a group that is no zone's name."""
    if group is not None and re.fullmatch(r"\w+", group) is None:
        raise StoreError(f"group {group!r} is no zone's name, such as utm32")
    return url if group is None else f"{url.rstrip('/')}/{group}"


def plan_of(url: str, group: str | None, storage_options: Options = None) -> Plan:
    """The frozen plan of a cube. StoreError when there is none, or several zones and none named."""
    texts = CubeStore.stored_plans(cube_url(url, group), storage_options=storage_options)
    if not texts:
        raise StoreError(f"{url}: no eocube cube is there")
    plans = [Plan.from_json(text) for text in texts]
    if zoned(cube_url(url, group), plans, storage_options):
        names = ", ".join(plan.grid.name for plan in plans)
        raise StoreError(f"{url} holds one cube a zone: add --group with one of {names}")
    return plans[0]


def groups_of(url: str, group: str | None, storage_options: Options = None) -> list[str | None]:
    """The groups to look at: the one named, else every zone's, or None alone where the cube lies at the root."""
    if group is not None:
        return [group]
    plans = [Plan.from_json(text) for text in CubeStore.stored_plans(url, storage_options=storage_options)]
    return [plan.grid.name for plan in plans] if plans and zoned(url, plans, storage_options) else [None]


def info(url: str, group: str | None = None, storage_options: Options = None) -> Info:
    """Sensor, ground, times, weights and space id of a cube, and by which rule each scene's numbers were read."""
    plan = plan_of(url, group, storage_options)
    store = CubeStore.open(cube_url(url, group), storage_options=storage_options)
    lattice, rules = plan.grid.lattice, rules_of(plan)
    return Info(
        url=cube_url(url, group),
        sensor=plan.sensor.name,
        bands=tuple(plan.sensor.band_names),
        unit=plan.sensor.unit,
        epsg=lattice.epsg,
        resolution_m=lattice.resolution,
        product=plan.product.kind,
        array=plan.product.array,
        pixel_m=lattice.cell,
        window_px=lattice.window_px,
        halo_px=lattice.halo_px,
        bbox=tuple(round(v, 5) for v in plan.grid.lonlat_bounds_with_halo()),
        extent=stored_extent([plan]),
        array_shape=(len(plan.times), plan.product.channels, *plan.grid.shape),
        requested_percent=round(100.0 * float(plan.grid.requested_mask.mean()), 2),
        times=tuple(t.time for t in plan.times),
        scenes=len(plan.scenes),
        read_as=counted(rules),
        rules=rules,
        weights=plan.product.network,
        weights_sha256=plan.product.weights_sha256,
        precision=plan.product.precision,
        storage=plan.product.storage.name,
        space_id=plan.space_id,
        plan=plan.hash,
        histogram=store.document.get("histogram"),
        too_dark=store.log.latest().dark(),
    )


def status(url: str, group: str | None = None, storage_options: Options = None) -> Status:
    """Windows by state and reason, how far the work is and how fast it goes, and what can be tried again, and how."""
    plan = plan_of(url, group, storage_options)
    store = CubeStore.open(cube_url(url, group), storage_options=storage_options)
    latest = store.log.latest()
    totals, breaches = Totals(store.requested), Counter[str]()

    def counted() -> Iterator[Receipt]:
        for receipt in latest:
            totals.add(receipt)
            breaches.update(w.reason for w in receipt.windows if w.state is State.OK and w.reason is not None)
            yield receipt

    run = History.of(counted()).last
    summary = totals.summary(len(plan.times))
    counts = {State(s).label: int(n) for s, n in summary.counts.items()}
    left = counts["not_attempted"]
    attempted = sum(n for name, n in counts.items() if name not in ("outside", "not_attempted"))
    retry = [f"--retry {s.label}" for s in (State.READ_FAILED, State.ENCODE_FAILED) if counts[s.label]]
    return Status(
        url=cube_url(url, group),
        times=len(plan.times),
        time_order=in_order(plan.disorder),
        windows=counts,
        percent_done=round(100.0 * attempted / (attempted + left), 2) if attempted + left else 100.0,
        rate=None if run is None else round(run.rate, 3),
        eta_seconds=None if run is None or not run.windows else round(left / run.rate),
        bytes_in=summary.bytes_in,
        bytes_out=summary.bytes_out,
        failures={_failure(f): f.windows for f in summary.failures},
        below_floor=dict(breaches.most_common()),
        too_dark=dict(summary.dark),
        refused=dict(plan.refused),
        psnr=summary.scores.psnr,
        sam=summary.scores.sam,
        scored_windows=summary.scores.windows,
        seams=summary.seams,
        retryable=summary.retryable > 0,
        to_do=(*(["the same command, for windows not attempted"] if left else []), *retry),
    )


def _failure(failure: Failure) -> str:
    return f"{failure.item or '?'} {failure.asset or ''}: {failure.reason}"


def verify(
    url: str,
    group: str | None = None,
    storage_options: Options = None,
    *,
    decode: bool = False,
    sample: int | None = SAMPLE,
    allow_local: bool = False,
) -> Verified:
    """Read every object back; with `decode` also compare a sample of each time step's pixels with its sources.

    Every zone of a cube of several, unless `group` names one. `allow_local` lets the plan of a cube from elsewhere lead
    to files of this machine.
    """
    damage = survey(url, storage_options, group)
    findings = [f"{path}: {what}" for path, what in damage]
    unfinished, decoded = 0, dict[str, Fidelity]()
    zones = groups_of(url, group, storage_options) if not damage or decode else []
    for zone in zones:
        plan, place = plan_of(url, zone, storage_options), cube_url(url, zone)
        findings += [
            f"commits/plan.json: several items are called {name!r}, and their dates hold the pixels of one"
            for name in plan.doubled
        ]
        if not damage:
            store = CubeStore.open(place, storage_options=storage_options, check=False)
            prefix = "" if zone is None else f"{zone}/"
            findings += [f"{prefix}commits: {unit} {what}" for unit, what in told_otherwise(plan, store.log.latest())]
            unfinished += store.status_counts()[State.NOT_ATTEMPTED]
        if decode:
            scores = fidelity(plan, place, sample=sample, storage_options=storage_options, allow_local=allow_local)
            decoded.update({k if len(zones) == 1 else f"{zone} {k}": v for k, v in scores.items()})
    mend = f"eocube repair {url}" if any(STRAY not in what for _, what in damage) else None
    return Verified(cube_url(url, group), tuple(findings), unfinished, mend, decoded if decode else None)


def quicklook(
    url: str,
    group: str | None,
    out: Path,
    time: int = 0,
    storage_options: Options = None,
    *,
    source: bool = True,
    allow_local: bool = False,
) -> str:
    """Draw a time step of a cube into a PNG. Returns its path."""
    plan = plan_of(url, group, storage_options)
    if not 0 <= time < len(plan.times):
        raise StoreError(f"time step {time}: {url} has 0 to {len(plan.times) - 1}")
    options = scoped(storage_options, url, trusted=allow_local)
    pixels = read_source(plan, truth_pixels(plan), time, storage_options=options) if source else None
    ds = open_cube(cube_url(url, group), storage_options=None if storage_options is None else dict(storage_options))
    return str(ds.eocube.quicklook(str(out), time=time, source=pixels))


def brief(found: Info) -> Info:
    """With the rules of a few scenes only, for people."""
    left = len(found.rules) - LISTED
    shown = dict(list(found.rules.items())[:LISTED])
    return replace(found, rules={**shown, **({f"and {left} more": "eocube info --json"} if left > 0 else {})})


def describe(document: Mapping[str, Any], indent: str = "") -> str:
    """A document as aligned lines for people."""
    # Padded by hand: a table of rich folds long values at the terminal's width; these lines are searched and copied.
    document = plain_all(document)
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
