"""Reads what a store says of itself in its `eocube` attribute into types."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

from eocube.errors import StoreError
from eocube.ground.lattice import whole_metres
from eocube.products.documents import from_attribute
from eocube.products.identity import refuse_edited
from eocube.products.spec import Product
from eocube.sensors.sensor import Sensor
from eocube.store.moments import Moments

KEY = "eocube"


@dataclass(frozen=True, slots=True)
class CubeInfo:
    """The parts of the `eocube` attribute that reading needs. Lengths are metres, `core` and `halo` cells."""

    product: Product
    """What it holds; its sensor without the catalogues' side, which reading does not need."""
    extent: tuple[int, int, int, int] | None
    """The requested cores' box, half-open (row0, col0, row1, col1), in cells of the whole store's arrays."""
    origin: tuple[float, float] | None
    """Easting and northing in metres of the upper left corner of the whole store's arrays."""
    moments: Moments | None
    pixel: float | None = None
    """Metres a pixel by the store's grid; None where it does not say."""

    @property
    def space_id(self) -> str:
        """The id of what its values mean."""
        return self.product.space_id

    @property
    def sensor(self) -> Sensor:
        """The sensor as it was encoded."""
        return self.product.sensor

    @property
    def resolution(self) -> float:
        """Metres a pixel: finer than what the meaning says of the encoder in a cube made from a coarser one."""
        return whole_metres(self.product.meaning["resolution"] if self.pixel is None else self.pixel)

    @property
    def stride(self) -> int:
        """Pixels along a cell."""
        return self.product.cell_px

    @property
    def core(self) -> int:
        """Cells along a core."""
        return self.product.core_px // self.product.cell_px

    @property
    def halo(self) -> int:
        """Whole cells of the halo."""
        return self.product.halo_px // self.product.cell_px

    @property
    def cell(self) -> int:
        """Metres a side of a latent pixel."""
        return round(self.resolution * self.stride)


def read_info(ds: xr.Dataset, where: str = "the dataset") -> CubeInfo:
    """The dataset's `eocube` attribute; StoreError when it has none, or an edited one, or one that reading cannot use.

    `where` names the dataset in errors.
    """
    document = ds.attrs.get(KEY)
    if isinstance(document, str):
        document = json.loads(document)
    if not isinstance(document, Mapping):
        raise StoreError(f"{where} has no `eocube` attribute: it is no cube of eocube, or its attributes were dropped")
    if "space" in document:
        refuse_edited(document, where)
    try:
        return _info(document)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{where}: its `eocube` attribute cannot be read: {type(error).__name__} {error}") from error


def _info(document: Mapping[Hashable, Any]) -> CubeInfo:
    extent, moments = document.get("extent"), document.get("moments")
    grid = document.get("grid", {})
    transform, pixel = grid.get("transform"), grid.get("resolution")
    return CubeInfo(
        product=from_attribute(document),
        extent=None if extent is None else (int(extent[0]), int(extent[1]), int(extent[2]), int(extent[3])),
        origin=None if transform is None else (float(transform[2]), float(transform[5])),
        moments=None if not moments else Moments.from_dict(moments),
        pixel=None if pixel is None else float(pixel),
    )
