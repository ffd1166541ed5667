"""The page in a browser, on a real server and cubes: every control by pointer and by keyboard, wide and narrow."""

from __future__ import annotations

import json
import math
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import rasterio

from eocube.cli import encode_main
from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.run.request import Exit
from eocube.serve import app
from eocube.serve.app import Serving
from eocube.serve.cube import open_cubes
from tests.eocube.cubes import held_back, make_plan, make_store, make_weights
from tests.eocube.serve.browser import FAINT, FOCUSED, NARROW, WIDE, Seen, chromium, page_of
from tests.eocube.serve.running import Running, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

DATES = tuple(f"2023-0{month}-15T09:57:57Z" for month in (5, 6, 7, 8))
both = pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "390"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as one:
        yield one


@pytest.fixture(scope="module")
def server(browser: Browser, tmp_path_factory: pytest.TempPathFactory, demo_catalog: Path) -> Iterator[Running]:
    """The demo, two dates with their sources, and a small cube of four dates without any."""
    folder = tmp_path_factory.mktemp("page")
    demo, small = folder / "demo.zarr", folder / "small.zarr"
    box = " ".join(map(str, DEMO_BBOX)).split()
    words = ["--bbox", *box, "--datetime", DEMO_DATETIME, "--sensor", "S2L2A", "--catalog", str(demo_catalog)]
    assert encode_main([*words, "--out", str(demo)]) == Exit.DONE
    make_store(str(small), make_plan(make_weights(folder / "tiny.safetensors"), times=DATES))
    cubes = open_cubes([str(demo), str(small)])
    with running(cubes, Serving(memory=300_000_000, source=True, allow_local=True)) as one:
        yield one


def asked(server: Running, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=120) as answer:
        return json.load(answer)


def shown_number(text: str) -> float:
    """A number as the page writes it."""
    return float(text.replace("\N{MINUS SIGN}", "-"))


def colours_on(seen: Seen, selector: str = "#map") -> np.ndarray:
    """(H, W, 3) of a screenshot of an element."""
    with rasterio.MemoryFile(seen.find(selector).screenshot()) as file, file.open() as image:
        return np.moveaxis(image.read([1, 2, 3]), 0, -1)


@both
def test_it_opens_without_a_word_of_complaint(browser: Browser, server: Running, size: tuple[int, int]) -> None:
    with page_of(browser, server.port, size) as seen:
        seen.open()
        assert seen.said == [] and seen.strangers() == []
        assert "demo" in seen.page.title() and seen.tiles()
        assert colours_on(seen).reshape(-1, 3).std(axis=0).max() > 10, "the map is of one colour"
        wider = seen.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wider <= 0, "it is wider than the window"
        layers = {layer["title"] for layer in asked(server, "/api/cubes")["cubes"][0]["layers"]}
        assert set(seen.find("#layers .choice span").all_text_contents()) == layers


@both
def test_dates_change_by_pointer_and_by_keyboard(browser: Browser, server: Running, size: tuple[int, int]) -> None:
    with page_of(browser, server.port, size) as seen:
        seen.open("#cube=1&time=0")
        slider = seen.find("#timeline")
        assert seen.text("#date") == "15 May 2023" and slider.get_attribute("aria-valuenow") == "1"
        assert "windows ok" in seen.text("#date-more")
        slider.focus()
        seen.page.keyboard.press("ArrowRight")
        seen.settle()
        assert seen.text("#date") == "15 June 2023" and seen.state()["time"] == "1"
        seen.until_tile("/tiles/1/true-colour/1/")
        seen.page.keyboard.press("End")
        seen.settle()
        assert seen.text("#date") == "15 August 2023" and seen.find("#later").is_disabled()
        box = slider.bounding_box()
        assert box is not None
        seen.page.mouse.move(box["x"] + box["width"] - 14, box["y"] + 20)
        seen.page.mouse.down()
        seen.page.mouse.move(box["x"] + 14 + (box["width"] - 28) * 61 / 92, box["y"] + 20, steps=4)
        seen.page.mouse.up()
        seen.settle()
        assert seen.text("#date") == "15 July 2023"
        seen.until_tile("/tiles/1/true-colour/2/")
        seen.find("#earlier").click()
        assert seen.state()["time"] == "1"
        seen.find("#play").click()
        seen.until(lambda: seen.state()["time"] == "2", "the next date")
        seen.find("#play").click()
        assert seen.find("#play").get_attribute("aria-pressed") == "false" and seen.said == []


