"""Measures the steps in which latents are stored as codes: each channel's rounding costs the decoded pixels alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.eo_vae import EOVAE
from model.sensors import SENSORS, Floats, TrainedSensor
from model.training.eo_vae.evaluate import decoded, encoded
from model.training.sources.images import Image

SIDE = 96
MOST_TILES = 6
PROBE = 0.15
"""Spread of the noise that tells a channel's gain, in parts of the channel's own: small, yet far above rounding."""
LOSS_DB = 0.25
"""What storing as codes may take off a training place's PSNR: off that of half of the places it takes less.

Chosen on the validation places: see docs/figures/nano.md.
"""
_DOUBLINGS, _HALVINGS = 30, 12
_LEAST_GAIN = 1e-3
_DIGITS = 4


@dataclass(frozen=True, slots=True)
class CodeSteps:
    """Steps (channels,) of latents, and the RMS error (bands,) they add to decoded pixels in the physical unit."""

    steps: tuple[float, ...]
    error: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What one sensor's tiles say: latents, what they decode to, the decoder's own errors, its gains."""

    sensor: TrainedSensor
    tiles: Sequence[Floats]
    latents: Sequence[Tensor]
    whole: Sequence[Floats]
    own: Sequence[float]
    gains: NDArray[np.float64]


@torch.no_grad()
def code_steps(
    vae: EOVAE, sets: Sequence[tuple[TrainedSensor, Sequence[Floats]]], *, seed: int = 0, loss_db: float = LOSS_DB
) -> tuple[CodeSteps, ...]:
    """Steps inversely to the decoder's gain of each channel, as large as `loss_db` allows: of each sensor, in order.

    Noise of a step's width, uniform and independent over channels, adds step^2 / 12 x gain^2 to the mean square error;
    at high rate the bits are fewest, for the same error, where that is the same of all channels (reverse water-filling,
    Cover and Thomas, Elements of Information Theory, 10.3.3, with channels as components). One level serves all the
    sensors given: what is added is alike, whichever of them a place is stored as.

    Args:
        vae: in eval mode.
        sets: sensors of one unit, each with (C, H, W) z-scores of training images, a place each.
        seed: of the noise.
        loss_db: PSNR that the median tile loses against latents in float32.

    Raises:
        ValueError: no tile of a sensor.
    """
    found = [_measure(vae, sensor, tiles, seed) for sensor, tiles in sets]
    middle = vae.channel_statistics()[0].float()

    def loss(scale: float) -> float:
        losses = [
            10 * np.log10(_mse(decoded(vae, rounded(z, middle, scale / m.gains), m.sensor), tile) / mse)
            for m in found
            for z, tile, mse in zip(m.latents, m.tiles, m.own, strict=True)
        ]
        return float(np.median(losses))

    scale = _largest(loss, loss_db, start=float(np.sqrt(min(mse for m in found for mse in m.own))))
    return tuple(_steps(vae, m, middle, scale) for m in found)


def _measure(vae: EOVAE, sensor: TrainedSensor, tiles: Sequence[Floats], seed: int) -> _Measured:
    if not tiles:
        raise ValueError(f"no training image has the bands of {sensor.name}: its steps cannot be measured")
    latents = [encoded(vae, tile, sensor) for tile in tiles]
    whole = [decoded(vae, z, sensor) for z in latents]
    own = [_mse(back, tile) for back, tile in zip(whole, tiles, strict=True)]
    gains = _gains(vae, sensor, latents, whole, np.random.default_rng(seed))
    return _Measured(sensor, tiles, latents, whole, own, gains)


def _steps(vae: EOVAE, measured: _Measured, middle: Tensor, scale: float) -> CodeSteps:
    """The steps of a level, and what they add to the physical units of each band."""
    sensor = measured.sensor
    steps = np.array([float(f"{s:.{_DIGITS - 1}e}") for s in scale / measured.gains])
    added = [
        sensor.physical(decoded(vae, rounded(z, middle, steps), sensor)).astype(np.float64) - sensor.physical(back)
        for z, back in zip(measured.latents, measured.whole, strict=True)
    ]
    error = np.sqrt(np.mean([np.square(a).mean(axis=(1, 2)) for a in added], axis=0))
    return CodeSteps(tuple(steps.tolist()), tuple(float(f"{e:.2e}") for e in error))


def rounded(z: Tensor, middle: Tensor, steps: NDArray[np.float64]) -> Tensor:
    """(B, channels, h, w) as they come back from codes of these steps (channels,) about `middle` (channels,)."""
    step, offset = torch.as_tensor(steps, dtype=z.dtype)[:, None, None], middle[:, None, None]
    return ((z - offset) / step).round() * step + offset


def _gains(
    vae: EOVAE, sensor: TrainedSensor, latents: Sequence[Tensor], whole: Sequence[Floats], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Root mean square change of the decoded z-scores for unit noise on each channel (channels,)."""
    count = vae.config.z_channels
    squares = np.zeros(count)
    for z, back in zip(latents, whole, strict=True):
        for channel in range(count):
            spread = PROBE * max(float(z[0, channel].std()), 1e-6)
            noise = rng.uniform(-1, 1, z.shape[2:]) * np.sqrt(3) * spread
            other = z.clone()
            other[0, channel] += torch.from_numpy(noise.astype(np.float32))
            squares[channel] += _mse(decoded(vae, other, sensor), back) / spread**2
    gains: NDArray[np.float64] = np.sqrt(squares / len(latents))
    # A channel that the decoder takes no notice of has no step of its own: any would do.
    return np.clip(gains, _LEAST_GAIN * gains.max(), None)


def _largest(loss: Callable[[float], float], bound: float, start: float) -> float:
    """The largest scale, to one part in a few hundred, whose loss stays within the bound; it grows with the scale."""
    low, high = 0.0, start
    for _ in range(_DOUBLINGS):
        if loss(high) >= bound:
            break
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if loss(middle) <= bound else (low, middle)
    return low


def _mse(a: Floats, b: Floats) -> float:
    return float(np.square(a.astype(np.float64) - b).mean())


def training_tiles(images: Sequence[Image], sensor: TrainedSensor, most: int = MOST_TILES) -> list[Floats]:
    """The middle of an image of each training place that has the sensor's bands, up to `most` places.

    Pictures are made of reflectances, as training makes them.
    """
    units = ("dn8", "reflectance*1e4") if sensor.unit == "dn8" else (sensor.unit,)
    own = [i for i in images if not i.held_out and i.sensor == sensor.name]
    others = [i for i in images if not i.held_out and i.sensor != sensor.name and SENSORS[i.sensor].unit in units]
    found: dict[str, Floats] = {}
    for image in [*own, *others]:
        z = image.seen_by(sensor)
        if z is None or image.place in found or min(z.shape[1:]) < SIDE:
            continue
        row, column = ((n - SIDE) // 2 for n in z.shape[1:])
        tile = z[:, row : row + SIDE, column : column + SIDE]
        if np.isfinite(tile).all():
            found[image.place] = tile
    return list(found.values())[:most]
