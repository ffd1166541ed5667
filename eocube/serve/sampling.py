"""Draws one sample a cube: of it come the stretch of each layer, the one basis of values, and the coarse preview."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eocube.cube.colours import SAME_BAND, TRUE_COLOUR, band_near, brightest_ground
from eocube.cube.components import Basis, basis_of
from eocube.sensors.sensor import Sensor
from eocube.serve.cube import ServedCube
from eocube.serve.decoding import Decoding
from eocube.serve.layers import Layer
from eocube.store.receipts import State

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

WINDOWS = 12
"""Windows that are decoded for the sample: half a second of two cores by the small weights."""
THIN = 3
"""Every which pixel down and across counts."""
PERCENT = 2.0
"""Of the sample below the lowest shade and above the highest."""
CLOUDY = 20
"""Percent of cloud from which on a window is drawn only where there are no clearer ones."""
FIXED = {"reflectance": (0.0, 0.35), "dB": (-25.0, 0.0), "dn8": (0.0, 255.0)}
"""The fixed stretch by the sensor's unit."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Linear between two values a layer, then a gamma."""

    vmin: tuple[float, ...]
    vmax: tuple[float, ...]
    gamma: float = 1.0

    def __call__(self, layers: Floats) -> Floats:
        """(layers, H, W) to 0..1, NaN where they are."""
        low, high = (np.array(v, np.float32)[:, None, None] for v in (self.vmin, self.vmax))
        scaled = np.clip((layers - low) / np.maximum(high - low, 1e-9), 0.0, 1.0)
        return scaled if self.gamma == 1 else np.asarray(scaled ** np.float32(1 / self.gamma), np.float32)


@dataclass(frozen=True, slots=True)
class Preview:
    """What a cell's pixels are in the mean, as a linear function of its values, by least squares over the sample."""

    matrix: Floats
    """(bands, C)."""
    offset: Floats
    error: Floats
    """(bands,) root mean square over cells that it was not fitted to, in the sensor's unit."""

    def __call__(self, values: Floats) -> Floats:
        """(C, h, w) values to (bands, h, w)."""
        channels, height, width = values.shape
        flat = self.matrix @ values.reshape(channels, -1) + self.offset[:, None]
        return np.asarray(flat, np.float32).reshape(-1, height, width)


