"""Batches: read in any order, mixed, made ahead, resumed to the bit; what cannot be used is counted."""

from __future__ import annotations

import copy
import json
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.sensors import RGBN, S2L2A, SENSORS, TrainedSensor
from model.training.batch import Batch
from model.training.eo_vae.sampler import Sampler
from model.training.sources.augment import Augmentation
from model.training.sources.batching import PatchBatches
from model.training.sources.images import load_images
from model.training.sources.indexed import IndexedFeed
from model.training.sources.mixture import Mixture
from model.training.sources.patch import BandError, BatchSource, Patch, Place
from model.training.sources.prefetch import Prefetch
from model.training.sources.splits import BlockSplit
from model.training.sources.stream import Worker

PLAIN = TrainedSensor("plain", "dB", ("a", "b"), (5.4, 5.6), (0.0, 0.0), (1.0, 1.0), (10, 10))


class Numbered:
    """Patches whose pixels are their number; some have no data, some cannot be read."""

    def __init__(self, count: int, side: int = 8, empty: tuple[int, ...] = (), broken: tuple[int, ...] = ()) -> None:
        self.sensor, self.side, self.empty, self.broken = "plain", side, empty, broken
        self.places = [Place(10 + 0.05 * i, 45.0, 5 * side) for i in range(count)]
        self.reads: Counter[int] = Counter()
        self._lock = threading.Lock()

    def read(self, index: int) -> Patch | None:
        with self._lock:
            self.reads[index] += 1
        if index in self.broken:
            raise OSError(f"item s{index}, asset a: cannot read")
        if index in self.empty:
            return None
        data = np.full((2, self.side, self.side), index, np.float32)
        return Patch(f"p{index}", ("a", "b"), data, self.places[index])


def numbers(feed: IndexedFeed, count: int) -> list[int]:
    return [int(feed.next("plain").data[0, 0, 0]) for _ in range(count)]


def batches(count: int = 20, seed: int = 0, worker: Worker | None = None, **options: Any) -> PatchBatches:
    feed = IndexedFeed(Numbered(count, **options), seed, worker or Worker())
    return PatchBatches(feed, {"plain": PLAIN}, seed=seed, worker=(worker or Worker()).index)


def same(one: BatchSource, other: BatchSource, count: int, batch: int = 3, patch: int = 4) -> bool:
    pairs = [(one.draw(batch, patch), other.draw(batch, patch)) for _ in range(count)]
    return all(a.sensor == b.sensor and torch.equal(a.x, b.x) for a, b in pairs)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_patch_comes_once_an_epoch_over_all_workers(workers: int) -> None:
    for epoch in range(2):
        seen: Counter[int] = Counter()
        for index in range(workers):
            feed = IndexedFeed(Numbered(17), 3, Worker(index, workers))
            share = feed.patches_per_epoch
            assert share is not None
            drawn = numbers(feed, 20 * 2)
            feed.close()
            seen.update(drawn[epoch * share : (epoch + 1) * share])
        if workers == 1 or epoch == 0:
            assert len(seen) == 17 and set(seen.values()) == {1}


def test_order_is_the_seeds_and_reading_ahead_does_not_change_it() -> None:
    one, two = (numbers(IndexedFeed(Numbered(30), 5, threads=t, ahead=a), 70) for t, a in ((1, 1), (6, 40)))
    assert one == two
    assert one != numbers(IndexedFeed(Numbered(30), 6), 70)
    assert one[:30] != one[30:60] and sorted(one[:30]) == sorted(one[30:60])


@pytest.mark.parametrize("at", [0, 5, 19, 20, 33])
def test_a_feed_resumes_with_the_next_patch(at: int) -> None:
    whole = numbers(IndexedFeed(Numbered(20), 2), at + 25)
    first = IndexedFeed(Numbered(20), 2)
    numbers(first, at)
    resumed = IndexedFeed(Numbered(20), 2)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert numbers(resumed, 25) == whole[at:]
    with pytest.raises(ValueError, match="other patches, another seed"):
        IndexedFeed(Numbered(21), 2).load_state_dict(first.state_dict())


def test_what_cannot_be_read_is_counted_and_named_and_the_rest_goes_on() -> None:
    feed = IndexedFeed(Numbered(10, empty=(2, 3), broken=(5,)), shuffle=False)
    assert numbers(feed, 7) == [0, 1, 4, 6, 7, 8, 9]
    assert feed.ledger.counts == {"empty": 2, "patch": 1}
    assert feed.ledger.entries == [("patch", "plain 5", "item s5, asset a: cannot read")]
    with pytest.raises(ValueError, match=r"a whole epoch of 3 patches of plain has no data: .*item s1"):
        IndexedFeed(Numbered(3, empty=(0, 2), broken=(1,))).next("plain")
    with pytest.raises(ValueError, match="no patches of plain"):
        IndexedFeed(Numbered(0))


