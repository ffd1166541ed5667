"""Orbit and each item's own moment: from the item through the plan to the time axis; no plan is another for them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import eocube
from eocube.plan.plan import Acquisition, Plan, TimeStep
from eocube.run.extend import grown
from eocube.scenes.items import orbit_of
from eocube.scenes.scene import Scene
from eocube.store.store import CubeStore
from tests.eocube.cubes import make_plan, make_weights

STORES = Path(__file__).parents[2] / "data" / "stores"
BOX = (11.0, 48.0, 12.0, 49.0)


def scene(name: str, day: int, second: int, **orbit: Any) -> Scene:
    time = f"2023-08-{day:02d}T09:57:57Z"
    return Scene(
        name, "c", f"2023-08-{day:02d}T10:00:{second:02d}.024Z", "sentinel-2a", f"g{day}", time, 32632, BOX, None, None,
        None, (), None, **orbit,
    )  # fmt: skip


SCENES = (
    scene("a", 15, 1, orbit_state="descending", relative_orbit=122),
    scene("b", 15, 4, orbit_state="descending", relative_orbit=122),
    scene("c", 20, 7),
)
STEPS = (
    TimeStep("2023-08-15T09:57:57Z", "sentinel-2a", "g15", ("a", "b")),
    TimeStep("2023-08-20T09:57:57Z", "sentinel-2a", "g20", ("c",)),
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    weights = make_weights(tmp_path_factory.mktemp("orbits") / "tiny.safetensors")
    return replace(make_plan(weights), times=STEPS, scenes=SCENES)


@pytest.mark.parametrize(
    ("properties", "name", "found"),
    [
        ({"sat:orbit_state": "ascending", "sat:relative_orbit": 49}, "S1A_IW", ("ascending", 49)),
        ({"sentinel2:orbit_direction": "DESCENDING", "sentinel2:relative_orbit_number": 87}, "x", ("descending", 87)),
        ({"s2:product_uri": "S2A_MSIL2A_20230815T095601_N0509_R122_T33TWM_20230815T144000.SAFE"}, "x", (None, 122)),
        ({}, "S2B_MSIL2A_20240604T101559_R065_T32TPT_20240604T160519", (None, 65)),
        ({"sat:relative_orbit": "122", "sat:orbit_state": 3}, "S2A_33TWM_20230815_0_L2A", (None, None)),
        ({"sat:relative_orbit": True}, "x", (None, None)),
        ({"sat:relative_orbit": 10**30, "sat:orbit_state": "sideways"}, "x", (None, None)),
    ],
)
def test_what_items_say_of_their_orbit(properties: dict[str, Any], name: str, found: tuple[Any, Any]) -> None:
    assert orbit_of({"id": name, "properties": properties}) == found


@pytest.mark.real
def test_recorded_items_and_their_products_names_agree(shared_dir: Path) -> None:
    compared = 0
    for path in sorted((shared_dir / "data" / "stac_json").rglob("*.json")):
        document = json.loads(path.read_text())
        for item in document.get("features", [document]) if isinstance(document, dict) else []:
            said = item.get("properties", {}).get("sat:relative_orbit")
            if said is None:
                continue
            assert orbit_of(item)[1] == said
            named = {k: v for k, v in item["properties"].items() if not k.startswith("sat:")}
            by_name = orbit_of({**item, "properties": named})[1]
            compared += by_name is not None
            assert by_name in (None, said)
    assert compared


def test_a_plan_carries_orbits_and_is_the_same_without(plan: Plan) -> None:
    plain = replace(plan, scenes=tuple(replace(s, orbit_state=None, relative_orbit=None) for s in SCENES))
    assert plain.hash == plan.hash and plain.space_id == plan.space_id and plain == plan
    back = Plan.from_json(plan.to_json())
    assert back.acquisitions == plan.acquisitions
    assert plan.acquisitions == (
        Acquisition("descending", 122, ("2023-08-15T10:00:01.024Z", "2023-08-15T10:00:04.024Z")),
        Acquisition("", 0, ("2023-08-20T10:00:07.024Z",)),
    )
    assert plain.acquisitions[0] == replace(plan.acquisitions[0], orbit_state="", relative_orbit=0)
    assert not any("orbit" in key for t in plan.times for key in asdict(t))


@pytest.mark.parametrize("name", ["s2l2a-fp16", "s1rtc-int8-shifted"])
def test_a_plan_of_version_0_1_keeps_its_hash(name: str) -> None:
    facts = json.loads((STORES / "facts.json").read_text())[name]
    with zipfile.ZipFile(STORES / f"{name}.zip") as packed:
        old = Plan.from_json(packed.read("commits/plan.json").decode())
    assert old.hash == facts["plan_hash"] and old.space_id == facts["space_id"]
    assert all(a.orbit_state == "" and a.relative_orbit == 0 and all(a.item_datetimes) for a in old.acquisitions)


def test_the_time_axis_says_orbit_and_moments_and_so_do_decoded_pixels(plan: Plan, tmp_path: Path) -> None:
    CubeStore.create(tmp_path / "cube.zarr", plan).finalise()
    ds = eocube.open(str(tmp_path / "cube.zarr"))
    for array in (ds, ds.eocube.decode(bands="B04")):
        assert list(array.orbit_state.values) == ["descending", ""] and list(array.relative_orbit.values) == [122, 0]
        assert array.item_datetimes.values[0].split("\n") == ["2023-08-15T10:00:01.024Z", "2023-08-15T10:00:04.024Z"]
    assert ds.sel(time=ds.orbit_state == "descending").sizes["time"] == 1
    assert CubeStore.open(tmp_path / "cube.zarr").verify() == []


def test_a_store_that_grows_learns_the_orbits_of_what_it_has(plan: Plan) -> None:
    old = replace(plan, scenes=tuple(replace(s, orbit_state=None, relative_orbit=None) for s in SCENES))
    later = scene("d", 25, 2, orbit_state="ascending", relative_orbit=9)
    step = TimeStep(later.time, "sentinel-2a", "g25", ("d",))
    asked = replace(plan, times=(*STEPS, step), scenes=(*SCENES, later))
    found = grown("cube.zarr", old, asked).acquisitions
    assert [(a.orbit_state, a.relative_orbit) for a in found] == [("descending", 122), ("", 0), ("ascending", 9)]
