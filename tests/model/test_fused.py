"""The production encoder and decoder: equal to the network, right on mixed samplings, the same bits every time."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.eo_vae import EOVAE
from model.fused import FusedDecoder, FusedEncoder, SensorLike
from model.pixels import sampling_groups, upsample


@dataclass(frozen=True)
class Band:
    name: str
    wavelength: float
    gsd: int
    mean: float
    std: float


@dataclass(frozen=True)
class Sensor:
    name: str
    bands: tuple[Band, ...]
    scale: float = 1.0
    offset: float = 0.0
    unit_factor: float = 1.0


def plain_sensor(wavelengths: Tensor) -> Sensor:
    """Bands with these wavelengths whose raw numbers are z-scores already."""
    return Sensor("plain", tuple(Band(f"b{i}", float(um), 10, 0.0, 1.0) for i, um in enumerate(wavelengths)))


OPTICAL = Sensor(
    "optical",
    (
        Band("B02", 0.490, 10, 1500.0, 2100.0),
        Band("B05", 0.705, 20, 2200.0, 2000.0),
        Band("B01", 0.443, 60, 1400.0, 2050.0),
        Band("B04", 0.665, 10, 1800.0, 2120.0),
        Band("B11", 1.610, 20, 2400.0, 1400.0),
    ),
    scale=1e-4,
    offset=-0.1,
    unit_factor=1e4,
)


def native_pixels(batch: int = 1, seed: int = 0) -> dict[int, Tensor]:
    """uint16 groups of a 64 px window at 10 m: the 60 m group has 40 m of margin, the 20 m one 20 m."""
    rng = np.random.default_rng(seed)
    sides = {10: (2, 64), 20: (2, 34), 60: (1, 12)}
    return {
        sampling: torch.from_numpy(rng.integers(1000, 6000, (batch, bands, side, side)).astype(np.uint16))
        for sampling, (bands, side) in sides.items()
    }


def numpy_upsample(x: NDArray[np.float64], sampling: float, out: int, resolution: float) -> NDArray[np.float64]:
    """Bilinear in map coordinates by np.interp, rows then columns; both grids centred on 0 m."""

    def centres(count: int, step: float) -> NDArray[np.float64]:
        return (np.arange(count, dtype=np.float64) - (count - 1) / 2) * step

    target = centres(out, resolution)
    rows = np.apply_along_axis(lambda v: np.interp(target, centres(x.shape[0], sampling), v), 0, x)
    return np.apply_along_axis(lambda v: np.interp(target, centres(x.shape[1], sampling), v), 1, rows)


@pytest.mark.parametrize("case", ["S2L2A.64", "S2L2A.96", "S1RTC.64", "S1RTC.96", "RGBN.64", "RGBN.96"])
def test_fp32_equals_the_network(golden_vae: EOVAE, golden_vectors: Mapping[str, Tensor], case: str) -> None:
    x, um = golden_vectors[f"{case}.x"], golden_vectors[f"{case}.wavelengths_um"]
    sensor = plain_sensor(um)
    found = FusedEncoder(golden_vae, sensor, device="cpu", dtype=torch.float32)(x)
    expected = golden_vectors[f"{case}.mean"]
    assert found.dtype == torch.float32
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    with torch.no_grad():
        decoded = golden_vae.decode(expected, um)
    back = FusedDecoder(golden_vae, sensor, device="cpu", dtype=torch.float32)(expected)
    assert float((back - decoded).abs().max() / decoded.abs().max()) < 1e-5


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precisions_stay_near(
    golden_vae: EOVAE, golden_vectors: Mapping[str, Tensor], dtype: torch.dtype, limit: float
) -> None:
    """RMS error over RMS: below 3 % in bf16 (8 bits), 0.4 % in fp16 (11 bits)."""
    um = golden_vectors["S2L2A.64.wavelengths_um"]
    found = FusedEncoder(golden_vae, plain_sensor(um), device="cpu", dtype=dtype)(golden_vectors["S2L2A.64.x"])
    expected = golden_vectors["S2L2A.64.mean"]
    error = float((found - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    assert 0 < error < limit


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_group_norm_accumulates_in_float32(dtype: torch.dtype) -> None:
    """Values on a pedestal of 200: sums of their squares would overflow fp16 and lose everything in bf16."""
    x = (200 + torch.randn(1, 8, 64, 64, generator=torch.Generator().manual_seed(5))).to(dtype)
    norm = nn.GroupNorm(2, 8).requires_grad_(False)
    expected = norm(x.float())
    found = norm.to(dtype)(x).float()
    assert float((found - expected).square().mean().sqrt()) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("sampling", "size", "out", "resolution"),
    [(20, 34, 64, 10), (60, 12, 64, 10), (20, 32, 64, 10), (60, 44, 256, 10), (60, 3, 16, 10), (30, 9, 16, 15)],
)
def test_upsampling_equals_an_independent_one(sampling: int, size: int, out: int, resolution: int) -> None:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(6))
    found = upsample(x, sampling, (out, out), resolution)
    expected = numpy_upsample(x[1, 2].double().numpy(), sampling, out, resolution)
    np.testing.assert_allclose(found[1, 2].numpy(), expected, rtol=0, atol=2e-6)


def test_a_ramp_keeps_its_place_on_the_ground() -> None:
    """Bilinear of a plane is that plane: value = metres east of the window's centre."""
    ramp = ((torch.arange(12) - 5.5) * 60.0).expand(1, 1, 12, 12)
    found = upsample(ramp, 60, (64, 64), 10)
    expected = ((torch.arange(64) - 31.5) * 10.0).expand(1, 1, 64, 64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_mixed_samplings_end_in_the_sensors_band_order(small_vae: EOVAE) -> None:
    encoder = FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32)
    pixels = native_pixels()
    physical = encoder.physical(pixels)
    assert physical.shape == (1, 5, 64, 64) and physical.dtype == torch.float32
    raw = {s: group.numpy().astype(np.float64)[0] for s, group in pixels.items()}
    expected = [
        raw[10][0], numpy_upsample(raw[20][0], 20, 64, 10), numpy_upsample(raw[60][0], 60, 64, 10), raw[10][1],
        numpy_upsample(raw[20][1], 20, 64, 10),
    ]  # fmt: skip
    np.testing.assert_allclose(physical[0].numpy(), np.stack(expected) * 1e-4 - 0.1, rtol=0, atol=1e-6)
    z = (torch.from_numpy(np.stack(expected)).float()[None] - 1000 - encoder.pixels._mean) / encoder.pixels._std
    with torch.no_grad():
        latents = small_vae.encode(z, [band.wavelength for band in OPTICAL.bands]).mean
    torch.testing.assert_close(encoder(pixels), latents, rtol=1e-4, atol=1e-5)


