"""STAC APIs over real HTTP: recorded pages replayed, broken, cut and repeated; nothing may go missing silently."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from eocube.errors import InputError
from eocube.net.network import Network, NetworkLimits
from eocube.scenes import search as catalog_module
from eocube.scenes.search import parse_interval, search
from eocube.scenes.stac import known_collections, search_api
from eocube.sensors import get_sensor

RECORDED = "https://earth-search.aws.element84.com/v1"
WORLD = (-180.0, -90.0, 180.0, 90.0)
DAY = parse_interval("2025-07-31")
QUICK = NetworkLimits(first_wait=0.01)


@dataclass
class Replay:
    """A STAC API on localhost that answers by the request's body, as the recorded one did.

    `pages` are keyed by the `next` token of the body ("" is the first request); `faults` are used up one a search
    request: "503", "429", "cut" (the body breaks off), "garbage" (200 with half a JSON), "404".
    """

    landing: dict[str, Any]
    pages: dict[str, dict[str, Any]]
    faults: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def answer(self, document: Any) -> bytes:
        return json.dumps(document).replace(RECORDED, self.url).encode()


class Handler(BaseHTTPRequestHandler):
    replay: Replay

    def log_message(self, *args: object) -> None:
        """Quiet."""

    def send(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path.rstrip("/") == "/collections":
            ids = ("sentinel-2-l2a", "other")
            collections = [
                {
                    "type": "Collection",
                    "stac_version": "1.0.0",
                    "id": name,
                    "description": name,
                    "license": "other",
                    "extent": {"spatial": {"bbox": [list(WORLD)]}, "temporal": {"interval": [[None, None]]}},
                    "links": [],
                }
                for name in ids
            ]
            self.send(200, self.replay.answer({"collections": collections, "links": []}))
        else:
            self.send(200, self.replay.answer(self.replay.landing))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.replay.bodies.append(body)
        page = self.replay.answer(self.replay.pages[body.get("next", "")])
        fault = self.replay.faults.pop(0) if self.replay.faults else ""
        if fault.isdigit():
            self.send(int(fault), b'{"code": "fault"}')
        elif fault == "cut":
            self.send(200, page[: len(page) // 2], length=len(page))
        elif fault == "garbage":
            self.send(200, page[: len(page) // 2])
        else:
            self.send(200, page)


def recorded_bodies(shared_dir: Path, name: str) -> list[dict[str, Any]]:
    """The JSON of every response in a VCR recording, in order."""
    text = (shared_dir / "data" / "stac_json" / "cassettes" / name).read_text()
    exchanges = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["interactions"]
    return [json.loads(exchange["response"]["body"]["string"]) for exchange in exchanges]


@pytest.fixture
def replay(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replay]:
    """The two recorded pages of Earth Search, with the end where the recording stops."""
    name = "earthsearch_v1_search_filter_s1grd_s2c1_s2l2a_s2l1c.yaml"
    landing, first, second = recorded_bodies(shared_dir, name)
    (token,) = (link["body"]["next"] for link in first["links"] if link["rel"] == "next")
    second["links"] = [link for link in second["links"] if link["rel"] != "next"]
    for page in (first, second):
        page["numberMatched"] = page["context"]["matched"] = 20
    state = Replay(landing, {"": first, token: second})
    handler = type("Bound", (Handler,), {"replay": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def fetch(replay: Replay, **options: Any) -> list[Any]:
    return search_api(replay.url, ["sentinel-2-l2a"], [WORLD], DAY, network=Network(QUICK), **options)


def ids(found: list[Any]) -> list[tuple[str, str]]:
    return [(one.item["collection"], one.item["id"]) for one in found]


def test_all_items_of_all_pages_arrive_in_order(replay: Replay) -> None:
    found = fetch(replay)
    recorded = [(item["collection"], item["id"]) for page in replay.pages.values() for item in page["features"]]
    assert ids(found) == recorded and len(recorded) == 20
    assert replay.bodies[0]["collections"] == ["sentinel-2-l2a"] and replay.bodies[0]["limit"] == 100
    assert replay.bodies[0]["datetime"] == "2025-07-31T00:00:00.000Z/2025-07-31T23:59:59.999Z"
    assert list(replay.bodies[1]) == ["next"], "the page link says merge: false, so its body goes alone"


def test_a_failing_page_is_asked_for_again(replay: Replay) -> None:
    whole = ids(fetch(replay))
    for faults in (["503"], ["", "503", "429"], ["cut"], ["", "cut", "garbage"], ["", "500", "cut", "502"]):
        replay.faults[:] = faults
        assert ids(fetch(replay)) == whole, faults
        assert not replay.faults


@pytest.mark.parametrize("fault", ["cut", "garbage", "503", "404"])
@pytest.mark.parametrize("page", [0, 1])
def test_a_page_that_stays_broken_raises_rather_than_returning_fewer(replay: Replay, page: int, fault: str) -> None:
    replay.faults[:] = [""] * page + [fault] * 40
    with pytest.raises(InputError, match=f"cannot search {replay.url}") as caught:
        fetch(replay)
    assert "\n" not in str(caught.value)
    assert len(replay.faults) > 20, "gives up soon"


def test_items_repeated_over_pages_count_once(replay: Replay) -> None:
    first, second = replay.pages.values()
    second["features"] += first["features"][-4:]
    assert len(fetch(replay)) == 20


def test_a_search_that_ends_before_all_its_matches_came_raises(replay: Replay) -> None:
    second = list(replay.pages.values())[1]
    second["features"] = second["features"][:3]
    with pytest.raises(InputError, match="said 20 items match but its pages held 13"):
        fetch(replay)


def test_several_boxes_give_each_item_once(replay: Replay) -> None:
    found = search_api(replay.url, ["x"], [(170, -9, 180, 9), (-180, -9, -170, 9)], DAY, network=Network(QUICK))
    assert len(found) == 20
    assert [body["bbox"] for body in replay.bodies if "bbox" in body] == [[170, -9, 180, 9], [-180, -9, -170, 9]]


def test_planetary_computers_recorded_search(shared_dir: Path, replay: Replay) -> None:
    """33 items twice in the recording, as if on two pages: each counts once; no page number is promised there."""
    text = (shared_dir / "data" / "stac_json" / "cassettes" / "pc_s2l2a_datetime_search_66items.yaml").read_text()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    first, second = (
        json.loads(exchange["response"]["body"]["string"])
        for exchange in yaml.load(text, Loader=loader)["interactions"]
    )
    link = {"rel": "next", "href": f"{RECORDED}/search", "method": "POST", "merge": True, "body": {"next": "token:2"}}
    first["links"] = [*first.get("links", []), link]
    replay.pages = {"": first, "token:2": second}
    found = fetch(replay)
    expected = {item["id"] for page in (first, second) for item in page["features"]}
    assert {one.item["id"] for one in found} == expected and len(found) == len(expected)
    assert replay.bodies[1]["collections"] == ["sentinel-2-l2a"], "merge: true keeps the search's own parameters"


def test_planetary_computers_scenes_are_signed_late(
    shared_dir: Path, replay: Replay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is declared there, so the baseline decides; hrefs stay unsigned and name their signer."""
    pytest.importorskip("planetary_computer")
    first = recorded_bodies(shared_dir, "pc_s2l2a_datetime_search_66items.yaml")[0]
    first["features"][0]["assets"]["B02"]["href"] += "?st=1&sig=hush"
    replay.pages = {"": first}
    monkeypatch.setattr(catalog_module, "PRESETS", {"planetary-computer": replay.url})
    result = search("planetary-computer", get_sensor("S2L2A"), WORLD, parse_interval("2019-01-01"))
    assert len(result.scenes) == len({item["id"] for item in first["features"]}) and not result.refused
    assert {scene.signer for scene in result.scenes} == {"planetary-computer"}
    assert {scene.group for scene in result.scenes} == {"S2A_20190101T000001"}
    assert {source.radiometry.offset for scene in result.scenes for source in scene.sources} == {0.0}
    assert "?" not in "".join(source.href for scene in result.scenes for source in scene.sources)


