"""Shows that a store grows where it is anchored: nothing in it gets another place; ground without room is refused."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import eocube
from eocube.errors import InputError, StoreError
from eocube.ground.grid import CubeGrid, Lattice, grids_for
from eocube.net.objects import Objects
from eocube.plan.cost import Cost, Forecast, plan_summary
from eocube.plan.plan import Plan, build_plan, stored_extent
from eocube.products.eo_vae_document import latents
from eocube.report.info import describe, groups_of, info, plan_of
from eocube.run.arguments import EncodeOptions
from eocube.run.extend import grow_plans
from eocube.run.job import open_cubes
from eocube.run.plan_view import lines
from eocube.run.request import Request
from eocube.store.existing import zoned
from eocube.store.layout import template
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from eocube.store.tables import _asked
from tests.eocube.cubes import parsed
from tests.faults import killing
from tests.faults.killing import ENCODING, SENSOR, Death, Killed, drive, request_of, scene

SMALL = (11.500, 48.100, 11.518, 48.112)
NORTH_WEST = (11.470, 48.100, 11.518, 48.135)
ROOM = (11.465, 48.080, 11.550, 48.140)
BORDER = (11.96, 48.02, 12.04, 48.06)
"""Ground on both sides of 12 E, where zone 32 ends and 33 begins."""
LATTICE = Lattice(32632, 10, core_px=48, halo_px=16, shard_px=96)


def fresh_url() -> str:
    return f"memory://growth-{uuid.uuid4().hex}/cube.zarr"


def contents(url: str | Path) -> dict[str, bytes | None]:
    target = Objects(url)
    return {key: target.get(key) for key in target.keys("") if "lease" not in key}


def plan(box: tuple[float, ...], days: tuple[int, ...] = (10, 15), extent: tuple[float, ...] | None = None) -> Plan:
    return killing.plan_of(box, [scene(d) for d in days], (min(days), max(days)), extent)


def plans(box: tuple[float, ...], extent: tuple[float, ...] | None = None) -> list[Plan]:
    """One plan a zone, of one day."""
    changes = {} if extent is None else {"extent": [list(extent)]}
    grids = grids_for(tuple(box), 10, () if extent is None else (tuple(extent),), core_px=48, halo_px=16, shard_px=96)  # type: ignore[arg-type]
    return [
        build_plan(latents(SENSOR, ENCODING, g.lattice), g, [scene(10)], request_of(box, (10, 10), **changes))
        for g in grids
    ]


# -- the grid


@st.composite
def boxes_inside(draw: st.DrawFn) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Three boxes of some kilometres around 11.5 E, 48 N, each in the next."""
    west, east = draw(st.floats(11.0, 11.9)), draw(st.floats(0.002, 0.04))
    south, north = draw(st.floats(47.5, 48.5)), draw(st.floats(0.002, 0.03))
    nested = [(west, south, west + east, south + north)]
    for _ in range(2):
        by = [draw(st.sampled_from([0.0, 0.001, 0.01, 0.03])) for _ in range(4)]
        w, s, e, n = nested[-1]
        nested.append((w - by[0], s - by[1], e + by[2], n + by[3]))
    return nested[0], nested[1], nested[2]