def test_only_the_splits_patches_are_read() -> None:
    rule = BlockSplit(20_000, 2_000, {"train": 0.5, "val": 0.5}, seed=3)
    sets = {split: Numbered(60) for split in rule.shares}
    drawn = {s: set(numbers(IndexedFeed(p, 1, rule=rule, split=s), 120)) for s, p in sets.items()}
    assert drawn["train"] and drawn["val"] and not drawn["train"] & drawn["val"]
    assert drawn["train"] == set(rule.select(sets["train"].places, "train")) == set(sets["train"].reads)
    with pytest.raises(ValueError, match="none of 60 patches of plain is of split val"):
        IndexedFeed(Numbered(60), rule=BlockSplit(20_000, 0, {"train": 1, "val": 0}), split="val")
    with pytest.raises(ValueError, match="a split needs its rule"):
        IndexedFeed(Numbered(3), split="train")


class Given:
    """A feed of one patch, over and over."""

    def __init__(self, data: np.ndarray, bands: tuple[str, ...], sensor: str) -> None:
        self.patch, self.sensors, self.patches_per_epoch = Patch("given", bands, data), (sensor,), 1
        self.skipped: list[str] = []

    def next(self, sensor: str) -> Patch:
        return self.patch

    def skip(self, name: str, why: str) -> None:
        self.skipped.append(why)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state


def ramp(side: int = 12) -> np.ndarray:
    rows, columns = np.mgrid[:side, :side]
    return np.stack([100 * rows + columns, -(100 * rows + columns)]).astype(np.float32)


def test_a_crop_is_a_square_of_native_pixels_in_one_of_eight_symmetries() -> None:
    source = PatchBatches(Given(ramp(), ("a", "b"), "plain"), {"plain": PLAIN})
    shapes = set()
    for x in source.draw(60, 5).x.numpy():
        a, b = x
        assert np.array_equal(a, -b)
        corner = a.min()
        steps = {abs(float(a[0, 1] - a[0, 0])), abs(float(a[1, 0] - a[0, 0]))}
        assert steps == {1.0, 100.0} and corner == np.round(corner)
        shapes.add((np.argmin(a), float(abs(a[0, 1] - a[0, 0]))))
    assert len(shapes) == 8


def test_resize_is_torchs_bilinear_of_the_whole_patch_and_one_turn_serves_a_batch() -> None:
    data = np.random.default_rng(0).normal(size=(2, 33, 33)).astype(np.float32)
    source = PatchBatches(Given(data, ("a", "b"), "plain"), {"plain": PLAIN}, fit="resize", turns="batch")
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(data)[None], size=(32, 32), mode="bilinear", align_corners=False
    )[0].numpy()
    turned = [f(np.rot90(expected, k, (1, 2))) for k in range(4) for f in (np.asarray, lambda a: a[..., ::-1])]
    used = set()
    for _ in range(20):
        x = source.draw(4, 32).x.numpy()
        assert all(np.array_equal(x[0], other) for other in x[1:])
        (match,) = [i for i, t in enumerate(turned) if np.allclose(x[0], t, atol=1e-6)]
        used.add(match)
    assert len(used) > 4


def test_crops_avoid_nodata_and_a_patch_full_of_it_is_skipped() -> None:
    data = ramp()
    data[1, :4] = np.nan
    source = PatchBatches(Given(data, ("a", "b"), "plain"), {"plain": PLAIN})
    assert torch.isfinite(source.draw(20, 6).x).all()
    data[1] = np.nan
    feed = Given(data, ("a", "b"), "plain")
    with pytest.raises(ValueError, match="in a row have no 6 px without nodata"):
        PatchBatches(feed, {"plain": PLAIN}).draw(1, 6)
    assert feed.skipped[0] == "nodata wherever it was cut"


def test_fewer_bands_than_the_sensor_or_a_patch_too_small_is_one_line() -> None:
    with pytest.raises(BandError, match=r"^given has no band b of plain: fewer than the sensor$"):
        PatchBatches(Given(ramp()[:1], ("a",), "plain"), {"plain": PLAIN}).draw(1, 4)
    with pytest.raises(ValueError, match="given is 12x12 px, less than the 16 asked for"):
        PatchBatches(Given(ramp(), ("a", "b"), "plain"), {"plain": PLAIN}).draw(1, 16)


