"""Runs `eocube quicklook` and `eocube report`: a picture of a cube, and a page on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from eocube.commands.answers import answer, quoted
from eocube.commands.help_page import Page
from eocube.commands.parsing import guarded, parse
from eocube.errors import Exit
from eocube.net.storage_options import parse_options


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """One self-contained HTML page on a cube: how its windows ended, how good they are, how the run went."""

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube."""
    out: str = "report.html"
    """The page."""
    source: bool = False
    """Read the sources again, to draw them beside what is decoded."""
    allow_local_sources: bool = False
    """Let the plan of a cube from elsewhere lead to files of this machine."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones; without it all of them are on the page."""
    json: bool = False
    """Print a JSON document of what was written."""


@dataclass(frozen=True, slots=True)
class QuicklookOptions:
    """Draw source, decoded picture, PCA of the latents, error and window states side by side."""

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube."""
    out: str = "quicklook.png"
    """The picture."""
    time: int = 0
    """Time step."""
    source: bool = True
    """Read the source again for comparison."""
    allow_local_sources: bool = False
    """Let the plan of a cube from elsewhere lead to files of this machine."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones."""
    json: bool = False
    """Print a JSON document of what was written."""


QUICKLOOK = Page((
    ("the first time step, beside its source", "eocube quicklook munich.zarr --out munich.png"),
    ("another one, without reading the source again", "eocube quicklook munich.zarr --time 3 --no-source"),
))  # fmt: skip
REPORT = Page((
    ("from what the store itself has", "eocube report munich.zarr --out munich.html"),
    ("with the sources and the error of each date beside what is decoded", "eocube report munich.zarr --source"),
))  # fmt: skip


def quicklook_main(argv: Sequence[str]) -> int:
    """Draw a cube."""
    options = parse(QuicklookOptions, argv, "eocube quicklook", QUICKLOOK)

    def command() -> int:
        from eocube.report.info import quicklook

        given, out = parse_options(options.storage_options), Path(options.out)
        how: dict[str, Any] = {"source": options.source, "allow_local": options.allow_local_sources}
        made = quicklook(options.url, options.group, out, options.time, given, **how)
        cube = quoted(options.url, options.storage_options, options.group)
        then = [
            ("another time step", f"quicklook {cube} --time {options.time + 1}"),
            ("a page on all of them", f"report {cube} --source"),
        ]
        answer({"out": made, "url": options.url, "time": options.time}, made, as_json=options.json, then=then)
        return Exit.DONE

    return guarded(command)


def report_main(argv: Sequence[str]) -> int:
    """Write the report page of a cube."""
    options = parse(ReportOptions, argv, "eocube report", REPORT)

    def command() -> int:
        from eocube.report.page import write_page

        how: dict[str, Any] = {"group": options.group, "source": options.source}
        how |= {"storage_options": parse_options(options.storage_options), "allow_local": options.allow_local_sources}
        made = write_page(options.url, options.out, **how)
        cube = quoted(options.url, options.storage_options, options.group)
        then = [("a picture of one date", f"quicklook {cube}"), ("whether every object is whole", f"verify {cube}")]
        answer({"out": made, "url": options.url}, made, as_json=options.json, then=then)
        return Exit.DONE

    return guarded(command)
