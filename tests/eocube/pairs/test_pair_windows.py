"""`PairWindows`: rows by index, batches of one side, orders that resume and travel to workers; pairs of two cubes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eocube.errors import InputError, StoreError
from eocube.ground.grid import grids_for
from eocube.pairs.cube_pairs import CubePairs
from eocube.pairs.encoding import PixelMaker
from eocube.pairs.pair_plan import PairPlan
from eocube.pairs.pair_store import PairStore
from eocube.pairs.pair_windows import PairWindows
from eocube.pairs.pixel_pairs import rows_of, split_notes
from eocube.pairs.wald import WaldPairs
from eocube.pairs.writing import write_pairs
from eocube.store.receipts import State
from tests.eocube import cubes
from tests.eocube.pair_world import image, make_weights, plan_in_units_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PairStore:
    """26 training rows, 18 of 64 px and 8 of 32, and 4 of validation, in units of 5."""
    folder = tmp_path_factory.mktemp("windows")
    source = WaldPairs(
        [image("a", (128, 128)), image("b", (32, 128), 1), image("c", (96, 96), 2, split="val")], 4, 64, 32, 32
    )
    maker = PixelMaker(source, make_weights(folder / "tiny.safetensors"))
    rows = rows_of(source.notes, splits=("train", "val"), flips=2)
    plan = plan_in_units_of(PairPlan.of(rows, maker, image_splits=("val",)), 5)
    return write_pairs(folder / "pairs.zarr", plan, maker)


def test_rows_come_cut_to_their_size_and_normalised_by_training(store: PairStore) -> None:
    raw = PairWindows(store.target.url, "train", arrays=("lr", "hr"))
    assert len(raw) == 26 and raw.sides == {32: 8, 64: 18}
    scaled = PairWindows(store.target.url, "train", arrays=("hr",), normalise=True)
    total = []
    for k in range(len(raw)):
        one, other = raw.read(k), scaled.read(k)
        cells = one["side"] // 8
        assert one["lr"].shape == (4, cells // 4, cells // 4) and one["hr"].shape == (4, cells, cells)
        assert one["hr"].dtype == np.float32 and np.isfinite(one["hr"]).all() and "lr" not in other
        mean, std = (np.array(raw.statistics["hr"][key])[:, None, None] for key in ("mean", "std"))
        np.testing.assert_allclose(other["hr"], (one["hr"] - mean) / std, atol=2e-4)
        total.append(other["hr"].reshape(4, -1))
    np.testing.assert_allclose(np.concatenate(total, 1).mean(1), 0, atol=1e-3)
    val = PairWindows(store.target.url, "val")
    assert len(list(val)) == 4 and set(val.read(0)) > {"lr_image", "hr_image", "place", "bounds"}
    assert val.read(2)["place"] == "c" and np.isfinite(val.read(2)["hr_image"]).all()
    assert np.isnan(PairWindows(store.target.url, "train").read(0)["hr_image"]).all()  # not stored of that split
    with pytest.raises(IndexError):
        val.read(4)


def test_batches_have_one_side_and_every_row_once_an_epoch(store: PairStore) -> None:
    windows = PairWindows(store.target.url, "train", 3, arrays=("lr", "hr"), open_units=2)
    drawn: list[int] = []
    for _ in range(26):  # two epochs
        batch = windows.draw(2)
        assert batch["hr"].shape[0] == 2 and len(set(batch["side"])) == 1
        assert batch["hr"].shape[-1] == batch["side"][0] // 8
        drawn += batch["row"].tolist()
    counts = np.bincount(drawn, minlength=26)
    assert (counts == 2).all() and drawn[:26] != sorted(drawn[:26])
    assert not np.array_equal(windows.order(0), windows.order(1))
    np.testing.assert_array_equal(windows.order(1), PairWindows(store.target.url, "train", 3, open_units=2).order(1))
    large = PairWindows(store.target.url, "train", side=64, arrays=("lr",))
    assert set(np.concatenate([large.draw(6)["side"] for _ in range(5)])) == {64} and large.batches_per_epoch(6) == 3


def test_workers_share_the_rows(store: PairStore) -> None:
    parts = [PairWindows(store.target.url, "train", 1, arrays=("lr",), rank=r, world=2, side=64) for r in range(2)]
    rows = [np.concatenate([part.draw(3)["row"] for _ in range(3)]) for part in parts]
    assert sorted(np.concatenate(rows)) == sorted(parts[0].rows)


def test_a_saved_place_goes_on_with_the_very_rows(store: PairStore) -> None:
    windows = PairWindows(store.target.url, "train", 5, arrays=("hr",))
    for _ in range(5):
        windows.draw(3)
    state = pickle.loads(pickle.dumps(windows.state_dict()))
    expected = [windows.draw(3) for _ in range(12)]
    again = pickle.loads(pickle.dumps(PairWindows(store.target.url, "train", 5, arrays=("hr",))))
    again.load_state_dict(state)
    for batch in expected:
        found = again.draw(3)
        np.testing.assert_array_equal(found["row"], batch["row"])
        np.testing.assert_array_equal(found["hr"], batch["hr"])
    with pytest.raises(InputError, match="of other pairs"):
        PairWindows(store.target.url, "train", 6).load_state_dict(state)


def test_each_object_is_read_once_an_epoch(store: PairStore, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = PairWindows(store.target.url, "train", 2, arrays=("hr",), open_units=1, cache_bytes=0)
    read: list[int] = []
    shard = PairStore.shard

    def counted(self: PairStore, name: str, unit: int) -> np.ndarray:
        read.append(unit)
        return shard(self, name, unit)

    monkeypatch.setattr(PairStore, "shard", counted)
    for _ in range(13):
        windows.draw(2)
    assert sorted(set(read)) == [0, 1, 2, 3, 4, 5] and len(read) <= 7  # the next epoch's first may be begun


def test_a_small_cache_gives_the_same(store: PairStore) -> None:
    small = PairWindows(store.target.url, "train", 2, arrays=("hr",), open_units=1, cache_bytes=0)
    large = PairWindows(store.target.url, "train", 2, arrays=("hr",), open_units=1)
    for _ in range(12):
        np.testing.assert_array_equal(small.draw(4)["hr"], large.draw(4)["hr"])
    large.close()
    np.testing.assert_array_equal(small.draw(4)["hr"], large.draw(4)["hr"])


def test_what_is_not_there_is_said(store: PairStore, tmp_path: Path) -> None:
    url = store.target.url
    for how, told in (
        ({"arrays": ("lr_up",)}, "has no lr_up: it has lr, hr"),
        ({"split": "test"}, "no pair of split 'test': it has 26 train, 4 val"),
        ({"side": 128}, "of 128 px a side"),
        ({"rank": 2, "world": 2}, "worker 2 of 2"),
    ):
        with pytest.raises(InputError, match=told):
            PairWindows(url, **{"split": "train", **how})  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="no pair store"):
        PairWindows(tmp_path / "none")


# -- pairs of cubes


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[cubes.Made, cubes.Made]:
    """The same ground at 20 m and at 10 m, one window of the coarse one cloudy."""
    folder = tmp_path_factory.mktemp("cubes")
    fine = cubes.make_plan(cubes.make_weights(folder / "tiny.safetensors"))
    grid = grids_for(cubes.BBOX, 20, core_px=24, halo_px=16, shard_px=cubes.SHARD * 8)[0]
    meaning = {**fine.product.meaning, "resolution": 20, "core": 3}
    coarse = replace(fine, grid=grid, product=replace(fine.product, meaning=meaning, core_px=24))
    low = cubes.make_store(str(folder / "low.zarr"), coarse, {(0, 1, 1): State.CLOUDY})
    return low, cubes.make_store(str(folder / "high.zarr"), fine)


def test_pairs_of_cubes_are_what_the_cubes_store(two: tuple[cubes.Made, cubes.Made], tmp_path: Path) -> None:
    low, high = two
    pairs = CubePairs(low.url, high.url, cubes.CORE * 8)
    notes = split_notes(pairs.notes, "train")
    assert pairs.scale == 2 and len(notes) > 8
    plan = PairPlan.of(rows_of(notes, splits=("train",)), pairs)
    store = write_pairs(tmp_path / "pairs.zarr", plan, pairs)
    assert set(store.document["spaces"]["hr"]) == {high.plan.product.space_id}
    assert set(store.document["spaces"]["lr"]) == {low.plan.product.space_id}
    assert store.document["encoder"]["sha256"] == high.plan.product.weights_sha256
    windows = PairWindows(store.target.url)
    fine = high.plan.grid
    for k in range(len(windows)):
        pair = windows.read(k)
        left, _, _, top = pair["bounds"]
        x, y = (round((v - o) / 80) for v, o in ((left, fine.transform.c), (-top, -fine.transform.f)))
        t = [str(s.time)[:19] for s in high.plan.times].index(pair["id"].split("/")[1])
        np.testing.assert_array_equal(pair["hr"], high.latents[t, :, y : y + 6, x : x + 6])
        coarse = low.plan.grid.transform
        x, y = (round((v - o) / 160) for v, o in ((left, coarse.c), (-top, -coarse.f)))
        np.testing.assert_array_equal(pair["lr"], low.latents[t, :, y : y + 3, x : x + 3])


def test_cubes_that_do_not_go_together(two: tuple[cubes.Made, cubes.Made], tmp_path: Path) -> None:
    low, high = two
    with pytest.raises(InputError, match="give the coarser first"):
        CubePairs(high.url, low.url, 48)
    with pytest.raises(InputError, match="multiple of 16 px"):
        CubePairs(low.url, high.url, 40)
    other = cubes.make_store(
        str(tmp_path / "other.zarr"), cubes.make_plan(cubes.make_weights(tmp_path / "w.safetensors", 1))
    )
    with pytest.raises(InputError, match="same weights and bands"):
        CubePairs(low.url, other.url, 48)
    pairs = CubePairs(low.url, high.url, 48)
    with pytest.raises(InputError, match="--pixels"):
        pairs.forms(48, True)