class Sample:
    """What a cube holds, by a few windows and shards drawn over its ground and times, the same ones every time."""

    def __init__(self, cube: ServedCube, decoding: Decoding | None) -> None:
        self._decoding, self.cube = decoding, cube
        self._lock = threading.Lock()
        self._seen: tuple[Floats, Preview] | None = None
        self._basis: Basis | None = None

    def stretch(self, layer: Layer, bands: Sequence[str]) -> Stretch:
        """The stretch by percentile of a layer: the same for every tile and date of the cube.

        True colour has one for its three bands, which keeps grey ground grey, and its top is held at
        `brightest_ground`, so that a few clouds do not leave the ground in the dark (as in `eocube.cube.colours`). For
        the others what is brighter than that in visible light does not count.
        """
        names = self.cube.info.sensor.band_names
        joint = layer.id == "true-colour"
        pixels = self.pixels if joint else _clear(self.pixels, self.cube.info.sensor)
        pixels = pixels[[names.index(band) for band in bands]]
        layers = layer.picture(pixels[:, :, None])[:, :, 0]
        layers = layers[:, np.asarray(np.isfinite(layers).all(axis=0))]
        count = len(layers)
        if not layers.size:
            return fixed(self.cube.info.sensor.unit, count)
        low, high = np.percentile(layers, [PERCENT, 100 - PERCENT], axis=None if joint else 1)
        if joint:
            high = min(high, brightest_ground(layers, low))
        low, high = np.broadcast_to(low, count), np.broadcast_to(high, count)
        high = np.maximum(high, low + 1e-6)
        return Stretch(tuple(map(float, low)), tuple(map(float, high)), 1.25 if joint else 1.0)

    @property
    def pixels(self) -> Floats:
        """(bands, N) decoded pixels that have a value."""
        return self._looked()[0]

    @property
    def preview(self) -> Preview:
        """The linear map from values to mean pixels of a cell; a fifth of the cells says how wrong it is."""
        return self._looked()[1]

    @property
    def basis(self) -> Basis:
        """The three directions in which the cube's values differ most, over all its times: one for every tile and date.

        The same as in pictures and reports of the cube (`eocube.cube.components`).
        """
        with self._lock:
            if self._basis is None:
                self._basis = basis_of(self.cube.ds)
            return self._basis

    def _looked(self) -> tuple[Floats, Preview]:
        """Decode the windows drawn, once: their pixels thinned, and the preview fitted to them."""
        with self._lock:
            if self._seen is None:
                self._seen = self._look()
            return self._seen

    def _look(self) -> tuple[Floats, Preview]:
        core, stride = self.cube.frame.core, self.cube.frame.stride
        names = self.cube.info.sensor.band_names
        thinned = [np.empty((len(names), 0), np.float32)]
        cells = [np.empty((self.cube.info.product.channels, 0), np.float32)]
        means = [np.empty((len(names), 0), np.float32)]
        for values, pixels in self._decoding.alone(self._drawn(WINDOWS)) if self._decoding is not None else ():
            values = real(values)
            thinned.append(pixels[:, ::THIN, ::THIN].reshape(len(names), -1))
            mean = pixels.reshape(len(names), core, stride, core, stride).mean(axis=(2, 4))
            whole = np.isfinite(mean).all(axis=0) & np.isfinite(values).all(axis=0)
            cells.append(values[:, whole])
            means.append(mean[:, whole])
        joined = np.concatenate(thinned, axis=1)
        preview = _preview_of(*(np.concatenate(parts, axis=1).astype(np.float64) for parts in (cells, means)))
        return joined[:, np.asarray(np.isfinite(joined).all(axis=0))], preview

    def _drawn(self, count: int) -> list[tuple[int, int, int]]:
        """Windows that are ok, the clear ones first, spread over times and ground."""
        status = self.cube.status
        found: list[tuple[int, int, int]] = []
        times = np.argsort(self.cube.times, kind="stable")
        picked = times[np.unique(np.linspace(0, len(times) - 1, min(count, len(times))).round().astype(int))]
        each = -(-count // max(1, len(picked)))
        for time in picked.tolist():
            ok = status[time] == State.OK
            if "cloud_percent" in self.cube.ds:
                cloud = self.cube.windows("cloud_percent", time)
                clear = ok & ~(cloud >= CLOUDY)
                ok = clear if clear.any() else ok
            places = np.argwhere(ok)
            chosen = np.unique(np.linspace(0, len(places) - 1, min(each, len(places))).round().astype(int))
            found += [(time, int(places[k, 0]), int(places[k, 1])) for k in chosen]
        return found[:count]


def _preview_of(x: Doubles, y: Doubles) -> Preview:
    """The preview of (C, N) values and (bands, N) means; NaN throughout where there are too few."""
    if x.shape[1] < 10:
        blank = np.full(len(y), np.nan, np.float32)
        return Preview(np.zeros((len(y), len(x)), np.float32), blank, blank)
    test = np.arange(x.shape[1]) % 5 == 4
    wrong = _predict(_fit(x[:, ~test], y[:, ~test]), x[:, test]) - y[:, test]
    weights = _fit(x, y).astype(np.float32)
    return Preview(weights[:, :-1], weights[:, -1], np.sqrt(np.mean(wrong**2, axis=1)).astype(np.float32))


def _clear(pixels: Floats, sensor: Sensor) -> Floats:
    """(bands, N) of those pixels that are not much brighter in visible light than most, as clouds are; all of a sensor
    that does not see it."""
    if sensor.unit != "reflectance":
        return pixels
    seen = [band_near(sensor, wavelength, SAME_BAND) for wavelength in TRUE_COLOUR]
    names = [name for name in seen if name is not None]
    if not names or not pixels.size:
        return pixels
    light = pixels[[sensor.band_names.index(name) for name in names]].mean(axis=0)
    return pixels[:, light <= brightest_ground(light, float(np.percentile(light, PERCENT)))]


def real(values: npt.NDArray[np.float32] | npt.NDArray[np.int32]) -> Floats:
    """Values as float32 with NaN where there are none, codes too."""
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False)
    return np.where(values < 0, np.nan, values).astype(np.float32)


def fixed(unit: str, layers: int) -> Stretch:
    """The fixed stretch of so many layers in a sensor's unit."""
    low, high = FIXED.get(unit, (0.0, 1.0))
    return Stretch((low,) * layers, (high,) * layers)


def _fit(x: Doubles, y: Doubles) -> Doubles:
    """(bands, C + 1) weights, the last an offset, of ridge regression with a trace of damping."""
    ones = np.concatenate([x, np.ones((1, x.shape[1]))])
    gram = ones @ ones.T
    gram[np.diag_indices_from(gram)] += 1e-6 * np.trace(gram) / len(gram)
    return np.asarray(np.linalg.solve(gram, ones @ y.T).T)


def _predict(weights: Doubles, x: Doubles) -> Doubles:
    return np.asarray(weights[:, :-1] @ x + weights[:, -1:])
