"""Pulls finer latents, step by step, towards an image that averages back to the parent's pixels by the sensor's MTF.

Latents are corrected by what the correction of their pixels does to the encoder's answer, z + E(y') - E(y) with
y = D(z) and y' the nearest image to y that agrees (`model.wald.back_project`): where nothing is to be corrected nothing
changes, whatever encoding what was decoded loses. So it is a projection but for the codec's own curvature, and exact in
pixels only where pixels are written (`eocube.cube.agreeing`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from eocube.run.canvas_codec import CanvasCodec, Run, Values, covered_by
from model.tiled_sampling import Canvas, Tile
from model.wald import back_project

Correct = Callable[[Tensor], Tensor]
"""Raw finer latents over a canvas (1, C, H, W), on the CPU -> what is to be added to them, of the same shape."""


class Agreement:
    """Corrections of finer latents over canvases. Safe to call from several threads at once.

    Args:
        codec: of the parent's product, whose space the finer latents are of.
        scale: fine pixels along a coarse one.
        mtf: of each band at the parent's Nyquist frequency.
    """

    def __init__(self, codec: CanvasCodec, scale: int, mtf: Sequence[float]) -> None:
        self._codec, self._scale, self._mtf = codec, scale, tuple(mtf)

    def over(self, pixels: Values, tiles: Sequence[Tile], shape: tuple[int, int], run: Run) -> Correct:
        """The correction over a canvas.

        Args:
            pixels: the parent's, decoded over the canvas (`CanvasCodec.pixels`).
            tiles: on the canvas, in the parent's cells.
            shape: (h, w) of the canvas, in them; its corner lies on a fine core's.
            run: see `model.tiled_sampling.Canvas`.
        """
        codec, scale = self._codec, self._scale
        coarse = torch.from_numpy(pixels)
        height, width = (n * scale for n in shape)
        windows = [tile for _, tile in codec.windows(covered_by(tiles, shape, scale))]
        inner = [tile.scaled(codec.px) for tile in windows]
        canvas = Canvas(height, width, windows, run=run)

        def correct(raw: Tensor) -> Tensor:
            fine = codec.pixels(lambda i: raw[:, :, *windows[i].box], windows, (height, width), run)
            agreed = back_project(torch.from_numpy(fine), coarse, self._mtf, scale).numpy()
            return canvas.blend(lambda i: codec.encode(agreed[:, *inner[i].box]) - codec.encode(fine[:, *inner[i].box]))

        return correct
