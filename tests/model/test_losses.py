"""Losses against independent implementations and against what they promise."""

import pytest
import torch

from model import losses


def _pair(channels: int = 3, side: int = 112) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    target = torch.nn.functional.avg_pool2d(torch.randn(2, channels, side + 4, side + 4, generator=generator), 5, 1)
    return target + 0.05 * torch.randn(target.shape, generator=generator), target


def test_ms_ssim_equals_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image", exc_type=ImportError)
    prediction, target = _pair()
    reference = functional.multiscale_structural_similarity_index_measure(
        prediction, target, data_range=6.0, sigma=1.5, kernel_size=5, normalize="relu"
    )
    assert float(losses.ms_ssim(prediction, target)) == pytest.approx(float(reference), abs=1e-5)


def test_ms_ssim_of_equal_images_is_one_and_differentiable() -> None:
    prediction, target = _pair()
    assert float(losses.ms_ssim(target, target)) == pytest.approx(1.0, abs=1e-6)
    prediction.requires_grad_(True)
    losses.ms_ssim_loss(prediction, target).backward()
    assert prediction.grad is not None and torch.isfinite(prediction.grad).all() and prediction.grad.abs().sum() > 0


def test_ms_ssim_refuses_small_images() -> None:
    with pytest.raises(ValueError, match="at least 96"):
        losses.ms_ssim(torch.zeros(1, 1, 88, 88), torch.zeros(1, 1, 88, 88))


@pytest.mark.parametrize("gain", [0.3, 5.0])
def test_relative_error_counts_dark_and_bright_alike(gain: float) -> None:
    prediction, target = _pair()
    plain = losses.relative_error(prediction, target, floor=0.0)
    scaled = losses.relative_error(gain * prediction, gain * target, floor=0.0)
    assert float(scaled) == pytest.approx(float(plain), rel=1e-4)


@pytest.mark.parametrize("loss", [losses.relative_error, losses.relative_angle, losses.charbonnier])
def test_losses_fall_towards_the_target(loss: object) -> None:
    assert callable(loss)
    prediction, target = _pair(channels=12, side=32)
    far, near = float(loss(prediction, target)), float(loss(target + 0.1 * (prediction - target), target))
    assert near < far


def test_relative_losses_are_finite_on_constant_patches() -> None:
    flat = torch.full((1, 4, 32, 32), 2.5, requires_grad=True)
    total = losses.relative_error(flat, flat.detach()) + losses.relative_angle(flat, flat.detach())
    total.backward()
    assert torch.isfinite(total) and flat.grad is not None and torch.isfinite(flat.grad).all()
