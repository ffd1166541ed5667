"""The page's files: all that is named is there, nothing comes from elsewhere, licences lie beside what is vendored."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import eocube.serve

STATIC = Path(eocube.serve.__file__).with_name("static")
ROOT = Path(__file__).resolve().parents[3]
OWN = sorted(p for p in STATIC.rglob("*") if p.suffix in (".js", ".css", ".html") and "vendor" not in p.parts)


def named(file: Path) -> set[str]:
    """What a file of the page loads: scripts, styles, fonts and pictures, as it writes them."""
    text = file.read_text()
    found = set(re.findall(r"""(?:from|import)\s+"([^"]+)";""", text))
    if file.suffix != ".js":
        found |= set(re.findall(r"""(?:src|href)="([^"#]+)\"""", text)) | set(re.findall(r'url\("?([^")]+)"?\)', text))
    return {name for name in found if not name.startswith("data:")}


@pytest.mark.parametrize("file", OWN, ids=lambda p: str(p.relative_to(STATIC)))
def test_all_that_a_file_names_is_there_and_its_own(file: Path) -> None:
    for name in named(file):
        assert not re.match(r"(\w+:)?//", name), f"{name} is from elsewhere"
        target = STATIC / name.removeprefix("/static/") if name.startswith("/static/") else file.parent / name
        assert target.is_file(), name
    # Namespaces are names, not places.
    places = set(re.findall(r"https?://[^\s\"'`)]+", file.read_text())) - {"http://www.w3.org/2000/svg"}
    assert not places, places


def test_the_first_page_leads_to_every_module() -> None:
    met, left = set[Path](), [STATIC / "js" / "main.js"]
    while left:
        file = left.pop().resolve()
        if file not in met and "vendor" not in file.parts:
            met.add(file)
            left += [file.parent / name for name in named(file)]
    assert met == {p.resolve() for p in (STATIC / "js").glob("*.js")}
    assert "/static/js/main.js" in named(STATIC / "index.html")


def test_licences_lie_beside_what_comes_from_others() -> None:
    for folder in (STATIC / "vendor").iterdir():
        assert any(p.name.upper().startswith("LICENSE") for p in folder.iterdir()), folder.name


def test_every_file_is_part_of_the_package() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["eocube"]
    packed = {p for pattern in patterns for p in (ROOT / "eocube").glob(pattern)}
    assert {p for p in STATIC.rglob("*") if p.is_file()} <= packed
