"""Draws training batches: one set of bands a batch, patches from every image that has them, augmented and z-scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from model.sensors import COLOURS, S2L2A, SENSORS, Floats, TrainedSensor, true_colour
from model.training.batch import Batch, random_subset
from model.training.eo_vae.recipe import DEFAULT_MIX
from model.training.sources.augment import Augmentation, dihedral, optical, radar
from model.training.sources.images import Image

_CHECKED = 8


@dataclass(slots=True)
class Sampler:
    """An endless source of batches from the images that are not held out; all randomness comes from `seed`.

    Some patches are area-averaged by 2 to `max_average` (other ground samplings); a share `shifted` of the others is
    moved by part of a pixel, bilinear, as the reader does with scenes off the lattice.
    """

    images: Sequence[Image]
    seed: int = 0
    mix: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    how: Augmentation = field(default_factory=Augmentation)
    max_average: int = 3
    shifted: float = 0.4
    _rng: np.random.Generator = field(init=False)
    _found: dict[tuple[str, tuple[str, ...]], list[Image]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.images = [i for i in self.images if not i.held_out]
        self.mix = {name: share for name, share in self.mix.items() if self._available(name)}
        if not self.mix:
            raise ValueError("no training image has the bands of any sensor of the mix: check the listing")

    def draw(self, batch_size: int, patch: int) -> Batch:
        """One batch of `batch_size` patches of `patch` pixels a side."""
        return self.draw_set(self.choose(), batch_size, patch)

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """None: patches are cut anywhere and drawn with replacement, so no number of them is the whole."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """The state of the random stream; the images themselves are the caller's to give again."""
        return {"rng": deepcopy(self._rng.bit_generator.state)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken. ValueError where it is no Sampler's."""
        if "rng" not in state:
            raise ValueError(f"no state of a Sampler (it has {sorted(state)}): resume with the same data source")
        self._rng.bit_generator.state = deepcopy(state["rng"])

    def choose(self) -> TrainedSensor:
        """A random sensor of the mix, or a random subset of S2L2A's bands."""
        names = list(self.mix)
        shares = np.array([self.mix[n] for n in names])
        return self._choose(names[self._rng.choice(len(names), p=shares / shares.sum())])

    def draw_set(self, sensor: TrainedSensor, batch_size: int, patch: int) -> Batch:
        """One batch of the given sensor and bands. ValueError where no training image has them, or a valid patch."""
        if not self._candidates(sensor):
            raise ValueError(f"no training image has the bands {', '.join(sensor.bands)} of {sensor.name}")
        x = np.stack([self._patch(sensor, patch) for _ in range(batch_size)])
        return Batch(torch.from_numpy(np.ascontiguousarray(x)), sensor)

    def _available(self, name: str) -> bool:
        sensor = S2L2A if name == "subset" else SENSORS[name]
        return bool(self._candidates(sensor))

    def _choose(self, name: str) -> TrainedSensor:
        if name == "S2L1C":
            lacks_cirrus = self._rng.random() < 0.4
            return SENSORS[name].subset([b for b in SENSORS[name].bands if not lacks_cirrus or b != "B10"])
        if name != "subset":
            return SENSORS[name]
        return S2L2A.subset([S2L2A.bands[k] for k in random_subset(self._rng)])

    def _candidates(self, sensor: TrainedSensor) -> list[Image]:
        key = (sensor.name, sensor.bands)
        if key not in self._found:
            self._found[key] = self._search(sensor)
        return self._found[key]

    def _search(self, sensor: TrainedSensor) -> list[Image]:
        if sensor.unit == "dB":
            return [i for i in self.images if i.sensor == sensor.name]
        need = set(COLOURS if sensor.unit == "dn8" else sensor.bands)
        return [i for i in self.images if SENSORS[i.sensor].unit == "reflectance*1e4" and need <= set(i.bands)]

    def _patch(self, sensor: TrainedSensor, size: int) -> Floats:
        candidates = self._candidates(sensor)
        weights = np.array([i.weight for i in candidates])
        for _ in range(100):
            image = candidates[self._rng.choice(len(candidates), p=weights / weights.sum())]
            cut = self._crop(image, size)
            if cut is not None:
                break
        else:
            raise ValueError(f"no valid patch of {size} px for {sensor.name}: every draw met nodata")
        bands = list(COLOURS) if sensor.unit == "dn8" else list(sensor.bands)
        x = dihedral(cut[[image.bands.index(b) for b in bands]], self._rng)
        if sensor.unit == "dB":
            return sensor.zscore(radar(x, self.how, self._rng))
        x = optical(x, np.array(sensor.wavelengths, np.float32), self.how, self._rng)
        return sensor.zscore(true_colour(x) if sensor.unit == "dn8" else x)

    def _crop(self, image: Image, size: int) -> Floats | None:
        """(C, size, size) of a random place, mirrored where the image is smaller, or None where it meets nodata."""
        height, width = image.data.shape[1:]
        factor = 1
        if self._rng.random() < 0.3:
            factor = int(self._rng.integers(2, self.max_average + 1))
            factor = max(1, min(factor, min(height, width) // size))
        shifted = factor == 1 and self._rng.random() < self.shifted and min(height, width) > size
        span = size * factor + shifted
        tall, wide = min(span, height), min(span, width)
        row, column = (int(self._rng.integers(n - m + 1)) for n, m in ((height, tall), (width, wide)))
        cut = image.data[:, row : row + tall, column : column + wide]
        if not np.isfinite(cut[:, ::_CHECKED, ::_CHECKED]).all() or not np.isfinite(cut).all():
            return None
        if (tall, wide) != (span, span):
            cut = np.pad(cut, ((0, 0), (0, span - tall), (0, span - wide)), mode="symmetric")
        if shifted:
            down, right = (np.float32(v) for v in self._rng.random(2))
            cut = (1 - down) * cut[:, :-1] + down * cut[:, 1:]
            cut = (1 - right) * cut[:, :, :-1] + right * cut[:, :, 1:]
        if factor > 1:
            cut = cut.reshape(len(cut), size, factor, size, factor).mean(axis=(2, 4))
        return cut
