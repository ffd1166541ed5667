"""Checks a run as it goes: sampled windows are decoded as they are made, scored, compared across their borders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from eocube.ground.grid import CubeGrid, Window
from eocube.products.base import Pixels
from eocube.products.scores import DATA_RANGE, psnr, sam
from eocube.read.coverage import fine
from eocube.read.reader import WindowPixels
from eocube.run.sampling import Border, Sample
from eocube.sensors.sensor import Sensor
from eocube.store.seams import Seams, Side, layer, measure
from model.host import to_host

Floats = npt.NDArray[np.float32]
ToPixels = Callable[[torch.Tensor], torch.Tensor]
Physical = Callable[[Mapping[int, torch.Tensor]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Scores:
    """PSNR in dB and SAM in radians of a window's core, None where not measured; `breach` says what is wrong."""

    psnr: float | None = None
    sam: float | None = None
    breach: str | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What checking a window gave: its scores, and its side of each border that is measured."""

    scores: Scores = field(default_factory=Scores)
    sides: Mapping[Border, Side] = field(default_factory=dict)


class SelfCheck:
    """Decodes the sampled windows of one cube. Safe to call from several threads at once.

    Args:
        grid, sensor: of the plan.
        fraction: share of the windows to check, 0..1.
        decoder: latents (B, C, h, w) -> pixels in physical units.
        truth: pixels in travelling form -> physical units at one sampling.
        device: torch device of both.
        floor: PSNR in dB that the weights record as the least to expect; None when they do not.
    """

    def __init__(
        self,
        grid: CubeGrid,
        sensor: Sensor,
        fraction: float,
        *,
        decoder: ToPixels,
        truth: Physical,
        device: str,
        floor: float | None,
    ) -> None:
        self._lattice, self._sensor, self._sample = grid.lattice, sensor, Sample.of(grid, fraction)
        self._decoder, self._truth, self._device, self._floor = decoder, truth, device, floor

    def samples(self, window: Window) -> bool:
        """Whether a window is in the sample."""
        return window in self._sample.windows

    def check(self, window: Window, pixels: WindowPixels, latents: Floats, groups: Pixels) -> Checked:
        """The scores and sides of a window of the sample.

        Args:
            window: which one.
            pixels: as they were read.
            latents: (C, w, w) with the halo, as a reader of the store sees them.
            groups: the pixels again, {sampling: (1, C_g, H_g, W_g)}, where the decoder is.

        PSNR has range 1 for reflectance, 40 dB for backscatter, 255 for counts; decoded from the window's own latents.
        """
        stored = torch.from_numpy(np.ascontiguousarray(latents, dtype=np.float32))[None].to(self._device)
        decoded, source = (to_host(a[0].float()).numpy() for a in (self._decoder(stored), self._truth(groups)))
        return Checked(
            self._score(source, decoded, self._seen(pixels)), self._sides(window, latents, decoded - source, pixels)
        )

    def _seen(self, pixels: WindowPixels) -> npt.NDArray[np.bool_]:
        """The pixels of the core that the source has in every band: what a reader of the cube gets to see."""
        if pixels.missing is not None:
            return ~pixels.missing
        return fine(pixels.valid == 100, self._lattice.stride)

    def _score(self, source: Floats, decoded: Floats, seen: npt.NDArray[np.bool_]) -> Scores:
        lattice, unit = self._lattice, self._sensor.unit
        inner = slice(lattice.halo_px, lattice.halo_px + lattice.core_px)
        if not seen.any():
            return Scores()
        a, b = source[:, inner, inner][:, seen], decoded[:, inner, inner][:, seen]
        value = psnr(a, b, data_range=DATA_RANGE[unit])
        breach = None
        if self._floor is not None and not value >= self._floor:
            breach = f"decodes at {value:.1f} dB PSNR, under the weights' floor of {self._floor:.1f} dB"
        return Scores(value, sam(a, b) if unit == "reflectance" else None, breach)

    def _sides(self, window: Window, latents: Floats, error: Floats, pixels: WindowPixels) -> dict[Border, Side]:
        borders = self._sample.borders.get(window, ())
        if not borders:
            return {}
        lattice = self._lattice
        inner, px = (slice(h, h + c) for h, c in ((lattice.halo, lattice.core), (lattice.halo_px, lattice.core_px)))
        latents, error = latents.astype(np.float32), error.astype(np.float32)
        latents[:, inner, inner][:, pixels.valid == 0] = np.nan  # mirrored filler is no ground
        error[:, px, px][:, ~self._seen(pixels)] = np.nan
        return {
            border: Side(
                layer(latents, axis=border.axis, first=border.first == window, halo=lattice.halo),
                layer(error, axis=border.axis, first=border.first == window, halo=lattice.halo_px),
            )
            for border in borders
        }


class BorderBook:
    """Puts the two sides of each border of a unit together as they come."""

    def __init__(self) -> None:
        self._waiting: dict[Border, tuple[Window, Side]] = {}
        self._done: dict[Border, Seams] = {}

    def add(self, window: Window, checked: Checked) -> None:
        """Take a window's sides; a border is measured once it has both."""
        for border, side in checked.sides.items():
            if border not in self._waiting:
                self._waiting[border] = (window, side)
                continue
            other, before = self._waiting.pop(border)
            first, second = (before, side) if other == border.first else (side, before)
            self._done[border] = measure(first, second)

    def total(self) -> Seams | None:
        """All borders measured, in order of place whatever order they came in; None of none."""
        if not self._done:
            return None
        return Seams.merged(self._done[b] for b in sorted(self._done, key=_place))


def _place(border: Border) -> tuple[int, int, int]:
    return border.first.row, border.first.col, border.axis
