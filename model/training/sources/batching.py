"""Makes batches of patches: one sensor a batch by chance, cut or resized, turned and mirrored, z-scored."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from model.sensors import RGBN, S2L2A, Floats, TrainedSensor
from model.training.batch import Batch, random_subset
from model.training.sources.augment import Augmentation, dihedral, optical, radar
from model.training.sources.patch import BandError, Feed, PatchLike

FITS = ("crop", "resize")
# How many crops of a patch with gaps are tried before it counts as unusable.
_TRIES = 8
# What a feed of S2L2A can also be drawn as.
_OF_S2L2A = ("RGBN", "subset")


@dataclass(slots=True)
class PatchBatches:
    """Batches from a feed.

    Args:
        feed: where patches come from.
        sensors: how its patches are z-scored, by the names it gives.
        mix: name -> chance of being a batch's sensor: the feed's own, and of S2L2A also "RGBN" and "subset" (any bands
            of it). Default: all of the feed's, alike.
        seed: chooses the batches' sensors, the same for all workers, so that they train on one sensor at a time.
        worker: chooses, with the seed, the crops and symmetries of this worker.
        fit: "crop" cuts a random square at native sampling (ours); "resize" brings the whole patch to the size,
            bilinear (published: 264 to 256 px).
        turns: "patch" draws one of the eight symmetries for each patch (ours), "batch" one for all (published).
        how: brightness, tilt, clouds or level changes as in `augment`; None leaves values alone (published).

    Raises:
        ValueError: a mix of nothing, or of something the feed cannot give.
    """

    feed: Feed
    sensors: Mapping[str, TrainedSensor]
    mix: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    worker: int = 0
    fit: str = "crop"
    turns: str = "patch"
    how: Augmentation | None = None
    _choice: np.random.Generator = field(init=False)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        offered = (*self.feed.sensors, *(_OF_S2L2A if "S2L2A" in self.feed.sensors else ()))
        self.mix = dict(self.mix) or dict.fromkeys(self.feed.sensors, 1.0)
        for name in self.mix:
            if name not in offered:
                raise ValueError(f"the mix asks for {name}: these data have {', '.join(offered)}")
        if min(self.mix.values()) < 0 or not sum(self.mix.values()) > 0:
            raise ValueError(f"mix {self.mix}: shares must be 0 or more and not all 0")
        lacking = [name for name in self.feed.sensors if name not in self.sensors]
        if lacking:
            raise ValueError(
                f"no statistics for {', '.join(lacking)}: describe the sensor with --sensor FILE, which computes them "
                "where the file has none"
            )
        if self.fit not in FITS or self.turns not in ("patch", "batch"):
            raise ValueError(f"fit {self.fit!r} must be one of {FITS} and turns {self.turns!r} patch or batch")
        self._choice = np.random.default_rng([self.seed, 0])
        self._rng = np.random.default_rng([self.seed, 1, self.worker])

    def draw(self, batch_size: int, patch: int) -> Batch:
        """One batch of `batch_size` patches of `patch` pixels a side, of one sensor."""
        source, sensor = self._sensor()
        turn = int(self._rng.integers(2**31)) if self.turns == "batch" else None
        x = np.stack([self._one(source, sensor, patch, turn) for _ in range(batch_size)])
        return Batch(torch.from_numpy(np.ascontiguousarray(x)), sensor)

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """Whole batches of this worker an epoch; None where the feed does not know its length."""
        patches = self.feed.patches_per_epoch
        return None if patches is None else max(1, patches // batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The feed's place and both random states."""
        return {
            "feed": self.feed.state_dict(),
            "choice": deepcopy(self._choice.bit_generator.state),
            "rng": deepcopy(self._rng.bit_generator.state),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. ValueError where it is of other data."""
        if "feed" not in state:
            raise ValueError(f"the saved state is of another kind of data (it has {sorted(state)})")
        self.feed.load_state_dict(state["feed"])
        self._choice.bit_generator.state = deepcopy(state["choice"])
        self._rng.bit_generator.state = deepcopy(state["rng"])

    def _sensor(self) -> tuple[str, TrainedSensor]:
        """(what the feed is asked for, the batch's sensor)."""
        names, shares = list(self.mix), np.array(list(self.mix.values()))
        name = names[self._choice.choice(len(names), p=shares / shares.sum())]
        if name in self.feed.sensors:
            return name, self.sensors[name]
        of = self.sensors["S2L2A"]
        if name == "RGBN":
            return "S2L2A", of.subset(RGBN.bands)
        return "S2L2A", of.subset([S2L2A.bands[k] for k in random_subset(self._choice)])

    def _one(self, source: str, sensor: TrainedSensor, size: int, turn: int | None) -> Floats:
        unused = 0
        while True:
            patch = self.feed.next(source)
            lacking = [b for b in sensor.bands if b not in patch.bands]
            if lacking:
                raise BandError(
                    f"{patch.name} has no band {', '.join(lacking)} of {sensor.name}: fewer than the sensor"
                )
            cut = self._fitted(patch, sensor, size)
            if cut is not None:
                break
            self.feed.skip(patch.name, "nodata wherever it was cut")
            unused += 1
            if unused >= 10_000:
                raise ValueError(f"{unused} patches of {sensor.name} in a row have no {size} px without nodata")
        x = dihedral(cut, self._rng if turn is None else np.random.default_rng(turn))
        if self.how is not None and sensor.unit == "dB":
            x = radar(x, self.how, self._rng)
        elif self.how is not None and sensor.unit == "reflectance*1e4":
            x = optical(x, np.array(sensor.wavelengths, np.float32), self.how, self._rng)
        return sensor.zscore(np.ascontiguousarray(x))

    def _fitted(self, patch: PatchLike, sensor: TrainedSensor, size: int) -> Floats | None:
        """(C, size, size) of the sensor's bands, or None where every try meets nodata."""
        places = [patch.bands.index(b) for b in sensor.bands]
        data = patch.data if places == list(range(len(patch.bands))) else patch.data[places]
        height, width = data.shape[-2:]
        if self.fit == "resize":
            return resized(data, size) if np.isfinite(data).all() else None
        if min(height, width) < size:
            raise ValueError(
                f"{patch.name} is {height}x{width} px, less than the {size} asked for: "
                "take a larger size, or train on smaller patches"
            )
        for _ in range(_TRIES):
            row, column = (int(self._rng.integers(n - size + 1)) for n in (height, width))
            cut = data[:, row : row + size, column : column + size]
            if np.isfinite(cut).all():
                return cut
            if (height, width) == (size, size):
                return None
        return None


def resized(data: Floats, size: int) -> Floats:
    """(C, H, W) -> (C, size, size), bilinear and not smoothed before, as published."""
    if data.shape[-2:] == (size, size):
        return data
    whole = torch.from_numpy(np.ascontiguousarray(data))[None]
    return F.interpolate(whole, size=(size, size), mode="bilinear", align_corners=False)[0].numpy()
