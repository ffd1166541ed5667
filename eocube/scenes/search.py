"""Searches a catalogue: STAC items from an API or a static catalogue -> frozen, de-duplicated scenes."""

from __future__ import annotations

import importlib.util
import posixpath
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from shapely.errors import GEOSException
from shapely.geometry.base import BaseGeometry

from eocube.errors import InputError, RadiometryError, SourceError
from eocube.ground.boxes import BBox, Interval, footprint_of, overlap, parse_bbox, parse_interval, split_box
from eocube.net.network import shared_network
from eocube.net.redaction import one_line, redacted
from eocube.net.storage_options import scoped
from eocube.scenes.dark_pixels import OverviewReader, overview_reader
from eocube.scenes.fetch import Budget
from eocube.scenes.item_checks import check_item, name_of
from eocube.scenes.items import identify, level_of, processing_rank, scene_from_item
from eocube.scenes.scene import BandSource, Scene
from eocube.scenes.scene_ids import SAME_ACQUISITION, distinct
from eocube.scenes.stac import (
    PRESETS,
    Found,
    is_api,
    known_collections,
    load_json,
    safe_url,
    search_api,
    static_location,
    walk_static,
    within,
)
from eocube.sensors.sensor import Sensor

__all__ = [
    "PRESETS",
    "BBox",
    "BandSource",
    "Interval",
    "Scene",
    "SearchResult",
    "parse_bbox",
    "parse_interval",
    "search",
    "sign",
]

