"""TerraMesh samples: unpacked as published, bands in order, damaged ones passed over, splits by place."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from model.sensors import S2L2A, SENSORS
from model.training.sources.batching import PatchBatches
from model.training.sources.patch import BandError
from model.training.sources.shards import Sample, find_shards
from model.training.sources.splits import BlockSplit
from model.training.sources.stream import Worker
from model.training.sources.terramesh import MODALITIES, TerraMesh, decode
from model.training.sources.zarr_zip import ZarrZip
from tests.model.training import shards as make

MIX = ("S2L2A", "S1RTC", "S2RGB")


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards of three modalities, nine samples 0.2 degrees apart."""
    root = tmp_path_factory.mktemp("terramesh")
    return make.make_shards(root, MIX, (5, 4), tmp_path_factory.mktemp("scratch"), spread=0.2)


def sample(payload: bytes, modality: str = "S2L2A") -> Sample:
    return Sample("key", "shard.tar", 0, {modality: payload})


@pytest.mark.parametrize("modality", MIX)
def test_pixels_come_out_as_they_went_in(tmp_path: Path, modality: str) -> None:
    data = make.pixels(modality, 3)
    patch = decode(sample(make.zarr_zip(data, make.BANDS[modality], tmp_path, lon=7.5, lat=-3.25), modality), modality)
    assert patch.bands == MODALITIES[modality].bands
    assert patch.data.dtype == np.float32 and np.array_equal(patch.data, data.astype(np.float32))
    assert patch.place is not None
    assert (patch.place.lon, patch.place.lat, patch.place.half) == (7.5, -3.25, 200.0)


def test_bands_in_another_order_are_put_right_by_their_names(tmp_path: Path) -> None:
    data = make.pixels("S2L2A", 1)
    turned = make.zarr_zip(data[::-1], make.BANDS["S2L2A"][::-1], tmp_path)
    assert np.array_equal(decode(sample(turned), "S2L2A").data, data)


def test_fewer_bands_than_the_sensor_is_said_in_one_line(tmp_path: Path) -> None:
    few = make.zarr_zip(make.pixels("S2L2A", 1)[:10], make.BANDS["S2L2A"][:10], tmp_path / "few")
    with pytest.raises(BandError, match=r"^key: S2L2A has 10 bands, fewer than the 12 it should$"):
        decode(sample(few), "S2L2A")
    make.write_tar(tmp_path / "S2L2A" / "a.tar", [("k", few)] * 2)
    feed = TerraMesh.open(f"{tmp_path}/{{modality}}/a.tar", ["S2L2A"])
    with pytest.raises(BandError, match="10 bands, fewer than the 12 it should"):
        feed.next("S2L2A")


@pytest.mark.parametrize(("time", "added"), [("2022-01-23T23:59:59", 0), ("2022-01-24T00:00:00", 1000)])
def test_the_corrected_variant_adds_the_offset_from_its_day_on_and_clips(tmp_path: Path, time: str, added: int) -> None:
    data = make.pixels("S2L2A", 1)
    data[0, 0, :2] = (-50, 12000)
    packed = sample(make.zarr_zip(data, make.BANDS["S2L2A"], tmp_path, time=time))
    assert np.array_equal(decode(packed, "S2L2A", corrected=True).data, np.clip(data.astype(float) + added, 0, 10000))
    assert np.array_equal(decode(packed, "S2L2A").data, data)  # as stored: what the released statistics rest on


@pytest.mark.parametrize("units", ["days since 2021-07-23 13:22:41", "seconds since 1970-01-01T00:00:00"])
def test_time_is_read_in_any_cf_units(tmp_path: Path, units: str) -> None:
    raw = make.zarr_zip(make.pixels("S2RGB", 0), make.BANDS["S2RGB"], tmp_path)
    value = {"days": 0, "seconds": 1_627_046_561}[units.split()[0]]
    files = {n: zipfile.ZipFile(BytesIO(raw)).read(n) for n in zipfile.ZipFile(BytesIO(raw)).namelist()}
    meta = json.loads(files["time/.zarray"]) | {"compressor": None}
    files |= {
        "time/.zarray": json.dumps(meta).encode(),
        "time/.zattrs": json.dumps({"units": units}).encode(),
        "time/0": np.array([value], "<i8").tobytes(),
    }
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert ZarrZip(packed.getvalue()).time() == 1_627_046_561_000_000_000


