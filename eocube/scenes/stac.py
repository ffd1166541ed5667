"""Finds STAC items: API endpoints (paged fully, retried) and static catalogues on any fsspec URL."""

from __future__ import annotations

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pystac
import pystac_client
from pystac_client.exceptions import APIError

from eocube.errors import InputError, SourceError
from eocube.ground.boxes import BBox, Interval, footprint_of, meets, parse_moment
from eocube.net.addresses import AddressError, Policy
from eocube.net.network import Network
from eocube.net.redaction import safe_url
from eocube.net.storage_options import policy_of
from eocube.net.trust import MAX_DEPTH, check_href, scheme
from eocube.scenes.fetch import Budget, RetryingIO, cause, load_json
from eocube.scenes.item_checks import MAX_HREF, name_of
from eocube.sensors.sensor import nearest

__all__ = [
    "PRESETS",
    "Found",
    "is_api",
    "known_collections",
    "load_json",
    "resolve_href",
    "safe_url",
    "search_api",
    "static_location",
    "walk_static",
    "within",
]

PRESETS: Mapping[str, str] = {
    "earth-search": "https://earth-search.aws.element84.com/v1",
    "planetary-computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
    "cdse": "https://stac.dataspace.copernicus.eu/v1",
}
PAGE_SIZE = 100
_FAILURES = (APIError, pystac.STACError, NotImplementedError, KeyError, TypeError, RecursionError)
# pgstac only estimates larger totals, so they prove nothing about missing items.
EXACT_TOTALS = 100_000
READ_THREADS = 16


@dataclass(frozen=True, slots=True)
class Found:
    """One STAC item and the place that its relative hrefs are relative to.

    `item` is whatever the catalogue gave, unchecked: `eocube.scenes.item_checks` says what it can be.
    """

    item: Any
    base: str
    allow_local: bool = False
    """Whether a catalogue from elsewhere may lead to files of this machine."""
    policy: Policy = field(default_factory=Policy)
    """Which addresses the catalogue may lead to."""
    place: str = ""
    """Where it was found, for messages on an item without an id."""

    def resolve(self, href: str) -> str:
        """An absolute href: a URL or a local path. SourceError where this catalogue must not name it."""
        return without_user(self.follow(href), self.base)

    def follow(self, href: str) -> str:
        """The same with the user and password of the base: to be read now, never to be kept."""
        check_href(href if scheme(href) else resolve_href(href, self.base), self.base, allow_local=self.allow_local)
        place = resolve_href(href, self.base)
        try:
            self.policy.check_url(place)
        except (AddressError, OSError) as error:
            raise SourceError(f"its href {safe_url(place)[:200]} is not followed: {error}") from None
        return place


def without_user(href: str, base: str) -> str:
    """An href without the user and password that it has from the place of its catalogue: a plan must not keep them."""
    user = urlsplit(base).netloc.rpartition("@")[0] if "://" in base else ""
    return href.replace(f"//{user}@", "//", 1) if user else href


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
    if mark:  # a host's or bucket's root is as far up as it goes
        host, _, path = path.partition("/")
        return scheme + mark + host + posixpath.normpath(posixpath.join("/" + posixpath.dirname(path), href))
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), href))


def search_api(
    url: str,
    collections: Sequence[str],
    boxes: Sequence[BBox],
    interval: Interval,
    *,
    storage_options: Mapping[str, Any] | None = None,
    network: Network | None = None,
    budget: Budget | None = None,
) -> list[Found]:
    """All items of an API in the collections, boxes and interval: every page, each item once, in the API's order.

    `storage_options` are those of `eocube.net.storage_options.scoped`. `InputError` where the API cannot be reached,
    answers with nonsense, sends fewer items than it said there are, or comes to no end (see `AnswerLimits`).
    """
    where = safe_url(url)
    budget = budget or Budget(where)
    start, end = (moment.isoformat(timespec="milliseconds").replace("+00:00", "Z") for moment in interval)
    kept: dict[tuple[str, str, str], Found] = {}
    alike: Counter[str] = Counter()
    try:
        client = pystac_client.Client.open(url, stac_io=RetryingIO(url, storage_options, network, budget))
        for box in boxes:
            search = client.search(
                collections=list(collections), bbox=list(box), datetime=f"{start}/{end}", limit=PAGE_SIZE
            )
            for item in _all_pages(search.pages_as_dicts(), where, budget.limits.idle_pages):
                place = f"result {len(kept) + 1} of {urlsplit(url).netloc.rpartition('@')[2]}"
                key = _key(item, place)
                if key in kept:
                    continue
                kept[key] = Found(item, url, policy=policy_of(storage_options), place=place)
                budget.item()
                alike[same := _acquisition(item)] += 1
                if same and alike[same] > budget.limits.alike:
                    raise APIError(
                        f"it goes on giving items of one moment and place under new ids, {alike[same]} so far: {same}"
                    )
    except _FAILURES as error:
        raise InputError(f"cannot search {where}: {cause(error)}") from error
    return list(kept.values())


