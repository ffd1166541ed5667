"""Where STAC items come from: API endpoints (paged fully, retried) and static catalogues on any fsspec URL."""

from __future__ import annotations

import json
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import fsspec
import pystac
import pystac_client
import requests
import urllib3
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO

from eocube.bounds import BBox, Interval, footprint_of, meets, parse_moment
from eocube.errors import InputError
from eocube.sensors import nearest

PRESETS: Mapping[str, str] = {
    "earth-search": "https://earth-search.aws.element84.com/v1",
    "planetary-computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
    "cdse": "https://stac.dataspace.copernicus.eu/v1",
}
RETRIED_STATUS = (429, 500, 502, 503, 504)
PAGE_SIZE = 100
# pgstac only estimates larger totals, so they prove nothing about missing items.
EXACT_TOTALS = 100_000
BODY_RETRIES = 3
TIMEOUT_S = (10.0, 60.0)
READ_THREADS = 16


@dataclass(frozen=True, slots=True)
class Found:
    """One STAC item and the place that its relative hrefs are relative to."""

    item: Mapping[str, Any]
    base: str

    def resolve(self, href: str) -> str:
        """An absolute href: a URL or a local path."""
        return resolve_href(href, self.base)


def safe_url(url: str) -> str:
    """A URL fit for a message: without user, password and query, where tokens live."""
    if "://" not in url:
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def resolve_href(href: str, base: str) -> str:
    """`href` seen from the file `base`: both may be URLs of any scheme or local paths; `file://` becomes a path."""
    if href.startswith("file://"):
        return href.removeprefix("file://")
    if "://" in href or href.startswith("/vsi"):
        return href
    scheme, mark, path = base.rpartition("://")
    if scheme in ("http", "https"):
        path = path.partition("?")[0]
    if href.startswith("/"):
        return f"{scheme}{mark}{path.partition('/')[0]}{href}" if scheme in ("http", "https") else href
    return scheme + mark + posixpath.normpath(posixpath.join(posixpath.dirname(path), href))


class RetryingIO(StacApiIO):
    """pystac-client's I/O with retries of throttling, server errors and timeouts, and of bodies cut in the middle.

    A page whose body breaks off, or is no JSON, is asked for again; it never counts as a shorter page.
    """

    def __init__(self, backoff_s: float = 0.5) -> None:
        retry = urllib3.Retry(
            total=5,
            connect=3,
            backoff_factor=backoff_s,
            status_forcelist=RETRIED_STATUS,
            allowed_methods=None,
            respect_retry_after_header=True,
        )
        super().__init__(max_retries=retry, timeout=TIMEOUT_S)
        self._backoff_s = backoff_s

    def request(self, *args: Any, **kwargs: Any) -> str:
        """The whole body of one request, which is JSON; raises pystac-client's `APIError`."""
        for attempt in range(BODY_RETRIES + 1):
            try:
                text = super().request(*args, **kwargs)
                json.loads(text)
                return text
            except APIError as error:
                # A status, or urllib3's own retries used up: asking again here would only multiply the wait.
                final = getattr(error, "status_code", None) is not None or "Max retries exceeded" in str(error)
                if final or attempt == BODY_RETRIES:
                    raise
            except ValueError as error:
                if attempt == BODY_RETRIES:
                    raise APIError(f"answers with what is no JSON: {error}") from error
            time.sleep(self._backoff_s * 2**attempt)
        raise AssertionError("unreachable")