def test_groups_follow_the_resolution() -> None:
    assert sampling_groups(OPTICAL, 10) == {10: (0, 3), 20: (1, 4), 60: (2,)}
    assert sampling_groups(OPTICAL, 20) == {20: (0, 1, 3, 4), 60: (2,)}
    assert sampling_groups(OPTICAL, 100) == {100: (0, 1, 2, 3, 4)}
    assert sampling_groups(OPTICAL, 40) == {40: (0, 1, 2, 3, 4)}


def test_window_is_the_argument_where_no_band_is_at_the_resolution(small_vae: EOVAE) -> None:
    sensor = replace(OPTICAL, bands=(OPTICAL.bands[1],))
    encoder = FusedEncoder(small_vae, sensor, device="cpu", dtype=torch.float32, window=64)
    assert encoder({20: torch.full((1, 1, 34, 34), 2000, dtype=torch.uint16)}).shape == (1, 4, 32, 32)


def test_signed_and_float_pixels_pass_unchanged(small_vae: EOVAE) -> None:
    radar = Sensor("radar", (Band("VV", 5.4, 10, -10.8, 4.3), Band("VH", 5.6, 10, -17.2, 4.3)))
    encoder = FusedEncoder(small_vae, radar, device="cpu", dtype=torch.float32)
    pixels = torch.full((1, 2, 16, 16), -12.5)
    assert torch.equal(encoder.physical(pixels), pixels)
    assert torch.equal(encoder.physical({10: pixels.to(torch.int16)}), torch.full_like(pixels, -12.0))
    saturated = torch.full((1, 2, 16, 16), 65535, dtype=torch.uint16)
    assert encoder.physical(saturated).max() == 65535


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mates_in_a_batch_change_no_bit(small_vae: EOVAE, dtype: torch.dtype) -> None:
    encoder = FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=dtype)
    first, other = native_pixels(3, seed=1), native_pixels(3, seed=2)
    mixed = {s: torch.cat([other[s][:1], first[s][1:2], other[s][2:]]) for s in first}
    whole, again = encoder(first), encoder(first)
    assert torch.equal(whole, again)
    assert torch.equal(encoder(mixed)[1], whole[1])


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_a_larger_picture_are_encoded_like_copies_of_them(
    small_vae: EOVAE, dtype: torch.dtype, compile: str
) -> None:
    encoder = FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=dtype, window=64, compile=compile)
    pixels = native_pixels()
    parts = {s: torch.nn.functional.pad(t.view(torch.int16), (3, 5, 2, 1)).view(t.dtype) for s, t in pixels.items()}
    views = {s: t[..., 2:-1, 3:-5] for s, t in parts.items()}
    assert not any(view.is_contiguous() for view in views.values())
    before = {s: t.clone() for s, t in parts.items()}
    assert torch.equal(encoder(views), encoder(pixels))
    assert all(torch.equal(before[s], t) for s, t in parts.items()), "and left as they are"


