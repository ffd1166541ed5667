"""Tests of super-resolving a cube's units: georeference, states, coverage, noise by ground, resume, decoding."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import eocube
from eocube.errors import InputError, StoreError
from eocube.plan.plan import Plan
from eocube.read.coverage import from_cells, unpack_missing
from eocube.run.resume import Remaining
from eocube.run.super_resolve_job import Wanted, check, plans_of, refuse_other
from eocube.run.super_resolve_unit import SuperResolveRunner
from eocube.store.receipts import State, unpack_mask
from eocube.store.store import CubeStore
from tests.eocube.cubes import TIMES, Made, make_store
from tests.eocube.finer_cubes import CORE, make_encoder, make_parent_plan, make_resolver


@dataclass(frozen=True)
class World:
    """A parent of 2 x 2 shards or so with some windows that are not ok, and weights."""

    parent: Made
    weights: Path
    folder: Path

    def wanted(self, **other: object) -> Wanted:
        return replace(
            Wanted(self.parent.url, str(self.folder / "fine.zarr"), weights=str(self.weights), steps=2), **other
        )  # type: ignore[arg-type]

    def plan(self, **other: object) -> Plan:
        (plan,) = plans_of(check(self.wanted(**other), None, "cpu"), 0)
        return plan


BAD = {0: State.NODATA, 4: State.CLOUDY, -1: State.READ_FAILED}
"""States of some of the windows asked for, by their place in row-major order."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("finer")
    encoder = make_encoder(folder / "tiny.safetensors")
    plan = make_parent_plan(encoder)
    mask = plan.grid.requested_mask
    asked = [(int(row), int(col)) for row, col in np.argwhere(mask)]
    first = asked[0]
    bad = {(0, *asked[place]): state for place, state in BAD.items()}
    ny, nx = plan.grid.shape
    missing = np.zeros((ny * 8, nx * 8), np.bool_)
    missing[:, : (first[1] + 1) * CORE * 8 + 21] = np.arange(ny * 8)[:, None] % 16 < 3
    clouds = np.zeros((2, ny, nx), np.uint8)
    clouds[0] = np.arange(nx) % 100
    parent = make_store(str(folder / "parent.zarr"), plan, bad, missing=missing, clouds=clouds)
    return World(parent, make_resolver(folder / "sr.safetensors", encoder), folder)


def made(plan: Plan, url: str, *, threads: int = 1, units: slice = slice(None)) -> CubeStore:
    """Carry out units of a plan in this process, as an actor does."""
    store = CubeStore.create(url, plan)
    runner = SuperResolveRunner(plan, store, threads=threads)
    try:
        left = Remaining(plan, store.log.latest())
        for unit in list(left.units())[units]:
            store.commit([runner.run(unit)])
    finally:
        runner.close()
    store.finalise()
    return store


