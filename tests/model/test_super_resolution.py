"""The super-resolver: sizes, coordinates, the mean and samples by hand, files that come back, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.super_resolution import SRConfig, SRMeta, SuperResolver, load_sr, save_sr
from model.super_resolution_parts import Whitening
from model.unet import UNetConfig
from model.weights_meta import WeightsError

META = SRMeta(
    "tiny", ("B04", "B08"), {"weights": "nano2", "sha256": "ab" * 32, "bands": ["B04", "B08"], "sensor": "RGBN"}
)


def config(**changes: object) -> SRConfig:
    unet = UNetConfig(3, 3, (8, 8), (1, 1), condition=2)
    values = {"channels": 3, "trunk": 8, "trunk_blocks": 1, "features": 2, "unet": unet} | changes
    return SRConfig(**values)  # type: ignore[arg-type]


def filled(sizes: SRConfig, seed: int = 0) -> SuperResolver:
    """With every weight random: fresh ones answer 0 in many places."""
    net = SuperResolver(sizes).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    net.condition_mean.fill_(0.5)
    net.condition_std.fill_(2.0)
    covariance = torch.randn(sizes.channels, 8, generator=generator)
    net.white.fit(torch.ones(sizes.channels), covariance @ covariance.T, torch.eye(sizes.channels))
    return net


def test_coordinates_are_white_and_the_cost_diagonal() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(4, 4, generator=generator).double()
    covariance, probes = mixed @ mixed.T, torch.randn(4, 9, generator=generator).double()
    gram = probes @ probes.T
    white = Whitening(4)
    white.fit(torch.arange(4.0), covariance, gram)
    forth, back = white.forth.double(), white.back.double()
    assert torch.allclose(forth @ covariance @ forth.T, torch.eye(4).double(), atol=1e-4)
    cost = back.T @ gram @ back
    assert torch.allclose(cost, torch.diag(cost.diagonal()), atol=1e-3 * float(cost.max()))
    assert torch.allclose(cost.diagonal() / cost.diagonal().mean(), white.cost.double(), atol=1e-4)
    x = torch.randn(2, 4, 3, 5, generator=generator)
    assert torch.allclose(white.out(white.into(x)), x, atol=1e-4)
    white.fit(torch.zeros(4), covariance)
    assert torch.allclose(white.forth.diagonal().double(), covariance.diagonal() ** -0.5) and bool(
        (white.cost == 1).all()
    )


@pytest.mark.parametrize("conditioning", ["native", "upsampled", "sharpened"])
def test_shapes_of_both_conditionings(conditioning: str) -> None:
    net = filled(config(conditioning=conditioning))
    side = 3 if conditioning == "native" else 12
    lr = torch.randn(2, 3, side, side)
    assert net.mean(lr).shape == (2, 3, 12, 12)
    assert net.sample(lr, steps=2, generator=torch.Generator().manual_seed(1)).shape == (2, 3, 12, 12)


def test_a_fresh_network_is_its_base() -> None:
    net = SuperResolver(config()).eval()
    lr = torch.randn(1, 3, 4, 4)
    base = net.linear(net.normalised(lr))
    assert base is not None and torch.allclose(net.mean(lr), base, atol=1e-6)
    # each fine cell is its own linear map of the neighbourhood: moving a coarse cell moves 3x3 of them, and no more
    moved = lr.clone()
    moved[0, 0, 0, 0] += 1
    changed = (net.mean(moved) - base).abs().amax(1)[0] > 1e-6
    assert bool(changed[:8, :8].all()) and not bool(changed[8:].any()) and not bool(changed[:, 8:].any())


def test_samples_follow_their_noise_and_their_seed() -> None:
    net = filled(config())
    lr = torch.randn(2, 3, 3, 3)
    noise = torch.randn(2, 3, 12, 12)
    one = net.sample(lr, steps=3, noise=noise)
    assert torch.equal(one, net.sample(lr, steps=3, noise=noise))
    assert not torch.allclose(one, net.sample(lr, steps=3, noise=-noise))
    seeded = [net.sample(lr, steps=3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(*seeded)
    # an image alone is what it is among others, and one condition serves several noises
    assert torch.allclose(net.sample(lr[1:], steps=3, noise=noise[1:]), one[1:], rtol=1e-4, atol=1e-4)
    denoise, raw = net.denoiser(lr[:1])
    both = raw(denoise(noise, torch.full((2,), 0.5)))
    assert both.shape == (2, 3, 12, 12) and torch.isfinite(both).all()


def test_project_sees_raw_estimates_and_has_the_last_word() -> None:
    net = filled(config())
    lr = torch.randn(1, 3, 3, 3)
    wanted = torch.randn(1, 3, 12, 12)
    seen: list[Tensor] = []

    def project(estimate: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return wanted

    found = net.sample(lr, steps=4, noise=torch.randn(1, 3, 12, 12), project=project)
    assert torch.allclose(found, wanted, atol=1e-4) and len(seen) == 4


def test_without_a_trunk_the_mean_is_the_denoisers_answer_to_noise() -> None:
    unet = replace(
        UNetConfig.published_latent(), widths=(8, 8), blocks=(1, 1), channels_in=3, channels_out=3, condition=3
    )
    net = filled(config(trunk=0, base=0, conditioning="upsampled", amplitude=False, times="schedule", unet=unet))
    lr = torch.randn(1, 3, 8, 8)
    assert torch.equal(net.mean(lr), net.mean(lr)) and net.mean(lr).shape == lr.shape
    assert net.linear(net.normalised(lr)) is None


def test_published_sizes() -> None:
    latent = SRConfig(UNetConfig.published_latent(), conditioning="upsampled", base=0, amplitude=False)
    pixel = SRConfig(
        UNetConfig.published_pixel(), channels=4, space="pixel", conditioning="upsampled", base=0, amplitude=False
    )
    with torch.device("meta"):
        counts = [sum(p.numel() for p in SuperResolver(c).parameters()) for c in (latent, pixel)]
    assert counts == [10_999_776, 10_806_212]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": "colour"}, "choose latent or pixel"),
        ({"schedule": "cosine"}, "choose vp or edm"),
        ({"base": 2}, "odd number of cells"),
        ({"fold": 3}, "does not divide the scale"),
        ({"features": 5}, "these sizes need 3, 3 and 5"),
        ({"trunk": 0}, "condition_scale"),
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**changes)


def test_a_file_comes_back(tmp_path: Path) -> None:
    net, path = filled(config()), tmp_path / "tiny.safetensors"
    save_sr(net, path, META, torch.float32)
    back = load_sr(path)
    lr = torch.randn(1, 3, 3, 3)
    assert torch.equal(back.mean(lr), net.mean(lr)) and back.config == net.config
    assert back.meta == META and len(back.meta.sha256) == 64
    save_sr(net, tmp_path / "half.safetensors", META)
    half = load_sr(tmp_path / "half.safetensors")
    assert torch.allclose(half.mean(lr), net.mean(lr), atol=2e-2) and half.meta is not None
    assert half.meta.sha256 != back.meta.sha256
    # what was solved is kept whole
    assert torch.equal(half.white.forth, net.white.forth)
    assert SRConfig.from_dict(net.config.to_dict()) == net.config


def test_refused_in_one_line(tmp_path: Path) -> None:
    net, path = filled(config()), tmp_path / "tiny.safetensors"
    save_sr(net, path, META)
    absent = str(tmp_path / "no.safetensors")
    for source, said in (
        ("nano2", "no super-resolution weights"), (absent, "no such weights"), ("sr-nan0", "no weights named")
    ):  # fmt: skip
        with pytest.raises(WeightsError, match=said) as error:
            load_sr(source)
        assert "\n" not in str(error.value)
    state = load_file(path)
    header = META.to_header(net.config)
    save_file({k: v for k, v in state.items() if k != "white.mean"}, tmp_path / "short.safetensors", metadata=header)
    with pytest.raises(WeightsError, match=r"1 keys missing.*white\.mean"):
        load_sr(tmp_path / "short.safetensors")
    save_file(state, tmp_path / "odd.safetensors", metadata=header | {"bands": "7"})
    with pytest.raises(WeightsError, match="damaged metadata"):
        load_sr(tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"need \(B, 3, h, w\)"):
        net.mean(torch.zeros(1, 4, 3, 3))
    with pytest.raises(ValueError, match="no sampler is called"):
        net.sample(torch.zeros(1, 3, 3, 3), method="euler")
    broken = filled(config())
    next(broken.unet.parameters()).fill_(1e30)
    with pytest.raises(WeightsError, match="not finite"):
        save_sr(broken, tmp_path / "broken.safetensors", META)
    assert not (tmp_path / "broken.safetensors").exists()


def test_latents_of_another_encoder() -> None:
    net = filled(config())
    net.check_encoder("cd" * 32, ("B02",))  # says nothing where weights say nothing
    net.meta = META
    net.check_encoder("ab" * 32, ("B04", "B08"))
    with pytest.raises(WeightsError, match="another encoder"):
        net.check_encoder("cd" * 32, ("B04", "B08"))
    with pytest.raises(WeightsError, match="encode its bands"):
        net.check_encoder("ab" * 32, ("B04",))
