"""Reads images for training from local rasters: a YAML list of sources -> arrays in sensors' units, NaN if invalid."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from numpy.typing import NDArray

from model.sensors import COLOURS, SENSORS, Floats, TrainedSensor, true_colour


@dataclass(frozen=True, slots=True)
class Image:
    """`data` (C, H, W) in the sensor's unit, `bands` names its channels; `gsd` is the pixel size in metres.

    `place` groups images of one ground: a place is either trained on or held out, never both. `test` marks those held
    out for the figures of a release alone. `weight` multiplies the chance of being drawn.
    """

    name: str
    place: str
    sensor: str
    bands: tuple[str, ...]
    data: Floats
    gsd: float
    held_out: bool = False
    weight: float = 1.0
    test: bool = False

    def select(self, bands: Sequence[str]) -> Floats:
        """Channels `bands` in that order."""
        return self.data[[self.bands.index(b) for b in bands]]

    def seen_by(self, sensor: TrainedSensor) -> Floats | None:
        """(C, H, W) z-scores of the sensor's bands, an 8-bit sensor's from the picture of the reflectances; None where
        the image lacks one of them."""
        picture = sensor.unit == "dn8"
        wanted = COLOURS if picture else sensor.bands
        if not set(wanted) <= set(self.bands):
            return None
        data = self.select(wanted)
        return sensor.zscore(true_colour(data) if picture else data)


@dataclass(frozen=True, slots=True)
class Source:
    """One entry of the listing. `parts` maps a file (or a dataset in it) to band names; see `READERS` for the kinds.

    Values become raw * scale + offset, or with `decibel` = 10 (power) or 20 (amplitude) decibel * log10(raw) + offset.
    A place held out is for validation, or with `test` for the figures of a release alone.
    `crop` is (row, column, rows, columns); `every` takes each n-th time step. Coarser bands are brought to the finest
    grid by `upsampling`: bilinear as the reader does, or nearest as many archives of ready-made patches have done.
    """

    name: str
    place: str
    sensor: str
    kind: str
    path: str
    parts: Mapping[str, list[str]]
    gsd: float
    scale: float = 1.0
    offset: float = 0.0
    nodata: float | None = None
    held_out: bool = False
    weight: float = 1.0
    decibel: float | None = None
    crop: tuple[int, int, int, int] | None = None
    every: int = 1
    upsampling: str = "bilinear"
    options: Mapping[str, Any] = field(default_factory=dict)
    test: bool = False


def read_listing(path: Path, sensors: Mapping[str, TrainedSensor] = SENSORS) -> list[Source]:
    """The sources of a YAML listing; ValueError names an entry with unknown keys, sensor or kind, or an empty list."""
    document = yaml.safe_load(path.read_text())
    entries = document.get("sources") if isinstance(document, dict) else None
    if not entries:
        raise ValueError(f"{path.name} lists no data: it needs a list `sources` with one entry at least")
    sources = []
    for entry in entries:
        try:
            source = Source(**entry)
        except TypeError as error:
            raise ValueError(f"{path.name}: source {entry.get('name', entry)!r}: {error}") from None
        if source.sensor not in sensors or source.kind not in READERS:
            raise ValueError(
                f"{path.name}: source {source.name!r}: sensor {source.sensor!r} or kind {source.kind!r} is unknown; "
                f"sensors {sorted(sensors)}, kinds {sorted(READERS)}"
            )
        sources.append(source)
    for place in sorted({s.place for s in sources}):
        if len({(s.held_out, s.test) for s in sources if s.place == place}) > 1:
            raise ValueError(
                f"{path.name}: place {place!r} is trained on, held out or test: one of them for all its sources"
            )
    if wrong := [s.name for s in sources if s.test and not s.held_out]:
        raise ValueError(f"{path.name}: source {wrong[0]!r} is test and not held out: give it held_out: true too")
    return sources


def load_images(listing: Path, root: Path, sensors: Mapping[str, TrainedSensor] = SENSORS) -> list[Image]:
    """Every image of the listing found under `root`; FileNotFoundError names what is missing."""
    return [image for source in read_listing(listing, sensors) for image in load_source(source, root, sensors)]


def favoured(images: Sequence[Image], favour: Mapping[str, float]) -> list[Image]:
    """The images with the weights of each place in `favour` multiplied. ValueError names a place that has no image."""
    if unknown := sorted(set(favour) - {i.place for i in images}):
        raise ValueError(f"favour names {', '.join(unknown)}: the listing has no such place")
    return [replace(i, weight=i.weight * favour.get(i.place, 1.0)) for i in images]


def load_source(source: Source, root: Path, sensors: Mapping[str, TrainedSensor] = SENSORS) -> Iterator[Image]:
    """Read one source: bands to the finest grid (bilinear, half-pixel exact), scaled to the sensor's unit.

    Raises:
        FileNotFoundError: a file that is not there, by the source's name.
        ValueError: bands of which the sensor has none.
    """
    try:
        stacks = list(READERS[source.kind](source, root / source.path))
    except FileNotFoundError as error:
        gone = f"there is no {error.filename}" if error.filename else str(error)
        raise FileNotFoundError(gone if gone.startswith(source.name) else f"{source.name}: {gone}") from None
    for suffix, bands, layers in stacks:
        height, width = max(a.shape[-2] for a in layers), max(a.shape[-1] for a in layers)
        data = np.concatenate([upsample(to_unit(a, source), height, width, source.upsampling) for a in layers])
        if source.crop is not None:
            row, column, rows, columns = source.crop
            data = data[:, row : row + rows, column : column + columns]
        order = [b for b in sensors[source.sensor].bands if b in bands]
        if not order:
            raise ValueError(f"{source.name}: none of its bands {', '.join(bands)} is one of {source.sensor}'s")
        data = np.ascontiguousarray(data[[bands.index(b) for b in order]])
        name = source.name + suffix
        yield Image(
            name, source.place, source.sensor, tuple(order), data, source.gsd, source.held_out, source.weight,
            source.test,
        )  # fmt: skip


def to_unit(raw: NDArray[Any], source: Source) -> Floats:
    """Raw values to the sensor's unit, NaN where they are nodata."""
    values = raw.astype(np.float32)
    invalid = ~np.isfinite(values) if source.nodata is None else (raw == source.nodata) | ~np.isfinite(values)
    if source.decibel is not None:
        invalid |= values <= 0
        values = np.float32(source.decibel) * np.log10(np.where(invalid, 1, values))
    values = values * np.float32(source.scale) + np.float32(source.offset)
    return np.where(invalid, np.float32(np.nan), values).astype(np.float32)


