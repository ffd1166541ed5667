"""Stores written by version 0.1, one of them grown to the north-west, open, verify and decode as they did then."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import eocube
from eocube.errors import StoreError
from eocube.ground.grid import CubeGrid
from eocube.plan.plan import Plan
from eocube.run.extend import grow_plans
from eocube.store.store import CubeStore

STORES = Path(__file__).parents[2] / "data" / "stores"
FACTS: dict[str, dict[str, Any]] = json.loads((STORES / "facts.json").read_text())


@pytest.fixture(params=sorted(FACTS))
def old(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """An unpacked store and what was known of it when it was written."""
    folder = tmp_path / f"{request.param}.zarr"
    with zipfile.ZipFile(STORES / f"{request.param}.zip") as packed:
        packed.extractall(folder)
    return folder, FACTS[request.param]


def test_opens_verifies_and_keeps_its_bytes(old: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = old
    store = CubeStore.open(folder)
    assert store.document["space_id"] == facts["space_id"]
    assert store.document["plan_hash"] == facts["plan_hash"]
    assert store.verify() == []
    shards = {r.unit: r.sha256 for r in store.receipts() if r.sha256}
    assert shards == facts["shards"]
    for receipt in store.receipts():
        if receipt.sha256:
            data = (folder / store.shard_key(receipt.time, *receipt.shard)).read_bytes()
            assert hashlib.sha256(data).hexdigest() == receipt.sha256


def test_grows_south_and_in_time_and_nothing_moves(old: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = old
    url, before = str(folder), {str(p): p.read_bytes() for p in folder.glob("latent/c/*/*/*/*")}
    (stored,) = (Plan.from_json(t) for t in CubeStore.stored_plans(url))
    asked = larger(stored, south=0.4)
    (grown,) = grow_plans(url, [stored], [asked])
    assert (grown.grid.shard_row0, grown.grid.shard_col0) == (stored.grid.shard_row0, stored.grid.shard_col0)
    assert grown.grid.shard_rows > stored.grid.shard_rows and grown.extends[-1] == stored.hash
    store = CubeStore.create(url, grown)
    store.finalise()
    assert store.verify() == [] and store.values.shape[2:] == grown.grid.shape
    assert {r.unit: r.sha256 for r in store.receipts() if r.sha256} == facts["shards"]
    assert {str(p): p.read_bytes() for p in folder.glob("latent/c/*/*/*/*")} == before
    with pytest.raises(StoreError, match=r"km north of the store's north-western corner, which never moves"):
        grow_plans(url, [grown], [larger(grown, north=0.4)])


def larger(plan: Plan, south: float = 0.0, north: float = 0.0) -> Plan:
    """The plan of a request for more ground, as a search of its own would make it."""
    boxes = [[w, s - south, e, n + north] for w, s, e, n in plan.request["bbox"]]
    lattice = plan.grid.lattice
    grid = CubeGrid.over(lattice, [(w, s, e, n) for w, s, e, n in boxes])
    return replace(plan, grid=grid, request={**plan.request, "bbox": boxes}, extends=())


def test_decodes_to_the_same_numbers(old: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = old
    decoded = eocube.open(str(folder)).eocube.decode(min_valid=1).compute()
    assert int(decoded.isel(band=0).notnull().sum()) == facts["finite"]
    means = {str(b): float(decoded.sel(band=b).mean()) for b in decoded.band.values}
    assert means == pytest.approx(facts["decoded_mean"], abs=1e-4)
