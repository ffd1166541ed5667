"""Static catalogues: walking, filtering, one scene an acquisition, grouping, contradictions, errors, signing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from eocube.errors import InputError, SourceError
from eocube.net.network import Network, NetworkLimits
from eocube.scenes.items import identify
from eocube.scenes.search import Scene, parse_bbox, parse_interval, search, sign
from eocube.scenes.stac import resolve_href, safe_url
from eocube.sensors import get_sensor

WORLD = (-180.0, -90.0, 180.0, 90.0)
EVER = parse_interval("2015/2027")
RGB = get_sensor("S2L2A").subset(["B02", "B03", "B04"])


def s2_item(name: str, **changes: Any) -> dict[str, Any]:
    """An Earth Search item of tile 33TWM, 15 August 2023, that says the offset was taken out; `changes` override."""
    properties = {
        "datetime": "2023-08-15T09:57:57.246000Z",
        "platform": "sentinel-2a",
        "constellation": "sentinel-2",
        "proj:epsg": 32633,
        "grid:code": "MGRS-33TWM",
        "eo:cloud_cover": 3.5,
        "s2:datatake_id": "GS2A_20230815T095031_042549_N05.09",
        "s2:processing_baseline": "05.09",
        "s2:generation_time": "2023-08-15T15:00:00.000000Z",
        "s2:sequence": "0",
        "earthsearch:boa_offset_applied": True,
    }
    properties.update(changes.pop("properties", {}))
    item = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "collection": "sentinel-2-l2a",
        "bbox": [15.0, 46.0, 16.4, 47.0],
        "geometry": box_of(15.0, 46.0, 16.4, 47.0),
        "properties": {key: value for key, value in properties.items() if value is not None},
        "assets": {
            key: {"href": f"./{name}/{band}.tif", "raster:bands": [{"scale": 1e-4, "offset": -0.1, "nodata": 0}]}
            for key, band in {"blue": "B02", "green": "B03", "red": "B04", "scl": "SCL"}.items()
        },
        "links": [],
    }
    return {**item, **changes}


def box_of(west: float, south: float, east: float, north: float) -> dict[str, Any]:
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {"type": "Polygon", "coordinates": [ring]}


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes items as an item collection and returns its path."""

    def collect(*items: dict[str, Any]) -> str:
        path = tmp_path / "items.json"
        path.write_text(json.dumps({"type": "FeatureCollection", "features": list(items)}))
        return str(path)

    return collect


def test_the_real_catalogue_gives_each_sensor_its_own_items(catalog_json: Path) -> None:
    for name, collection in {"S2L2A": "sentinel-2-l2a", "S1RTC": "sentinel-1-rtc"}.items():
        result = search(str(catalog_json), get_sensor(name), WORLD, EVER, check_pixels=True)
        assert not result.refused and [scene.collection for scene in result.scenes] == [collection] * 3
        assert [scene.epsg for scene in result.scenes] == [32718, 32722, 32736], "sorted by time"
        for scene in result.scenes:
            assert len(scene.sources) == len(get_sensor(name).bands)
            assert all(Path(source.href).is_file() for source in scene.sources)
            again = Scene.from_dict(json.loads(json.dumps(scene.to_dict(), allow_nan=False)))
            assert again == scene
    offsets = {scene.id: scene.sources[0].radiometry.offset for scene in search_s2(catalog_json).scenes}
    assert offsets == {"S2L2A_433D_629L_3_1": -0.1, "S2L2A_282D_485L_3_3": 0.0, "S2L2A_38D_378R_2_3": 0.0}


def search_s2(catalog_json: Path) -> Any:
    return search(str(catalog_json), get_sensor("S2L2A"), WORLD, EVER)


def test_box_and_interval_filter_the_static_items(catalog_json: Path) -> None:
    here, sensor = (-72.48, -38.83, -72.47, -38.82), get_sensor("S2L2A")
    assert [s.id for s in search(str(catalog_json), sensor, here, EVER).scenes] == ["S2L2A_433D_629L_3_1"]
    assert [s.id for s in search(str(catalog_json), sensor, WORLD, parse_interval("2021-07-23")).scenes] == [
        "S2L2A_282D_485L_3_3"
    ]
    none = search(str(catalog_json), sensor, here, parse_interval("1990-01-01/1990-02-01"))
    assert none.scenes == () and "1990-01-01 to 1990-02-01: 0 items for S2L2A" in none.searched
    assert "collections sentinel-2-l2a" in none.searched and "-72.48 -38.83 -72.47 -38.82" in none.searched


