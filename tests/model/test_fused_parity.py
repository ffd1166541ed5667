"""Every fused variant against the network itself: sensors, subsets of bands, sizes, batches, layouts of memory."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from eocube.sensors import get_sensor
from eocube.sensors.sensor import Sensor
from model.blocks import AttnBlock
from model.chip import multiplies_bf16
from model.eo_vae import EOVAE, EOVAEConfig
from model.fused import FusedDecoder, FusedEncoder
from model.fused_body import PART, Conv, phase_weights
from model.fused_gpu_body import ProductAttention, attention_bytes, decoder_body, encoder_body
from model.weights import load_weights

TINY = EOVAEConfig(
    ch=16, ch_mult=(1, 2, 2, 2), num_res_blocks=1, z_channels=8, norm_groups=4, hypernet_layers=1, wavelength_dim=32,
    hypernet_ff=32, hypernet_heads=2,
)  # fmt: skip
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
"""Relative L2 error; bfloat16 has 8 bits, and these networks' weights are random."""
SENSORS = ("S2L2A", "S2L1C", "RGBN", "S2RGB", "S1RTC", "S1GRD")


@pytest.fixture(scope="module")
def tiny() -> EOVAE:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return EOVAE(TINY).eval()


def raw_pixels(sensor: Sensor, side: int, batch: int, seed: int = 0) -> Tensor:
    """Plausible raw numbers: physical values about each band's mean, with structure and noise."""
    noise = torch.randn(batch, len(sensor.bands), side, side, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.avg_pool2d(noise, 9, 1, 4) * 5 + 0.3 * noise
    mean, std = (torch.tensor([getattr(b, k) for b in sensor.bands])[:, None, None] for k in ("mean", "std"))
    return ((smooth * std + mean) / sensor.unit_factor - sensor.offset) / sensor.scale


def zscore(sensor: Sensor, raw: Tensor) -> Tensor:
    mean, std = (torch.tensor([getattr(b, k) for b in sensor.bands]).double()[:, None, None] for k in ("mean", "std"))
    return ((raw.double() * sensor.scale + sensor.offset) * sensor.unit_factor - mean) / std


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def check(vae: EOVAE, sensor: Sensor, side: int, batch: int, dtype: torch.dtype, compile: str = "auto") -> None:
    waves = [band.wavelength for band in sensor.bands]
    raw = raw_pixels(sensor, side, batch)
    with torch.no_grad():
        latents = vae.encode(zscore(sensor, raw).float(), waves).mean
        scores = vae.decode(latents, waves)
    encoder = FusedEncoder(vae, sensor, device="cpu", dtype=dtype, window=side, compile=compile)
    decoder = FusedDecoder(vae, sensor, device="cpu", dtype=dtype, window=side, compile=compile)
    assert relative(encoder(raw), latents) < LIMIT[dtype]
    assert relative(zscore_of_physical(sensor, decoder(latents)), scores) < LIMIT[dtype]


def zscore_of_physical(sensor: Sensor, physical: Tensor) -> Tensor:
    mean, std = (torch.tensor([getattr(b, k) for b in sensor.bands]).double()[:, None, None] for k in ("mean", "std"))
    return (physical.double() * sensor.unit_factor - mean) / std


@pytest.mark.parametrize("compile", ["auto", "off"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SENSORS)
def test_every_sensor(tiny: EOVAE, name: str, dtype: torch.dtype, compile: str) -> None:
    check(tiny, get_sensor(name), 64, 1, dtype, compile)


@pytest.mark.parametrize("compile", ["auto", "off"])
def test_branches_in_bfloat16_add_up_in_float32(tiny: EOVAE, compile: str) -> None:
    sensor = get_sensor("S2L2A").subset(["B02", "B04"])
    latents = torch.randn(2, tiny.config.z_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    kinds = ((torch.float32, None), (torch.float32, torch.bfloat16), (torch.bfloat16, None))
    exact, mixed, half = (
        FusedDecoder(tiny, sensor, device="cpu", dtype=dtype, window=64, compile=compile, branches=branches)(latents)
        for dtype, branches in kinds
    )
    assert 0 < relative(mixed, exact) < relative(half, exact) < LIMIT[torch.bfloat16]
    with pytest.raises(ValueError, match="branches"):
        FusedDecoder(tiny, sensor, device="cuda", branches=torch.bfloat16)


@pytest.mark.parametrize("bands", [["B04"], ["B08", "B02"], ["B12", "B01", "B05"], ["B02", "B03", "B04", "B08", "B11"]])
def test_subsets_of_bands(tiny: EOVAE, bands: list[str]) -> None:
    check(tiny, get_sensor("S2L2A").subset(bands), 64, 1, torch.float32)


@pytest.mark.parametrize(("side", "batch"), [(64, 3), (72, 1), (128, 2), (96, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_and_odd_batches(tiny: EOVAE, side: int, batch: int, dtype: torch.dtype) -> None:
    check(tiny, get_sensor("RGBN"), side, batch, dtype)


def test_a_size_that_the_weights_were_not_laid_out_for(tiny: EOVAE) -> None:
    """Oblong too; and a batch of nothing but what each image is alone."""
    sensor = get_sensor("RGBN")
    encoder = FusedEncoder(tiny, sensor, device="cpu", dtype=torch.float32, window=256)
    raw = raw_pixels(sensor, 128, 3)[:, :, :64, 16:]
    with torch.no_grad():
        expected = tiny.encode(zscore(sensor, raw).float(), [b.wavelength for b in sensor.bands]).mean
    found = encoder(raw)
    assert relative(found, expected) < 1e-5
    for i in range(3):
        assert torch.equal(encoder(raw[i : i + 1])[0], found[i]), "neither mates nor their number change a bit"
    assert torch.equal(encoder(raw.flip(0)).flip(0), found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts_of_memory_change_no_bit(tiny: EOVAE, dtype: torch.dtype) -> None:
    sensor = get_sensor("RGBN")
    encoder = FusedEncoder(tiny, sensor, device="cpu", dtype=dtype, window=64)
    decoder = FusedDecoder(tiny, sensor, device="cpu", dtype=dtype, window=64)
    raw = raw_pixels(sensor, 64, 2)
    expected = encoder(raw)
    spread = torch.zeros(2, 8, 64, 128)
    spread[:, ::2, :, ::2] = raw
    for other in (raw.contiguous(memory_format=torch.channels_last), spread[:, ::2, :, ::2], raw.mT.contiguous().mT):
        assert torch.equal(encoder(other), expected)
    seen = decoder(expected)
    assert torch.equal(decoder(expected.contiguous(memory_format=torch.channels_last)), seen)
    assert torch.equal(decoder(expected.mT.contiguous().mT), seen)


def test_native_samplings_are_the_same_picture_with_and_without_kernels(tiny: EOVAE) -> None:
    """Integers of 10, 20 and 60 m, margins included, against the steps in torch."""
    sensor = get_sensor("S2L2A")
    rng = torch.Generator().manual_seed(4)
    plain = FusedEncoder(tiny, sensor, device="cpu", dtype=torch.float32, window=64, compile="off")
    fused = FusedEncoder(tiny, sensor, device="cpu", dtype=torch.float32, window=64)
    sides = {10: 64, 20: 34, 60: 12}
    pixels = {
        s: torch.randint(1000, 9000, (2, len(places), sides[s], sides[s]), generator=rng).to(torch.uint16)
        for s, places in plain.pixels.groups.items()
    }
    assert relative(fused(pixels), plain(pixels)) < 1e-5
    wide = {s: t.to(torch.int64) for s, t in pixels.items()}
    assert relative(fused(wide), plain(pixels)) < 1e-5, "types that the kernels do not know go the longer way"


def test_batches_of_different_length_are_refused(tiny: EOVAE) -> None:
    encoder = FusedEncoder(tiny, get_sensor("S2L2A"), device="cpu", dtype=torch.float32, window=64)
    counts = {s: len(places) for s, places in encoder.pixels.groups.items()}
    pixels = {s: torch.zeros(1 + (s == 20), counts[s], side, side) for s, side in ((10, 64), (20, 34), (60, 12))}
    with pytest.raises(ValueError, match="different batches"):
        encoder(pixels)


def test_upsampling_in_phases_is_exact_up_to_the_border() -> None:
    weight = torch.randn(5, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    upsampled = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    expected = torch.nn.functional.conv2d(upsampled, weight, padding=1)
    phases = torch.nn.functional.conv2d(x, phase_weights(weight), padding=1)
    for a in (0, 1):
        for b in (0, 1):
            block = phases[:, 5 * (2 * a + b) :][:, :5, a : a + 4, b : b + 6]
            torch.testing.assert_close(expected[:, :, a::2, b::2], block, rtol=0, atol=1e-12)


@pytest.mark.parametrize("channels", [2 * PART, 2 * PART + 1, 4 * PART, 5 * PART - 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_large_convolutions_are_summed_in_parts(channels: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    x = torch.randn(1, channels, 10, 12, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(6, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    bias = torch.randn(6, generator=generator)
    exact = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), stride, 1)
    conv = Conv(weight, bias, torch.float32, 10, stride=stride, padding=1)
    assert relative(conv(x).double(), exact) < 1e-6
    onto = torch.randn(exact.shape, generator=generator).contiguous(memory_format=torch.channels_last)
    expected = onto.double() + exact
    assert relative(conv.onto(x, onto).double(), expected) < 1e-6


@pytest.mark.parametrize("padded", [False, True])
def test_what_a_gpu_runs_is_the_same_function(tiny: EOVAE, padded: bool) -> None:
    """The bodies that are compiled and captured there, here on the CPU in float32; 12 bands, padded to 16 or not."""
    sensor = get_sensor("S2L2A")
    waves = [band.wavelength for band in sensor.bands]
    x = zscore(sensor, raw_pixels(sensor, 64, 2)).float()
    with torch.no_grad():
        latents = tiny.encode(x, waves).mean
        encoder = encoder_body(tiny.encoder, tiny.encoder.conv_in.kernel(waves), TINY.z_channels, padded=padded)
        decoder = decoder_body(tiny.decoder, tiny.decoder.conv_out.kernel(waves), padded=padded)
        assert relative(encoder(x), latents) < 1e-5
        assert relative(decoder(latents), tiny.decode(latents, waves)) < 1e-5
    first, last = encoder[0], decoder[-1]
    widths = [m.in_channels for m in first.modules() if isinstance(m, nn.Conv2d)]
    widths += [m.out_channels for m in last.modules() if isinstance(m, nn.Conv2d)]
    assert widths == ([16, 16] if padded else [12, 12])


def test_attention_as_products_at_the_published_width() -> None:
    """One head of 512 channels; in float16 its scores stay in range where unscaled ones would be infinite."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = AttnBlock(512, 32).requires_grad_(False)
    x = torch.randn(2, 512, 6, 5, generator=torch.Generator().manual_seed(1))
    products = ProductAttention(block)
    assert relative(products(x) - x, block(x) - x) < 1e-6
    half = copy.deepcopy(products).half()
    assert relative(half(x.half()).float() - x, block(x) - x) < 5e-2
    loud = copy.deepcopy(block)
    for layer in (loud.q, loud.k):
        layer.weight *= 40
    found = ProductAttention(loud).half()(x.half())
    assert bool(found.isfinite().all())
    assert attention_bytes(1024, torch.float16) == 12 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize(("side", "batch"), [(256, 1), (512, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shipped_weights_at_production_sizes(side: int, batch: int, dtype: torch.dtype) -> None:
    vae = load_weights("nano").eval()
    assert vae.meta is not None
    check(vae, get_sensor("S2L2A").with_weights(vae.meta), side, batch, dtype)


@pytest.mark.slow
def test_the_published_size() -> None:
    """In bfloat16 where the chip multiplies it: torch takes minutes to do so in its place."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = EOVAE(EOVAEConfig()).eval()
    sensor = get_sensor("S2L2A")
    raw = raw_pixels(sensor, 256, 1)
    with torch.no_grad():
        expected = vae.encode(zscore(sensor, raw).float(), [b.wavelength for b in sensor.bands]).mean
    if multiplies_bf16():
        encoder = FusedEncoder(vae, sensor, device="cpu", dtype=torch.bfloat16)
        assert relative(encoder(raw), expected) <= 1.5e-2
    # The truth is the network in float64: in float32 its own decoder is 1.1e-5 off on a chip of AVX2.
    waves = [band.wavelength for band in sensor.bands]
    twice = copy.deepcopy(vae).double()
    with torch.no_grad():
        true = twice.encode(zscore(sensor, raw), waves).mean
        picture = twice.decode(expected.double(), waves)
    exact = FusedEncoder(vae, sensor, device="cpu", dtype=torch.float32)
    assert relative(exact(raw), true) <= 1e-5
    decoder = FusedDecoder(vae, sensor, device="cpu", dtype=torch.float32)
    assert relative(zscore_of_physical(sensor, decoder(expected)), picture) <= 1e-5
