"""The U-Net of super-resolution: published sizes and keys, what time does and does not, shapes, precision."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.diffusion import VariancePreserving, diffusion_loss, precondition, sample
from model.unet import TimeUNet, UNetConfig
from model.unet_blocks import AdaZeroBlock

SMALL = UNetConfig(3, 3, (32, 64), (1, 2), condition=2)
AS_PUBLISHED = UNetConfig(3, 3, (16, 8), (1, 2), condition=2, time=False, as_published=True)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def awake(config: UNetConfig) -> TimeUNet:
    """A network whose every part has a say: fresh ones answer 0 and hardly modulate."""
    torch.manual_seed(0)
    net = TimeUNet(config).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
    return net


def count(config: UNetConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in TimeUNet(config).parameters())


# As published


def test_published_sizes() -> None:
    assert count(UNetConfig.published_latent()) == 10_999_776
    assert count(UNetConfig.published_pixel()) == 10_806_212


def test_published_pixel_size_of_the_yaml_is_the_other_one() -> None:
    """The published YAML says four blocks a depth; the paper's 10.8 M are three (specification, section 13)."""
    four = dataclasses.replace(UNetConfig.published_pixel(), blocks=(4, 4, 4))
    assert count(four) == pytest.approx(13.9e6, rel=0.005)


def test_published_keys_and_shapes() -> None:
    """azula's layout: a convolution and blocks going down, the join, blocks and last layer going up, coarsest first."""
    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in TimeUNet(UNetConfig.published_latent()).state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {}

    def convolution(key: str, width_in: int, width_out: int) -> None:
        expected[f"{key}.weight"], expected[f"{key}.bias"] = (width_out, width_in, 3, 3), (width_out,)

    def blocks(key: str, first: int, width: int) -> None:
        for i in range(first, first + 3):
            expected[f"{key}.{i}.ada_zero"] = (3, width, 1, 1)
            convolution(f"{key}.{i}.ffn.0", width, width)
            convolution(f"{key}.{i}.ffn.3", width, width)

    for depth, (width_in, width) in enumerate([(64, 256), (256, 128), (128, 64)]):
        convolution(f"descent.{depth}.0", width_in, width)
        blocks(f"descent.{depth}", 1, width)
    blocks("ascent.0", 0, 64)
    convolution("ascent.1.0", 128 + 64, 128)
    blocks("ascent.1", 1, 128)
    convolution("ascent.2.0", 256 + 128, 256)
    blocks("ascent.2", 1, 256)
    convolution("ascent.2.4", 256, 32)
    assert found == expected


def test_published_forward_by_its_formula() -> None:
    """Written out anew from the layout, with the variance by C - 1."""
    net, x, c = awake(AS_PUBLISHED), noise(2, 3, 6, 7), noise(2, 2, 6, 7, seed=1)
    w = net.state_dict()

    def conv(h: Tensor, key: str, stride: int = 1) -> Tensor:
        return F.conv2d(h, w[f"{key}.weight"], w[f"{key}.bias"], stride=stride, padding=1)

    def block(h: Tensor, key: str) -> Tensor:
        a, b, gate = w[f"{key}.ada_zero"]
        normed = (h - h.mean(1, keepdim=True)) / torch.sqrt(h.var(1, keepdim=True, unbiased=True) + 1e-5)
        return h + gate * conv(F.silu(conv((a + 1) * normed + b, f"{key}.ffn.0")), f"{key}.ffn.3")

    h = block(conv(torch.cat([x, c], 1), "descent.0.0"), "descent.0.1")
    skip = h
    h = conv(h, "descent.1.0", 2)
    for key in ("descent.1.1", "descent.1.2", "ascent.0.0", "ascent.0.1"):
        h = block(h, key)
    h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :6, :7]
    expected = conv(block(conv(torch.cat([skip, h], 1), "ascent.1.0"), "ascent.1.1"), "ascent.1.2")
    torch.testing.assert_close(net(x, torch.zeros(2), c), expected, rtol=1e-4, atol=1e-4)


def test_published_one_ignores_time() -> None:
    net, x, c = awake(AS_PUBLISHED), noise(2, 3, 8, 8), noise(2, 2, 8, 8, seed=1)
    assert torch.equal(net(x, torch.full((2,), -6.9), c), net(x, torch.full((2,), 6.9), c))


# The sound one


