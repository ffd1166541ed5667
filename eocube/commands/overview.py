"""Runs `eocube overview`: the small pyramid of decoded pictures by which a large cube opens at once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from eocube.commands.answers import answer, quoted
from eocube.commands.help_page import Page
from eocube.commands.parsing import guarded, parse
from eocube.console import for_people, plain, say
from eocube.errors import Exit
from eocube.net.storage_options import parse_options

EVERY = 10.0
"""Seconds between lines on how far it is."""


@dataclass(frozen=True, slots=True)
class OverviewOptions:
    """Give a cube an overview, or bring it up to date: a small pyramid of its decoded picture, for `eocube serve`.

    Decodes every window that has none yet. Killed at any moment, the same command goes on.
    """

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube, of several zones too."""
    again: bool = False
    """Make all of it again."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones; all by default."""
    json: bool = False
    """Print JSON."""
    quiet: bool = False
    """No progress."""


OVERVIEW = Page((
    ("for a cube that was made without --overview", "eocube overview munich.zarr"),
    ("all of it again", "eocube overview munich.zarr --again"),
))  # fmt: skip


def overview_main(argv: Sequence[str]) -> int:
    """Make a cube's overview."""
    options = parse(OverviewOptions, argv, "eocube overview", OVERVIEW)

    def command() -> int:
        from eocube.cube.overview import make_overviews

        console, said = for_people(quiet=options.quiet or options.json), time.monotonic()

        def progress(done: int, every: int) -> None:
            nonlocal said
            if time.monotonic() - said >= EVERY:
                said = time.monotonic()
                say(console, f"{done} of {every} shards")

        given = parse_options(options.storage_options)
        made = [
            dataclasses.asdict(one)
            for one in make_overviews(options.url, given, group=options.group, again=options.again, progress=progress)
        ]
        lines = [
            f"{one['url']}: {one['shards']} shards decoded, {one['kept']} had theirs, {one['levels']} levels, "
            f"{one['bytes']:,} bytes written"
            for one in made
        ]
        then = [("look at it in a browser", f"serve {quoted(options.url, options.storage_options)}")]
        answer(made, plain("\n".join(lines)), as_json=options.json, then=then)
        return Exit.DONE

    return guarded(command)