PLANETARY_COMPUTER = "planetary-computer"
SIGNING_HOST = "planetarycomputer.microsoft.com"
ITEM_THREADS = 8
# What an item may end with on its own account. `item_checks` leaves none but the first two; the others are what a value
# can still do to numpy or GEOS. A TypeError, KeyError or the like is a defect of this package, whatever the item: it
# comes through.
_ITS_OWN = (SourceError, RadiometryError, ValueError, ArithmeticError, GEOSException)


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found: the scenes by (time, id), and what it could not use.

    No two scenes share an id (`eocube.scenes.scene_ids`). `refused` are (item id, reason); `replaced` are (item id, id
    of the newer processing that was taken instead); `searched` says in words what was searched, for messages.
    """

    scenes: tuple[Scene, ...]
    refused: tuple[tuple[str, str], ...]
    replaced: tuple[tuple[str, str], ...]
    searched: str


def search(
    catalog: str,
    sensor: Sensor,
    bbox: BBox | Sequence[BBox],
    interval: Interval,
    *,
    storage_options: Mapping[str, Any] | None = None,
    check_pixels: bool = False,
    read_overview: OverviewReader | None = None,
    allow_local: bool = False,
) -> SearchResult:
    """Every usable scene of `sensor` that meets the box (or boxes) and the interval, each acquisition once.

    `catalog` is a preset ("earth-search", "planetary-computer", "cdse"), the URL of a STAC API, or any fsspec URL or
    path of a static catalogue, collection, item or item collection (`storage_options` are for those, by the rules of
    `eocube.net.storage_options.scoped`). Of several
    processings of an acquisition the sensor's preferred collection wins, then the newest; an unusable one gives way to
    the next. Where metadata contradict each other about the offset a coarse view of the dark bands is read
    (`read_overview`, default: rasterio) and decides, or the item is refused; `check_pixels` reads one also of the
    items that are consistent but of the class known to be wrong at times.
    `allow_local` lets a catalogue from elsewhere lead to files of this machine and to addresses of its networks.

    Raises `InputError` where the catalogue cannot be reached, is no STAC, or cannot serve the sensor.
    """
    boxes = _boxes(bbox)
    storage_options = scoped(storage_options, PRESETS.get(catalog, catalog), trusted=allow_local)
    gathered = _gather(catalog, sensor, boxes, interval, storage_options, allow_local)
    signer = gathered.signer
    fit, refused = _checked(gathered.found)
    inside = [one for one in fit if within(one.item, boxes, interval)]
    reader = read_overview or overview_reader(storage_options)

    def read(href: str) -> Any:
        return reader(sign(href, signer))

    def make(one: Found) -> Scene:
        return scene_from_item(
            one.item, sensor, one.resolve, signer=signer, read_overview=read, check_pixels=check_pixels
        )

    scenes, unusable, replaced = _one_each(inside, gathered.order, make)
    refused += unusable
    refused += [(posixpath.basename(safe_url(place)), why) for place, why in gathered.unfit]
    found_in_all = len(inside) + len(refused) - len(unusable) - len(gathered.unfit)
    spans = "; ".join(" ".join(f"{value:g}" for value in box) for box in boxes)
    searched = (
        f"{gathered.where}, bbox {spans}, {interval[0]:%Y-%m-%d} to {interval[1]:%Y-%m-%d}: "
        f"{found_in_all} items for {sensor.name}, {len(scenes)} usable"
    )
    if refused and not scenes:
        searched += f" ({refused[0][0]}: {refused[0][1]})"
    refused = sorted((redacted(name), one_line(why)) for name, why in refused)  # a plan keeps them
    return SearchResult(_common_times(scenes), tuple(refused), tuple(sorted(replaced)), searched)


def _boxes(bbox: BBox | Sequence[BBox]) -> tuple[BBox, ...]:
    """One or several boxes, each split at the antimeridian."""
    single = len(bbox) == 4 and all(isinstance(value, (int, float)) for value in bbox)
    listed: Any = [bbox] if single else bbox
    boxes = tuple(part for box in listed for part in split_box(box))
    if not boxes:
        raise InputError("no bbox to search")
    return boxes


@dataclass(frozen=True, slots=True)
class _Gathered:
    """A catalogue's items before they are judged: `order` are its collections by preference, `where` says it in words.

    `unfit` are (place, reason) of linked files that do not exist or are no STAC.
    """

    found: list[Found]
    order: tuple[str, ...]
    where: str
    signer: str | None = None
    unfit: tuple[tuple[str, str], ...] = ()


def _gather(
    catalog: str,
    sensor: Sensor,
    boxes: Sequence[BBox],
    interval: Interval,
    storage_options: Mapping[str, Any] | None,
    allow_local: bool,
) -> _Gathered:
    """The items of whichever kind of catalogue it is."""
    every = tuple(dict.fromkeys(name for names in sensor.collections.values() for name in names))
    url = PRESETS.get(catalog) or static_location(catalog)
    budget = Budget(safe_url(url))
    preset = next((name for name, known in PRESETS.items() if _same_host(known, url)), None)
    if preset is None:
        document = load_json(url, storage_options, budget=budget)
        if not (url.startswith("http") and is_api(document)):
            return _gather_static(url, document, sensor, every, storage_options, allow_local, budget)
    if preset is not None:
        wanted = (*sensor.collections.get(preset, ()), *sensor.collections.get("any", ()))
        if not wanted:
            serving = " or ".join(name for name in PRESETS if sensor.collections.get(name))
            hint = f"try --catalog {serving}" if serving else "name its collections in the sensor's file"
            raise InputError(f"{preset} has no collection for {sensor.name}; {hint}")
    else:
        wanted = known_collections(url, every, storage_options=storage_options, budget=budget)
        if not wanted:
            raise InputError(f"{safe_url(url)} has none of the collections of {sensor.name}: {', '.join(every)}")
    if preset == PLANETARY_COMPUTER:
        _need_signer()
    found = search_api(url, wanted, boxes, interval, storage_options=storage_options, budget=budget)
    found = [replace(one, allow_local=allow_local) for one in found]
    name = f"{preset} ({safe_url(url)})" if preset else safe_url(url)
    signer = PLANETARY_COMPUTER if preset == PLANETARY_COMPUTER else None
    return _Gathered(found, wanted, f"searched {name}, collections {', '.join(wanted)}", signer)


def _gather_static(
    root: str,
    document: Any,
    sensor: Sensor,
    every: tuple[str, ...],
    storage_options: Mapping[str, Any] | None,
    allow_local: bool,
    budget: Budget,
) -> _Gathered:
    """A static catalogue's items: those of the sensor's collections, or, where it has none of them, of all others.

    Collections of other names are taken by their assets: an item counts if it has one for any band of the sensor.
    """
    others: set[str] = set()

    def ours(name: str) -> bool:
        if name in every:
            return True
        others.add(name)
        return False

    how: dict[str, Any] = {"document": document, "allow_local": allow_local, "budget": budget}
    items, unfit = walk_static(root, ours, storage_options, **how)
    found = [one for one in items if _collection(one.item) in every]
    if found:
        found += [one for one in items if _collection(one.item) is None]
    elif others:
        items, unfit = walk_static(root, lambda name: True, storage_options, **how)
    if not found:
        found = [one for one in items if _may_have(one.item, sensor)]
    ids = sorted({str(_collection(one.item)) for one in found})
    where = f"searched {safe_url(root)}, collections {', '.join(ids) or 'of no matching name'}"
    return _Gathered(found, every, where, unfit=tuple(unfit))


def _collection(item: Any) -> str | None:
    """The collection an item says it is of, "" where it says none; None where it is no item that could say."""
    name = item.get("collection") if isinstance(item, Mapping) else None
    if isinstance(name, str) and name:
        return name
    whole = isinstance(item, Mapping) and all(isinstance(item.get(part), Mapping) for part in ("properties", "assets"))
    return "" if whole and name in (None, "") else None


def _may_have(item: Any, sensor: Sensor) -> bool:
    """Whether an item has an asset for any of a sensor's bands, or is malformed so that it does not tell."""
    assets = item.get("assets") if isinstance(item, Mapping) else None
    return not isinstance(assets, Mapping) or any(key in assets for band in sensor.bands for key in band.assets)


def _checked(found: Sequence[Found]) -> tuple[list[Found], list[tuple[str, str]]]:
    """The items that pass `scenes.item_checks`, and (name, reason) of the others, which cost themselves alone."""
    fit, unfit = list[Found](), list[tuple[str, str]]()
    for one in found:
        try:
            check_item(one.item)
            fit.append(one)
        except _ITS_OWN as error:
            unfit.append((name_of(one.item, posixpath.basename(safe_url(one.place)) or "an item"), _reason(error)))
    return fit, unfit


