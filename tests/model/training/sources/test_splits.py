"""Geographic splits: no block in two splits, nothing within the margin, the same for every source and order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod

from model.training.sources.patch import Place
from model.training.sources.splits import BlockSplit, distance

RULE = BlockSplit(20_000, 4_000, {"train": 0.6, "val": 0.2, "test": 0.2}, seed=1)
GEOD = Geod(ellps="WGS84")


def patches(lon: float, lat: float, count: int = 26, step: float = 2_640, half: float = 1_320) -> list[Place]:
    """`count` by `count` patches side by side around a point."""
    north, east = step / 111_195, step / (111_195 * math.cos(math.radians(lat)))
    centred = np.arange(count) - (count - 1) / 2
    return [Place((lon + j * east + 180) % 360 - 180, lat + i * north, half) for i in centred for j in centred]


@pytest.mark.parametrize(("lon", "lat"), [(11.5, 48.1), (12.0, 0.0), (-70.0, -33.0), (179.95, 65.0), (20.0, 78.0)])
def test_splits_share_no_block_and_nothing_lies_within_the_margin(lon: float, lat: float) -> None:
    places = patches(lon, lat)
    chosen = {split: [places[i] for i in RULE.select(places, split)] for split in RULE.shares}
    assert sum(map(len, chosen.values())) < len(places)  # some are left out
    assert sum(bool(kept) for kept in chosen.values()) >= 2
    north, east = 1 / 111_195, 1 / (111_195 * math.cos(math.radians(lat)))
    blocks = {
        split: {
            RULE.block_of(p.lon + dx * p.half * east, p.lat + dy * p.half * north)
            for p in kept for dx in (-1, 0, 1) for dy in (-1, 0, 1)
        }
        for split, kept in chosen.items()
    }  # fmt: skip
    for one, other in itertools.combinations(RULE.shares, 2):
        assert not blocks[one] & blocks[other]
        if chosen[one] and chosen[other]:
            assert nearest(chosen[one], chosen[other]) >= RULE.margin


def nearest(ones: list[Place], others: list[Place]) -> float:
    """The least distance on WGS84 between two sets of patches, edge to edge at least, in metres."""
    pairs = [(a, b) for a in ones for b in others if abs(a.lat - b.lat) < 0.5]
    if not pairs:
        return math.inf
    _, _, centres = GEOD.inv(*zip(*[(a.lon, a.lat, b.lon, b.lat) for a, b in pairs], strict=True))
    return min(c - math.sqrt(2) * (a.half + b.half) for c, (a, b) in zip(centres, pairs, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-180, 180), st.floats(-84, 84), st.floats(0, 360), st.floats(0, 9_000), st.floats(0, 2_000),
    st.integers(0, 5),
)  # fmt: skip
def test_any_two_patches_of_different_splits_are_a_margin_apart(
    lon: float, lat: float, azimuth: float, far: float, half: float, seed: int
) -> None:
    rule = BlockSplit(10_000, 3_000, {"train": 0.5, "val": 0.5}, seed)
    there = GEOD.fwd(lon, lat, azimuth, far)
    a, b = Place(lon, lat, half), Place(there[0], there[1], half)
    splits = rule.split_of(a), rule.split_of(b)
    if None not in splits and splits[0] != splits[1]:
        assert far >= rule.margin


@settings(max_examples=60, deadline=None)
@given(st.floats(-180, 180), st.floats(-90, 90))
def test_every_point_is_in_one_block_and_a_patch_far_inside_is_of_its_split(lon: float, lat: float) -> None:
    row, column = RULE.block_of(lon, lat)
    assert RULE.block_of(lon + 360, lat) in {(row, column), (row, column + 1), (row, column - 1)}
    split = RULE.split_of(Place(lon, lat, 10.0))
    assert split in (None, RULE.split_of_block(row, column))


def test_blocks_are_about_as_large_as_asked_for_and_shares_are_kept() -> None:
    rule = BlockSplit(50_000, 0, {"train": 0.8, "val": 0.2})
    count = {"train": 0, "val": 0}
    for row in range(rule._rows):
        wide = 360 * 111_195 * math.cos(math.radians(180 * (row + 0.5) / rule._rows - 90)) / rule._columns(row)
        if 5 < row < rule._rows - 6:
            assert 45_000 < wide < 55_000
        for column in range(0, rule._columns(row), 7):
            count[rule.split_of_block(row, column)] += 1
    assert abs(count["val"] / sum(count.values()) - 0.2) < 0.01


def test_the_seed_decides_and_nothing_else_does() -> None:
    places = patches(11.5, 48.1)
    again = BlockSplit(20_000, 4_000, {"train": 0.6, "val": 0.2, "test": 0.2}, seed=1)
    assert [RULE.split_of(p) for p in places] == [again.split_of(p) for p in places]
    other = BlockSplit(20_000, 4_000, RULE.shares, seed=2)
    assert [RULE.split_of(p) for p in places] != [other.split_of(p) for p in places]


def test_the_antimeridian_is_no_border() -> None:
    west, east = Place(179.9999, 10.0, 100.0), Place(-179.9999, 10.0, 100.0)
    assert RULE.split_of(west) == RULE.split_of(east)
    assert distance(west, east) == 0.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0, 0, {"train": 1}), "block 0 m"),
        ((100, 50, {"train": 1}), "margin 50 m"),
        ((100, 10, {}), "shares"),
        ((100, 10, {"train": 0}), "not all 0"),
    ],
)
def test_rules_that_cannot_be_are_refused(arguments: tuple[float, float, dict[str, float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        BlockSplit(*arguments)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="no split 'dev': there are train, val, test"):
        RULE.select([], "dev")
