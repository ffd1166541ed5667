"""By which rule a scene was read, and why: in the plan, the receipts, info, the plan's lines and the report page."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from eocube.cli import main
from eocube.ground.grid import grids_for
from eocube.plan.cost import Cost, Forecast, plan_summary
from eocube.plan.plan import Plan, build_plan
from eocube.plan.rules import counted, in_words, read_by, rules_of, short
from eocube.products import registry
from eocube.products.base import models_of
from eocube.products.eo_vae import load
from eocube.products.eo_vae_document import latents
from eocube.products.eo_vae_kind import encoding_of
from eocube.report.info import brief, describe, info, verify
from eocube.report.page import write_page
from eocube.run.options import Limits
from eocube.run.plan_view import lines
from eocube.run.unit import UnitRunner
from eocube.scenes.search import parse_interval, search
from eocube.sensors import get_sensor
from eocube.store.receipts import Receipt, State
from eocube.store.store import CubeStore
from tests.eocube.cubes import CORE, HALO, SHARD, make_weights
from tests.eocube.scenes.test_offset_settled import BOX, catalogue, raised

STORES = Path(__file__).parents[2] / "data" / "stores"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three dates: the first settled by metadata, the second by pixels, the third by hand."""
    folder = tmp_path_factory.mktemp("rules")
    weights = load(str(make_weights(folder / "tiny.safetensors")))
    sensor = get_sensor("S2L2A").subset(["B02", "B04"]).with_weights(weights.meta).with_offset(0.0)
    (grid,) = grids_for(BOX, 10, core_px=CORE * 8, halo_px=HALO * 8, shard_px=SHARD * 8)
    places = [
        catalogue(folder, raised, day="2023-07-01", properties={"s2:processing_baseline": "05.09"}, name="labelled"),
        catalogue(folder, day="2023-07-11", name="silent"),
        catalogue(folder, day="2023-07-21", darkest=0.16, name="desert"),
    ]
    interval = parse_interval("2023-01-01/2023-12-31")
    scenes = [scene for place in places for scene in search(place, sensor, BOX, interval).scenes]
    return build_plan(
        latents(sensor, encoding_of(weights, "fp32", "fp16"), grid.lattice), grid, scenes, {"offset": 0.0}
    )


