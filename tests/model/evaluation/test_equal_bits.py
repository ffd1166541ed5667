"""At equal bits: entropies by hand, rates that are met, rows for every codec over all tiles and by place, shown."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.evaluate import packed
from model.eo_vae import EOVAE, EOVAEConfig
from model.evaluation import report
from model.evaluation.codecs import JPEG2000
from model.evaluation.equal_bits import Compared, Row, Yardsticks, compare
from model.evaluation.equal_bits_shown import by_place, draw, table
from model.evaluation.rates import COARSEST, Codes, Spread, entropy, meeting
from model.sensors import SENSORS, Floats
from model.training.eo_vae.klt import Klt, to_blocks

RADAR = SENSORS["S1RTC"]
TINY = EOVAEConfig(
    ch=16, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, norm_groups=2, hypernet_layers=1, wavelength_dim=32,
    hypernet_ff=32, hypernet_heads=2,
)  # fmt: skip
STEPS = (0.05,) * 4
NAMES = ["codes", "KLT", "JPEG 2000", "PCA of bands, JPEG 2000"]


def tile(seed: int = 0) -> Floats:
    """Two bands that lie alike, smooth with some noise."""
    rng = np.random.default_rng(seed)
    relief = np.add.outer(np.sin(np.arange(96) / 9), np.cos(np.arange(96) / 7))
    return (relief[None] * [[[1.0]], [[0.8]]] + 0.1 * rng.standard_normal((2, 96, 96))).astype(np.float32)


def klt_of(tiles: list[Floats], coefficients: int = 128) -> Klt:
    blocks = np.concatenate([to_blocks(t) for t in tiles]).astype(np.float64)
    basis = np.linalg.eigh(np.cov(blocks.T))[1][:, ::-1][:, :coefficients]
    return Klt(blocks.mean(0), np.ascontiguousarray(basis))


def network() -> EOVAE:
    torch.manual_seed(0)
    return EOVAE(TINY).eval()


def compared(tiles: list[Floats], grounds: list[str]) -> Compared:
    others = Yardsticks({"KLT": klt_of([tile(2)])}, [JPEG2000])
    return compare(network(), STEPS, RADAR, tiles, grounds, packed, others)


@pytest.fixture(scope="module")
def two() -> Compared:
    """Of two places, the second of more contrast."""
    return compared([tile(), 4 * tile(1)], ["a", "b"])


def test_entropy_by_hand() -> None:
    assert entropy(np.array([0, 0, 1, 1])) == 1 and entropy(np.array([7, 7, 7])) == 0
    assert entropy(np.array([0, 1, 2, 3, 4, 5, 6, 7])) == pytest.approx(3)
    assert entropy(np.array([-(10**12), 0, 0, 10**12])) == pytest.approx(1.5)


def test_a_setting_is_found_or_the_end_next_to_it() -> None:
    assert meeting(lambda s: 10 / s, 4, 0.01, 100) == pytest.approx(2.5, rel=2e-3)
    assert meeting(lambda s: 10 / s, 1e6, 0.01, 100) == pytest.approx(0.01, rel=1e-3)
    assert meeting(lambda s: 10 / s, 0, 0.01, 100) == pytest.approx(100, rel=1e-3)


def test_the_step_gives_the_rate_and_a_wider_one_less() -> None:
    spread = Spread.of(klt_of([tile()]), [tile(1)])
    for size in (8.0, 20.0, 40.0):
        step = spread.step_for(size)
        assert spread.size(step) == pytest.approx(size, rel=0.05) and spread.size(2 * step) < spread.size(step)
    # At high rate half the step is a bit more of each coefficient.
    fine = spread.step_for(60.0)
    assert spread.size(fine / 2) - spread.size(fine) == pytest.approx(128 / 8, rel=0.25)


def test_codes_meet_a_size_within_3_percent_and_stay_int16() -> None:
    codes = Codes.of(network(), RADAR, STEPS, [tile(), tile(1)], packed)
    for size in (2, 4, 6):  # 4 latents a block of 2 bytes at most
        assert sum(codes.sizes(codes.factor_for(size))) / codes.blocks == pytest.approx(size, rel=0.03)
    most = codes.factor_for(64)
    assert 6 < sum(codes.sizes(most)) / codes.blocks < 9 and codes.factor_for(100) == most
    seen: list[int] = []
    replace(codes, pack=lambda c: seen.append(int(np.abs(c.astype(np.int64) - 128).max())) or 0).sizes(codes.finest)
    assert 20_000 < max(seen) < 32_767 - 128  # a halo may reach further
    assert codes.finest < most < 1 < COARSEST


def test_every_codec_gets_the_bytes_of_codes(two: Compared) -> None:
    assert list(two.pooled) == NAMES and list(two.places) == ["a", "b"] and two.tiles == 2
    for lines in (two.pooled, *two.places.values()):
        codes = {row.rate: row for row in lines["codes"]}
        assert None in codes and [r for r in codes if r is not None] == sorted(set(codes) - {None})
        for name, line in lines.items():
            assert len(line) >= len(codes) - 3, name
            for row in line:  # the smallest files have headers that a codec cannot do without: no row
                assert row.size <= codes[row.rate].size * 1.05, name
                assert row.ndvi is None and np.isfinite(row.psnr) and 0 <= row.sam <= np.pi
        for own, other in zip(lines["codes"], lines["KLT"], strict=True):
            assert other.size == pytest.approx(own.size, rel=0.02)
    codes_sizes = [row.size for row in two.pooled["codes"]]
    assert codes_sizes == sorted(codes_sizes)
    near = {row.rate: row.size for row in two.pooled["codes"]}
    assert near[2] == pytest.approx(2, rel=0.03) and near[4] == pytest.approx(4, rel=0.03)
    # What four latents cannot take is one row, of its true size.
    assert [rate for rate in near if rate is not None and rate >= 12] == [12] and near[12] < 9
    # Two bands that lie alike: turned into their components, they cost less.
    last = two.pooled["codes"][-1].rate
    turned, plain = ({r.rate: r.psnr for r in two.pooled[n]} for n in ("PCA of bands, JPEG 2000", "JPEG 2000"))
    assert turned[last] > plain[last]


def test_places_make_up_the_whole(two: Compared) -> None:
    for name in ("codes", "JPEG 2000"):
        for whole in two.pooled[name]:
            parts = [row for lines in two.places.values() for row in lines[name] if row.rate == whole.rate]
            assert np.mean([p.size for p in parts]) == pytest.approx(whole.size)
            mean = np.mean([10 ** (-p.psnr / 10) for p in parts])
            assert -10 * np.log10(mean) == pytest.approx(whole.psnr)
            assert np.mean([p.sam for p in parts]) == pytest.approx(whole.sam)
    # A place's KLT has the bytes of its codes, not those of all.
    sizes = [next(r.size for r in lines["KLT"] if r.default) for lines in two.places.values()]
    assert sizes[0] != pytest.approx(sizes[1], rel=0.01)


@pytest.mark.slow
def test_one_place_is_the_whole() -> None:
    one = compared([tile(), tile(1)], ["a", "a"])
    assert one.places == {"a": one.pooled}


def test_ndvi_is_pooled_where_its_bands_are() -> None:
    optical = np.random.default_rng(0).normal(size=(4, 96, 96)).astype(np.float32)
    found = compare(network(), STEPS, SENSORS["RGBN"], [optical], ["a"], packed, Yardsticks({}, []))
    assert list(found.pooled) == ["codes"] and all((row.ndvi or 0) > 0 for row in found.pooled["codes"])


def test_tables_align_rates_and_mark_the_default() -> None:
    code = (Row(2, 2.0, 20, 0.3, None), Row(None, 14.7, 30, 0.2, 0.01), Row(16, 16.1, 31, 0.1, None))
    lines = {"codes": code, "JPEG 2000": (Row(16, 15.9, 25, 0.4, None),)}
    assert table(lines)[2:] == [
        "| 2.0 | 20.0 / 0.3000 | - |",
        "| 14.7 (default) | 30.0 / 0.2000 / 0.0100 | - |",
        "| 16.1 | 31.0 / 0.1000 | 25.0 / 0.4000 |",
    ]
    bare = {"codes": (Row(None, 15.5, 28, 0.2, None), Row(16, 20.0, 31, 0.1, None))}
    item = Compared(1.0, 3, lines, {"a": lines, "b": bare})
    assert by_place(item)[2:] == ["| a | 16.1 | 31.0 | 25.0 |", "| b | 15.5 (default) | 28.0 | - |"]


def test_report_has_the_tables_and_the_picture(two: Compared, tmp_path: Path) -> None:
    whole = {
        "weights": "tiny", "settings": {"batch": 16, "test": False}, "codecs_absent": [], "sensors": {},
        "rate_distortion": {}, "equal_bits": {"S1RTC": asdict(two)},
    }  # fmt: skip
    paths = report.write(whole, tmp_path)
    assert [p.name for p in paths] == ["report.json", "report.md", "equal_bits.png"]
    text = paths[1].read_text()
    assert "### S1RTC: 2 tiles of 2 independent validation places" in text and "(default)" in text
    assert "| a | " in text and "| b | " in text and "](equal_bits.png)" in text
    assert Compared.read(json.loads(paths[0].read_text())["equal_bits"]["S1RTC"]) == two
    assert paths[2].read_bytes()[1:4] == b"PNG"
    draw({"S1RTC": two, "again": two}, "test", tmp_path / "two.png")
    assert (tmp_path / "two.png").stat().st_size > 10_000


def test_codes_are_packed_as_a_chunk_of_a_cube() -> None:
    rng = np.random.default_rng(0)
    codes = (128 + np.rint(rng.standard_normal((4, 24, 24)))).astype(np.int16)
    assert 4 * 24 * 24 * 2 / 8 < packed(codes) < 4 * 24 * 24 * 4 / 8
    assert packed(np.full((4, 24, 24), 128, np.int16)) < 200
