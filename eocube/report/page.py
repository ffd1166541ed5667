"""Writes the run's report: one self-contained HTML page on how a cube's windows ended and how good they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from rich.filesize import decimal

from eocube.cube.components import basis_of
from eocube.cube.opening import open as open_cube
from eocube.cube.quicklook import STATE_COLOURS
from eocube.errors import InputError
from eocube.net.redaction import redacted
from eocube.net.storage_options import scoped
from eocube.plan.cost import PlannedWork, PlanSummary, plan_summary, work
from eocube.plan.plan import Plan
from eocube.plan.rules import NOT_RECORDED, in_words
from eocube.products.scores import DATA_RANGE
from eocube.read.plausible import dark_line
from eocube.report.figures import Chart, Ground, Picture, ground_pictures, histogram, over_time, states_picture
from eocube.report.history import History, Run
from eocube.report.info import Status, cube_url, groups_of, plan_of, status
from eocube.scenes.scene import Scene
from eocube.store.receipts import Receipt, State
from eocube.store.root import versions
from eocube.store.seams import KINDS
from eocube.store.store import CubeStore

MAPS, GROUNDS = 24, 4
"""Time steps whose window map, and whose decoded ground, the page shows at most; the first, the last and between."""
SCENES = 200
"""Scenes listed at most."""
_BINS = 48
DASH = "\N{EN DASH}"

Row = tuple[str, str, str]
"""A figure's name, its key in the page (`data-name`), and its value."""


@dataclass(frozen=True, slots=True)
class CubePage:
    """What the template shows of one cube.

    `figures` is JSON; `states` are (label, colour, windows), `plan_rows` (what, planned, key, happened, share),
    `failures` (reason, windows), `scenes` each with its rule and the reason, `provenance` names with values.
    """

    title: str
    url: str
    figures: Markup
    headline: tuple[Row, ...]
    states: tuple[tuple[str, str, int], ...]
    maps: tuple[Picture, ...]
    times: int
    grounds: tuple[Ground, ...]
    charts: tuple[Chart, ...]
    plan_rows: tuple[tuple[str, str, str, str, str], ...]
    quality_rows: tuple[Row, ...]
    failures: tuple[tuple[str, int], ...]
    runs: tuple[Run, ...]
    scenes: tuple[tuple[Scene, str, str], ...]
    scenes_left: int
    provenance: tuple[tuple[str, str], ...]
    to_do: tuple[str, ...]


