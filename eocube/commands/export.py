"""Runs `eocube export` and `eocube decode`: a cube's pixels or latents in files that other tools open."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from eocube.commands.parsing import box_given, guarded, interval_given, names_of, parse
from eocube.console import tell
from eocube.net.storage_options import parse_options
from eocube.run.request import Exit


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """Decode a cube to physical units: a GeoTIFF (one time step) or a Zarr store (all of them).

    eocube decode cube.zarr --bands B04,B03,B02 --time 2024-07-14 --out july.tif
    """

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube."""
    out: str
    """Where to: .tif writes one time step as a tiled GeoTIFF, .zarr all time steps."""
    bands: str | None = None
    """As B04,B03,B02. None decodes all."""
    time: str = "0"
    """Time step of a GeoTIFF: its date, such as 2023-08-15, or its number."""
    bbox: tuple[str, ...] = ()
    """West south east north, in degrees: just the pixels with ground in it."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """A file a time step, of all zones: GeoTIFFs (COG) or GeoParquet, of decoded bands or of latents.

    eocube export cube.zarr --what latents --format geoparquet --out latents/
    """

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube."""
    out: str
    """Folder of the files: a path or any fsspec URL."""
    what: str = "decoded"
    """decoded or latents."""
    format: str = "cog"
    """cog, or geoparquet: a row a pixel (or latent cell) with a value."""
    bands: str | None = None
    """Of decoded pixels, as B04,B03,B02. None takes all."""
    datetime: str | None = None
    """A date or A/B: only time steps within."""
    bbox: tuple[str, ...] = ()
    """West south east north, in degrees: only what has ground in it."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube and of the folder: a JSON object, name=value pairs, or @file.json."""


def decode_main(argv: Sequence[str], prog: str = "eocube decode") -> int:
    """Write a cube's decoded pixels to a GeoTIFF or Zarr store."""
    options = parse(DecodeOptions, argv, prog)

    def command() -> int:
        from eocube.cube.export import export

        given, box = parse_options(options.storage_options), box_given(options.bbox)
        how: dict[str, Any] = {"time": options.time, "group": options.group, "storage_options": given, "bbox": box}
        tell(export(options.url, options.out, bands=names_of(options.bands), **how))
        return Exit.DONE

    return guarded(command)


def export_main(argv: Sequence[str]) -> int:
    """Write a file a time step."""
    options = parse(ExportOptions, argv, "eocube export")

    def command() -> int:
        from eocube.cube.export_all import Export, export_all

        wanted = Export(
            options.what, options.format, names_of(options.bands), interval_given(options.datetime),
            box_given(options.bbox),
        )  # fmt: skip
        for path, said in export_all(options.url, options.out, wanted, parse_options(options.storage_options)):
            tell(f"{path}: {said}")
        return Exit.DONE

    return guarded(command)
