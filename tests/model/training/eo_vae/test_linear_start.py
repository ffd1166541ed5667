"""The closed-form start, the solved generators, the yardstick."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.eo_vae import EOVAE, EOVAEConfig
from model.sensors import S1RTC, S2L1C, S2L2A
from model.training.eo_vae.distill import completion, distil, targets
from model.training.eo_vae.klt import fit_klt, to_blocks
from model.training.eo_vae.linear_start import StaticKernels, linear_start, pair_layout
from model.training.eo_vae.sampler import Sampler
from model.training.eo_vae.skeleton import skeleton_only
from model.training.optimiser import Muon, muon_groups, orthogonalise
from model.training.sources.images import load_images

CONFIG = EOVAEConfig(ch=32, num_res_blocks=1, norm_groups=2, hypernet_layers=1, wavelength_dim=64, hypernet_ff=64)
World = tuple[Path, Path]


@pytest.fixture(scope="module")
def started(world: World) -> tuple[EOVAE, StaticKernels, Sampler, torch.Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sampler = Sampler(load_images(*world), seed=1)
    optical, radar = sampler.draw_set(S2L2A, 16, 96).x, sampler.draw_set(S1RTC, 8, 96).x
    vae = EOVAE(CONFIG)
    return vae, linear_start(vae, optical, radar), sampler, optical


def _pass(vae: EOVAE, kernels: StaticKernels, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        mean = vae.encoder.body(F.conv2d(x, kernels.optical_in, padding=1)).chunk(2, dim=1)[0]
        return F.conv2d(vae.decoder.body(mean), kernels.optical_out, padding=1)


def test_start_reconstructs_before_any_training(started: tuple[EOVAE, StaticKernels, Sampler, torch.Tensor]) -> None:
    vae, kernels, _, optical = started
    y = _pass(vae, kernels, optical[:4])
    inside = (..., slice(16, -16), slice(16, -16))
    error = (y - optical[:4])[inside].square().mean().sqrt()
    assert float(error) < 0.35 * float(optical[:4][inside].std())


def test_start_is_linear_in_brightness(started: tuple[EOVAE, StaticKernels, Sampler, torch.Tensor]) -> None:
    vae, kernels, _, optical = started
    x = optical[:1]
    assert torch.allclose(_pass(vae, kernels, 2 * x), 2 * _pass(vae, kernels, x), rtol=0.05, atol=0.05)


def test_branches_are_silent(started: tuple[EOVAE, StaticKernels, Sampler, torch.Tensor]) -> None:
    vae, kernels, _, optical = started
    whole = _pass(vae, kernels, optical[:1])
    with skeleton_only(vae):
        assert torch.equal(_pass(vae, kernels, optical[:1]), whole)
    assert "forward" not in vae.encoder.mid.block_1.__dict__


def test_solved_generators_give_the_kernels(started: tuple[EOVAE, StaticKernels, Sampler, torch.Tensor]) -> None:
    vae, kernels, sampler, optical = started
    pixels = optical.permute(0, 2, 3, 1).reshape(-1, 12)[::50]
    distil(vae, kernels, sampler, pixels, steps=0)
    for sensor in (S2L2A, S1RTC):
        encoder, decoder = targets(sensor, kernels, pixels)
        with torch.no_grad():
            got = vae.encoder.conv_in.kernel(sensor.wavelengths)[0]
            back = vae.decoder.conv_out.kernel(sensor.wavelengths)[0]
        assert float((got - encoder).norm() / encoder.norm()) < 0.1
        assert float((back - decoder).norm() / decoder.norm()) < 0.1


def test_completion_passes_present_bands() -> None:
    pixels = torch.randn(500, 3) @ torch.randn(3, 12)
    full = completion([0, 4, 7, 9], pixels)
    assert torch.equal(full[[0, 4, 7, 9]], torch.eye(4))
    assert float((pixels[:, [0, 4, 7, 9]] @ full.T - pixels).square().mean()) < 0.2 * float(pixels.square().mean())


def test_pairs_and_constants_share_every_group() -> None:
    pairs, constants = pair_layout(32, 2)
    numbers = sorted([c for pair in pairs + constants for c in pair])
    assert numbers == list(range(32)) and [c[0] // 16 for c in constants] == [0, 1]
    with pytest.raises(ValueError, match="even group"):
        pair_layout(32, 16)


def test_start_refuses_another_topology() -> None:
    with pytest.raises(ValueError, match="ch_mult"):
        linear_start(EOVAE(EOVAEConfig(ch=32, ch_mult=(1, 2), norm_groups=2)), torch.zeros(1), torch.zeros(1))


def test_klt_keeps_what_it_was_fitted_on(world: World) -> None:
    images = load_images(*world)
    z = S2L2A.zscore(images[0].data)
    full, small = fit_klt(images, S2L2A, 196), fit_klt(images, S2L2A, 4)
    assert full is not None and small is not None
    errors = [float(np.sqrt(np.mean((k.reconstruct(z) - z) ** 2))) for k in (full, small)]
    assert errors[0] < errors[1] < float(z.std())
    assert to_blocks(z).shape == (196, 12 * 64)


def test_muon_solves_a_matrix_and_adam_its_bias() -> None:
    torch.manual_seed(0)
    matrix = orthogonalise(torch.randn(6, 10))
    assert torch.allclose(torch.linalg.svdvals(matrix), torch.ones(6), atol=0.35)
    layer, target = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    optimiser = Muon(muon_groups(layer.named_parameters()))
    losses = []
    for step in range(300):
        x = torch.randn(64, 6)
        loss = (layer(x) - target(x)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = 0.05 * (1 - step / 300)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.01 * losses[0]


def test_subsets_are_taught_and_trained_sets_kept(world: World) -> None:
    from model.training.eo_vae.subsets import Family, subset_lesson, teach, trained_lessons

    torch.manual_seed(2)
    vae = EOVAE(CONFIG)
    lessons = trained_lessons(vae, [S2L2A, S1RTC])
    pixels = torch.randn(400, 4) @ torch.randn(4, 12)
    error = teach(vae, lessons, [Family(lessons[0], pixels)], minutes=5, steps=40, seed=1)
    assert error < 0.5
    present = [1, 2, 3, 7]
    wanted = subset_lesson(lessons[0], present, pixels)
    with torch.no_grad():
        kernel = vae.decoder.conv_out.kernel(wanted.wavelengths)[0]
    assert float((kernel - wanted.decoder[0]).norm() / wanted.decoder[0].norm()) < 0.5
    (level1,) = trained_lessons(vae, [S2L1C])
    family = Family(level1, torch.randn(400, 4) @ torch.randn(4, 13), always=S2L1C.bands.index("B10"))
    drawn = [family.draw(np.random.default_rng(i)) for i in range(8)]
    assert all(1.375 in d.wavelengths.tolist() for d in drawn)