def _reason(error: Exception) -> str:
    """Why an item is refused; with the kind of what was not raised on purpose."""
    if isinstance(error, SourceError | RadiometryError):
        return str(error)
    return f"holds a value that cannot be used ({type(error).__name__}: {str(error)[:120]})"


def _same_host(known: str, url: str) -> bool:
    return url.startswith("http") and urlsplit(known).netloc == urlsplit(url).netloc


def _one_each(
    found: Sequence[Found], order: tuple[str, ...], make: Callable[[Found], Scene]
) -> tuple[list[Scene], list[tuple[str, str]], list[tuple[str, str]]]:
    """One scene per acquisition: the scenes, the refused and the replaced items.

    Runs the acquisitions on threads, since pixels may have to be read to decide; the outcome does not depend on that.
    """
    acquisitions: dict[tuple[str, str, str | None], list[Found]] = {}
    for one in found:
        identity = identify(one.item)
        key = (identity.group, identity.tile or str(one.item.get("id")), level_of(one.item))
        acquisitions.setdefault(key, []).append(one)

    def best(candidates: list[Found]) -> tuple[list[Scene], list[tuple[str, str]], list[tuple[str, str]]]:
        ranked = sorted(candidates, key=lambda one: processing_rank(one.item), reverse=True)
        ranked.sort(key=lambda one: _place(one.item.get("collection"), order))
        kept: list[tuple[Scene, BaseGeometry | None]] = []
        refused: list[tuple[str, str]] = []
        replaced: list[tuple[str, str]] = []
        for one in ranked:
            name, footprint = str(one.item.get("id")), footprint_of(one.item)
            try:
                twin = next((scene for scene, other in kept if _same(footprint, other)), None)
                if twin is None:
                    kept.append((make(one), footprint))
                else:
                    replaced.append((name, twin.id))
            except InputError:
                raise
            except _ITS_OWN as error:
                refused.append((name, _reason(error)))
        return [scene for scene, _ in kept], refused, replaced

    with ThreadPoolExecutor(ITEM_THREADS) as pool:
        outcomes = list(pool.map(best, acquisitions.values()))
    return (
        [scene for scenes, _, _ in outcomes for scene in scenes],
        [pair for _, pairs, _ in outcomes for pair in pairs],
        [pair for _, _, pairs in outcomes for pair in pairs],
    )


def _same(one: BaseGeometry | None, other: BaseGeometry | None) -> bool:
    return one is None or other is None or overlap(one, other) > SAME_ACQUISITION


def _place(collection: Any, order: tuple[str, ...]) -> int:
    return order.index(collection) if collection in order else len(order)


def _common_times(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """The scenes by (time, id), those of one group with one time, each with an id of its own.

    Only groups whose metadata do not give the datatake's start (Sentinel-1 slices) differ within: the earliest counts.
    """
    earliest: dict[str, str] = {}
    for scene in scenes:
        earliest[scene.group] = min(scene.time, earliest.get(scene.group, scene.time))
    timed = [replace(scene, time=earliest[scene.group]) for scene in scenes]
    timed.sort(key=lambda scene: (scene.time, scene.id, scene.collection, scene.datetime, scene.sources[0].href))
    return distinct(timed)


def _need_signer() -> None:
    if importlib.util.find_spec("planetary_computer") is None:
        raise InputError(
            "planetary-computer signs its hrefs with a package that is not installed: pip install 'eocube[pc]'"
        )


def sign(href: str, signer: str | None) -> str:
    """The href to open: signed afresh where its scene names a signer. Never store the answer.

    Raises `InputError` where the signer is unknown or its package is not installed, `SourceError` where it fails.
    """
    if signer is None:
        return href
    if signer != PLANETARY_COMPUTER:
        raise InputError(f"unknown signer {signer!r}: known is {PLANETARY_COMPUTER}")
    _need_signer()
    import planetary_computer

    try:
        # Most calls take a token that is kept; those that fetch one are few.
        return shared_network().call(SIGNING_HOST, lambda: str(planetary_computer.sign_url(href)), request=False)
    except Exception as error:  # the package raises errors of its HTTP client; none may carry the token on
        raise SourceError(f"cannot sign {safe_url(href)}: {type(error).__name__}") from None


def drop_cloudy(
    scenes: Sequence[Scene], max_cloud: float | None
) -> tuple[tuple[Scene, ...], tuple[tuple[str, str], ...]]:
    """Scenes without those that are too cloudy as a whole, and which these are.

    Only scenes with no mask of their own are judged as a whole; the others are judged window by window.
    """
    if max_cloud is None:
        return tuple(scenes), ()
    cloudy = {s.id for s in scenes if s.mask is None and s.cloud_cover is not None and s.cloud_cover > max_cloud}
    reasons = tuple((s.id, f"cloud cover {s.cloud_cover:.0f} % over {max_cloud:g} %") for s in scenes if s.id in cloudy)
    return tuple(s for s in scenes if s.id not in cloudy), reasons