def objects(url: str, below: str = "latent/c") -> dict[str, str]:
    root = Path(url)
    found = (path for path in sorted((root / below).rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


@pytest.fixture(scope="module")
def fine(world: World) -> tuple[Plan, CubeStore]:
    plan = world.plan()
    return plan, made(plan, world.wanted().out)


def test_each_cell_of_the_parent_becomes_4_x_4_with_its_own_edges(world: World, fine: tuple[Plan, CubeStore]) -> None:
    plan, _ = fine
    ours, theirs = eocube.open(world.wanted().out), eocube.open(world.parent.url)
    assert (plan.grid.lattice.resolution, plan.grid.lattice.cell) == (2.5, 20)
    lattice = world.parent.plan.grid.lattice
    for axis, sign in (("x", 1), ("y", -1)):
        edges = sign * (ours[axis].values - sign * 10.0)
        assert np.array_equal(edges, np.rint(edges)), "whole metres"
        assert np.array_equal(edges % 20, np.zeros_like(edges))
        coarse = sign * (theirs[axis].values - sign * 40.0)
        assert set(edges[::4]) <= set(np.arange(coarse[0] - 2 * lattice.shard * 80, coarse[-1] + 81, 80))
    row0, col0, row1, col1 = ours.eocube.info.extent
    r0, c0, r1, c1 = theirs.eocube.info.extent
    fine_box, box = ours.isel(y=slice(row0, row1), x=slice(col0, col1)), theirs.isel(y=slice(r0, r1), x=slice(c0, c1))
    assert float(fine_box.x[0]) - 10 == float(box.x[0]) - 40
    assert float(fine_box.y[0]) + 10 == float(box.y[0]) + 40
    assert float(fine_box.x[-1]) + 10 == float(box.x[-1]) + 40
    assert float(fine_box.y[-1]) - 10 == float(box.y[-1]) - 40
    assert fine_box.sizes["x"] == 4 * box.sizes["x"]


def test_the_parents_space_id_and_the_parents_decoder(world: World, fine: tuple[Plan, CubeStore]) -> None:
    ours, theirs = eocube.open(world.wanted().out), eocube.open(world.parent.url)
    assert ours.eocube.space_id == theirs.eocube.space_id
    assert (ours.eocube.info.resolution, theirs.eocube.info.resolution) == (2.5, 10)
    pixels, coarse = ours.eocube.decode(), theirs.eocube.decode()
    assert pixels.shape[2] == 4 * coarse.shape[2]
    assert float(pixels.x[1] - pixels.x[0]) == 2.5
    assert float(pixels.x[0]) - 1.25 == float(coarse.x[0]) - 5
    values = pixels.isel(time=0).values
    seen = np.isfinite(values).all(axis=0)
    blocks = seen.reshape(seen.shape[0] // 4, 4, seen.shape[1] // 4, 4)
    there = np.isfinite(coarse.isel(time=0).values).all(axis=0)
    assert np.array_equal(blocks.all(axis=(1, 3)), there), "a source pixel is 4 x 4, seen or not as one"
    assert np.array_equal(blocks.any(axis=(1, 3)), there)


def test_windows_that_are_not_ok_keep_their_state_and_nothing_is_invented(
    world: World, fine: tuple[Plan, CubeStore]
) -> None:
    plan, store = fine
    theirs = {}
    for receipt in CubeStore.open(world.parent.url).receipts():
        for window in receipt.windows:
            at = world.parent.plan.grid.window_at(window.row, window.col)
            theirs[at.row, at.col] = window.state
    found = {state: 0 for state in State}
    for receipt in store.receipts():
        block = store.storage.unpack(store.read_shard(receipt.time, *receipt.shard))
        for window in receipt.windows:
            at = plan.grid.window_at(window.row, window.col)
            assert window.state == theirs[at.row // 4, at.col // 4]
            row, col = plan.grid.place_in_shard(at)
            core = plan.grid.lattice.core
            part = block[:, row : row + core, col : col + core]
            assert np.isfinite(part).all() if window.state is State.OK else np.isnan(part).all()
            found[window.state] += 1
    assert all(found[state] == 16 for state in BAD.values())
    assert found[State.OK] > 16


def test_coverage_and_clouds_are_the_parents_on_finer_cells(world: World, fine: tuple[Plan, CubeStore]) -> None:
    plan, store = fine
    parent = CubeStore.open(world.parent.url)
    known = {}
    for receipt in parent.receipts():
        for window in receipt.windows:
            at = world.parent.plan.grid.window_at(window.row, window.col)
            known[at.row, at.col] = window
    seen = 0
    for receipt in store.receipts():
        for window in receipt.windows:
            at = plan.grid.window_at(window.row, window.col)
            theirs = known[at.row // 4, at.col // 4]
            if window.state is not State.OK or theirs.missing is None:
                continue
            source = from_cells(unpack_missing(theirs.missing, CORE, 8), 8)
            part = CORE * 8 // 4
            y, x = at.row % 4 * part, at.col % 4 * part
            own = source[y : y + part, x : x + part]
            if window.missing is not None:
                bits = from_cells(unpack_missing(window.missing, CORE, 8), 8)
                assert np.array_equal(bits, own.repeat(4, 0).repeat(4, 1))
                seen += 1
            valid = unpack_mask(window.valid_mask, CORE)
            share = 1 - own.reshape(CORE, 2, CORE, 2).mean(axis=(1, 3))
            assert np.array_equal(valid, np.rint(share * 100))
            assert window.clouds not in (None, "")
    assert seen > 3


def test_the_same_bytes_whatever_workers_and_kills(world: World, fine: tuple[Plan, CubeStore], tmp_path: Path) -> None:
    plan, store = fine
    whole = objects(world.wanted().out)
    assert len(whole) > 2
    url = str(tmp_path / "again.zarr")
    made(plan, url, units=slice(0, 2))  # killed after two units
    assert 0 < len(objects(url)) < len(whole)
    again = made(plan, url, threads=3)
    assert objects(url) == whole
    assert [f for s in (store, again) for f in s.verify()] == []
    assert not list(Remaining(plan, again.log.latest()).units())


@pytest.mark.slow
def test_other_seeds_and_samples_are_other_bytes(world: World, fine: tuple[Plan, CubeStore], tmp_path: Path) -> None:
    found = [objects(world.wanted().out)]
    for name, plan in (
        ("seed", world.plan(seed=1)),
        ("sample", plans_of(check(world.wanted(samples=2), None, "cpu"), 1)[0]),
    ):
        made(plan, str(tmp_path / name))
        found.append(objects(str(tmp_path / name)))
    assert all(not set(a.values()) & set(b.values()) for a, b in ((found[0], found[1]), (found[0], found[2])))


def test_shards_agree_where_they_meet(world: World, fine: tuple[Plan, CubeStore]) -> None:
    """Steps across shards' borders are no larger than inside: both sides sample the same ground alike."""
    from eocube.run.shard_seams import shard_seams

    found = shard_seams(world.wanted().out, None)
    assert found is not None
    ratio, borders = found
    assert borders >= 1
    assert ratio < 1.2


def test_a_plan_survives_its_json_and_old_plans_keep_their_hash(world: World, fine: tuple[Plan, CubeStore]) -> None:
    plan, _ = fine
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.hash == plan.hash
    assert again.space_id == world.parent.plan.space_id
    assert "derived" not in world.parent.plan.document()
    assert plan.grid.to_dict()["together"] == 4
    assert plan.grid.to_dict()["lattice"]["resolution"] == 2.5


@pytest.mark.slow
def test_a_consistent_cube_is_another_one_and_is_not_gone_on_with_as_this(
    world: World, fine: tuple[Plan, CubeStore], tmp_path: Path
) -> None:
    plan, plain = world.plan(consistent=True), fine[0]
    assert plain.derived is not None and plan.derived is not None
    assert "consistent" not in plain.derived.to_dict(), "plans of earlier versions keep their hash"
    assert plan.derived.to_dict()["consistent"] is True and Plan.from_json(plan.to_json()) == plan
    assert plan.hash != plain.hash and plan.space_id == plain.space_id
    with pytest.raises(StoreError, match="consistent None, asked True"):
        refuse_other(world.wanted().out, [plan], None)
    url = str(tmp_path / "agreeing.zarr")
    made(plan, url, units=slice(0, 1))
    store = made(plan, url, threads=2)
    assert store.verify() == []
    assert not set(objects(url).values()) & set(objects(world.wanted().out).values())
    mean = world.plan(consistent=True, method="mean")
    made(mean, str(tmp_path / "mean.zarr"), units=slice(0, 2))
    assert objects(str(tmp_path / "mean.zarr"))


def test_a_box_takes_whole_windows_of_the_parent(world: World) -> None:
    west, south, east, north = world.parent.plan.grid.parts[0]
    box = (west, south, (west + east) / 2, (south + north) / 2)
    plan = world.plan(boxes=(box,))
    mask = plan.grid.requested_mask
    ours = {(w.row // 4, w.col // 4) for w in plan.grid.requested_windows()}
    assert mask.sum() == 16 * len(ours)
    assert ours < {(w.row, w.col) for w in world.parent.plan.grid.requested_windows()}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"out": "fine.png"}, "give a name that ends in .zarr, or in .tif"),
        ({"steps": 0}, "--steps 0: choose 1 or more"),
        ({"samples": 0}, "--samples 0"),
        ({"seed": -1}, "--seed -1"),
        ({"method": "euler"}, "--method: no 'euler'"),
        ({"method": "mean", "samples": 3}, "the mean is the same every time"),
        ({"time": "7"}, "the cube has times 0 to 0"),
        ({"time": "2019-01-01"}, "none of its 1 times"),
        ({"weights": "no-such"}, "no-such"),
        ({"weights": "nano2"}, "no super-resolution weights"),
        ({"cube": "nowhere.zarr"}, "no eocube store"),
        ({"boxes": ((50.0, 10.0, 51.0, 11.0),)}, "--bbox touches no ground"),
    ],
)
def test_bad_input_is_one_line(world: World, other: dict[str, object], words: str) -> None:
    wanted = world.wanted(**other)
    with pytest.raises((InputError, StoreError), match=r".") as error:
        plans_of(check(wanted, None, "cpu"), 0)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_cubes_that_cannot_be_super_resolved_are_refused(
    world: World, fine: tuple[Plan, CubeStore], tmp_path: Path
) -> None:
    other = make_encoder(tmp_path / "other.safetensors", seed=9)
    stranger = make_store(str(tmp_path / "stranger.zarr"), make_parent_plan(other))
    l2a = make_encoder(tmp_path / "l2a.safetensors", sensor="S2L2A")
    full = make_store(str(tmp_path / "l2a.zarr"), make_parent_plan(l2a, sensor="S2L2A"))
    for cube, words in (
        (stranger.url, "another encoder"),
        (full.url, "encode with --sensor RGBN"),
        (world.wanted().out, "super-resolved itself"),
    ):
        with pytest.raises(InputError) as error:
            check(world.wanted(cube=cube, out=str(tmp_path / "o.zarr")), None, "cpu")
        assert words in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="is the cube that is read"):
        check(world.wanted(out=world.parent.url), None, "cpu")


def test_an_out_of_another_plan_is_refused(world: World, fine: tuple[Plan, CubeStore], tmp_path: Path) -> None:
    out = world.wanted().out
    refuse_other(out, [fine[0]], None)
    with pytest.raises(StoreError, match=r"made in another way \(seed 0, asked 1"):
        refuse_other(out, [world.plan(seed=1)], None)
    with pytest.raises(StoreError, match="a cube of its own"):
        refuse_other(world.parent.url, [fine[0]], None)
    with pytest.raises(StoreError):
        CubeStore.create(out, world.plan(steps=3))


def test_a_parent_that_changed_since_is_said(world: World, fine: tuple[Plan, CubeStore]) -> None:
    plan, _ = fine
    assert plan.derived is not None
    moved = replace(plan, derived=replace(plan.derived, parent_log="0" * 16))
    with pytest.raises(StoreError, match="has changed since"):
        refuse_other(world.wanted().out, [moved], None)


def test_a_damaged_parent_fails_its_windows_and_is_never_nodata(world: World, tmp_path: Path) -> None:
    copy = str(tmp_path / "parent.zarr")
    shutil.copytree(world.parent.url, copy)
    victim = max((Path(copy) / "latent/c").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    victim.write_bytes(victim.read_bytes()[:-9])
    (plan,) = plans_of(check(world.wanted(cube=copy), None, "cpu"), 0)
    store = made(plan, str(tmp_path / "fine.zarr"))
    states = [w for r in store.receipts() for w in r.windows if w.state is State.READ_FAILED]
    assert any("is not what was logged" in (w.reason or "") for w in states)
    assert store.verify() == []


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["int8", "codes"])
def test_other_storages_stay(tmp_path: Path, storage: str) -> None:
    encoder = make_encoder(tmp_path / "tiny.safetensors")
    parent = make_store(str(tmp_path / "parent.zarr"), make_parent_plan(encoder, storage=storage))
    weights = make_resolver(tmp_path / "sr.safetensors", encoder)
    wanted = Wanted(parent.url, str(tmp_path / "fine.zarr"), str(weights), steps=1)
    (plan,) = plans_of(check(wanted, None, "cpu"), 0)
    store = made(plan, wanted.out, units=slice(0, 1))
    assert store.storage.name == storage
    assert np.isfinite(eocube.open(wanted.out).eocube.values().values).any()


def test_times_are_chosen_by_index_date_and_interval(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "tiny.safetensors")
    parent = make_store(str(tmp_path / "parent.zarr"), make_parent_plan(encoder, times=TIMES))
    weights = make_resolver(tmp_path / "sr.safetensors", encoder)
    wanted = Wanted(parent.url, str(tmp_path / "fine.zarr"), str(weights), steps=1)
    for time, expected in (
        (None, TIMES),
        ("1", TIMES[1:]),
        ("2023-08-15", TIMES[:1]),
        ("2023-08-16/2023-08-30", TIMES[1:]),
    ):
        (plan,) = plans_of(check(replace(wanted, time=time), None, "cpu"), 0)
        assert tuple(step.time for step in plan.times) == tuple(expected)
    with pytest.raises(InputError, match="has 2 times: a GeoTIFF holds one"):
        check(replace(wanted, out=str(tmp_path / "x.tif")), None, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["upsampled", "sharpened"])
def test_weights_that_read_upsampled_pixels_get_them_from_the_cube(
    world: World, tmp_path: Path, conditioning: str
) -> None:
    """Decoded, brought up and encoded again; the same whatever the threads."""
    encoder = world.folder / "tiny.safetensors"
    weights = make_resolver(tmp_path / "up.safetensors", encoder, conditioning=conditioning)
    wanted = world.wanted(weights=str(weights), out=str(tmp_path / "up.zarr"))
    (plan,) = plans_of(check(wanted, None, "cpu"), 0)
    store = made(plan, wanted.out, units=slice(1, 3))
    again = made(plan, str(tmp_path / "again.zarr"), threads=3, units=slice(1, 3))
    assert objects(wanted.out) == objects(str(tmp_path / "again.zarr")) != {}
    assert store.verify() == again.verify() == []
