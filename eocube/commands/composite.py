"""Runs `eocube composite`: one picture a month or season, without clouds, as GeoTIFFs or a Zarr store."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from eocube.commands.answers import answer, quoted
from eocube.commands.help_page import Page
from eocube.commands.parsing import box_given, guarded, interval_given, names_of, parse
from eocube.errors import Exit
from eocube.net.storage_options import parse_options


@dataclass(frozen=True, slots=True)
class CompositeOptions:
    """One picture a month, season or other period: the median of what is clear in it, of decoded bands or latents."""

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube; a cube of several zones needs --group."""
    out: str
    """A folder: a COG a period. A name ending in .zarr: all of them, with `observations` a pixel."""
    period: str = "1MS"
    """1MS (months), season (from December on), 1YS, 10D, ... as pandas names frequencies."""
    how: Literal["median", "mean", "min", "max"] = "median"
    """What is taken of a period, band by band."""
    clear: float = 20.0
    """Percent of cloud and shadow that a cell may have to count; 100 takes all."""
    what: Literal["decoded", "latents"] = "decoded"
    """Decoded pixels, or latents, which are not made to be decoded again after that."""
    bands: str | None = None
    """Of decoded pixels, as B04,B03,B02; all without it."""
    bbox: tuple[str, ...] = ()
    """West south east north, in degrees: just the pixels with ground in it."""
    datetime: str | None = None
    """A date or A/B: only time steps within."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones, such as utm32."""
    json: bool = False
    """Print a JSON document of what was written."""


COMPOSITE = Page((
    ("true colour of each month, a COG each", "eocube composite munich.zarr --bands B04,B03,B02 --out monthly/"),
    (
        "seasons, as a Zarr store with how many dates each pixel has",
        "eocube composite munich.zarr --period season --out seasons.zarr",
    ),
    (
        "the brightest of a year whatever the clouds",
        "eocube composite munich.zarr --period 1YS --how max --clear 100 --out max/",
    ),
))  # fmt: skip


def composite_main(argv: Sequence[str]) -> int:
    """Write a cube's composites."""
    options = parse(CompositeOptions, argv, "eocube composite", COMPOSITE)

    def command() -> int:
        from eocube.cube.composite_files import Composed, write_composites

        given = parse_options(options.storage_options)
        wanted = Composed(
            options.period, options.how, None if options.clear >= 100 else options.clear, options.what,
            names_of(options.bands), box_given(options.bbox), interval_given(options.datetime),
        )  # fmt: skip
        made = write_composites(options.url, options.out, wanted, group=options.group, storage_options=given)
        files: list[dict[str, Any]] = [{"out": one.out, "time": one.time, "observations": one.most} for one in made]
        lines = [f"{one.out}: {one.time}, up to {one.most} dates a pixel" for one in made]
        cube = quoted(options.url, options.storage_options, options.group)
        then = [("fewer gaps and more haze", f"composite {cube} --clear 60 --out {options.out}")]
        document = {"url": options.url, "period": options.period, "how": options.how, "files": files}
        answer(document, "\n".join(lines), as_json=options.json, then=then)
        return Exit.DONE

    return guarded(command)
