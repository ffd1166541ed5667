"""Decides what an item's numbers mean: the one place that knows Sentinel-2's offset, HLS, dB and linear power."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from eocube.errors import RadiometryError
from eocube.sensors.radiometry import Radiometry
from eocube.sensors.sensor import SENTINEL2_OFFSETS, Sensor

# From this day ESA's processors write baseline 04.00: DN = reflectance * 1e4 + 1000. Reprocessing (Collection-1)
# carries it to older days too, so the day alone settles nothing.
BASELINE_0400_DAY = datetime(2022, 1, 25, tzinfo=UTC)
SENTINEL2_SCALE = 1e-4
SENTINEL2_OFFSET = -0.1


@dataclass(frozen=True, slots=True)
class Contradiction:
    """Metadata that do not settle whether the +1000 of baseline 04.00 is in the pixels: `scenes.dark_pixels` decides.

    `raised` is the rule if the +1000 is there, `removed` the rule if it is not; `why` says what contradicts what.
    """

    why: str
    raised: Radiometry
    removed: Radiometry


def offset_rule(
    properties: Mapping[str, Any],
    asset: Mapping[str, Any],
    sensor: Sensor,
    *,
    collection: str = "",
    item_id: str = "",
    key: str = "",
) -> Radiometry | Contradiction:
    """What the numbers of one asset of one STAC item mean for `sensor`.

    `properties` are the item's, `asset` the asset's own object, `key` its key. Returns the rule, or a `Contradiction`
    for pixels to decide; raises `RadiometryError` with the reason where neither can help. See `_sentinel2` for the
    offset's decision table, `_backscatter` for Sentinel-1.

    A sensor of Sentinel-2 takes an item that does not say which satellite's it is for Sentinel-2's. An item of another
    satellite, or with another scale or offset than Sentinel-2's, means what it declares.
    """
    declared = _Declared.read(asset)
    if sensor.unit == "dn8":
        return _picture(declared, key)
    if sensor.unit == "dB":
        return _backscatter(properties, asset, declared, sensor, f"{collection} {item_id}".lower(), key)
    if is_harmonised(properties, collection):
        return _harmonised(declared, sensor)
    if is_sentinel2(properties, collection, item_id):
        return _sentinel2(properties, asset, declared, collection, item_id)
    if sensor.means_sentinel2 and not _is_others(properties, declared):
        return _sentinel2(properties, asset, declared, collection, item_id, unlabelled=sensor)
    return _as_declared(declared, sensor)


@dataclass(frozen=True, slots=True)
class _Declared:
    """What an asset says of its own numbers, in the raster extension 1.x, 2.x or STAC 1.1 spelling."""

    scale: float | None
    offset: float | None
    nodata: float | None
    data_type: str
    unit: str

    @classmethod
    def read(cls, asset: Mapping[str, Any]) -> _Declared:
        bands = asset.get("raster:bands") or asset.get("bands") or [{}]
        band: Mapping[str, Any] = bands[0] if isinstance(bands[0], Mapping) else {}

        def find(name: str) -> Any:
            for place in (band, asset):
                for spelling in (name, f"raster:{name}"):
                    if place.get(spelling) is not None:
                        return place[spelling]
            return None

        return cls(
            scale=_number(find("scale")),
            offset=_number(find("offset")),
            nodata=_number(find("nodata")),
            data_type=str(find("data_type") or ""),
            unit=str(find("unit") or ""),
        )


def _number(value: Any) -> float | None:
    """A JSON number, or STAC's "nan" and "inf" spelt as text; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def is_sentinel2(properties: Mapping[str, Any], collection: str = "", item_id: str = "") -> bool:
    """Whether the item is a Sentinel-2 MSI product, by whatever it says of itself."""
    said = f"{properties.get('constellation', '')} {properties.get('platform', '')} {collection}".lower()
    if is_harmonised(properties, collection):
        return False
    if re.search(r"sentinel[-_ ]?2|sentinel-s2|\bs2[abc]\b", said):
        return True
    return bool(re.match(r"S2[A-D]_", item_id)) or any(name.startswith(("s2:", "sentinel2:")) for name in properties)


