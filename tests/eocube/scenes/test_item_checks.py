"""Bad items, links and documents, one by one: each is refused by name with a reason, and the good one stays."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eocube.errors import InputError
from eocube.net.network import Network, NetworkLimits
from eocube.scenes.item_checks import asset_fault
from eocube.scenes.search import search
from eocube.scenes.stac import search_api, walk_static
from tests.eocube.scenes.test_search import EVER, RGB, WORLD, s2_item

Item = dict[str, Any]
GOOD = "S2A_33TWM_20230815_0_L2A"
BAD = "S2B_33TWN_20230816_0_L2A"


def bad(change: Callable[[Item], object]) -> Item:
    item = s2_item(BAD, properties={"s2:datatake_id": None, "grid:code": "MGRS-33TWN"})
    change(item)
    return item


def ring(*positions: Any) -> Item:
    return {"type": "Polygon", "coordinates": [list(positions)]}


# What is put where, and what the refusal says; None: the item is taken, since nothing that is read is wrong.
CASES: dict[str, tuple[Callable[[Item], object], str | None]] = {
    "untrusted 99: a huge number in the footprint": (
        lambda i: i.update(geometry=ring([10**400, 0], [1, 0], [1, 1])), "footprint holds [10000"),
    "bounds 125: a time before the first year": (
        lambda i: i["properties"].update(datetime="0001-01-01T00:00:00+23:59"), "datetime '0001-01-01T"),
    "bounds 136: a geometry of no kind": (lambda i: i.update(geometry={"type": "Nonsense"}), "geometry is no GeoJSON"),
    "bounds 136: a ring of two": (lambda i: i.update(geometry=ring([0, 0], [1, 1])), "a ring of 2 positions"),
    "bounds 136: heights for some": (
        lambda i: i.update(geometry=ring([0, 0], [1, 0, 5], [1, 1])), "some of its positions have a height"),
    "a height that is no number": (
        lambda i: i.update(geometry=ring(*[[x, 46, math.nan] for x in (15, 16, 15)])), "which is no position"),
    "radiometry 90: bands that are yes": (
        lambda i: i["assets"]["red"].update({"raster:bands": True}), "its asset red has raster:bands that are no list"),
    "radiometry 90: bands that are an object": (
        lambda i: i["assets"]["red"].update({"raster:bands": {"scale": 1}}), "bands that are no list of objects"),
    "radiometry 113: a scale that no float holds": (
        lambda i: i["assets"]["red"]["raster:bands"][0].update(scale=10**400), "red has a scale that is no number"),
    "a scale that is a list": (
        lambda i: i["assets"]["red"]["raster:bands"][0].update(scale=[1]), "has a scale that is no number"),
    "a scale of nothing": (
        lambda i: i["assets"]["red"]["raster:bands"][0].update(scale=0), "has a scale that is not above 0"),
    "an offset that is no number": (
        lambda i: i["assets"]["red"]["raster:bands"][0].update(offset=math.nan), "has a offset that is no number"),
    "stac_items 76: no zone of MGRS": (
        lambda i: i["properties"].update({"mgrs:utm_zone": "x", "mgrs:latitude_band": 1, "mgrs:grid_square": []}),
        "mgrs:grid_square is a list"),
    "stac_items 76: words of MGRS": (
        lambda i: i["properties"].update({"mgrs:utm_zone": "x", "mgrs:latitude_band": 1, "mgrs:grid_square": 2}), None),
    "stac_items 87: no moment of a datatake": (
        lambda i: i["properties"].update({"s2:datatake_id": "GS2A_20239915T995031_042549_N05.09"}), None),
    "stac_items 195: cloud that no float holds": (lambda i: i["properties"].update({"eo:cloud_cover": 10**400}), None),
    "a cloud that is no number": (lambda i: i["properties"].update({"eo:cloud_cover": math.nan}), None),
    "a sequence of a superscript": (lambda i: i["properties"].update({"s2:sequence": "\u00b2"}), None),
    "an orbit of four hundred digits": (
        lambda i: i["properties"].update({"sat:relative_orbit": 10**400}), "sat:relative_orbit is no finite number"),
    "a projection of many digits": (lambda i: i["properties"].update({"proj:epsg": 10**30}), None),
    "a platform that is an object": (lambda i: i["properties"].update(platform={}), "its platform is an object"),
    "a moment that is a number": (lambda i: i["properties"].update(datetime=20230815), "datetime 20230815 is no time"),
    "no properties": (lambda i: i.update(properties=None), "no assets or no properties"),
    "no assets": (lambda i: i.update(assets=None), "no assets or no properties"),
    "an asset that is a text": (lambda i: i["assets"].update(red="x.tif"), "its asset red is no asset but a text"),
    "an href that is a list": (lambda i: i["assets"]["red"].update(href=["x"]), "its asset red has no href"),
    "an href with an escape": (lambda i: i["assets"]["red"].update(href="\x1b[2J"), "red has an href that is"),
    "an href of no host": (lambda i: i["assets"]["red"].update(href="http://[x/B04.tif"), "value that cannot be used"),
    "a box of words": (lambda i: i.update(bbox=["a", "b", "c", "d"], geometry=None), "which is no position"),
    "a box of yes and no": (lambda i: i.update(bbox=[True, False, True, True], geometry=None), "which is no position"),
    "a box of one point": (lambda i: i.update(bbox=[15, 46, 15, 46]), None),
    "an empty part": (
        lambda i: i.update(geometry={"type": "MultiPolygon", "coordinates": [[]]}), "geometry is no GeoJSON"),
    "a collection that is a number": (lambda i: i.update(collection=5), "its collection is no text but a number"),
    "an id with a line's end": (lambda i: i.update(id="S2B\nx"), "its id holds control characters"),
    "an id that is no text": (lambda i: i.update(id="S2B\ud800"), "its id holds control characters"),
    "an id that is long": (lambda i: i.update(id="x" * 10_000), "its id has 10000 characters"),
    "an id that is a number": (lambda i: i.update(id=5), "its id is no text but a number"),
    "no id": (lambda i: i.pop("id"), "its id is no text but nothing"),
    "no item": (lambda i: i.clear(), "its id is no text but nothing"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_one_bad_item_costs_itself(case: str, tmp_path: Path) -> None:
    change, says = CASES[case]
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [bad(change), s2_item(GOOD)]}))
    found = search(str(path), RGB, WORLD, EVER)
    if says is None:
        assert sorted(scene.id for scene in found.scenes) == [GOOD, BAD] and not found.refused
        return
    assert [scene.id for scene in found.scenes] == [GOOD]
    ((name, why),) = found.refused
    assert says in why and "\n" not in why and len(why) < 500
    assert name[:3] in ("S2B", "xxx") or name == "items.json#0"


def test_what_cannot_be_read_of_a_mask_or_a_thumbnail_costs_nothing(tmp_path: Path) -> None:
    item = s2_item(GOOD)
    item["assets"] |= {"scl": None, "thumbnail": {"href": None}, "info": 5}
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    (scene,) = search(str(path), RGB, WORLD, EVER).scenes
    assert scene.mask is None


def test_a_nodata_that_is_infinite_is_kept_as_it_is(tmp_path: Path) -> None:
    from eocube.products.identity import canonical
    from eocube.scenes.scene import Scene

    item = s2_item(GOOD)
    for asset in item["assets"].values():
        asset["raster:bands"][0]["nodata"] = "-inf"
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [item]}))
    (scene,) = search(str(path), RGB, WORLD, EVER).scenes
    assert Scene.from_dict(json.loads(canonical(scene.to_dict()))) == scene
    assert {source.radiometry.nodata for source in scene.sources} == {-math.inf}


def test_a_defect_of_ours_comes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is caught on an item's behalf is about its values: a TypeError is a bug, and must not look like bad data."""
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [s2_item(GOOD)]}))
    for defect in (TypeError, AttributeError, KeyError, AssertionError, NameError):

        def broken(*args: Any, kind: type[Exception] = defect, **kwargs: Any) -> Any:
            raise kind("a defect")

        monkeypatch.setattr("eocube.scenes.search.scene_from_item", broken)
        with pytest.raises(defect, match="a defect"):
            search(str(path), RGB, WORLD, EVER)


