"""Runs `eocube stac`: a STAC collection of cubes, one Item a time step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from eocube.commands.parsing import guarded, parse
from eocube.console import tell
from eocube.net.storage_options import parse_options
from eocube.run.request import Exit


@dataclass(frozen=True, slots=True)
class StacOptions:
    """Catalogue cubes: a STAC collection with one Item a time step, which eocube.open_collection opens.

    eocube stac a.zarr b.zarr --out catalogue/
    """

    urls: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Paths or URLs of cubes, of several zones too."""
    out: str
    """Folder of the collection."""
    id: str = "cubes"
    """The collection's id."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cubes: a JSON object, name=value pairs, or @file.json."""


def stac_main(argv: Sequence[str]) -> int:
    """Write a STAC collection of cubes."""
    options = parse(StacOptions, argv, "eocube stac")

    def command() -> int:
        from eocube.report.catalogue import write_catalogue

        given = parse_options(options.storage_options)
        made = write_catalogue(options.urls, options.out, name=options.id, storage_options=given)
        tell(f"{made.path}: {made.items} Items of {made.cubes} cubes")
        return Exit.DONE

    return guarded(command)