def _key(item: Any, place: str) -> tuple[str, str, str]:
    """What tells an item from the others of a search: collection, id and moment, or where it is if it has no id."""
    said = item.get("collection") if isinstance(item, Mapping) else None
    return said if isinstance(said, str) else "", name_of(item, place), _moment(item)


def _moment(item: Any) -> str:
    properties = item.get("properties") if isinstance(item, Mapping) else None
    said = properties.get("datetime") if isinstance(properties, Mapping) else None
    return said if isinstance(said, str) else ""


def _acquisition(item: Any) -> str:
    """Collection, moment and box of an item: what few items share; "" where it does not say them."""
    moment, box = _moment(item), item.get("bbox") if isinstance(item, Mapping) else None
    if not moment or not isinstance(box, list) or not all(isinstance(value, int | float) for value in box):
        return ""
    return f"{str(item.get('collection'))[:100]} {moment[:100]} {box[:6]}"


def _all_pages(pages: Iterator[dict[str, Any]], where: str, idle_pages: int) -> Iterator[Any]:
    """The items of all pages; raises where they are fewer than the first page said would match, or page after page
    holds nothing new.
    """
    promised: int | None = None
    count = idle = 0
    seen = set[tuple[str, str, str]]()
    for page in pages:
        if promised is None:
            context = page.get("context")
            said = page.get("numberMatched", context.get("matched") if isinstance(context, Mapping) else None)
            promised = said if isinstance(said, int) else 0
        before = len(seen)
        features = page.get("features", [])
        if not isinstance(features, list):
            raise InputError(f"cannot search {where}: the features of a page are no list")
        for number, item in enumerate(features):
            count += 1
            seen.add(_key(item, f"#{number}"))
            yield item
        idle = 0 if len(seen) > before else idle + 1
        if idle >= idle_pages:
            raise InputError(
                f"cannot search {where}: its last {idle} pages repeat items of earlier ones: it has no end"
            )
    if promised is not None and count < promised < EXACT_TOTALS:
        raise InputError(f"cannot search {where}: it said {promised} items match but its pages held {count}; try again")


