"""Runs `eocube export` and `eocube decode`: a cube's pixels or latents in files that other tools open."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from eocube.commands.answers import answer, quoted
from eocube.commands.help_page import Page
from eocube.commands.parsing import box_given, guarded, interval_given, names_of, parse
from eocube.console import tell
from eocube.errors import Exit
from eocube.net.storage_options import parse_options


@dataclass(frozen=True, slots=True)
class DecodeOptions:
    """Decode a cube to physical units: a GeoTIFF (one time step) or a Zarr store (all of them)."""

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube."""
    out: str
    """Where to: .tif writes one time step as a tiled GeoTIFF, .zarr all time steps."""
    bands: str | None = None
    """As B04,B03,B02; all without it."""
    time: str = "0"
    """Time step of a GeoTIFF: its date, such as 2023-08-15, or its number."""
    bbox: tuple[str, ...] = ()
    """West south east north, in degrees: just the pixels with ground in it."""
    clip: bool = False
    """No reflectance below 0.0001, so that ratios such as NDVI mean something over water; 8-bit within 0 to 255."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones."""
    json: bool = False
    """Print a JSON document of what was written."""


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Write a file a time step, of all zones: GeoTIFFs (COG) or GeoParquet, of decoded bands or of latents."""

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube."""
    out: str
    """Folder of the files: a path or any fsspec URL."""
    what: str = "decoded"
    """decoded or latents."""
    format: str = "cog"
    """cog, or geoparquet: a row a pixel (or latent cell) with a value."""
    bands: str | None = None
    """Of decoded pixels, as B04,B03,B02; all without it."""
    datetime: str | None = None
    """A date or A/B: only time steps within."""
    bbox: tuple[str, ...] = ()
    """West south east north, in degrees: only what has ground in it."""
    clip: bool = False
    """No reflectance below 0.0001, so that ratios such as NDVI mean something over water; 8-bit within 0 to 255."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube and of the folder: a JSON object, name=value pairs, or @file.json."""
    json: bool = False
    """Print a JSON document of what was written."""


DECODE = Page((
    (
        "true colour of one date, cloud-optimised",
        "eocube decode munich.zarr --bands B04,B03,B02 --time 2024-07-14 --out july.tif",
    ),
    ("a box of it", "eocube decode munich.zarr --bbox 11.5 48.1 11.6 48.2 --out centre.tif"),
    ("every date and band, as a Zarr store", "eocube decode munich.zarr --out decoded.zarr"),
))  # fmt: skip
EXPORT = Page((
    ("a COG a date", "eocube export munich.zarr --bands B04,B03,B02 --out cogs/"),
    (
        "the latents of one day as a table",
        "eocube export munich.zarr --what latents --format geoparquet --datetime 2024-07-14 --out latents/",
    ),
))  # fmt: skip


def decode_main(argv: Sequence[str], prog: str = "eocube decode") -> int:
    """Write a cube's decoded pixels to a GeoTIFF or Zarr store."""
    options = parse(DecodeOptions, argv, prog, DECODE)

    def command() -> int:
        from eocube.cube.export import exported

        given, box = parse_options(options.storage_options), box_given(options.bbox)
        how: dict[str, Any] = {"time": options.time, "group": options.group, "storage_options": given, "bbox": box}
        how["clip"] = options.clip
        made = exported(options.url, options.out, bands=names_of(options.bands), **how)
        cube = quoted(options.url, options.storage_options, options.group)
        then = [("a file a date instead", f"export {cube} --out decoded/")]
        if made.sizes.get("time"):
            then = [("months without clouds", f"composite {cube} --period 1MS --out monthly.zarr")]
        answer(made.document(), made.said, as_json=options.json, then=then)
        return Exit.DONE

    return guarded(command)


def export_main(argv: Sequence[str]) -> int:
    """Write a file a time step."""
    options = parse(ExportOptions, argv, "eocube export", EXPORT)

    def command() -> int:
        from eocube.cube.export_all import Export, export_all

        wanted = Export(
            options.what, options.format, names_of(options.bands), interval_given(options.datetime),
            box_given(options.bbox), options.clip,
        )  # fmt: skip
        files = []
        for path, said in export_all(options.url, options.out, wanted, parse_options(options.storage_options)):
            files.append({"out": path, "size": said})
            if not options.json:
                tell(f"{path}: {said}")
        cube = quoted(options.url, options.storage_options)
        then = [("values at points as a table", f"sample {cube} points.geojson --out points.parquet")]
        answer({"url": options.url, "files": files}, "", as_json=options.json, then=then)
        return Exit.DONE

    return guarded(command)
