"""Runs `eocube stac`: a STAC collection of cubes, one Item a time step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from eocube.commands.answers import answer
from eocube.commands.help_page import Page
from eocube.commands.parsing import guarded, parse
from eocube.console import for_people, say
from eocube.errors import Exit
from eocube.net.storage_options import parse_options


@dataclass(frozen=True, slots=True)
class StacOptions:
    """Catalogue cubes: a STAC collection with one Item a time step, which eocube.open_collection opens."""

    urls: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Paths or URLs of cubes, of several zones too."""
    out: str
    """Folder of the collection."""
    id: str = "cubes"
    """The collection's id."""
    geoparquet: bool = False
    """Also write items.parquet, a row an Item (stac-geoparquet; the extra `stac`)."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cubes: a JSON object, name=value pairs, or @file.json."""
    json: bool = False
    """Print a JSON document of what was written."""


STAC = Page((("a catalogue of two cubes", "eocube stac munich.zarr alps.zarr --out catalogue/"),))


def stac_main(argv: Sequence[str]) -> int:
    """Write a STAC collection of cubes."""
    options = parse(StacOptions, argv, "eocube stac", STAC)

    def command() -> int:
        from eocube.report.catalogue import write_catalogue

        given = parse_options(options.storage_options)
        made = write_catalogue(
            options.urls, options.out, name=options.id, geoparquet=options.geoparquet, storage_options=given
        )
        said = f"{made.path}: {made.items} Items of {made.cubes} cubes"
        answer({"out": made.path, "items": made.items, "cubes": made.cubes}, said, as_json=options.json)
        if not options.json:
            say(for_people(), f"next, in Python: eocube.open_collection({made.path!r}, bbox=..., datetime=...)")
        return Exit.DONE

    return guarded(command)
