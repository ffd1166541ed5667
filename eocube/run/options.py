"""Defines how a run is carried out: how it is spread, what bounds a worker's threads and what it reads ahead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eocube.net.network import NetworkLimits
from eocube.plan.plan import Plan
from eocube.store.fence import Pass

UNIT_TIMEOUT = 3600.0
"""Seconds after which an actor that has not finished a unit counts as hung: many times what a shard takes on one slow
core. What a host that is down is waited for comes on top."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a unit's memory and choices."""

    read_threads: int = 16
    """A scene has about as many files, which are read all at once where they are remote."""
    encode_threads: int = 1
    rows: int | None = None
    """Rows of windows of a shard that are read as one and held until they are encoded; None: all. Bounds an actor's
    memory whatever the size of a shard."""
    memory: int | None = None
    """Bytes that an actor's units may take beside the encoder, and of a GPU; None: a share of what there is."""
    mates: int = 1
    """Actors on the same node, this one included: they share its memory."""
    max_cloud: float | None = None
    """Windows whose core is cloudier, in percent of its valid pixels, end `cloudy`."""
    verify_fraction: float = 0.0
    """Share of the windows that are decoded again as they are made, for `psnr` and `sam`."""


@dataclass(frozen=True, slots=True)
class Cube:
    """One zone's share of a run: its plan and where its store is."""

    plan: Plan
    url: str


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How a run is spread over the machine or cluster."""

    engine: str = "auto"
    """auto, local or ray: `eocube.run.choice`."""
    actors: int | None = None
    """None: one a GPU share where there are GPUs, else one a node; more and fewer as nodes come and go."""
    gpus_per_actor: float = 0.0
    limits: Limits = field(default_factory=Limits)
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    """fsspec options of the target store."""
    source_options: Mapping[str, Any] | None = field(default=None, repr=False)
    """fsspec options of the sources."""
    quiet: bool = False
    network: NetworkLimits = field(default_factory=NetworkLimits)
    """How hosts are treated; a limit on requests is shared out over driver and actors."""
    unit_timeout: float = UNIT_TIMEOUT
    """Seconds that an actor may take over a unit, beside the network's patience, before it counts as hung."""
    lease: Pass | None = None
    """What actors need to write under the driver's lease; None where nobody else can write."""
    log_dir: str | None = None
    """A local folder for the run's log. None: in the first cube's store."""