@pytest.mark.parametrize("feature", [None, 5, "x", [], [1], True])
def test_a_feature_that_is_no_object_costs_itself(feature: Any, tmp_path: Path) -> None:
    path = tmp_path / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [s2_item(GOOD), feature]}))
    found = search(str(path), RGB, WORLD, EVER)
    assert [scene.id for scene in found.scenes] == [GOOD]
    ((name, why),) = found.refused
    assert name == "items.json#1" and why.startswith("is no STAC item but ")


def catalogue(folder: Path, links: Any, **documents: Any) -> Path:
    """A static catalogue of these links, with files beside it: JSON, or text as it is."""
    (folder / "good.json").write_text(json.dumps(s2_item(GOOD)))
    for name, content in documents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    root = folder / "catalog.json"
    root.write_text(json.dumps({"type": "Catalog", "id": "c", "stac_version": "1.0.0", "links": links}))
    return root


ITEM = {"rel": "item", "href": "./good.json"}


@pytest.mark.parametrize(
    "link", [None, 5, "x", [], {"rel": "item"}, {"rel": "item", "href": None}, {"rel": "item", "href": ["x"]},
             {"rel": "child", "href": "\x1b[2J"}, {"rel": "item", "href": "x" * 20_000},
             {"rel": ["item"], "href": "x"}],
)  # fmt: skip
def test_a_broken_link_costs_itself(link: Any, tmp_path: Path) -> None:
    found = search(str(catalogue(tmp_path, [link, ITEM])), RGB, WORLD, EVER)
    assert [scene.id for scene in found.scenes] == [GOOD]
    meant = isinstance(link, dict) and link["rel"] in ("item", "child")
    assert [name for name, _ in found.refused] == (["catalog.json"] if meant else [])


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("no JSON {", "holds no JSON"),
        ("5", "is not STAC"),
        ("null", "is not STAC"),
        ("[" * 100_000, "nested too deep"),
        ('{"type": "Feature", "id": ' + "9" * 5000 + "}", "holds no JSON"),
        ({"answer": 42}, "is not STAC"),
        ({"type": "Feature"}, "its id is no text but nothing"),
        ({"type": "FeatureCollection", "features": 5}, "is not STAC"),
        ({"type": "Collection", "id": "sentinel-2-l2a", "links": 5}, "has links that are no list"),
        ({"type": "Collection", "id": "sentinel-2-l2a"}, "has links that are no list"),
        ({"type": ["Feature"]}, "is not STAC"),
    ],
)
def test_a_linked_document_that_is_none_costs_itself(document: Any, says: str, tmp_path: Path) -> None:
    root = catalogue(tmp_path, [{"rel": "item", "href": "./other.json"}, ITEM], other=document)
    found = search(str(root), RGB, WORLD, EVER)
    assert [scene.id for scene in found.scenes] == [GOOD]
    ((name, why),) = found.refused
    assert name == "other.json" and says in why


