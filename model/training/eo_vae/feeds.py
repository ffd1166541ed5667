"""Opens what a finetuning reads: TerraMesh's shards or local rasters, as batches to train on and held out."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from model.sensors import CORRECTED, SENSORS, TrainedSensor
from model.training.batch import Batch
from model.training.eo_vae.recipe import EOVAERecipe
from model.training.sources.augment import Augmentation
from model.training.sources.batching import PatchBatches
from model.training.sources.data_file import Opener, open_data, splits_of
from model.training.sources.indexed import IndexedFeed
from model.training.sources.mixture import Mixture
from model.training.sources.patch import BatchSource, Feed
from model.training.sources.rasters import RasterPatches
from model.training.sources.splits import BlockSplit
from model.training.sources.statistics import some, with_statistics
from model.training.sources.stream import Worker
from model.training.sources.terramesh import MODALITIES, TerraMesh

log = logging.getLogger(__name__)
TRAIN, HELD_OUT, VALIDATION = "train", "held out", "val"
HELD_BATCHES, MEASURED = 8, 256


@dataclass(frozen=True, slots=True)
class Data:
    """`source` are this worker's batches; `held_out` fixed ones of other ground, the same for every worker, empty where
    there is no such ground; `sensors` what the batches are of."""

    source: BatchSource
    held_out: Sequence[Batch]
    sensors: Mapping[str, TrainedSensor]


def _batches(feed: Feed, sensors: Mapping[str, TrainedSensor], recipe: EOVAERecipe, worker: Worker) -> PatchBatches:
    published = recipe.augment == "symmetries"
    return PatchBatches(
        feed, sensors, seed=recipe.seed, worker=worker.index, fit="resize" if published else "crop",
        turns="batch" if published else "patch", how=None if published else Augmentation(),
    )  # fmt: skip


def _held(feed: Feed, sensors: Mapping[str, TrainedSensor], recipe: EOVAERecipe) -> list[Batch]:
    """A few fixed batches, of every sensor in turn."""
    stage = recipe.stages[-1]
    size = min(stage.batch, 8)
    batches: list[Batch] = []
    for name in feed.sensors:
        source = PatchBatches(feed, sensors, {name: 1.0}, seed=recipe.seed, fit="resize", turns="batch")
        batches += [source.draw(size, stage.patch) for _ in range(max(1, HELD_BATCHES // len(feed.sensors)))]
    return batches


def _reader(recipe: EOVAERecipe, rank: int, world: int) -> Worker:
    """The worker's share of the data: all of it where every worker draws the whole batch."""
    return Worker() if recipe.division == "slices" else Worker(rank, world)


def modalities_of(pattern: str) -> list[str]:
    """The modalities that a pattern of shards names in brackets. ValueError where it names none."""
    named = re.search(r"\[([^\]]*)\]", pattern)
    if named is None:
        raise ValueError(f"shards {pattern!r} name no modalities: write them as [S2L2A,S1RTC]")
    return [modality.strip() for modality in named[1].split(",")]


def shards(recipe: EOVAERecipe, url: str, pattern: str, share: Worker | None = None) -> TerraMesh:
    """The feed of the shards of a pattern below `url`, corrected where the recipe is. ValueError for none."""
    return TerraMesh.open(
        f"{url.rstrip('/')}/{pattern}", modalities_of(pattern), seed=recipe.seed, worker=share or Worker(),
        corrected=recipe.corrected,
    )  # fmt: skip


def first_look(recipe: EOVAERecipe, url: str, pattern: str) -> None:
    """Read a first sample of each modality of a pattern's shards. ValueError where there is none."""
    feed = shards(recipe, url, pattern).in_order()
    for modality in feed.sensors:
        feed.next(modality)


def trained_as(
    recipe: EOVAERecipe, known: Mapping[str, TrainedSensor], names: Sequence[str] | None = None
) -> dict[str, TrainedSensor]:
    """The built-in sensors (or those of `names`) as a run of the recipe takes them that starts from weights that know
    `known`: with their wavelengths, and with their statistics unless the recipe's data are corrected."""
    table = {**SENSORS, **CORRECTED} if recipe.corrected else SENSORS
    wanted = {name: table[name] for name in names or table}
    trained = as_trained(wanted, known)
    if not recipe.corrected:
        return trained
    return {name: replace(sensor, mean=wanted[name].mean, std=wanted[name].std) for name, sensor in trained.items()}


