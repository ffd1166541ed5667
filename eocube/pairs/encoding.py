"""Encodes pairs of pixels as production encodes windows: one network, its own radiometry, one thread a window."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eocube.errors import InputError
from eocube.pairs.pixel_pairs import PairNote, PixelSource, flipped
from eocube.products.base import Codec, Encoder
from eocube.products.lone_windows import HALO, LoneWindow, fit_sensor, load, lone_windows, numerics
from eocube.products.storage import widened
from eocube.sensors.builtin import SENSORS
from eocube.sensors.sensor import Sensor
from model.wald import bicubic, sharpened

Values = NDArray[Any]
Which = Literal["lr", "hr"]
BOTH: tuple[Which, Which] = ("lr", "hr")


@dataclass(frozen=True, slots=True)
class Made:
    """What a row of a store holds: values (channels, h, w) float32, and pixels (C, H, W) in travelling form or None."""

    lr: Values
    hr: Values
    lr_up: Values | None = None
    lr_sharp: Values | None = None
    lr_image: Values | None = None
    hr_image: Values | None = None


@dataclass(frozen=True, slots=True)
class Form:
    """How an array's rows are stored: their shape without the pair's axis, dtype, and fill value."""

    shape: tuple[int, ...]
    dtype: str
    fill: float | int


class Maker(Protocol):
    """Makes a store's rows. `make` is called from several threads."""

    scale: int

    @property
    def document(self) -> Mapping[str, Any]:
        """JSON: all that decides what the values mean, beside the spaces."""
        ...

    @property
    def numerics(self) -> Mapping[str, Any]:
        """What decides their last bits."""
        ...

    def forms(self, side: int, images: bool) -> Mapping[str, Form]:
        """The arrays of a store whose largest high-resolution side is `side` pixels."""
        ...

    def images(self) -> Mapping[str, Mapping[str, Any]]:
        """CF attributes of the pixels of each side, by the array's name."""
        ...

    def spaces(self, note: PairNote) -> Mapping[Which, tuple[str, Mapping[str, Any]]]:
        """The space id and the meaning of a pair's sides."""
        ...

    def make(self, source: int, note: PairNote, images: bool) -> Made | None:
        """One row; None where the pair lacks pixels or has values that cannot be stored."""
        ...


