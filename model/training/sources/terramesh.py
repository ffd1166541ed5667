"""Reads TerraMesh: its published shard layout as a feed of patches, with a geographic split where one is wanted.

Layout (data set card and EO-VAE specification, section 10): `{train,val}/{modality}/{name}_shard_{number}.tar`, members
`{key}.zarr.zip`, each a Zarr group of format 2 with `bands` (1, C, 264, 264) at 10 m, `band`, `time`, `center_lon`,
`center_lat` and more. S2 is reflectance * 1e4, S1 dB, S2RGB 8-bit; S1RTC exists in the MajorTOM shards only, S1GRD in
the SSL4EO-S12 shards only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np

from model.sensors import SENSORS, Floats, TrainedSensor, own_names
from model.training.sources.ledger import Ledger
from model.training.sources.patch import BandError, Patch, Place
from model.training.sources.shards import Sample, Shard, find_shards, plain
from model.training.sources.splits import BlockSplit
from model.training.sources.stream import ShardStream, Worker
from model.training.sources.zarr_zip import ZarrZip

MODALITIES: Mapping[str, TrainedSensor] = {
    name: SENSORS[name] for name in ("S2L2A", "S2L1C", "S2RGB", "S1RTC", "S1GRD")
}
# From this moment on the published "corrected" variant (EO-VAE*) adds 1000 to S2L2A, and clips optical data.
_CORRECTED_FROM = 1_642_982_400_000_000_000  # 2022-01-24T00:00Z, in nanoseconds since 1970
_CORRECTED_RANGE = (0.0, 10_000.0)
SIDE = 264
SAMPLING = 10.0
SIZES = "sizes.json"


def decode(sample: Sample, modality: str, *, corrected: bool = False, placed: bool = True) -> Patch:
    """One modality of a sample as a patch, its bands in the sensor's order; unless `placed`, without its place.

    `corrected` is the published EO-VAE*: +1000 on S2L2A from 2022-01-24 on, S2L2A and S2L1C clipped to 0..10000; its
    statistics are not the legacy ones of `SENSORS`. Without it the numbers are as stored, which is what the released
    EO-VAE and its legacy statistics rest on.

    Raises:
        BandError: another number of bands than the sensor has: other data, no damage.
        ValueError: packed data that are damaged.
    """
    sensor = MODALITIES[modality]
    group = ZarrZip(sample.packed[modality])
    raw = group.array("bands")
    if raw.ndim == 4 and raw.shape[0] == 1:
        raw = raw[0]
    if raw.ndim != 3:
        raise ValueError(f"{modality}: bands of shape {raw.shape}, expected (1, {len(sensor.bands)}, y, x)")
    if len(raw) != len(sensor.bands):
        fewer = "fewer" if len(raw) < len(sensor.bands) else "more"
        raise BandError(
            f"{sample.key}: {modality} has {len(raw)} bands, {fewer} than the {len(sensor.bands)} it should"
        )
    said = group.band_names()
    names = None if said is None else own_names(said)
    if names is not None and set(names) == set(sensor.bands):
        raw = raw[[names.index(band) for band in sensor.bands]]
    data: Floats = np.array(raw, np.float32, order="C")  # a copy in any case: what was unpacked may be read-only
    if corrected and modality in ("S2L2A", "S2L1C"):
        moment = group.time()
        if moment is None:
            raise ValueError(f"{modality}: the sample says no time, so the offset cannot be corrected")
        data = _corrected(data, modality, moment)
    return Patch(sample.key, sensor.bands, data, _place(group, raw.shape[-1]) if placed else None)


def _corrected(data: Floats, modality: str, moment: int) -> Floats:
    if modality == "S2L2A" and moment >= _CORRECTED_FROM:
        data = data + np.float32(1000)
    return np.clip(data, *_CORRECTED_RANGE).astype(np.float32)


def _place(group: ZarrZip, side: int) -> Place | None:
    lon, lat = group.scalar("center_lon"), group.scalar("center_lat")
    return None if lon is None or lat is None else Place(lon, lat, side * SAMPLING / 2)


@dataclass(slots=True)
class TerraMesh:
    """A feed over aligned shards: each sample serves one batch, as whichever of its modalities that batch asks for.

    As published, all `modalities` of a sample are read and one of them is used. Where the network is what limits, give
    each modality a feed of its own and draw from a `Mixture` of them. With a `split` (and its `rule`) only samples of
    that split are given; one that does not say where it lies is left out.
    """

    stream: ShardStream
    corrected: bool = False
    rule: BlockSplit | None = None
    split: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.rule is None) != (self.split is None):
            raise ValueError("a split needs its rule (block and margin in metres), and a rule a split")
        if self.rule is not None and self.split is not None:
            self.rule.check(self.split)
        strangers = [m for m in self.sensors if m not in MODALITIES]
        if strangers:
            raise ValueError(f"no sensor for {', '.join(strangers)} of TerraMesh: there are {', '.join(MODALITIES)}")

    @classmethod
    def open(
        cls,
        url: str,
        modalities: Sequence[str],
        *,
        seed: int = 0,
        worker: Worker | None = None,
        buffer: int = 512,
        shuffle: bool = True,
        corrected: bool = False,
        rule: BlockSplit | None = None,
        split: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> TerraMesh:
        """The feed of the shards at `url` (see `find_shards`); their sizes are taken from `sizes.json` beside them."""
        shards = find_shards(url, modalities, storage_options)
        stream = ShardStream(shards, seed, worker or Worker(), buffer, shuffle, storage_options)
        return cls(stream, corrected, rule, split, read_sizes(shards, storage_options))

    @property
    def sensors(self) -> tuple[str, ...]:
        """The modalities of the stream."""
        return tuple(modality for modality, _ in self.stream.shards[0].urls)

    @property
    def ledger(self) -> Ledger:
        """What was left out so far."""
        return self.stream.ledger

    @property
    def patches_per_epoch(self) -> int | None:
        """This worker's samples an epoch; None without the shards' sizes, or with a split, whose share is not known."""
        return None if self.rule is not None else self.stream.share(self.sizes)

    def next(self, sensor: str) -> Patch:
        """The next sample as this modality; those that are damaged or of other splits are passed over.

        Raises:
            BandError: the sample has another number of bands than the sensor.
            ValueError: a whole epoch gave none.
        """
        began = self.stream.epoch
        for sample in self.stream:
            patch = self._use(sample, sensor)
            if patch is not None:
                return patch
            if self.stream.epoch > began + 1:
                break
        of_split = f" of split {self.split}" if self.split else ""
        raise ValueError(f"a whole epoch gave no sample of {sensor}{of_split}: {self.ledger.excuse()}")

    def skip(self, name: str, why: str) -> None:
        """Note a patch that could not be used."""
        self.ledger.add("sample", name, why)

    def in_order(self) -> TerraMesh:
        """All of the same shards in their own order, split or not, without a buffer to fill: to look at a first one."""
        stream = ShardStream(self.stream.shards, buffer=1, shuffle=False, storage_options=self.stream.storage_options)
        return TerraMesh(stream, self.corrected)

    def state_dict(self) -> dict[str, Any]:
        """The stream's state."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. ValueError where it is of other data."""
        self.stream.load_state_dict(state)

    def _use(self, sample: Sample, sensor: str) -> Patch | None:
        try:
            patch = decode(sample, sensor, corrected=self.corrected, placed=self.rule is not None)
        except BandError:
            raise
        except ValueError as error:
            self.skip(f"{sample.shard}/{sample.key}", str(error))
            return None
        if self.rule is None:
            return patch
        if patch.place is None:
            self.skip(f"{sample.shard}/{sample.key}", "it does not say where it lies, so it is of no split")
            return None
        return patch if self.rule.split_of(patch.place) == self.split else None


def read_sizes(shards: Sequence[Shard], storage_options: Mapping[str, Any] | None = None) -> dict[str, int]:
    """`sizes.json` beside the first modality's shards ({file name: samples}), or nothing where there is none."""
    url = shards[0].urls[0][1]
    place = f"{url.rsplit('/', 1)[0]}/{SIZES}" if "/" in url else str(PurePosixPath(url).with_name(SIZES))
    files, path = fsspec.core.url_to_fs(place, **dict(storage_options or {}))
    try:
        document = json.loads(files.cat_file(path))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{plain(place)} is no JSON: {error}") from None
    return {str(name): int(number) for name, number in document.items()}