@both
def test_every_layer_draws(browser: Browser, server: Running, size: tuple[int, int]) -> None:
    with page_of(browser, server.port, size) as seen:
        seen.open("#cube=0&time=0").open_panel()
        before = colours_on(seen).astype(int)
        for layer in asked(server, "/api/cubes")["cubes"][0]["layers"]:
            seen.open_panel().find(f"#layer-{layer['id']}").check()
            seen.until_tile(f"/tiles/0/{layer['id']}/0/")
            assert seen.find(f"#layer-{layer['id']}").is_checked() and seen.state()["layer"] == layer["id"]
            assert seen.text("#legend h2")
            if layer["id"] == "ndvi" and not seen.is_narrow():
                assert np.abs(colours_on(seen).astype(int) - before).mean() > 3
                assert seen.find("#legend .bar").count() == 1
        assert seen.said == []


def test_bands_and_ranges_reach_the_tiles(browser: Browser, server: Running) -> None:
    with page_of(browser, server.port) as seen:
        seen.open("#cube=0&time=0&layer=rgb&bands=B11,B08,B04")
        seen.find("#band-0").select_option("B12")
        seen.until_tile("/tiles/0/rgb/0/", "bands=B12,B08,B04")
        seen.find("#stretch-fixed").check()
        seen.settle()
        seen.find("#vmax-0").fill("0.45")
        seen.find("#vmax-0").press("Enter")
        seen.until_tile("/tiles/0/rgb/0/", "stretch=fixed", "vmax=0.45,")
        seen.until(lambda: "to 0.45" in seen.text("#legend"))
        seen.find("#vmin-0").fill("0.9")
        seen.find("#vmin-0").press("Enter")
        assert "below" in seen.text("#stretch-wrong")
        seen.find("#layer-difference").check()
        seen.until_tile("/tiles/0/difference/0/", "other=1")
        assert seen.said == []


@both
def test_a_click_shows_the_numbers_of_the_point(browser: Browser, server: Running, size: tuple[int, int]) -> None:
    with page_of(browser, server.port, size) as seen:
        seen.open("#cube=0&time=0").click_map(0.5, 0.42)
        lon, lat = map(float, seen.state()["point"].split(","))
        found = asked(server, f"/api/point/0?lon={lon:.6f}&lat={lat:.6f}&source=1")
        now = next(t for t in found["times"] if t["index"] == 0)
        seen.find("#with-source").check()
        seen.settle()
        seen.find("#numbers summary").click()
        rows = seen.find("#numbers table").first.locator("tbody tr").all()
        assert len(rows) == len(now["decoded"])
        for row in rows:
            band = row.locator("th").inner_text()
            decoded, source = (shown_number(cell) for cell in row.locator("td").all_inner_texts())
            assert math.isclose(decoded, now["decoded"][band], abs_tol=6e-5), band
            assert math.isclose(source, now["source"][band], abs_tol=6e-5), band
        assert seen.find("#spectrum circle").count() == len(now["decoded"]) == seen.find("#spectrum rect").count()
        course = seen.find("#numbers table").nth(1).locator("tbody tr td:nth-child(3)").all_inner_texts()
        assert [shown_number(v) for v in course] == pytest.approx(found["indices"]["ndvi"], abs=6e-5)
        seen.find("#quantity").select_option("band:B04")
        course = seen.find("#numbers table").nth(1).locator("tbody tr td:nth-child(3)").all_inner_texts()
        assert [shown_number(v) for v in course] == pytest.approx(
            [t["decoded"]["B04"] for t in found["times"]], abs=6e-5
        )
        seen.find("#point-close").click()
        assert seen.find("#point").is_hidden() and "point" not in seen.state() and seen.said == []


