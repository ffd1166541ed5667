"""Probes what values hold: trains a linear head from given tensors to classes, on the loop that every network uses.

The data are handed in, so that nothing here knows where they come from: a `Source` of `Labelled` batches for training
(draw, steps_per_epoch, state_dict, load_state_dict; each worker its own share where the recipe's division is "shares"),
and a list of `Labelled` that training never sees. Cubes of latents are one such source:

    head, figures = train_probe(recipe, channels, classes, source, held_out, out=folder, team=team, keeper=keeper)

`figures` has the accuracy beside that of always naming the commonest class; a probe that is no better shows nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from model.training.checkpoint import Keeper, read_snapshot
from model.training.distributed import Team
from model.training.loop import Loop
from model.training.readings import Figures
from model.training.recipe import Recipe, Stage
from model.training.task import Progress, Source, Task, mixed
from model.training.tracking import Tracker

UNLABELLED = -1
HEAD, FIGURES = "probe.safetensors", "probe.json"


@dataclass(frozen=True, slots=True)
class Labelled:
    """`values` (B, C, ...) float32, NaN where there is none; `classes` (B, ...) int64 from 0, -1 where unlabelled.

    Where a value is NaN the place counts as unlabelled, whatever its class. The dots are any dimensions: (B, C, H, W)
    with a class a cell, or (B, C) with one a vector.
    """

    values: Tensor
    classes: Tensor

    def __post_init__(self) -> None:
        shape = (self.values.shape[0], *self.values.shape[2:])
        if tuple(self.classes.shape) != shape:
            raise ValueError(f"values of {tuple(self.values.shape)} need classes of {shape}, not {self.classes.shape}")

    def __len__(self) -> int:
        return len(self.values)

    def pinned(self) -> Labelled:
        """The same in pinned memory."""
        return Labelled(self.values.pin_memory(), self.classes.pin_memory())

    def places(self, rows: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """The labelled places of some rows, on a device: values (N, C) and classes (N,)."""
        values = self.values[rows].movedim(1, -1).flatten(0, -2)
        classes = self.classes[rows].flatten()
        # Chosen where they are: how many there are would have to be asked of a GPU, at every step.
        there = (classes != UNLABELLED) & torch.isfinite(values).all(-1)
        return values[there].to(device, non_blocking=True), classes[there].to(device, non_blocking=True)


@dataclass(slots=True)
class HeldTensors:
    """A source of tensors in memory: whole epochs in orders of `seed`, one `share` (rank, workers) of each."""

    data: Labelled
    seed: int = 0
    share: tuple[int, int] = (0, 1)
    _epoch: int = field(init=False, default=0)
    _next: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        rank, workers = self.share
        if not 0 <= rank < workers or len(self.data) < workers:
            raise ValueError(f"{len(self.data)} examples cannot be shared by {workers} workers, seen from {rank}")

    def draw(self, batch_size: int, patch: int) -> Labelled:
        """The next examples; a batch may go over the end of an epoch."""
        chosen: list[int] = []
        while len(chosen) < batch_size:
            order = self._order()
            taken = order[self._next : self._next + batch_size - len(chosen)]
            chosen += taken
            self._next += len(taken)
            if self._next >= len(order):
                self._epoch, self._next = self._epoch + 1, 0
        return Labelled(self.data.values[chosen], self.data.classes[chosen])

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """Whole batches of the share."""
        return max(1, len(self._order()) // batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and place in it."""
        return {"epoch": self._epoch, "next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        self._epoch, self._next = int(state["epoch"]), int(state["next"])

    def _order(self) -> list[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self._epoch)
        rank, workers = self.share
        order: list[int] = torch.randperm(len(self.data), generator=generator).tolist()
        return order[rank::workers]


@dataclass(frozen=True, slots=True)
class ProbeFigures:
    """A head on places it has not seen: mean cross-entropy (nats), share named rightly, mean of that over the classes,
    mean intersection over union, and the share of the commonest class, which needs no head at all."""

    places: int
    cross_entropy: float
    accuracy: float
    balanced_accuracy: float
    mean_iou: float
    chance: float


@dataclass(frozen=True, slots=True)
class ProbeRecipe(Recipe[Stage]):
    """A recipe of stages of Adam, AdamW or Muon."""

    task: ClassVar[str] = "probe"


class ProbeTask(Task[Labelled, Stage]):
    """A linear head by cross-entropy: (N, channels) -> (N, classes)."""

    def __init__(self, channels: int, classes: int, precision: str = "fp32", held_out: Sequence[Labelled] = ()) -> None:
        if channels < 1 or classes < 2:
            raise ValueError(f"a probe from {channels} channels to {classes} classes: 1 and 2 at least")
        self.module = nn.Linear(channels, classes)
        self._precision, self._held_out = precision, held_out

    @property
    def config(self) -> Mapping[str, Any]:
        head = cast(nn.Linear, self.module)
        return {"channels": head.in_features, "classes": head.out_features}

    def loss(self, batch: Labelled, progress: Progress[Stage]) -> tuple[Tensor, Figures]:
        values, classes = batch.places(progress.rows, progress.device)
        with mixed(progress.device, self._precision):
            scores = progress.forward(values)
        # a batch without any label has loss 0 and a gradient of zeros: the other workers wait for it
        loss = F.cross_entropy(scores.float(), classes, reduction="sum") / max(1, len(classes))
        right: Tensor | float = (scores.argmax(-1) == classes).float().mean() if len(classes) else 0.0
        return loss, {"cross_entropy": loss.detach(), "accuracy": right}

    def score(self, network: nn.Module, total: int) -> float | None:
        return probed(network, self._held_out).cross_entropy if self._held_out else None

    def export(self, network: nn.Module, folder: Path) -> None:
        figures = probed(network, self._held_out) if self._held_out else None
        save_file({key: tensor.contiguous() for key, tensor in network.state_dict().items()}, folder / HEAD)
        about = {"head": dict(self.config), "held_out": None if figures is None else asdict(figures)}
        (folder / FIGURES).write_text(json.dumps(about, indent=1) + "\n")


@torch.no_grad()
def probed(head: nn.Module, batches: Iterable[Labelled]) -> ProbeFigures:
    """A head's figures on the labelled places of batches. ValueError where there are none."""
    confusion: Tensor | None = None
    entropy = 0.0
    for batch in batches:
        values, classes = batch.places(slice(None), torch.device("cpu"))
        scores = head(values)
        entropy += float(F.cross_entropy(scores, classes, reduction="sum"))
        count = scores.shape[-1]
        pairs = torch.bincount(classes * count + scores.argmax(-1), minlength=count * count).reshape(count, count)
        confusion = pairs if confusion is None else confusion + pairs
    if confusion is None or not int(confusion.sum()):
        raise ValueError("no labelled place to probe: every value is absent or has no class")
    found, named, right = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    places, seen, union = int(confusion.sum()), found > 0, found + named - right
    return ProbeFigures(
        places,
        entropy / places,
        int(right.sum()) / places,
        float((right[seen] / found[seen]).mean()),
        float((right[union > 0] / union[union > 0]).mean()),
        int(found.max()) / places,
    )


def train_probe(
    recipe: ProbeRecipe, channels: int, classes: int, source: Source[Labelled], held_out: Sequence[Labelled], *,
    out: Path | None = None, team: Team | None = None, keeper: Keeper | None = None, tracker: Tracker | None = None,
) -> tuple[nn.Linear, ProbeFigures]:  # fmt: skip
    """Train a head from where `keeper` has a checkpoint, or from its beginning; rank 0 writes it with its figures into
    the folder `out`. Returns the averaged head and its figures on the held-out batches."""
    team = team or Team.here()
    torch.manual_seed(recipe.seed)
    task = ProbeTask(channels, classes, recipe.precision, held_out)
    team.same_start(task.module.to(team.device))
    loop = Loop(task, recipe, source, team, keeper, tracker)
    if keeper is not None:
        with keeper.restore() as folder:
            if folder is not None:
                loop.resume(read_snapshot(folder, team.rank, sliced=recipe.division == "slices"))
    head = cast(nn.Linear, loop.run())
    if out is not None and team.leads:
        out.mkdir(parents=True, exist_ok=True)
        task.export(head, out)
    return head, probed(head, held_out)