def test_five_dates_and_two_tiles_make_five_groups(shared_dir: Path) -> None:
    root = shared_dir / "data" / "raw" / "mapchete_eo" / "full_products" / "catalog.json"
    result = search(str(root), get_sensor("RGBN"), WORLD, EVER)
    assert len(result.scenes) == 6 and len({(scene.group, scene.time) for scene in result.scenes}) == 5
    pair = [scene for scene in result.scenes if scene.time == "2023-08-20T09:45:49Z"]
    assert [scene.id for scene in pair] == ["S2B_33TWL_20230820_0_L2A", "S2B_33TWM_20230820_0_L2A"]
    assert {scene.group for scene in pair} == {"S2B_20230820T094549"}
    assert all(scene.mask is not None and Path(scene.mask.href).is_file() for scene in result.scenes)
    assert {source.radiometry.offset for scene in result.scenes for source in scene.sources} == {0.0}
    assert len(result.refused) == 4 and all("linked, but there is no" in why for _, why in result.refused)


def test_the_newest_processing_of_an_acquisition_wins(write: Write) -> None:
    older = s2_item("S2A_33TWM_20230815_0_L2A")
    newer = s2_item("S2A_33TWM_20230815_1_L2A", properties={"s2:sequence": "1", "s2:processing_baseline": "05.10"})
    result = search(write(newer, older), RGB, WORLD, EVER)
    assert [scene.id for scene in result.scenes] == [newer["id"]]
    assert result.replaced == ((older["id"], newer["id"]),)
    collection_1 = s2_item(
        "S2A_T33TWM_20230815T095757_L2A",
        collection="sentinel-2-c1-l2a",
        properties={"earthsearch:boa_offset_applied": None, "s2:processing_baseline": "05.00"},
    )
    result = search(write(newer, older, collection_1), RGB, WORLD, EVER)
    assert [scene.collection for scene in result.scenes] == ["sentinel-2-c1-l2a"] and len(result.replaced) == 2
    assert result.scenes[0].group == "S2A_20230815T095031", "one datatake has one name in both collections"


def test_an_unusable_processing_gives_way_to_the_next(write: Write) -> None:
    good = s2_item("S2A_33TWM_20230815_0_L2A")
    bare = s2_item("S2A_33TWM_20230815_1_L2A", properties={"s2:sequence": "1"}, assets={"blue": {"href": "b.tif"}})
    result = search(write(good, bare), RGB, WORLD, EVER)
    assert [scene.id for scene in result.scenes] == [good["id"]] and result.replaced == ()
    (refused,) = result.refused
    assert refused == (bare["id"], "has no asset for B03 (green or B03 or B03_10m), B04 (red or B04 or B04_10m)")


def test_the_two_halves_of_a_split_tile_are_both_kept(write: Write) -> None:
    south = s2_item("S2A_33TWM_20230815_0_L2A", geometry=box_of(15.0, 46.0, 16.4, 46.52))
    north = s2_item("S2A_33TWM_20230815_1_L2A", geometry=box_of(15.0, 46.5, 16.4, 47.0))
    result = search(write(south, north), RGB, WORLD, EVER)
    assert [scene.id for scene in result.scenes] == [south["id"], north["id"]] and not result.replaced


def test_the_datatakes_start_is_the_time_whatever_tiles_are_found(write: Write) -> None:
    tile = s2_item("S2A_33TWM_20230815_0_L2A")
    other = s2_item(
        "S2A_33TWL_20230815_0_L2A",
        properties={"grid:code": "MGRS-33TWL", "datetime": "2023-08-15T09:58:12.1Z"},
        geometry=box_of(15.0, 45.1, 16.4, 46.0),
    )
    both = search(write(tile, other), RGB, WORLD, EVER).scenes
    assert [(s.group, s.time) for s in both] == [("S2A_20230815T095031", "2023-08-15T09:50:31Z")] * 2
    assert [s.datetime for s in both] == ["2023-08-15T09:58:12.100Z", "2023-08-15T09:57:57.246Z"]
    alone = search(write(tile, other), RGB, (15.1, 46.5, 15.2, 46.6), EVER).scenes
    assert [(s.id, s.time) for s in alone] == [(tile["id"], "2023-08-15T09:50:31Z")]


