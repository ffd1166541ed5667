"""Reads the pairs that a super-resolver is measured on: a pair store, a folder of areas, or a folder of rasters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from eocube.pairs.pair_windows import PairWindows
from eocube.pairs.pixel_pairs import PixelPair
from eocube.pairs.sen2naip import SCALE, SIDE, Sen2Naip
from eocube.pairs.wald import FileImage, wald_pairs
from model.wald import mtf_of

BANDS = ("B04", "B03", "B02", "B08")
"""Of rasters, in their order."""
LEAST = 96
"""Valid pixels a side of which a pair can be made."""
LATENTS: tuple[str, ...] = ("lr", "hr", "lr_up", "lr_sharp")
WithLatents = tuple[PixelPair, Mapping[str, NDArray[np.float32]]]
"""A pair, and those of its latents that a store has."""


@dataclass(frozen=True, slots=True)
class GivenPairs:
    """The pairs of one source: what is measured, what the ridge is fitted on, and how they came about."""

    pairs: list[WithLatents]
    training: Iterator[PixelPair]
    mtf: tuple[float, ...]
    encoder: dict[str, Any] | None
    split: str
    counts: bool = False
    """Whether the truth are an aerial picture's 8-bit counts over 255."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Of the pairs, in order."""
        return tuple(self.pairs[0][0].bands)

    @property
    def factor(self) -> int:
        """Pixels of the truth a pixel of the input and side."""
        pair = self.pairs[0][0]
        return int(pair.hr.shape[-1] // pair.lr.shape[-1])


def given_pairs(pairs: str, split: str, limit: int | None = None, side: int = 224) -> GivenPairs:
    """The pairs of a source that is named on a command line.

    Args:
        pairs: a store of jobs/encode_pairs.py with pixels, a folder in Sen2NAIP's layout, or a folder of rasters that
            pairs are made of by Wald's protocol.
        split: of a store.
        limit: the first so many of each place; None takes all.
        side: pixels a side of a pair made of a raster.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a store without pixels or without the split, or a source without a whole pair.
    """
    return _of_store(pairs, split, limit) if _is_store(pairs) else _of_folder(Path(pairs), limit, side)


def _is_store(pairs: str) -> bool:
    """Whether it is a store rather than a folder of rasters: URLs always are."""
    path = Path(pairs)
    if "://" not in pairs and not path.is_dir():
        raise FileNotFoundError(f"no pairs at {pairs}: give a store of jobs/encode_pairs.py, or a folder")
    return "://" in pairs or (path / "zarr.json").exists() or (path / "commits").exists()


def _of_store(url: str, split: str, limit: int | None) -> GivenPairs:
    windows = PairWindows(url, split)
    document = windows.store.document
    needed = ("lr_image", "hr_image")
    if missing := [name for name in needed if name not in windows.arrays or split not in document["images"]]:
        raise ValueError(
            f"{url} has no pixels of split {split} ({missing[0]}): encode it anew with jobs/encode_pairs.py --pixels"
        )
    if document["encoder"] is None:
        raise ValueError(f"{url} was made of cubes, which keep no pixels: evaluate on encoded pairs")
    bands = tuple(document["encoder"]["bands"])
    counts = document["source"]["kind"] == "sen2naip"
    kept: list[WithLatents] = []
    taken: dict[str, int] = {}
    for row in windows:
        place = f"{row['place']} {row['level']}"
        taken[place] = taken.get(place, 0) + 1
        if limit is None or taken[place] <= limit:
            latents: dict[str, NDArray[np.float32]] = {name: row[name] for name in LATENTS if name in row}
            kept.append((_pair(row, bands, place, counts), latents))
    windows.close()
    if not kept:
        raise ValueError(f"{url} has no pair of split {split}: encode_pairs.py says how places are split")
    training: Iterator[PixelPair] = iter(())
    if "train" in document["images"]:
        training = _training(url, bands, counts)
    mtf = _mtf(document["source"].get("mtf"), bands)
    return GivenPairs(kept, training, mtf, document["encoder"], split, counts)


def _training(url: str, bands: tuple[str, ...], counts: bool) -> Iterator[PixelPair]:
    """The training rows as they lie, not turned: who fits something on them turns them itself."""
    windows = PairWindows(url, "train", arrays=("lr_image", "hr_image"))
    flips = windows.store.tables["flip"]
    for index, row in enumerate(windows.rows):
        if flips[row] == 0:
            read = windows.read(index)
            yield _pair(read, bands, f"{read['place']} {read['level']} {read['resolution']:g} m", counts)
    windows.close()


def _pair(row: dict[str, Any], bands: tuple[str, ...], place: str, counts: bool) -> PixelPair:
    high = row["hr_image"] / 255 if counts else row["hr_image"]
    a, b, c, d, e, f = (float(value) for value in row["transform"])
    return PixelPair(
        row["id"], row["lr_image"], high, bands, int(row["epsg"]) or None, (a, b, c, d, e, f), place, row["split"]
    )


def _mtf(known: dict[str, float] | None, bands: Sequence[str]) -> tuple[float, ...]:
    """The pairs' own, else Sentinel-2's."""
    return tuple(known[band] for band in bands) if known else mtf_of(bands)


def _of_folder(root: Path, limit: int | None, side: int) -> GivenPairs:
    """Of a folder: all of its pairs, none of which says that it was trained on."""
    areas = any((path / "metadata.json").is_file() for path in root.iterdir() if path.is_dir())
    read, counts = (_areas(root)) if areas or not _rasters(root) else (_wald(root, side), False)
    kept: list[WithLatents] = []
    taken: dict[str, int] = {}
    for pair in read:
        taken[pair.place] = taken.get(pair.place, 0) + 1
        if limit is None or taken[pair.place] <= limit:
            kept.append((pair, {}))
    if not kept:
        raise ValueError(f"{root} gives no whole pair: rasters need {LEAST} valid pixels a side")
    return GivenPairs(kept, iter(()), _mtf(None, kept[0][0].bands), None, "given", counts)


def _rasters(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.suffix.lower() in (".tif", ".tiff"))


def _areas(root: Path) -> tuple[Iterator[PixelPair], bool]:
    """Sen2NAIP's layout, each area at its own size where latents divide it; whether `hr` are 8-bit counts."""
    source = Sen2Naip(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    with rasterio.open(folders[0] / "hr.tif") as high, rasterio.open(folders[0] / "lr.tif") as low:
        kinds = low.dtypes[0], high.dtypes[0]
    counts = kinds[1] == "uint8"
    # Rasters of floats are reflectances already; the reader takes all of `lr` for 1e4 times that.
    below = 1e4 if kinds[0].startswith("float") else 1.0
    above = 1 / 255 if counts else 1.0 if kinds[1].startswith("float") else 1e-4

    def read() -> Iterator[PixelPair]:
        own: dict[int, Sen2Naip] = {SIDE: source}
        for index, folder in enumerate(folders):
            with rasterio.open(folder / "hr.tif") as high:
                side = SIDE if high.width % (8 * SCALE) else int(high.width)
            if side not in own:
                own[side] = Sen2Naip(root, side)
            pair = own[side].read(index)
            yield replace(pair, lr=pair.lr * pair.lr.dtype.type(below), hr=pair.hr * pair.hr.dtype.type(above))

    return read(), counts


def _wald(root: Path, side: int) -> Iterator[PixelPair]:
    """Pairs of each raster, made by Wald's protocol: integers are reflectance * 1e4."""
    images = []
    for path in _rasters(root):
        with rasterio.open(path) as dataset:
            scale = 1.0 if dataset.dtypes[0].startswith("float") else 1e-4
        images.append(FileImage.open(str(path), BANDS, level="S2", scale=scale, offset=0.0))
    return wald_pairs(images, 4, side)
