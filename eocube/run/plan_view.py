"""Shows `eocube plan`: the frozen plans of a request in figures, as JSON or as a few lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.filesize import decimal

from eocube.console import plain
from eocube.errors import InputError
from eocube.ground.boxes import boxes_said
from eocube.plan.cost import Forecast, ListedScene, asset_sizes, cost, plan_summary, total
from eocube.plan.plan import Plan
from eocube.plan.rates import calibrate, recorded
from eocube.plan.rules import counted
from eocube.run.asked import Showing

LISTED = 20
"""Scenes whose rules are printed at most."""


def forecasts(
    plans: Sequence[Plan], showing: Showing, device: str, storage_options: Mapping[str, Any] | None
) -> list[Forecast]:
    """What each zone's plan comes to. Nothing is written, and no pixel is read but for `--calibrate`.

    Raises:
        InputError: a price below 0, a benchmark that cannot be read, no window to calibrate with.
    """
    if showing.price is not None and not showing.price >= 0:
        raise InputError(f"--price is dollars an hour, 0 or more, not {showing.price:g}")
    if showing.calibrate < 0:
        raise InputError(f"--calibrate is a number of windows, 0 or more, not {showing.calibrate}")
    rate = None
    if showing.calibrate:
        largest = max(plans, key=lambda p: int(p.grid.requested_mask.sum()))
        rate = calibrate(largest, device, showing.calibrate, storage_options)
    found = []
    for plan in plans:
        known = rate or recorded(plan, device, showing.benchmark)
        sizes = asset_sizes(plan, storage_options)
        found.append(Forecast(plan_summary(plan), cost(plan, sizes, known, device, showing.price)))
    return found


def lines(zones: Sequence[Forecast]) -> str:
    """The plans for people: a block a zone, and the sum of several."""
    blocks = [_block(zone.summary.zone, zone) for zone in zones]
    if len(zones) > 1:
        blocks.append(_block("all zones", total(zones)))
    return "\n".join(blocks)


def _block(name: str, forecast: Forecast) -> str:
    plan, figures = forecast.summary, forecast.cost
    where = ", ".join(f"{n} {source}" for source, n in figures.asset_sizes_from.items()) or "no assets"
    hours = "not known" if figures.device_hours is None else f"{figures.device_hours:.3g}"
    speed = "" if figures.windows_per_s is None else f"{figures.windows_per_s:.3g} windows/s, "
    refused = f", {len(plan.refused)} refused" if plan.refused else ""
    rows = [
        ("scenes", f"{plan.scenes} in {plan.times} time steps{refused}"),
        ("units", f"{plan.units} shards, {plan.units_without_data} without a scene"),
        ("windows", f"{plan.windows}, {figures.windows_with_scenes} with a scene"),
        ("in", f"{decimal(figures.bytes_in)} from the sources (sizes of assets: {where})"),
        ("decoded", f"{decimal(figures.bytes_decoded)} of pixels"),
        ("out", f"{decimal(figures.bytes_out)} stored as {plan.storage} ({figures.bytes_out_from})"),
        (f"{'GPU' if figures.device == 'cuda' else 'CPU'} hours", f"{hours} ({speed}{figures.rate_from})"),
    ]
    if plan.array_km is not None:
        wide, high = plan.array_km
        room = f"{wide:g} x {high:g} km, {plan.requested_percent:g} % of it asked for; {_growth(plan.extent)}"
        rows.insert(3, ("arrays", room))
    if figures.dollars is not None:
        rows.append(("dollars", f"{figures.dollars:.2f} at {figures.price_per_hour:g} an hour"))
    rules = plan.rules
    if rules:
        said = ", ".join(f"{rule} ({count} of {len(rules)})" for rule, count in counted(rules).items())
        rows.append(("read as", said))
        rows += [("", f"{scene}: {why}") for scene, why in list(rules.items())[:LISTED]]
        if len(rules) > LISTED:
            rows.append(("", f"and {len(rules) - LISTED} more: --json"))
    listed = plan.scene_list
    rows += [("of dates" if k == 0 else "", _scene(scene)) for k, scene in enumerate(listed[:LISTED])]
    if len(listed) > LISTED:
        rows.append(("", f"and {len(listed) - LISTED} more: --json"))
    # Padded by hand: a table of rich folds long rules at the terminal's width; these lines are searched and copied.
    return "\n".join([plain(name), *(f"  {label:<10} {plain(value)}" for label, value in rows)])


def _scene(scene: ListedScene) -> str:
    """A scene on a line: the cube's time, the item's own where it differs, id, cloud, baseline and offset."""
    own = "" if scene.datetime[:19] == scene.time[:19] else f" (item {scene.datetime[:19].replace('T', ' ')[-8:]})"
    cloud = "cloud not said" if scene.cloud_cover is None else f"{scene.cloud_cover:.0f} % cloud"
    baseline = "" if scene.baseline is None else f", baseline {scene.baseline}"
    return f"{scene.time}{own}  {scene.id}, {cloud}{baseline}, {scene.read_as}"


def _growth(extent: Sequence[Sequence[float]]) -> str:
    if extent:
        return f"grow anywhere in {boxes_said(extent)}"
    return "grow south and east, all round with --extent"


def show(zones: Sequence[Forecast], *, as_json: bool) -> None:
    """Print the plans."""
    print(json.dumps([zone.document() for zone in zones], indent=1) if as_json else lines(zones))
