"""Encode pairs of low and high resolution for super-resolution into a pair store.

`python jobs/encode_pairs.py --wald 4 --listing LISTING.yaml --data DATA --out pairs.zarr`, or `--wald 4 --images
TIF...`, or `--sen2naip FOLDER`, or `--cubes LOW.zarr HIGH.zarr`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from eocube.commands.help_page import Page
from eocube.commands.parsing import parse
from model.training.job_options import run_job

if TYPE_CHECKING:
    from eocube.net.redaction import SecretOptions
    from eocube.pairs.encoding import Maker
    from eocube.pairs.pixel_pairs import PairNote, PairSource, SplitRule
    from eocube.pairs.wald import ArrayImage, WaldPairs
    from model.training.sources.images import Source

Arg = tyro.conf.arg
DEFAULT_SIDE = 256


@dataclass(frozen=True, slots=True)
class Options:
    """Pairs of one ground at two resolutions, encoded: `lr` and `hr` values, pixels by choice, splits, statistics."""

    out: Annotated[str, Arg(help="the store: a path or URL; the same command goes on with one that was begun")]
    wald: Annotated[int | None, Arg(help="make pairs by Wald's protocol: high-resolution pixels along a low one")] = (
        None
    )
    images: Annotated[tuple[str, ...], Arg(help="of --wald: rasters of reflectance, all of the same bands")] = ()
    listing: Annotated[Path | None, Arg(help="of --wald: a YAML listing as training reads it; its held-out places are "
                                        "split val, those of test: true split test")] = None  # fmt: skip
    data: Annotated[Path | None, Arg(help="folder that the listing's paths are relative to")] = None
    sen2naip: Annotated[Path | None, Arg(help="a folder of Sen2NAIP: one folder an AOI")] = None
    cubes: Annotated[
        tuple[str, ...], Arg(help="two cubes of one ground, the coarser first: pairs of what they store")
    ] = ()
    weights: Annotated[str, Arg(help="a shipped name, a path, a URL or hf://owner/name")] = "nano2"
    side: Annotated[
        int | None, Arg(help="high-resolution pixels a side of a pair (default 256, of --sen2naip 512)")
    ] = None
    stride: Annotated[int | None, Arg(help="of training pairs, in high-resolution pixels (default: half a side)")] = (
        None
    )
    least: Annotated[int, Arg(help="images smaller than --side give the largest pairs that fit, of this side at "
                                   "least; smaller ones are counted")] = 96  # fmt: skip
    flips: Annotated[int, Arg(help="symmetries of the square that training pairs are encoded in, 1 to 8")] = 1
    test: Annotated[bool, Arg(help="write the test split too")] = False
    pixels: Annotated[tuple[str, ...] | None, Arg(help="store pixels beside the values: of these splits, of all where "
                                                  "none is named")] = None  # fmt: skip
    upsampled: Annotated[bool, Arg(help="encode the low resolution upsampled by bicubic too, as published")] = False
    sharpened: Annotated[bool, Arg(help="of --wald: encode the low resolution upsampled and put right by the MTF too: "
                                        "what sr_nano is conditioned on")] = False  # fmt: skip
    published: Annotated[bool, Arg(help="of --sen2naip: z-scores of the low resolution by the published statistics, "
                                        "not the weights'")] = False  # fmt: skip
    bands: Annotated[tuple[str, ...], Arg(help="bands of the images, in order")] = ("B04", "B03", "B02", "B08")
    scale: Annotated[float, Arg(help="of --images: reflectance = number * scale + offset")] = 1e-4
    offset: Annotated[float, Arg(help="of --images")] = 0.0
    level: Annotated[str, Arg(help="of --images: what they are, for example S2L2A")] = "S2L2A"
    mtf: Annotated[tuple[float, ...] | None, Arg(help="of --wald: MTF at the low resolution's Nyquist, one a band "
                                                 "(default: Sentinel-2's)")] = None  # fmt: skip
    split: Annotated[str, Arg(help="of what no listing splits: blocks, or train, val, test for all")] = "blocks"
    block: Annotated[float, Arg(help="of --split blocks: metres a side of a block of ground")] = 20_000
    margin: Annotated[float, Arg(help="metres at least between two splits; what lies nearer is left out")] = 2_000
    held_out: Annotated[tuple[float, float], Arg(help="shares of the blocks for val and test")] = (0.1, 0.1)
    seed: Annotated[int, Arg(help="of the blocks' split and of the order of training pairs")] = 0
    precision: Annotated[str, Arg(help="of the encoder: fp32, bf16 or fp16")] = "fp32"
    device: Annotated[str, Arg(help="cpu or cuda")] = "cpu"
    threads: Annotated[int | None, Arg(help="windows at once (default: processors)")] = None
    storage_options: Annotated[tuple[str, ...], Arg(help="fsspec options: JSON, name=value or @file.json")] = ()


PAGE = Page(
    (
        (
            "images and themselves four times coarser (Wald's protocol)",
            "python jobs/encode_pairs.py --wald 4 --images a.tif b.tif --out pairs.zarr",
        ),
        ("Sen2NAIP's folder", "python jobs/encode_pairs.py --sen2naip FOLDER --out pairs.zarr"),
        (
            "two cubes of the same ground",
            "python jobs/encode_pairs.py --cubes 40m.zarr 10m.zarr --split train --out pairs.zarr",
        ),
    ),
    {
        "Pairs of": ("wald", "images", "listing", "data", "sen2naip", "cubes"),
        "The store": ("out", "side", "split", "weights"),
    },
    ("out", "wald", "images", "listing", "data", "sen2naip", "cubes", "side", "split", "weights"),
)


def encode(options: Options) -> None:
    """Do it; InputError, ValueError or FileNotFoundError, in one line, for bad input."""
    from eocube.errors import InputError
    from eocube.net.storage_options import parse_options
    from eocube.pairs.pair_plan import PairPlan
    from eocube.pairs.pixel_pairs import SPLITS, rows_of
    from eocube.pairs.writing import write_pairs

    given = [bool(options.sen2naip), options.wald is not None, bool(options.cubes)]
    if sum(given) != 1:
        raise InputError("give one of --wald N, --sen2naip FOLDER and --cubes LOW HIGH")
    splits = SPLITS if options.test else SPLITS[:2]
    pixels = () if options.pixels is None else (options.pixels or splits)
    if unknown := sorted(set(pixels) - set(SPLITS)):
        raise InputError(f"--pixels {unknown[0]}: there are {', '.join(SPLITS)}")
    storage = parse_options(options.storage_options)
    maker, source, notes = _made(options, storage)
    rows = rows_of(notes, splits=splits, flips=options.flips, seed=options.seed)
    plan = PairPlan.of(rows, maker, image_splits=pixels, skipped=_skipped(source, notes, options.test))
    store = write_pairs(options.out, plan, maker, threads=options.threads, storage_options=storage, told=_told)
    said = ", ".join(f"{n} {split}" for split, n in store.document["splits"].items())
    print(f"{options.out}: {len(store)} pairs ({said}); skipped: {store.document['skipped'] or 'none'}")


def _made(options: Options, storage: SecretOptions | None) -> tuple[Maker, PairSource, list[PairNote]]:
    """What makes the rows, and the pairs there are with their splits."""
    from eocube.errors import InputError
    from eocube.pairs.cube_pairs import CubePairs
    from eocube.pairs.encoding import PixelMaker
    from eocube.pairs.pixel_pairs import split_notes
    from eocube.pairs.sen2naip import LR_STATISTICS, SIDE, Sen2Naip, naip

    how: dict[str, Any] = {
        "upsampled": options.upsampled, "sharpened": options.sharpened, "precision": options.precision,
        "device": options.device,
    }  # fmt: skip
    if options.cubes:
        if len(options.cubes) != 2 or options.flips > 1 or _wants_pixels(options):
            raise InputError(
                "--cubes takes LOW and HIGH, and no --flips, --upsampled, --sharpened or --pixels: cubes store no "
                "pixels"
            )
        pairs = CubePairs(*options.cubes, options.side or DEFAULT_SIDE, storage)
        return pairs, pairs, split_notes(pairs.notes, _rule(options))
    if options.sen2naip is not None:
        areas = Sen2Naip(options.sen2naip, options.side or SIDE)
        low = LR_STATISTICS if options.published else None
        sensor = naip(options.weights)
        maker = PixelMaker(areas, options.weights, hr_sensor=sensor, lr_statistics=low, **how)
        return maker, areas, split_notes(areas.notes, _rule(options))
    squares = _wald(options)
    notes = split_notes(squares.notes, _rule(options)) if options.listing is None else squares.notes
    return PixelMaker(squares, options.weights, **how), squares, notes


def _wants_pixels(options: Options) -> bool:
    return options.upsampled or options.sharpened or options.pixels is not None


def _rule(options: Options) -> SplitRule | str:
    """Blocks of ground, or the one split that all pairs are put into."""
    from eocube.errors import InputError
    from eocube.pairs.pixel_pairs import SPLITS
    from model.training.sources.splits import BlockSplit

    if options.split in SPLITS:
        return options.split
    if options.split != "blocks":
        raise InputError(f"--split {options.split}: blocks, or one of {', '.join(SPLITS)} for all pairs")
    val, test = options.held_out
    return BlockSplit(options.block, options.margin, {"train": 1 - val - test, "val": val, "test": test}, options.seed)


def _wald(options: Options) -> WaldPairs:
    """The squares of the images or of the listing."""
    from eocube.errors import InputError
    from eocube.pairs.wald import FileImage, WaldImage, WaldPairs

    assert options.wald is not None
    if (options.listing is None) == (not options.images):
        raise InputError("--wald takes one of --images TIF... and --listing YAML with --data FOLDER")
    images: Sequence[WaldImage]
    if options.listing is not None:
        images = listed(options.listing, options.data, options.bands)
    else:
        images = [
            FileImage.open(p, options.bands, level=options.level, scale=options.scale, offset=options.offset)
            for p in options.images
        ]
    side = options.side or DEFAULT_SIDE
    return WaldPairs(images, options.wald, side, options.stride or max(1, side // 2), options.least, options.mtf)


def listed(listing: Path, data: Path | None, bands: Sequence[str]) -> list[ArrayImage]:
    """The listing's reflectance images that have all bands, with the split that it gives their places."""
    from eocube.pairs.wald import ArrayImage
    from model.sensors import SENSORS
    from model.training.sources.images import load_source, read_listing

    if data is None or not data.is_dir():
        raise FileNotFoundError(f"no folder {data}: give the one that the data lie in with --data")
    if not listing.is_file():
        raise FileNotFoundError(f"no listing {listing}: give a YAML listing of rasters")
    found = []
    for source in read_listing(listing):
        held = {band for names in source.parts.values() for band in names}
        if SENSORS[source.sensor].unit != "reflectance*1e4" or not set(bands) <= held:
            continue
        epsg, transform = _place(source, data)
        split = "test" if source.test else "val" if source.held_out else "train"
        found += [
            ArrayImage(image.name, image.place, image.sensor, tuple(bands), image.select(bands) * 1e-4, image.gsd, epsg,
                       transform, split)
            for image in load_source(source, data)
        ]  # fmt: skip
    return found


