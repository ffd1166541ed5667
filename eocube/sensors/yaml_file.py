"""Reads a user's own sensor from a small YAML file.

The file's keys (`bands`, `name` and `unit` are required):

    name: Dove4                  # any name that no built-in sensor has
    unit: reflectance            # reflectance | dB | dn8
    trained_as: RGBN             # the sensor of the weights it follows; its band names are that sensor's
    scale: 0.0001                # reflectance = DN * scale + offset, for assets that do not declare their own
    offset: 0                    # say it: without it a file that is trained_as Sentinel-2 has Sentinel-2's offset rule
    nodata: 0
    mask_assets: [scl]           # a scene classification with Sentinel-2's classes, where there is one
    collections:                 # catalogue preset -> collection ids, preferred first; "any" serves every catalogue
      any: [planet-4band]
    bands:
      - name: B04                # as the weights call it
        wavelength: 0.665        # micrometres
        gsd: 3                   # native sampling, metres
        assets: [red, analytic]  # accepted asset keys, preferred first
        index: 3                 # band within the asset, from 1 (default 1)
        mean: 1831.8             # z-score statistics in the weights' unit; default 0 and 1: the weights' own metadata
        std: 2118.2              # replace them before anything is encoded

Reflectance travels as uint16 with the file's scale and offset (default: Sentinel-2's, 1e-4 and -0.1), dB as float32,
dn8 as uint8. The default says nothing of a source: an item that declares no offset needs one in the file, or, where the
sensor is trained as one of Sentinel-2, is settled as that satellite's items are. Items of Sentinel-2 itself keep its
offset rule whatever the file says; the file counts where they and their pixels leave it open.

Checked by hand, not by `model.forms`: its messages would name a band by its place instead of its name, unless a speller
of our own took the lines it saves, and every start of the command line would wait for pydantic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from eocube.errors import InputError
from eocube.sensors.sensor import SENTINEL2, WEIGHTS_UNITS, Band, Sensor, nearest

_KEYS = ("name", "unit", "bands", "collections", "scale", "offset", "nodata", "trained_as", "mask_assets")
_BAND_KEYS = ("name", "wavelength", "gsd", "assets", "index", "mean", "std")
# Unit -> the travelling form's dtype and its default scale, offset and nodata.
_FORMS: Mapping[str, tuple[str, float, float, float]] = {
    "reflectance": ("uint16", 1e-4, -0.1, 0.0),
    "dB": ("float32", 1.0, 0.0, math.nan),
    "dn8": ("uint8", 1.0, 0.0, 0.0),
}
MOST_BYTES = 1_000_000
"""Size of a sensor's file at most: a thousand bands take a tenth of it."""


