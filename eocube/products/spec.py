"""Defines `Product`: what a cube holds, as far as the store, the plan and verification need to know it. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from eocube.errors import InputError
from eocube.products.identity import digest
from eocube.products.storage import Storage
from eocube.sensors.sensor import Sensor

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
TAKEN = frozenset(
    {
        "valid", "missing", "cloud", "shadow", "status", "valid_percent", "cloud_percent", "psnr", "sam", "time",
        "channel", "y", "x", "wy", "wx", "spatial_ref", "platform", "scene_ids", "item_datetimes", "orbit_state",
        "relative_orbit", "requested", "scale", "offset", "commits",
    }
)  # fmt: skip
"""Names of what lies beside a product's array in every store."""
Summary = Literal["moments", "histogram", "none"]
RADIOMETRY = "eocube-radiometry-1"
"""Version of the radiometric recipe: offset rule, dB, travelling form. Part of what pixels mean."""
RESAMPLING = "native-bilinear-1"
"""Version of the resampling recipe: native sampling, bilinear warps, mirrored swath edges. Part of what pixels mean."""


def sensor_document(sensor: Sensor) -> dict[str, Any]:
    """What of a sensor decides a value's meaning, as JSON (nodata NaN is written as null)."""
    return {
        "name": sensor.name,
        "unit": sensor.unit,
        "dtype": sensor.dtype,
        "scale": sensor.scale,
        "offset": sensor.offset,
        "nodata": None if sensor.nodata != sensor.nodata else sensor.nodata,
        "unit_factor": sensor.unit_factor,
        "bands": [
            {"name": b.name, "wavelength": b.wavelength, "gsd": b.gsd, "mean": b.mean, "std": b.std}
            for b in sensor.bands
        ],
    }


def pixels_meaning(sensor: Sensor, resolution: float) -> dict[str, Any]:
    """What the pixels that a codec is given mean: part of the `meaning` of every product that is made of scenes."""
    return {
        "sensor": sensor_document(sensor), "radiometry": RADIOMETRY, "resampling": RESAMPLING, "resolution": resolution,
    }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """What a cube holds: one array of values, a cell of `cell_px` pixels each, made window by window.

    Args:
        kind: the registry's key, such as "eo-vae".
        array: the array's name in the store: "latent", "token", "embedding", ...
        channels: values a cell.
        cell_px, core_px, halo_px: pixels at the cube's resolution along a cell, the part of a window that is kept, and
            what a window has of its neighbours on each side. A core is whole cells; a halo need not be.
        inputs: the sensors that are read.
        meaning: JSON; everything that decides what a value means. Hashed whole: the space id.
        storage: how values are stored.
        summary: what the log counts of the values: mergeable moments of each channel, a histogram of codes, or nothing.
        long_name: the array's description, for people.
        channel_names: one a channel, or none.
        scores: what a window's receipt may say of its decoded self; none without a decoder.
        made_by: JSON; what its codec needs to be opened again that is no part of the meaning: where weights lie, ...

    Raises:
        InputError: a geometry that cannot be.
    """

    kind: str
    array: str
    channels: int
    cell_px: int
    core_px: int
    halo_px: int
    inputs: tuple[Sensor, ...]
    meaning: Mapping[str, Any]
    storage: Storage
    summary: Summary
    long_name: str
    channel_names: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if min(self.channels, self.cell_px, self.core_px) < 1 or self.halo_px < 0 or self.core_px % self.cell_px:
            raise InputError(
                f"product {self.kind}: {self.channels} channels, cells of {self.cell_px} px, cores of {self.core_px} "
                f"px and a halo of {self.halo_px} px do not go together: a core is whole cells, a halo 0 px or more"
            )
        if not _NAME.fullmatch(self.array) or self.array in TAKEN:
            raise InputError(
                f"product {self.kind}: {self.array!r} cannot be the name of its array: take letters that no other has"
            )
        if not self.inputs:
            raise InputError(f"product {self.kind} reads no sensor: give it one in `inputs`")

    @property
    def space_id(self) -> str:
        """The digest of the meaning: cubes with the same one may be mixed."""
        return digest(dict(self.meaning))

    @property
    def sensor(self) -> Sensor:
        """The sensor that is read first, at whose sampling a decoder's pixels come."""
        return self.inputs[0]

    @property
    def unpacked_cell_bytes(self) -> int:
        """Bytes of a cell's stored values before compression, all channels."""
        return self.channels * np.dtype(self.storage.dtype).itemsize

    @property
    def window_px(self) -> int:
        """Pixels along a window, halo included."""
        return self.core_px + 2 * self.halo_px

    @property
    def precision(self) -> str:
        """fp16, bf16 or fp32: the arithmetic of the encoder, `meaning["precision"]`."""
        return str(self.meaning.get("precision", "fp32"))

    @property
    def network(self) -> str:
        """The name of what makes it, for people and for recorded rates: the weights' own, else the kind."""
        return str(self.meaning.get("weights", {}).get("name", self.kind))

    @property
    def weights_sha256(self) -> str:
        """The content hash of its weights' tensors and metadata; empty where it has none."""
        return str(self.meaning.get("weights", {}).get("sha256", ""))

    @property
    def weights(self) -> str:
        """Where its weights lie, as the user named them; empty where it has none."""
        return str(self.made_by.get("weights", ""))

    @property
    def decodes(self) -> bool:
        """Whether its codec gives pixels back, which are then scored as they are made."""
        return bool(self.scores)


@dataclass(frozen=True, slots=True)
class Actor:
    """What an encoding actor has and is given, as far as it decides how many windows it takes at once."""

    gpu_share: float = 1.0
    """Of a GPU's memory: two actors of half a GPU each plan with half of it."""
    windows: int = 100
    """Windows of a shard: a batch divides their number, so that none is computed with places that are always blank."""
    held: int = 0
    """Bytes of the GPU that hold the pixels of the shards that are encoded, beside what a batch takes."""


@runtime_checkable
class Batching(Protocol):
    """A kind whose batch follows from what an actor has of a GPU. Kinds need not be one."""

    def numerics_for(self, product: Product, device: str, actor: Actor) -> dict[str, Any]:
        """`Kind.numerics` for such actors on this machine."""
        ...
