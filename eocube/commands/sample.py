"""Runs `eocube sample`: values of a cube at points, through time, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import tyro

from eocube.commands.answers import answer, quoted
from eocube.commands.help_page import Page
from eocube.commands.parsing import guarded, interval_given, names_of, parse
from eocube.errors import Exit
from eocube.net.storage_options import parse_options


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """Values of a cube at points, through time, as a table: a row a point and time, never NaN without its state."""

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube; of several zones too."""
    points: Annotated[str, tyro.conf.Positional]
    """File of points: .geojson, .csv (lon, lat), .parquet; Shapefile, GeoPackage, ... by the extra `tables`."""
    out: str
    """The table: a name ending in .parquet (GeoParquet), .csv or .geojson."""
    what: str = "decoded"
    """latents, decoded or both."""
    bands: str | None = None
    """Of decoded pixels, as B04,B03,B02; all without it."""
    radius: float = 0.0
    """Metres: the mean of what lies so near. 0: the latent cell or pixel that holds the point."""
    datetime: str | None = None
    """A date or A/B: only time steps within."""
    crs: str | None = None
    """Of points that do not say it, such as EPSG:32633; degrees without it."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube: a JSON object, name=value pairs, or @file.json."""
    json: bool = False
    """Print a JSON document of what was written."""


SAMPLE = Page((
    ("decoded bands at field plots", "eocube sample munich.zarr fields.geojson --out fields.parquet"),
    (
        "latents and bands, the mean of 30 m around each",
        "eocube sample munich.zarr fields.csv --what both --radius 30 --out values.csv",
    ),
))  # fmt: skip


def sample_main(argv: Sequence[str]) -> int:
    """Values at points, as a table."""
    options = parse(SampleOptions, argv, "eocube sample", SAMPLE)

    def command() -> int:
        from eocube.cube.points import points_from
        from eocube.cube.sample import Wanted
        from eocube.cube.sample_zones import sample_url
        from eocube.cube.tables import check_ending, write_table

        check_ending(options.out)
        given = parse_options(options.storage_options)
        what: Any = options.what
        wanted = Wanted(what, names_of(options.bands), options.radius)
        interval = interval_given(options.datetime)
        points, begun = points_from(options.points, options.crs, given), perf_counter()
        counts: dict[str, int] = {}

        def counted() -> Iterator[dict[str, Any]]:
            for rows in sample_url(options.url, points, wanted, interval=interval, storage_options=given):
                for state, many in zip(*np.unique(rows["state"].astype(str), return_counts=True), strict=True):
                    counts[str(state)] = counts.get(str(state), 0) + int(many)
                yield rows

        rows = write_table(options.out, counted(), given)
        states = ", ".join(f"{many} {state}" for state, many in sorted(counts.items(), key=lambda c: -c[1]))
        seconds = perf_counter() - begun
        document = {
            "out": options.out, "rows": rows, "points": len(points), "states": counts, "seconds": round(seconds, 3)
        }  # fmt: skip
        said = f"{options.out}: {rows} rows of {len(points)} points ({states}), {seconds:.1f} s"
        cube = quoted(options.url, options.storage_options)
        answer(document, said, as_json=options.json, then=[("why windows are not ok", f"status {cube}")])
        return Exit.DONE

    return guarded(command)