@pytest.mark.parametrize("how", [{}, {"compressors": None}, {"chunks": (1, 2, 16, 40)}, {"order": "F"}])
def test_arrays_are_read_however_they_are_stored(tmp_path: Path, how: dict[str, Any]) -> None:
    """One plain chunk is unpacked directly, all else by zarr."""
    data = make.pixels("S2L2A", 2)[None]
    group = zarr.open_group(tmp_path / "sample.zarr", mode="w", zarr_format=2)
    stored: dict[str, Any] = {"chunks": data.shape} | how
    group.create_array("bands", shape=data.shape, dtype=data.dtype, **stored)[...] = data
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for file in sorted(p for p in (tmp_path / "sample.zarr").rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(tmp_path / "sample.zarr").as_posix())
    assert np.array_equal(ZarrZip(packed.getvalue()).array("bands"), data)


def damaged(payload: bytes, how: str) -> bytes:
    if how == "no zip":
        return b"not a zip at all"
    if how == "cut off":
        return payload[: len(payload) // 2]
    archive = zipfile.ZipFile(BytesIO(payload))
    if how == "flipped bit":
        at = payload.index(b"bands/0.0.0.0") + 200
        return payload[:at] + bytes([payload[at] ^ 0xFF]) + payload[at + 1 :]
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as copy:
        for name in archive.namelist():
            if how == "chunk missing" and name == "bands/0.0.0.0":
                continue
            copy.writestr(
                name, b"rubbish" if how == "chunk rubbish" and name == "bands/0.0.0.0" else archive.read(name)
            )
    return out.getvalue()


@pytest.mark.parametrize("how", ["no zip", "cut off", "flipped bit", "chunk missing", "chunk rubbish"])
def test_a_damaged_sample_is_passed_over_counted_and_named(tmp_path: Path, how: str) -> None:
    whole = [make.zarr_zip(make.pixels("S2RGB", i), make.BANDS["S2RGB"], tmp_path / "z") for i in range(4)]
    members = [(f"k{i}", damaged(p, how) if i == 2 else p) for i, p in enumerate(whole)]
    make.write_tar(tmp_path / "S2RGB" / "a.tar", members)
    feed = TerraMesh.open(f"{tmp_path}/S2RGB/a.tar", ["S2RGB"], shuffle=False)
    assert [feed.next("S2RGB").name for _ in range(3)] == ["k0", "k1", "k3"]
    assert feed.ledger.counts == {"sample": 1}
    assert feed.ledger.entries[0][:2] == ("sample", "a.tar/k2") and "\n" not in feed.ledger.entries[0][2]


def test_only_samples_of_the_split_are_given_and_they_are_the_rules(pattern: str) -> None:
    rule = BlockSplit(20_000, 2_000, {"train": 0.5, "val": 0.5}, seed=4)
    every = TerraMesh.open(pattern, MIX, shuffle=False)
    expected: dict[str | None, list[str]] = {"train": [], "val": [], None: []}
    for packed in islice(every.stream, 9):
        patch = decode(packed, "S2RGB")
        assert patch.place is not None
        expected[rule.split_of(patch.place)].append(patch.name)
    assert all(expected.values())  # the seed leaves some to each, and some near a border
    for split in ("train", "val"):
        feed = TerraMesh.open(pattern, MIX, shuffle=False, rule=rule, split=split)
        assert [feed.next("S2RGB").name for _ in expected[split]] == expected[split]
        assert feed.stream.epoch == 0 and feed.patches_per_epoch is None
    with pytest.raises(ValueError, match="no split 'dev': there are train, val"):
        TerraMesh.open(pattern, MIX, rule=rule, split="dev")


def test_a_split_without_any_sample_ends_with_one_line(pattern: str) -> None:
    rule = BlockSplit(20_000, 0, {"train": 1.0, "val": 0.0})
    with pytest.raises(ValueError, match=r"gave no sample of S2RGB of split val"):
        TerraMesh.open(pattern, MIX, rule=rule, split="val").next("S2RGB")


def test_a_sample_without_a_place_is_of_no_split(tmp_path: Path) -> None:
    payload = make.zarr_zip(make.pixels("S2RGB", 0), make.BANDS["S2RGB"], tmp_path / "z", place=False)
    make.write_tar(tmp_path / "S2RGB" / "a.tar", [("k", payload)])
    feed = TerraMesh.open(f"{tmp_path}/S2RGB/a.tar", ["S2RGB"], rule=BlockSplit(10_000, 0, {"train": 1}), split="train")
    with pytest.raises(ValueError, match="does not say where it lies"):
        feed.next("S2RGB")


def test_steps_an_epoch_come_from_the_sizes_beside_the_shards(pattern: str) -> None:
    shards = find_shards(pattern, MIX)
    sizes = {"majortom_shard_000001.tar": 5, "majortom_shard_000002.tar": 4}
    assert PatchBatches(TerraMesh.open(pattern, MIX), SENSORS).steps_per_epoch(2) is None
    beside = Path(shards[0].urls[0][1]).with_name("sizes.json")
    beside.write_text(json.dumps(sizes))
    try:
        assert PatchBatches(TerraMesh.open(pattern, MIX), SENSORS).steps_per_epoch(2) == 4
        halves = [TerraMesh.open(pattern, MIX, worker=Worker(i, 2)).patches_per_epoch for i in range(2)]
        assert sorted(n for n in halves if n is not None) == [4, 5]
    finally:
        beside.unlink()


def test_batches_resume_to_the_bit_with_the_modality_of_each(pattern: str) -> None:
    def source() -> PatchBatches:
        mix = {"S2L2A": 1.0, "subset": 1.0, "RGBN": 0.5, "S1RTC": 1.0}
        return PatchBatches(TerraMesh.open(pattern, MIX, seed=2, buffer=4), SENSORS, mix, seed=2)

    first, second = source(), source()
    for _ in range(4):
        first.draw(2, 32)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    seen = set()
    for _ in range(12):
        a, b = first.draw(2, 32), second.draw(2, 32)
        seen.add((a.sensor.name, len(a.sensor.bands)))
        assert a.sensor == b.sensor and np.array_equal(a.x, b.x)
        assert a.x.shape == (2, len(a.sensor.bands), 32, 32)
    assert {"S2L2A", "S1RTC"} <= {name for name, _ in seen} and ("S2L2A", 4) in seen


def test_z_scores_are_those_of_the_table(pattern: str) -> None:
    feed = TerraMesh.open(pattern, ["S2L2A"], shuffle=False)
    (x,) = PatchBatches(feed, SENSORS).draw(1, 40).x.numpy()
    expected = (make.pixels("S2L2A", 0) - np.array(S2L2A.mean)[:, None, None]) / np.array(S2L2A.std)[:, None, None]
    turned = [f(np.rot90(expected, k, (1, 2))) for k in range(4) for f in (np.asarray, lambda a: a[..., ::-1])]
    assert min(np.abs(x - t).max() for t in turned) < 1e-5


def test_a_sensor_without_statistics_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match="no statistics for S2L2A"):
        PatchBatches(TerraMesh.open(pattern, ["S2L2A"]), {"S1RTC": SENSORS["S1RTC"]})


@pytest.mark.real
def test_real_tiles_come_out_of_shards_as_they_are_in_their_rasters(shared_dir: Path, tmp_path: Path) -> None:
    import rasterio

    folder = shared_dir / "data" / "raw" / "terramesh"
    names = sorted(p.stem for p in (folder / "S2L2A").glob("*.tif"))
    for modality, bands in (("S2L2A", S2L2A.bands), ("S1RTC", ("vv", "vh"))):
        members = []
        for name in names:
            with rasterio.open(folder / modality / f"{name}.tif") as file:
                data = file.read()
            packed = data.astype(np.int16 if modality == "S2L2A" else np.float16)
            members.append((name, make.zarr_zip(packed, bands, tmp_path / "z")))
        make.write_tar(tmp_path / modality / "majortom_shard_000001.tar", members)
    feed = TerraMesh.open(f"{tmp_path}/{{modality}}/*.tar", ["S2L2A", "S1RTC"], shuffle=False)
    for name, modality in zip(names, ("S2L2A", "S1RTC", "S2L2A"), strict=True):
        patch = feed.next(modality)
        with rasterio.open(folder / modality / f"{name}.tif") as file:
            assert patch.name == name and np.array_equal(patch.data, file.read().astype(np.float32))
