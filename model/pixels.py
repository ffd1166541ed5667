"""Turns travelling pixels into what the network sees: one grid, raw numbers to physical units to z-scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from model.native import NativeSteps, can_place


class BandLike(Protocol):
    """A band: wavelength in micrometres, sampling in metres, z-score statistics in the weights' unit."""

    @property
    def name(self) -> str: ...
    @property
    def wavelength(self) -> float: ...
    @property
    def gsd(self) -> int: ...
    @property
    def mean(self) -> float: ...
    @property
    def std(self) -> float: ...


class SensorLike(Protocol):
    """A sensor: physical = raw * scale + offset, z-score = (physical * unit_factor - mean) / std."""

    @property
    def name(self) -> str: ...
    @property
    def bands(self) -> Sequence[BandLike]: ...
    @property
    def scale(self) -> float: ...
    @property
    def offset(self) -> float: ...
    @property
    def unit_factor(self) -> float: ...


def sampling_groups(sensor: SensorLike, resolution: int) -> dict[int, tuple[int, ...]]:
    """Sampling in metres -> places of the bands that travel at it, finest first.

    A band travels at its own sampling where that is a whole multiple of `resolution`, else at `resolution`.
    """
    groups: dict[int, list[int]] = {}
    for place, band in enumerate(sensor.bands):
        coarser = max(resolution, band.gsd)
        groups.setdefault(coarser if coarser % resolution == 0 else resolution, []).append(place)
    return {sampling: tuple(groups[sampling]) for sampling in sorted(groups)}


_BITS = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def as_bits(values: Tensor) -> Tensor:
    """The same memory as a type of as many bits that torch has all its operations for, fast ones for copies too."""
    kind = _BITS.get(values.dtype)
    return values if kind is None else values.view(kind)


Taps = tuple[Tensor, Tensor, Tensor]


def _taps(
    size: int, sampling: int, out: int, resolution: int, device: torch.device, places: torch.dtype = torch.int64
) -> Taps:
    """`_kept_taps`: a run asks for the same few over and over, and a compiler takes them as given."""
    return _kept_taps(size, sampling, out, resolution, device, places)


def mark_constants() -> None:
    """Have torch.compile take the places of bilinear upsampling as given. Call it before compiling.

    Not done at import: it imports torch's compiler, which takes a second and which a CPU never needs.
    """
    torch.compiler.assume_constant_result(_taps)  # type: ignore[no-untyped-call]


@lru_cache(maxsize=64)
def _kept_taps(size: int, sampling: int, out: int, resolution: int, device: torch.device, places: torch.dtype) -> Taps:
    """Lower and upper source place and the upper one's weight (float32) of each of `out` output centres, on a device.

    Output centre j lies (j + 0.5) * resolution + margin metres into a source of `size` pixels of `sampling` metres, and
    source centre i lies (i + 0.5) * sampling metres into it. Beyond the outermost source centres the edge is repeated.
    """
    with torch.inference_mode(False):  # what is kept must serve callers outside of that mode too
        margin = (size * sampling - out * resolution) / 2
        centres = (torch.arange(out, dtype=torch.float64) + 0.5) * resolution + margin
        place = (centres / sampling - 0.5).clamp(0, size - 1)
        lower = place.floor()
        upper = (lower + 1).clamp(max=size - 1)
        return lower.to(device, places), upper.to(device, places), (place - lower).float().to(device)


def upsample(x: Tensor, sampling: int, shape: tuple[int, int], resolution: int) -> Tensor:
    """Bilinear, half-pixel exact: (B, C, h, w) of `sampling` metres -> (B, C, *shape) of `resolution` metres.

    Both grids share their centre. Gathers and elementwise arithmetic only, so a pixel's bits do not depend on batch,
    threads or TF32, as those of a matrix product would.
    """
    for dim, size in ((-2, shape[0]), (-1, shape[1])):
        lower, upper, weight = _taps(x.shape[dim], sampling, size, resolution, x.device)
        if dim == -2:
            weight = weight[:, None]
        x = torch.lerp(x.index_select(dim, lower), x.index_select(dim, upper), weight)
    return x


