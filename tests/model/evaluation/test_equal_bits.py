"""At equal bits: entropies by hand, rates that are met, the KLT's step found, rows for every codec."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.evaluate import packed
from model.eo_vae import EOVAE, EOVAEConfig
from model.evaluation.codecs import JPEG2000
from model.evaluation.equal_bits import FACTORS, Spread, Yardsticks, compare, entropy, table
from model.sensors import SENSORS, Floats
from model.training.eo_vae.klt import Klt, to_blocks

RADAR = SENSORS["S1RTC"]
TINY = EOVAEConfig(
    ch=16, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, norm_groups=2, hypernet_layers=1, wavelength_dim=32,
    hypernet_ff=32, hypernet_heads=2,
)  # fmt: skip


def tile(seed: int = 0) -> Floats:
    """Two bands that lie alike, smooth with some noise."""
    rng = np.random.default_rng(seed)
    relief = np.add.outer(np.sin(np.arange(96) / 9), np.cos(np.arange(96) / 7))
    return (relief[None] * [[[1.0]], [[0.8]]] + 0.1 * rng.standard_normal((2, 96, 96))).astype(np.float32)


def klt_of(tiles: list[Floats], coefficients: int = 128) -> Klt:
    blocks = np.concatenate([to_blocks(t) for t in tiles]).astype(np.float64)
    basis = np.linalg.eigh(np.cov(blocks.T))[1][:, ::-1][:, :coefficients]
    return Klt(blocks.mean(0), np.ascontiguousarray(basis))


def test_entropy_by_hand() -> None:
    assert entropy(np.array([0, 0, 1, 1])) == 1 and entropy(np.array([7, 7, 7])) == 0
    assert entropy(np.array([0, 1, 2, 3, 4, 5, 6, 7])) == pytest.approx(3)


def test_the_step_gives_the_rate_and_a_wider_one_less() -> None:
    spread = Spread.of(klt_of([tile()]), [tile(1)])
    for size in (8.0, 20.0, 40.0):
        step = spread.step_for(size)
        assert spread.size(step) == pytest.approx(size, rel=0.05) and spread.size(2 * step) < spread.size(step)
    # At high rate half the step is a bit more of each coefficient.
    fine = spread.step_for(60.0)
    assert spread.size(fine / 2) - spread.size(fine) == pytest.approx(128 / 8, rel=0.25)


def test_every_codec_gets_the_bytes_of_codes() -> None:
    torch.manual_seed(0)
    vae = EOVAE(TINY).eval()
    rows = compare(vae, (0.05,) * 4, RADAR, [tile(), tile(1)], packed, Yardsticks(klt_of([tile(2)]), [JPEG2000]))
    assert list(rows) == ["codes", "KLT 8x8, entropy", "JPEG 2000", "PCA of bands, JPEG 2000"]
    codes = rows["codes"]
    assert len(codes) == len(FACTORS) and [r.size for r in codes] == sorted((r.size for r in codes), reverse=True)
    for name, line in rows.items():
        for own, other in zip(codes, line, strict=True):
            assert other.size <= own.size * 1.05, name
            assert other.ndvi is None and np.isfinite(other.psnr) and 0 <= other.sam <= np.pi
    best = rows["KLT 8x8, entropy"]
    assert best[0].psnr > best[-1].psnr
    # Two bands that lie alike: turned into their components, they cost less.
    assert rows["PCA of bands, JPEG 2000"][0].psnr > rows["JPEG 2000"][0].psnr
    lines = table(rows)
    assert len(lines) == 2 + len(FACTORS) and lines[0].count("|") == 6


def test_codes_are_packed_as_a_chunk_of_a_cube() -> None:
    rng = np.random.default_rng(0)
    codes = (128 + np.rint(rng.standard_normal((4, 24, 24)))).astype(np.int16)
    assert 4 * 24 * 24 * 2 / 8 < packed(codes) < 4 * 24 * 24 * 4 / 8
    assert packed(np.full((4, 24, 24), 128, np.int16)) < 200