def is_harmonised(properties: Mapping[str, Any], collection: str = "") -> bool:
    """Whether the item is of NASA's HLS, which is made from Sentinel-2 and Landsat and has numbers of its own."""
    said = f"{properties.get('constellation', '')} {properties.get('platform', '')} {collection}".lower()
    return "hls" in said


def _is_others(properties: Mapping[str, Any], declared: _Declared) -> bool:
    """Whether what an item declares of its numbers is another's than Sentinel-2's: by satellite, scale or offset."""
    named = any(properties.get(name) for name in ("constellation", "platform"))
    scaled = declared.scale is not None and not math.isclose(declared.scale, SENTINEL2_SCALE, rel_tol=1e-6)
    moved = declared.offset is not None and not _is_known_offset(declared.offset)
    whole = not declared.data_type.startswith("float")
    return (named and declared.offset is not None) or (whole and (scaled or moved))


def _is_known_offset(offset: float) -> bool:
    return any(math.isclose(offset, known, rel_tol=1e-6) for known in SENTINEL2_OFFSETS)


def baseline_of(properties: Mapping[str, Any], item_id: str = "", collection: str = "") -> str | None:
    """The processing baseline ("05.09") from the item's fields, else from the product's own name, else None.

    Collection-1 (`sentinel-2-c1-*`) holds nothing older than 05.00, so an item of it without a baseline counts as such.
    """
    for name in ("s2:processing_baseline", "sentinel2:processing_baseline", "processing:version"):
        found = re.fullmatch(r"N?(\d{1,2})\.(\d{2})", str(properties.get(name, "")).strip())
        if found:
            return f"{int(found[1]):02d}.{found[2]}"
    for name in ("s2:product_uri", "sentinel2:product_title", "sentinel:product_id", "s2:datatake_id", "s2:granule_id"):
        found = re.search(r"_N(\d{2})\.?(\d{2})(?:_|$)", str(properties.get(name, "")))
        if found:
            return f"{found[1]}.{found[2]}"
    found = re.search(r"_N(\d{2})(\d{2})_R\d{3}_T", item_id)
    if found:
        return f"{found[1]}.{found[2]}"
    return "05.00" if collection.startswith("sentinel-2-c1") else None


def offset_flag(properties: Mapping[str, Any]) -> bool | None:
    """Earth Search's flag: True says the +1000 was already taken out of the pixels, None that it is not given."""
    for name in ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"):
        value = properties.get(name)
        if isinstance(value, bool):
            return value
    return None


def is_suspect(properties: Mapping[str, Any], collection: str = "", item_id: str = "") -> bool:
    """Whether a consistent item is of the class whose flag is known to be wrong at times.

    Earth Search items of baseline 04.00 and later that say the offset was not applied (earth-search issues 66 and 71).
    """
    baseline = baseline_of(properties, item_id, collection)
    return offset_flag(properties) is False and baseline is not None and baseline >= "04.00"


