"""Items changed at random: whatever a catalogue puts where, a bad item is refused by name and the good one stays."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eocube.plan.plan import footprint, group_times
from eocube.products.identity import canonical
from eocube.scenes.scene import Scene
from eocube.scenes.search import SearchResult, parse_interval, search
from eocube.sensors import get_sensor
from tests.eocube.scenes.test_search import WORLD, s2_item

ALWAYS = parse_interval("0001-01-01/9999-12-30")
SENSORS = {"optical": get_sensor("S2L2A").subset(["B02", "B03", "B04"]), "radar": get_sensor("S1RTC")}


def deep(levels: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 1e-300, 10**18, 10**400, -(10**400), math.nan, math.inf, -math.inf, "", " ", "x",
    "0",
    "nan", "-inf", "1e999", "0.0001", "float32", "\x1b[2J", "[/red]", "\ud800", "²", "٣", "a\nb", "x" * 100_000, "B04",
    "9999-99-99T99:99:99Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "20230815", "EPSG:99999999999",
    "GS2A_20239915T995031_042549_N05.09", "S2A_MSIL2A_00000000T000000_N0509_R022_T31NBJ_0", "05.09", "N05.99",
    "//user:pw@host/x.tif", "http://[", "file:///etc/passwd", "/vsimem/x", "s3://", "../../..",
    [], {}, [[]], [None], [0], ["x"], [{}], [[[]]], {"a": 1}, {"href": "x"}, [1, 2, 3, 4], [0, 0, 0, 0], [9e9] * 6,
    [{"scale": 0}], [{"scale": "x"}], [{"nodata": "-inf"}], [{"offset": 10**400}], [{"data_type": []}],
    {"type": "Point", "coordinates": [0, 0]}, {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]},
    {"type": "Polygon", "coordinates": [[[0, 0], [1, 0, 5], [1, 1]]]},
    {"type": "Polygon", "coordinates": [[[0, 0]] * 4]},
    {"type": "MultiPolygon", "coordinates": [[[[0, 0], [1, 0], [1, 1], [0, 0]]], []]}, {"type": "Nonsense"},
    {"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [0, 0]}]}, deep(30), deep(700),
]  # fmt: skip

Step = str | int


def places(value: Any, at: tuple[Step, ...] = ()) -> Iterator[tuple[Step, ...]]:
    """Every field of a document; of long lists the first few entries."""
    if isinstance(value, dict):
        entries: list[tuple[Step, Any]] = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value[:4]))
    else:
        return
    for key, inside in entries:
        yield (*at, key)
        yield from places(inside, (*at, key))


@st.composite
def mutated(draw: st.DrawFn, items: list[dict[str, Any]]) -> dict[str, Any]:
    """One of the items with one to four fields replaced, taken out or doubled under another name."""
    item = copy.deepcopy(draw(st.sampled_from(items)))
    for _ in range(draw(st.integers(1, 4))):
        fields = list(places(item))
        # What is read lies near the top: a field of the first two levels is as likely as one of all the others.
        top = [at for at in fields if len(at) <= 2]
        at = draw(st.sampled_from(top) | st.sampled_from(fields))
        within = item
        for step in at[:-1]:
            within = within[step]
        kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "rename"]))
        if kind == "replace":
            within[at[-1]] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif kind == "remove":
            del within[at[-1]]
        elif isinstance(within, dict):
            within[draw(st.sampled_from(["blue", "B02", "scale", "proj:epsg", "s2:sequence", "x"]))] = within[at[-1]]
        if not item:
            break
    return item


def good(sensor: str) -> dict[str, Any]:
    """An item that is never touched, of an acquisition of its own."""
    if sensor == "optical":
        return s2_item("S2A_33TWM_20230815_0_L2A")
    return s2_item(
        "S1A_IW_GRDH_1SDV_20230815T095757_20230815T095822_049884_05FFF0_rtc", collection="sentinel-1-rtc",
        properties={"platform": "sentinel-1a", "constellation": "Sentinel-1",
                    "s2:datatake_id": None, "grid:code": None},
        assets={k: {"href": f"{k}.tif", "raster:bands": [{"nodata": -32768, "data_type": "float32"}]}
                for k in ("vv", "vh")},
    )  # fmt: skip


def unreachable(href: str) -> Any:
    raise OSError("no network here")


def judge(items: list[Any], sensor: str, folder: Path) -> SearchResult:
    """Search a catalogue of items and a good one: the good one is there and all that was found can be planned."""
    beside = good(sensor)
    path = folder / f"{sensor}.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [*items, beside]}))
    found = search(str(path), SENSORS[sensor], WORLD, ALWAYS, read_overview=unreachable, check_pixels=True)
    assert beside["id"] in {scene.id for scene in found.scenes}
    for scene in found.scenes:
        text = canonical(scene.to_dict())
        assert canonical(Scene.from_dict(json.loads(text)).to_dict()) == text
        footprint(scene, 32633)
    group_times(found.scenes)
    assert all(isinstance(text, str) and text for pair in (*found.refused, *found.replaced) for text in pair)
    canonical([list(pair) for pair in found.refused])
    return found


@cache
def demo_items(catalog: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(catalog.parent.rglob("*.json"))]
    return [item for item in found if item.get("type") == "Feature"]


@cache
def recorded_items(folder: Path) -> list[dict[str, Any]]:
    """Real items of Earth Search, Planetary Computer, CDSE and stactools, of files and of recorded answers."""
    found: dict[str, dict[str, Any]] = {}

    def gather(part: Any) -> None:
        if isinstance(part, dict) and part.get("type") == "Feature" and "assets" in part:
            # Of each collection and spelling one: what matters is which fields there are.
            kind = f"{part.get('collection')} {sorted(part['properties'])} {len(part['assets'])}"
            found.setdefault(kind, part)
        elif isinstance(part, dict | list):
            for value in part.values() if isinstance(part, dict) else part:
                gather(value)

    for path in sorted(folder.rglob("*json")):
        gather(json.loads(path.read_text()))
    for path in sorted(folder.rglob("*.yaml")):
        for exchange in yaml.load(path.read_text(), yaml.CSafeLoader)["interactions"]:
            body = exchange["response"]["body"]["string"]
            if isinstance(body, str) and body.startswith("{"):
                gather(json.loads(body))
    return list(found.values())


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_of_a_demo_item_costs_the_good_one(data: st.DataObject, demo_catalog: Path, tmp_path: Path) -> None:
    """Four at once, which makes a hundred."""
    one = mutated(demo_items(demo_catalog))
    judge(data.draw(st.lists(one, min_size=4, max_size=4)), "optical", tmp_path)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("sensor", SENSORS)
@settings(max_examples=2000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_of_a_real_item_costs_the_good_one(
    sensor: str, data: st.DataObject, shared_dir: Path, tmp_path: Path
) -> None:
    judge([data.draw(mutated(recorded_items(shared_dir / "data" / "stac_json")))], sensor, tmp_path)


@pytest.mark.slow
@pytest.mark.real
def test_every_single_field_of_a_real_item_may_be_anything(shared_dir: Path, tmp_path: Path) -> None:
    """Each field by each value: the 120 changes of 1,732 that ended a search were of this kind."""
    name = "earth-search-v1/mapchete_full_product_items/S2A_33TWL_20230815_0_L2A.json"
    item = json.loads((shared_dir / "data" / "stac_json" / name).read_text())
    changes = 0
    for at in places(item):
        if at[0] in ("links", "stac_extensions") or (at[0] == "assets" and len(at) > 1 and at[1] not in ("red", "scl")):
            continue
        changed = [copy.deepcopy(item) for _ in VALUES]
        for number, (one, value) in enumerate(zip(changed, VALUES, strict=True)):
            one["id"] = f"item {number}"
            within = one
            for step in at[:-1]:
                within = within[step]
            within[at[-1]] = value
        found = judge(changed, "optical", tmp_path)
        changes += len(changed)
        # None passes unnoticed, but for those that fall outside of what was searched.
        assert len(found.scenes) + len(found.refused) + len(found.replaced) <= len(changed) + 1
    assert changes > 5000
