"""Fits the linear yardsticks of the comparison at equal bits, on what the network was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model.sensors import Floats, TrainedSensor
from model.training.eo_vae.klt import Klt, fit_klt
from model.training.eo_vae.sampler import Sampler
from model.training.sources.images import Image

COEFFICIENTS = 256
"""Coefficients of a block that the KLT may spend bits on."""
IMAGES, DRAWS = "KLT 8x8, images", "KLT 8x8, images and draws"
PATCH, _BATCH = 96, 8


def linear(
    images: Sequence[Image], sensor: TrainedSensor, draws: int, seed: int, log: Callable[[str], None]
) -> dict[str, Klt]:
    """Two KLTs, neither chosen by what is measured: of the images alone, and of the images and of `draws` patches.

    The patches are what training's sampler draws from the images: turned, averaged, moved by parts of a pixel,
    brightened, hazed, clouded. They weigh as much as the images do (`fit_klt`). Fewer KLTs where no image has the
    sensor's bands, where `draws` is 0, or where no valid patch can be drawn.

    Args:
        images: of training, those completed included.
        sensor: whose bands the blocks have.
        draws: patches of `PATCH` pixels a side.
        seed: of the sampler; each sensor's draws are its own, whichever others are measured.
        log: told why there are no draws.
    """
    alone = fit_klt(images, sensor, COEFFICIENTS)
    if alone is None:
        return {}
    patches = _drawn(images, sensor, draws, seed, log)
    both = fit_klt(images, sensor, COEFFICIENTS, more=patches) if patches else None
    return {IMAGES: alone} | ({} if both is None else {DRAWS: both})


def _drawn(
    images: Sequence[Image], sensor: TrainedSensor, draws: int, seed: int, log: Callable[[str], None]
) -> list[Floats]:
    """Patches (C, 96, 96) of z-scores."""
    parts = [min(_BATCH, draws - start) for start in range(0, draws, _BATCH)]
    try:
        sampler = Sampler(images, seed)
        batches = [sampler.draw_set(sensor, part, PATCH) for part in parts]
    except ValueError as error:  # a yardstick less is no reason to give up the others
        log(f"{sensor.name}: no KLT of the sampler's draws: {error}")
        return []
    return [patch for batch in batches for patch in batch.x.numpy()]
