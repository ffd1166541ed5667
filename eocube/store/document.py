"""What a store says of itself in its `eocube` attribute, read back into types."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from eocube.errors import StoreError
from eocube.products.identity import refuse_edited
from eocube.sensors.sensor import Band, Sensor
from eocube.store.moments import Moments

KEY = "eocube"


@dataclass(frozen=True, slots=True)
class Quantisation:
    """How int8 latents are read: latent = code * scale + offset, per channel; code -128 is nodata."""

    scale: tuple[float, ...]
    offset: tuple[float, ...]


NODATA_CODE = -128
"""The int8 code of a latent that is not there."""


@dataclass(frozen=True, slots=True)
class CubeInfo:
    """The parts of the `eocube` attribute that reading needs. Lengths are metres, `core` and `halo` latent pixels."""

    space_id: str
    sensor: Sensor
    resolution: int
    stride: int
    core: int
    halo: int
    channels: int | None
    weights: str
    """What `model.weights.load_weights` takes."""
    weights_sha256: str
    quantisation: Quantisation | None
    extent: tuple[int, int, int, int] | None
    """The requested cores' box, half-open (row0, col0, row1, col1), in latents of the whole store's arrays."""
    origin: tuple[float, float] | None
    """Easting and northing in metres of the upper left corner of the whole store's arrays."""
    moments: Moments | None

    @property
    def cell(self) -> int:
        """Metres a side of a latent pixel."""
        return self.resolution * self.stride


def read_info(ds: xr.Dataset, where: str = "the dataset") -> CubeInfo:
    """The dataset's `eocube` attribute; StoreError when it has none, or an edited one, or one that reading cannot use.

    `where` names the dataset in errors.
    """
    document = ds.attrs.get(KEY)
    if isinstance(document, str):
        document = json.loads(document)
    if not isinstance(document, Mapping):
        raise StoreError(f"{where} has no `eocube` attribute: it is no latent cube, or its attributes were dropped")
    if "space" in document:
        refuse_edited(document, where)
    try:
        return _info(document)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{where}: its `eocube` attribute cannot be read: {type(error).__name__} {error}") from error


def _info(document: Mapping[Hashable, Any]) -> CubeInfo:
    space = document["space"]
    quantisation, extent, moments = (document.get(name) for name in ("quantisation", "extent", "moments"))
    transform = document.get("grid", {}).get("transform")
    return CubeInfo(
        space_id=str(document["space_id"]),
        sensor=_sensor(space["sensor"]),
        resolution=int(space["resolution"]),
        stride=int(space["stride"]),
        core=int(space["core"]),
        halo=int(space["halo"]),
        channels=None if space.get("channels") is None else int(space["channels"]),
        weights=str(document.get("weights") or space["weights"]["source"]),
        weights_sha256=str(space["weights"]["sha256"]),
        quantisation=None
        if quantisation is None
        else Quantisation(tuple(map(float, quantisation["scale"])), tuple(map(float, quantisation["offset"]))),
        extent=None if extent is None else (int(extent[0]), int(extent[1]), int(extent[2]), int(extent[3])),
        origin=None if transform is None else (float(transform[2]), float(transform[5])),
        moments=None if not moments else Moments.from_dict(moments),
    )


def _sensor(document: Mapping[str, Any]) -> Sensor:
    """The sensor as far as latents know it: without the catalogues' side, which decoding does not need."""
    nodata = document["nodata"]
    return Sensor(
        name=str(document["name"]),
        bands=tuple(
            Band(str(b["name"]), float(b["wavelength"]), int(b["gsd"]), float(b["mean"]), float(b["std"]), ())
            for b in document["bands"]
        ),
        unit=str(document["unit"]),
        dtype=str(document["dtype"]),
        scale=float(document["scale"]),
        offset=float(document["offset"]),
        nodata=float("nan") if nodata is None else float(nodata),
        unit_factor=float(document["unit_factor"]),
        collections={},
    )
