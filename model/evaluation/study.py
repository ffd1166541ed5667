"""Runs the whole evaluation: weights and baselines on held-out places, in two spaces that are never mixed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.eo_vae import EOVAE
from model.evaluation.codecs import CODECS, Codec, at_bytes, downsampled
from model.evaluation.equal_bits import Compared, Yardsticks, compare
from model.evaluation.figures import Sums, batch_spans, figures, measure
from model.evaluation.rate_distortion import Curves, curves
from model.evaluation.rates import Pack
from model.evaluation.storage import BITS
from model.evaluation.yardsticks import linear
from model.sensors import SENSORS, Floats, TrainedSensor
from model.terramind import TerraMind, clamp_alone
from model.training.eo_vae.code_steps import training_tiles
from model.training.eo_vae.evaluate import RANGES, Place, held_out_places, reconstruct
from model.training.eo_vae.klt import BLOCK, Klt, fit_klt
from model.training.sources.images import Image, completed, read_listing

Z, PHYSICAL = "z", "physical"
UNITS = {"reflectance*1e4": "reflectance", "dB": "dB", "dn8": "8-bit counts"}
CLAMPED_TRUTH = "truth clamped to TerraMind's [-1, 1]"
CLAMPED, FREE = "TerraMind, clamped as published", "TerraMind, clamp off"
_LEAST_SIDE = 64
Method = Callable[[Floats, TrainedSensor], Floats | None]


@dataclass(frozen=True, slots=True)
class Settings:
    """How it is measured. `batch` tiles share a data range in z-scores, as published; `rate_tiles` tiles a sensor and
    `calibration_tiles` training tiles make the rate-distortion curves (0: none are made). `test` measures on the test
    places rather than on those of validation, `sensors` on those of them alone (none given: on all). `draws` patches of
    training's sampler go into a KLT of the comparison at equal bits, and `draw_seed` is the sampler's."""

    batch: int = 16
    resamples: int = 2000
    seed: int = 0
    rate_tiles: int = 4
    calibration_tiles: int = 2
    test: bool = False
    sensors: tuple[str, ...] = ()
    draws: int = 256
    draw_seed: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Tiles of one sensor and set of bands. `grounds` and `covers` name each tile's place and its labels."""

    title: str
    sensor: TrainedSensor
    tiles: tuple[Floats, ...]
    grounds: tuple[str, ...]
    covers: tuple[tuple[str, ...], ...]


