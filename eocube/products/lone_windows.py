"""Opens the encoder for windows that lie on no lattice, each with a halo of its own: patches of training pairs."""

from __future__ import annotations

from dataclasses import dataclass

from eocube.errors import InputError
from eocube.products.eo_vae import EoVae, LoadedWeights, load, numerics
from eocube.products.eo_vae_document import latents
from eocube.products.eo_vae_kind import encoding_of, fit_sensor
from eocube.products.storage import Half
from eocube.sensors.sensor import Sensor

__all__ = ["HALO", "STORED", "LoadedWeights", "LoneWindow", "fit_sensor", "load", "lone_windows", "numerics"]

HALO = 32
"""Pixels around a core, as a cube's windows have them: without a halo `nano2` loses 5 to 10 dB."""


@dataclass(frozen=True, slots=True)
class LoneWindow:
    """A window whose core of `core_px` pixels a side is kept, at `resolution` metres."""

    resolution: float
    core_px: int
    halo_px: int = HALO


def lone_windows(weights: LoadedWeights, sensor: Sensor, window: LoneWindow, precision: str) -> EoVae:
    """The codec of such windows of a sensor that is fitted to the weights (`fit_sensor`), or has statistics of its own.

    Its space id is that of a cube whose windows have this core and halo: with cores of 192 px that of any cube of the
    same sensor, weights, precision and resolution, else another.

    Raises:
        InputError: windows that are no whole cells, or a precision that there is not.
    """
    if precision not in ("fp16", "bf16", "fp32"):
        raise InputError(f"--precision {precision}: there are fp16, bf16, fp32")
    return EoVae(latents(sensor, encoding_of(weights, precision, Half.name, sensor), window), weights)


STORED = Half()
"""How values of pairs are stored, whatever their cubes' own storage was."""
