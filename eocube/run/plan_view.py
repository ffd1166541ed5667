"""Shows `eocube plan`: the frozen plans of a request in figures, as JSON or as a few lines."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.filesize import decimal

from eocube.console import plain
from eocube.errors import InputError
from eocube.ground.boxes import boxes_said
from eocube.plan.cost import asset_sizes, cost, plan_summary, total
from eocube.plan.plan import Plan
from eocube.plan.rates import calibrate, recorded
from eocube.plan.rules import counted
from eocube.run.request import EncodeOptions

LISTED = 20
"""Scenes whose rules are printed at most."""


def plan_documents(
    plans: Sequence[Plan], options: EncodeOptions, device: str, storage_options: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """What each zone's plan comes to. Nothing is written, and no pixel is read but for `--calibrate`.

    Raises:
        InputError: a price below 0, a benchmark that cannot be read, no window to calibrate with.
    """
    if options.price is not None and not options.price >= 0:
        raise InputError(f"--price is dollars an hour, 0 or more, not {options.price:g}")
    if options.calibrate < 0:
        raise InputError(f"--calibrate is a number of windows, 0 or more, not {options.calibrate}")
    rate = None
    if options.calibrate:
        largest = max(plans, key=lambda p: int(p.grid.requested_mask.sum()))
        rate = calibrate(largest, device, options.calibrate, storage_options)
    found = []
    for plan in plans:
        known = rate or recorded(plan, device, options.benchmark)
        figures = cost(plan, asset_sizes(plan, storage_options), known, device, options.price)
        found.append({**plan_summary(plan), **figures})
    return found


def lines(documents: Sequence[Mapping[str, Any]]) -> str:
    """The plans for people: a block a zone, and the sum of several."""
    blocks = [_block(str(d["zone"]), d) for d in documents]
    if len(documents) > 1:
        whole = {**documents[0], **total(list(documents)), "refused": [], "rules": {}, "array_km": None}
        blocks.append(_block("all zones", whole))
    return "\n".join(blocks)


def _block(name: str, d: Mapping[str, Any]) -> str:
    where = ", ".join(f"{n} {source}" for source, n in d["asset_sizes_from"].items()) or "no assets"
    hours = "not known" if d["device_hours"] is None else f"{d['device_hours']:.3g}"
    speed = "" if d["windows_per_s"] is None else f"{d['windows_per_s']:.3g} windows/s, "
    rows = [
        (
            "scenes",
            f"{d['scenes']} in {d['times']} time steps" + (f", {len(d['refused'])} refused" if d["refused"] else ""),
        ),
        ("units", f"{d['units']} shards, {d['units_without_data']} without a scene"),
        ("windows", f"{d['windows']}, {d['windows_with_scenes']} with a scene"),
        ("in", f"{decimal(d['bytes_in'])} from the sources (sizes of assets: {where})"),
        ("decoded", f"{decimal(d['bytes_decoded'])} of pixels"),
        ("out", f"{decimal(d['bytes_out'])} before compression"),
        (f"{'GPU' if d['device'] == 'cuda' else 'CPU'} hours", f"{hours} ({speed}{d['rate_from']})"),
    ]
    if d["array_km"] is not None:
        wide, high = d["array_km"]
        room = f"{wide:g} x {high:g} km, {d['requested_percent']:g} % of it asked for; {_growth(d['extent'])}"
        rows.insert(3, ("arrays", room))
    if d["dollars"] is not None:
        rows.append(("dollars", f"{d['dollars']:.2f} at {d['price_per_hour']:g} an hour"))
    rules = d["rules"]
    if rules:
        rows.append(
            ("read as", ", ".join(f"{rule} ({count} of {len(rules)})" for rule, count in counted(rules).items()))
        )
        rows += [("", f"{scene}: {why}") for scene, why in list(rules.items())[:LISTED]]
        if len(rules) > LISTED:
            rows.append(("", f"and {len(rules) - LISTED} more: --json"))
    return "\n".join([plain(name), *(f"  {label:<10} {plain(value)}" for label, value in rows)])


def _growth(extent: Sequence[Sequence[float]]) -> str:
    if extent:
        return f"grow anywhere in {boxes_said(extent)}"
    return "grow south and east, all round with --extent"


def show(documents: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print the plans."""
    print(json.dumps(list(documents), indent=1) if as_json else lines(documents))