def _place(source: Source, data: Path) -> tuple[int | None, tuple[float, float, float, float, float, float]]:
    """EPSG code and affine of a source's finest raster, its crop taken off; nothing where no raster says it."""
    import rasterio

    from eocube.pairs.pixel_pairs import NOWHERE
    from model.training.sources.images import find_file

    if source.kind != "rasters":
        return None, NOWHERE
    finest, epsg = None, None
    for pattern in source.parts:
        with rasterio.open(find_file(source, data / source.path, pattern)) as dataset:
            code = None if dataset.crs is None else dataset.crs.to_epsg()
            if code is not None and (finest is None or abs(dataset.transform.a) < abs(finest.a)):
                finest, epsg = dataset.transform, code
    if finest is None:
        return None, NOWHERE
    if source.crop is not None:
        finest = finest @ finest.translation(source.crop[1], source.crop[0])
    return epsg, (finest.a, finest.b, finest.c, finest.d, finest.e, finest.f)


def _skipped(source: PairSource, notes: Sequence[PairNote], test: bool) -> dict[str, int]:
    """What could be no pair, pairs of no split, and test pairs that were not asked for."""
    nowhere = sum(note.split is None for note in notes)
    kept_back = 0 if test else sum(note.split == "test" for note in notes)
    more = {"pairs within the margin of another split": nowhere, "test pairs (--test)": kept_back}
    return {**source.skipped, **{why: n for why, n in more.items() if n}}


def _told(done: int, total: int) -> None:
    print(f"\r{done} of {total} units", end="\n" if done == total else "", file=sys.stderr, flush=True)


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad input."""
    from eocube.errors import EocubeError

    return run_job(lambda: encode(options), (EocubeError,))


if __name__ == "__main__":
    sys.exit(main(parse(Options, sys.argv[1:], "encode_pairs.py", PAGE)))