def test_sentinel1_slices_of_one_datatake_share_a_time(shared_dir: Path) -> None:
    path = shared_dir / "data" / "stac_json" / "planetary-computer" / "sentinel-1-rtc-pc.json"
    found: list[dict[str, Any]] = []

    def gather(part: Any) -> None:
        if isinstance(part, dict) and part.get("type") == "Feature":
            found.append(part)
        elif isinstance(part, (dict, list)):
            for value in part.values() if isinstance(part, dict) else part:
                gather(value)

    gather(json.loads(path.read_text()))
    fsspec.filesystem("memory").pipe(
        "/s1/items.json", json.dumps({"type": "FeatureCollection", "features": found}).encode()
    )
    result = search("memory://s1/items.json", get_sensor("S1RTC"), WORLD, EVER)
    assert {(scene.group, scene.time) for scene in result.scenes} == {("S1A_053498_067DF2", "2024-04-19T04:58:01Z")}
    assert len(result.scenes) == 4 and len({scene.datetime for scene in result.scenes}) == 4
    assert {s.radiometry.kind for scene in result.scenes for s in scene.sources} == {"power"}


@pytest.mark.parametrize(
    ("name", "properties", "group", "tile"),
    [
        ("x", {"sentinel:product_id": "S2A_MSIL2A_20190524T101031_N0212_R022_T31NBJ_20190524T130304",
               "sentinel:utm_zone": 31, "sentinel:latitude_band": "N", "sentinel:grid_square": "BJ"},
         "S2A_20190524T101031", "31NBJ"),
        ("S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531", {}, "S2B_20190629T212529", "06VVN"),
        ("x", {"sentinel2:product_title": "S2B_MSIL2A_20230115T232919_N0509_R130_T60VXH_20230503T100334",
               "grid:code": "MGRS-60VXH"}, "S2B_20230115T232919", "60VXH"),
        ("S2B_36MXE_20240131_0_L2A", {"datetime": "2024-01-31T08:10:11.584Z", "sat:relative_orbit": 78},
         "sentinel-2b_R078_20240131", "36MXE"),
        ("mine", {"datetime": "2024-01-31T08:10:11.584Z", "platform": "PlanetScope"},
         "planetscope_20240131T081011", None),
    ],
)  # fmt: skip
def test_the_datatake_and_tile_are_found_in_every_catalogues_spelling(
    name: str, properties: dict[str, Any], group: str, tile: str | None
) -> None:
    found = identify({"id": name, "properties": properties})
    assert (found.group, found.tile) == (group, tile)


def test_items_over_the_antimeridian_are_found_from_both_sides(write: Write, shared_dir: Path) -> None:
    folder = shared_dir / "data" / "stac_json" / "earth-search-v1" / "mapchete_antimeridian_items"
    path = write(*(json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))))
    fiji = search(path, RGB, parse_bbox(178.5, 55, -179.5, 61), EVER)
    across = [scene for scene in fiji.scenes if scene.bbox[0] > scene.bbox[2]]
    assert across and {source.radiometry.offset for scene in across for source in scene.sources} == {-0.1}
    for box in ((179.5, 56, 179.9, 57), (-179.9, 56, -179.7, 57)):
        ids = {scene.id for scene in search(path, RGB, box, EVER).scenes}
        assert ids & {scene.id for scene in across}
    assert search(path, RGB, (-60, 50, 60, 62), EVER).scenes == ()