def write_page(
    url: str,
    out: str | Path,
    *,
    group: str | None = None,
    source: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    allow_local: bool = False,
) -> str:
    """Write the page; returns its path.

    Args:
        url: the cube, path or URL.
        out: the file.
        group: a zone of a cube of several; None takes them all.
        source: read the sources again, to draw them beside what is decoded.
        storage_options: fsspec options of the cube, and of its sources by the rules of `storage_options.scoped`.
        allow_local: let the plan of a cube from elsewhere lead to files of this machine.

    Raises:
        StoreError: no cube there. InputError: the page cannot be written.
    """
    zones = groups_of(url, group, storage_options)
    cubes = [describe_cube(url, zone, storage_options, source=source, allow_local=allow_local) for zone in zones]
    html = _template().render(cubes=cubes, versions=versions())
    try:
        Path(out).write_text(html, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{out}: the page cannot be written ({error.strerror})") from error
    return str(out)


def describe_cube(
    url: str, group: str | None, storage_options: Mapping[str, Any] | None, *, source: bool, allow_local: bool = False
) -> CubePage:
    """What the template shows of one cube: figures, tables, charts and pictures."""
    place = cube_url(url, group)
    plan, store = plan_of(url, group, storage_options), CubeStore.open(place, storage_options=storage_options)
    latest = store.log.latest()
    history, found = History.of(latest), status(url, group, storage_options)
    asked, planned = plan_summary(plan), work(plan)
    ds = open_cube(place, None if storage_options is None else dict(storage_options))
    states, requested = ds["status"].values, store.requested
    shown = spread(len(plan.times), MAPS)
    full = [t for t in range(len(plan.times)) if (states[t] == State.OK).any()]
    sources = scoped(storage_options, url, trusted=allow_local)
    basis = basis_of(ds) if plan.product.decodes else None
    grounds = (
        Ground(plan.times[t].time, ground_pictures(ds, plan, t, basis, source=source, source_options=sources))
        for t in (full[k] for k in spread(len(full), GROUNDS))
        if basis is not None
    )
    return CubePage(
        title=f"{plan.sensor.name}, {plan.grid.name}",
        url=redacted(place),
        figures=Markup(json.dumps(_figures(found, asked, planned)).replace("<", "\\u003c")),
        headline=tuple(_headline(found, asked)),
        states=tuple((label, STATE_COLOURS[State.named(label)], count) for label, count in found.windows.items()),
        maps=tuple(states_picture(states[t], requested, plan.times[t].time) for t in shown),
        times=len(plan.times),
        grounds=tuple(ground for ground in grounds if ground.pictures),
        charts=tuple(_charts(ds, latest, history)),
        plan_rows=tuple(_plan_rows(found, asked, planned, store.summarise(latest).seconds)),
        quality_rows=tuple(_quality_rows(found, plan)),
        failures=(*found.failures.items(), *found.below_floor.items(), *_dark(found)),
        runs=history.runs,
        scenes=tuple((scene, *_rule_and_why(plan, scene)) for scene in plan.scenes[:SCENES]),
        scenes_left=max(0, len(plan.scenes) - SCENES),
        provenance=(*_provenance(plan, store.document), _rules_in(latest)),
        to_do=found.to_do,
    )


def _rule_and_why(plan: Plan, scene: Scene) -> tuple[str, str]:
    rule, _, why = in_words(plan, scene).partition(": ")
    return rule, why


def _dark(found: Status) -> Iterator[tuple[str, int]]:
    for item, windows in found.too_dark.items():
        yield dark_line(item, windows), windows


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices: the first, the last and evenly between."""
    return sorted({int(k) for k in np.linspace(0, count - 1, min(count, most)).round()}) if count else []


def _figures(found: Status, asked: PlanSummary, planned: PlannedWork) -> dict[str, Any]:
    names = ("windows", "percent_done", "rate", "psnr", "sam", "scored_windows", "seams", "bytes_in", "bytes_out")
    said = found.document()
    return {
        **{n: said[n] for n in names},
        "planned": {k: v for k, v in {**asdict(asked), **asdict(planned)}.items() if k not in ("refused", "rules")},
    }


def _headline(found: Status, asked: PlanSummary) -> Iterator[Row]:
    yield "done", "percent_done", f"{found.percent_done:g} %"
    yield "windows ok", "windows.ok", f"{found.windows['ok']:,}"
    yield "ground", "km2", f"{asked.km2:,.0f} km²"
    yield "mean PSNR", "psnr", DASH if found.psnr is None else f"{found.psnr:.2f} dB"
    ratio = found.seams.ratio("blended")
    yield "seam ratio", "seams.blended_seam_ratio", DASH if ratio is None else f"{ratio:.3f}"
    yield "windows/s, last run", "rate", DASH if found.rate is None else f"{found.rate:.3g}"


def _charts(ds: xr.Dataset, latest: Iterable[Receipt], history: History) -> Iterator[Chart]:
    scores = ("psnr", "PSNR", "PSNR of the window, dB"), ("sam", "Spectral angle", "spectral angle, rad")
    for name, title, label in scores:
        if name not in ds:
            continue
        values = ds[name].values.astype(np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            yield Chart(title, f"{values.size} windows decoded again as they were made", histogram(values, label))
    for kind in KINDS:
        ratios = [r for receipt in latest if receipt.seams and (r := receipt.seams.ratio(kind)) is not None]
        if ratios:
            note = "one value a shard; 1: a core's border cannot be told from its inside"
            drawn = histogram(np.array(ratios), f"step across borders / inside, {kind}")
            yield Chart(f"Seam ratio, {kind}", note, drawn)
    if history.runs:
        edges, rates = history.throughput(_BINS)
        mean = sum(r.windows for r in history.runs) / sum(r.seconds for r in history.runs)
        runs = f"{len(history.runs)} runs, pauses left out" if len(history.runs) > 1 else "one run"
        yield Chart("Throughput", f"mean {mean:.3g} windows/s over {runs}", over_time(edges, rates, mean))


def _plan_rows(
    found: Status, asked: PlanSummary, planned: PlannedWork, seconds: float
) -> Iterator[tuple[str, str, str, str, str]]:
    """(what, planned, key, happened, share)."""
    windows = found.windows
    done = sum(n for name, n in windows.items() if name not in ("outside", "not_attempted"))
    decoded, out = planned.bytes_decoded, planned.bytes_out
    yield "windows", f"{asked.windows:,}", "attempted", f"{done:,}", _share(done, asked.windows)
    with_scenes = planned.windows_with_scenes
    yield (
        "windows with a scene",
        f"{with_scenes:,}",
        "windows.ok",
        f"{windows['ok']:,} ok",
        _share(windows["ok"], with_scenes),
    )
    yield "pixels decoded", decimal(decoded), "bytes_in", decimal(found.bytes_in), _share(found.bytes_in, decoded)
    yield (
        "latents",
        f"{decimal(out)} raw",
        "bytes_out",
        f"{decimal(found.bytes_out)} stored",
        _share(found.bytes_out, out),
    )
    yield "time steps", f"{asked.times}", "times", f"{found.times}", _share(found.times, asked.times)
    yield "work, units' seconds together", DASH, "seconds", f"{seconds:,.0f} s", ""


def _share(part: float, whole: float) -> str:
    return f"{100.0 * part / whole:.1f} %" if whole else ""


def _quality_rows(found: Status, plan: Plan) -> Iterator[Row]:
    if found.psnr is not None:
        unit = plan.sensor.unit
        range_ = f"{DATA_RANGE[unit]:g}{'' if unit == 'reflectance' else ' ' + unit}"
        yield f"mean PSNR, range {range_}", "psnr", f"{found.psnr:.3f} dB"
    if found.sam is not None:
        yield "mean spectral angle", "sam", f"{found.sam:.4f} rad"
    yield "windows decoded again", "scored_windows", f"{found.scored_windows:,}"
    yield "of them under the weights' floor", "below_floor", f"{sum(found.below_floor.values()):,}"
    for name, value in found.seams.figures().items():
        if value is not None:
            text = f"{value:,}" if name == "borders" else f"{value:.4f}"
            yield name.replace("_", " ") + (" measured" if name == "borders" else ""), f"seams.{name}", text


def _provenance(plan: Plan, document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    lattice, product = plan.grid.lattice, plan.product
    yield "space id", plan.space_id
    yield "plan", plan.hash
    yield "weights", f"{product.network}, SHA-256 {product.weights_sha256}"
    yield "arithmetic, storage", f"{product.precision}, {product.storage.name}"
    yield "sensor", f"{plan.sensor.name}: {', '.join(plan.sensor.band_names)}"
    yield (
        "lattice",
        (
            f"EPSG:{lattice.epsg}, {lattice.resolution} m pixels, {lattice.cell} m {product.array}s, "
            f"windows of {lattice.window_px} px with {lattice.halo_px} px of halo"
        ),
    )
    for name in ("request", "numerics", "versions"):
        for key, value in dict(document.get(name) or {}).items():
            yield f"{name}: {key}", redacted(value if isinstance(value, str) else json.dumps(value))
    for item, why in plan.refused:
        yield f"refused {item}", redacted(why)


def _rules_in(latest: Iterable[Receipt]) -> tuple[str, str]:
    receipts = [(bool(r.rules), bool(r.bytes_in)) for r in latest]
    said = sum(told for told, _ in receipts)
    silent = sum(read and not told for told, read in receipts)
    return "rules in the receipts", f"of {said} units" + (f"; of {silent} {NOT_RECORDED}" if silent else "")


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("eocube.report", "templates"), autoescape=select_autoescape(["html"]), trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["bytes"] = decimal
    return environment.get_template("report.html")