class PixelMaker:
    """Encodes the pairs of a source of pixels.

    Each side is encoded as a window of a cube is: with `HALO` of its own pixels around, of which values are not kept.
    These are the real neighbours where the source has them, and the pair's own pixels mirrored where not.

    Both sides are first rounded to the travelling form of their sensor (Sentinel-2: steps of 1e-4 reflectance, as
    scenes come), which is what is encoded and what is stored as pixels. L1C and L2A are encoded alike where the sensor
    has bands alone and no level (RGBN): with its wavelengths and statistics, which the weights learned of both.

    Args:
        source: the pairs.
        weights: as `load_weights` takes them.
        sensor: name of a built-in sensor whose bands the pairs have.
        hr_sensor: of the high resolution where that is not the same (`eocube.pairs.sen2naip.NAIP`).
        lr_statistics: (mean, std) a band for the low resolution in the weights' unit; None takes the weights' own.
        upsampled: encode the low resolution upsampled by bicubic too, as published.
        sharpened: encode it too as `model.wald.sharpened` makes it: bicubic put right by the source's MTF.
        precision, device: of the encoder.

    Raises:
        InputError: weights that do not know the sensor, or pairs of other bands.
    """

    def __init__(
        self,
        source: PixelSource,
        weights: str,
        *,
        sensor: str = "RGBN",
        hr_sensor: Sensor | None = None,
        lr_statistics: tuple[Sequence[float], Sequence[float]] | None = None,
        upsampled: bool = False,
        sharpened: bool = False,
        precision: str = "fp32",
        device: str = "cpu",
    ) -> None:
        if sensor not in SENSORS:
            raise InputError(f"--sensor {sensor}: there are {', '.join(SENSORS)}")
        self._source, self.scale, self._upsampled = source, source.scale, upsampled
        self._sharpened = sharpened
        self._mtf = tuple(float(v) for v in source.document.get("mtf", {}).values())
        if sharpened and len(self._mtf) != len(source.bands):
            raise InputError("--sharpened needs pairs whose low resolution was made by a known MTF (--wald)")
        self._weights = load(weights, device)
        low = fit_sensor(SENSORS[sensor].subset(source.bands), self._weights)
        if low.band_names != source.bands:
            raise InputError(f"the pairs have bands {', '.join(source.bands)}: order them as {sensor}'s")
        if lr_statistics is not None:
            low = with_statistics(low, *lr_statistics)
        self.sensors: dict[Which, Sensor] = {"lr": low, "hr": hr_sensor or low}
        self._precision, self._device = precision, device
        self._codecs: dict[tuple[Which, float, int], Codec] = {}
        self._encoders: dict[tuple[Which, int, str], Encoder] = {}
        self._lock = threading.Lock()

    @property
    def document(self) -> dict[str, Any]:
        """Encoder, bands, sensors' names and how low resolution came about."""
        meta = self._weights.meta
        return {
            "encoder": {
                "weights": self._weights.source, "name": meta.name, "sha256": meta.sha256,
                "bands": list(self._source.bands), "sensor": self.sensors["lr"].name, "precision": self._precision,
            },
            "source": dict(self._source.document), "scale": self.scale, "upsampled": self._upsampled,
            "sharpened": self._sharpened,
        }  # fmt: skip

    @property
    def numerics(self) -> Mapping[str, Any]:
        """Device, kernels, versions."""
        return numerics(self._device)

    def forms(self, side: int, images: bool) -> dict[str, Form]:
        """Values in the product's storage, pixels as they travel."""
        products = {which: self._codec(which, self._sampling(which), self._px(which, side)).product for which in BOTH}
        found: dict[str, Form] = {}
        for which, product in products.items():
            cells = self._px(which, side) // product.cell_px
            found[which] = Form((product.channels, cells, cells), product.storage.dtype, product.storage.fill)
        if self._upsampled:
            found["lr_up"] = found["hr"]
        if self._sharpened:
            found["lr_sharp"] = found["hr"]
        if images:
            for which in BOTH:
                sensor, px = self.sensors[which], self._px(which, side)
                found[f"{which}_image"] = Form((len(sensor.bands), px, px), sensor.dtype, sensor.nodata)
        return found

    def images(self) -> dict[str, dict[str, Any]]:
        """Scale and offset of the travelling form."""
        return {
            f"{which}_image": {
                "scale_factor": sensor.scale, "add_offset": sensor.offset, "units": "1", "bands": sensor.band_names,
                "long_name": f"{sensor.unit} of the {'low' if which == 'lr' else 'high'} resolution, as encoded",
            }
            for which, sensor in self.sensors.items()
        }  # fmt: skip

    def spaces(self, note: PairNote) -> dict[Which, tuple[str, Mapping[str, Any]]]:
        """Those of windows of the pair's sizes and resolutions."""
        found: dict[Which, tuple[str, Mapping[str, Any]]] = {}
        for which in BOTH:
            metres = note.resolution * (self.scale if which == "lr" else 1)
            product = self._codec(which, metres, self._px(which, note.side)).product
            found[which] = product.space_id, product.meaning
        return found

    def make(self, source: int, note: PairNote, images: bool) -> Made | None:
        """Read, round, flip, encode."""
        pair = self._source.read(source)
        if not (np.isfinite(pair.lr).all() and np.isfinite(pair.hr).all()):
            return None
        wide: dict[Which, Values] = {}
        for which, core, around in zip(BOTH, (pair.lr, pair.hr), (pair.lr_wide, pair.hr_wide), strict=True):
            wide[which] = travelling(flipped(filled(core, around), note.flip), self.sensors[which])
        made: dict[str, Values | None] = {which: self._encode(which, wide[which]) for which in BOTH}
        coarse, cut = torch.from_numpy(wide["lr"].astype(np.float32)), (self.scale - 1) * HALO
        fine = {}
        if self._upsampled:
            fine["lr_up"] = bicubic(coarse, self.scale)
        if self._sharpened:
            fine["lr_sharp"] = sharpened(coarse, self._mtf, self.scale)
        for name, image in fine.items():
            made[name] = self._encode("lr", _rounded(image.numpy()[:, cut:-cut, cut:-cut], self.sensors["lr"]))
        if any(values is None for values in made.values()):
            return None
        if images:
            made |= {f"{which}_image": core_of(wide[which], HALO) for which in BOTH}
        return Made(**made)  # type: ignore[arg-type]

    def _px(self, which: Which, side: int) -> int:
        return side // self.scale if which == "lr" else side

    def _sampling(self, which: Which) -> int:
        """The resolution at which all bands travel in one group: pairs are cut at one sampling."""
        return max(band.gsd for band in self.sensors[which].bands)

    def _codec(self, which: Which, resolution: float, px: int) -> Codec:
        key = which, resolution, px
        with self._lock:
            if key not in self._codecs:
                whole = int(resolution) if float(resolution).is_integer() else resolution
                window = LoneWindow(whole, px)
                self._codecs[key] = lone_windows(self._weights, self.sensors[which], window, self._precision)
            return self._codecs[key]

    def _encode(self, which: Which, pixels: Values) -> Values | None:
        """Values of a window's core, in the first precision whose result can be stored; None where there is none."""
        px, sampling = pixels.shape[-1] - 2 * HALO, self._sampling(which)
        codec = self._codec(which, sampling, px)
        batch = torch.from_numpy(pixels)[None]
        for precision in codec.ladder:
            made = self._encoder(which, px, precision, codec)({sampling: batch})
            if codec.product.storage.sound(made)[0]:
                return core_of(widened(made[0].cpu().numpy()), HALO // codec.product.cell_px)
        return None

    def _encoder(self, which: Which, px: int, precision: str, codec: Codec) -> Encoder:
        """One for each size of window: resolution changes an encoder's meaning and none of its numbers."""
        with self._lock:
            if (which, px, precision) not in self._encoders:
                self._encoders[which, px, precision] = codec.encoder(self._device, precision, self.numerics)
            return self._encoders[which, px, precision]


def filled(core: Values, around: Values | None) -> Values:
    """(C, n + 2 HALO, ...): a core (C, n, n) with what lies around it, mirrored where that is NaN or not known.

    Mirrored about the outermost pixel's centre, again and again where the core is narrower than the halo.
    """
    mirrored = np.pad(core, ((0, 0), (HALO, HALO), (HALO, HALO)), mode="reflect")
    return mirrored if around is None else np.where(np.isfinite(around), around, mirrored)


def core_of(x: Values, halo: int) -> Values:
    """(..., n + 2 halo, n + 2 halo) without its halo."""
    return np.ascontiguousarray(x[..., halo:-halo, halo:-halo])


def travelling(x: Values, sensor: Sensor) -> Values:
    """(C, H, W) in the sensor's physical unit -> as its pixels travel, nowhere nodata."""
    return _rounded((x - np.float32(sensor.offset)) / np.float32(sensor.scale), sensor)


def _rounded(x: Values, sensor: Sensor) -> Values:
    dtype = np.dtype(sensor.dtype)
    if dtype.kind == "f":
        return x.astype(dtype)
    least = 1 if sensor.nodata == 0 else 0
    return np.clip(np.rint(x), least, np.iinfo(dtype).max).astype(dtype)


def with_statistics(sensor: Sensor, mean: Sequence[float], std: Sequence[float]) -> Sensor:
    """The sensor with z-score statistics of one's own, a band each in its weights' unit."""
    bands = zip(sensor.bands, mean, std, strict=True)
    return replace(sensor, bands=tuple(replace(b, mean=float(m), std=float(s)) for b, m, s in bands))