def test_decoder_gives_physical_units_and_any_bands_in_any_order(small_vae: EOVAE) -> None:
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    decoder = FusedDecoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32)
    whole = decoder(z.half())
    assert whole.shape == (2, 5, 16, 16) and whole.dtype == torch.float32
    with torch.no_grad():
        scores = small_vae.decode(z.half().float(), [band.wavelength for band in OPTICAL.bands])
    std = torch.tensor([b.std for b in OPTICAL.bands])[:, None, None]
    mean = torch.tensor([b.mean for b in OPTICAL.bands])[:, None, None]
    torch.testing.assert_close(whole, (scores * std + mean) / 1e4, rtol=1e-5, atol=1e-6)
    some = FusedDecoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32, bands=["B04", "B02"])
    torch.testing.assert_close(some(z.half()), whole[:, [3, 0]], rtol=1e-6, atol=1e-7)


def test_the_network_is_left_alone_and_later_training_does_not_reach_in(small_vae: EOVAE) -> None:
    encoder = FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32)
    before = encoder(native_pixels())
    assert all(p.requires_grad for p in small_vae.parameters())
    with torch.no_grad():
        for parameter in small_vae.parameters():
            parameter.mul_(1.5)
    assert torch.equal(encoder(native_pixels()), before)
    assert (encoder.channels, encoder.stride, encoder.name, encoder.dtype) == (4, 2, "eo-vae", torch.float32)


def test_no_warning_and_no_gradient(small_vae: EOVAE) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latents = FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32)(native_pixels())
    assert not latents.requires_grad


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(1, 4, 16, 16), r"\(B, 5, H, W\)"),
        ({10: torch.zeros(1, 2, 16, 16)}, r"travels at \[10, 20, 60\] m"),
        ({10: torch.zeros(1, 2, 16, 16), 20: torch.zeros(1, 1, 10, 10), 60: torch.zeros(1, 1, 6, 6)}, "20 m group"),
        (torch.zeros(1, 5, 16, 15), "multiples of 2"),
    ],
)
def test_pixels_of_another_shape_are_refused(
    small_vae: EOVAE, pixels: Tensor | dict[int, Tensor], message: str
) -> None:
    encoder = FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        encoder(pixels)


def test_what_cannot_be_built_says_why(small_vae: EOVAE) -> None:
    no_spread: SensorLike = replace(OPTICAL, bands=(replace(OPTICAL.bands[0], std=0.0),))
    with pytest.raises(ValueError, match="std of B02"):
        FusedEncoder(small_vae, no_spread, device="cpu")
    with pytest.raises(ValueError, match="no bands"):
        FusedEncoder(small_vae, replace(OPTICAL, bands=()), device="cpu")
    with pytest.raises(ValueError, match="float64"):
        FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=torch.float64)
    with pytest.raises(ValueError, match="B99"):
        FusedDecoder(small_vae, OPTICAL, device="cpu", bands=["B99"])
    with pytest.raises(ValueError, match="latents have shape"):
        FusedDecoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32)(torch.zeros(1, 3, 8, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 2e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_cuda_agrees_with_the_cpu(golden_vae: EOVAE, golden_vectors: Mapping[str, Tensor], dtype: torch.dtype,
                                  limit: float) -> None:  # fmt: skip
    um = golden_vectors["S2L2A.96.wavelengths_um"]
    x, expected = golden_vectors["S2L2A.96.x"], golden_vectors["S2L2A.96.mean"]
    encoder = FusedEncoder(golden_vae, plain_sensor(um), device="cuda", dtype=dtype)
    found = encoder(x)
    assert torch.equal(found, encoder(x))
    error = float((found.cpu() - expected).square().mean().sqrt() / expected.square().mean().sqrt())
    assert error < limit
    assert torch.backends.cudnn.allow_tf32, "the process's own setting is back"