@dataclass(slots=True)
class Study:
    """Weights, the images, and the baselines that go with them."""

    name: str
    vae: EOVAE
    images: Sequence[Image]
    settings: Settings = field(default_factory=Settings)
    terramind: Mapping[str, TerraMind] = field(default_factory=dict)
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    codecs: Sequence[Codec] = CODECS
    log: Callable[[str], None] = print
    pack: Pack | None = None
    """What codes are packed into, for the comparison at equal bits; None: there is none."""
    _completed: list[Image] | None = field(init=False, default=None)
    _fitted: dict[tuple[str, tuple[str, ...]], Klt | None] = field(init=False, default_factory=dict)

    def run(self) -> dict[str, Any]:
        """All figures as plain data; ValueError where no place is held out."""
        groups = self.groups()
        if not groups:
            kind, mark = (
                ("a test place", "test: true as well as ") if self.settings.test else ("held out for validation", "")
            )
            of = f" of {', '.join(self.settings.sensors)}" if self.settings.sensors else ""
            raise ValueError(
                f"no place is {kind} with a whole, valid tile{of}: mark some of the listing {mark}held_out: true"
            )
        absent = [c.name for c in self.codecs if not c.available]
        report: dict[str, Any] = {
            "weights": self.name,
            "config": self.vae.config.to_dict(),
            "settings": asdict(self.settings),
            "codecs_absent": absent,
            "sensors": {},
            "rate_distortion": {},
            "equal_bits": {},
        }
        for group in groups:
            self.log(f"{group.title}: {len(group.tiles)} tiles of {len(set(group.grounds))} places")
            report["sensors"][group.title] = self._sensor(group)
            if self.settings.rate_tiles:
                report["rate_distortion"][group.title] = asdict(self._curves(group))
            if (compared := self._equal_bits(group)) is not None:
                report["equal_bits"][group.title] = asdict(compared)
        return report

    def groups(self) -> list[Group]:
        """The held-out tiles, sorted into sensors and sets of bands."""
        found: dict[tuple[str, tuple[str, ...]], list[Place]] = {}
        for place in held_out_places(self.images, test=self.settings.test):
            if place.sensor.name in (self.settings.sensors or SENSORS):
                found.setdefault((place.sensor.name, place.sensor.bands), []).append(place)
        groups: list[Group] = []
        for (name, bands), places in found.items():
            kept = [(p, t) for p in places for t in p.tiles if min(t.shape[1:]) >= _LEAST_SIDE and np.isfinite(t).all()]
            if kept:
                whole = len(bands) == len(SENSORS[name].bands)
                title = name if whole else f"{name}, {len(bands)} bands"
                if title in (g.title for g in groups):  # another set of as many bands
                    title = f"{name} ({', '.join(bands)})"
                covers = tuple(self._cover(p.image) for p, _ in kept)
                grounds = tuple(p.ground for p, _ in kept)
                groups.append(Group(title, kept[0][0].sensor, tuple(t for _, t in kept), grounds, covers))
        return groups

    def _cover(self, image: str) -> tuple[str, ...]:
        """Labels of an image by its source's name; of a series ("name@3") by the name alone."""
        return self.labels.get(image, self.labels.get(image.split("@")[0], ()))

    @property
    def _budget(self) -> int:
        """Latents of an 8x8 block."""
        return self.vae.config.z_channels * BLOCK**2 // self.vae.scale_factor**2

    def _values(self, tile: Floats) -> int:
        """Latents of a tile."""
        height, width = int(tile.shape[1]), int(tile.shape[2])
        return self.vae.config.z_channels * height * width // self.vae.scale_factor**2

    def _klt(self, sensor: TrainedSensor, coefficients: int) -> Klt | None:
        """The first `coefficients` of one fit, which has as many as there are latents."""
        key = (sensor.name, sensor.bands)
        if key not in self._fitted:
            self._fitted[key] = fit_klt(self._trained(sensor), sensor, self._budget)
        klt = self._fitted[key]
        return None if klt is None else Klt(klt.mean, np.ascontiguousarray(klt.basis[:, :coefficients]))

    def _trained(self, sensor: TrainedSensor) -> list[Image]:
        """Training images of the sensor's kind."""
        units = (sensor.unit,) if sensor.unit != "dn8" else ("dn8", "reflectance*1e4")
        return [i for i in self.images if not i.held_out and SENSORS[i.sensor].unit in units]

    def methods(self, sensor: TrainedSensor) -> dict[str, Method]:
        """Everything that is measured on a sensor's tiles, by name; a method gives None for what it cannot code."""
        klt = self._klt(sensor, self._budget)
        methods: dict[str, Method] = {self.name: lambda z, s: reconstruct(self.vae, z, s)}
        if klt is not None:
            methods[f"KLT 8x8, {self._budget} coefficients"] = lambda z, _: klt.reconstruct(z)
        methods["bilinear, as many values"] = lambda z, _: downsampled(z, self._values(z))
        for codec in self.codecs:
            if codec.available:
                for kind, bits in BITS.items():
                    methods[f"{codec.name}, bytes of {kind} latents"] = self._coded(codec, bits)
        if sensor.name in ("S2L2A", "S1RTC") and len(sensor.bands) == len(SENSORS[sensor.name].bands):
            methods[CLAMPED_TRUTH] = lambda z, s: clamp_alone(z, s)
            if (tokenizer := self.terramind.get(sensor.name)) is not None:
                methods[CLAMPED] = lambda z, s: tokenizer.reconstruct(z, s, clamp=True)
                methods[FREE] = lambda z, s: tokenizer.reconstruct(z, s, clamp=False)
        return methods

    def _coded(self, codec: Codec, bits: int) -> Method:
        def method(z: Floats, _: TrainedSensor) -> Floats | None:
            coded = at_bytes(codec, z, self._values(z) * bits // 8)
            return None if coded is None else coded.z

        return method

    def _sensor(self, group: Group) -> dict[str, Any]:
        sensor, targets = group.sensor, group.tiles
        out: dict[str, Any] = {
            "bands": list(sensor.bands),
            "unit": UNITS[sensor.unit],
            "physical_range": RANGES[sensor.unit],
            "tiles": len(targets),
            "places": sorted(set(group.grounds)),
            "methods": {},
            "cover": {},
        }
        for name, method in self.methods(sensor).items():
            predictions = [method(t, sensor) for t in targets]
            if all(p is not None for p in predictions):
                sums = self._sums(group, [p for p in predictions if p is not None])
                out["methods"][name] = self._spaces(sums, sensor.bands)
                out["cover"][name] = self._covers(sums, group)
        out["cover_tiles"] = {label: sum(label in c for c in group.covers) for label in _labels(group)}
        return out

    def _sums(self, group: Group, predictions: Sequence[Floats]) -> dict[str, list[Sums]]:
        """What each tile adds to the figures: in z-scores as published (the batch's range, SSIM with borders), and in
        physical units with a fixed range and SSIM without borders."""
        sensor = group.sensor
        spans = batch_spans(group.tiles, self.settings.batch)
        rows: dict[str, list[Sums]] = {Z: [], PHYSICAL: []}
        for tile, back, span, ground in zip(group.tiles, predictions, spans, group.grounds, strict=True):
            rows[Z].append(measure(back, tile, span, ground, borders=True))
            a, b = sensor.physical(back), sensor.physical(tile)
            rows[PHYSICAL].append(measure(a, b, RANGES[sensor.unit], ground, sensor.red_nir))
        return rows

    def _spaces(self, sums: Mapping[str, Sequence[Sums]], bands: Sequence[str]) -> dict[str, Any]:
        how: dict[str, Any] = {"bands": bands, "resamples": self.settings.resamples, "seed": self.settings.seed}
        return {Z: figures(sums[Z], batch=self.settings.batch, **how), PHYSICAL: figures(sums[PHYSICAL], **how)}

    def _covers(self, sums: Mapping[str, Sequence[Sums]], group: Group) -> dict[str, Any]:
        """Physical figures of the tiles that carry each label; a tile with several counts for each of them."""
        out = {}
        for label in _labels(group):
            part = [s for s, labels in zip(sums[PHYSICAL], group.covers, strict=True) if label in labels]
            out[label] = figures(part, resamples=self.settings.resamples, seed=self.settings.seed)
        return out

    def _curves(self, group: Group) -> Curves:
        """Of one tile a place at first, then of more of each, up to `rate_tiles`."""
        turns: dict[str, int] = {}
        order = []
        for k, ground in enumerate(group.grounds):
            order.append((turns.get(ground, 0), k))
            turns[ground] = turns.get(ground, 0) + 1
        tiles = [group.tiles[k] for _, k in sorted(order)[: self.settings.rate_tiles]]
        sensor = group.sensor
        calibration = self._calibration(sensor)
        if not calibration:
            self.log(f"{group.title}: no training image has its bands, so the measured tiles rank the channels")
        return curves(
            self.vae, self.name, sensor, tiles, calibration or tiles[: self.settings.calibration_tiles],
            lambda k: self._klt(sensor, k), [c for c in self.codecs if c.available],
        )  # fmt: skip

    def _equal_bits(self, group: Group) -> Compared | None:
        """Codes and others at the bytes that codes take, over a group's tiles and places; None where there are no
        steps."""
        sensor, meta = group.sensor, self.vae.meta
        entry = None if meta is None else meta.coded(sensor.name, sensor.bands)
        if self.pack is None or entry is None or entry.code_steps is None:
            return None
        self.log(f"{group.title}: at equal bits")
        # As much as the network saw: images that lack bands too, those completed as its training completes them.
        if self._completed is None:
            self._completed = completed(self.images)
        how = self.settings
        klts = linear([*self._trained(sensor), *self._completed], sensor, how.draws, how.draw_seed, self.log)
        tiles = [t[:, : t.shape[1] // BLOCK * BLOCK, : t.shape[2] // BLOCK * BLOCK] for t in group.tiles]
        others = Yardsticks(klts, [c for c in self.codecs if c.available])
        return compare(self.vae, entry.code_steps, sensor, tiles, group.grounds, self.pack, others)

    def _calibration(self, sensor: TrainedSensor) -> list[Floats]:
        """The middle of some training images, each of another place."""
        return training_tiles(self.images, sensor)[: self.settings.calibration_tiles]


def _labels(group: Group) -> list[str]:
    return sorted({label for labels in group.covers for label in labels})


def cover_labels(listing: Path, root: Path) -> dict[str, tuple[str, ...]]:
    """Land-cover labels of the sources whose folder has a BigEarthNet `*_labels_metadata.json`, by the source's name.

    ValueError names a label file that cannot be read.
    """
    found = {}
    for source in read_listing(listing):
        folder = root / source.path
        for path in sorted(folder.glob("*_labels_metadata.json")) if folder.is_dir() else []:
            try:
                labels = json.loads(path.read_text(encoding="utf-8"))["labels"]
                found[source.name] = tuple(str(label) for label in labels)
            except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
                raise ValueError(f"{path}: no BigEarthNet labels in it (a JSON object with a list `labels`)") from None
    return found
