"""Decodes and encodes canvases of latents window by window, as a cube's reader and its encoder have them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from eocube.cube.decode import mirror_fill
from eocube.pairs.encoding import travelling
from eocube.products import registry
from eocube.products.base import Encoder
from eocube.products.spec import Product
from model.tiled_sampling import Canvas, Tile, tiles_over

Values = NDArray[np.float32]
Run = Callable[[Callable[[int], Tensor], Iterable[int]], Iterable[Tensor]]
"""Calls a function for each of several numbers, and gives the results in their order."""
Numbered = tuple[tuple[int, int], Tile]
"""Row and column of a core, and the tile over it."""


class CanvasCodec:
    """Encoder and decoder of a product for what has no windows of a cube yet. Safe to call from several threads.

    Args:
        product: whose codec it is.
        device: torch device of encoder and decoder.
    """

    def __init__(self, product: Product, device: str = "cpu") -> None:
        codec = registry.open(product, device)
        self.product, self._device = product, device
        self._decoder = codec.decoder(device)
        self._encoder: Encoder = codec.encoder(device, "fp32", {})
        (self._sampling,) = product.sensor.groups(int(product.meaning["resolution"]))
        self.px = product.cell_px
        """Pixels along a cell."""
        self.core, self.halo = product.core_px // self.px, product.halo_px // self.px
        """Of the product's windows, in cells."""

    def decode(self, latents: Tensor) -> Tensor:
        """(1, C, h, w) raw latents -> (1, bands, h * px, w * px) in the sensor's unit, on the CPU."""
        with torch.inference_mode():
            assert self._decoder is not None
            return self._decoder(latents.to(self._device)).float().cpu()

    def encode(self, pixels: Values) -> Tensor:
        """(bands, H, W) in the sensor's unit -> (1, C, H / px, W / px) raw latents, on the CPU."""
        batch = torch.from_numpy(travelling(pixels, self.product.sensor))[None]
        with torch.inference_mode():
            return self._encoder({self._sampling: batch}).float().cpu()

    def windows(self, covered: NDArray[np.bool_]) -> list[Numbered]:
        """The product's windows over a canvas of cells (h, w) wherever something of their core is covered."""
        core = self.core
        return tiles_over(
            0, 0, *covered.shape, core=core, halo=self.halo,
            there=lambda row, col: bool(
                covered[row * core : (row + 1) * core, col * core : (col + 1) * core].any()
            ),
        )  # fmt: skip

    def pixels(self, given: Callable[[int], Tensor], tiles: Sequence[Tile], shape: tuple[int, int], run: Run) -> Values:
        """(bands, h * px, w * px) decoded, cross-faded as a reader has it, mirrored where no tile lies.

        Args:
            given: raw latents of the tile of a number, (1, C, h, w).
            tiles: on the canvas, in cells.
            shape: (h, w) of the canvas, in cells.
            run: see `model.tiled_sampling.Canvas`.
        """
        px = self.px
        canvas = Canvas(shape[0] * px, shape[1] * px, [tile.scaled(px) for tile in tiles], run=run)
        pixels = canvas.blend(lambda i: self.decode(given(i)))[0].numpy()
        return mirror_fill(pixels, covered_by(tiles, shape, px))


def covered_by(tiles: Sequence[Tile], shape: tuple[int, int], by: int) -> NDArray[np.bool_]:
    """Which of a canvas's cells lie under a tile, with `by` cells for each of the tiles' own: (by * h, by * w)."""
    covered = np.zeros((shape[0] * by, shape[1] * by), np.bool_)
    for tile in tiles:
        covered[tile.scaled(by).box] = True
    return covered
