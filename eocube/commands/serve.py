"""Runs `eocube serve`: cubes in a browser, by a server on this machine."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from eocube.commands.answers import answer
from eocube.commands.help_page import Page
from eocube.commands.parsing import guarded, parse
from eocube.console import plain
from eocube.errors import Exit, InputError
from eocube.net.storage_options import parse_options

NEEDS = ("fastapi", "uvicorn", "rio_tiler")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Show cubes in a browser: a map of what is decoded on the fly, through time."""

    urls: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Paths or URLs of cubes, of several zones too."""
    host: str = "127.0.0.1"
    """Address to listen at: this machine alone by default, 0.0.0.0 for all of its networks."""
    port: int = 8080
    """Port to listen at; 0 takes one that is free."""
    allow_host: tuple[str, ...] = ()
    """Further names by which the server may be called, such as those that a proxy gives it."""
    memory: float = 1.0
    """GB for what is kept: decoded windows, stored values, pictures."""
    source: bool = False
    """Let the page read the scenes again that the cube was made of, to compare with."""
    allow_local_sources: bool = False
    """Let the plan of a cube from elsewhere lead to files of this machine."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cubes, and of their sources by host: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones; all by default."""
    json: bool = False
    """Print a JSON document of where the page is, then serve."""


SERVE = Page((
    ("a page on this machine alone", "eocube serve munich.zarr"),
    ("with the scenes that it was made of, to compare", "eocube serve munich.zarr --source"),
    ("a cube on S3, for others in this network", "eocube serve s3://bucket/munich.zarr --host 0.0.0.0"),
))  # fmt: skip


def serve_main(argv: Sequence[str]) -> int:
    """Serve cubes until Ctrl-C."""
    options = parse(ServeOptions, argv, "eocube serve", SERVE)

    def command() -> int:
        missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            raise InputError(f"eocube serve needs {', '.join(missing)}: pip install 'eocube[serve]'")
        from rasterio.errors import NotGeoreferencedWarning

        from eocube.serve.app import Serving, app_of
        from eocube.serve.cube import open_cubes
        from eocube.serve.memory import most_bytes
        from eocube.serve.server import Place, address, listen, server_of

        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # pictures of tiles have no place of their own
        if not 0.1 <= options.memory <= 1024:
            raise InputError(f"--memory {options.memory:g}: give GB, 0.1 or more")
        given = parse_options(options.storage_options)
        cubes = open_cubes(options.urls, options.group, given)
        serving = Serving(int(options.memory * 1e9), options.source, options.allow_local_sources)
        place = Place(options.host, options.port, options.allow_host)
        with listen(place) as bound:
            most = most_bytes(cubes, int(options.memory * 1e9), os.cpu_count() or 1) / 1e9
            shown = plain(", ".join(cube.name for cube in cubes))
            said = f"{address(bound)} shows {shown}, in at most {most:.1f} GB of memory; Ctrl-C ends it"
            document = {"address": address(bound), "cubes": [cube.name for cube in cubes], "most_gb": round(most, 3)}
            answer(document, said, as_json=options.json)
            server_of(app_of(cubes, place, serving)).run(sockets=[bound])
        return Exit.DONE

    return guarded(command)
