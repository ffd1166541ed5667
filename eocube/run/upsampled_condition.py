"""Makes the condition of weights that read upsampled pixels, from latents: decoded, brought up, encoded.

So such weights were trained, but on the pixels themselves; a cube gives what its codec has kept of them.
"""

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
from model.wald import SHARPENED_MARGIN, bicubic, sharpened

Values = NDArray[np.float32]
Run = Callable[[Callable[[int], Tensor], Iterable[int]], Iterable[Tensor]]
MARGIN = 4
"""Coarse pixels beyond a window that bicubic looks at, and some."""


class UpsampledCondition:
    """Encodes upsampled pixels window by window, as a cube of that resolution would be. Safe to call from threads.

    Args:
        product: the parent's.
        scale: fine pixels along a coarse one.
        device: torch device of encoder and decoder.
        mtf: of each band at the parent's Nyquist, for weights whose condition was put right by it (`sharpened`); None
            brings pixels up by bicubic alone.
    """

    def __init__(
        self, product: Product, scale: int, device: str = "cpu", *, mtf: Sequence[float] | None = None
    ) -> None:
        codec = registry.open(product, device)
        self._product, self._scale, self._device = product, scale, device
        self._mtf = mtf
        self._decoder = codec.decoder(device)
        self._encoder: Encoder = codec.encoder(device, "fp32", {})
        (self._sampling,) = product.sensor.groups(int(product.meaning["resolution"]))

    def __call__(self, given: Sequence[Tensor], tiles: Sequence[Tile], shape: tuple[int, int], run: Run) -> Values:
        """(C, scale * h, scale * w): latents of the upsampled pixels over a canvas, 0 where no tile lies.

        Args:
            given: the parent's latents of each tile, (1, C, h, w), mirrored where there are none.
            tiles: on the canvas, in the parent's cells.
            shape: (h, w) of the canvas, in them; its corner lies on a fine core's.
            run: see `model.tiled_sampling.Canvas`.
        """
        px, scale = self._product.cell_px, self._scale
        core, halo = self._product.core_px // px, self._product.halo_px
        pixels = self._pixels(given, tiles, shape, run)
        height, width = (n * scale for n in shape)
        covered = np.zeros((height, width), np.bool_)
        for tile in tiles:
            covered[tile.scaled(scale).box] = True
        cells = halo // px
        fine_tiles = tiles_over(
            0, 0, height, width, core=core, halo=cells,
            there=lambda row, col: bool(
                covered[row * core : (row + 1) * core, col * core : (col + 1) * core].any()
            ),
        )  # fmt: skip
        reach = halo // scale + (MARGIN if self._mtf is None else SHARPENED_MARGIN)
        side = self._product.core_px // scale + 2 * reach
        padded = np.pad(pixels, ((0, 0), (reach, reach + side), (reach, reach + side)), mode="edge")

        def encoded(i: int) -> Tensor:
            (row, col), tile = fine_tiles[i]
            top, left = (at * core * px // scale for at in (row, col))
            part = torch.from_numpy(padded[:, top : top + side, left : left + side].copy())
            fine = (bicubic(part, scale) if self._mtf is None else sharpened(part, self._mtf, scale)).numpy()
            cut = reach * scale - halo
            window = fine[:, cut : fine.shape[1] - cut, cut : fine.shape[2] - cut]
            batch = torch.from_numpy(travelling(window, self._product.sensor))[None]
            with torch.inference_mode():
                made = self._encoder({self._sampling: batch}).float().cpu()
            y, x = tile.top - (row * core - cells), tile.left - (col * core - cells)
            return made[:, :, y : y + tile.height, x : x + tile.width]

        # Neighbours are cross-faded over their halos: the network was trained on windows without a seam inside.
        found: Values = Canvas(height, width, [tile for _, tile in fine_tiles], run=run).blend(encoded)[0].numpy()
        return found

    def _pixels(self, given: Sequence[Tensor], tiles: Sequence[Tile], shape: tuple[int, int], run: Run) -> Values:
        """(bands, h * cell_px, w * cell_px) decoded, cross-faded as a reader has it, mirrored where no tile lies."""
        px = self._product.cell_px

        def decoded(i: int) -> Tensor:
            with torch.inference_mode():
                assert self._decoder is not None
                return self._decoder(given[i].to(self._device)).float().cpu()

        canvas = Canvas(shape[0] * px, shape[1] * px, [tile.scaled(px) for tile in tiles], run=run)
        pixels = canvas.blend(decoded)[0].numpy()
        covered = np.zeros(pixels.shape[1:], np.bool_)
        for tile in tiles:
            covered[tile.scaled(px).box] = True
        return mirror_fill(pixels, covered)