@both
def test_swipe_shows_the_other_side_right_of_the_divider(
    browser: Browser, server: Running, size: tuple[int, int]
) -> None:
    with page_of(browser, server.port, size) as seen:
        seen.open("#cube=0&time=0&layer=ndvi")
        plain = colours_on(seen, "#stage").astype(int)
        seen.open_panel().find("#against").select_option("source")
        seen.until_tile("/tiles/0/ndvi/0/", "source=1")
        seen.find("#against").select_option("layer")
        seen.find("#against-layer").select_option("true-colour")
        seen.until_tile("/tiles/0/true-colour/0/").close_panel()
        assert seen.text("#left-name") == "NDVI, vegetation" and seen.text("#right-name") == "True colour"
        divider = seen.find("#divider")
        half = np.abs(colours_on(seen, "#stage").astype(int) - plain).mean(axis=(0, 2))
        middle, width = len(half) // 2, len(half)
        row = slice(middle + 30, width - 20)
        assert half[row].mean() > 5 * max(1, half[20 : middle - 30].mean()), "the right half is not the other layer"
        divider.focus()
        for _ in range(3):
            seen.page.keyboard.press("PageUp")
        assert divider.get_attribute("aria-valuenow") == "80" and seen.state()["at"] == "0.800"
        box = divider.bounding_box()
        stage = seen.find("#stage").bounding_box()
        assert box is not None and stage is not None
        seen.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        seen.page.mouse.down()
        seen.page.mouse.move(stage["x"] + stage["width"] * 0.25, box["y"] + box["height"] / 2, steps=4)
        seen.page.mouse.up()
        assert abs(float(seen.state()["at"]) - 0.25) < 0.02
        seen.open_panel().find("#against").select_option("date")
        seen.until_tile("/tiles/0/ndvi/1/")
        seen.find("#against").select_option("off")
        assert divider.is_hidden() and "against" not in seen.state() and seen.said == []


@both
def test_a_link_shows_the_same_again(browser: Browser, server: Running, size: tuple[int, int]) -> None:
    with page_of(browser, server.port, size) as seen:
        seen.open("#cube=0&time=1&layer=rgb&bands=B12,B08,B04&stretch=fixed&vmin=0,0,0&vmax=0.4,0.5,0.3")
        seen.open_panel().find("#against").select_option("date")
        seen.close_panel().find("#divider").focus()
        seen.page.keyboard.press("PageDown")
        seen.find("#map canvas").focus()
        before = seen.rest().state()["map"]
        seen.page.keyboard.press("=")
        seen.until(lambda: seen.state()["map"] != before, "a closer view").rest()
        seen.click_map(0.6, 0.3).rest()  # right of the divider
        seen.page.mouse.move(5, 5)  # no read-out of a place, no ring of focus
        seen.page.evaluate("document.activeElement.blur()")
        seen.settle()
        first, address = colours_on(seen, "#stage").astype(int), seen.page.url
        assert seen.said == []
    with page_of(browser, server.port, size) as again:
        again.page.goto(address)
        again.settle().rest()
        assert again.page.url == address
        assert again.find("#point").is_visible() and again.find("#divider").get_attribute("aria-valuenow") == "40"
        assert np.abs(colours_on(again, "#stage").astype(int) - first).mean() < 2
        again.page.evaluate("location.hash = '#cube=1&time=3&layer=ndvi'")
        again.settle()
        assert again.text("#date") == "15 August 2023" and again.find("#point").is_hidden() and again.said == []