class PixelPipeline:
    """Raw travelling pixels of one sensor -> physical units -> z-scores, all on one device in float32.

    Args:
        sensor: bands and radiometry.
        resolution: metres a pixel of the window.
        window: pixels a side, for sensors with no band at `resolution`.
        device: where the arithmetic happens.

    Raises:
        ValueError: a sensor without bands, or one whose deviations are not positive.
    """

    def __init__(self, sensor: SensorLike, resolution: int, window: int, device: torch.device) -> None:
        if not sensor.bands:
            raise ValueError(f"sensor {sensor.name} has no bands: name one at least")
        bad = [band.name for band in sensor.bands if not band.std > 0]
        if bad:
            raise ValueError(f"sensor {sensor.name}: std of {', '.join(bad)} must be positive")
        self.sensor, self.resolution, self.window, self.device = sensor, resolution, window, device
        self.groups = sampling_groups(sensor, resolution)
        order = [place for places in self.groups.values() for place in places]
        self._order = None if order == sorted(order) else torch.tensor(order).argsort().to(device)
        mean = torch.tensor([band.mean for band in sensor.bands], dtype=torch.float32)
        std = torch.tensor([band.std for band in sensor.bands], dtype=torch.float32)
        self._mean, self._std = mean.reshape(-1, 1, 1).to(device), std.reshape(-1, 1, 1).to(device)
        # raw -> z-score in one step for the kernels: scale and shift, multiplied out in float64
        spread = torch.tensor([band.std for band in sensor.bands], dtype=torch.float64)
        centre = torch.tensor([band.mean for band in sensor.bands], dtype=torch.float64)
        self._scale = (sensor.scale * sensor.unit_factor / spread).float()
        self._shift = ((sensor.offset * sensor.unit_factor - centre) / spread).float()

    def physical(self, pixels: Tensor | Mapping[int, Tensor]) -> Tensor:
        """Raw pixels -> (B, C, H, W) float32 in the sensor's physical unit, bands in the sensor's order.

        Args:
            pixels: (B, C, H, W) at the resolution, or {sampling in metres: (B, C_g, H_g, W_g)} with each group's bands
                in the sensor's order; coarser groups lie symmetrically about the window.

        Raises:
            ValueError: other groups or another number of bands than the sensor travels in.
        """
        groups, shape = self.checked(pixels)
        parts = [
            part if sampling == self.resolution else upsample(part, sampling, shape, self.resolution)
            for sampling, part in ((sampling, self._scaled(raw)) for sampling, _, raw in groups)
        ]
        if len(parts) == 1:
            return parts[0]
        joined = torch.cat(parts, dim=1)
        return joined if self._order is None else joined[:, self._order]

    def network_input(self, pixels: Tensor | Mapping[int, Tensor], dtype: torch.dtype, steps: NativeSteps) -> Tensor:
        """Raw pixels on the CPU -> z-scores (B, C, H, W), channels last, in one pass over each sampling group.

        The same as `zscore(physical(pixels))` but for the last bits in float32, before rounding to `dtype`. Pixels of
        a type that the kernels do not know (float64, int64) go that longer way.
        """
        groups, (height, width) = self.checked(pixels)
        if not all(can_place(raw.dtype) for _, _, raw in groups):
            return self.zscore(self.physical(pixels)).to(dtype, memory_format=torch.channels_last)
        out = torch.empty(
            (groups[0][2].shape[0], len(self.sensor.bands), height, width), dtype=dtype,
            memory_format=torch.channels_last,
        )  # fmt: skip
        for sampling, places, raw in groups:
            rows, columns = (
                _taps(raw.shape[2 + axis], sampling, size, self.resolution, raw.device, torch.int32)
                for axis, size in enumerate((height, width))
            )
            at, whole = list(places), as_bits(raw).contiguous().view(raw.dtype)
            steps.place(
                whole, out, torch.tensor(at, dtype=torch.int32), self._scale[at], self._shift[at], rows, columns
            )
        return out

    def checked(
        self, pixels: Tensor | Mapping[int, Tensor]
    ) -> tuple[list[tuple[int, tuple[int, ...], Tensor]], tuple[int, int]]:
        """The groups as (sampling, places of the bands, tensor), finest first, and the window's height and width."""
        if isinstance(pixels, Tensor):
            if pixels.ndim != 4 or pixels.shape[1] != len(self.sensor.bands):
                raise ValueError(
                    f"pixels have shape {tuple(pixels.shape)}: {self.sensor.name} needs "
                    f"(B, {len(self.sensor.bands)}, H, W)"
                )
            every = tuple(range(len(self.sensor.bands)))
            return [(self.resolution, every, pixels)], (pixels.shape[2], pixels.shape[3])
        if set(pixels) != set(self.groups):
            raise ValueError(
                f"pixels come at {sorted(pixels)} m: {self.sensor.name} at {self.resolution} m travels at "
                f"{list(self.groups)} m"
            )
        for sampling, places in self.groups.items():
            if pixels[sampling].ndim != 4 or pixels[sampling].shape[1] != len(places):
                raise ValueError(
                    f"the {sampling} m group has shape {tuple(pixels[sampling].shape)}: need (B, {len(places)}, H, W)"
                )
        if len({raw.shape[0] for raw in pixels.values()}) > 1:
            counts = ", ".join(f"{raw.shape[0]} at {sampling} m" for sampling, raw in pixels.items())
            raise ValueError(f"groups of different batches ({counts}): every group needs the same windows")
        finest = pixels.get(self.resolution)
        shape = (self.window, self.window) if finest is None else (finest.shape[2], finest.shape[3])
        return [(sampling, places, pixels[sampling]) for sampling, places in self.groups.items()], shape

    def _scaled(self, raw: Tensor) -> Tensor:
        raw = raw.to(self.device, non_blocking=True)
        if raw.dtype == torch.uint16:
            raw = as_bits(raw).to(torch.int32).bitwise_and(0xFFFF)
        return raw.to(torch.float32) * self.sensor.scale + self.sensor.offset

    def zscore(self, physical: Tensor) -> Tensor:
        """Physical units (B, C, H, W) -> z-scores."""
        return (physical * self.sensor.unit_factor - self._mean) / self._std

    def from_zscore(self, z: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """z-scores (B, C, H, W) -> physical units; `places` says which of the sensor's bands the channels are."""
        rows = slice(None) if places is None else list(places)
        return (z * self._std[rows] + self._mean[rows]) / self.sensor.unit_factor
