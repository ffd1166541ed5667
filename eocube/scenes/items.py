"""Makes one Scene of one STAC item: identity of the acquisition, assets of the bands, radiometry, geometry."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eocube.errors import RadiometryError, SourceError
from eocube.ground.boxes import bbox_of, footprint_of, parse_moment
from eocube.net.redaction import secret_in
from eocube.net.trust import scheme
from eocube.scenes.dark_pixels import DARK_BANDS, OverviewReader, dark_tail_check, decide, settled
from eocube.scenes.item_checks import asset_fault
from eocube.scenes.offset import Contradiction, baseline_of, is_suspect, offset_rule
from eocube.scenes.scene import BandSource, Scene, geojson_text
from eocube.sensors.radiometry import Radiometry
from eocube.sensors.sensor import Band, Sensor

_S2_PRODUCT = re.compile(r"(S2[A-D])_MSIL(?:1C|2A)_(\d{8}T\d{6})_")
_S2_TRACK = re.compile(r"S2[A-D]_MSIL(?:1C|2A)_\d{8}T\d{6}_(?:N\d{4}_)?R(\d{3})_")
_S2_DATATAKE = re.compile(r"G(S2[A-D])_(\d{8}T\d{6})_")
_S1_PRODUCT = re.compile(r"(S1[A-D])_\w{2}_\w{4}_\w{4}_(\d{8}T\d{6})_\d{8}T\d{6}_(\d{6})_([0-9A-F]{6})")
_MGRS = re.compile(r"(?:MGRS-)?T?(\d{1,2})([C-HJ-NP-X])([A-HJ-NP-Z]{2})")


@dataclass(frozen=True, slots=True)
class Identity:
    """What an item is an item of: `group` (datatake), its `start` if the metadata give it, and the tile or slice."""

    group: str
    start: datetime | None
    tile: str | None


def moment_of(item: Mapping[str, Any]) -> datetime | None:
    """The item's datetime, or the start of its range."""
    properties = item.get("properties", {})
    return parse_moment(properties.get("datetime")) or parse_moment(properties.get("start_datetime"))


def identify(item: Mapping[str, Any]) -> Identity:
    """The datatake and the tile of an item, from whichever field its catalogue keeps them in.

    Sentinel-2: the datatake's start is in `s2:datatake_id`, or in the product's name. Sentinel-1: absolute orbit and
    datatake are in the product's name; its "tile" is the slice's start. Else platform and relative orbit of a day, else
    platform and second.
    """
    properties, name = item.get("properties", {}), str(item.get("id", ""))
    tile = _tile(properties, name)
    for pattern, keys in (
        (_S2_DATATAKE, ("s2:datatake_id",)),
        (_S2_PRODUCT, ("s2:product_uri", "sentinel2:product_title", "sentinel:product_id")),
    ):
        for text in (*(str(properties.get(key, "")) for key in keys), name):
            if (found := pattern.search(text)) and (start := _stamp(found[2])) is not None:
                return Identity(f"{found[1]}_{found[2]}", start, tile)
    products = properties.get("sentinel:product_ids")
    listed = [str(product) for product in products] if isinstance(products, list) else []
    for text in (name, str(properties.get("s1:product_identifier", "")), *listed):
        if found := _S1_PRODUCT.search(text):
            return Identity(f"{found[1]}_{found[3]}_{found[4]}", None, tile or found[2])
    platform, moment = platform_of(item), moment_of(item) or datetime.min.replace(tzinfo=UTC)
    for key in ("sat:relative_orbit", "sentinel2:relative_orbit_number"):
        orbit = properties.get(key)
        if isinstance(orbit, int) and 0 <= orbit < 1000 and tile is not None:
            return Identity(f"{platform}_R{orbit:03d}_{moment:%Y%m%d}", None, tile)
    return Identity(f"{platform}_{moment:%Y%m%dT%H%M%S}", moment.replace(microsecond=0), tile)