class _Plain(yaml.SafeLoader):
    """YAML without aliases: a few hundred bytes of them can stand for more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken here, write it out")
        return super().compose_node(parent, index)


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise InputError(f"sensor file {path} has more than {MOST_BYTES} bytes: it describes no sensor")
        return yaml.load(data.decode("utf-8"), _Plain)
    except OSError as error:
        raise InputError(f"cannot read sensor file {path}: {error.strerror}") from error
    except RecursionError:
        raise InputError(f"sensor file {path} is nested too deep: it describes no sensor") from None
    except (yaml.YAMLError, ValueError) as error:  # also text that is no UTF-8, and dates that are none
        raise InputError(f"sensor file {path} is not YAML: {str(error).splitlines()[0]}") from error


def read_sensor(path: Path) -> Sensor:
    """The sensor that a YAML file describes; `InputError` names the file and the key that is wrong."""
    from eocube.sensors.builtin import SENSORS

    fields = _mapping(_load(path), _KEYS, f"sensor file {path}")
    name, unit = _text(_need(fields, "name", path), "name", path), _text(_need(fields, "unit", path), "unit", path)
    if name in SENSORS:
        raise InputError(f"sensor file {path}: {name} is a built-in sensor, choose another name")
    if unit not in _FORMS:
        raise InputError(f"sensor file {path}: unit {unit!r}: {nearest(unit, tuple(_FORMS))}")
    dtype, scale, offset, nodata = _FORMS[unit]
    listed = _need(fields, "bands", path)
    if not isinstance(listed, list) or not listed:
        raise InputError(f"sensor file {path}: bands must be a list of at least one band")
    bands = tuple(_band(entry, path) for entry in listed)
    names = [band.name for band in bands]
    if len(set(names)) != len(names):
        raise InputError(f"sensor file {path}: two bands have the same name")
    given = fields.get("trained_as")
    trained_as = None if given is None else _text(given, "trained_as", path)
    if "scale" in fields and "offset" not in fields:
        offset = 0.0
    stated = "offset" in fields or ("scale" in fields and trained_as not in SENTINEL2)
    sensor = Sensor(
        name=name,
        bands=bands,
        unit=unit,
        dtype=dtype,
        scale=_float(fields.get("scale", scale), "scale", path),
        offset=_float(fields.get("offset", offset), "offset", path),
        nodata=_float(fields.get("nodata", nodata), "nodata", path, finite=False),
        unit_factor=WEIGHTS_UNITS[unit][0],
        collections=_collections(fields.get("collections", {}), path),
        mask_assets=_names(fields.get("mask_assets", []), "mask_assets", path),
        trained_as=trained_as,
    )
    if stated and unit == "reflectance":
        sensor = replace(sensor, source_offset=sensor.offset)
    if sensor.scale <= 0:
        raise InputError(f"sensor file {path}: scale must be above 0")
    if dtype != "float32" and sensor.nodata not in (0, np.iinfo(dtype).max):
        raise InputError(f"sensor file {path}: nodata of {dtype} must be 0 or {np.iinfo(dtype).max}")
    return sensor


def _band(entry: Any, path: Path) -> Band:
    fields = _mapping(entry, _BAND_KEYS, f"sensor file {path}: a band")
    name = _text(_need(fields, "name", path), "name of a band", path)
    wavelength = _float(_need(fields, "wavelength", path), f"wavelength of {name}", path)
    gsd = _float(_need(fields, "gsd", path), f"gsd of {name}", path)
    std = _float(fields.get("std", 1.0), f"std of {name}", path)
    index = _float(fields.get("index", 1), f"index of {name}", path)
    if wavelength <= 0 or gsd < 1 or gsd != int(gsd) or std <= 0 or index < 1 or index != int(index):
        raise InputError(
            f"sensor file {path}: band {name} needs wavelength > 0, whole gsd >= 1, std > 0 and whole index >= 1"
        )
    assets = _names(fields.get("assets", [name]), f"assets of {name}", path)
    if not assets:
        raise InputError(f"sensor file {path}: band {name} names no assets")
    mean = _float(fields.get("mean", 0.0), f"mean of {name}", path)
    return Band(name, wavelength, int(gsd), mean, std, assets, int(index))


def _mapping(value: Any, known: tuple[str, ...], where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected keys {', '.join(known)}")
    for key in value:
        if key not in known:
            raise InputError(f"{where}: unknown key {str(key)[:40]!r}: {nearest(str(key)[:40], known)}")
    return value


def _need(fields: Mapping[str, Any], key: str, path: Path) -> Any:
    if fields.get(key) is None:
        raise InputError(f"sensor file {path}: key {key!r} is missing")
    return fields[key]


def _text(value: Any, what: str, path: Path) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise InputError(f"sensor file {path}: {what} must be text")
    return str(value)


def _float(value: Any, what: str, path: Path, *, finite: bool = True) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise InputError(f"sensor file {path}: {what} must be a number")
    try:
        number = float(value)  # YAML 1.1 reads 1e-4 as text
    except (ValueError, OverflowError):
        raise InputError(f"sensor file {path}: {what} must be a number, not {str(value)[:40]!r}") from None
    if finite and not math.isfinite(number):
        raise InputError(f"sensor file {path}: {what} must be a finite number, not {number}")
    return number


def _names(value: Any, what: str, path: Path) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise InputError(f"sensor file {path}: {what} must be a list of names")
    return tuple(_text(item, what, path) for item in value)


def _collections(value: Any, path: Path) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise InputError(f"sensor file {path}: collections must map a catalogue to collection ids")
    return {
        _text(preset, "a catalogue's name", path): _names(ids, f"collections of {preset}", path)
        for preset, ids in value.items()
    }
