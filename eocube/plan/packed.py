"""Estimates what a plan's values will take once packed, by what whole stores of real scenes were measured to take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from eocube.plan.plan import Plan

RECORDED = Path(__file__).parent / "packed.json"
"""Bytes a cell, all channels together, by weights, storage and quality: least, mean and most of the stores."""
UNPACKED = "before compression: nothing like it has been measured"


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes that a cell takes in the store, and in words where the figure comes from."""

    bytes_a_cell: float
    source: str


def packed(plan: Plan) -> Packed:
    """What a cell of the plan is expected to take; unpacked where its weights and storage were not measured."""
    product = plan.product
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    kinds = recorded["bytes_a_cell"].get(product.network, {})
    found = kinds.get(product.storage.name, {}).get(plan.request.get("quality") or "default")
    if found is None:
        return Packed(float(product.unpacked_cell_bytes), UNPACKED)
    least, mean, most = found
    return Packed(mean, f"{mean:g} bytes a cell {recorded['measured_on']}: {least:g} to {most:g}")
