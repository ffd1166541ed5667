"""Bounds what catalogues and files from elsewhere may do: they lead to no local file, take no memory without end."""

from __future__ import annotations

import re

from eocube.errors import SourceError

MAX_DOCUMENT = 512 * 2**20
"""Bytes of one JSON document of a static catalogue."""
MAX_DEPTH = 32
"""Links from a static catalogue's root to an item."""

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
