"""The frozen plan: grouping into times, units and their scenes, round trips, and what its hashes depend on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.ground.grid import grids_for
from eocube.plan.plan import Plan, WorkUnit, build_plan, group_times
from eocube.products.eo_vae_document import Encoding, latents
from eocube.products.identity import canonical, digest
from eocube.scenes.search import parse_interval, search
from eocube.sensors import get_sensor
from eocube.sensors.sensor import Band

ENCODING = Encoding("nano", "nano", "0" * 64, 32, 8, "fp32", "fp16")


@pytest.fixture(scope="module")
def plan(demo_catalog: Path) -> Plan:
    """The demonstration's plan."""
    sensor = get_sensor("S2L2A")
    (grid,) = grids_for(DEMO_BBOX, 10)
    found = search(str(demo_catalog), sensor, grid.lonlat_bounds_with_halo(), parse_interval(DEMO_DATETIME))
    return build_plan(latents(sensor, ENCODING, grid.lattice), grid, found.scenes, {"bbox": list(DEMO_BBOX)})


def test_two_tiles_of_a_datatake_are_one_time(plan: Plan) -> None:
    assert len(plan.scenes) == 4 and len(plan.times) == 2
    assert all(len(step.scene_ids) == 2 for step in plan.times)
    assert [step.time for step in plan.times] == sorted(step.time for step in plan.times)


def test_grouping_does_not_depend_on_the_order_of_scenes(plan: Plan) -> None:
    assert group_times(plan.scenes) == group_times(plan.scenes[::-1])
    again = build_plan(plan.product, plan.grid, plan.scenes[::-1], plan.request)
    assert again.hash == plan.hash and again.scenes == plan.scenes


def with_encoding(plan: Plan, encoding: Encoding, bands: tuple[Band, ...] | None = None) -> Plan:
    sensor = plan.sensor if bands is None else replace(plan.sensor, bands=bands)
    return replace(plan, product=latents(sensor, encoding, plan.grid.lattice))


def test_json_round_trip(plan: Plan) -> None:
    back = Plan.from_json(plan.to_json())
    assert back == plan and back.hash == plan.hash and back.space_id == plan.space_id
    int8 = with_encoding(plan, replace(ENCODING, storage="int8", quantisation=((0.1,) * 32, (0.0,) * 32)))
    assert Plan.from_json(int8.to_json()) == int8
    assert replace(plan, numerics={"device": "NVIDIA H100"}).hash == plan.hash
    assert int8.space_id == plan.space_id and int8.hash != plan.hash and int8.product.storage.dtype == "int8"


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "1" * 64},
        {"precision": "fp16"},
        {"channels": 16},
    ],
)
def test_what_decides_a_latents_meaning_decides_the_space_id(plan: Plan, change: dict[str, object]) -> None:
    assert with_encoding(plan, replace(ENCODING, **change)).space_id != plan.space_id  # type: ignore[arg-type]


def test_wavelengths_and_statistics_decide_the_space_id(plan: Plan) -> None:
    first = plan.sensor.bands[0]
    for name, value in (("wavelength", 0.5), ("mean", 1.0), ("std", 2.0)):
        bands = (replace(first, **{name: value}), *plan.sensor.bands[1:])
        assert with_encoding(plan, ENCODING, bands).space_id != plan.space_id
    # Where pixels come from does not.
    bands = (replace(first, assets=("elsewhere",)), *plan.sensor.bands[1:])
    assert with_encoding(plan, ENCODING, bands).space_id == plan.space_id


def test_units_cover_every_requested_window_once(plan: Plan) -> None:
    units = list(plan.units())
    assert len(units) == len(set(units)) == len({u.key for u in units})
    covered = [(u.time, w) for u in units for w in plan.grid.windows_of_shard(u.row, u.col) if plan.grid.requested(w)]
    wanted = [(t, w) for t in range(len(plan.times)) for w in plan.grid.requested_windows()]
    assert sorted(covered) == sorted(wanted)


def test_a_shard_no_scene_touches_is_empty(plan: Plan) -> None:
    west, south, east, north = DEMO_BBOX
    (wide,) = grids_for((west, south, east + 0.8, north), 10)
    units = list(build_plan(latents(plan.sensor, ENCODING, wide.lattice), wide, plan.scenes, {}).units())
    assert any(u.empty for u in units) and any(not u.empty for u in units)


def test_scenes_that_touch_only_a_halo_make_no_time(plan: Plan) -> None:
    west, south, east, north = DEMO_BBOX
    (far,) = grids_for((west + 2.0, south, east + 2.0, north), 10)
    assert build_plan(latents(plan.sensor, ENCODING, far.lattice), far, plan.scenes, {}).times == ()


def test_unit_keys_sort_as_units() -> None:
    units = [WorkUnit(t, r, c) for t in (0, 9, 10, 120) for r in (0, 11) for c in (2, 30)]
    assert sorted(units) == sorted(units, key=lambda u: u.key)


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()))
def test_digests_do_not_depend_on_the_order_of_keys(document: dict[str, object]) -> None:
    backwards = dict(reversed(document.items()))
    assert digest(document) == digest(backwards)
    assert json.loads(canonical(document)) == document
