"""Makes the condition of weights that read upsampled pixels, from latents: decoded, brought up, encoded.

So such weights were trained, but on the pixels themselves; a cube gives what its codec has kept of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from eocube.run.canvas_codec import CanvasCodec, Run, Values, covered_by
from model.tiled_sampling import Canvas, Tile
from model.wald import SHARPENED_MARGIN, bicubic, sharpened

MARGIN = 4
"""Coarse pixels beyond a window that bicubic looks at, and some."""


class UpsampledCondition:
    """Encodes upsampled pixels window by window, as a cube of that resolution would be. Safe to call from threads.

    Args:
        codec: of the parent's product.
        scale: fine pixels along a coarse one.
        mtf: of each band at the parent's Nyquist, for weights whose condition was put right by it (`sharpened`); None
            brings pixels up by bicubic alone.
    """

    def __init__(self, codec: CanvasCodec, scale: int, *, mtf: Sequence[float] | None = None) -> None:
        self._codec, self._scale, self._mtf = codec, scale, mtf

    def __call__(self, pixels: Values, tiles: Sequence[Tile], shape: tuple[int, int], run: Run) -> Values:
        """(C, scale * h, scale * w): latents of the upsampled pixels over a canvas, 0 where no tile lies.

        Args:
            pixels: the parent's, decoded over the canvas (`CanvasCodec.pixels`).
            tiles: on the canvas, in the parent's cells.
            shape: (h, w) of the canvas, in them; its corner lies on a fine core's.
            run: see `model.tiled_sampling.Canvas`.
        """
        codec, scale = self._codec, self._scale
        px, core, cells = codec.px, codec.core, codec.halo
        height, width = (n * scale for n in shape)
        fine_tiles = codec.windows(covered_by(tiles, shape, scale))
        halo = cells * px
        reach = halo // scale + (MARGIN if self._mtf is None else SHARPENED_MARGIN)
        side = core * px // scale + 2 * reach
        padded = np.pad(pixels, ((0, 0), (reach, reach + side), (reach, reach + side)), mode="edge")

        def encoded(i: int) -> Tensor:
            (row, col), tile = fine_tiles[i]
            top, left = (at * core * px // scale for at in (row, col))
            part = torch.from_numpy(padded[:, top : top + side, left : left + side].copy())
            fine = (bicubic(part, scale) if self._mtf is None else sharpened(part, self._mtf, scale)).numpy()
            cut = reach * scale - halo
            made = codec.encode(fine[:, cut : fine.shape[1] - cut, cut : fine.shape[2] - cut])
            y, x = tile.top - (row * core - cells), tile.left - (col * core - cells)
            return made[:, :, y : y + tile.height, x : x + tile.width]

        # Neighbours are cross-faded over their halos: the network was trained on windows without a seam inside.
        found: Values = Canvas(height, width, [tile for _, tile in fine_tiles], run=run).blend(encoded)[0].numpy()
        return found
