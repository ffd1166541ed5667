"""Defines what a user asks of a run, in values: what to encode, how to run it, what to show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from eocube.ground.boxes import BBox, Interval
from eocube.ground.regions import Region
from eocube.products.registry import DEFAULT
from eocube.store.receipts import State


@dataclass(frozen=True, slots=True)
class Selection:
    """What to encode, and where to. `Request.parse` checks it; what an option means in full, `--help` says."""

    boxes: tuple[BBox, ...] = ()
    """(west, south, east, north) in degrees: one box, or the two of one over the antimeridian, as `parse_bbox` gives
    them."""
    interval: Interval | None = None
    """First and last moment in UTC, both included, as `parse_interval` gives them. None is refused."""
    sensor: str = "S2L2A"
    """A sensor's name, or the path of its YAML file."""
    out: str = ""
    """Path or fsspec URL of the cube. Only a plan can do without."""
    catalog: str = "earth-search"
    """Name of a catalogue, a STAC API's URL, or the path or URL of a static catalogue."""
    bands: tuple[str, ...] | None = None
    """Names, a subset of the sensor's. None takes all."""
    extent: tuple[BBox, ...] = ()
    """Ground that the cube is to have room for, with `boxes` in it. Empty: that of `boxes`."""
    offset: float | None = None
    """Reflectance = DN * scale + this, for items that leave it open."""
    weights: str | None = None
    """A shipped name, a path, a URL or hf://owner/name. None: as the store that is there, else `registry.WEIGHTS`."""
    resolution: float = 10
    """Whole metres, ground sampling that the encoder sees."""
    max_cloud: float | None = None
    """Percent: windows that are cloudier are left out."""
    precision: str | None = None
    """One of `PRECISIONS`. None and auto: as the store that is there, else as the machine is fastest."""
    storage: str | None = None
    """How values are stored. None: as in the store that is there, else as the product has it by itself."""
    quality: str | None = None
    """How fine codes are: near-lossless, default or small. None: as in the store that is there, else default."""
    product: str = DEFAULT
    """Kind of what the cube holds."""
    product_options: Mapping[str, str] = field(default_factory=dict)
    """Choices of the kind's own, by name."""
    region: Region | None = None
    """An outline in the place of boxes: windows whose core has no ground in it are not encoded."""
    since: str | None = None
    """"last": go on with the store at `out` to this moment; what is not said is as the store has it."""


@dataclass(frozen=True, slots=True)
class Running:
    """How to run it: none of this decides what a whole cube holds."""

    engine: str = "auto"
    """auto, local or ray (`eocube.run.choice`)."""
    actors: int | None = None
    """Encoding actors. None: one a GPU, or one a node without GPUs."""
    gpus_per_actor: float | None = None
    """Share of a GPU an actor takes. None: 1 where torch sees a GPU here, else 0."""
    unit_timeout: float = 3600
    """Seconds that an actor may take over a shard, beside `patience`."""
    memory: float | None = None
    """GB that an actor's units may take beside the encoder. None: half of what its node or container has."""
    patience: float = 600
    """Seconds that a host which stops answering is waited for."""
    max_requests_per_second: float | None = None
    """To any one host, from the whole run. None: as many as the threads make."""
    verify_fraction: float = 0.005
    """Share of the windows decoded again as they are made, from 0 to 1."""
    retry: tuple[State, ...] = ()
    """Do just the windows again that ended so, of the states that another run may end otherwise."""
    mend: bool = False
    """Mend what is damaged of the store first, and do damaged shards again."""
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    """fsspec options of the target. None: those of the environment."""
    source_options: Mapping[str, Any] | None = field(default=None, repr=False)
    """fsspec options of catalogue and sources. None: those of the target."""
    allow_local_sources: bool = False
    """Let a catalogue from elsewhere lead to files of this machine, and to addresses of its own networks."""
    log_dir: str | None = None
    """Local folder of the run's structured log. None: into the cube."""
    demo: bool = False
    """Encode the embedded landscape, whatever ground, time and catalogue are selected."""
    overview: bool = False
    """Make the store's overview of what is new as shards are made, under the lease (`eocube.run.overviews`)."""


@dataclass(frozen=True, slots=True)
class Showing:
    """What to show, and whether to stop at a plan."""

    plan: bool = False
    """Print the plan and stop before a pixel is read."""
    json: bool = False
    """Print the plan as JSON."""
    quiet: bool = False
    """Print only errors and the last line."""
    quicklook: str | None = None
    """Path of a picture of the cube (PNG), drawn at the end."""
    price: float | None = None
    """With a plan: dollars an hour of one device."""
    calibrate: int = 0
    """With a plan: windows that are read and encoded here to learn the rate."""
    benchmark: str | None = None
    """With a plan: the JSON of a benchmark that gives the rate."""


class Target(Protocol):
    """What a request says of the stores that it makes, whatever it makes them of."""

    @property
    def out(self) -> str: ...
    @property
    def retry(self) -> tuple[State, ...]: ...
    @property
    def mend(self) -> bool: ...
