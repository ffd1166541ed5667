"""Baselines at equal size: bytes respected, quality grows with them, tiles come back in shape and scale."""

from __future__ import annotations

import numpy as np
import pytest

from model.evaluation.codecs import AVIF, JPEG2000, JPEG_XL, Codec, at_bytes, downsampled, encode

# A driver that every GDAL has, to try the path of one 8-bit file a band that AVIF takes.
JPEG = Codec("JPEG", "JPEG", "QUALITY", 1, 100, joint=False, bits=8, whole=True)


def scene(bands: int = 6, size: int = 64) -> np.ndarray:
    rng = np.random.default_rng(2)
    coarse = np.kron(rng.normal(size=(bands, size // 8, size // 8)), np.ones((8, 8)))
    return (coarse + 0.3 * rng.normal(size=(bands, size, size))).astype(np.float32)


@pytest.mark.parametrize("codec", [JPEG2000, JPEG_XL, AVIF, JPEG], ids=lambda c: c.name)
def test_more_bytes_less_error_and_never_over_budget(codec: Codec) -> None:
    if not codec.available:
        pytest.skip(f"this GDAL has no driver {codec.driver}")
    z = scene()
    errors = []
    for budget in (6000, 12_000):
        coded = at_bytes(codec, z, budget)
        assert coded is not None and coded.z.shape == z.shape
        assert 0.8 * budget <= coded.size <= budget
        errors.append(float(np.sqrt(np.mean((coded.z - z) ** 2))))
    assert errors[1] < errors[0] < z.std()


def test_no_setting_small_enough_is_said() -> None:
    assert at_bytes(JPEG2000, scene(), 20) is None


def test_a_constant_tile_survives() -> None:
    z = np.full((2, 64, 64), -1.5, np.float32)
    np.testing.assert_allclose(encode(JPEG2000, z, 50.0).z, z, atol=1e-3)


def test_downsampling_keeps_a_constant_and_loses_detail_with_size() -> None:
    flat = np.full((3, 40, 40), 2.0, np.float32)
    np.testing.assert_allclose(downsampled(flat, 75), flat, rtol=1e-6)
    z = scene()
    few, many = (float(np.mean((downsampled(z, n) - z) ** 2)) for n in (z.size // 64, z.size // 4))
    assert many < few
    np.testing.assert_allclose(downsampled(z, z.size), z, atol=1e-6)
