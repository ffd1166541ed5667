"""Opens raster files that anybody may have made: two drivers, no file that they lead to, no number of another kind."""

from __future__ import annotations

import os
import re
import warnings
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader

from eocube.errors import RadiometryError, RefusedError
from eocube.net.addresses import AddressError
from eocube.net.failures import Failure, judge

MAX_BLOCK = 256 * 2**20
"""Bytes that a block of a raster may take once decoded, all its bands together."""
MAX_READ = 2**28
"""Bytes of source pixels that one window may hold of one file."""
WHOLE = 2**23
"""Source pixels, all bands together, up to which a window's are read as they are; of more, one out of several."""
MAX_PIXELS = 2**32
"""Source pixels that one window may lie over: they are decoded, even where one out of several is held."""

_ABSENT = re.compile(r"\b404\b|no such file|nosuchkey|does not exist")
_DOWN = re.compile(r"response code: (?:429|5\d\d)|curl error|timed out|could not resolve|failed to connect")
DEFECTS = (TypeError, AttributeError, AssertionError, NameError)
"""What no source can be the reason of: a defect of this program, which ends the run and is never taken for a failed
read. Drivers and filesystems raise whatever else they like."""

DRIVERS = ("GTiff", "JP2OpenJPEG")
"""What a file may be. GDAL knows formats by their content, and many of them (VRT, WMS, raw headers) read, fetch and
write other files of their author's choice."""

_UNKNOWN = "not recognized as being in a supported file format"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_RASTERS_BESIDE = (".ovr", ".OVR", ".msk", ".MSK")
_MOST_NESTED = 3


def open_by_driver(path: str, **options: Any) -> DatasetReader:
    """Open what GDAL itself reaches, by `DRIVERS` alone. RasterioIOError for everything else."""
    try:
        return DatasetReader(path, driver=list(DRIVERS), **options)
    except RasterioIOError as error:
        raise _in_words(error) from None


def open_by_opener(path: str, opener: Any, **options: Any) -> DatasetReader:
    """Open through a rasterio opener, by `DRIVERS` alone; rasterio takes but one driver at a time there."""
    try:
        return rasterio.open(path, driver=DRIVERS[0], opener=opener, **options)
    except RasterioIOError as error:
        if _UNKNOWN not in str(error):
            raise
    try:
        return rasterio.open(path, driver=DRIVERS[1], opener=opener, **options)
    except RasterioIOError as error:
        raise _in_words(error) from None


def _in_words(error: RasterioIOError) -> RasterioIOError:
    """The error in words that say what is read; it may pass all the same, as an answer that was cut short does."""
    if _UNKNOWN not in str(error):
        return error
    return RasterioIOError("it is neither a GeoTIFF nor a JPEG 2000 file; no other format is read")


def check_leads_nowhere(dataset: DatasetReader) -> None:
    """RefusedError where a file's own metadata name another one as its overviews, which GDAL opens by any driver.

    To be asked before anything that looks at overviews.
    """
    if any(name.upper() == "OVERVIEW_FILE" for name in dataset.tags(ns="OVERVIEWS")):
        raise RefusedError("its metadata name another file as its overviews (OVERVIEW_FILE); remove that entry")


def has_sound_side_cars(path: str, depth: int = 0) -> bool:
    """Whether GDAL may look for what lies beside a local file: its overviews, mask, world file and .aux.xml.

    GDAL opens overviews and masks by any driver. RefusedError names one that is no TIFF or leads elsewhere itself.
    """
    if path.startswith("/vsi") or not os.path.isfile(path):
        return False
    stem = os.path.splitext(path)[0]
    if any(os.path.exists(name) for name in (f"{stem}.aux", f"{path}.aux", f"{stem}.AUX", f"{path}.AUX")):
        return False  # ERDAS headers, which name further files
    for name in (path + ending for ending in _RASTERS_BESIDE):
        if not os.path.exists(name):
            continue
        with open(name, "rb") as file:
            tiff = file.read(4) in _TIFF
        if not tiff or depth >= _MOST_NESTED or not has_sound_side_cars(name, depth + 1):
            raise RefusedError(f"{os.path.basename(name)} beside it is no plain GeoTIFF: remove it or make it anew")
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)  # such files say nothing of their place
            with open_by_driver(name) as dataset:
                check_leads_nowhere(dataset)
    return True


def palettes_of(dataset: DatasetReader) -> tuple[bool, ...]:
    """For each band, whether its values are places in a colour table."""
    return tuple(kind == ColorInterp.palette for kind in dataset.colorinterp)


def masks_of(dataset: DatasetReader) -> tuple[bool, ...]:
    """For each band, whether a mask or an alpha band says which of its pixels are there."""
    return tuple(MaskFlags.per_dataset in flags or MaskFlags.alpha in flags for flags in dataset.mask_flag_enums)


def judge_read(error: Exception) -> Failure:
    """What a failed read means: GDAL says most in its messages alone; what they do not tell is asked again."""
    if isinstance(error, (RefusedError, RadiometryError, AddressError, *DEFECTS)):
        return Failure.FINAL
    reason = error.__cause__ or error  # fsspec says "not found" because of a 503
    words = str(reason).lower()
    if isinstance(reason, FileNotFoundError) or _ABSENT.search(words) is not None:
        return Failure.FINAL
    if _DOWN.search(words) is not None or judge(error) is Failure.DOWN:
        return Failure.DOWN
    return Failure.AGAIN


def decoded_sizes(dataset: rasterio.DatasetReader) -> tuple[int, int]:
    """Bytes that a raster's largest block decodes to, and of the widest band's pixel, as the file declares them.

    Raises:
        RefusedError: pixels of a type that numpy lacks.
    """
    together = dataset.count if dataset.interleaving is not None and dataset.interleaving.name == "pixel" else 1
    try:
        sizes = [np.dtype(kind).itemsize for kind in dataset.dtypes]
    except TypeError as error:  # GDAL's complex integers, which numpy lacks
        raise RefusedError(f"its pixels are complex integers, which are not read: {error}") from None
    blocks = zip(dataset.block_shapes, sizes, strict=True)
    return max(h * w * size * together for (h, w), size in blocks), max(sizes)


def too_large(block_bytes: int, item_bytes: int, bands: int, rows: int, cols: int, step: int = 1) -> str | None:
    """Why reading so many rows and columns of a raster would take too much memory; None when it would not.

    What a file declares costs it a few bytes: so its blocks and what is read are bounded by what they decode to.
    `step`: of each step x step pixels one is read.
    """
    if block_bytes > MAX_BLOCK:
        return (
            f"its blocks decode to {block_bytes / 2**20:.0f} MiB each, more than the {MAX_BLOCK // 2**20} MiB that are "
            "taken"
        )
    size = bands * rows * cols * item_bytes
    if size > MAX_READ or bands * rows * cols * step**2 > MAX_PIXELS:
        return (
            f"one window needs {rows * step} x {cols * step} of its pixels in {bands} bands: they are far smaller than "
            "the resolution asked for, and it has no overviews of them; add some (gdaladdo)"
        )
    return None
