"""Reads TerraMesh's shards once, in order, as batches to be measured: one modality and the land cover beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import fsspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.evaluation.land_cover import UNLABELLED
from model.sensors import Floats, TrainedSensor
from model.training.sources.batching import resized
from model.training.sources.ledger import Ledger
from model.training.sources.patch import BandError
from model.training.sources.shards import Sample, Shard, ShardError, find_shards, plain, read_shard
from model.training.sources.terramesh import decode
from model.training.sources.zarr_zip import ZarrZip

LULC = "LULC"


@dataclass(frozen=True, slots=True)
class Samples:
    """B samples: keys, z-scores (B, C, side, side) float32, and land cover (B, side, side) or `UNLABELLED`."""

    keys: tuple[str, ...]
    z: Tensor
    labels: Tensor


def pattern(url: str) -> str:
    """What `find_shards` takes: a pattern as it is; a folder stands for all shards in its modalities' folders."""
    marked = any(mark in url for mark in "[{*") or url.endswith(".tar")
    return url if marked else f"{url.rstrip('/')}/{{modality}}/*.tar"


def shards_of(url: str, modalities: Sequence[str]) -> dict[str, tuple[Shard, ...]]:
    """Modality -> its shards, each with the land cover's tar where `url` leads to one.

    Modalities are found one by one: S1RTC and S1GRD have no shard in common. Whether a tar named by a pattern is there
    shows when it is read.

    Raises:
        ValueError: a modality without shards, several of them in a URL without a place for them, or no access.
    """
    template = pattern(url)
    try:
        found = {modality: find_shards(template, [modality]) for modality in modalities}
        try:
            covers = {shard.name: shard.urls[0][1] for shard in find_shards(template, [LULC])}
        except ValueError:  # none listed: no breakdown by land cover
            covers = {}
    except ValueError as error:
        raise ValueError(plain(str(error))) from None
    except Exception as error:  # each file system raises errors of its own
        why = plain(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise ValueError(f"{plain(url)}: shards cannot be listed ({why}): check the URL and the access") from None
    first = {shards[0].urls[0][1] for shards in found.values()}
    if len(first) < len(found):
        raise ValueError(f"{plain(url)} has no place for {len(found)} modalities: write [{','.join(modalities)}] in it")
    return {modality: tuple(_covered(shard, covers) for shard in shards) for modality, shards in found.items()}


def _covered(shard: Shard, covers: Mapping[str, str]) -> Shard:
    cover = covers.get(shard.name)
    if cover is None or cover == shard.urls[0][1]:  # a URL without a place for a modality is the same for all
        return shard
    return replace(shard, urls=(*shard.urls, (LULC, cover)))


@dataclass(slots=True)
class Reader:
    """All samples of `shards`, or the first `limit`, in their order; what cannot be measured is named in `ledger`.

    Each is z-scored by `sensor` and then brought to `side` pixels, bilinear, as published; land cover goes to the
    nearest. Batches are of `batch` samples that can be measured, the last may have fewer: one is held at a time.
    `read` counts the samples met so far, those left out included. A sample whose land cover is damaged is measured
    without it, and named too.

    Raises (while iterating):
        BandError: samples of other bands than the modality's: other data, no damage.
    """

    shards: Sequence[Shard]
    modality: str
    sensor: TrainedSensor
    side: int = 256
    batch: int = 16
    limit: int | None = None
    corrected: bool = False
    ledger: Ledger = field(default_factory=Ledger)
    read: int = field(init=False, default=0)

    def __iter__(self) -> Iterator[Samples]:
        held: list[tuple[str, Floats, Tensor]] = []
        for sample in self._samples():
            self.read += 1
            z = self._pixels(sample)
            if z is not None:
                held.append((sample.key, resized(z, self.side), self._labels(sample, z.shape[-2:])))
            if len(held) == self.batch:
                yield _together(held)
                held = []
        if held:
            yield _together(held)

    def _samples(self) -> Iterator[Sample]:
        for shard in self.shards:
            if self.read == self.limit:
                return
            try:
                for sample in read_shard(self._present(shard), lambda _: True, incomplete=self._incomplete):
                    yield sample
                    if self.read == self.limit:
                        return
            except ShardError as error:
                self.ledger.add("shard", shard.name, str(error))

    def _present(self, shard: Shard) -> Shard:
        """The shard without its land cover where that tar is not there: SSL4EO's and MajorTOM's may differ in that."""
        for modality, url in shard.urls:
            if modality == LULC:
                files, path = fsspec.core.url_to_fs(url)
                try:
                    there = files.exists(path)
                except Exception:  # each file system raises errors of its own; reading tries again, and names it
                    there = True
                if not there:
                    return replace(shard, urls=shard.urls[:1])
        return shard

    def _incomplete(self, key: str, why: str) -> None:
        self.ledger.add("sample", key, why)

    def _pixels(self, sample: Sample) -> Floats | None:
        """z-scores (C, H, W) in the sensor's own order of bands."""
        try:
            patch = decode(sample, self.modality, corrected=self.corrected, placed=False)
        except BandError:
            raise
        except ValueError as error:
            self.ledger.add("sample", f"{sample.shard}/{sample.key}", str(error))
            return None
        if not np.isfinite(patch.data).all():
            self.ledger.add("sample", f"{sample.shard}/{sample.key}", "pixels that are not finite")
            return None
        return self.sensor.zscore(patch.data[[patch.bands.index(band) for band in self.sensor.bands]])

    def _labels(self, sample: Sample, shape: tuple[int, ...]) -> Tensor:
        """(side, side) int64."""
        packed = sample.packed.get(LULC)
        if packed is not None:
            try:
                codes = np.asarray(ZarrZip(packed).array("bands")).astype(np.float32)
                if codes.size != np.prod(shape) or codes.shape[-2:] != shape or not (codes % 256 // 1 == codes).all():
                    raise ValueError(f"{LULC} of shape {codes.shape}, expected classes 0 to 255 of (1, 1, y, x)")
                whole = torch.from_numpy(codes.reshape(1, 1, *shape))
                # Pixel centres as the bilinear resampling has them: plain "nearest" is half a pixel aside.
                return F.interpolate(whole, size=(self.side, self.side), mode="nearest-exact")[0, 0].long()
            except ValueError as error:
                self.ledger.add("land cover", f"{sample.shard}/{sample.key}", str(error))
        return torch.full((self.side, self.side), UNLABELLED)


def ahead(batches: Iterator[Samples]) -> Iterator[Samples]:
    """The same batches, the next one read on a thread while one is measured."""
    with ThreadPoolExecutor(1, "read") as reader:
        coming = reader.submit(next, batches, None)
        while (one := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield one


def _together(held: Sequence[tuple[str, Floats, Tensor]]) -> Samples:
    z = torch.from_numpy(np.stack([z for _, z, _ in held]))
    return Samples(tuple(key for key, _, _ in held), z, torch.stack([labels for _, _, labels in held]))
