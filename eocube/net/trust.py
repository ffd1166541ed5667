"""What catalogues and files from elsewhere may not do: lead to this machine's files, take memory without bounds."""

from __future__ import annotations

import re

import numpy as np
import rasterio

from eocube.errors import RefusedError, SourceError

MAX_DOCUMENT = 512 * 2**20
"""Bytes of one JSON document of a static catalogue."""
MAX_DEPTH = 32
"""Links from a static catalogue's root to an item."""
MAX_BLOCK = 256 * 2**20
"""Bytes that a block of a raster may take once decoded, all its bands together."""
MAX_READ = 2**28
"""Bytes of source pixels that one window may hold of one file."""
WHOLE = 2**23
"""Source pixels, all bands together, up to which a window's are read as they are; of more, one out of several."""
MAX_PIXELS = 2**32
"""Source pixels that one window may lie over: they are decoded, even where one out of several is held."""

_HERE = ("", "file", "local")
_ELSEWHERE = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")


def scheme(place: str) -> str:
    """The scheme of a URL in lower case; "" for a path. `file:/etc` and chains such as `zip::file:` count as well."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.\-]+):", place)
    return found[1].lower() if found else ""


def here(place: str) -> bool:
    """Whether a place is a path of this machine."""
    return scheme(place) in _HERE


def check_href(href: str, base: str, *, allow_local: bool = False) -> str:
    """An absolute href that a document at `base` gave; SourceError where it must not be followed.

    A catalogue from elsewhere may point to the web, to object stores and to where it lies itself; not to files of this
    machine, nor to GDAL's or fsspec's virtual paths, which reach them too, unless `allow_local`.
    """
    origin = scheme(base)
    if origin in _HERE or allow_local:
        return href
    if "::" not in href and scheme(href) in (origin, *_ELSEWHERE):
        return href
    raise SourceError(
        f"its href {href.partition('?')[0][:200]} leads to this machine's files or by a scheme that what lies on "
        f"{origin} may not name; add --allow-local-sources if you trust it"
    )


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
