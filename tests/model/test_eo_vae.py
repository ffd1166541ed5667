"""The network: parity with the published code, its keys and shapes, and its quirks one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from model.blocks import AttnBlock
from model.eo_vae import EOVAE, EOVAEConfig, Posterior
from tests.model import golden

GOLDEN = [f"{sensor}.{side}" for sensor in ("S2L2A", "S1RTC", "RGBN") for side in (64, 96)]
RGBN = (0.665, 0.560, 0.490, 0.842)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the expected tensor's largest magnitude."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def test_the_rule_gives_the_weights_and_inputs_that_were_recorded() -> None:
    with safe_open(golden.GOLDEN / "eo_vae.safetensors", "pt") as file:
        about = file.metadata()
    assert golden.crc(golden.eo_vae().state_dict()) == int(about["crc32_weights"])
    assert golden.crc(golden.inputs()) == int(about["crc32_inputs"])


@pytest.mark.parametrize("case", GOLDEN)
def test_parity_with_vectors_checked_against_the_published_code(
    golden_vae: EOVAE, golden_vectors: Mapping[str, Tensor], case: str
) -> None:
    """Recorded by `tests.model.golden` from this code when it agreed with the published one: for anybody to check."""
    given = {key: golden_vectors[f"{case}.{key}"] for key in ("x", "wavelengths_um")}
    found = golden.eo_vae_outputs(golden_vae, {f"{case}.{key}": value for key, value in given.items()})
    whole = found.pop(f"{case}.reconstruction")
    found[f"{case}.reconstruction.lattice5"] = whole[golden.LATTICE]
    errors = {key: relative(tensor, golden_vectors[key]) for key, tensor in found.items()}
    assert len(errors) == 5 and max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("case", GOLDEN)
def test_parity_with_the_published_code(published: tuple[EOVAE, Mapping[str, Tensor]], case: str) -> None:
    vae, vectors = published
    given = {f"{case}.{key}": vectors[f"{case}.{key}"] for key in ("x", "wavelengths_um")}
    errors = {key: relative(tensor, vectors[key]) for key, tensor in golden.eo_vae_outputs(vae, given).items()}
    assert len(errors) == 5 and max(errors.values()) < 1e-5, errors


def test_keys_and_shapes_are_the_published_ones() -> None:
    expected = golden.layouts()["eo_vae"]
    with torch.device("meta"):
        vae = EOVAE()
    assert {key: list(tensor.shape) for key, tensor in vae.state_dict().items()} == expected
    assert len(expected) == 363
    assert sum(p.numel() for p in vae.parameters()) == 95_514_145


def test_pack_is_channel_major_then_row_then_column_and_unpack_inverts_it() -> None:
    z = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    packed = EOVAE.pack(z)
    assert packed.shape == (2, 12, 2, 3)
    assert packed[1, 4 * 2 + 2 * 1 + 0, 1, 2] == z[1, 2, 2 * 1 + 1, 2 * 2 + 0]
    assert torch.equal(EOVAE.unpack(packed), z)
    with pytest.raises(ValueError, match="3x4"):
        EOVAE.pack(torch.zeros(1, 1, 3, 4))


@torch.no_grad()
def test_channels_have_no_order(small_vae: EOVAE) -> None:
    um, order = torch.tensor(RGBN), torch.tensor([2, 0, 3, 1])
    x = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    latent = small_vae.encode(x, um).mean
    assert relative(small_vae.encode(x[:, order], um[order]).mean, latent) < 1e-5
    assert relative(small_vae.decode(latent, um[order]), small_vae.decode(latent, um)[:, order]) < 1e-5


@torch.no_grad()
def test_one_channel_goes_in_and_comes_out(small_vae: EOVAE) -> None:
    latent = small_vae.encode(torch.ones(2, 1, 16, 16), [0.49]).mean
    assert small_vae.decode(latent, [0.49]).shape == (2, 1, 16, 16)
    assert small_vae.decoder.conv_out.kernel([0.49])[1].shape == (1,)


@torch.no_grad()
def test_logvar_is_clamped(small_vae: EOVAE) -> None:
    bias = small_vae.encoder.quant_conv.bias
    assert bias is not None
    bias[4:6], bias[6:] = 1e3, -1e3
    logvar = small_vae.encode(torch.zeros(1, 4, 16, 16), RGBN).logvar
    assert torch.all(logvar[:, :2] == 20.0) and torch.all(logvar[:, 2:] == -30.0)


@torch.no_grad()
def test_the_batch_norm_and_its_inverse_use_other_epsilons(small_vae: EOVAE) -> None:
    bn = small_vae.bn
    assert bn.running_mean is not None and bn.running_var is not None
    bn.running_mean.fill_(0.5)
    bn.running_var.fill_(1e-4)
    z = torch.full((1, 4, 2, 2), 1.5)
    normalised = small_vae.normalise(z)
    torch.testing.assert_close(normalised, torch.full_like(z, 1.0 / (1e-4 + 1e-5) ** 0.5))
    expected = (1e-4 + 1e-4) ** 0.5 / (1e-4 + 1e-5) ** 0.5 + 0.5
    torch.testing.assert_close(small_vae.denormalise(normalised), torch.full_like(z, expected))


@torch.no_grad()
def test_training_normalises_with_batch_statistics_and_moves_the_running_ones(small_vae: EOVAE) -> None:
    z = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(2)) * 3 + 2
    before = small_vae.bn.state_dict()["running_mean"].clone()
    small_vae.train()
    packed = small_vae.normalise_packed(small_vae.pack(z))
    assert packed.mean((0, 2, 3)).abs().max() < 1e-5
    moved = small_vae.bn.state_dict()["running_mean"]
    torch.testing.assert_close(moved, 0.9 * before + 0.1 * small_vae.pack(z).mean((0, 2, 3)))


@torch.no_grad()
def test_kernels_are_scaled_once_and_the_decoder_bias_twice(small_vae: EOVAE) -> None:
    for conv, bias_scale in ((small_vae.encoder.conv_in, 0.1), (small_vae.decoder.conv_out, 0.01)):
        raw_weight, raw_bias = conv._generate(torch.tensor(RGBN))
        weight, bias = conv.kernel(RGBN)
        torch.testing.assert_close(bias, raw_bias * bias_scale)
        torch.testing.assert_close(weight.square().sum(), raw_weight.square().sum() * 0.01)
    h = torch.randn(1, 8, 4, 4)
    weight, bias = small_vae.decoder.conv_out.kernel(RGBN)
    expected = torch.nn.functional.conv2d(h, weight, bias, padding=1)
    torch.testing.assert_close(small_vae.decoder.conv_out(h, RGBN), expected)


@torch.no_grad()
def test_attention_is_softmax_of_scaled_products_over_all_pixels() -> None:
    torch.manual_seed(3)
    block = AttnBlock(8, 4)
    x = torch.randn(2, 8, 3, 5)
    h = block.norm(x)
    q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (block.q, block.k, block.v))
    mixed = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1) @ v
    expected = x + block.proj_out(mixed.transpose(1, 2).reshape(2, 8, 3, 5))
    torch.testing.assert_close(block(x), expected)


def test_sampling_follows_the_generator_and_the_spread() -> None:
    posterior = Posterior(torch.full((1, 1, 64, 64), 3.0), torch.full((1, 1, 64, 64), 2.0).log())
    draw = posterior.sample(torch.Generator().manual_seed(4))
    assert torch.equal(draw, posterior.sample(torch.Generator().manual_seed(4)))
    assert abs(float(draw.mean()) - 3.0) < 0.1 and abs(float(draw.var()) - 2.0) < 0.2


def test_gradients_reach_every_parameter(small_vae: EOVAE) -> None:
    small_vae.train()
    x = torch.randn(2, 4, 16, 16)
    posterior = small_vae.encode(x, RGBN)
    loss = (small_vae.decode(posterior.sample(), RGBN) - x).abs().mean()
    torch.autograd.backward(loss)
    assert [name for name, p in small_vae.named_parameters() if p.grad is None] == []


def test_config_round_trips_and_refuses_nonsense() -> None:
    config = EOVAEConfig(ch=32, ch_mult=(1, 2, 4, 4), norm_groups=8)
    assert EOVAEConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (config.scale_factor, EOVAEConfig(ch_mult=(1, 2)).scale_factor) == (8, 2)
    with pytest.raises(ValueError, match="channels"):
        EOVAEConfig.from_dict({"channels": 3})
    with pytest.raises(ValueError, match="ch_mult"):
        EOVAEConfig(ch_mult=())
    with pytest.raises(ValueError, match="norm_groups=7"):
        EOVAE(EOVAEConfig(ch=8, norm_groups=7, wavelength_dim=16, hypernet_ff=16, hypernet_layers=1))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((1, 3, 16, 16), "4 wavelengths"), ((4, 16, 16), "4 wavelengths"), ((1, 4, 16, 15), "multiples of 2")],
)
def test_images_of_another_shape_are_refused(small_vae: EOVAE, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_vae.encode(torch.zeros(shape), RGBN)


def test_latents_of_another_width_are_refused(small_vae: EOVAE) -> None:
    with pytest.raises(ValueError, match=r"\(B, 4, h, w\)"):
        small_vae.decode(torch.zeros(1, 5, 4, 4), RGBN)
