"""Where pairs come from: Wald's squares, Sen2NAIP's areas; their splits, flips and places; what is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eocube.cube.window_index import Ground
from eocube.errors import InputError
from eocube.pairs.encoding import filled
from eocube.pairs.pixel_pairs import PairNote, flipped, rows_of, split_notes
from eocube.pairs.sen2naip import Sen2Naip, read_sen2naip
from eocube.pairs.wald import FileImage, WaldPairs, wald_pairs
from eocube.products.lone_windows import HALO
from model.training.sources.splits import BlockSplit, distance
from model.wald import degrade, mtf_of
from tests.eocube.pair_world import BANDS, NORTH, image, reflectance, write_area, write_tif


def test_squares_and_their_low_resolution_are_those_of_the_whole_image() -> None:
    whole = image("a", (200, 168))
    pairs = WaldPairs([whole], 4, 64, 64)
    low = degrade(torch.from_numpy(whole.data), mtf_of(BANDS), 4).numpy()
    assert [n.id for n in pairs.notes][:2] == ["a/00000_00000", "a/00000_00064"]
    assert len(pairs.notes) == 4 * 3  # 0, 64, 128, 136 down; 0, 64, 104 along
    for k, note in enumerate(pairs.notes):
        pair = pairs.read(k)
        row, col = (int(v) for v in note.id.rpartition("/")[2].split("_"))
        np.testing.assert_array_equal(pair.hr, whole.data[:, row : row + 64, col : col + 64])
        expected = low[:, row // 4 : row // 4 + 16, col // 4 : col // 4 + 16]
        np.testing.assert_allclose(pair.lr, expected, atol=1e-6)
        assert pair.transform == (10, 0, NORTH[2] + 10 * col, 0, -10, NORTH[5] - 10 * row)
        assert note.bounds == (NORTH[2] + 10 * col, NORTH[5] - 10 * (row + 64), NORTH[2] + 10 * (col + 64),
                               NORTH[5] - 10 * row)  # fmt: skip
        # The halo is the image's own, NaN where it has ended.
        assert pair.hr_wide is not None and pair.lr_wide is not None
        padded = np.pad(whole.data, ((0, 0), (HALO, HALO), (HALO, HALO)), constant_values=np.nan)
        np.testing.assert_array_equal(pair.hr_wide, padded[:, row : row + 64 + 2 * HALO, col : col + 64 + 2 * HALO])
        padded = np.pad(low, ((0, 0), (HALO, HALO), (HALO, HALO)), constant_values=np.nan)
        around = padded[:, row // 4 : row // 4 + 16 + 2 * HALO, col // 4 : col // 4 + 16 + 2 * HALO]
        np.testing.assert_allclose(pair.lr_wide, around, atol=1e-6)
    assert len(list(wald_pairs([whole], 4, 64, stride=64))) == len(pairs.notes)


def test_small_images_nodata_and_copies() -> None:
    gap = image("gap", (128, 128), 1)
    gap.data[:, 100:, 100:] = np.nan
    images = [image("large", (128, 256)), image("small", (100, 120), 2), image("tiny", (60, 90), 3), gap,
              image("copy", (128, 256), place="large")]  # fmt: skip
    pairs = WaldPairs(images, 4, 128, 64, 96)
    assert {(n.place, n.side) for n in pairs.notes} == {("large", 128), ("small", 96)}
    assert pairs.skipped == {
        "images under 96 px a side": 1, "squares that lack pixels": 1, "images with the pixels of another": 1,
    }  # fmt: skip
    # A square whose low resolution depends on a pixel that is not there is none either.
    near = image("near", (128, 136))
    near.data[:, :, 132:] = np.nan
    assert [n.id for n in WaldPairs([near], 4, 128, 128).notes] == []


def test_a_raster_is_read_window_by_window(tmp_path: Path) -> None:
    values = reflectance((96, 160), 4)
    counts = np.rint(values * 1e4 + 1000).astype(np.uint16)
    path = write_tif(tmp_path / "x.tif", counts, nodata=0)
    file = FileImage.open(path, BANDS, level="S2L2A", scale=1e-4, offset=-0.1)
    pairs = WaldPairs([file], 4, 64, 64, 64)
    held = WaldPairs([image("x", (96, 160), 4)], 4, 64, 64, 64)
    assert [n.id for n in pairs.notes] == [n.id for n in held.notes] and pairs.notes[0].epsg == 32632
    for k in range(len(pairs.notes)):
        np.testing.assert_allclose(pairs.read(k).lr, held.read(k).lr, atol=1e-6)
    with pytest.raises(InputError, match="has 4 bands, 3 are wanted"):
        FileImage.open(path, BANDS[:3], level="x", scale=1, offset=0)
    with pytest.raises(InputError, match="cannot be read as a raster"):
        FileImage.open(str(tmp_path / "none.tif"), BANDS, level="x", scale=1, offset=0)


@pytest.mark.parametrize(("side", "images", "told"), [
    (100, ["a"], "multiples of 32 px"),
    (64, [], "no images"),
])  # fmt: skip
def test_what_cannot_be_cut_is_said(side: int, images: list[str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        WaldPairs([image(name) for name in images], 4, side)


def test_images_of_other_bands_are_refused() -> None:
    other = replace(image("b"), bands=("B02", "B03", "B04", "B08"))
    with pytest.raises(InputError, match="all need the same"):
        WaldPairs([image("a"), other], 4, 64)


@given(st.integers(0, 7), st.integers(0, 2**31))
def test_flips_are_the_symmetries_and_commute_with_degrading(flip: int, seed: int) -> None:
    x = np.random.default_rng(seed).random((1, 32, 32), np.float32)
    low = degrade(torch.from_numpy(x), (0.25,), 4).numpy()
    turned = degrade(torch.from_numpy(flipped(x, flip)), (0.25,), 4).numpy()
    np.testing.assert_allclose(turned, flipped(low, flip), atol=1e-6)
    assert len({flipped(x, k).tobytes() for k in range(8)}) == 8


def test_what_has_no_neighbours_is_mirrored() -> None:
    core = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    wide = filled(core, None)
    assert wide.shape == (1, 4 + 2 * HALO, 4 + 2 * HALO)
    np.testing.assert_array_equal(wide[0, HALO, HALO - 3 : HALO + 7], [3, 2, 1, 0, 1, 2, 3, 2, 1, 0])
    around = np.full_like(wide, np.nan)
    around[:, HALO:-HALO, HALO : HALO + 10] = 7
    mixed = filled(core, around)
    assert (mixed[:, HALO:-HALO, HALO : HALO + 10] == 7).all()
    np.testing.assert_array_equal(mixed[:, :HALO], wide[:, :HALO])


RULE = BlockSplit(20_000, 2_000, {"train": 0.6, "val": 0.2, "test": 0.2}, 3)


@settings(max_examples=30)
@given(st.integers(0, 2**31))
def test_no_held_out_neighbour_lies_within_the_margin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    notes = [
        PairNote(f"{k}", "p", "x", 10, 256, None, 32632, (10, 0, 300_000 + x, 0, -10, 5_300_000 + y))
        for k, (x, y) in enumerate(rng.uniform(0, 90_000, (40, 2)))
    ]
    split = split_notes(notes, RULE)
    kept: list[tuple[str, Ground]] = [(n.split, n.ground) for n in split if n.split and n.ground]
    for k, (one, here) in enumerate(kept):
        for other, there in kept[:k]:
            assert one == other or distance(here, there) >= 2_000 or distance(here, there) == 0
    # What `distance` cannot tell (it counts half diagonals off): blocks within the margin are all of the pair's split.
    for note in split:
        assert note.split == RULE.split_of(note.ground)  # type: ignore[arg-type]


def test_rows_are_the_splits_wanted_and_training_is_turned_and_mixed() -> None:
    notes = [PairNote(f"{k}", "p", "x", 10, 64, split) for k, split in enumerate(["train"] * 5 + ["val", "test", None])]
    rows = rows_of(notes, splits=("train", "val"), flips=3)
    assert [r.note.split for r in rows] == ["train"] * 15 + ["val"]
    assert sorted((r.source, r.note.flip) for r in rows[:15]) == [(k, f) for k in range(5) for f in range(3)]
    assert [r.source for r in rows[:15]] != sorted(r.source for r in rows[:15])
    assert rows == rows_of(notes, splits=("train", "val"), flips=3) and rows[15].note.flip == 0
    assert len({r.note.id for r in rows}) == 16
    assert [n.split for n in split_notes(notes, "val")] == ["val"] * 8
    with pytest.raises(InputError, match="does not say where it lies"):
        split_notes(notes, RULE)
    with pytest.raises(InputError, match="1 to 8"):
        rows_of(notes, splits=("train",), flips=9)
    with pytest.raises(InputError, match="two pairs are called '1'"):
        rows_of([*notes, notes[1]], splits=("train",))


def test_a_place_in_degrees_has_a_ground_in_metres() -> None:
    note = PairNote("a", "p", "x", 1e-4, 100, None, 4326, (1e-4, 0, 11.0, 0, -1e-4, 48.0))
    ground = note.ground
    assert ground is not None and ground.half == pytest.approx(555.975, rel=1e-2)
    assert (ground.lon, ground.lat) == pytest.approx((11.005, 47.995))
    assert PairNote("a", "p", "x", 1, 1).ground is None and math.isnan(PairNote("a", "p", "x", 1, 1).bounds[0])


# -- Sen2NAIP


def test_an_area_is_resampled_as_published(tmp_path: Path) -> None:
    write_area(tmp_path / "b", 1)
    write_area(tmp_path / "a", 2)
    pairs = list(read_sen2naip(tmp_path, 64))
    assert [p.id for p in pairs] == ["AOI_a", "AOI_b"]
    for pair in pairs:
        assert pair.lr.shape == (4, 16, 16) and pair.hr.shape == (4, 64, 64) and pair.crs == 32632
        assert pair.lr.min() > 0.02 and pair.lr.max() < 0.4 and pair.hr.min() >= 0 and pair.hr.max() <= 255
        # 60 px of 2.5 m are 64 px now, of the same ground.
        assert pair.transform == pytest.approx((2.34375, 0, 500_000, 0, -2.34375, 5_300_000))
    assert Sen2Naip(tmp_path, 64).notes[0].resolution == 2.3438


def test_resampling_is_half_pixel_exact(tmp_path: Path) -> None:
    folder = write_area(tmp_path / "a")
    ramp = np.broadcast_to((np.arange(60) * 4).astype(np.uint8), (4, 60, 60))
    write_tif(folder / "hr.tif", np.ascontiguousarray(ramp), transform=(2.5, 0, 500_000, 0, -2.5, 5_300_000))
    (pair,) = read_sen2naip(tmp_path, 64)
    expected = 4 * ((np.arange(64) + 0.5) * 60 / 64 - 0.5)
    np.testing.assert_allclose(pair.hr[0, 5, 1:-1], expected[1:-1], atol=1e-4)


@pytest.mark.parametrize(("spoil", "told"), [
    (lambda f: (f / "hr.tif").unlink(), "unpaired, it has no hr.tif"),
    (lambda f: (f / "metadata.json").write_text("["), "no JSON"),
    (lambda f: (f / "metadata.json").write_text(json.dumps({"proj:epsg": 32610})), "says EPSG:32610"),
    (lambda f: write_tif(f / "hr.tif", np.zeros((4, 60, 60), np.uint8), 32633), "both need one CRS"),
    (lambda f: write_tif(f / "hr.tif", np.zeros((3, 60, 60), np.uint8)), "hr.tif 3: both need 4"),
    (lambda f: write_tif(f / "hr.tif", np.zeros((4, 58, 60), np.uint8)), "hr.tif has 58x60 px, lr.tif 15x15"),
    (lambda f: (f / "lr.tif").write_text("no"), "not recognized"),
])  # fmt: skip
def test_a_spoilt_area_is_named_in_one_line(tmp_path: Path, spoil, told: str) -> None:  # type: ignore[no-untyped-def]
    write_area(tmp_path / "a")
    spoil(write_area(tmp_path / "b"))
    with pytest.raises(InputError, match=told) as raised:
        Sen2Naip(tmp_path, 64)
    assert "/b" in str(raised.value) and "\n" not in str(raised.value)


def test_no_areas(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folders"):
        Sen2Naip(tmp_path)
    with pytest.raises(InputError, match="no folder"):
        Sen2Naip(tmp_path / "none")
    with pytest.raises(InputError, match="multiple of 32"):
        Sen2Naip(tmp_path, 100)
