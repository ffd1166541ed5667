"""Runs the published evaluation on TerraMesh's shards: streamed, in batches on one device, memory the same for any."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.eo_vae import EOVAE
from model.evaluation.batches import measure_batch, physical
from model.evaluation.figures import Sums, figures
from model.evaluation.land_cover import ClassSums
from model.evaluation.study import CLAMPED, CLAMPED_TRUTH, FREE, PHYSICAL, UNITS, Z
from model.evaluation.terramesh_samples import Reader, Samples, ahead, pattern, shards_of
from model.sensors import CORRECTED, SENSORS, TrainedSensor
from model.terramind import TerraMind, clamped
from model.training.eo_vae.adapt import known_sensors
from model.training.eo_vae.evaluate import RANGES
from model.training.sources.shards import Shard, plain
from model.training.sources.terramesh import MODALITIES

Method = Callable[[Tensor], Tensor]
_EVERY = 30.0
"""Seconds between two lines that say how far it is."""


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """How it is measured: `batch` samples share a forward pass and a data range in z-scores, as published; patches are
    brought to `side` pixels (published: 264 to 256); `limit` takes the first so many samples of each modality."""

    batch: int = 16
    resamples: int = 2000
    seed: int = 0
    side: int = 256
    limit: int | None = None
    corrected: bool = False
    device: str = "cpu"


def device_named(name: str) -> torch.device:
    """The device that "auto", "cpu" or "cuda" means; ValueError for one that is not here."""
    there = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if there else "cpu")
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: choose auto, cpu or cuda")
    if name == "cuda" and not there:
        raise ValueError("--device cuda: torch sees no such device here: take --device cpu")
    return torch.device(name)


def disagreement(sensor: TrainedSensor, *, corrected: bool) -> str | None:
    """A warning where a sensor's statistics are known to be of the other variant of the data."""
    ours, others = (CORRECTED, SENSORS) if corrected else (SENSORS, CORRECTED)
    if sensor.name not in CORRECTED or _same(sensor, ours[sensor.name]) or not _same(sensor, others[sensor.name]):
        return None
    if corrected:
        return f"{sensor.name}: the weights have the legacy statistics, the data are corrected: leave --corrected out"
    return f"{sensor.name}: the weights have the statistics of corrected data: add --corrected"


def _same(sensor: TrainedSensor, other: TrainedSensor) -> bool:
    known = other.subset(sensor.bands)
    return bool(np.allclose([sensor.mean, sensor.std], [known.mean, known.std], rtol=1e-5))


@dataclass(slots=True)
class _Tally:
    """What one method has added up."""

    cover: ClassSums
    sums: dict[str, list[Sums]] = field(default_factory=lambda: {Z: [], PHYSICAL: []})