def test_a_link_that_no_longer_fits_opens_what_does(browser: Browser, server: Running) -> None:
    with page_of(browser, server.port) as seen:
        seen.open("#cube=9&time=77&layer=nope&bands=B99&vmin=a&vmax=1&point=1,2,3&map=x/1/2&at=7&against=nothing")
        assert seen.state()["cube"] == "0" and seen.state()["layer"] == "true-colour" and seen.said == []


@both
def test_what_is_seen_can_be_saved(browser: Browser, server: Running, size: tuple[int, int], tmp_path: Path) -> None:
    with page_of(browser, server.port, size) as seen:
        seen.open("#cube=0&time=1&layer=rgb&bands=B08,B04,B03").open_panel()
        for what, count in (("values", 3), ("picture", 4)):
            with seen.page.expect_download() as download:
                seen.find(f"#save-{what}").click()
            path = tmp_path / download.value.suggested_filename
            download.value.save_as(path)
            with rasterio.open(path) as file:
                assert file.count == count and file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
                if what == "values":
                    assert file.descriptions == ("B08", "B04", "B03") and np.isnan(file.nodata)
            seen.until(lambda name=path.name: name in seen.text("#saving-said"))
        assert seen.said == []


@both
def test_the_keyboard_reaches_and_works_everything(browser: Browser, server: Running, size: tuple[int, int]) -> None:
    with page_of(browser, server.port, size) as seen:
        seen.open("#cube=0&time=0&layer=band&against=date")
        keys = seen.page.keyboard
        if seen.is_narrow():
            keys.press("Tab")
            keys.press("Enter")
            seen.page.wait_for_timeout(400)
            assert seen.page.evaluate("document.activeElement.id") == "panel-close"
        met = []
        for _ in range(60):
            keys.press("Tab")
            at = seen.page.evaluate(FOCUSED)
            if at["id"] == "BODY":
                break
            met.append(at)
        ids = [one["id"] for one in met]
        wanted = {
            "layer-band", "band-0", "stretch-percentile", "against", "against-date", "save-values", "save-picture",
            "copy-link", "divider", "fit", "later", "play", "timeline",
        }  # fmt: skip
        assert wanted <= set(ids), wanted - set(ids)
        assert any("maplibregl-canvas" in one for one in ids) and any("zoom-in" in one for one in ids)
        assert all(one["ring"] for one in met), [one["id"] for one in met if not one["ring"]]
        assert all(one["name"].strip() for one in met), [one["id"] for one in met if not one["name"].strip()]
        assert all(one["inside"] for one in met), [one["id"] for one in met if not one["inside"]]
        seen.open_panel().find("#layer-band").focus()
        keys.press("ArrowDown")
        seen.settle()
        assert seen.state()["layer"] != "band"
        assert seen.page.evaluate("document.activeElement.id") == f"layer-{seen.state()['layer']}"
        if seen.is_narrow():
            keys.press("Escape")
            assert seen.page.evaluate("document.activeElement.id") == "panel-tab"
        seen.find("#map canvas").focus()
        keys.press("Enter")
        seen.settle()
        assert "point" in seen.state() and seen.find("#spectrum svg").is_visible()
        seen.find("#quantity").focus()
        keys.press("Escape")
        assert seen.find("#point").is_hidden() and seen.page.evaluate("document.activeElement.tagName") == "CANVAS"
        assert seen.said == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Browser, server: Running, dark: bool) -> None:
    """WCAG 2.2 AA: 4.5 to 1 for text, by the colours that the browser computed."""
    with page_of(browser, server.port, dark=dark) as seen:
        seen.open("#cube=0&time=0&layer=rgb&stretch=fixed&against=date&source=1").click_map(0.3, 0.4)
        faint = seen.page.evaluate(FAINT)
        assert faint == [] and seen.said == []