@pytest.fixture(scope="module")
def cube(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The plan carried out by the worker that a run's actors are made of."""
    url = str(tmp_path_factory.mktemp("cube") / "cube.zarr")
    store = CubeStore.create(url, plan)
    runner = UnitRunner(
        plan, store, models_of(registry.open(plan.product), "cpu", plan.numerics), Limits(verify_fraction=0.0)
    )
    try:
        store.log.append([runner.run(unit) for unit in plan.units()])
    finally:
        runner.close()
    store.finalise()
    return url


SAID = {"labelled": "-0.1 metadata", "silent": "0 pixels", "desert": "0 stated"}


def test_the_plan_says_the_rule_and_the_reason_of_every_scene(plan: Plan) -> None:
    again = Plan.from_json(plan.to_json())
    assert {s.id: short(s) for s in again.scenes} == SAID
    rules = rules_of(again)
    assert (
        rules["labelled"].startswith("-0.1 metadata: +1000 in the pixels: ") and "baseline 05.09" in rules["labelled"]
    )
    assert rules["silent"].startswith("0 pixels: dark tail B02 ")
    assert rules["desert"].startswith("0 stated: stated by hand, offset 0: metadata do not settle")
    assert counted(rules) == {"-0.1 metadata": 1, "0 pixels": 1, "0 stated": 1}
    assert plan_summary(plan).rules == rules


def test_a_units_receipt_says_the_rules_it_read_by(plan: Plan, cube: str) -> None:
    receipts = list(CubeStore.open(cube).log.receipts())
    for receipt in receipts:
        (scene,) = plan.scenes_at(receipt.time)
        assert receipt.rules == {scene.id: SAID[scene.id]}
        assert Receipt.from_json(receipt.to_json()).rules == receipt.rules
    assert {w.state for r in receipts for w in r.windows} <= {State.OK, State.NODATA}


def test_receipts_grow_by_little(plan: Plan, cube: str) -> None:
    """A million units of two scenes: some hundred megabytes more at most, beside two thousand."""
    receipt = next(CubeStore.open(cube).log.receipts())
    name = "S2A_MSIL2A_20230815T100031_N0509_R122_T32UPU_20230815T162009"
    scenes = [replace(s, id=f"{name}{k}") for k, s in enumerate(plan.scenes[:2])]
    more = len(replace(receipt, rules=read_by(scenes)).to_json()) - len(replace(receipt, rules={}).to_json())
    assert more < 200


def test_windows_that_stay_keep_the_rules_they_were_read_by(plan: Plan, cube: str, tmp_path: Path) -> None:
    store = CubeStore.open(cube)
    receipt = next(r for r in store.log.receipts() if any(w.state is State.OK for w in r.windows))
    kept = replace(receipt, rules={"earlier": "-0.1 pixels"})
    unit = next(u for u in plan.units() if u.key == receipt.unit)
    runner = UnitRunner(
        plan, store, models_of(registry.open(plan.product), "cpu", plan.numerics), Limits(verify_fraction=0.0)
    )
    try:
        again = runner.run(replace(unit, keep=kept.to_json()))
    finally:
        runner.close()
    assert again.rules["earlier"] == "-0.1 pixels" and again.sha256 == receipt.sha256


def test_info_plan_and_report_say_it(plan: Plan, cube: str, tmp_path: Path) -> None:
    found = info(cube)
    assert found.rules == rules_of(plan) and found.read_as == {"-0.1 metadata": 1, "0 pixels": 1, "0 stated": 1}
    assert "labelled  -0.1 metadata: +1000 in the pixels" in describe(brief(found).document())
    many = brief(replace(found, rules={f"s{k:03d}": "0 metadata: x" for k in range(90)})).document()
    assert "and 70 more" in describe(many) and "s020" not in describe(many)
    nothing = Cost(0, 0, 0, "", 0, {}, "cpu", None, "nothing", None, None, None)
    text = lines([Forecast(plan_summary(plan), nothing)])
    assert "read as    -0.1 metadata (1 of 3)" in text and "silent: 0 pixels: dark tail B02" in text
    html = Path(write_page(cube, tmp_path / "report.html")).read_text()
    units = sum(bool(r.rules) for r in CubeStore.open(cube).log.receipts())
    for said in ("0 stated", "stated by hand, offset 0", "-0.1 metadata", f"of {units} units"):
        assert said in html
    assert "not recorded" not in html


def test_verify_names_a_unit_that_was_read_by_another_rule(cube: str, tmp_path: Path) -> None:
    assert verify(cube).findings == ()
    other = str(shutil.copytree(cube, tmp_path / "cube.zarr"))
    store = CubeStore.open(other)
    receipt = next(r for r in store.log.receipts() if "silent" in r.rules)
    store.log.append([replace(receipt, rules={"silent": "-0.1 metadata"}, created="2099-01-01T00:00:00Z")])
    store.finalise()
    (finding,) = verify(other).findings
    assert receipt.unit in finding and "read silent as -0.1 metadata, the plan says 0 pixels" in finding


@pytest.fixture
def old(tmp_path: Path) -> str:
    with ZipFile(STORES / "s2l2a-fp16.zip") as packed:
        packed.extractall(tmp_path / "old.zarr")
    return str(tmp_path / "old.zarr")


def test_plans_of_version_0_1_say_what_they_recorded_and_no_more(plan: Plan, old: str) -> None:
    assert all(text.startswith(("0 metadata", "-0.1 metadata")) for text in info(old).rules.values())
    assert not any(r.rules for r in CubeStore.open(old).log.receipts()) and verify(old).findings == ()
    document = json.loads(plan.to_json())
    for scene in document["scenes"]:
        for source in scene["sources"]:
            del source["radiometry"]["why"]
    assert set(rules_of(Plan.from_json(json.dumps(document))).values()) == {"not recorded"}


@pytest.mark.slow
def test_the_report_says_that_receipts_of_version_0_1_did_not_record_it(old: str, tmp_path: Path) -> None:
    assert main(["report", old, "--out", str(tmp_path / "old.html")]) == 0
    assert "of 0 units; of 1 not recorded" in (tmp_path / "old.html").read_text()


def test_what_version_0_1_assumed_is_said(plan: Plan) -> None:
    (scene, *_) = plan.scenes
    old = replace(
        scene,
        sources=tuple(replace(s, radiometry=replace(s.radiometry, why="as S2L2A describes it")) for s in scene.sources),
    )
    assert in_words(
        replace(plan, product=replace(plan.product, inputs=(replace(plan.sensor, source_offset=None),))), old
    ).startswith("-0.1 assumed: ")