def test_s2l2a_is_also_drawn_as_rgbn_and_as_subsets_the_same_on_every_worker() -> None:
    data = np.random.default_rng(1).uniform(200, 4000, (12, 16, 16)).astype(np.float32)
    mix = {"S2L2A": 1.0, "RGBN": 1.0, "subset": 2.0}
    one, two = (
        PatchBatches(Given(data, S2L2A.bands, "S2L2A"), SENSORS, mix, seed=1, worker=w, how=Augmentation())
        for w in (0, 1)
    )
    pairs = [(one.draw(1, 8), two.draw(1, 8)) for _ in range(30)]
    assert all(a.sensor == b.sensor for a, b in pairs)
    assert sum(torch.equal(a.x, b.x) for a, b in pairs) == 0
    assert len({a.sensor.bands for a, _ in pairs}) > 5
    assert RGBN.bands in {a.sensor.bands for a, _ in pairs}
    with pytest.raises(ValueError, match="the mix asks for S1RTC: these data have S2L2A, RGBN, subset"):
        PatchBatches(Given(data, S2L2A.bands, "S2L2A"), SENSORS, {"S1RTC": 1.0})


def test_a_mixture_keeps_its_shares_and_resumes() -> None:
    def mixture() -> Mixture:
        return Mixture({"small": batches(5, 1), "large": batches(50, 2)}, {"small": 1, "large": 3}, seed=4)

    first = mixture()
    assert first.steps_per_epoch(5) == 1 + 10
    for _ in range(7):
        first.draw(2, 4)
    second = mixture()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert same(first, second, 15)
    drawn = Counter(bool((mixture_.draw(1, 4).x > 4).all()) for mixture_ in [mixture()] for _ in range(200))
    assert 100 < drawn[True] < 170  # 150 of 200 are large's, of which 9 in 10 are above 4
    with pytest.raises(ValueError, match="needs a share of each"):
        Mixture({"a": batches()}, {"b": 1.0})
    with pytest.raises(ValueError, match="other sources than"):
        mixture().load_state_dict({"sources": {"small": {}}})


def test_made_ahead_is_the_same_as_made_when_asked_for() -> None:
    ahead = Prefetch(batches(), depth=3)
    assert same(ahead, batches(), 25)
    assert ahead.steps_per_epoch(3) == batches().steps_per_epoch(3) == 6
    ahead.close()


def test_another_batch_or_patch_size_goes_on_from_the_last_batch_handed_out() -> None:
    ahead, plain = Prefetch(batches(), depth=4), batches()
    for batch, patch, count in ((3, 4, 5), (2, 6, 3), (3, 4, 4)):
        assert same(ahead, plain, count, batch, patch)
    ahead.close()
    assert same(ahead, plain, 3, 3, 4)  # closing loses nothing either
    ahead.close()


def test_the_state_is_that_of_the_last_batch_handed_out_not_of_what_lies_ready() -> None:
    ahead, plain = Prefetch(batches(), depth=5), batches()
    for _ in range(4):
        ahead.draw(3, 4), plain.draw(3, 4)
    state = json.loads(json.dumps(ahead.state_dict()))
    assert state == json.loads(json.dumps(plain.state_dict()))
    for fresh in (Prefetch(batches(), depth=2), ahead):
        fresh.load_state_dict(state)
        reference = batches()
        reference.load_state_dict(state)
        assert same(fresh, reference, 10)
        fresh.close()


def test_an_error_while_making_ahead_reaches_who_draws_and_drawing_may_go_on() -> None:
    class Failing:
        def __init__(self) -> None:
            self.drawn = 0

        def draw(self, batch_size: int, patch: int) -> Batch:
            self.drawn += 1
            if self.drawn == 3:
                raise ValueError("shard lost")
            return Batch(torch.full((1, 2, 4, 4), float(self.drawn)), PLAIN)

        def steps_per_epoch(self, batch_size: int) -> int | None:
            return None

        def state_dict(self) -> dict[str, Any]:
            return {"drawn": self.drawn}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.drawn = state["drawn"]

    ahead = Prefetch(Failing(), depth=4)
    assert [float(ahead.draw(1, 4).x[0, 0, 0, 0]) for _ in range(2)] == [1.0, 2.0]
    with pytest.raises(ValueError, match="shard lost"):
        ahead.draw(1, 4)
    assert ahead.state_dict() == {"drawn": 2}
    ahead.close()


def test_the_sampler_of_local_images_resumes_and_can_be_made_ahead(world: tuple[Path, Path]) -> None:
    images = load_images(*world)
    one, two = Sampler(images, seed=3), Sampler(images, seed=3)
    for _ in range(3):
        one.draw(2, 48)
    state = copy.deepcopy(one.state_dict())
    two.load_state_dict(state)
    assert same(one, two, 5, 2, 48) and one.steps_per_epoch(4) is None
    ahead = Prefetch(Sampler(images, seed=3))
    assert same(ahead, Sampler(images, seed=3), 5, 2, 48)
    ahead.close()
    with pytest.raises(ValueError, match="no state of a Sampler"):
        one.load_state_dict({"feed": {}})