def test_failures_are_said_in_words(browser: Browser, server: Running) -> None:
    with page_of(browser, server.port) as seen:
        broken = {
            "status": 502,
            "content_type": "application/json",
            "body": '{"error": "shard 3 is damaged: repair it"}',
        }
        seen.open("#cube=1&time=0")
        seen.page.route(re.compile("/tiles/"), lambda route: route.fulfill(**broken))
        seen.find("#later").click()
        seen.find("#failure").wait_for(state="visible")
        assert seen.text("#failure-words") == "shard 3 is damaged: repair it"
        seen.page.unroute(re.compile("/tiles/"))
        before = len(seen.tiles())
        seen.find("#failure-again").click()
        seen.until(lambda: len(seen.tiles()) > before, "another try")
        assert seen.find("#failure").is_hidden()
        seen.page.route(re.compile("/api/point/"), lambda route: route.fulfill(**broken))
        seen.click_map(0.5, 0.5)
        assert "shard 3 is damaged" in seen.text("#point-body .failure")
        seen.page.route(re.compile("/download/"), lambda route: route.abort())
        seen.find("#save-values").click()
        seen.find("#saving-said.failure").wait_for()
        assert "does not answer" in seen.text("#saving-said")


def test_a_server_that_is_busy_is_asked_again(browser: Browser, server: Running) -> None:
    with page_of(browser, server.port) as seen:
        refused: set[str] = set()

        def busy(route: Any) -> None:
            if route.request.url in refused:
                route.continue_()
            else:
                refused.add(route.request.url)
                route.fulfill(status=503, content_type="application/json", body='{"error": "too much at once"}')

        seen.page.route(re.compile("/tiles/"), busy)
        seen.open("#cube=1&time=0")
        assert refused and seen.find("#failure").is_hidden()
        assert all(seen.asked.count(url) >= 2 for url in refused)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("HTMLCanvasElement.prototype.getContext = () => null", "WebGL"),
        ("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))", "does not answer"),
    ],
    ids=["no WebGL", "no server"],
)
def test_a_page_that_cannot_begin_says_why(browser: Browser, server: Running, script: str, words: str) -> None:
    with page_of(browser, server.port, script=script) as seen:
        seen.page.goto(f"{seen.origin}/")
        seen.find("#opening.failed").wait_for()
        assert words in seen.text("#opening-words") and seen.find("#app").is_hidden() and seen.said == []


def test_another_cube_is_chosen(browser: Browser, server: Running) -> None:
    with page_of(browser, server.port) as seen:
        seen.open("#cube=0&time=1&layer=infrared").find("#cube").select_option("1")
        seen.settle()
        assert seen.until_tile("/tiles/1/infrared/").state()["cube"] == "1"
        assert "small" in seen.page.title() and seen.find("#with-source").count() == 0 and seen.said == []


def test_the_page_keeps_up_with_a_run(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "LOOK", 0.0)
    made = make_store(str(tmp_path / "a.zarr"), make_plan(make_weights(tmp_path / "tiny.safetensors"), times=DATES))
    store, receipts = held_back(made, tmp_path / "b.zarr")
    store.commit([r for r in receipts if r.time == 0])
    store.finalise()
    with running(open_cubes([store.target.url])) as server, page_of(browser, server.port) as seen:
        seen.open("#cube=0&time=2")
        assert "· 0 % of" in seen.text("#date-more") and seen.find("#timeline-chart .ok[height='0']").count() == 3
        empty = colours_on(seen)
        store.commit([r for r in receipts if r.time > 0])
        store.finalise()
        asked = len(seen.asked)
        seen.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        seen.until(lambda: seen.find("#timeline-chart .ok[height='0']").count() == 0, "bars of all dates")
        seen.settle()
        assert any("/tiles/0/" in url for url in seen.asked[asked:]) and "· 0 % of" not in seen.text("#date-more")
        assert (colours_on(seen) != empty).any(axis=2).mean() > 0.05, "the ground of the date is drawn now"
        asked = len(seen.asked)
        seen.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        seen.page.wait_for_timeout(1000)
        assert not any("/tiles/" in url for url in seen.asked[asked:]), "nothing changed: nothing is asked for again"
        assert seen.said == []