def test_time_matters_to_each_image_alone() -> None:
    net, x, c = awake(SMALL), noise(1, 3, 8, 8).repeat(3, 1, 1, 1), noise(1, 2, 8, 8, seed=1).repeat(3, 1, 1, 1)
    y = net(x, torch.tensor([-2.0, -2.0, 3.0]), c)
    torch.testing.assert_close(y[0], y[1])
    assert (y[0] - y[2]).abs().max() > 0.1 * y.abs().max()


def test_every_noise_level_is_told_from_its_neighbours() -> None:
    """Over the whole range of log(sigma / alpha), -6.9 to 6.9: a step of 0.1 is neither nothing nor all."""
    net = awake(SMALL)
    levels = torch.linspace(-6.9, 6.9, 139)
    with torch.no_grad():
        y = net(noise(1, 3, 4, 4).expand(139, -1, -1, -1), levels, noise(1, 2, 4, 4, seed=1).expand(139, -1, -1, -1))
    moves = y.diff(dim=0).flatten(1).norm(dim=1)
    spread = (y - y.mean(0)).flatten(1).norm(dim=1).mean()
    assert moves.min() > 1e-3 * spread and moves.max() < spread


def test_time_is_learned() -> None:
    """Every parameter of the embedding gets a gradient, and the time-less one has none of them."""
    net = awake(SMALL)
    net(noise(2, 3, 8, 8), torch.tensor([0.0, 1.0]), noise(2, 2, 8, 8, seed=1)).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in net.parameters())
    still = TimeUNet(dataclasses.replace(SMALL, time=False))
    assert not [k for k in still.state_dict() if k.startswith("time_embed")]


def test_fresh_one_answers_nothing() -> None:
    net = TimeUNet(SMALL)
    assert not net(noise(1, 3, 8, 8), torch.zeros(1), noise(1, 2, 8, 8)).any()


def test_block_starts_near_the_identity() -> None:
    torch.manual_seed(0)
    x = noise(2, 32, 6, 6)
    for block in (AdaZeroBlock(32), AdaZeroBlock(32, 16)):
        y = block(x, noise(2, 16))
        assert 0 < (y - x).std() < 0.3


@pytest.mark.parametrize("unbiased", [True, False])
def test_norm_of_pixels_with_hardly_any_spread(unbiased: bool) -> None:
    """Where the variance is that of epsilon, 1e-5: both count."""
    block, x = AdaZeroBlock(8, unbiased=unbiased), 3e-3 * noise(1, 8, 5, 5)
    with torch.no_grad():
        a, b, gate = dict(block.named_parameters())["ada_zero"].normal_()
        normed = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=unbiased) + 1e-5)
        torch.testing.assert_close(block(x, None), x + gate * block.ffn((a + 1) * normed + b))


def test_condition_matters_and_without_one_none_is_taken() -> None:
    net, x, level = awake(SMALL), noise(1, 3, 8, 8), torch.zeros(1)
    assert not torch.allclose(net(x, level, noise(1, 2, 8, 8)), net(x, level, noise(1, 2, 8, 8, seed=1)))
    free = awake(dataclasses.replace(SMALL, condition=0))
    assert free(x, level).shape == x.shape


def test_native_condition_is_lifted_inside() -> None:
    net = awake(dataclasses.replace(SMALL, condition_scale=4))
    x, level = noise(1, 3, 16, 24), torch.zeros(1)
    one, other = net(x, level, noise(1, 2, 4, 6)), net(x, level, noise(1, 2, 4, 6, seed=1))
    assert one.shape == x.shape and not torch.allclose(one, other)


# Shapes and places


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (8, 8), (16, 33)])
@pytest.mark.parametrize(
    "config", [SMALL, AS_PUBLISHED, UNetConfig(4, 2, (16,), (1,)), UNetConfig(1, 3, (8, 8, 8), (0, 1, 0))]
)
def test_any_size_comes_back(config: UNetConfig, size: tuple[int, int]) -> None:
    c = noise(2, config.condition, *size) if config.condition else None
    assert awake(config)(noise(2, config.channels_in, *size), torch.zeros(2), c).shape == (
        2,
        config.channels_out,
        *size,
    )


@pytest.mark.parametrize("config", [SMALL, AS_PUBLISHED])
def test_it_is_the_same_everywhere(config: UNetConfig) -> None:
    """Moved by a whole cell of the coarsest grid, input and answer move alike away from the borders."""
    net, x, c, level = awake(config), noise(1, 3, 96, 96), noise(1, 2, 96, 96, seed=1), torch.zeros(1)
    with torch.no_grad():
        y = net(x, level, c)
        moved = net(x.roll((4, 6), (2, 3)), level, c.roll((4, 6), (2, 3))).roll((-4, -6), (2, 3))
    torch.testing.assert_close(y[..., 40:56, 40:56], moved[..., 40:56, 40:56], rtol=1e-4, atol=1e-4)


