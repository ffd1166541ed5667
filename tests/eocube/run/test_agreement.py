"""Finer latents are pulled to what averages back to the parent's pixels: exactly where a codec is linear."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eocube.run.agreement import Agreement
from eocube.run.canvas_codec import CanvasCodec, Values, covered_by
from model.tiled_sampling import Tile, tiles_over
from model.wald import degrade

MTF, SCALE, PX, BANDS = (0.25, 0.3), 4, 2, 2


class Unfolding(CanvasCodec):
    """Latents are the pixels of a cell, 2 x 2 of two bands: nothing is lost on the way there and back."""

    def __init__(self) -> None:
        self.px, self.core, self.halo = PX, 6, 2
        self.encoded = 0

    def decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(latents.float(), PX)

    def encode(self, pixels: Values) -> Tensor:
        self.encoded += 1
        return F.pixel_unshuffle(torch.from_numpy(np.ascontiguousarray(pixels))[None], PX)


def backwards(call: object, numbers: Iterable[int]) -> list[Tensor]:
    """Calls in another order than the results': what comes out must not depend on it."""
    assert callable(call)
    asked = list(numbers)
    made = {k: call(k) for k in reversed(asked)}
    return [made[k] for k in asked]


def given_on(shape: tuple[int, int], missing: tuple[int, int] | None = None) -> tuple[list[Tile], list[Tensor]]:
    """Tiles over a canvas of cells, but over one core, and a parent's latents under each."""
    generator = torch.Generator().manual_seed(3)
    whole = torch.rand(1, BANDS * PX**2, *shape, generator=generator)
    tiles = [
        tile
        for _, tile in tiles_over(0, 0, *shape, core=6, halo=2, there=lambda row, col: (row, col) != missing)
    ]  # fmt: skip
    return tiles, [whole[:, :, *tile.box] for tile in tiles]


def test_what_is_corrected_averages_back_to_the_parent_and_nothing_is_done_twice() -> None:
    shape = 12, 18
    tiles, given = given_on(shape)
    codec = Unfolding()
    pixels = codec.pixels(lambda i: given[i], tiles, shape, map)
    correct = Agreement(codec, SCALE, MTF).over(pixels, tiles, shape, backwards)
    raw = torch.rand(1, BANDS * PX**2, shape[0] * SCALE, shape[1] * SCALE)
    change = correct(raw)
    assert change.shape == raw.shape and float(change.abs().max()) > 0.01
    coarse = torch.from_numpy(pixels)
    apart = degrade(codec.decode(raw + change)[0], MTF, SCALE) - coarse
    assert float(apart.abs().max()) < 1e-4
    assert float(correct(raw + change).abs().max()) < 1e-4
    torch.testing.assert_close(Agreement(codec, SCALE, MTF).over(pixels, tiles, shape, map)(raw), change)


def test_ground_without_a_parent_stays_and_does_not_count() -> None:
    shape = 12, 18
    tiles, given = given_on(shape, missing=(1, 2))
    codec = Unfolding()
    pixels = codec.pixels(lambda i: given[i], tiles, shape, map)
    correct = Agreement(codec, SCALE, MTF).over(pixels, tiles, shape, map)
    raw = torch.rand(1, BANDS * PX**2, shape[0] * SCALE, shape[1] * SCALE)
    change = correct(raw)
    bare = ~torch.from_numpy(covered_by(tiles, shape, SCALE))
    # Windows reach beyond covered ground by their halo, and no further.
    assert bare.any() and float(change[:, :, -8:, -8:].abs().max()) == 0
    coarse = torch.from_numpy(pixels)
    apart = degrade(codec.decode(raw + change)[0], MTF, SCALE) - coarse
    assert float(apart[:, :8, :20].abs().max()) < 1e-4


@pytest.mark.parametrize("sides", [(6, 6), (12, 6)])
def test_windows_are_the_products_own(sides: tuple[int, int]) -> None:
    codec = Unfolding()
    windows = codec.windows(np.ones((sides[0] * SCALE, sides[1] * SCALE), np.bool_))
    assert len(windows) == (sides[0] * SCALE // 6) * (sides[1] * SCALE // 6)
    inner = [tile for place, tile in windows if place == (1, 1)]
    assert inner == [Tile(4, 4, 10, 10, (4, 4, 4, 4))]
