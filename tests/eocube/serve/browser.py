"""Opens the page in headless Chromium, notes what it says and asks, and waits until it is done."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, Request, Response

CHROMIUM = os.environ.get("EOCUBE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox", "--disable-gpu-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
    "--disable-dev-shm-usage", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
"""MapLibre draws by WebGL: SwiftShader does it without a GPU. Nothing of the browser's own goes to the network."""
WIDE, NARROW = (1280, 800), (390, 844)
PATIENCE_MS = 90_000
"""A shared machine may be slow: waiting ends with what is waited for."""
QUIET = """() => !document.body.classList.contains('busy') && !document.querySelector('[aria-busy]')
  && Boolean(document.querySelector('#app:not([hidden])'))"""
"""Whether nothing is under way."""
FOCUSED = """() => {
  const e = document.activeElement;
  const style = (x) => getComputedStyle(x);
  const ring = (x) => x && style(x).outlineStyle !== 'none' && parseFloat(style(x).outlineWidth) >= 2;
  const box = e.getBoundingClientRect();
  return {
    id: e === document.body ? 'BODY' : e.id || e.className || e.tagName,
    ring: Boolean(ring(e) || ring(e.closest('.pill')) || e.id === 'divider'),  // the divider's ring is its handle's
    name: e.getAttribute('aria-label') || e.labels?.[0]?.innerText || e.innerText || '',
    inside: box.width > 0 && box.bottom > 0 && box.right > 0 && box.left < innerWidth && box.top < innerHeight,
  };
}"""
"""What has the focus: its id, whether that is seen, its name, and whether it is in sight."""
FAINT = """() => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) || []).map(Number);
  const part = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const e of document.querySelectorAll('#app *')) {
    const style = getComputedStyle(e);
    const own = [...e.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !e.getBoundingClientRect().width || e.disabled || style.visibility === 'hidden') continue;
    const both = [light(parse(e instanceof SVGElement ? style.fill : style.color)), light(ground(e))];
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    if (ratio < 4.5) found.push(`${e.tagName} ${e.id} ${e.textContent.slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return found;
}"""
"""Texts whose contrast is below 4.5 to 1, which WCAG 2.2 AA asks for."""


@dataclass
class Seen:
    """A page that is open, and all that it said and asked for."""

    page: Page
    origin: str
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def open(self, fragment: str = "") -> Seen:
        """Load the page and wait until it has drawn."""
        self.page.goto(f"{self.origin}/{fragment}")
        return self.settle()

    def settle(self) -> Seen:
        """Wait until no tile and no point is under way, twice: one may lead to another."""
        for _ in range(2):
            self.page.wait_for_timeout(250)
            self.page.wait_for_function(QUIET, timeout=PATIENCE_MS)
        self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return self

    def until(self, holds: Callable[[], bool], what: str = "it") -> Seen:
        """Wait until something holds: a page that is slow is not wrong."""
        for _ in range(PATIENCE_MS // 100):
            if holds():
                return self.settle()
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{what} did not come about; the page said {self.said}")

    def until_tile(self, start: str, *parts: str) -> Seen:
        """Wait until a tile was asked for whose path begins so and holds some parts, and for what it brings."""

        def holds() -> bool:
            return any(path.startswith(start) and all(part in path for part in parts) for path in self.tiles())

        return self.until(holds, f"a tile of {start} with {parts}")

    def rest(self) -> Seen:
        """Wait until the address, and so the camera, no longer changes."""
        last, same = "", 0
        while same < 4:
            self.page.wait_for_timeout(200)
            same = same + 1 if self.page.url == last else 0
            last = self.page.url
        return self.settle()

    def tiles(self) -> list[str]:
        """Paths, with their queries, of the tiles asked for so far."""
        found = [urlsplit(url) for url in self.asked]
        return [f"{url.path}?{url.query}" for url in found if url.path.startswith("/tiles/")]

    def strangers(self) -> list[str]:
        """What was asked of anything but the server."""
        return [url for url in self.asked if not url.startswith((f"{self.origin}/", "data:", f"blob:{self.origin}/"))]

    def find(self, selector: str) -> Locator:
        """An element, or several."""
        return self.page.locator(selector)

    def text(self, selector: str) -> str:
        """What an element says."""
        return self.page.locator(selector).inner_text()

    def state(self) -> dict[str, str]:
        """What the address says of the view."""
        fragment = urlsplit(self.page.url).fragment
        return dict(part.split("=", 1) for part in fragment.split("&") if part)

    def is_narrow(self) -> bool:
        """Whether panels are sheets."""
        return (self.page.viewport_size or {"width": WIDE[0]})["width"] <= 760

    def open_panel(self) -> Seen:
        """Show the layers and tools, which a narrow window hides."""
        if self.is_narrow() and self.find("#panel-tab").get_attribute("aria-expanded") != "true":
            self.find("#panel-tab").click()
            self.page.wait_for_timeout(300)
        return self

    def close_panel(self) -> Seen:
        """Hide them again."""
        if self.is_narrow() and self.find("#panel-tab").get_attribute("aria-expanded") == "true":
            self.find("#panel-close").click()
            self.page.wait_for_timeout(300)
        return self

    def click_map(self, x: float, y: float) -> Seen:
        """Click on the map, at shares of its width and height."""
        self.close_panel()
        box = self.find("#map").bounding_box()
        assert box is not None
        self.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return self.settle()


@contextmanager
def chromium() -> Iterator[Browser]:
    """Headless Chromium, Debian's own. Skips, with the reason, where it or playwright is absent."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="needs playwright: pip install 'eocube[browser]', or .ci/browser"
    )
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium, or .ci/browser")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(
    browser: Browser, port: int, size: tuple[int, int] = WIDE, *, dark: bool = False, script: str | None = None
) -> Iterator[Seen]:
    """A fresh page, with nothing kept of others, that has not loaded yet; `script` runs before its own."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", accept_downloads=True,
    )  # fmt: skip
    context.set_default_timeout(PATIENCE_MS)
    try:
        page = context.new_page()
        if script is not None:
            page.add_init_script(script)
        seen = Seen(page, f"http://127.0.0.1:{port}")
        page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.said.append(f"uncaught: {error}"))

        def note(request: Request) -> None:
            seen.asked.append(request.url)

        def answered(response: Response) -> None:
            if response.status >= 400:
                seen.said.append(f"{response.status}: {response.url}")

        page.on("request", note)
        page.on("response", answered)
        yield seen
    finally:
        context.close()