@settings(max_examples=60)
@given(boxes_inside())
def test_growing_keeps_every_windows_shard_and_place(boxes: tuple[tuple[float, ...], ...]) -> None:
    small, large, extent = (tuple(map(float, b)) for b in boxes)
    first = CubeGrid.over(LATTICE, [small], [extent])  # type: ignore[list-item]
    grown = CubeGrid.over(LATTICE, [large], [extent]).anchored_at(first)  # type: ignore[list-item]
    assert (grown.shard_row0, grown.shard_col0) == (first.shard_row0, first.shard_col0)
    assert all(a >= b for a, b in zip(grown.shape, first.shape, strict=True))
    assert grown.shape[0] % LATTICE.shard == grown.shape[1] % LATTICE.shard == 0
    rows, cols = first.windows_shape
    assert (grown.requested_mask[:rows, :cols] >= first.requested_mask).all()
    for window in first.requested_windows():
        assert grown.requested(window)
        assert grown.shard_of(window) == first.shard_of(window)
        assert grown.place_in_status(window) == first.place_in_status(window)
        assert grown.window_at(*first.place_in_status(window)) == window
    assert np.array_equal(grown.x[: first.shape[1]], first.x) and np.array_equal(grown.y[: first.shape[0]], first.y)
    assert set(first.shards()) <= set(grown.shards())
    assert CubeGrid.from_dict(json.loads(json.dumps(grown.to_dict()))) == grown
    assert int(grown.requested_mask.sum()) == sum(1 for _ in grown.requested_windows())
    row0, col0, row1, col1 = grown.extent
    within = grown.requested_mask[row0 // 6 : row1 // 6, col0 // 6 : col1 // 6]
    assert within.sum() == grown.requested_mask.sum() and within.any(0)[[0, -1]].all() and within.any(1)[[0, -1]].all()


@settings(max_examples=60)
@given(boxes_inside())
def test_reserved_ground_changes_nothing_that_is_asked_for(boxes: tuple[tuple[float, ...], ...]) -> None:
    small, _, extent = (tuple(map(float, b)) for b in boxes)
    bare = CubeGrid.over(LATTICE, [small])  # type: ignore[list-item]
    roomy = CubeGrid.over(LATTICE, [small], [extent])  # type: ignore[list-item]
    assert CubeGrid.over(LATTICE, [small], [small]) == bare  # type: ignore[list-item]
    assert list(roomy.requested_windows()) == list(bare.requested_windows())
    assert {roomy.lattice_shard(*s) for s in roomy.shards()} == {bare.lattice_shard(*s) for s in bare.shards()}
    assert roomy.lonlat_bounds_with_halo() == bare.lonlat_bounds_with_halo()
    assert roomy.shard_row0 <= bare.shard_row0 and roomy.shard_col0 <= bare.shard_col0
    inside = [w for s in bare.shards() for w in bare.windows_of_shard(*s)]
    assert [roomy.requested(w) for w in inside] == [bare.requested(w) for w in inside]


@settings(max_examples=60)
@given(boxes_inside())
def test_ground_before_the_corner_is_refused_and_no_other(boxes: tuple[tuple[float, ...], ...]) -> None:
    small, large, _ = (tuple(map(float, b)) for b in boxes)
    stored = CubeGrid.over(LATTICE, [small])  # type: ignore[list-item]
    asked = CubeGrid.over(LATTICE, [large])  # type: ignore[list-item]
    beyond = asked.shard_row0 < stored.shard_row0 or asked.shard_col0 < stored.shard_col0
    if beyond:
        with pytest.raises(InputError, match="never moves"):
            asked.anchored_at(stored)
    else:
        grown = asked.anchored_at(stored)
        assert list(grown.requested_windows()) == list(asked.requested_windows())


def test_another_lattice_is_not_grown_into() -> None:
    stored = CubeGrid.over(LATTICE, [SMALL])
    with pytest.raises(InputError, match="not the store's"):
        CubeGrid.over(replace(LATTICE, shard_px=192), [SMALL]).anchored_at(stored)


@pytest.mark.slow
@settings(max_examples=10)
@given(boxes_inside())
def test_a_grown_store_has_the_keys_and_bytes_of_one_made_so(boxes: tuple[tuple[float, ...], ...]) -> None:
    small, large, extent = boxes
    assume((large[2] - large[0]) * (large[3] - large[1]) < 0.004)
    grown, fresh = fresh_url(), fresh_url()
    drive(grown, plan(small, (10,), extent))
    before = {k: v for k, v in contents(grown).items() if k.startswith("latent/c")}
    drive(grown, plan(large, (10,), extent))
    drive(fresh, plan(large, (10,), extent))
    latents = [{k: v for k, v in contents(u).items() if k.startswith(("latent/c", "valid/c"))} for u in (grown, fresh)]
    assert latents[0] == latents[1] and before.keys() <= latents[0].keys()


# -- the request


def request(**changes: Any) -> Request:
    box = tuple(str(v) for v in SMALL)
    return parsed(EncodeOptions(box, "2023-08", out="cube.zarr", **changes))


def test_the_extent_is_part_of_the_request_only_when_used() -> None:
    assert "extent" not in request().document()
    assert request(extent=tuple(map(str, ROOM))).document()["extent"] == [list(ROOM)]


@pytest.mark.parametrize(
    ("extent", "says"),
    [
        (("11", "48"), "--extent takes four numbers, west south east north; 2 given"),
        (("11.51", "48.0", "12.0", "49.0"), "--bbox 11.5 48.1 11.518 48.112 is not inside --extent 11.51 48 12 49"),
        (("a", "48.0", "12.0", "49.0"), "--extent: 'a' is not a number"),
    ],
)
def test_an_extent_that_cannot_be_is_refused(extent: tuple[str, ...], says: str) -> None:
    with pytest.raises(InputError, match="^" + says.replace("(", r"\(")) as refused:
        request(extent=extent)
    assert "\n" not in str(refused.value)


# -- stores


@pytest.mark.parametrize(
    ("larger", "extent", "says"),
    [
        (NORTH_WEST, None, r"takes shards up to 2.88 km north and 1.92 km west of the store's north-western corner"),
        (SMALL, ROOM, r"the ground or extent asked for in utm32 takes shards up to"),
    ],
)
def test_ground_north_or_west_is_refused_before_anything_is_written(
    larger: tuple[float, ...], extent: tuple[float, ...] | None, says: str
) -> None:
    url = fresh_url()
    drive(url, plan(SMALL))
    before = contents(url)
    with pytest.raises(StoreError, match=says + r".*write to another --out, with an --extent") as refused:
        drive(url, plan(larger, (10, 15), extent))
    assert "\n" not in str(refused.value) and contents(url) == before


def test_the_store_itself_refuses_another_corner_and_smaller_arrays() -> None:
    url = fresh_url()
    drive(url, plan(SMALL, extent=ROOM))
    before = contents(url)
    stored = plan(SMALL, extent=ROOM)
    for grid, says in (
        (replace(stored.grid, shard_row0=stored.grid.shard_row0 - 1), "corner of a store never moves"),
        (replace(stored.grid, shard_rows=stored.grid.shard_rows - 1), "arrays of a store never shrink"),
    ):
        with pytest.raises(StoreError, match=says):
            CubeStore.create(url, replace(stored, grid=grid, extends=(stored.hash,)))
    assert contents(url) == before


def test_an_extent_gets_larger_in_the_south_and_east_and_never_smaller() -> None:
    url = fresh_url()
    drive(url, plan(SMALL, extent=ROOM))
    larger = (ROOM[0], 48.060, 11.560, ROOM[3])
    assert drive(url, plan(SMALL, extent=larger)).reads == []
    grid = Plan.from_json(CubeStore.stored_plans(url)[0]).grid
    assert CubeStore.open(url).values.shape[2:] == grid.shape > plan(SMALL, extent=ROOM).grid.shape
    assert CubeStore.open(url).verify() == []
    for fewer in (ROOM, None):
        with pytest.raises(StoreError, match=r"has room for the extent .* leave --extent out"):
            grow_plans(url, [plan(SMALL, extent=larger)], [plan(SMALL, (10, 15, 20), fewer)])


def test_reserved_ground_holds_no_objects_and_is_outside() -> None:
    bare, roomy = fresh_url(), fresh_url()
    drive(bare, plan(SMALL))
    drive(roomy, plan(SMALL, extent=ROOM))
    shards = [[v for k, v in contents(u).items() if k.startswith("latent/c")] for u in (bare, roomy)]
    assert sorted(filter(None, shards[0])) == sorted(filter(None, shards[1]))
    store = CubeStore.open(roomy)
    assert store.verify() == [] and store.requested.sum() == CubeStore.open(bare).requested.sum()
    assert store.requested.size > 4 * CubeStore.open(bare).requested.size


@pytest.mark.slow
def test_windows_of_wide_reserved_ground_are_outside_and_cost_no_memory() -> None:
    """Room for many objects of the window arrays, ground asked for in two of them."""
    url, wide = fresh_url(), (11.0, 47.8, 12.0, 48.4)
    asked = plan((11.500, 48.100, 11.530, 48.112), (10,), wide)
    drive(url, asked)
    store = CubeStore.open(url)
    assert store.verify() == [] and (np.array(store.requested.shape) > 130).all()
    ds = xr.open_zarr(url, mask_and_scale=False)[["status", "valid_percent", "psnr"]].load()
    mask = asked.grid.requested_mask
    assert (ds.status.values[0][mask] == State.OK).all() and (ds.status.values[0][~mask] == State.OUTSIDE).all()
    assert (ds.valid_percent.values[0][~mask] == 255).all() and not np.isfinite(ds.psnr.values[0][~mask]).any()
    rows, cols = _asked(mask, (64, 64))
    assert rows.start % 64 == cols.start % 64 == 0 and mask[rows, cols].sum() == mask.sum()
    assert mask[rows, cols].size < mask.size / 2


def test_plan_and_info_say_the_room_and_how_much_of_it_is_asked_for(tmp_path: Path) -> None:
    url, roomy = str(tmp_path / "cube.zarr"), plan(SMALL, extent=ROOM)
    drive(url, roomy)
    said = info(url)
    share = 100 * roomy.grid.requested_mask.mean()
    assert said.extent == (ROOM,) and said.requested_percent == pytest.approx(share, abs=0.01)
    assert "[11.465, 48.08, 11.55, 48.14]" in describe(said.document())
    nothing = Cost(0, 0, 0, "", 0, {}, "cpu", None, "", None, None, None)
    height, width = (n * 0.08 for n in roomy.grid.shape)
    room = f"{said.requested_percent:g} % of it asked for; grow anywhere in 11.465 48.08 11.55 48.14"
    assert f"{width:g} x {height:g} km, {room}" in lines([Forecast(plan_summary(roomy), nothing)])
    assert "grow south and east, all round with --extent" in lines([Forecast(plan_summary(plan(SMALL)), nothing)])


# -- several zones


def cubes_of(url: str, asked: list[Plan]) -> list[str]:
    options = EncodeOptions(tuple(map(str, SMALL)), "2023-08", out=url)
    return [cube.url for cube in open_cubes(parsed(options), asked, None)]


def test_a_zone_that_the_extent_reaches_comes_later(tmp_path: Path) -> None:
    url, west = str(tmp_path / "cube.zarr"), (11.97, 48.03, 11.98, 48.04)
    assert cubes_of(url, plans(west, BORDER)) == [f"{url}/utm32"]
    corner = CubeStore.open(f"{url}/utm32").document["grid"]["transform"]
    assert groups_of(url, None) == ["utm32"] and plan_of(f"{url}/utm32", None).grid.name == "utm32"
    with pytest.raises(StoreError, match="one cube a zone: add --group with one of utm32"):
        plan_of(url, None)
    stored = [Plan.from_json(t) for t in CubeStore.stored_plans(url)]
    assert stored_extent(stored) == (BORDER,) and zoned(url, stored, None) and not zoned(f"{url}/utm32", stored, None)
    grown = grow_plans(url, stored, plans((11.965, 48.03, 12.03, 48.05), BORDER))
    assert [p.grid.name for p in grown] == ["utm32", "utm33"]
    assert cubes_of(url, list(grown)) == [f"{url}/utm32", f"{url}/utm33"]
    assert CubeStore.open(f"{url}/utm32").document["grid"]["transform"] == corner
    # The second zone's own corner is that of the extent's part in it.
    ((_, room),) = [
        (g.name, g) for g in grids_for(BORDER, 10, core_px=48, halo_px=16, shard_px=96) if g.name == "utm33"
    ]
    assert grown[1].grid.shard_row0 == room.shard_row0 and grown[1].grid.shard_col0 == room.shard_col0
    assert groups_of(url, None) == ["utm32", "utm33"]


@pytest.mark.slow
def test_killed_while_a_zone_comes_later_the_same_command_ends_alike() -> None:
    """At every writing storage call of it, before and after: what there was stays whole, and the rerun ends alike."""
    west, wide = plans((11.97, 48.03, 11.98, 48.04), BORDER), plans((11.965, 48.03, 12.03, 48.05), BORDER)

    def made(url: str, death: Death) -> dict[str, bytes | None]:
        with death.hanging_over():
            stored = [Plan.from_json(text) for text in CubeStore.stored_plans(url)]
            cubes_of(url, list(grow_plans(url, stored, wide)))
        return contents(url)

    def begun() -> str:
        url = fresh_url()
        cubes_of(url, west)
        return url

    watch = Death()
    calm = made(begun(), watch)
    for at in range(1, watch.calls + 1, 9):
        for after in (False, True):
            url = begun()
            with pytest.raises(Killed):
                made(url, Death(at, after=after))
            assert CubeStore.open(f"{url}/utm32").verify() is not None  # opens at any moment
            assert made(url, Death()) == calm, (at, after)


def test_a_store_of_one_zone_takes_no_extent_over_several() -> None:
    url, west = fresh_url(), (11.97, 48.03, 11.98, 48.04)
    stored = plans(west)
    with pytest.raises(StoreError, match=r"holds utm32 alone .* reaches utm33 too: .* --extent that reaches them all"):
        grow_plans(url, stored, plans(west, BORDER))


# -- what version 0.1 left behind


def test_a_store_left_half_moved_is_named_with_the_way_out(tmp_path: Path) -> None:
    url, asked = str(tmp_path / "cube.zarr"), plan(SMALL)
    drive(url, asked)
    target = Objects(url)
    target.put("commits/moving.json", b"{}")
    drive(url, asked)  # the note outlived the move: nothing is wrong
    target.delete("zarr.json")
    before = contents(url)
    for attempt in (
        lambda: CubeStore.open(url),
        lambda: CubeStore.create(url, asked),
        lambda: CubeStore.stored_plans(url),
        lambda: plan_of(url, None),
        lambda: eocube.open(url),
    ):
        with pytest.raises(StoreError, match=r"half-way by version 0.1.*moving.json.*finish with eocube 0.1") as named:
            attempt()
        assert "\n" not in str(named.value)
    assert contents(url) == before


def test_nothing_of_a_plan_or_template_knows_an_extent_that_is_not_used() -> None:
    """The request and hash of a store made before are what they were."""
    bare = plan(SMALL)
    assert "extent" not in bare.to_json().replace('"extends"', "") and "extent" not in bare.request
    assert template(bare).keys() == template(plan(SMALL, extent=SMALL)).keys()
    assert bare.hash == plan(SMALL, extent=SMALL).hash
