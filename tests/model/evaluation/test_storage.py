"""Latents as stored: the codes of an eocube store, channels left out, their order, the bits, the curves and plot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model.eo_vae import EOVAE, EOVAEConfig
from model.evaluation.codecs import JPEG2000
from model.evaluation.rate_distortion import curves, draw
from model.evaluation.storage import INT8_STEPS_PER_SIGMA, Channels, bits_per_pixel, ranked
from model.sensors import SENSORS

TINY = EOVAEConfig(
    ch=16, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4, norm_groups=2, hypernet_layers=1, wavelength_dim=32,
    hypernet_ff=32, hypernet_heads=2,
)  # fmt: skip


@pytest.fixture
def vae() -> EOVAE:
    torch.manual_seed(0)
    network = EOVAE(TINY).eval()
    assert network.bn.running_mean is not None and network.bn.running_var is not None
    network.bn.running_mean.copy_(torch.arange(16) * 0.1)
    network.bn.running_var.copy_(torch.linspace(0.5, 2, 16))
    return network


def tile() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, 64, 64)).astype(np.float32)


def test_statistics_of_a_channel_are_those_of_its_four_packed_ones(vae: EOVAE) -> None:
    z = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        * torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None, None]
        + torch.arange(4.0)[:, None, None]
    )
    packed = vae.pack(z).double()
    assert vae.bn.running_mean is not None and vae.bn.running_var is not None
    vae.bn.running_mean.copy_(packed.mean((0, 2, 3)))
    vae.bn.running_var.copy_(packed.var((0, 2, 3), unbiased=False))
    mean, spread = vae.channel_statistics()
    torch.testing.assert_close(mean, z.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(spread, z.double().std((0, 2, 3), unbiased=False), rtol=1e-5, atol=1e-6)


def test_int8_is_that_of_a_store(vae: EOVAE) -> None:
    from eocube.products.eo_vae import int8_quantisation

    scale, offset = int8_quantisation(vae)
    channels = Channels.of(vae)
    assert (channels.sigma / INT8_STEPS_PER_SIGMA).tolist() == pytest.approx(scale)
    assert channels.mean.tolist() == pytest.approx(offset)


def test_what_storage_keeps(vae: EOVAE) -> None:
    channels = Channels.of(vae)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    back = channels.stored(z, "int8")
    step = (channels.sigma / INT8_STEPS_PER_SIGMA)[:, None, None]
    assert bool(((back - z).abs() <= step / 2 + 1e-6).all())
    torch.testing.assert_close(channels.stored(z, "fp16"), z.half().float())
    some = channels.stored(z, "fp16", [2])
    torch.testing.assert_close(some[:, 2], z[:, 2].half().float())
    torch.testing.assert_close(some[:, 0], channels.mean[0].expand(1, 8, 8))


def test_weights_without_statistics_are_refused(vae: EOVAE) -> None:
    vae.bn.running_mean = None
    with pytest.raises(ValueError, match="no latent statistics"):
        Channels.of(vae)


def test_bits_by_hand(vae: EOVAE) -> None:
    assert bits_per_pixel(vae, "fp16", 32, 12) == pytest.approx(32 * 16 / (64 * 12))
    assert bits_per_pixel(vae, "int8", 4, 2) == pytest.approx(0.25)


def test_a_channel_the_decoder_ignores_ranks_last(vae: EOVAE) -> None:
    with torch.no_grad():
        vae.decoder.post_quant_conv.weight[:, 1] = 0
    order = ranked(vae, [tile()], SENSORS["S1RTC"])
    assert sorted(order) == [0, 1, 2, 3] and order[-1] == 1


def test_curves_and_their_plot(vae: EOVAE, tmp_path: Path) -> None:
    found = curves(vae, "tiny", SENSORS["S1RTC"], [tile()], [tile()], lambda _: None, [JPEG2000])
    assert set(found.curves) == {"tiny fp16, top-k channels", "tiny int8, top-k channels", "JPEG 2000"}
    assert [p.kept for p in found.curves["tiny fp16, top-k channels"]] == [1, 2, 3, 4]
    jpeg = found.curves["JPEG 2000"]
    assert [p.psnr for p in jpeg] == sorted(p.psnr for p in jpeg)
    rates = {p.bits for name, line in found.curves.items() if name != "JPEG 2000" for p in line}
    assert max(p.bits for p in jpeg) <= max(rates)
    draw({"S1RTC": found, "again": found}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[1:4] == b"PNG"
