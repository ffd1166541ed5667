"""`CubeWindows` on real stores: which patches, their values, splits, pairs, what is refused."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eocube.cube.window_index import positions
from eocube.cube.windows import CubeWindows
from eocube.errors import InputError, StoreError
from eocube.ground.grid import grids_for
from eocube.plan.plan import Plan
from eocube.store.receipts import State
from model.training.sources.splits import BlockSplit, distance
from tests.eocube.cubes import BBOX, CORE, SHARD, Made, make_plan, make_store, make_weights

SIX = tuple(f"2023-08-{day:02d}T09:57:57Z" for day in (5, 10, 15, 20, 25, 30))
CLOUDY, FAILED = (0, 1, 2), (1, 0, 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Six times; one window cloudy at the first, one not read at the second; a cell without source pixels."""
    plan = make_plan(weights, times=SIX)
    valid = np.full(plan.grid.shape, 100, "uint8")
    row, col = plan.grid.extent[:2]
    valid[row + 2, col + 3] = 0
    bad = {CLOUDY: State.CLOUDY, FAILED: State.READ_FAILED}
    return make_store(str(tmp_path_factory.mktemp("cube") / "cube.zarr"), plan, bad, valid)


def coarser(plan: Plan) -> Plan:
    """The same scenes and ground at 20 m, in shards of twice the ground."""
    return replace(plan, grid=grids_for(BBOX, 20, core_px=24, halo_px=16, shard_px=SHARD * 8)[0])


def corner(made: Made, windows: CubeWindows, index: int) -> tuple[int, int, int]:
    """(time, row, column) in the arrays of a patch, from its time and ground alone."""
    patch = windows.read(index)
    assert patch is not None
    cube = windows.index.cubes[0]
    return (
        int(np.flatnonzero(cube.times == patch.time)[0]),
        int(windows.index.rows[index]),
        int(windows.index.cols[index]),
    )


@pytest.mark.parametrize("storage", ["fp16", "int8", "codes"])
def test_every_patch_is_what_was_written(weights: Path, tmp_path: Path, storage: str) -> None:
    made = make_store(str(tmp_path / "cube.zarr"), make_plan(weights, storage=storage), {CLOUDY: State.CLOUDY})
    windows = CubeWindows(made.url, side=CORE)
    status = np.isfinite(made.latents).all(1)
    assert len(windows) == status.sum() // CORE**2  # every ok window is one patch
    for index in range(len(windows)):
        patch = windows.read(index)
        assert patch is not None and patch.pair is None and (patch.valid == 100).all()
        t, row, col = corner(made, windows, index)
        there = made.latents[t, :, row : row + CORE, col : col + CORE]
        tolerance = 0 if storage == "fp16" else 0.026
        np.testing.assert_allclose(patch.values, there, atol=tolerance)
        assert patch.values.dtype == np.float32 and patch.space_id == made.plan.space_id


def test_states_decide_what_a_patch_may_lie_on(made: Made) -> None:
    side = 2 * CORE
    strict = CubeWindows(made.url, side=side)
    loose = CubeWindows(made.url, side=side, states=("ok", "cloudy", "outside"))
    assert len(loose) > len(strict)
    holes = [p for i in range(len(loose)) if (p := loose.read(i)) is not None and np.isnan(p.values).any()]
    assert holes
    for patch in holes:
        assert (np.isnan(patch.values).all(0) >= (patch.valid == 0))[np.isnan(patch.values).any(0)].all()
        assert (patch.valid[np.isnan(patch.values).any(0)] == 0).all()
    for index in range(len(strict)):
        whole = strict.read(index)
        assert whole is not None and np.isfinite(whole.values).all()
    with pytest.raises(InputError, match="no window state 'fine'"):
        CubeWindows(made.url, side=side, states=("ok", "fine"))
    with pytest.raises(InputError, match="ok must be among them"):
        CubeWindows(made.url, side=side, states=("cloudy",))


