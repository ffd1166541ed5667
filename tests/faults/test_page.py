"""The report page in a real headless browser: drawn, quiet, and its numbers those of the store."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from eocube.cli import main
from eocube.report.info import status
from eocube.run.request import Exit

pytestmark = pytest.mark.faults

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("needs a headless browser: install Debian's chromium, or Chrome")
    return found


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory, demo_catalog: Path) -> Path:
    from eocube.cli import encode_main
    from eocube.demo.catalogue import DEMO_BBOX

    out = tmp_path_factory.mktemp("page") / "cube.zarr"
    west, south, east, north = DEMO_BBOX
    box = (west + 0.4 * (east - west), south + 0.3 * (north - south), east, north)
    request = ["--bbox", *(str(v) for v in box), "--datetime", "2024-05-01/2024-05-31", "--catalog", str(demo_catalog)]
    assert encode_main([*request, "--out", str(out), "--verify-fraction", "1", "--quiet"]) == Exit.DONE
    return out


@pytest.fixture(scope="module")
def page(cube: Path) -> Path:
    out = cube.parent / "report.html"
    assert main(["report", str(cube), "--out", str(out)]) == Exit.DONE
    return out


class Named(HTMLParser):
    """The text of every element with a `data-name`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._at: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._at = dict(attrs).get("data-name")

    def handle_data(self, data: str) -> None:
        if self._at is not None:
            self.found[self._at] = self.found.get(self._at, "") + data

    def handle_endtag(self, tag: str) -> None:
        self._at = None


def run(browser: str, page: Path, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}",
        "--enable-logging=stderr", *flags, page.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def test_nothing_is_asked_of_the_network(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", text)
    assert "<script src" not in text and "@import" not in text


def test_the_browser_shows_the_numbers_of_the_store(browser: str, page: Path, cube: Path, tmp_path: Path) -> None:
    import xarray as xr

    done = run(browser, page, tmp_path, "--dump-dom")
    assert "CONSOLE" not in done.stderr
    seen = Named()
    seen.feed(done.stdout)
    ds = xr.open_zarr(cube, mask_and_scale=False)
    meanings = ds.status.attrs["flag_meanings"].split()
    for value, name in enumerate(meanings):
        assert int(seen.found[f"windows.{name}"]) == int((ds.status.values == value).sum()), name
    found = status(str(cube))
    assert float(seen.found["table.psnr"].split()[0]) == pytest.approx(found.psnr, abs=5e-4)
    stored = ds.psnr.values[np.isfinite(ds.psnr.values)].astype("float64")
    assert float(seen.found["headline.psnr"].split()[0]) == pytest.approx(stored.mean(), abs=0.05)
    assert float(seen.found["table.seams.latent_seam_ratio"]) == pytest.approx(
        ds.attrs["eocube"]["seams"]["latent_seam_ratio"], abs=5e-5
    )
    (figures,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', done.stdout, re.S)
    assert json.loads(figures)["windows"] == found.windows


@pytest.mark.parametrize("width", [400, 1200])
def test_the_screenshot_is_not_blank(browser: str, page: Path, tmp_path: Path, width: int) -> None:
    from matplotlib.image import imread

    picture = tmp_path / "page.png"
    run(browser, page, tmp_path, "--hide-scrollbars", f"--window-size={width},1600", f"--screenshot={picture}")
    image = imread(picture)
    assert image.shape[0] >= 1500
    assert len(np.unique((image[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 500
    drawn = np.abs(image[..., :3] - image[2, 2, :3]).max(axis=-1) > 0.05
    assert drawn.mean() > 0.2 and drawn[len(drawn) // 2 :].any()