def test_search_prefers_collection_1_over_pages(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile's three products lie on two pages; Collection-1 wins, L1C and Sentinel-1 are refused with the reason."""
    monkeypatch.setattr(catalog_module, "PRESETS", {"earth-search": replay.url})
    result = search("earth-search", get_sensor("S2L2A"), WORLD, DAY)
    assert len(result.scenes) == 6
    assert {scene.collection for scene in result.scenes} == {"sentinel-2-c1-l2a"}
    assert {source.radiometry.offset for scene in result.scenes for source in scene.sources} == {-0.1}
    assert len(result.replaced) == 6
    assert ("S2B_24MVV_20250731_0_L2A", "S2B_T24MVV_20250731T130245_L2A") in result.replaced
    reasons = dict(result.refused)
    assert reasons["S2B_24MVV_20250731_0_L1C"] == "is Sentinel-2 L1C, S2L2A is L2A"
    assert "has no asset for" in reasons["S1A_IW_GRDH_1SSH_20250731T135702_20250731T135722_060328_077F7E"]
    groups = {scene.group: scene.time for scene in result.scenes}
    assert groups == {"S2B_20250731T131909": "2025-07-31T13:19:09Z", "S2B_20250731T130249": "2025-07-31T13:02:49Z"}
    assert result.searched.startswith("searched earth-search (http://127.0.0.1")


def test_any_api_is_asked_for_the_collections_it_has(replay: Replay) -> None:
    wanted = ("sentinel-2-c1-l2a", "sentinel-2-l2a")
    assert known_collections(replay.url, wanted, network=Network(QUICK)) == ("sentinel-2-l2a",)
    result = search(replay.url + "/", get_sensor("S2L2A"), WORLD, DAY)
    assert replay.bodies[0]["collections"] == ["sentinel-2-l2a"]
    assert len(result.scenes) == 6 and result.scenes[0].signer is None
    with pytest.raises(InputError, match="has none of the collections of S1RTC: sentinel-1-rtc"):
        search(replay.url, get_sensor("S1RTC"), WORLD, DAY)


def test_an_api_that_is_not_there_is_named_without_its_query() -> None:
    with pytest.raises(InputError, match=r"cannot search http://127.0.0.1:9/stac: ") as caught:
        search_api("http://user:word@127.0.0.1:9/stac?token=hush", ["x"], [WORLD], DAY, network=Network(QUICK))
    assert "hush" not in str(caught.value) and "word" not in str(caught.value)


def test_presets_without_the_sensors_collection_name_those_that_have_it() -> None:
    with pytest.raises(InputError, match="earth-search has no collection for S1RTC; try --catalog planetary-computer"):
        search("earth-search", get_sensor("S1RTC"), WORLD, DAY)