def search_api(
    url: str,
    collections: Sequence[str],
    boxes: Sequence[BBox],
    interval: Interval,
    *,
    max_items: int | None = None,
    backoff_s: float = 0.5,
) -> list[Found]:
    """All items of an API in the collections, boxes and interval: every page, each item once, in the API's order.

    `InputError` where the API cannot be reached, answers with nonsense, or sends fewer items than it said there are.
    """
    where = safe_url(url)
    start, end = (moment.isoformat(timespec="milliseconds").replace("+00:00", "Z") for moment in interval)
    kept: dict[tuple[str, str], Found] = {}
    try:
        client = pystac_client.Client.open(url, stac_io=RetryingIO(backoff_s))
        for box in boxes:
            search = client.search(
                collections=list(collections), bbox=list(box), datetime=f"{start}/{end}", limit=PAGE_SIZE
            )
            for item in _all_pages(search.pages_as_dicts(), where, max_items):
                kept.setdefault((str(item.get("collection")), str(item["id"])), Found(item, url))
                if max_items is not None and len(kept) >= max_items:
                    return list(kept.values())
    except (APIError, requests.RequestException, pystac.STACError, NotImplementedError, KeyError, TypeError) as error:
        raise InputError(f"cannot search {where}: {_cause(error)}") from error
    return list(kept.values())


def _all_pages(pages: Iterator[dict[str, Any]], where: str, max_items: int | None) -> Iterator[Mapping[str, Any]]:
    """The items of all pages; raises where they are fewer than the first page said would match."""
    promised: int | None = None
    count = 0
    for page in pages:
        if promised is None:
            context = page.get("context") or {}
            promised = page.get("numberMatched", context.get("matched")) or 0
        for item in page.get("features", []):
            count += 1
            yield item
    if max_items is None and promised is not None and count < promised < EXACT_TOTALS:
        raise InputError(f"cannot search {where}: it said {promised} items match but its pages held {count}; try again")


def known_collections(url: str, wanted: Sequence[str], backoff_s: float = 0.5) -> tuple[str, ...]:
    """Those of the wanted collections that an API has, in the wanted order."""
    try:
        client = pystac_client.Client.open(url, stac_io=RetryingIO(backoff_s))
        there = {collection.id for collection in client.get_collections()}
    except (APIError, requests.RequestException, pystac.STACError, NotImplementedError, KeyError, TypeError) as error:
        raise InputError(f"cannot list the collections of {safe_url(url)}: {_cause(error)}") from error
    return tuple(name for name in wanted if name in there)


def _cause(error: Exception) -> str:
    """One line of what went wrong, with the queries of any URLs in it taken out."""
    status = getattr(error, "status_code", None)
    if status is not None:
        return f"HTTP status {status}"
    line = (str(error).strip().splitlines() or [""])[0]
    return re.sub(r"\?[^\s'\")]*", "", line)[:200] or type(error).__name__


def load_json(location: str, storage_options: Mapping[str, Any] | None = None, *, backoff_s: float = 0.5) -> Any:
    """The JSON of a file or URL through fsspec; `InputError` names the place where it is absent or is no JSON."""
    where = safe_url(location)
    for attempt in range(BODY_RETRIES + 1):
        try:
            filesystem, path = fsspec.core.url_to_fs(location, **dict(storage_options or {}))
            return json.loads(filesystem.cat_file(path))
        except (FileNotFoundError, IsADirectoryError, PermissionError, NotADirectoryError) as error:
            raise InputError(f"cannot read {where}: {error.strerror or 'no such file'}") from error
        except (ImportError, json.JSONDecodeError, UnicodeDecodeError) as error:
            if isinstance(error, ImportError):
                raise InputError(f"cannot read {where}: {_cause(error)}") from error
            raise InputError(f"{where} is not STAC: it holds no JSON") from error
        except ValueError as error:
            raise InputError(f"cannot read {where}: {_cause(error)}") from error
        except Exception as error:  # fsspec backends raise errors of their own clients for one and the same outage
            if attempt == BODY_RETRIES:
                raise InputError(f"cannot read {where}: {_cause(error)}") from error
            time.sleep(backoff_s * 2**attempt)
    raise AssertionError("unreachable")


def is_api(document: Any) -> bool:
    """Whether a JSON document is the landing page of a STAC API with a search endpoint."""
    if not isinstance(document, Mapping):
        return False
    links = document.get("links")
    searchable = isinstance(links, list) and any(
        isinstance(link, Mapping) and link.get("rel") == "search" for link in links
    )
    return searchable or ("conformsTo" in document and document.get("type") == "Catalog")