def terramesh(
    recipe: EOVAERecipe, url: str, rank: int, world: int, sensors: Mapping[str, TrainedSensor] = MODALITIES
) -> Data:
    """The recipe's shards under `url`. ValueError where there are none."""
    worker = _reader(recipe, rank, world)
    feed = shards(recipe, url, recipe.shards, worker)
    held = _held(shards(recipe, url, recipe.held_out_shards), sensors, recipe) if recipe.held_out_shards else []
    used = {name: sensors[name] for name in feed.sensors}
    return Data(_batches(feed, used, recipe, worker), held, used)


def rasters(
    recipe: EOVAERecipe,
    listing: Path,
    root: Path,
    sensor: TrainedSensor,
    rank: int,
    world: int,
    *,
    measure: bool = False,
) -> Data:
    """The listing's georeferenced rasters of one sensor, split by blocks of ground.

    With `measure` the sensor's statistics are computed from the training patches first, and logged. ValueError where
    there are no data, or fewer bands than the sensor has.
    """
    size = max(stage.patch for stage in recipe.stages)
    # half overlapping, so that cutting at a fixed grid costs no variety
    patches = RasterPatches.open(
        listing, root, sensor.name, size, max(1, size // 2), sensors={**SENSORS, sensor.name: sensor}
    )
    rule = BlockSplit(
        recipe.block, recipe.margin, {TRAIN: 1 - recipe.held_out_share, HELD_OUT: recipe.held_out_share}, recipe.seed
    )
    counts = {split: len(rule.select(patches.places, split)) for split in (TRAIN, HELD_OUT)}
    if not all(counts.values()):
        log.warning(
            "%d patches of %s lie in too few blocks of %g m to hold some out: all are trained on, no held-out figures",
            len(patches.places), sensor.name, recipe.block,
        )  # fmt: skip

    def feed(split: str, worker: Worker) -> IndexedFeed:
        chosen = (rule, split) if all(counts.values()) else (None, None)
        return IndexedFeed(patches, recipe.seed, worker, *chosen)

    worker = _reader(recipe, rank, world)
    if measure:
        first = feed(TRAIN, Worker())
        sensor = with_statistics(sensor, some(first, sensor.name, min(MEASURED, first.patches_per_epoch or MEASURED)))
        first.close()
    sensors = {sensor.name: sensor}
    held: list[Batch] = []
    if all(counts.values()):
        held = _held(feed(HELD_OUT, Worker()), sensors, recipe)
    return Data(_batches(feed(TRAIN, worker), sensors, recipe, worker), held, sensors)


def from_file(
    recipe: EOVAERecipe,
    path: Path,
    rank: int,
    world: int,
    sensors: Mapping[str, TrainedSensor],
    kinds: Mapping[str, Opener],
    *,
    measure: str | None = None,
) -> Data:
    """The sources of a data file (`sources.data_file`): its split "train", and fixed batches of "val" where it has one.

    `measure` names a sensor whose statistics are computed from the training patches first, and logged. ValueError
    where the file or its data cannot serve.
    """
    splits = splits_of(path)
    if splits and TRAIN not in splits:
        raise ValueError(f"{path.name}: its split has {', '.join(splits)}, but training needs one called {TRAIN}")
    worker, seed = _reader(recipe, rank, world), recipe.seed

    def mixture(split: str | None, share: Worker, known: Mapping[str, TrainedSensor]) -> Mixture:
        return open_data(
            path, split=split, seed=seed, worker=share, sensors=known, kinds=kinds, corrected=recipe.corrected
        )

    known = dict(sensors)
    if measure is not None:
        whole = mixture(TRAIN if splits else None, Worker(), known)
        feeds = [s.feed for s in whole.sources.values() if isinstance(s, PatchBatches) and measure in s.feed.sensors]
        if not feeds:
            raise ValueError(f"{path.name} has no source of {measure}, the sensor to train for")
        count = min(MEASURED, feeds[0].patches_per_epoch or MEASURED)
        known[measure] = with_statistics(known[measure], some(feeds[0], measure, count))
    source = mixture(TRAIN if splits else None, worker, known)
    stage, held = recipe.stages[-1], []
    if VALIDATION in splits:
        other = mixture(VALIDATION, Worker(), known)
        held = [other.draw(min(stage.batch, 8), stage.patch) for _ in range(HELD_BATCHES)]
    else:
        log.warning("%s has no split called %s: no held-out figures", path.name, VALIDATION)
    names = dict.fromkeys(name for s in source.sources.values() if isinstance(s, PatchBatches) for name in s.mix)
    return Data(source, held, {name: known[name] for name in names if name in known})


def try_out(data: Data, recipe: EOVAERecipe) -> None:
    """Draw a patch of each source as each sensor of its mix, at the largest size, and give the sources up.

    What cannot serve (files that are not there, other bands than the sensor's, patches smaller than a stage's) is so
    refused before a run takes its name and starts workers. ValueError, naming the source.
    """
    size = max(stage.patch for stage in recipe.stages)
    sources = data.source.sources if isinstance(data.source, Mixture) else {"": data.source}
    for name, source in sources.items():
        if not isinstance(source, PatchBatches):
            continue
        feed = source.feed.in_order() if isinstance(source.feed, TerraMesh) else source.feed
        try:
            for sensor in source.mix:
                replace(source, feed=feed, mix={sensor: 1.0}).draw(1, size)
        except ValueError as error:
            raise ValueError(f"source {name}: {error}" if name else str(error)) from None
        finally:
            if isinstance(feed, IndexedFeed):
                feed.close()


@contextmanager
def listing_of_folder(
    folder: Path, sensor: TrainedSensor, scale: float, offset: float, nodata: float | None
) -> Iterator[Path]:
    """A listing of every GeoTIFF in a folder as an image of `sensor`, while the context lasts.

    A raster's bands are found by their descriptions where those name all of the sensor's, else they are the sensor's in
    its order. Values become raw * scale + offset. ValueError where there is none, or one has fewer bands.
    """
    import rasterio

    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".tif", ".tiff")) if folder.is_dir() else []
    if not found:
        raise ValueError(f"no GeoTIFF in {folder}: --data names the folder of the sensor's rasters, or give --listing")
    entries = []
    for path in found:
        with rasterio.open(path) as dataset:
            names, gsd = [str(d or "") for d in dataset.descriptions], abs(dataset.transform.a)
            if dataset.crs is not None and dataset.crs.is_geographic:
                raise ValueError(f"{path.name} is in degrees: bring it to a projection in metres first")
        if set(sensor.bands) <= set(names):
            bands = names
        elif len(names) == len(sensor.bands):
            bands = list(sensor.bands)
        else:
            fewer = "fewer" if len(names) < len(sensor.bands) else "more"
            raise ValueError(
                f"{path.name} has {len(names)} bands, {fewer} than the {len(sensor.bands)} of {sensor.name} "
                f"({', '.join(sensor.bands)}), and its descriptions do not name them"
            )
        entries.append(
            {"name": path.stem, "place": path.stem, "sensor": sensor.name, "kind": "rasters", "path": ".",
             "parts": {path.name: bands}, "gsd": gsd, "scale": scale, "offset": offset, "nodata": nodata}
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as where:
        listing = Path(where) / f"{folder.name}.yaml"
        listing.write_text(yaml.safe_dump({"sources": entries}))
        yield listing


def as_trained(sensors: Mapping[str, TrainedSensor], known: Mapping[str, TrainedSensor]) -> dict[str, TrainedSensor]:
    """`sensors`, each with the wavelengths and statistics of `known` where those are of the same bands: weights keep
    the (partly wrong) wavelengths that they were trained with."""
    return {
        name: replace(known[name], gsd=sensor.gsd) if name in known and known[name].bands == sensor.bands else sensor
        for name, sensor in sensors.items()
    }
