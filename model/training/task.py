"""Says what the training loop asks of a network and of its data: a `Task` a network, a `Source` of its batches.

The loop (stages, accumulation, precision, averaging, checkpoints, resuming, Ray Train) is written once and knows no
network. To train another one: write its batch (a frozen dataclass with `__len__` and `pinned`), a `Source` of them or
take what is there, and a `Task`; then

    loop = Loop(MyTask(...), Recipe.load("mine.yaml"), source, team, keeper, tracker)
    averaged = loop.run()

`model.training.probe` is the shortest example, `model.training.eo_vae.task` the longest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from model.training.optimiser import muon_groups
from model.training.readings import Figures
from model.training.recipe import Stage

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def mixed(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a module computes what may be in `precision` ("bf16", "fp16", "fp32")."""
    half = precision != "fp32"
    return torch.autocast(device.type, HALF[precision] if half else torch.bfloat16, enabled=half)


class BatchLike(Protocol):
    """What one draw gives: any frozen dataclass of tensors whose first dimension is its length."""

    def __len__(self) -> int: ...
    def pinned(self) -> Self:
        """The same in pinned memory, for a GPU to fetch."""
        ...


B = TypeVar("B", bound=BatchLike)
B_co = TypeVar("B_co", bound=BatchLike, covariant=True)
S = TypeVar("S", bound=Stage)


class Source(Protocol[B_co]):
    """What the training loop draws from: an endless stream that can be left and taken up again."""

    def draw(self, batch_size: int, patch: int) -> B_co:
        """One batch of `batch_size` examples; `patch` is the stage's side, for sources that cut to size."""
        ...

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """Batches that show this worker's share of the data once; None where the data have no end."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next draws depend on, as plain numbers, strings, lists, mappings and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as the source did that gave the state. ValueError where the state is of other data."""
        ...


@dataclass(frozen=True, slots=True)
class Progress(Generic[S]):
    """Where a run is when a loss is asked for.

    `share` is 0 at the stage's start and 1 at its end, `step` counts its optimiser steps from 0. Of the batch this
    worker computes `rows` alone; `generator` is the same on all workers that share a batch, so what is random is drawn
    for the whole batch and cut to the rows. `forward` is the task's module as it is to be called: perhaps inside DDP.
    """

    stage: S
    step: int
    share: float
    rows: slice
    generator: torch.Generator
    device: torch.device
    forward: Callable[..., Any]


class Task(ABC, Generic[B, S]):
    """A network and what training it means. `module` is what computes and is wrapped by DDP or sharded by FSDP2."""

    module: nn.Module
    memory_format: torch.memory_format | None = None
    """How the network's tensors lie in memory, where they are not sharded."""
    whole_matrices = False
    """Whether the parameters can only be trained unsharded."""

    @property
    @abstractmethod
    def config(self) -> Mapping[str, Any]:
        """The network's sizes as plain values: a checkpoint of others is refused."""

    @abstractmethod
    def loss(self, batch: B, progress: Progress[S]) -> tuple[Tensor, Figures]:
        """The loss (scalar) of the batch's rows, and named figures to be noted: detached scalars that stay on the
        device, so that no step waits for them."""

    def network(self, module: nn.Module) -> nn.Module:
        """The part of `module` (or of a copy of it) that is averaged, scored and kept: all of it."""
        return module

    def parameter_groups(self, stage: S) -> list[dict[str, Any]]:
        """What the stage trains, as an optimiser's groups; "base" is a group's full rate (default: the stage's `lr`).
        Parameters that are not trained must require no gradient afterwards."""
        named = [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]
        return muon_groups(named) if stage.optimiser == "muon" else [{"params": [p for _, p in named]}]

    def shard_units(self, module: nn.Module) -> Sequence[nn.Module]:
        """The parts of `module` that FSDP2 shards as one unit each; the rest is one more."""
        return ()

    def unused(self, stage: S) -> bool:
        """Whether some trained parameters may get no gradient in a step."""
        return False

    def during(self, stage: S) -> AbstractContextManager[Any]:
        """A context in which the whole stage runs."""
        return nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """What the task itself found out on the way and a resumed run needs: plain values; nothing by default."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave; a checkpoint of before there was any gives an empty one."""

    def score(self, network: nn.Module, total: int) -> float | None:
        """Score (and publish) the averaged network after `total` steps, on rank 0: the lower the better; None where
        nobody scores. The network is whole and on the CPU."""
        return None

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the averaged network, as a user would load it, into a folder: what is kept as the best."""
        torch.save(network.state_dict(), folder / "network.pt")
