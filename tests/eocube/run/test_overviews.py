"""An overview is made while a run goes on: of what is told by the arrays beside the values, and nobody waits for it."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console

import eocube
from eocube.cube.overview import make_overviews, overview_of
from eocube.errors import StoreError
from eocube.run.options import Cube
from eocube.run.overviews import OverviewsAlong, seen_from_afar
from eocube.store.overview import made_of
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from tests.eocube.cubes import Made, held_back, make_plan, make_store, make_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("along") / "tiny.safetensors")


@pytest.fixture
def made(weights: Path, tmp_path: Path) -> Made:
    return make_store(str(tmp_path / "a.zarr"), make_plan(weights))


def until(condition: object, seconds: float = 60.0) -> None:
    """Wait for a condition; a failed test where it does not come."""
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def pictured(url: str) -> int:
    """Shards, of all times, whose picture is there."""
    target = CubeStore.open(url).target
    return sum(len(made_of(target, t)) for t in range(2))


def test_it_grows_with_the_log_and_what_is_left_is_made_at_the_end(made: Made, tmp_path: Path) -> None:
    store, receipts = held_back(made, tmp_path / "b.zarr")
    cube = Cube(made.plan, store.target.url)
    half = len(receipts) // 2
    with OverviewsAlong([cube], None, None, every=0.05) as along:
        store.commit(receipts[:half])
        until(lambda: pictured(cube.url) == half)
        # Whoever opens the cube meanwhile sees what is there so far.
        seen = xr.open_zarr(cube.url)["status"].values
        assert (seen == State.OK).sum() == sum(w.state == State.OK for r in receipts[:half] for w in r.windows)
    store.commit(receipts[half:])
    store.finalise()
    assert along.shards == half
    seen_from_afar([cube], None, Console(quiet=True), before=along.shards)
    list(make_overviews(made.url))
    for level in range(3):
        ours, whole = (xr.open_zarr(u, group=f"overview/{level}", consolidated=False) for u in (cube.url, made.url))
        np.testing.assert_array_equal(ours.picture.values, whole.picture.values)
    assert store.verify() == []


def test_shards_that_the_arrays_do_not_tell_of_yet_are_left(made: Made, tmp_path: Path) -> None:
    store, receipts = held_back(made, tmp_path / "b.zarr")
    cube = Cube(made.plan, store.target.url)
    store.commit(receipts[:2])
    store.finalise()
    store.commit(receipts[2:])  # and the arrays beside the values do not know of these
    (first,) = make_overviews(cube.url)
    assert first.shards == 2 and pictured(cube.url) == 2
    store.finalise()
    (second,) = make_overviews(cube.url)
    assert second.shards == len(receipts) - 2 and second.kept == 2
    plan = overview_of(eocube.open(cube.url), store)
    for receipt in receipts:
        got = plan.read(store.target, 0, receipt.time, *receipt.shard)
        assert got is not None and np.isfinite(got).all(axis=0).any()


def test_a_shard_made_anew_keeps_its_picture_until_the_arrays_tell_of_it(made: Made) -> None:
    (first,) = make_overviews(made.url)
    store = CubeStore.open(made.url)
    was = next(r for r in store.receipts() if r.sha256 is not None)
    lost = replace(next(w for w in was.windows if w.state == State.OK), state=State.READ_FAILED)
    others = tuple(lost if (w.row, w.col) == (lost.row, lost.col) else w for w in was.windows)
    store.commit([replace(was, sha256="0" * 64, windows=others)])
    key = made_of(store.target, was.time)[was.shard.row, was.shard.col]
    (second,) = make_overviews(made.url)
    assert second.shards == 0 and second.kept == first.shards == pictured(made.url)
    assert made_of(store.target, was.time)[was.shard.row, was.shard.col] == key == was.sha256


def test_it_stops_between_two_shards(made: Made) -> None:
    asked: list[int] = []

    def soon() -> bool:
        asked.append(1)
        return len(asked) > 3

    (cut,) = make_overviews(made.url, stop=soon)
    assert cut.shards == 3 and pictured(made.url) == 3
    (rest,) = make_overviews(made.url)
    assert rest.kept == 3


def test_a_run_does_not_fail_by_it(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, receipts = held_back(made, tmp_path / "b.zarr")
    cube = Cube(made.plan, store.target.url)
    asked = threading.Event()

    def broken(_store: CubeStore) -> None:
        asked.set()
        raise StoreError("the store is gone")

    with monkeypatch.context() as patch:
        patch.setattr(CubeStore, "finalise", broken)
        with OverviewsAlong([cube], None, None, every=0.05) as along:
            assert asked.wait(60)
    assert along.shards == 0
    store.commit(receipts)
    store.finalise()
    assert pictured(cube.url) == 0


def test_what_is_not_decoded_has_none(made: Made) -> None:
    other = replace(made.plan, product=replace(made.plan.product, scores=()))
    with OverviewsAlong([Cube(other, made.url)], None, None, every=0.01) as along:
        time.sleep(0.1)
    assert along.shards == 0
