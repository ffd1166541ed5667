"""The golden set of extremes: what satellites really deliver at the ends of their range, in every precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from eocube.products.storage import Half
from eocube.sensors import get_sensor
from eocube.sensors.sensor import Sensor
from model.eo_vae import EOVAE
from model.fused import FusedDecoder, FusedEncoder
from model.weights import load_weights

SIDE = 64
Field = Callable[[int], Tensor]


def noise(bands: int, seed: int) -> Tensor:
    return torch.randn(1, bands, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def digital(reflectance: Tensor) -> Tensor:
    """Reflectance as Sentinel-2 counts with the offset of 1000: 1 to 65535, saturated there."""
    return (reflectance * 1e4 + 1000).round().clamp(1, 65535).to(torch.uint16)


def hot_pixel(bands: int) -> Tensor:
    field = 0.1 + 0.01 * noise(bands, 4)
    field[:, :, 31, 17] = 6.4
    return digital(field)


OPTICAL: dict[str, Field] = {
    "saturated snow": lambda bands: torch.full((1, bands, SIDE, SIDE), 65535, dtype=torch.uint16),
    "snow and shadow": lambda bands: digital((noise(bands, 1) > 0).float() * 1.6),
    "cloud tops": lambda bands: digital(1.1 + 0.2 * noise(bands, 2)),
    "desert": lambda bands: digital(0.45 + 0.02 * noise(bands, 3)),
    "deep water": lambda bands: digital(0.002 + 0.001 * noise(bands, 5)),
    "the darkest count": lambda bands: torch.ones((1, bands, SIDE, SIDE), dtype=torch.uint16),
    "a constant field": lambda bands: digital(torch.full((1, bands, SIDE, SIDE), 0.2)),
    "one hot pixel": hot_pixel,
}
RADAR: dict[str, Field] = {
    "-40 dB": lambda bands: torch.full((1, bands, SIDE, SIDE), -40.0),
    "-40 dB and speckle": lambda bands: -40 + 3 * noise(bands, 6),
    "+10 dB": lambda bands: torch.full((1, bands, SIDE, SIDE), 10.0),
    "a ship on calm water": lambda bands: torch.where(noise(bands, 7) > 3.2, 10.0, -35.0),
}
CASES = [("S2L2A", name) for name in OPTICAL] + [("S1RTC", name) for name in RADAR]


@pytest.fixture(scope="module")
def nano() -> EOVAE:
    return load_weights("nano").eval()


@pytest.fixture(scope="module")
def encoders(nano: EOVAE) -> Callable[[str, torch.dtype], FusedEncoder]:
    made: dict[tuple[str, torch.dtype], FusedEncoder] = {}

    def encoder(sensor: str, dtype: torch.dtype) -> FusedEncoder:
        if (sensor, dtype) not in made:
            made[sensor, dtype] = FusedEncoder(nano, fitted(nano, sensor), device="cpu", dtype=dtype, window=SIDE)
        return made[sensor, dtype]

    return encoder


def fitted(vae: EOVAE, name: str) -> Sensor:
    assert vae.meta is not None
    return get_sensor(name).with_weights(vae.meta)


def pixels(sensor: Sensor, name: str) -> Tensor:
    return (OPTICAL | RADAR)[name](len(sensor.bands))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("sensor", "name"), CASES)
def test_every_precision_gives_storable_latents_near_the_network(
    nano: EOVAE, encoders: Callable[[str, torch.dtype], FusedEncoder], sensor: str, name: str, dtype: torch.dtype
) -> None:
    """What leaves the network's range would end up here as a window that is run again in another precision."""
    encoder = encoders(sensor, dtype)
    raw = pixels(encoder.sensor, name)  # type: ignore[arg-type]
    latents = encoder(raw)
    assert Half().sound(latents) == [True]
    z = encoder.pixels.zscore(encoder.physical(raw))
    with torch.no_grad():
        expected = nano.encode(z, [band.wavelength for band in encoder.sensor.bands]).mean
    limit = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 1.5e-1}[dtype]
    assert float((latents - expected).norm() / expected.norm()) < limit


@pytest.mark.parametrize("sensor", ["S2L2A", "S1RTC"])
def test_extremes_come_back_finite(nano: EOVAE, sensor: str) -> None:
    fit = fitted(nano, sensor)
    encoder = FusedEncoder(nano, fit, device="cpu", dtype=torch.float32, window=SIDE)
    decoder = FusedDecoder(nano, fit, device="cpu", dtype=torch.float32, window=SIDE)
    raw = torch.cat([pixels(fit, name) for kind, name in CASES if kind == sensor])
    assert decoder(encoder(raw).half()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_no_numbers_never_pass(
    encoders: Callable[[str, torch.dtype], FusedEncoder], dtype: torch.dtype, bad: float
) -> None:
    """And cost their own window alone."""
    encoder = encoders("S1RTC", dtype)
    raw = -12 + noise(2, 8).repeat(2, 1, 1, 1)
    raw[0, 1, 20, 20] = bad
    latents = encoder(raw)
    assert Half().sound(latents) == [False, True]
    assert torch.equal(latents[1], encoder(raw[1:])[0])