def _sentinel2(
    properties: Mapping[str, Any],
    asset: Mapping[str, Any],
    declared: _Declared,
    collection: str,
    item_id: str,
    *,
    unlabelled: Sensor | None = None,
) -> Radiometry | Contradiction:
    """The rule of the +1000 of processing baseline 04.00, for Sentinel-2 reflectance.

    Three witnesses: the flag `earthsearch:boa_offset_applied`, the processing baseline, the declared offset.

    | flag  | baseline | declared offset | the numbers                                                         |
    |-------|----------|-----------------|---------------------------------------------------------------------|
    | true  | >= 04.00 | any             | +1000 was taken out: offset 0, even where -0.1 is still declared    |
    | true  | unknown  | any             | offset 0                                                            |
    | true  | < 04.00  | 0 or none       | offset 0: there never was one                                       |
    | false | >= 04.00 | -0.1 or none    | offset -0.1 (but see `is_suspect`)                                  |
    | none  | >= 04.00 | -0.1 or none    | offset -0.1 (Collection-1, Planetary Computer, CDSE, L1C)           |
    | not true | < 04.00 | 0 or none     | offset 0                                                            |
    | not true | unknown, before 2022-01-25 | 0 | offset 0                                                     |
    | anything else | | | `Contradiction`: the pixels decide                                                     |

    An Earth Search COG of `sentinel-2-l2a` from which the flag is missing is a contradiction too from baseline 04.00
    on: that collection holds both kinds, and only the flag tells them apart. Float sources are physical already and
    need a declared scale. `unlabelled` is the sensor by which an item counts as Sentinel-2's that does not say so.
    """
    nodata = 0.0 if declared.nodata is None else declared.nodata
    if declared.data_type.startswith("float"):
        return _float_reflectance(declared)
    usual = SENTINEL2_SCALE if unlabelled is None else unlabelled.scale
    scale = usual if declared.scale is None else declared.scale
    flag, baseline = offset_flag(properties), baseline_of(properties, item_id, collection)
    given = declared.offset
    if given is not None and not _is_known_offset(given):
        raise RadiometryError(f"declares an offset of {given:g}; Sentinel-2 knows 0 and {SENTINEL2_OFFSET:g} only")
    said = ("" if unlabelled is None else f"taken for Sentinel-2 by sensor {unlabelled.name}, ") + (
        f"boa_offset_applied {'not given' if flag is None else str(flag).lower()}, "
        f"baseline {baseline or 'unknown'}, declared offset {'none' if given is None else f'{given:g}'}"
    )
    raised = Radiometry(scale, SENTINEL2_OFFSET, nodata, "dn", f"+1000 in the pixels: {said}")
    removed = Radiometry(scale, 0.0, nodata, "dn", f"no offset in the pixels: {said}")
    contradiction = Contradiction(said, raised, removed)
    says_offset = given is not None and given != 0.0

    if flag is True:
        return contradiction if baseline is not None and baseline < "04.00" and says_offset else removed
    if baseline is None:
        moment = _moment(properties)
        old = moment is not None and moment < BASELINE_0400_DAY
        return removed if old and given == 0.0 else contradiction
    if baseline < "04.00":
        return contradiction if says_offset else removed
    if given == 0.0 or (flag is None and _needs_flag(properties, asset)):
        return contradiction
    return raised


def _needs_flag(properties: Mapping[str, Any], asset: Mapping[str, Any]) -> bool:
    """Whether this is a COG of Earth Search's `sentinel-2-l2a`, where pixels with and without +1000 are mixed."""
    href = str(asset.get("href", ""))
    path = str(properties.get("earthsearch:s3_path", ""))
    return any("sentinel-cogs" in text and "sentinel-s2-l2a-cogs" in text for text in (href, path))


def _moment(properties: Mapping[str, Any]) -> datetime | None:
    text = properties.get("datetime") or properties.get("start_datetime")
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _float_reflectance(declared: _Declared) -> Radiometry:
    """Float pixels: the +1000 is a matter of integers, so the declared scale says all; without one it is a guess."""
    if declared.scale is None:
        raise RadiometryError("float pixels without a declared scale: raster:bands must say scale 1 for reflectance")
    nodata = math.nan if declared.nodata is None else declared.nodata
    return Radiometry(declared.scale, declared.offset or 0.0, nodata, "dn", f"float, declared scale {declared.scale:g}")


def _picture(declared: _Declared, key: str) -> Radiometry:
    """8-bit pictures ("visual", TCI) are their own unit; 0 is their nodata."""
    if declared.data_type not in ("", "uint8"):
        raise RadiometryError(f"asset {key} holds {declared.data_type}, an 8-bit picture is needed")
    return Radiometry(1.0, 0.0, 0.0 if declared.nodata is None else declared.nodata, "dn", "8-bit picture as it is")