def contradictory(catalog_json: Path, tmp_path: Path, place: str) -> str:
    """A copy of one real item whose baseline says offset and whose raster:bands say none."""
    folder = catalog_json.parent / "sentinel-2-l2a" / place
    copy = tmp_path / place
    shutil.copytree(folder, copy)
    item = json.loads((copy / f"{place}.json").read_text())
    item["properties"].update({"s2:processing_baseline": "05.09", "earthsearch:boa_offset_applied": False})
    for asset in item["assets"].values():
        asset["raster:bands"][0]["offset"] = 0
    (copy / f"{place}.json").chmod(0o644)
    (copy / f"{place}.json").write_text(json.dumps(item))
    return str(copy / f"{place}.json")


@pytest.mark.parametrize(
    ("place", "offset"),
    [("S2L2A_433D_629L_3_1", -0.1), ("S2L2A_282D_485L_3_3", 0.0), ("S2L2A_38D_378R_2_3", 0.0)],
)
def test_contradictions_are_decided_by_the_real_pixels(
    catalog_json: Path, tmp_path: Path, place: str, offset: float
) -> None:
    (scene,) = search(contradictory(catalog_json, tmp_path, place), get_sensor("S2L2A"), WORLD, EVER).scenes
    assert {source.radiometry.offset for source in scene.sources} == {offset}
    assert "dark tail B02" in scene.sources[0].radiometry.why


def test_contradictions_that_pixels_do_not_settle_are_refused_with_the_reason(write: Write) -> None:
    nothing = {"earthsearch:boa_offset_applied": None, "s2:datatake_id": None, "s2:processing_baseline": None}
    odd = s2_item("S2A_33TWM_20230815_0_L2A", properties=nothing)
    bright = np.full((64, 64), 3000, np.uint16)
    result = search(write(odd), RGB, WORLD, EVER, read_overview=lambda href: bright)
    assert result.scenes == () and "dark tails do not decide (B02 3000, B04 3000)" in result.refused[0][1]
    assert "0 usable (S2A_33TWM_20230815_0_L2A: metadata do not settle the offset" in result.searched


def test_the_pixels_veto_a_wrong_flag_only_when_asked_and_only_where_suspect(write: Write) -> None:
    wrong = s2_item("S2A_33TWM_20230815_0_L2A", properties={"earthsearch:boa_offset_applied": False})
    plain = s2_item("S2A_33TWL_20230815_0_L2A", properties={"grid:code": "MGRS-33TWL"}, geometry=box_of(15, 45, 16, 46))
    asked: list[str] = []

    def dark(href: str) -> Any:
        asked.append(href)
        return np.full((64, 64), 300, np.uint16)

    trusted = search(write(wrong, plain), RGB, WORLD, EVER, read_overview=dark)
    assert not asked and {s.id: s.sources[0].radiometry.offset for s in trusted.scenes}[wrong["id"]] == -0.1
    checked = search(write(wrong, plain), RGB, WORLD, EVER, read_overview=dark, check_pixels=True)
    assert [Path(href).name for href in asked] == ["B02.tif"] and wrong["id"] in asked[0]
    assert {s.sources[0].radiometry.offset for s in checked.scenes} == {0.0}

    def broken(href: str) -> Any:
        raise OSError("timeout")

    kept = search(write(wrong), RGB, WORLD, EVER, read_overview=broken, check_pixels=True)
    assert kept.scenes[0].sources[0].radiometry.offset == -0.1, "a failed read is no veto"


def test_collections_of_other_names_are_taken_by_their_assets(write: Write) -> None:
    mine = s2_item("S2A_33TWM_20230815_0_L2A", collection="my-copies")
    assert [scene.id for scene in search(write(mine), RGB, WORLD, EVER).scenes] == [mine["id"]]
    l1c = s2_item("S2A_33TWM_20230815_0_L1C", collection="sentinel-2-l1c")
    result = search(write(l1c), RGB, WORLD, EVER)
    assert result.refused == ((l1c["id"], "is Sentinel-2 L1C, S2L2A is L2A"),)


