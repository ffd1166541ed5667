"""Defines what every source of training data yields: patches on known ground, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from model.sensors import Floats
from model.training.batch import Batch
from model.training.task import Source


class BandError(ValueError):
    """Data of another set of bands than the sensor they are read as."""


@dataclass(frozen=True, slots=True)
class Place:
    """A square of ground: its centre in degrees and half its side in metres."""

    lon: float
    lat: float
    half: float


class PlaceLike(Protocol):
    """What has a place's fields."""

    @property
    def lon(self) -> float: ...
    @property
    def lat(self) -> float: ...
    @property
    def half(self) -> float: ...


class PatchLike(Protocol):
    """`data` (C, H, W) in the sensor's unit, NaN where there is none; `bands` names its channels."""

    @property
    def name(self) -> str: ...
    @property
    def bands(self) -> tuple[str, ...]: ...
    @property
    def data(self) -> Floats: ...


@dataclass(frozen=True, slots=True)
class Patch:
    """One patch: `data` (C, H, W) float32 in the sensor's unit, NaN where there is none, `bands` its channels.

    `place` is None where the source does not say where it lies.
    """

    name: str
    bands: tuple[str, ...]
    data: Floats
    place: Place | None = None


class PatchSet(Protocol):
    """Patches that can be read in any order: scenes of a search, the plan of a cube, local rasters.

    `sensor` names what the patches are of; `places` has one entry a patch. `read` is called from several threads; None
    means that there is no data at that place (nodata, cloud), an OSError or ValueError that it cannot be read.
    """

    @property
    def sensor(self) -> str: ...
    @property
    def places(self) -> Sequence[PlaceLike]: ...
    def read(self, index: int) -> PatchLike | None: ...


class Feed(Protocol):
    """An endless stream of patches in a seeded order that can be left and taken up again."""

    @property
    def sensors(self) -> tuple[str, ...]:
        """What the next patch can be asked for as."""
        ...

    def next(self, sensor: str) -> PatchLike:
        """The next usable patch. ValueError where a whole epoch has none."""
        ...

    def skip(self, name: str, why: str) -> None:
        """Note in the feed's ledger that a patch it gave could not be used."""
        ...

    @property
    def patches_per_epoch(self) -> int | None:
        """How many patches this worker sees in one epoch; None where that is not known."""
        ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class BatchSource(Source[Batch], Protocol):
    """A source of pixels: batches of `batch_size` patches of `patch` pixels a side, z-scored, of one sensor each."""