def _tile(properties: Mapping[str, Any], name: str) -> str | None:
    """The MGRS tile ("33TWM") an item covers, from its fields or its id."""
    parts = ("utm_zone", "latitude_band", "grid_square")
    for prefix in ("mgrs", "sentinel"):
        text = "".join(str(properties.get(f"{prefix}:{part}", "")) for part in parts)
        if found := _MGRS.fullmatch(text):
            return f"{int(found[1]):02d}{found[2]}{found[3]}"
    for key in ("grid:code", "s2:mgrs_tile", "sentinel:mgrs", "s2:tile_id", "s2:granule_id"):
        text = str(properties.get(key, ""))
        if found := _MGRS.fullmatch(text) or re.search(r"_T(\d{2})([C-HJ-NP-X])([A-HJ-NP-Z]{2})_", text):
            return f"{int(found[1]):02d}{found[2]}{found[3]}"
    if found := re.match(r"S2[A-D]_.*?(?<![0-9A-Z])T?(\d{1,2})([C-HJ-NP-X])([A-HJ-NP-Z]{2})(?:_|$)", name):
        return f"{int(found[1]):02d}{found[2]}{found[3]}"
    return None


def _stamp(text: str) -> datetime | None:
    """The moment in a product's name; None for digits that are none."""
    try:
        return datetime.strptime(text, "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


def platform_of(item: Mapping[str, Any]) -> str:
    """The satellite in one spelling ("sentinel-2a"), from the item's field or its id."""
    said = str(item.get("properties", {}).get("platform") or "").strip().lower().replace(" ", "-")
    if said:
        return said
    found = re.match(r"S([12])([A-D])_", str(item.get("id", "")))
    return f"sentinel-{found[1]}{found[2].lower()}" if found else "unknown"


def orbit_of(item: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """("ascending" or "descending", relative orbit) as far as an item says, the latter also by its product's name."""
    properties = item.get("properties", {})
    said = str(properties.get("sat:orbit_state") or properties.get("sentinel2:orbit_direction") or "").strip().lower()
    track = properties.get("sat:relative_orbit", properties.get("sentinel2:relative_orbit_number"))
    if not _is_track(track):
        names = (properties.get(k) for k in ("s2:product_uri", "sentinel2:product_title", "sentinel:product_id"))
        texts = (str(name) for name in (*names, item.get("id")))
        track = next((int(found[1]) for text in texts if (found := _S2_TRACK.search(text))), None)
    return said if said in ("ascending", "descending") else None, track if _is_track(track) else None


def _is_track(value: Any) -> bool:
    """Whether it can be a relative orbit: of the missions whose scenes are read the longest cycle has 233."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 999


def processing_rank(item: Mapping[str, Any]) -> tuple[str, str, int, str, str]:
    """Orders several processings of one acquisition: the greatest is the newest."""
    properties, name = item.get("properties", {}), str(item.get("id", ""))
    baseline = baseline_of(properties, name, str(item.get("collection", ""))) or ""
    made = properties.get("s2:generation_time") or properties.get("sentinel2:generation_time")
    made = made or properties.get("processing:datetime") or properties.get("s1:processing_datetime") or ""
    sequence = str(properties.get("s2:sequence") or properties.get("sentinel:sequence") or "0")
    updated = str(properties.get("updated") or properties.get("created") or "")
    return baseline, str(made), int(sequence) if re.fullmatch(r"[0-9]{1,18}", sequence) else 0, updated, name


def epsg_of(item: Mapping[str, Any], asset: Mapping[str, Any] | None = None) -> int | None:
    """The EPSG code of an item's pixels, from the asset's or the item's projection fields."""
    for place in (asset or {}, item.get("properties", {})):
        code = place.get("proj:epsg")
        if isinstance(code, int) and not isinstance(code, bool) and 0 < code < 10**6:
            return code
        if found := re.fullmatch(r"EPSG:([0-9]{1,6})", str(place.get("proj:code", ""))):
            return int(found[1])
    return None


def find_asset(item: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, Mapping[str, Any]] | None:
    """The first of the accepted asset keys under which the item has an asset that can be read, with the asset."""
    assets = item.get("assets", {})
    for key in keys:
        if key in assets and asset_fault(assets[key]) is None:
            return key, assets[key]
    return None


def _lacking(item: Mapping[str, Any], bands: Sequence[Band]) -> str:
    """Why there is no asset for some bands, in words."""
    faults = [
        f"its asset {key} {asset_fault(item['assets'][key])}"
        for band in bands
        for key in band.assets
        if key in item["assets"]
    ]
    return "; ".join([
        "has no asset for " + ", ".join(f"{b.name} ({' or '.join(b.assets)})" for b in bands),
        *dict.fromkeys(faults),
    ])  # fmt: skip


# The processing level of the built-in Sentinel-2 sensors: top-of-atmosphere and surface reflectance are not the same.
_LEVELS = {"S2L2A": "L2A", "RGBN": "L2A", "S2L1C": "L1C"}


def level_of(item: Mapping[str, Any]) -> str | None:
    """The level of a Sentinel-2 item ("L1C", "L2A") from its product type, collection or id; None: unknown."""
    properties = item.get("properties", {})
    for text in (properties.get("s2:product_type"), item.get("collection"), item.get("id")):
        if found := re.search(r"(?:^|[-_]|MSI)L(1C|2A)(?:$|[-_])|MSI(1C|2A)$", str(text or "").upper()):
            return f"L{found[1] or found[2]}"
    return None


def scene_from_item(
    item: Mapping[str, Any],
    sensor: Sensor,
    resolve: Callable[[str], str],
    *,
    signer: str | None = None,
    read_overview: OverviewReader | None = None,
    check_pixels: bool = False,
) -> Scene:
    """The scene of one item for one sensor.

    `resolve` makes an asset's href absolute; `read_overview` reads a signed coarse view where the pixels must decide
    (None: contradictions are refused); `check_pixels` lets the pixels veto suspects too. Raises `RadiometryError` or
    `SourceError` with the reason why the item cannot be used.
    """
    properties, name, collection = item["properties"], str(item["id"]), str(item.get("collection") or "")
    moment, identity, footprint = moment_of(item), identify(item), footprint_of(item)
    if moment is None:
        raise SourceError("has neither datetime nor start_datetime")
    if footprint is None:
        raise SourceError("has neither geometry nor bbox")
    level, needed = level_of(item), _LEVELS.get(sensor.trained_as or sensor.name)
    if level is not None and needed is not None and level != needed:
        raise SourceError(f"is Sentinel-2 {level}, {sensor.name} is {needed}")
    found = {band.name: find_asset(item, band.assets) for band in sensor.bands}
    missing = [band for band in sensor.bands if found[band.name] is None]
    if missing:
        raise SourceError(_lacking(item, missing))
    chosen = [(band, *pair) for band in sensor.bands if (pair := found[band.name]) is not None]
    rules = [
        offset_rule(properties, asset, sensor, collection=collection, item_id=name, key=key) for _, key, asset in chosen
    ]
    settled_rules = _settle(item, sensor, rules, resolve, read_overview, check_pixels)
    sources = tuple(
        _source(band, key, asset, rule, resolve, signer)
        for (band, key, asset), rule in zip(chosen, settled_rules, strict=True)
    )
    mask = None
    if (masked := find_asset(item, sensor.mask_assets)) is not None:
        classes = Radiometry(1.0, 0.0, 0.0, "dn", "scene classification")
        href = _unsigned(resolve(str(masked[1]["href"])), signer)
        mask = BandSource("SCL", masked[0], href, 1, classes, size_of(masked[1]))
    cloud = properties.get("eo:cloud_cover")
    orbit_state, relative_orbit = orbit_of(item)
    return Scene(
        id=name,
        collection=collection,
        datetime=_iso(moment),
        platform=platform_of(item),
        group=identity.group,
        time=_iso((identity.start or moment).replace(microsecond=0)),
        epsg=epsg_of(item, chosen[0][2]),
        bbox=bbox_of(footprint),
        footprint=_outline(item.get("geometry")),
        cloud_cover=float(cloud) if isinstance(cloud, (int, float)) and 0 <= cloud <= 100 else None,
        baseline=baseline_of(properties, name, collection) if sensor.unit == "reflectance" else None,
        sources=sources,
        mask=mask,
        signer=signer,
        orbit_state=orbit_state,
        relative_orbit=relative_orbit,
    )


def _outline(geometry: Mapping[str, Any] | None) -> str | None:
    """What a plan keeps of an item's geometry: nothing but its type and coordinates."""
    if not geometry or not geometry.get("coordinates"):
        return None
    return geojson_text({"type": geometry["type"], "coordinates": geometry["coordinates"]})


def _source(
    band: Band,
    key: str,
    asset: Mapping[str, Any],
    rule: Radiometry,
    resolve: Callable[[str], str],
    signer: str | None,
) -> BandSource:
    href = _unsigned(resolve(str(asset["href"])), signer)
    return BandSource(band.name, key, href, band.index, rule, size_of(asset))


def size_of(asset: Mapping[str, Any]) -> int | None:
    """The asset's `file:size` in bytes, where the catalogue gives one that can be."""
    size = asset.get("file:size")
    return size if isinstance(size, int) and not isinstance(size, bool) and 0 < size < 2**63 else None


def _unsigned(href: str, signer: str | None) -> str:
    """The href as a plan keeps it: without a signature that is made anew, without a fragment, which no server is sent.

    SourceError where it carries another credential: a plan must not keep it, and without it the href may not be read,
    or may be read as another file.
    """
    if scheme(href) in ("http", "https"):
        href = href.partition("#")[0]
    if signer is not None and "@" not in href.partition("?")[0]:
        href = href.partition("?")[0] if secret_in(href) else href
    if (what := secret_in(href)) is not None:
        raise SourceError(
            f"its hrefs carry a signature or credential ({what}), which a plan must not keep: use the catalogue that "
            "signs them, or leave it out of the item and give it by --source-options or in ~/.netrc"
        )
    return href


def _settle(
    item: Mapping[str, Any],
    sensor: Sensor,
    rules: list[Radiometry | Contradiction],
    resolve: Callable[[str], str],
    read: OverviewReader | None,
    check_pixels: bool,
) -> list[Radiometry]:
    """The rules with contradictions decided by pixels or the user, and with the pixels' veto where asked for."""
    contradiction = next((rule for rule in rules if isinstance(rule, Contradiction)), None)
    properties, name, collection = item["properties"], str(item["id"]), str(item.get("collection") or "")
    if contradiction is not None:
        verdict, why = decide(contradiction, _dark_hrefs(item, sensor, resolve), read, sensor.source_offset)
        decided = [settled(rule, verdict, why) for rule in rules]
        if len({rule.offset for rule in decided}) > 1:
            raise RadiometryError(f"some of its assets declare another offset than its pixels have: {why}")
        return decided
    plain = [rule for rule in rules if isinstance(rule, Radiometry)]
    if check_pixels and read is not None and is_suspect(properties, collection, name):
        blue = _dark_hrefs(item, sensor, resolve).get("B02")
        veto = dark_tail_check(blue, read) if blue else None
        if veto is not None:
            return [settled(rule, "removed", veto) for rule in plain]
    return plain


def _dark_hrefs(item: Mapping[str, Any], sensor: Sensor, resolve: Callable[[str], str]) -> dict[str, str]:
    """The hrefs of the item's dark bands, whichever bands the sensor asks for, by its own asset keys first."""
    from eocube.sensors.builtin import S2L1C

    # A band that lies behind others in its file cannot be had by the file's href.
    own = {band.name: band.assets for band in sensor.bands if band.index == 1}
    found = {}
    for name in DARK_BANDS[level_of(item) or _LEVELS.get(sensor.trained_as or sensor.name) or "L2A"]:
        if (pair := find_asset(item, (*own.get(name, ()), *S2L1C.band(name).assets))) is not None:
            found[name] = resolve(str(pair[1]["href"]))
    return found


def _iso(moment: datetime) -> str:
    """ISO in UTC with a Z, milliseconds only where there are any."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")
