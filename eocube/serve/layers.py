"""Lists what a cube can be shown as: pictures of bands, indices, values and quality, each with its legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eocube.cube.colours import FALSE_COLOUR, SAME_BAND, TRUE_COLOUR, bands_near
from eocube.cube.quicklook import STATE_COLOURS
from eocube.errors import InputError
from eocube.sensors.sensor import Sensor, nearest
from eocube.store.document import CubeInfo
from eocube.store.receipts import State

Floats = npt.NDArray[np.float32]
Kind = Literal["rgb", "value", "classes"]
Origin = Literal["decoded", "values", "windows"]
"""What a layer is drawn from: decoded pixels, the stored values, or one number a window."""

LEAST = 0.005
"""Reflectance below which an index takes this, as much as decoding is wrong by: over water a ratio of two such numbers
would be anything, of negative ones beyond -1 and 1 too."""
INFRARED_TOLERANCE = 0.06
"""Micrometres within which a band counts as one of an index: sensors' short-wave bands lie further apart."""


@dataclass(frozen=True, slots=True)
class Legend:
    """How a value is coloured: a map of colours between two values, or a colour a class."""

    unit: str
    vmin: float
    vmax: float
    colormap: str
    classes: tuple[tuple[int, str, str], ...] = ()
    """(value, label, colour)."""

    def document(self) -> dict[str, Any]:
        """As `/api/cubes` gives it."""
        return {
            "unit": self.unit, "vmin": self.vmin, "vmax": self.vmax, "colormap": self.colormap,
            "classes": [{"value": v, "label": label, "colour": colour} for v, label, colour in self.classes],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layer:
    """One way to show a cube. `bands` are those it is made of, None where the request names them."""

    id: str
    title: str
    group: str
    kind: Kind
    origin: Origin
    bands: tuple[str, ...] | None = None
    legend: Legend | None = None
    free: int = 0
    """Bands that the request names."""
    formula: Literal["bands", "difference ratio", "radar"] = "bands"
    variable: str = ""
    """The store's array, of layers drawn from windows."""

    def document(self) -> dict[str, Any]:
        """As `/api/cubes` gives it."""
        return {
            "id": self.id, "title": self.title, "group": self.group, "kind": self.kind,
            "bands": None if self.bands is None else list(self.bands),
            "legend": None if self.legend is None else self.legend.document(),
        }  # fmt: skip

    def chosen(self, named: Sequence[str], sensor: Sensor) -> tuple[str, ...]:
        """The bands it is drawn from for a request that names some; InputError for bands that do not fit."""
        if not self.free:
            return self.bands or ()
        if len(named) != self.free:
            raise InputError(f"layer {self.id} takes bands={','.join(['BAND'] * self.free)}; {len(named)} given")
        for name in named:
            if name not in sensor.band_names:
                raise InputError(f"the cube has no band {name!r}: {nearest(name, sensor.band_names)}")
        return tuple(named)

    def picture(self, pixels: Floats) -> Floats:
        """(bands, H, W) pixels in physical units to what is coloured: (3, H, W) or (1, H, W)."""
        if self.formula == "difference ratio":
            high, low = np.maximum(pixels[0], LEAST), np.maximum(pixels[1], LEAST)
            return np.asarray((high - low) / (high + low), np.float32)[None]
        if self.formula == "radar":
            return np.stack([pixels[0], pixels[1], pixels[0] - pixels[1]])
        return pixels


@dataclass(frozen=True, slots=True)
class _Index:
    id: str
    title: str
    wavelengths: tuple[float, float]
    vmin: float
    vmax: float
    colormap: str


INDICES = (
    _Index("ndvi", "NDVI, vegetation", (0.842, 0.665), -0.2, 0.9, "rdylgn"),
    _Index("ndwi", "NDWI, open water", (0.560, 0.842), -0.8, 0.8, "rdbu"),
    _Index("ndmi", "NDMI, moisture of plants", (0.842, 1.610), -0.5, 0.6, "brbg"),
    _Index("nbr", "NBR, burnt ground", (0.842, 2.190), -0.5, 0.9, "rdylgn"),
    _Index("ndbi", "NDBI, built-up ground", (1.610, 0.842), -0.6, 0.4, "puor_r"),
)
"""Normalised differences (first - second) / (first + second), by their bands' wavelengths in micrometres."""

STATES = Legend(
    "", 0, max(State), "", tuple((int(s), s.label.replace("_", " "), STATE_COLOURS[s]) for s in State)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Layers:
    """The layers of one cube, in the order of the list; the first is what the page opens with."""

    known: Mapping[str, Layer] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Layer:
        if name not in self.known:
            raise InputError(f"the cube has no layer {name!r}: {nearest(name, tuple(self.known))}")
        return self.known[name]

    @classmethod
    def of(cls, info: CubeInfo, variables: Sequence[str]) -> Layers:
        """What a cube with these arrays can be shown as."""
        sensor, found = info.sensor, list[Layer]()
        if info.product.decodes:
            found += _decoded(sensor)
        many = "components" if info.product.channels > 2 else "values"
        title = f"{info.product.array.capitalize()}s, principal {many}"
        found.append(Layer("pca", title, "latents", "rgb", "values"))
        if info.product.decodes:
            found.append(Layer("difference", "Difference of two dates", "index", "value", "decoded"))
        found.append(
            Layer("status", "How windows ended", "quality", "classes", "windows", None, STATES, 0, "bands", "status")
        )
        for name, variable, title, legend in (
            ("psnr", "psnr", "PSNR of the decoded window", Legend("dB", 25, 50, "viridis")),
            ("sam", "sam", "Spectral angle of the decoded window", Legend("rad", 0, 0.15, "magma_r")),
            ("cloud", "cloud_percent", "Cloud over the window", Legend("percent", 0, 100, "blues")),
        ):
            if variable in variables:
                made = Layer(name, title, "quality", "value", "windows", legend=legend, variable=variable)
                found.append(made)
        return cls({layer.id: layer for layer in found})


def _decoded(sensor: Sensor) -> list[Layer]:
    names, found = sensor.band_names, list[Layer]()
    radar = sensor.unit == "dB"
    if not radar:
        if (true := bands_near(sensor, TRUE_COLOUR, SAME_BAND)) is not None:
            found.append(Layer("true-colour", "True colour", "picture", "rgb", "decoded", true))
        if (infrared := bands_near(sensor, FALSE_COLOUR, SAME_BAND)) is not None:
            found.append(Layer("infrared", "Infrared", "picture", "rgb", "decoded", infrared))
    elif len(names) >= 2:
        title = f"{names[0]}, {names[1]} and their ratio"
        found.append(Layer("vv-vh", title, "picture", "rgb", "decoded", names[:2], formula="radar"))
    if len(names) >= 3:
        found.append(Layer("rgb", "Any three bands", "picture", "rgb", "decoded", free=3))
    unit = "" if sensor.unit == "reflectance" else sensor.unit
    found.append(Layer("band", "One band", "picture", "value", "decoded", legend=Legend(unit, 0, 1, "gray"), free=1))
    if sensor.unit == "reflectance":
        for index in INDICES:
            if (bands := bands_near(sensor, index.wavelengths, INFRARED_TOLERANCE)) is not None:
                legend = Legend("", index.vmin, index.vmax, index.colormap)
                made = Layer(
                    index.id, index.title, "index", "value", "decoded", bands, legend, formula="difference ratio"
                )  # fmt: skip
                found.append(made)
    return found
