"""Checks the built documentation: links, anchors, files of the repository that pages name, and that nothing is remote.

python .ci/site/check.py SITE     exit 1 and a line for each fault
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("eocube", "model", "jobs", "benchmarks", "infra", "tests", "docs", r"\.ci")
NAMED = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*[\w-])`")
"""A file of the repository, as prose names it."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
"""Elements that make a browser ask for something, and the attribute that says for what."""


class Page(HTMLParser):
    """What a page links to, loads and can be linked at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given and tag != "meta"}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if given.get(LOADED.get(tag, "")):
            self.loads.append(given[LOADED[tag]])


def site_faults(site: Path) -> Iterator[str]:
    """Faults of the built pages."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        where = path.relative_to(site.resolve()).as_posix()
        for url in page.loads:
            if urlsplit(url).netloc:
                yield f"{where}: asks another host for {url}"
        if where == "404.html":
            continue  # its links are absolute: nobody knows where it is shown
        for url in (*page.links, *page.loads):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{where}: no {url}"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{where}: no anchor {url}"
    for path in site.rglob("*.css"):
        for url in re.findall(r"url\(\s*[\"']?(https?:[^)\"']+)|@import\s+[\"'](https?:[^\"']+)", path.read_text()):
            yield f"{path.name}: asks another host for {''.join(url)}"


def slug(heading: str) -> str:
    """The anchor of a heading, as code forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def repository_faults() -> Iterator[str]:
    """Faults of the Markdown files: links to files and headings, and files that prose or code name."""
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for path in documents:
        text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
        where = path.relative_to(ROOT).as_posix()
        for url in LINK.findall(text):
            parts = urlsplit(url)
            if parts.scheme or (where.startswith("docs/") and not parts.path):
                continue
            target = (path.parent / parts.path).resolve() if parts.path else path
            if target.name in ("cli.md", "index.md") and target.parent.name in ("reference", "notebooks"):
                continue  # made when the site is built, and checked there
            if not target.exists():
                yield f"{where}: no {url}"
            elif where.startswith("docs/") and not target.is_relative_to(ROOT / "docs"):
                yield f"{where}: {url} is no page of the site: name the file in backticks"
            elif parts.fragment and target.suffix == ".md":
                headings = {slug(line.lstrip("# ")) for line in target.read_text().splitlines() if line.startswith("#")}
                if parts.fragment not in headings:
                    yield f"{where}: no heading {url}"
        for name in NAMED.findall(text):
            if not (ROOT / name).exists():
                yield f"{where}: names {name}, which is not there"
    for folder in ("eocube", "model", "jobs", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
                if not (ROOT / name).exists():
                    yield f"{path.relative_to(ROOT)}: names {name}, which is not there"


if __name__ == "__main__":
    found = [*site_faults(Path(sys.argv[1])), *repository_faults()]
    print("\n".join(found) or f"links of {len(list(Path(sys.argv[1]).rglob('*.html')))} pages: nothing wrong found")
    sys.exit(bool(found))