def test_images_of_a_batch_do_not_meet() -> None:
    net, x, c, level = awake(SMALL), noise(3, 3, 8, 8), noise(3, 2, 8, 8, seed=1), torch.tensor([-1.0, 0.0, 2.0])
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], c[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, level, c), alone, rtol=1e-4, atol=1e-5)


def test_attention_sees_the_far_corner() -> None:
    config = dataclasses.replace(SMALL, attention=True, blocks=(1, 0))
    x, c, level = noise(1, 3, 64, 64), noise(1, 2, 64, 64, seed=1), torch.zeros(1)
    other = x.clone()
    other[..., -1, -1] += 100

    def changed(config: UNetConfig) -> float:
        net = awake(config)
        with torch.no_grad():
            return (net(x, level, c) - net(other, level, c))[..., :4, :4].abs().max().item()

    assert changed(config) > 0 and changed(dataclasses.replace(config, attention=False)) == 0


# Precision


@pytest.mark.parametrize("config", [SMALL, AS_PUBLISHED, dataclasses.replace(SMALL, attention=True, condition_scale=2)])
def test_bfloat16_autocast_is_near_single_precision(config: UNetConfig) -> None:
    net, x, level = awake(config), noise(2, 3, 16, 16), torch.tensor([-3.0, 2.0])
    c = noise(2, 2, 16 // config.condition_scale, 16 // config.condition_scale, seed=1)
    exact = net(x, level, c)
    with torch.autocast("cpu", torch.bfloat16):
        near = net(x, level, c)
        near.float().square().mean().backward()
    assert near.dtype == torch.bfloat16
    # bfloat16 has 8 bits: a few hundredths over a dozen convolutions.
    assert (near.float() - exact).norm() < 0.05 * exact.norm()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in net.parameters())


def test_double_precision_throughout() -> None:
    net = awake(SMALL).double()
    assert net(noise(1, 3, 8, 8).double(), torch.zeros(1).double(), noise(1, 2, 8, 8).double()).dtype == torch.float64


def test_denoiser_of_it_learns_and_samples_under_autocast() -> None:
    """Forty steps on one image: it is found again, from any noise, in float32 sums around a bfloat16 network."""
    torch.manual_seed(0)
    net, schedule = TimeUNet(UNetConfig(2, 2, (32, 32), (1, 1), condition=2)), VariancePreserving()
    image = noise(1, 2, 8, 8, seed=9)
    batch, generator = image.expand(16, -1, -1, -1), torch.Generator().manual_seed(0)

    def raw(x: Tensor, level: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x, level, image.expand(len(x), -1, -1, -1))

    denoiser, optimiser = precondition(raw, schedule), torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = diffusion_loss(denoiser, schedule, batch, generator).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1, abs=0.1) and sum(losses[-5:]) / 5 < 0.4
    drawn = sample(denoiser, noise(2, 2, 8, 8, seed=4), schedule, steps=8, method="dpmpp")
    assert drawn.dtype == torch.float32
    assert (drawn - image).norm() < 0.5 * image.expand_as(drawn).norm()


# What cannot be built or answered


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"widths": ()}, "one of each a depth"),
        ({"blocks": (1,)}, "one of each a depth"),
        ({"blocks": (1, -1)}, "blocks 0 or more"),
        ({"widths": (0, 8)}, "1 or more"),
        ({"condition_scale": 0}, "1 or more"),
        ({"condition": -1}, "0 or more"),
        ({"as_published": True}, "no time"),
        ({"widths": (32, 40), "attention": True}, "multiple of 32"),
        ({"condition": 0, "condition_scale": 4}, "no condition"),
    ],
)
def test_bad_sizes_are_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        dataclasses.replace(SMALL, **change)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("shape", "words"), [(None, "condition of none"), ((1, 3, 8, 8), "3 channels"), ((1, 2, 4, 4), "1/1 of the input")]
)
def test_bad_conditions_are_one_line(shape: tuple[int, ...] | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TimeUNet(SMALL)(noise(1, 3, 8, 8), torch.zeros(1), None if shape is None else noise(*shape))