def upsample(x: Floats, height: int, width: int, how: str = "bilinear") -> Floats:
    """(C, h, w) -> (C, height, width), nearest or bilinear about pixel centres (NaN spreads to all it touches)."""
    if x.shape[-2:] == (height, width):
        return x
    whole = torch.from_numpy(x)[None]
    if how == "nearest":
        return F.interpolate(whole, size=(height, width), mode="nearest-exact")[0].numpy()
    return F.interpolate(whole, size=(height, width), mode="bilinear", align_corners=False)[0].numpy()


def find_file(source: Source, folder: Path, pattern: str) -> Path:
    """The one file below `folder` that the pattern names; FileNotFoundError where there is none, or several."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{source.name}: {pattern} under {folder} matches {len(found)} files, need one")
    return found[0]


Stack = tuple[str, list[str], list[NDArray[Any]]]


def _rasters(source: Source, path: Path) -> Iterator[Stack]:
    """`parts`: file pattern below `path` -> its bands. One image."""
    import rasterio

    bands: list[str] = []
    layers: list[NDArray[Any]] = []
    for pattern, names in source.parts.items():
        with rasterio.open(find_file(source, path, pattern)) as dataset:
            layers.append(dataset.read(list(range(1, len(names) + 1))))
        bands += names
    yield "", bands, layers


def _matlab(source: Source, path: Path) -> Iterator[Stack]:
    """`parts`: HDF5 dataset -> its bands; MATLAB's column order is undone."""
    import h5py

    with h5py.File(path) as file:
        layers = [np.asarray(file[key][...]).transpose(0, 2, 1) for key in source.parts]
    yield "", [b for names in source.parts.values() for b in names], layers


def _netcdf(source: Source, path: Path) -> Iterator[Stack]:
    """`parts`: file -> bands, a variable each (`options.variable` formats its name); one image a time step."""
    import h5py

    series: dict[str, NDArray[Any]] = {}
    template = source.options.get("variable", "{}")
    for name, bands in source.parts.items():
        with h5py.File(path / name) as file:
            for band in bands:
                series[band] = np.asarray(file[template.format(band)][...])
    bands = list(series)
    for t in range(0, len(series[bands[0]]), source.every):
        yield f"@{t}", bands, [series[b][t][None] for b in bands]