@dataclass(slots=True)
class TerraMeshStudy:
    """Weights, the shards at `url` (see `shards_of`) and TerraMind's tokenizers, by modality.

    Statistics, bands and wavelengths are those that the weights carry, so that z-scores are theirs.
    """

    name: str
    vae: EOVAE
    url: str
    modalities: Sequence[str]
    settings: MeshSettings = field(default_factory=MeshSettings)
    terramind: Mapping[str, TerraMind] = field(default_factory=dict)
    log: Callable[[str], None] = print

    def run(self) -> dict[str, Any]:
        """All figures as plain data, as `model.evaluation.study.Study.run` gives them.

        ValueError for what the weights or TerraMesh do not know, shards that are not there, or nothing to measure.
        """
        sensors = self._sensors()
        if self.settings.side % self.vae.scale_factor:
            raise ValueError(
                f"--side {self.settings.side} must be a multiple of {self.vae.scale_factor}, as latents are"
            )
        shards = shards_of(self.url, self.modalities)
        warnings = [w for s in sensors.values() if (w := disagreement(s, corrected=self.settings.corrected))]
        if self.settings.corrected and self.terramind:
            warnings.append("TerraMind was trained on data as they are stored, not on corrected ones")
        for warning in warnings:
            self.log(f"warning: {warning}")
        report: dict[str, Any] = {
            "weights": self.name,
            "config": self.vae.config.to_dict(),
            "settings": asdict(self.settings) | {"test": False},
            "terramesh": {"url": plain(self.url), "warnings": warnings},
            "codecs_absent": [],
            "sensors": {},
            "rate_distortion": {},
            "equal_bits": {},
        }
        device = torch.device(self.settings.device)
        self.vae.to(device).eval()
        # A convolution in TF32 keeps 10 bits of each factor: the published figures are of float32.
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for modality, sensor in sensors.items():
                report["sensors"][modality] = self._modality(sensor, shards[modality])
        return report

    def _sensors(self) -> dict[str, TrainedSensor]:
        known = known_sensors(self.vae.meta)
        if not self.modalities:
            raise ValueError("--modalities of nothing: name one or more, such as S2L2A")
        if strangers := [name for name in self.terramind if name not in self.modalities]:
            raise ValueError(f"--terramind {strangers[0]}: --modalities has it not, so nothing is measured with it")
        if not known:
            raise ValueError(f"{self.name}: the weights say nothing of their sensors: save them with their metadata")
        for modality in self.modalities:
            if modality not in MODALITIES:
                raise ValueError(f"no sensor for {modality} of TerraMesh: there are {', '.join(MODALITIES)}")
            if modality not in known:
                raise ValueError(f"{self.name} does not know {modality}: --modalities of {', '.join(known)}")
            MODALITIES[modality].index(known[modality].bands)
        return {modality: known[modality] for modality in self.modalities}

    def _methods(self, sensor: TrainedSensor) -> dict[str, Method]:
        """Everything that is measured, by name: z-scores (B, C, H, W) by `sensor` to the same."""
        wavelengths = torch.tensor(sensor.wavelengths, device=self.settings.device)
        methods: dict[str, Method] = {
            self.name: lambda z: self.vae.decode(self.vae.encode(z, wavelengths).mode(), wavelengths)
        }
        if (tokenizer := self.terramind.get(sensor.name)) is not None:
            tokenizer.tokenizer.to(self.settings.device)
            methods[CLAMPED_TRUTH] = lambda z: clamped(z, sensor)
            methods[CLAMPED] = lambda z: tokenizer.reconstruct_batch(z, sensor, clamp=True)
            methods[FREE] = lambda z: tokenizer.reconstruct_batch(z, sensor, clamp=False)
        return methods

    def _modality(self, sensor: TrainedSensor, shards: Sequence[Shard]) -> dict[str, Any]:
        how, methods = self.settings, self._methods(sensor)
        reader = Reader(shards, sensor.name, sensor, how.side, how.batch, how.limit, how.corrected)
        tallies = {method: _Tally(ClassSums(len(sensor.bands))) for method in methods}
        began = said = time.monotonic()
        done = 0
        for samples in ahead(iter(reader)):
            self._measure(samples, sensor, methods, tallies)
            done += len(samples.keys)
            if (now := time.monotonic()) - said > _EVERY:
                self.log(f"{sensor.name}: {done} samples, {done / (now - began):.1f} a second")
                said = now
        seconds = time.monotonic() - began
        if not done:
            raise ValueError(
                f"no shards at {plain(pattern(self.url))} that {sensor.name} could be measured on: "
                f"{reader.ledger.excuse()}"
            )
        self.log(f"{sensor.name}: {done} of {reader.read} samples measured in {seconds:.0f} s")
        return {
            "bands": list(sensor.bands),
            "unit": UNITS[sensor.unit],
            "physical_range": RANGES[sensor.unit],
            "tiles": done,
            "samples": reader.read,
            "left_out": reader.ledger.state_dict(),
            "seconds": seconds,
            "samples_per_second": done / max(seconds, 1e-9),
            "methods": {method: self._spaces(tally, sensor) for method, tally in tallies.items()},
            "cover": {method: tally.cover.figures(RANGES[sensor.unit]) for method, tally in tallies.items()},
            "cover_pixels": next(iter(tallies.values())).cover.counts(),
            "cover_tiles": {},
        }

    def _measure(
        self, samples: Samples, sensor: TrainedSensor, methods: Mapping[str, Method], tallies: Mapping[str, _Tally]
    ) -> None:
        z, labels = samples.z.to(self.settings.device), samples.labels.to(self.settings.device)
        truth, span = physical(z, sensor), float(z.max() - z.min())
        for name, method in methods.items():
            back, tally = method(z), tallies[name]
            tally.sums[Z] += measure_batch(back, z, span, samples.keys, borders=True)
            back = physical(back, sensor)
            tally.sums[PHYSICAL] += measure_batch(back, truth, RANGES[sensor.unit], samples.keys, sensor.red_nir)
            tally.cover.add(back, truth, labels)

    def _spaces(self, tally: _Tally, sensor: TrainedSensor) -> dict[str, Any]:
        how: dict[str, Any] = {"bands": sensor.bands, "resamples": self.settings.resamples, "seed": self.settings.seed}
        return {
            Z: figures(tally.sums[Z], batch=self.settings.batch, **how),
            PHYSICAL: figures(tally.sums[PHYSICAL], **how),
        }
