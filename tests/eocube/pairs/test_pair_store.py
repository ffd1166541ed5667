"""Pair stores: what is encoded, receipts, resuming to the same bytes, statistics of training alone, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from eocube.errors import InputError, StoreError
from eocube.pairs.encoding import Made, PixelMaker
from eocube.pairs.pair_plan import PairPlan
from eocube.pairs.pair_store import PairStore
from eocube.pairs.pixel_pairs import NOWHERE, PairNote, rows_of
from eocube.pairs.sen2naip import Sen2Naip, naip
from eocube.pairs.wald import WaldPairs
from eocube.pairs.writing import write_pairs
from eocube.products.identity import digest
from eocube.products.lone_windows import HALO
from eocube.sensors.builtin import SENSORS
from model.fused import FusedEncoder
from model.wald import bicubic
from model.weights import load_weights
from tests.eocube.pair_world import BANDS, image, make_weights, objects_of, plan_in_units_of, write_area

SPLITS = ("train", "val")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


def pairs() -> WaldPairs:
    return WaldPairs(
        [image("a", (160, 160)), image("b", (96, 96), 1, epsg=None, transform=NOWHERE, level="S2L1C"),
         image("c", (128, 128), 2, split="val"), image("d", (128, 128), 3, split="test")], 4, 128, 32, 96
    )  # fmt: skip


def plan_of(source: WaldPairs, maker: PixelMaker, per_unit: int = 4, **how: Any) -> PairPlan:
    rows = rows_of(source.notes, splits=SPLITS, flips=2)
    return plan_in_units_of(PairPlan.of(rows, maker, image_splits=SPLITS, skipped=source.skipped, **how), per_unit)


@pytest.fixture(scope="module")
def made(weights: str, tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """10 training rows of two places, one of validation, in units of 4."""
    source = pairs()
    maker = PixelMaker(source, weights, upsampled=True, sharpened=True)
    return write_pairs(tmp_path_factory.mktemp("store") / "pairs.zarr", plan_of(source, maker), maker, threads=2)


def test_the_layout_is_what_xarray_opens(made: PairStore) -> None:
    opened = xr.open_zarr(made.target.url)
    assert dict(opened.lr.sizes) == {"pair": 11, "channel": 4, "lr_y": 4, "lr_x": 4}
    assert opened.hr.shape == opened.lr_up.shape == opened.lr_sharp.shape == (11, 4, 16, 16)
    assert float(abs(opened.lr_up - opened.lr_sharp).max()) > 0.01 and opened.hr.dtype == np.float16
    assert opened.lr_image.shape == (11, 4, 32, 32) and float(opened.hr_image.max()) < 1
    assert sorted(opened["split"].values) == ["train"] * 10 + ["val"] and (opened["status"] == 1).all()
    assert set(opened["level"].values[opened["place"].values == "b"]) == {"S2L1C"}
    assert sorted(set(opened["epsg"].values)) == [0, 32632] and np.isnan(opened.bounds.values).any()
    document = opened.attrs["eocube"]
    assert document["splits"] == {"train": 10, "val": 1} and document["side"] == 128
    assert document["resolutions"] == {"lr": [40.0], "hr": [10.0]}
    assert document["encoder"]["bands"] == list(BANDS) and document["encoder"]["sensor"] == "RGBN"
    assert document["source"]["mtf"] == {"B04": 0.24, "B03": 0.28, "B02": 0.26, "B08": 0.26}


def test_spaces_are_digests_of_windows_with_a_halo_at_their_resolution(made: PairStore) -> None:
    tables, spaces = made.tables, made.document["spaces"]
    for which, px, metres in (("hr", 128, 10), ("lr", 32, 40)):
        ids = {side: set(tables[f"{which}_space"][tables["side"] == side]) for side in (96, 128)}
        assert all(len(found) == 1 for found in ids.values()) and ids[96] != ids[128]
        meaning = spaces[which][ids[128].pop()]
        assert digest(meaning) in spaces[which]
        assert (meaning["core"], meaning["halo"], meaning["resolution"]) == (px // 8, HALO // 8, metres)


def test_rows_are_what_the_production_encoder_makes_of_the_pixels(made: PairStore, weights: str) -> None:
    vae = load_weights(weights)
    assert vae.meta is not None
    sensor = SENSORS["RGBN"].with_weights(vae.meta)
    source, tables = pairs(), made.tables
    notes = {note.id: k for k, note in enumerate(source.notes)}
    for row in (0, 5, 10):
        note_id, flip, side = str(tables["id"][row]), int(tables["flip"][row]), int(tables["side"][row])
        pair = source.read(notes[note_id.partition("~")[0]])
        unit, place = divmod(row, made.per_unit)
        for which, core, around in (("lr", pair.lr, pair.lr_wide), ("hr", pair.hr, pair.hr_wide)):
            mirrored = np.pad(core, ((0, 0), (HALO, HALO), (HALO, HALO)), mode="reflect")
            wide = np.where(np.isfinite(around), around, mirrored)
            wide = np.rot90(wide, flip % 4, (1, 2))[..., ::-1] if flip >= 4 else np.rot90(wide, flip % 4, (1, 2))
            counts = torch.from_numpy(np.ascontiguousarray(np.rint((wide + 0.1) / 1e-4).astype(np.uint16)))
            encoder = FusedEncoder(vae, sensor, "cpu", torch.float32, 10, counts.shape[-1])
            cells = encoder({10: counts[None]})[0, :, 4:-4, 4:-4].numpy()
            stored, n = made.shard(which, unit)[place], cells.shape[-1]
            np.testing.assert_allclose(stored[:, :n, :n], cells.astype(np.float16), atol=2e-3)
            assert np.isnan(stored[:, n:]).all() and np.isnan(stored[:, :, n:]).all()
            image = made.physical(f"{which}_image", made.shard(f"{which}_image", unit)[place])
            px = core.shape[-1]
            expected = wide[:, HALO:-HALO, HALO:-HALO]
            np.testing.assert_allclose(image[:, :px, :px], expected, atol=6e-5)
            assert np.isnan(image[:, px:]).all()
        low = bicubic(torch.from_numpy(np.rint((_turned(pair.lr, flip) + 0.1) * 1e4)), 4).numpy()
        assert (
            np.isfinite(made.shard("lr_up", unit)[place][:, : side // 8, : side // 8]).all() and low.shape[-1] == side
        )


def _turned(x: np.ndarray, flip: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(x, flip % 4, (1, 2)))


def test_statistics_are_of_the_training_rows_as_stored(made: PairStore) -> None:
    train = made.tables["split"] == "train"
    for name in ("lr", "hr", "lr_up"):
        values = np.concatenate([made.shard(name, unit) for unit in range(3)])[train].astype(np.float64)
        values = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
        values = values[:, np.isfinite(values).all(0)]
        said = made.statistics[name]
        assert said["count"] == values.shape[1]
        np.testing.assert_allclose(said["mean"], values.mean(1), rtol=1e-9)
        np.testing.assert_allclose(said["std"], values.std(1), rtol=1e-9)


class Stops(PixelMaker):
    """Fails at the so manieth row, as a kill would end it: what was written stays."""

    rows = 6

    def make(self, source: int, note: PairNote, images: bool) -> Made | None:
        self.rows -= 1
        if self.rows < 0:
            raise KeyboardInterrupt
        return super().make(source, note, images)


def test_a_store_that_was_interrupted_has_the_same_bytes_in_the_end(
    made: PairStore, weights: str, tmp_path: Path
) -> None:
    source, url = pairs(), tmp_path / "pairs.zarr"
    stops = Stops(source, weights, upsampled=True, sharpened=True)
    with pytest.raises(KeyboardInterrupt):
        write_pairs(url, plan_of(source, stops), stops, threads=1)
    with pytest.raises(StoreError, match="not finished: run the command that began it again"):
        PairStore.open(url)
    receipt = (url / "commits" / "00000000.json").read_bytes()
    (url / "commits" / "00000001.json").write_bytes(receipt[:50])  # torn: its unit is done again
    maker, seen = PixelMaker(source, weights, upsampled=True, sharpened=True), []
    write_pairs(url, plan_of(source, maker), maker, threads=2, told=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert objects_of(url) == objects_of(made.target.url)
    # And a finished one is left as it is.
    seen.clear()
    write_pairs(url, plan_of(source, maker), maker, told=lambda done, total: seen.append((done, total)))
    assert seen == [(3, 3)] and objects_of(url) == objects_of(made.target.url)


def test_damage_is_named(made: PairStore, tmp_path: Path) -> None:
    for key, data in objects_of(made.target.url).items():
        (tmp_path / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / key).write_bytes(data)
    copy = PairStore.open(tmp_path)
    assert copy.verify() == []
    path = tmp_path / "hr/c/1/0/0/0"
    path.write_bytes(path.read_bytes()[:-7] + b"damaged")
    assert copy.verify() == ["hr/c/1/0/0/0"]
    root = tmp_path / "zarr.json"
    root.write_text(root.read_text().replace('"scale": 4', '"scale": 2'))
    with pytest.raises(StoreError, match="not what was written"):
        PairStore.open(tmp_path)


def test_another_target_is_refused_and_nothing_written(made: PairStore, weights: str, tmp_path: Path) -> None:
    source = pairs()
    before = objects_of(made.target.url)

    def told(plan: PairPlan, maker: PixelMaker, url: str = made.target.url) -> str:
        with pytest.raises(InputError) as raised:
            write_pairs(url, plan, maker)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    other = PixelMaker(source, make_weights(tmp_path / "other.safetensors", 1), upsampled=True, sharpened=True)
    assert "is a pair store of another space: weights tiny" in told(plan_of(source, other), other)
    same = PixelMaker(source, weights, upsampled=True, sharpened=True)
    assert "another source" in told(
        replace(plan_of(source, same), document={**plan_of(source, same).document, "source": {"kind": "sen2naip"}}),
        same,
    )
    assert "other pairs" in told(plan_of(source, same, per_unit=5), same)
    assert objects_of(made.target.url) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "holds thesis.txt and is no pair store" in told(plan_of(source, same), same, str(tmp_path / "full"))
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.txt"]
    with pytest.raises(StoreError, match="no pair store at"):
        PairStore.open(tmp_path / "none")


def test_a_plan_needs_pairs_and_weights_that_know_the_sensor(weights: str) -> None:
    source = pairs()
    maker = PixelMaker(source, weights)
    with pytest.raises(InputError, match=r"no pair to encode \(2 images under 96 px a side\)"):
        PairPlan.of([], maker, skipped={"images under 96 px a side": 2})
    with pytest.raises(InputError, match="not trained for S2L1C"):
        PixelMaker(source, weights, sensor="S2L1C")
    with pytest.raises(InputError, match="--sensor NOAA"):
        PixelMaker(source, weights, sensor="NOAA")


def test_sen2naip_is_encoded_by_its_own_statistics_and_nodata_ends_as_such(weights: str, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        write_area(tmp_path / "areas" / name, seed)
    areas = Sen2Naip(tmp_path / "areas", 64)

    class OneGap(Sen2Naip):
        def read(self, index: int) -> Any:
            pair = super().read(index)
            if index == 1:
                pair.hr[0, 3, 3] = np.nan
            return pair

    gap = OneGap(tmp_path / "areas", 64)
    sensor = naip(weights)
    assert (sensor.name, sensor.bands[0].mean, sensor.bands[3].std) == ("NAIP", 125.1176, 28.8952)
    maker = PixelMaker(gap, weights, hr_sensor=sensor)
    rows = rows_of([replace(n, split="train") for n in areas.notes], splits=("train",))
    plan = PairPlan.of(rows, maker, image_splits=("train",))
    store = write_pairs(tmp_path / "pairs.zarr", plan, maker)
    assert store.document["rows"] == {"ok": 1, "nodata": 1} and store.document["source"]["kind"] == "sen2naip"
    row = int(np.flatnonzero(store.tables["status"] == 1)[0])
    counts = store.physical("hr_image", store.shard("hr_image", 0)[row])
    np.testing.assert_allclose(counts, areas.read(0).hr, atol=1 / 256)
    assert np.isnan(store.shard("hr", 0)[1 - row]).all() and store.statistics["hr"]["count"] == 64
    sensors: Mapping[str, Any] = next(iter(store.document["spaces"]["hr"].values()))["sensor"]
    assert sensors["name"] == "NAIP" and json.dumps(sensors)
