"""Opens raster files that anybody may have made: two drivers, no file that they lead to, no number of another kind."""

from __future__ import annotations

import os
import warnings
from typing import Any

import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioIOError
from rasterio.io import DatasetReader

from eocube.errors import RefusedError
from eocube.scenes.scene import BandSource
from eocube.sensors.sensor import Sensor

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


def check_numbers(
    dtypes: tuple[str, ...], palettes: tuple[bool, ...], source: BandSource, sensor: Sensor | None
) -> None:
    """RefusedError where a band's numbers are of a kind that its rule cannot mean. The file's type counts.

    `sensor` is None for classes, which may have colours.
    """
    if not 1 <= source.index <= len(dtypes):
        raise RefusedError(f"it has {len(dtypes)} bands, and band {source.index} of it is asked for")
    dtype = dtypes[source.index - 1]
    if dtype.startswith("complex"):
        raise RefusedError(f"its pixels are complex numbers ({dtype}); amplitude, power or reflectance are read")
    if sensor is None:
        return
    if palettes[source.index - 1]:
        raise RefusedError(
            "its pixels are places in a colour table, not measurements; use the bands that the picture was made of, or "
            "expand it (gdal_translate -expand rgb)"
        )
    if sensor.unit == "dn8" and dtype.startswith("float"):
        raise RefusedError(f"its pixels are {dtype}, an 8-bit picture is needed")
    if source.radiometry.kind == "power" and not dtype.startswith("float") and source.radiometry.scale == 1:
        raise RefusedError(
            f"its pixels are {dtype}, which linear power is not: calibrated backscatter, or its scale, is needed"
        )


def palettes_of(dataset: DatasetReader) -> tuple[bool, ...]:
    """For each band, whether its values are places in a colour table."""
    return tuple(kind == ColorInterp.palette for kind in dataset.colorinterp)


def masks_of(dataset: DatasetReader) -> tuple[bool, ...]:
    """For each band, whether a mask or an alpha band says which of its pixels are there."""
    return tuple(MaskFlags.per_dataset in flags or MaskFlags.alpha in flags for flags in dataset.mask_flag_enums)