def test_a_catalogue_on_any_fsspec_url(catalog_json: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in catalog_json.parent.rglob("*.json"):
        memory.pipe(f"/bucket/{path.relative_to(catalog_json.parent)}", path.read_bytes())
    result = search("memory://bucket/catalog.json", get_sensor("S2L2A"), WORLD, EVER)
    assert len(result.scenes) == 3
    assert result.scenes[0].sources[0].href == "memory://bucket/sentinel-2-l2a/S2L2A_433D_629L_3_1/B01.tif"


def test_catalogues_that_are_none_say_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("print('no JSON')")
    (tmp_path / "other.json").write_text('{"answer": 42}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.json").write_text('{"type": "FeatureCollection", "features": [], "links": [{"rel": "next"}]}')
    cases = {
        "nowhere/catalog.json": "no such file",
        "earth-serch": "did you mean earth-search",
        str(tmp_path / "code.py"): "is not STAC: it holds no JSON",
        str(tmp_path / "other.json"): "is not STAC: no catalogue, collection or item",
        str(tmp_path / "empty"): "folder without catalog.json",
        str(tmp_path / "page.json"): "one page of a search",
        "memory://absent/catalog.json": "cannot read memory://absent/catalog.json",
        "nonsense://x/catalog.json?token=hush": "cannot read nonsense://x/catalog.json: ",
    }
    for place, says in cases.items():
        with pytest.raises(InputError, match=says) as caught:
            search(place, RGB, WORLD, EVER)
        assert "\n" not in str(caught.value) and "hush" not in str(caught.value)
    with pytest.raises(InputError, match="is empty"):
        search("earth-search", RGB, (0, -95, 1, -94), EVER)


def test_hrefs_with_a_foreign_signature_are_refused_and_never_written(write: Write) -> None:
    secret = s2_item("S2A_33TWM_20230815_0_L2A")
    secret["assets"]["blue"]["href"] = "https://host/B02.tif?X-Amz-Signature=hush"
    result = search(write(secret), RGB, WORLD, EVER)
    assert result.scenes == () and "carry a signature" in result.refused[0][1] and "hush" not in str(result)


def test_signing_happens_late_and_only_for_its_signer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sign("s3://bucket/B02.tif", None) == "s3://bucket/B02.tif"
    with pytest.raises(InputError, match="unknown signer 'me'"):
        sign("https://host/B02.tif", "me")
    module = type(sys)("planetary_computer")
    module.__spec__ = __import__("importlib.machinery").machinery.ModuleSpec("planetary_computer", None)
    monkeypatch.setitem(sys.modules, "planetary_computer", module)
    module.sign_url = lambda url: f"{url}?sig=fresh"  # type: ignore[attr-defined]
    assert sign("https://blob/B02.tif", "planetary-computer") == "https://blob/B02.tif?sig=fresh"

    def fails(url: str) -> str:
        raise RuntimeError(f"429 at {url}?sig=hush")

    module.sign_url = fails  # type: ignore[attr-defined]
    monkeypatch.setattr("eocube.scenes.search.shared_network", lambda: Network(NetworkLimits(tries=1)))  # no waits
    with pytest.raises(SourceError, match=r"cannot sign https://blob/B02\.tif: RuntimeError") as caught:
        sign("https://blob/B02.tif?x=1", "planetary-computer")
    assert "hush" not in str(caught.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'eocube\[pc\]'"):
        sign("https://blob/B02.tif", "planetary-computer")


@pytest.mark.parametrize(
    ("href", "base", "absolute"),
    [
        ("./B02.tif", "/data/items/a.json", "/data/items/B02.tif"),
        ("../x/B02.tif", "s3://bucket/items/a.json", "s3://bucket/x/B02.tif"),
        ("../x.tif", "https://host/a/b/c.json?sig=1", "https://host/a/x.tif"),
        ("/abs/x.tif", "https://host/a/b/c.json", "https://host/abs/x.tif"),
        ("/abs/x.tif", "/data/a.json", "/abs/x.tif"),
        ("file:///abs/x.tif", "s3://bucket/a.json", "/abs/x.tif"),
        ("s3://other/x.tif", "/data/a.json", "s3://other/x.tif"),
    ],
)
def test_hrefs_are_seen_from_the_file_that_holds_them(href: str, base: str, absolute: str) -> None:
    assert resolve_href(href, base) == absolute
    assert safe_url("https://me:word@host:8000/a?sig=1") == "https://host:8000/a"