def known_collections(
    url: str,
    wanted: Sequence[str],
    network: Network | None = None,
    storage_options: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
) -> tuple[str, ...]:
    """Those of the wanted collections that an API has, in the wanted order."""
    try:
        client = pystac_client.Client.open(url, stac_io=RetryingIO(url, storage_options, network, budget))
        there = {collection.id for collection in client.get_collections()}
    except _FAILURES as error:
        raise InputError(f"cannot list the collections of {safe_url(url)}: {cause(error)}") from error
    return tuple(name for name in wanted if name in there)


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
    allow_local: bool = False,
    budget: Budget | None = None,
) -> tuple[list[Found], list[tuple[str, str]]]:
    """Every item that a static catalogue links to, and (place, reason) of each link that leads to none.

    Both in a fixed order (by place), each file read once. `root` is the place of a catalogue, collection, item or item
    collection; `document` its JSON if it was read before. `accepts` takes a collection's id and says whether to go into
    it. What is linked and absent, no JSON or no STAC costs itself, and so does a link that is none. `InputError` for a
    root that is none of these; for a file that is there and cannot be read, as in an outage: it must not look like an
    absent one; for a catalogue from elsewhere that leads to this machine's files, unless `allow_local`; for one without
    end.
    """
    budget = budget or Budget(safe_url(root))
    document = load_json(root, storage_options, budget=budget) if document is None else document
    policy = policy_of(storage_options)
    visited, items, unfit = {root}, dict[str, Found](), list[tuple[str, str]]()
    level = [(root, document)]

    def load(place: str) -> Any:
        try:
            return load_json(place, storage_options, budget=budget)
        except InputError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return _Unfit(f"linked, but there is no {safe_url(place)}")
            if isinstance(error.__cause__, ValueError):  # read whole, and no JSON that is taken
                return _Unfit(str(error))
            raise

    depth = 0
    with ThreadPoolExecutor(READ_THREADS) as pool:
        while level:
            if (depth := depth + 1) > MAX_DEPTH:
                raise InputError(f"{safe_url(root)} links deeper than {MAX_DEPTH} levels, at {safe_url(level[0][0])}")
            following: list[str] = []
            for place, content in level:
                kind = content.get("type") if isinstance(content, Mapping) else None
                if isinstance(content, _Unfit):
                    unfit.append((place, content.why))
                elif kind == "Feature":
                    items[place] = Found(content, place, allow_local, policy, place)
                elif (kind == "FeatureCollection" or kind is None) and _has_features(content):
                    if any(link.get("rel") == "next" for link in _links(content)):
                        raise InputError(f"{safe_url(place)} is one page of a search; give the API's own URL instead")
                    for number, feature in enumerate(content["features"]):
                        within_it = f"{place}#{number}"
                        items[within_it] = Found(feature, place, allow_local, policy, within_it)
                elif kind in ("Catalog", "Collection") or (kind is None and _looks_like_catalogue(content)):
                    if kind == "Collection" and not accepts(str(content.get("id"))):
                        continue
                    places, broken = _followed(Found(content, place, allow_local, policy))
                    unfit += broken
                    following += [place for place in places if place not in visited]
                    visited.update(following)
                elif depth == 1:
                    raise InputError(f"{safe_url(place)} is not STAC: no catalogue, collection or item")
                else:
                    unfit.append((place, "linked, but is not STAC: no catalogue, collection or item"))
            following = list(dict.fromkeys(following))
            level = list(zip(following, pool.map(load, following), strict=True))
    return [items[place] for place in sorted(items)], sorted(unfit)


@dataclass(frozen=True, slots=True)
class _Unfit:
    """Stands for a document that is absent or no JSON: why."""

    why: str


def _has_features(content: Any) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get("features"), list)


def _looks_like_catalogue(content: Any) -> bool:
    return isinstance(content, Mapping) and "stac_version" in content and isinstance(content.get("links"), list)


def _links(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The links of a document that are any."""
    links = content.get("links")
    return [link for link in links if isinstance(link, Mapping)] if isinstance(links, list) else []


def _followed(here: Found) -> tuple[list[str], list[tuple[str, str]]]:
    """The absolute places of a catalogue's children and items, in its order, and (place, reason) of broken links."""
    content, place = here.item, here.base
    places, broken = list[str](), list[tuple[str, str]]()
    for link in _links(content):
        if link.get("rel") not in ("child", "item"):
            continue
        href = link.get("href")
        if not isinstance(href, str) or not href.strip() or len(href) > MAX_HREF or not href.isprintable():
            broken.append((place, f"one of its links of rel {link['rel']} has an href that is none"))
            continue
        try:
            places.append(here.follow(href))
        except SourceError as error:
            raise InputError(f"{safe_url(place)}: a link of it cannot be followed: {error}") from error
        except ValueError:  # urlsplit's, of a host that cannot be
            broken.append((place, f"its link {safe_url(href)[:200]} leads nowhere"))
    if not isinstance(content.get("links"), list):
        broken.append((place, "has links that are no list"))
    return places, broken


def within(item: Mapping[str, Any], boxes: Sequence[BBox], interval: Interval) -> bool:
    """Whether a checked item's footprint meets a box and its time (or range of times) meets the interval."""
    properties = item.get("properties", {})
    moment = parse_moment(properties.get("datetime"))
    first = moment or parse_moment(properties.get("start_datetime"))
    last = moment or parse_moment(properties.get("end_datetime")) or first
    if first is not None and last is not None and (last < interval[0] or first > interval[1]):
        return False
    footprint = footprint_of(item)
    return footprint is None or meets(footprint, boxes)