def test_a_root_that_is_no_catalogue_is_still_an_error_of_the_search(tmp_path: Path) -> None:
    for number, text in enumerate(('{"type": "Catalog", "links": 5}', '{"type": "FeatureCollection", "features": 5}')):
        path = tmp_path / f"{number}.json"
        path.write_text(text)
        if number == 0:
            assert walk_static(str(path), lambda name: True) == ([], [(str(path), "has links that are no list")])
        else:
            with pytest.raises(InputError, match="is not STAC"):
                search(str(path), RGB, WORLD, EVER)


def test_features_of_an_api_that_are_none_cost_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = {"id": GOOD, "collection": [], "properties": []}
    features: list[Any] = [None, 5, "x", [], {"id": 5}, {}, odd, s2_item(GOOD)]

    class Pages:
        def pages_as_dicts(self) -> Any:
            yield {"features": features, "context": 5}

    class Api:
        def search(self, **how: Any) -> Pages:
            return Pages()

    monkeypatch.setattr("eocube.scenes.stac.pystac_client.Client.open", lambda *args, **kwargs: Api())
    found = search_api(
        "https://api.example/v1", ["sentinel-2-l2a"], [WORLD], EVER, network=Network(NetworkLimits(tries=1))
    )
    assert [one.item for one in found] == features
    assert len({one.place for one in found}) == len(features)


def test_an_asset_is_judged_by_what_is_read_of_it() -> None:
    assert asset_fault({"href": "x.tif", "roles": 5, "gsd": [], "eo:bands": None}) is None
    assert asset_fault({"href": "x.tif", "eo:bands": [5]}) == "has eo:bands that are no list of objects"
    assert asset_fault({"href": "x.tif", "raster:scale": "x"}) == "has a raster:scale that is no number"
    assert asset_fault({"href": "x.tif", "bands": [{"unit": 5}]}) == "has a unit that is no text"