_DECIBEL = ("db", "decibel", "decibels")
_POWER = ("linear", "power", "linear power", "1", "m2/m2", "m^2/m^2")


def _backscatter(
    properties: Mapping[str, Any],
    asset: Mapping[str, Any],
    declared: _Declared,
    sensor: Sensor,
    said: str,
    key: str,
) -> Radiometry:
    """Sentinel-1: RTC collections hold gamma0 as linear power; anything else must say that it is calibrated.

    Accepted: a declared unit of dB or of linear power, or an RTC product (linear by its collection's definition), on a
    map grid. Refused, with what is missing: raw GRD (uint16 amplitude on ground control points; the CRS 4326 that its
    items name is that of the points), and RTC for the sensor S1GRD, whose statistics are those of sigma0.
    """
    unit = declared.unit.strip().lower()
    rtc = bool(re.search(r"(^|[-_ ])rtc($|[-_ ])", said)) or properties.get("sar:product_type") == "RTC"
    if rtc and (sensor.trained_as or sensor.name) == "S1GRD":
        raise RadiometryError("is radiometrically terrain corrected (gamma0): use sensor S1RTC")
    whole = declared.data_type.startswith(("uint", "int"))
    if unit not in (*_DECIBEL, *_POWER) and (unit or whole or not rtc):
        band = key.lower() or "vv"
        raise RadiometryError(
            f"asset {key} ({declared.data_type or 'type not given'}, unit {unit or 'not given'}) is no calibrated "
            f"backscatter: calibration (schema-calibration-{band}), noise removal (schema-noise-{band}), terrain "
            "correction and a raster:bands unit of dB or linear are missing; use sentinel-1-rtc with sensor S1RTC"
        )
    if not any(place.get(name) for place in (asset, properties) for name in ("proj:epsg", "proj:code", "proj:wkt2")):
        raise RadiometryError("names no CRS (proj:epsg or proj:code), so it is not terrain corrected")
    scale = 1.0 if declared.scale is None else declared.scale
    if unit in _DECIBEL:
        return Radiometry(scale, declared.offset or 0.0, declared.nodata, "dn", "declared unit dB")
    why = f"declared unit {unit}" if unit else "radiometrically terrain corrected: gamma0 as linear power"
    return Radiometry(scale, 0.0, declared.nodata, "power", why)


def _as_declared(declared: _Declared, sensor: Sensor) -> Radiometry:
    """Another satellite's numbers: what the asset declares, else what the sensor's file states.

    Never the sensor's travelling form: that is what numbers become, and says nothing of what they were.
    """
    nodata = sensor.nodata if declared.nodata is None else declared.nodata
    stated = sensor.source_offset
    if declared.scale is None and declared.offset is None:
        if stated is None:
            raise RadiometryError(
                f"declares neither scale nor offset, and {sensor.name} states no offset of its sources: add scale and "
                "offset to the asset's raster:bands, or offset: to the sensor's file, or say it with --offset"
            )
        return Radiometry(sensor.scale, stated, nodata, "dn", f"as {sensor.name} describes it")
    scale = 1.0 if declared.scale is None else declared.scale
    if declared.offset is None and stated:
        why = f"scale as the asset declares it, offset as {sensor.name} describes it"
        return Radiometry(scale, stated, nodata, "dn", why)
    return Radiometry(scale, declared.offset or 0.0, nodata, "dn", "as the asset declares it")


def _harmonised(declared: _Declared, sensor: Sensor) -> Radiometry:
    """HLS: as declared, else as its user guide (version 2) has it: reflectance = DN * 1e-4, -9999 is nodata."""
    if declared.scale is not None or declared.offset is not None:
        return _as_declared(declared, sensor)
    nodata = -9999.0 if declared.nodata is None else declared.nodata
    return Radiometry(1e-4, 0.0, nodata, "dn", "harmonised (HLS): reflectance * 1e4, no offset")
