"""Defines sensors and bands: names, wavelengths, sampling, statistics, asset keys, the form pixels travel in."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from eocube.errors import InputError
from model.sensors import own_names


@dataclass(frozen=True, slots=True)
class Band:
    """One band of a sensor.

    `wavelength` is in micrometres (Sentinel-1: the published 5.4 and 5.6), `gsd` the native sampling in metres; `mean`
    and `std` are the z-score statistics in the weights' unit (physical * `Sensor.unit_factor`). `assets` are the STAC
    asset keys accepted for it, preferred first; `index` is the 1-based band within that asset.
    """

    name: str
    wavelength: float
    gsd: int
    mean: float
    std: float
    assets: tuple[str, ...]
    index: int = 1


class SensorMetaLike(Protocol):
    """What the weights say of one sensor they were trained for (`model.weights.SensorMeta`)."""

    @property
    def bands(self) -> Sequence[str]: ...
    @property
    def wavelengths(self) -> Sequence[float]: ...
    @property
    def mean(self) -> Sequence[float]: ...
    @property
    def std(self) -> Sequence[float]: ...
    @property
    def unit(self) -> str: ...
    @property
    def subsets(self) -> bool: ...


class WeightsMetaLike(Protocol):
    """What the weights say of themselves (`model.weights.WeightsMeta`): the sensors they were trained for."""

    @property
    def sensors(self) -> Mapping[str, SensorMetaLike]: ...


# The unit of the physical numbers -> the factor to the unit that the weights' statistics are in, and that unit's name.
WEIGHTS_UNITS: Mapping[str, tuple[float, str]] = {
    "reflectance": (1e4, "reflectance*1e4"),
    "dB": (1.0, "dB"),
    "dn8": (1.0, "dn8"),
}

SENTINEL2 = ("S2L2A", "S2L1C", "RGBN")
"""The built-in sensors of Sentinel-2's reflectance."""
SENTINEL2_OFFSETS = (0.0, -0.1)
"""reflectance = DN * 1e-4 + one of these: before processing baseline 04.00, and from it on."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """A sensor as eocube encodes it: an ordered list of bands and the form their pixels travel in.

    physical = travelling * `scale` + `offset`, except where travelling is `nodata`. Sentinel-2 travels as uint16 in the
    convention of processing baseline 04.00 (DN = reflectance * 1e4 + 1000, 0 is nodata), Sentinel-1 as float32 dB (NaN
    is nodata), 8-bit pictures as they are (0 is nodata). The network sees (physical * `unit_factor` - mean) / std.
    `collections` maps a catalogue's preset name to collection ids, preferred first. `trained_as` names the sensor of
    the weights that a user's sensor follows; None is the sensor's own name.
    """

    name: str
    bands: tuple[Band, ...]
    unit: str
    dtype: str
    scale: float
    offset: float
    nodata: float
    unit_factor: float
    collections: Mapping[str, tuple[str, ...]] = field(hash=False)
    mask_assets: tuple[str, ...] = ()
    trained_as: str | None = None
    source_offset: float | None = None
    """The offset of sources whose items do not settle theirs, as a sensor's file or `--offset` says; None: nobody did.

    `scale` and `offset` are those of the travelling form, and say nothing of a source.
    """

    @property
    def means_sentinel2(self) -> bool:
        """Whether its numbers are Sentinel-2's unless an item says otherwise: a built-in sensor of that satellite, or
        one of a file that is trained as one and states no offset of its own."""
        stated = self.trained_as in SENTINEL2 and self.source_offset is None
        return self.unit == "reflectance" and (self.name in SENTINEL2 or stated)

    def with_offset(self, offset: float) -> Sensor:
        """The sensor with an offset for items that do not settle theirs.

        `InputError` where its unit knows none, or Sentinel-2 has no such one.
        """
        if self.unit != "reflectance":
            raise InputError(f"--offset is of reflectance; {self.name} is in {self.unit}")
        if self.means_sentinel2 and offset not in SENTINEL2_OFFSETS:
            raise InputError(f"--offset {offset:g}: Sentinel-2's numbers have an offset of 0 or -0.1")
        return replace(self, source_offset=offset)

    @property
    def band_names(self) -> tuple[str, ...]:
        """The bands' names in order."""
        return tuple(band.name for band in self.bands)

    def band(self, name: str) -> Band:
        """The band of that name; `InputError` with the nearest names where there is none."""
        for band in self.bands:
            if band.name == name:
                return band
        raise InputError(f"{self.name} has no band {name!r}: {nearest(name, self.band_names)}")

    def subset(self, names: Sequence[str]) -> Sensor:
        """The sensor with only these bands, in its own order; `InputError` for unknown, doubled or no names."""
        if not names:
            raise InputError(f"no bands named: {self.name} has {', '.join(self.band_names)}")
        for name in names:
            self.band(name)
        if len(set(names)) != len(names):
            doubled = sorted({name for name in names if list(names).count(name) > 1})
            raise InputError(f"band {', '.join(doubled)} is named more than once")
        return replace(self, bands=tuple(band for band in self.bands if band.name in names))

    def with_weights(self, meta: WeightsMetaLike) -> Sensor:
        """The sensor with the wavelengths and statistics its weights were trained with.

        The weights' own metadata decide, never a default in code (the published EO-VAE was trained with three
        wavelengths of S2L2A in another order). Bands keep this sensor's names where the weights have others for them
        (`model.sensors.ALIASES`). `InputError` where the weights do not know the sensor, a band or its unit, or were
        not trained on subsets of its bands.
        """
        called = f"weights {str(getattr(meta, 'name', None) or 'given')!r}"
        trained = self.trained_as or self.name
        entry = meta.sensors.get(trained)
        if entry is None:
            raise InputError(f"{called} were not trained for {trained}; they know {', '.join(meta.sensors)}")
        ours = WEIGHTS_UNITS[self.unit][1]
        if entry.unit != ours:
            raise InputError(f"{called} expect {trained} in {entry.unit}, but {self.name} gives {ours}")
        called_so = {name: number for number, name in enumerate(entry.bands)}
        # Weights may call a picture's layers R, G, B: own names hold beside theirs, and never against them.
        place = {**dict(zip(own_names(entry.bands), range(len(entry.bands)), strict=True)), **called_so}
        strangers = [band.name for band in self.bands if band.name not in place]
        if strangers:
            raise InputError(
                f"{called} were not trained for {', '.join(strangers)} of {trained}; they know {', '.join(entry.bands)}"
            )
        if len(self.bands) < len(entry.bands) and not entry.subsets:
            taken = {place[band.name] for band in self.bands}
            missing = [name for number, name in enumerate(entry.bands) if number not in taken]
            raise InputError(f"{called} need all bands of {trained}; {', '.join(missing)} are missing")
        bands = tuple(
            replace(
                band,
                wavelength=float(entry.wavelengths[place[band.name]]),
                mean=float(entry.mean[place[band.name]]),
                std=float(entry.std[place[band.name]]),
            )
            for band in self.bands
        )
        return replace(self, bands=bands)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, read back by `from_dict`; a NaN nodata is null."""
        return {
            "name": self.name,
            "bands": [{**asdict(band), "assets": list(band.assets)} for band in self.bands],
            "unit": self.unit,
            "dtype": self.dtype,
            "scale": self.scale,
            "offset": self.offset,
            "nodata": None if math.isnan(self.nodata) else self.nodata,
            "unit_factor": self.unit_factor,
            "collections": {preset: list(ids) for preset, ids in self.collections.items()},
            "mask_assets": list(self.mask_assets),
            "trained_as": self.trained_as,
            **({} if self.source_offset is None else {"source_offset": self.source_offset}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Sensor:
        """The sensor that `to_dict` wrote."""
        return cls(
            **{
                **data,
                "bands": tuple(Band(**{**band, "assets": tuple(band["assets"])}) for band in data["bands"]),
                "nodata": math.nan if data["nodata"] is None else float(data["nodata"]),
                "collections": {preset: tuple(ids) for preset, ids in data["collections"].items()},
                "mask_assets": tuple(data["mask_assets"]),
            }
        )

    def sampling(self, band: Band | str, resolution: int) -> int:
        """Metres at which a band is read for an encoding at `resolution` metres.

        The native sampling where that is a whole multiple of the resolution (20 and 60 m bands at 10 m), the resolution
        itself otherwise.
        """
        gsd = (self.band(band) if isinstance(band, str) else band).gsd
        coarser = max(resolution, gsd)
        return coarser if coarser % resolution == 0 else resolution

    def groups(self, resolution: int) -> dict[int, tuple[int, ...]]:
        """Sampling in metres -> the indices of the bands read at it, in sensor order; finest sampling first."""
        found: dict[int, list[int]] = {}
        for number, band in enumerate(self.bands):
            found.setdefault(self.sampling(band, resolution), []).append(number)
        return {sampling: tuple(found[sampling]) for sampling in sorted(found)}


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message: the known names nearest to a mistyped one, or all of them."""
    folded = {item.casefold(): item for item in known}
    close = [folded[item] for item in difflib.get_close_matches(name.casefold(), list(folded), n=3, cutoff=0.5)]
    return f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(known)}"