def static_location(catalog: str) -> str:
    """The absolute place of a static catalogue's root file; a folder means its catalog.json or collection.json."""
    if "://" in catalog and not catalog.startswith("file://"):
        return catalog
    path = os.path.abspath(os.path.expanduser(catalog.removeprefix("file://")))
    if os.path.isdir(path):
        for name in ("catalog.json", "collection.json"):
            if os.path.exists(os.path.join(path, name)):
                return os.path.join(path, name)
        raise InputError(f"{catalog} is a folder without catalog.json or collection.json")
    if not os.path.exists(path):
        plain = not re.search(r"[/\\.]", catalog)
        hint = f": {nearest(catalog, (*PRESETS, 'demo'))}" if plain else ": no such file"
        raise InputError(f"no catalogue {catalog!r}{hint}")
    return path


def walk_static(
    root: str,
    accepts: Callable[[str], bool],
    storage_options: Mapping[str, Any] | None = None,
    *,
    document: Any = None,
) -> tuple[list[Found], list[str]]:
    """Every item that a static catalogue links to, and the places of linked files that do not exist.

    Both in a fixed order (by place), each file read once. `root` is the place of a catalogue, collection, item or item
    collection; `document` its JSON if it was read before. `accepts` takes a collection's id and says whether to go into
    it. A file that is there but cannot be read raises `InputError`: it must not look like an absent one.
    """
    document = load_json(root, storage_options) if document is None else document
    visited, items, absent = {root}, dict[str, Found](), list[str]()
    level = [(root, document)]

    def load(place: str) -> Any:
        try:
            return load_json(place, storage_options)
        except InputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    with ThreadPoolExecutor(READ_THREADS) as pool:
        while level:
            following: list[str] = []
            for place, content in level:
                kind = content.get("type") if isinstance(content, Mapping) else None
                if content is None:
                    absent.append(place)
                elif kind == "Feature" and "properties" in content and "assets" in content:
                    items[place] = Found(content, place)
                elif kind == "FeatureCollection" or (kind is None and _has_features(content)):
                    if any(link.get("rel") == "next" for link in content.get("links", [])):
                        raise InputError(f"{safe_url(place)} is one page of a search; give the API's own URL instead")
                    for number, feature in enumerate(content.get("features", [])):
                        items[f"{place}#{number}"] = Found(feature, place)
                elif kind in ("Catalog", "Collection") or (kind is None and _looks_like_catalogue(content)):
                    if kind == "Collection" and not accepts(str(content.get("id"))):
                        continue
                    following += [place for place in _links(content, place) if place not in visited]
                    visited.update(following)
                else:
                    raise InputError(f"{safe_url(place)} is not STAC: no catalogue, collection or item")
            following = list(dict.fromkeys(following))
            level = list(zip(following, pool.map(load, following), strict=True))
    return [items[place] for place in sorted(items)], sorted(absent)


def _has_features(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get("features"), list)


def _looks_like_catalogue(content: Any) -> bool:
    return isinstance(content, Mapping) and "stac_version" in content and isinstance(content.get("links"), list)


def _links(content: Mapping[str, Any], place: str) -> list[str]:
    """The absolute places of a catalogue's children and items, in its order."""
    return [
        resolve_href(str(link["href"]), place)
        for link in content.get("links", [])
        if isinstance(link, Mapping) and link.get("rel") in ("child", "item") and link.get("href")
    ]


def within(item: Mapping[str, Any], boxes: Sequence[BBox], interval: Interval) -> bool:
    """Whether an item's footprint meets a box and its time (or range of times) meets the interval."""
    properties = item.get("properties", {})
    moment = parse_moment(properties.get("datetime"))
    first = moment or parse_moment(properties.get("start_datetime"))
    last = moment or parse_moment(properties.get("end_datetime")) or first
    if first is not None and last is not None and (last < interval[0] or first > interval[1]):
        return False
    footprint = footprint_of(item)
    return footprint is None or meets(footprint, boxes)