def _numpy(source: Source, path: Path) -> Iterator[Stack]:
    """An .npy array (time, y, x, channel); `parts` has one entry, `all`, naming the channels."""
    array = np.load(path)
    for t in range(0, len(array), source.every):
        yield f"@{t}", list(source.parts["all"]), [array[t].transpose(2, 0, 1)]


def _zarr(source: Source, path: Path) -> Iterator[Stack]:
    """`parts`: array path in the Zarr group -> its one band."""
    import zarr

    layers = [np.asarray(zarr.open_array(str(path / key), mode="r"))[None] for key in source.parts]
    yield "", [b for names in source.parts.values() for b in names], layers


READERS: Mapping[str, Callable[[Source, Path], Iterator[Stack]]] = {
    "rasters": _rasters,
    "matlab": _matlab,
    "netcdf": _netcdf,
    "numpy": _numpy,
    "zarr": _zarr,
}


def complete(
    images: Sequence[Image], sensor: str = "S2L2A", *, min_bands: int = 7, max_pixels: int = 40_000
) -> list[Image]:
    """Pseudo-complete copies of images that lack some bands: the others by ridge regression on complete images.

    A predicted band is area-averaged to its native sampling first, so that it is no sharper than the real one.
    Only a supplement of real complete images: spectral shapes in it are those of the regression. None where no image
    is complete.
    """
    spec = SENSORS[sensor]
    full = [i for i in images if not i.held_out and set(spec.bands) <= set(i.bands)]
    if not full:
        return []
    samples = []
    for image in full:
        z = spec.zscore(image.select(spec.bands)).reshape(len(spec.bands), -1)
        z = z[:, np.isfinite(z).all(0)]
        samples.append(z[:, :: max(1, z.shape[1] // max_pixels)])
    pool = np.concatenate(samples, axis=1).astype(np.float64)
    out = []
    for image in images:
        have = [b for b in spec.bands if b in image.bands]
        if image.held_out or not min_bands <= len(have) < len(spec.bands):
            continue
        lacking = [b for b in spec.bands if b not in have]
        a = np.concatenate([pool[spec.index(have)], np.ones((1, pool.shape[1]))])
        coefficients = np.linalg.solve(a @ a.T + 1e-3 * pool.shape[1] * np.eye(len(a)), a @ pool[spec.index(lacking)].T)
        z = spec.subset(have).zscore(image.select(have))
        filled = np.einsum("kl,khw->lhw", coefficients[:-1], z) + coefficients[-1][:, None, None]
        data = np.empty((len(spec.bands), *z.shape[1:]), np.float32)
        data[spec.index(have)] = z
        for band, values in zip(lacking, filled.astype(np.float32), strict=True):
            native = max(1, round(spec.gsd[spec.bands.index(band)] / image.gsd))
            data[spec.bands.index(band)] = smooth(values[None], native)[0]
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (spec.mean, spec.std))
        out.append(replace(image, name=image.name + "+", sensor=sensor, bands=spec.bands, data=data * std + mean))
    return out


def completed(images: Sequence[Image]) -> list[Image]:
    """What training adds to its images: copies of those that lack bands, complete as S2L2A and, of L1C, as S2L1C."""
    return [*complete(images), *complete([i for i in images if i.sensor == "S2L1C"], "S2L1C")]


def smooth(x: Floats, factor: int) -> Floats:
    """(C, H, W) area-averaged by `factor` and bilinearly back to its own size."""
    if factor <= 1:
        return x
    height, width = x.shape[-2:]
    y = F.interpolate(torch.from_numpy(x)[None], size=(-(-height // factor), -(-width // factor)), mode="area")
    return upsample(y[0].numpy(), height, width)


def describe(images: Sequence[Image]) -> str:
    """JSON of what was read: names, places, bands and sizes."""
    rows = [
        {"name": i.name, "place": i.place, "sensor": i.sensor, "bands": len(i.bands), "size": list(i.data.shape[1:]),
         "held_out": i.held_out}
        for i in images
    ]  # fmt: skip
    return json.dumps(rows)
