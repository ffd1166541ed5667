"""Samples a canvas of any size through overlapping tiles, blended at every step, from noise that belongs to the ground.

A diffusion model sees a tile at a time. Tiles that are sampled on their own invent different things where they meet;
here all tiles share one canvas of noisy latents, and at every step their estimates of the clean latents are averaged
with smooth weights before the sampler goes on (MultiDiffusion: Bar-Tal, Yariv, Lipman, Dekel 2023, eq. 5, with weights;
of the estimate in the place of the noise prediction, which is the same for a sampler that is linear in both).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, H, W), t (B,)) -> estimate of the clean x, as `model.diffusion` has it."""
NOISE_BLOCK = 24
"""Cells a side of a block of noise that is drawn as one."""
Run = Callable[[Callable[[int], Tensor], Iterable[int]], Iterable[Tensor]]
"""Calls a function for each of several numbers, and gives the results in their order."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a canvas that the network sees at once: first row and column, and its size, in cells of the canvas.

    `rise` is how many cells of each side (top, left, bottom, right) are shared with whatever tile lies there, over
    which its weight rises from nearly nothing to one.
    """

    top: int
    left: int
    height: int
    width: int
    rise: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def box(self) -> tuple[slice, slice]:
        """Its rows and columns within the canvas."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def scaled(self, by: int) -> Tile:
        """The same tile on a canvas with `by` times as many cells a side."""
        top, left, bottom, right = (side * by for side in self.rise)
        return Tile(self.top * by, self.left * by, self.height * by, self.width * by, (top, left, bottom, right))

    def weight(self) -> Tensor:
        """(height, width) float32 above 0: raised cosines, those of two neighbours adding up to 1 where they meet."""
        top, left, bottom, right = self.rise
        rows, cols = _fade(self.height, top, bottom), _fade(self.width, left, right)
        return rows[:, None] * cols[None, :]


def _fade(size: int, first: int, last: int) -> Tensor:
    at = torch.arange(size, dtype=torch.float64) + 0.5
    up = (at / first).clamp(max=1.0) if first else torch.ones_like(at)
    down = ((size - at) / last).clamp(max=1.0) if last else torch.ones_like(at)
    return ((0.5 - 0.5 * torch.cos(torch.pi * up)) * (0.5 - 0.5 * torch.cos(torch.pi * down))).float()


class Canvas:
    """Tiles on one canvas, and how what is said of each becomes one: a weighted mean, cell by cell.

    Args:
        height, width: cells of the canvas.
        tiles: what lies on it. Cells that no tile covers come out as 0.
        run: calls a function for each of several arguments and gives the results in their order: `map`, or that of a
            pool of threads. Results are added up in the tiles' order, so that threads do not change a bit.
        device: where the canvas is.
    """

    def __init__(
        self, height: int, width: int, tiles: Sequence[Tile], *, run: Run = map,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        for tile in tiles:
            if tile.top < 0 or tile.left < 0 or tile.top + tile.height > height or tile.left + tile.width > width:
                raise ValueError(f"{tile} does not lie on a canvas of {height} x {width} cells")
        self.shape, self.tiles, self._run, self._device = (height, width), tuple(tiles), run, device
        self._weights = [tile.weight().to(device) for tile in self.tiles]
        total = torch.zeros(height, width, device=device)
        for tile, weight in zip(self.tiles, self._weights, strict=True):
            total[tile.box] += weight
        self._total = torch.where(total > 0, total, 1.0)

    def blend(self, say: Callable[[int], Tensor]) -> Tensor:
        """(1, C, height, width) float32: the weighted mean of `say(i)`, (1, C, h, w) for the tile of that number."""
        out: Tensor | None = None
        for i, said in enumerate(self._run(say, range(len(self.tiles)))):
            if out is None:
                out = torch.zeros(1, said.shape[1], *self.shape, device=self._device)
            out[:, :, *self.tiles[i].box] += self._weights[i] * said.float()
        if out is None:
            raise ValueError("a canvas without tiles has nothing to blend")
        return out / self._total

    def denoiser(self, denoisers: Sequence[Denoiser]) -> Denoiser:
        """One denoiser of the whole canvas out of one for each tile: what `model.diffusion.sample` takes."""

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            return self.blend(lambda i: denoisers[i](x[:, :, *self.tiles[i].box], t))

        return denoise


def tiles_over(
    top: int, left: int, height: int, width: int, *, core: int, halo: int, there: Callable[[int, int], bool]
) -> list[tuple[tuple[int, int], Tile]]:
    """Tiles of a lattice whose cores, with a halo on each side, lie over a canvas: ((core row, core column), tile).

    Args:
        top, left: the canvas's first row and column on the lattice, in cells.
        height, width: its size.
        core: cells along a core; cores begin at multiples of it.
        halo: cells that a tile reaches beyond its core, where the canvas does.
        there: whether a core, by row and column, is to have a tile.

    A tile is always the same for the same core, but where the canvas's edge cuts it.
    """
    found = []
    for row in range(-(-(top - halo) // core) - 1, (top + height + halo) // core + 1):
        for col in range(-(-(left - halo) // core) - 1, (left + width + halo) // core + 1):
            y0, y1 = max(row * core - halo, top), min((row + 1) * core + halo, top + height)
            x0, x1 = max(col * core - halo, left), min((col + 1) * core + halo, left + width)
            inside = row * core < top + height and (row + 1) * core > top
            inside &= col * core < left + width and (col + 1) * core > left
            if not inside or y1 <= y0 or x1 <= x0 or not there(row, col):
                continue
            # Where the canvas cuts a halo no neighbour shares it.
            rise = tuple(
                2 * halo if whole else 0
                for whole in (
                    y0 == row * core - halo, x0 == col * core - halo, y1 == (row + 1) * core + halo,
                    x1 == (col + 1) * core + halo,
                )
            )  # fmt: skip
            found.append(
                ((row, col), Tile(y0 - top, x0 - left, y1 - y0, x1 - x0, (rise[0], rise[1], rise[2], rise[3])))
            )
    return found


def ground_noise(
    seed: int, sample: int, zone: int, top: int, left: int, height: int, width: int, channels: int
) -> Tensor:
    """(1, channels, height, width) standard normal float32 that depends on nothing but its arguments and the ground.

    The same cell of a zone has the same noise whatever is asked for around it, so that neighbouring canvases sample
    alike where they overlap. Philox 4x64-10 (Salmon et al. 2011), counted by block of `NOISE_BLOCK` cells, and the
    Box-Muller transform of its bits: numpy promises the bits for all times, not its own normal numbers.

    Args:
        seed, sample: 0 or more.
        zone: what sets this lattice's noise apart from others', such as its EPSG code.
        top, left: first row and column on the lattice, in cells; may be below 0.
    """
    side = NOISE_BLOCK
    rows, cols = range(top // side, -(-(top + height) // side)), range(left // side, -(-(left + width) // side))
    noise = np.empty((channels, len(rows) * side, len(cols) * side), np.float32)
    for i, row in enumerate(rows):
        for j, col in enumerate(cols):
            noise[:, i * side : (i + 1) * side, j * side : (j + 1) * side] = _block(
                seed, sample, zone, row, col, channels
            )
    y, x = top - rows[0] * side, left - cols[0] * side
    return torch.from_numpy(np.ascontiguousarray(noise[None, :, y : y + height, x : x + width]))


def _block(
    seed: int, sample: int, zone: int, row: int, col: int, channels: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """One block's noise (channels, side, side)."""
    count = channels * NOISE_BLOCK**2
    bits = np.random.Philox(
        key=np.array([seed, (zone << 32) + sample], np.uint64),
        counter=np.array([0, 0, row % 2**64, col % 2**64], np.uint64),
    ).random_raw(2 * -(-count // 2))  # fmt: skip
    # 53 bits each, in (0, 1): a half is added so that the logarithm is finite.
    first, second = ((half >> np.uint64(11)).astype(np.float64) + 0.5 for half in np.split(bits, 2))
    radius, angle = np.sqrt(-2.0 * np.log(first * 2.0**-53)), 2.0 * np.pi * second * 2.0**-53
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return normal.astype(np.float32).reshape(channels, NOISE_BLOCK, NOISE_BLOCK)
