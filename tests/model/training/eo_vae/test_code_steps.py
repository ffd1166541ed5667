"""Code steps: rounding each channel costs the decoded pixels alike, and all of it no more than was allowed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.eo_vae import EOVAEConfig
from model.sensors import SENSORS, Floats, TrainedSensor
from model.training.eo_vae import code_steps as module
from model.training.eo_vae.code_steps import code_steps, rounded, training_tiles
from model.training.sources.images import Image
from model.weights import load_weights
from model.weights_meta import SensorMeta, WeightsMeta

RADAR = SENSORS["S1RTC"]
WEIGHTS = torch.tensor([4.0, 1.0, 0.25, 0.0])
SPREAD = torch.tensor([1.0, 2.0, 3.0, 1.0])


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A decoder that weighs and adds channels, each pixel a latent; its own error is 0.1."""
    rng = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 64, 64, generator=rng) * SPREAD[:, None, None]

    def decoded(vae: Any, z: Tensor, sensor: TrainedSensor) -> Floats:
        return (WEIGHTS[:, None, None] * z[0]).sum(0, keepdim=True).repeat(2, 1, 1).numpy()

    monkeypatch.setattr(module, "encoded", lambda *_: latents)
    monkeypatch.setattr(module, "decoded", decoded)
    tile = decoded(None, latents, RADAR) + 0.1 * np.sign(np.random.default_rng(1).standard_normal((2, 64, 64)))
    vae = SimpleNamespace(
        config=SimpleNamespace(z_channels=4), channel_statistics=lambda: (torch.zeros(4), torch.ones(4))
    )
    return vae, [tile.astype(np.float32)]


def test_steps_are_inverse_to_the_decoders_gain(linear: Any) -> None:
    vae, tiles = linear
    (found,) = code_steps(vae, [(RADAR, tiles)])
    gains = np.array(found.steps[:3]) * WEIGHTS[:3].numpy()
    np.testing.assert_allclose(gains, gains.mean(), rtol=0.03)
    # Three channels, each step^2 / 12 x weight^2, make 0.25 dB of the decoder's own 0.01.
    np.testing.assert_allclose(3 * gains.mean() ** 2 / 12, 0.01 * (10**0.025 - 1), rtol=0.1)
    physical = np.sqrt(0.01 * (10**0.025 - 1)) * np.array(RADAR.std)
    np.testing.assert_allclose(found.error, physical, rtol=0.1)
    assert code_steps(vae, [(RADAR, tiles)]) == (found,) != code_steps(vae, [(RADAR, tiles)], seed=1)
    assert code_steps(vae, [(RADAR, tiles)], loss_db=1.0)[0].steps[0] > 1.5 * found.steps[0]


def test_sensors_of_a_unit_get_one_level(linear: Any) -> None:
    """A place that the decoder gives back worse could take more: the median decides for both."""
    vae, tiles = linear
    worse = tiles[0] + 0.3 * np.sign(np.random.default_rng(2).standard_normal(tiles[0].shape)).astype(np.float32)
    (alone,) = code_steps(vae, [(RADAR, [worse])])
    first, second = code_steps(vae, [(RADAR, tiles), (RADAR, [worse, tiles[0]])])
    np.testing.assert_allclose(first.steps, second.steps, rtol=0.03)
    assert first.steps[0] < 0.5 * alone.steps[0]


def test_rounding_is_to_the_nearest_step_about_the_middle() -> None:
    z = torch.tensor([[[[0.0, 0.6, -0.9]], [[5.0, 5.2, 4.9]]]])
    back = rounded(z, torch.tensor([0.0, 5.0]), np.array([0.5, 0.25]))
    assert back.tolist() == [[[[0.0, 0.5, -1.0]], [[5.0, 5.25, 5.0]]]]


def test_the_shipped_weights_give_steps_for_every_sensor_they_know() -> None:
    vae = load_weights("nano")
    assert vae.meta is not None
    for name, entry in vae.meta.sensors.items():
        assert entry.code_steps is not None and len(entry.code_steps) == vae.config.z_channels, name
        assert entry.code_error is not None and len(entry.code_error) == len(entry.bands), name


def test_without_a_training_image_there_are_no_steps(linear: Any) -> None:
    vae, _ = linear
    with pytest.raises(ValueError, match="no training image has the bands of S1RTC"):
        code_steps(vae, [(RADAR, [])])


def test_tiles_are_of_training_places_alone_one_a_place() -> None:
    data = np.zeros((2, 100, 100), np.float32)
    image = Image("a", "p", "S1RTC", ("VV", "VH"), data, 10)
    images = [
        image, replace(image, name="b"), replace(image, place="q", held_out=True),
        replace(image, place="r", data=data[:, :90]), replace(image, place="s", data=data + np.nan),
    ]  # fmt: skip
    assert len(training_tiles(images, RADAR)) == 1
    assert training_tiles(images, SENSORS["S2L2A"]) == []


def test_steps_of_more_bands_serve_for_fewer() -> None:
    def entry(bands: tuple[str, ...], steps: tuple[float, ...] | None, unit: str = "reflectance*1e4") -> SensorMeta:
        ones = (1.0,) * len(bands)
        return SensorMeta(bands, ones, ones, ones, unit, True, "", code_steps=steps)

    sensors = {
        "all": entry(("B02", "B03", "B04", "B08"), (1.0,)), "some": entry(("B02", "B03", "B04"), (2.0,)),
        "none": entry(("B02",), None), "other": entry(("B02",), (3.0,), "dn8"),
    }  # fmt: skip
    meta = WeightsMeta("w", EOVAEConfig(), sensors, "", "", "")

    def of(sensor: str, *bands: str) -> tuple[float, ...] | None:
        found = meta.coded(sensor, bands)
        return None if found is None else found.code_steps

    assert of("all", "B02", "B03", "B04", "B08") == (1.0,) and of("all", "B02", "B03") == (2.0,)
    assert of("none", "B02") == (2.0,) and of("other", "R") == (3.0,)
    assert of("nowhere", "B02") is None
