"""Opens the data of a training run from one YAML file: sources, their shares, and the geographic split they obey.

    sources:
      - kind: terramesh                   # shards over any fsspec URL
        url: s3://bucket/train/[S2L2A,S1RTC]/majortom_shard_{000001..000793}.tar
        modalities: [S2L2A, S1RTC]
        share: 0.7                        # chance of a batch (default 1, relative to the others)
        mix: {S2L2A: 0.5, subset: 0.2, RGBN: 0.1, S1RTC: 0.2}
        buffer: 512                       # samples that are shuffled among each other
        corrected: false                  # the published EO-VAE*'s offset and clipping
      - kind: rasters                     # local GeoTIFFs of any size, by a listing (model/training/sources/images.py)
        listing: listing.yaml
        root: data
        sensor: S2L2A
        size: 256
      - kind: stac                        # from a search; the job opens it, by eocube.cube.patches
        catalog: earth-search
        sensor: S2L2A
        bbox: [11.3, 48.0, 11.8, 48.3]
        datetime: 2024-06-01/2024-08-31
      - kind: cube-sources                # the source pixels of a cube, by its plan; not what the cube stores
        url: s3://bucket/munich.zarr
    split: {block: 50000, margin: 5000, shares: {train: 0.9, val: 0.05, test: 0.05}, seed: 0}
    fit: crop                             # or resize (published)
    turns: patch                          # or batch (published)
    augment: false                        # brightness, tilt and clouds of the nano recipe

Paths are relative to the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from model.forms import Form, Number, Text
from model.sensors import SENSORS, TrainedSensor
from model.training.sources.augment import Augmentation
from model.training.sources.batching import PatchBatches
from model.training.sources.indexed import IndexedFeed
from model.training.sources.mixture import Mixture
from model.training.sources.patch import Feed, PatchSet
from model.training.sources.rasters import RasterPatches
from model.training.sources.splits import BlockSplit
from model.training.sources.stream import Worker
from model.training.sources.terramesh import MODALITIES, TerraMesh

Opener = Callable[[Mapping[str, Any]], PatchSet]
# What a kind was called -> what it is called: files from before are told so.
_RENAMED: Mapping[str, str] = {"cube": "cube-sources"}


class _File(Form):
    sources: list[Any]
    split: Any = None
    fit: str = "crop"
    turns: str = "patch"
    augment: bool = False


class _Split(Form):
    block: Number
    margin: Number
    shares: dict[Text, Number]
    seed: int = 0


class _Source(Form):
    kind: str
    share: Number = 1.0
    mix: dict[str, Number] = Field(default_factory=dict)
    name: Text | None = None


class _TerraMesh(_Source):
    url: str
    modalities: list[str]
    buffer: int = 512
    corrected: bool = False
    storage_options: dict[str, Any] | None = None


class _Rasters(_Source):
    listing: str
    root: str
    sensor: str
    size: int
    stride: int | None = None


def open_data(
    path: Path,
    *,
    split: str | None = None,
    seed: int = 0,
    worker: Worker | None = None,
    sensors: Mapping[str, TrainedSensor] | None = None,
    kinds: Mapping[str, Opener] | None = None,
    corrected: bool = False,
) -> Mixture:
    """The sources of a data file as one, of which `worker` sees its share.

    Args:
        path: the file.
        split: which of the file's splits is wanted; None where it has none.
        seed: of all order and chance; the same on every worker.
        worker: which of how many readers this is.
        sensors: sensors of one's own, over the built-in ones.
        kinds: how sources of further kinds are opened ("stac" and "cube-sources": `eocube.cube.patches.KINDS`).
        corrected: every source of TerraMesh is taken so, whatever the file says.

    Raises:
        ValueError: a file that is no such YAML, an unknown key or kind, or data that cannot serve; one line each.
        FileNotFoundError: a file that is not there.
    """
    document = yaml.safe_load(path.read_text())
    if not isinstance(document, dict) or not document.get("sources"):
        raise ValueError(f"{path.name} lists no data: it needs a list `sources` with one entry at least")
    file = _File.read(document, path.name)
    rule = _rule(file.split, split, path.name)
    known = {**SENSORS, **MODALITIES, **(sensors or {})}
    worker = worker or Worker()
    named: dict[str, PatchBatches] = {}
    shares: dict[str, float] = {}
    for number, entry in enumerate(file.sources):
        where = f"{path.name}: source {number + 1}"
        if corrected and isinstance(entry, Mapping) and entry.get("kind") == "terramesh":
            entry = {**entry, "corrected": True}
        source, feed = _feed(entry, where, path.parent, rule, split, seed + number, worker, known, kinds or {})
        name = source.name or f"{number + 1} {source.kind}"
        named[name] = PatchBatches(
            feed,
            known,
            source.mix,
            seed + number,
            worker.index,
            file.fit,
            file.turns,
            Augmentation() if file.augment else None,
        )
        shares[name] = source.share
    return Mixture(named, shares, seed)


def splits_of(path: Path) -> tuple[str, ...]:
    """The names of a data file's splits; none where it has no split."""
    document = yaml.safe_load(path.read_text())
    split = document.get("split") if isinstance(document, dict) else None
    shares = split.get("shares") if isinstance(split, dict) else None
    return tuple(str(name) for name in shares or ())


def _feed(
    entry: Mapping[str, Any],
    where: str,
    folder: Path,
    rule: BlockSplit | None,
    split: str | None,
    seed: int,
    worker: Worker,
    sensors: Mapping[str, TrainedSensor],
    kinds: Mapping[str, Opener],
) -> tuple[_Source, Feed]:
    kind = entry.get("kind") if isinstance(entry, Mapping) else None
    if kind == "terramesh":
        shards = _TerraMesh.read(entry, where)
        return shards, TerraMesh.open(
            shards.url,
            shards.modalities,
            seed=seed,
            worker=worker,
            buffer=shards.buffer,
            corrected=shards.corrected,
            rule=rule,
            split=split,
            storage_options=shards.storage_options,
        )
    patches: PatchSet
    source: _Source
    if kind == "rasters":
        source = images = _Rasters.read(entry, where)
        if images.sensor not in sensors:
            raise ValueError(f"{where}: no sensor {images.sensor!r}: there are {', '.join(sensors)}")
        listing, root = folder / images.listing, folder / images.root
        patches = RasterPatches.open(listing, root, images.sensor, images.size, images.stride, sensors=sensors)
    elif str(kind) in kinds:
        common = _Source.model_fields
        source = _Source.read({key: value for key, value in entry.items() if key in common}, where)
        patches = kinds[source.kind]({key: value for key, value in entry.items() if key not in common})
    elif str(kind) in _RENAMED:
        raise ValueError(f"{where}: kind {kind!r} is called {_RENAMED[str(kind)]!r} now: write that")
    else:
        raise ValueError(f"{where}: no kind {kind!r}: there are {', '.join(('terramesh', 'rasters', *kinds))}")
    return source, IndexedFeed(patches, seed, worker, rule, split)


def _rule(document: Any, split: str | None, where: str) -> BlockSplit | None:
    if document is None:
        if split is not None:
            raise ValueError(f"{where} has no split, so there is no {split!r}: state block, margin and shares")
        return None
    given = _Split.read(document, f"{where}: split")
    rule = BlockSplit(given.block, given.margin, given.shares, given.seed)
    if split is None:
        raise ValueError(f"{where} has a split: say which of {', '.join(given.shares)} is wanted")
    rule.check(split)
    return rule
