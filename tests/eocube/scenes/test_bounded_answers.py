"""Catalogues without end, or that answer drop by drop: refused in one line, in bounded bytes, pages and seconds."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eocube.errors import InputError
from eocube.ground.boxes import parse_interval
from eocube.net.http_client import read_range
from eocube.net.network import Network, NetworkLimits
from eocube.net.ranged_file import RangedFile
from eocube.net.storage_options import filesystem_for
from eocube.scenes.fetch import AnswerLimits, Budget, load_json
from eocube.scenes.search import search
from eocube.scenes.stac import Found, known_collections, search_api, walk_static
from eocube.sensors import get_sensor
from tests.eocube.sites import Handler, api, item, next_page, serve

WORLD, EVER = (-180.0, -90.0, 180.0, 90.0), parse_interval("2000/2050")
QUICK = NetworkLimits(first_wait=0.001, longest_wait=0.01)
LIMITS = AnswerLimits(document_bytes=2**20, document_seconds=30, seconds=60)
SHORT = replace(LIMITS, document_seconds=0.3)
# A server that drips is cut off at once; one that keeps on sending is cut off at the limit and some buffers more.
BUFFERS = 64 * 2**20


def find(url: str, limits: AnswerLimits = LIMITS) -> list[Found]:
    return search_api(
        url, ["sentinel-2-l2a"], [WORLD], EVER, network=Network(QUICK), budget=Budget("the catalogue", limits)
    )


def load(url: str, limits: AnswerLimits = LIMITS) -> Any:
    return load_json(url, network=Network(QUICK), budget=Budget("the catalogue", limits))


def one_line(caught: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


def moment(number: int) -> str:
    return f"2023-08-{number // 1440 % 28 + 1:02}T{number // 60 % 24:02}:{number % 60:02}:00Z"


# -- pages


def test_a_next_link_to_itself_ends() -> None:
    with serve(api(lambda h, n: {"features": [item("a")], "links": next_page(h, 1)})) as site:
        with pytest.raises(InputError, match="pages lead in a circle after 2 of them"):
            find(site.url)
        assert len(site.seen) == 3


def test_a_circle_of_several_pages_ends() -> None:
    answer = api(lambda h, n: {"features": [item(f"i{n}")], "links": next_page(h, n % 3 + 1)})
    with serve(answer) as site, pytest.raises(InputError, match="circle after 4"):
        find(site.url)


def test_pages_that_bring_nothing_new_end() -> None:
    with serve(api(lambda h, n: {"features": [item("a")], "links": next_page(h, n + 1)})) as site:
        with pytest.raises(InputError, match="its last 3 pages repeat items of earlier ones"):
            find(site.url)
        assert len(site.seen) == 5


def test_new_ids_of_one_acquisition_on_every_page_end() -> None:
    def page(handler: Handler, number: int) -> dict[str, Any]:
        return {"features": [item(f"S2A_{number}_{k}") for k in range(100)], "links": next_page(handler, number + 1)}

    with serve(api(page)) as site:
        with pytest.raises(InputError, match="items of one moment and place under new ids, 201 so far") as caught:
            find(site.url)
        assert "2023-08-15T09:57:57Z" in one_line(caught) and len(site.seen) == 4


def ever_new(handler: Handler, number: int, size: int = 10) -> dict[str, Any]:
    items = [item(f"S2A_{k}", datetime=moment(k)) for k in range(size * number, size * number + size)]
    return {"features": items, "links": next_page(handler, number + 1)}


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (replace(LIMITS, items=55), "gives more than 55 items to one search: narrow --bbox or --datetime"),
        (replace(LIMITS, documents=4), "gives more than 4 documents to one search"),
        (replace(LIMITS, bytes=50_000), "to one search: narrow"),
    ],
)
def test_pages_without_end_end_at_each_of_the_bounds(limits: AnswerLimits, words: str) -> None:
    with serve(api(ever_new)) as site, pytest.raises(InputError, match=words) as caught:
        find(site.url, limits)
    assert one_line(caught).startswith("the catalogue gives")


def test_a_search_that_takes_for_ever_ends() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            self.now += 1.0
            return self.now

    with serve(api(ever_new)) as site:
        budget = Budget("the catalogue", replace(LIMITS, seconds=20), Clock())
        with pytest.raises(InputError, match="the catalogue gives an answer of more than 20 s to one search"):
            search_api(site.url, ["sentinel-2-l2a"], [WORLD], EVER, network=Network(QUICK), budget=budget)
        assert 2 < len(site.seen) < 20


def test_a_long_search_that_ends_comes_whole() -> None:
    """Of 40 pages, some of them repeated in part, as when items are added meanwhile."""

    def page(handler: Handler, number: int) -> dict[str, Any]:
        found = ever_new(handler, number)
        repeated = [item(f"S2A_{k}", datetime=moment(k)) for k in range(max(0, 10 * number - 5), 10 * number)]
        return {"features": [*repeated, *found["features"]], "links": found["links"] if number < 39 else []}

    with serve(api(page)) as site:
        found = find(site.url)
    assert [one.item["id"] for one in found] == [f"S2A_{k}" for k in range(400)]


def test_the_limits_let_a_country_through() -> None:
    """Items, pages and bytes of a few hundred thousand scenes of the richest catalogue, counted out."""
    budget = Budget("the catalogue")
    for _ in range(4_000):
        budget.document(100 * 30_000)
    for _ in range(400_000):
        budget.item()


def test_collections_without_end_end() -> None:
    extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
    landing = api(lambda h, n: {})

    def answer(handler: Handler) -> None:
        if not handler.path.startswith("/collections"):
            landing(handler)
            return
        number = int(handler.path.partition("?p=")[2] or 0)
        one = {"type": "Collection", "id": f"c{number}", "stac_version": "1.0.0", "description": "d", "license": "x",
               "extent": extent, "links": []}  # fmt: skip
        link = {"rel": "next", "href": f"http://{handler.headers['Host']}/collections?p={number + 1}"}
        handler.json({"collections": [one], "links": [link]})

    with serve(answer) as site, pytest.raises(InputError, match="more than 20 documents"):
        known_collections(site.url, ["x"], Network(QUICK), budget=Budget("it", replace(LIMITS, documents=20)))


@pytest.mark.parametrize("href", ["/etc/hostname", "file:///etc/hostname", "ftp://127.0.0.1/x", "s3://bucket/x.json"])
def test_no_api_leads_to_a_file_of_this_machine(href: str) -> None:
    def page(handler: Handler, number: int) -> dict[str, Any]:
        return {"features": [item("a")], "links": [{"rel": "next", "href": href}]}

    with serve(api(page)) as site, pytest.raises(InputError, match="is no web address"):
        find(site.url)


@pytest.mark.parametrize("page", [[], "text", {"links": 3}, {"links": [7], "features": [item("a")]}])
def test_a_page_that_is_no_page_is_no_traceback(page: Any) -> None:
    landing = api(lambda h, n: {})

    def answer(handler: Handler) -> None:
        if handler.path.startswith("/search"):
            handler.json(page)
        else:
            landing(handler)

    with serve(answer) as site:
        try:
            assert len(find(site.url)) <= 1
        except InputError as error:
            assert "cannot search" in str(error)


# -- documents


def forever(handler: Handler) -> None:
    handler.head(Content_Type="application/json")
    handler.write(b'{"type":"Catalog","x":"')
    while True:
        handler.write(b"a" * 2**16)


BOMB = gzip.compress(b'{"type":"Catalog","x":"' + b"a" * 2**24 + b'"}', 1)


def bomb(handler: Handler) -> None:
    handler.send(200, BOMB, Content_Encoding="gzip", Content_Type="application/json")


def dripping(handler: Handler) -> None:
    handler.head(Content_Type="application/json")
    handler.drip(itertools.repeat(b" "))


def dripping_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    handler.drip(b"X-%d: y\r\n" % k for k in itertools.count())


def deep(handler: Handler) -> None:
    handler.send(200, b"[" * 100_000 + b"]" * 100_000)


def wide(handler: Handler) -> None:
    handler.send(200, b"[" + b"[]," * 100_000 + b"[]]")


CASES: list[tuple[Callable[[Handler], None], AnswerLimits, str]] = [
    (forever, LIMITS, "larger than 1 MiB"),
    (bomb, LIMITS, "larger than 1 MiB"),
    (dripping, SHORT, "takes more than 0.3 s"),
    (dripping_headers, SHORT, "takes more than 0.3 s"),
    (deep, LIMITS, "nested too deep"),
    (wide, replace(LIMITS, document_values=1_000), "more than 1,000 values"),
]


@pytest.mark.parametrize(("answer", "limits", "words"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_document_without_end_is_refused_and_not_asked_for_again(
    answer: Callable[[Handler], None], limits: AnswerLimits, words: str
) -> None:
    with serve(answer) as site:
        with pytest.raises(InputError, match=words) as caught:
            load(f"{site.url}/catalog.json", limits)
        assert site.url in one_line(caught)
        assert len(site.seen) <= 1 and site.sent < BUFFERS


@pytest.mark.parametrize(("answer", "limits", "words"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_a_page_without_end_is_refused_and_not_asked_for_again(
    answer: Callable[[Handler], None], limits: AnswerLimits, words: str
) -> None:
    landing = api(lambda h, n: {})

    def search_only(handler: Handler) -> None:
        (answer if handler.path.startswith("/search") else landing)(handler)

    with serve(search_only) as site:
        with pytest.raises(InputError, match=words) as caught:
            find(site.url, limits)
        assert site.url in one_line(caught)
        assert sum(path.startswith("/search") for path, _ in site.seen) <= 1 and site.sent < BUFFERS


def test_silence_is_asked_again_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(handler: Handler) -> None:
        handler.head(Content_Length=100)
        time.sleep(1)

    with serve(silent) as site:
        network = Network(replace(QUICK, tries=2))
        budget = Budget("the catalogue", replace(LIMITS, silence=0.1))
        with pytest.raises(InputError, match="cannot read"):
            load_json(site.url, network=network, budget=budget)
        assert len(site.seen) == 2


def test_compressed_documents_within_the_limits_are_read() -> None:
    document = {"type": "Catalog", "x": "a" * 1000}
    with serve(lambda h: h.send(200, gzip.compress(json.dumps(document).encode()), Content_Encoding="gzip")) as site:
        assert load(site.url) == document


def test_a_file_of_this_machine_may_be_larger(tmp_path: Path) -> None:
    (tmp_path / "items.json").write_text(json.dumps({"x": "a" * 2**21}))
    assert len(load(str(tmp_path / "items.json"))["x"]) == 2**21


def test_a_static_catalogue_without_end_in_breadth_ends() -> None:
    def answer(handler: Handler) -> None:
        links = [{"rel": "child", "href": f"{handler.path.rstrip('/')}/{k}"} for k in range(10)]
        handler.json({"type": "Catalog", "stac_version": "1.0.0", "id": "x", "description": "d", "links": links})

    with serve(answer) as site:
        with pytest.raises(InputError, match="more than 50 documents to one search"):
            walk_static(f"{site.url}/c", lambda name: True, budget=Budget("it", replace(LIMITS, documents=50)))
        assert len(site.seen) < 200


def test_a_search_of_an_api_that_loops_is_one_line_for_the_user() -> None:
    with serve(api(lambda h, n: {"features": [item("a")], "links": next_page(h, 1)})) as site:
        with pytest.raises(InputError, match=f"cannot search {site.url}: its pages lead in a circle") as caught:
            search(site.url, get_sensor("S2L2A").subset(["B02"]), WORLD, EVER)
        one_line(caught)


# -- parts of files


def test_a_server_that_knows_no_ranges_is_read_no_further_than_the_range() -> None:
    def answer(handler: Handler) -> None:
        handler.head(Content_Length=10**15)
        while handler.command == "GET":
            handler.write(b"a" * 2**16)

    with serve(answer) as site:
        filesystem, path = filesystem_for(f"{site.url}/b.tif", {})
        with pytest.raises(ConnectionError, match="1048576 bytes were asked for"):
            read_range(filesystem, path, 0, 2**20)
        file = RangedFile(filesystem, path, site.host, Network(replace(QUICK, tries=2)))
        with pytest.raises(ConnectionError, match="were asked for"):
            file.read(100)
        assert site.sent < 2 * BUFFERS