def test_a_cell_without_source_pixels_is_not_valid(made: Made) -> None:
    windows = CubeWindows(made.url, side=CORE)
    row, col = made.plan.grid.extent[:2]
    (index,) = (
        i for i in range(len(windows))
        if windows.index.unit_of(np.array([i]))[0] == windows.index.unit_of(np.array([0]))[0]
        and (windows.index.rows[i], windows.index.cols[i]) == (row, col)
    )  # fmt: skip
    patch = windows.read(index)
    assert patch is not None and patch.valid[2, 3] == 0 and (patch.valid == 100).sum() == CORE**2 - 1


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from([1, 2, 3]))
def test_positions_cover_a_block_without_reaching_over_it(cells: int, side: int, step: int) -> None:
    cells, side = max(cells, side) * step, min(cells, side) * step
    found = positions(cells, side, step)
    covered = np.zeros(cells, bool)
    for place in found:
        assert place % step == 0 and 0 <= place <= cells - side
        covered[place : place + side] = True
    assert covered.all() and len(set(found.tolist())) == len(found) == -(-cells // side)


def test_a_split_is_that_of_the_other_sources(made: Made) -> None:
    rule = BlockSplit(600.0, 50.0, {"train": 0.5, "test": 0.5}, seed=3)
    all_of_it = CubeWindows(made.url, side=CORE)
    parts = {name: CubeWindows(made.url, side=CORE, split=(rule, name)) for name in ("train", "test")}
    for name, windows in parts.items():
        assert len(windows) == len(rule.select(all_of_it.places, name)) > 0
        assert all(rule.split_of(place) == name for place in windows.places)
    nearest = min(distance(a, b) for a in set(parts["train"].places) for b in set(parts["test"].places))
    assert nearest > 0  # the margin keeps them apart: whole patches lie between
    with pytest.raises(InputError, match="no split 'val'"):
        CubeWindows(made.url, side=CORE, split=(rule, "val"))
    with pytest.raises(InputError, match="blocks of the split may be too large"):
        CubeWindows(made.url, side=CORE, split=(BlockSplit(5e6, 0.0, {"a": 0.0, "b": 1.0}), "a"))


def test_two_resolutions_show_the_same_ground(made: Made, weights: Path, tmp_path: Path) -> None:
    plan = coarser(made.plan)
    first = plan.grid.place_in_status(next(iter(plan.grid.requested_windows())))
    other = make_store(str(tmp_path / "coarse.zarr"), plan, {(2, *first): State.NODATA})
    windows = CubeWindows(made.url, side=CORE, pair=other.url)
    fewer = len(CubeWindows(made.url, side=CORE))
    assert 0 < len(windows) < fewer
    g = plan.grid.transform
    for index in range(len(windows)):
        patch = windows.read(index)
        assert patch is not None and patch.pair is not None
        assert patch.pair.values.shape[1:] == (CORE // 2, CORE // 2) and patch.pair.time == patch.time
        assert patch.pair.ground.half == patch.ground.half
        np.testing.assert_allclose(
            (patch.pair.ground.lon, patch.pair.ground.lat), (patch.ground.lon, patch.ground.lat), atol=1e-9
        )
        own, cube = windows.index, windows.index.cubes[0]
        north, west = cube.top - int(own.rows[index]) * cube.cell, cube.left + int(own.cols[index]) * cube.cell
        row, col = round((g.f - north) / 160), round((west - g.c) / 160)
        t = int(np.flatnonzero(cube.times == patch.time)[0])
        np.testing.assert_array_equal(patch.pair.values, other.latents[t, :, row : row + 3, col : col + 3])
    # the other way round, and what does not fit
    back = CubeWindows(other.url, side=3, pair=made.url)
    wide = back.read(0)
    assert wide is not None and wide.pair is not None and wide.pair.values.shape[1:] == (CORE, CORE)
    with pytest.raises(InputError, match="multiples of 2"):
        CubeWindows(made.url, side=3, pair=other.url)
    with pytest.raises(InputError, match="2 cubes for 1"):
        CubeWindows(made.url, side=CORE, pair=[other.url, other.url])


def test_pairs_of_times_follow_each_other(made: Made) -> None:
    windows = CubeWindows(made.url, side=CORE, pair="next")
    for index in range(len(windows)):
        patch = windows.read(index)
        assert patch is not None and patch.pair is not None
        assert patch.pair.ground == patch.ground
        assert patch.pair.time - patch.time == np.timedelta64(5, "D")
        assert not np.array_equal(patch.values, patch.pair.values)
    seen: list[int] = []
    for epoch in (0, 1):
        units = windows.index.unit_of(windows.order(epoch))
        shards = [
            (t, u.row, u.col) for u in (windows.index.units[k] for k in set(units.tolist())) for t in (u.time, u.later)
        ]
        assert len(shards) == len(set(shards))  # no object is in two pairs of an epoch
        seen += windows.order(epoch).tolist()
    assert sorted(seen) == list(range(len(windows)))  # and two epochs give every pair


def test_spaces_never_mix(made: Made, tmp_path: Path) -> None:
    other = make_store(str(tmp_path / "b.zarr"), make_plan(make_weights(tmp_path / "w.safetensors", seed=1)))
    with pytest.raises(InputError, match="space id") as raised:
        CubeWindows([made.url, other.url], side=CORE)
    assert "\n" not in str(raised.value)
    both = CubeWindows([made.url, made.url], side=CORE)
    assert len(both) == 2 * len(CubeWindows(made.url, side=CORE))


def test_normalising(made: Made) -> None:
    plain, by_moments = CubeWindows(made.url, side=CORE), CubeWindows(made.url, side=CORE, normalise="moments")
    stacked = np.stack([p.values for i in range(len(by_moments)) if (p := by_moments.read(i)) is not None])
    assert abs(stacked.mean((0, 2, 3))).max() < 1e-3 and abs(stacked.std((0, 2, 3)) - 1).max() < 1e-3
    own = CubeWindows(made.url, side=CORE, normalise=np.negative)
    one, other = plain.read(3), own.read(3)
    assert one is not None and other is not None
    np.testing.assert_array_equal(one.values, -other.values)
    with pytest.raises(InputError, match="normalise"):
        CubeWindows(made.url, side=CORE, normalise="whiten")  # type: ignore[arg-type]


def test_it_pickles_and_goes_on(made: Made) -> None:
    windows = CubeWindows(made.url, side=CORE)
    again = pickle.loads(pickle.dumps(windows))
    one, other = windows.read(5), again.read(5)
    np.testing.assert_array_equal(one.values, other.values)
    assert again.fingerprint == windows.fingerprint


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped"])
def test_a_shard_that_cannot_be_read_is_never_data(made: Made, tmp_path: Path, damage: str) -> None:
    url = tmp_path / "cube.zarr"
    shutil.copytree(made.url, url)
    windows = CubeWindows(url, side=CORE)
    shards = sorted(p for p in (url / "latent" / "c" / "0").rglob("*") if p.is_file())
    data = bytearray(shards[0].read_bytes())
    if damage == "missing":
        shards[0].unlink()
    elif damage == "cut":
        shards[0].write_bytes(data[: len(data) // 2])
    else:
        data[40] ^= 0xFF
        shards[0].write_bytes(bytes(data))
    with pytest.raises(StoreError) as raised:
        windows.read(0)
    assert "cube.zarr" in str(raised.value) and "\n" not in str(raised.value)
    last = windows.read(len(windows) - 1)
    assert last is not None and np.isfinite(last.values).all()


def test_a_growing_store_shows_what_it_had(weights: Path, tmp_path: Path) -> None:
    made = make_store(str(tmp_path / "cube.zarr"), make_plan(weights, times=SIX[:2]))
    early = CubeWindows(made.url, side=CORE)
    grown = make_store(made.url, replace(make_plan(weights, times=SIX), extends=(made.plan.hash,)))
    later = CubeWindows(grown.url, side=CORE)
    assert len(later) == 3 * len(early) and later.fingerprint != early.fingerprint
    kept = pickle.loads(pickle.dumps(early))  # opens the store as it is now, knows the windows that were there then
    assert len(kept) == len(early)
    for index in range(len(kept)):
        t, row, col = corner(grown, kept, index)
        patch = kept.read(index)
        assert t < 2 and patch is not None
        np.testing.assert_array_equal(patch.values, grown.latents[t, :, row : row + CORE, col : col + CORE])


def test_what_cannot_be_is_one_line(made: Made, tmp_path: Path) -> None:
    for wrong, match in (({"side": 0}, "1 or more"), ({"side": SHARD + 1}, "larger than a shard")):
        with pytest.raises(InputError, match=match):
            CubeWindows(made.url, **wrong)
    with pytest.raises(InputError, match="no cube"):
        CubeWindows([], side=CORE)
    with pytest.raises(StoreError):
        CubeWindows(tmp_path / "none.zarr", side=CORE)
    with pytest.raises(IndexError):
        CubeWindows(made.url, side=CORE).read(10**6)


def test_a_cube_in_a_bucket_reads_the_same(made: Made, s3_server: Any) -> None:
    import s3fs

    url = f"s3://{s3_server.bucket()}/cube.zarr"
    s3fs.S3FileSystem(**s3_server.storage_options).put(f"{made.url}/", url, recursive=True)
    there = CubeWindows(url, side=CORE, storage_options=s3_server.storage_options)
    here = CubeWindows(made.url, side=CORE)
    assert len(there) == len(here)
    for index in (0, len(here) - 1):
        one, other = there.read(index), here.read(index)
        assert one is not None and other is not None
        np.testing.assert_array_equal(one.values, other.values)
