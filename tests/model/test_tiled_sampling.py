"""Tests of sampling through blended tiles: weights, noise by ground, tiled against untiled."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.diffusion import VariancePreserving, sample
from model.tiled_sampling import Canvas, Tile, ground_noise, tiles_over

FIRST = (-1.655419, 1.186352, 0.328490)


def everywhere(row: int, col: int) -> bool:
    return True


def lattice_tiles(top: int, left: int, height: int, width: int, core: int = 12, halo: int = 4) -> list[Tile]:
    return [tile for _, tile in tiles_over(top, left, height, width, core=core, halo=halo, there=everywhere)]


def test_weights_of_all_tiles_add_up_to_one_wherever_a_tile_is_not_cut_by_the_canvas() -> None:
    tiles = lattice_tiles(-12, 24, 48, 36)
    total = torch.zeros(48, 36)
    for tile in tiles:
        total[tile.box] += tile.weight()
    assert len(tiles) == 12
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_a_constant_blends_to_itself_and_what_no_tile_covers_is_zero() -> None:
    tiles = lattice_tiles(0, 0, 24, 12)[:1]
    blended = Canvas(24, 12, tiles).blend(lambda i: torch.full((1, 2, tiles[i].height, tiles[i].width), 3.0))
    assert torch.allclose(blended[:, :, : tiles[0].height], torch.tensor(3.0))
    assert not blended[:, :, tiles[0].height :].any()


def test_tiles_off_the_canvas_are_refused() -> None:
    with pytest.raises(ValueError, match="does not lie on a canvas of 8 x 8"):
        Canvas(8, 8, [Tile(4, 0, 8, 8)])


def test_a_core_has_the_same_tile_on_every_canvas_that_holds_it_whole() -> None:
    one = {core: (tile.top - 30, tile.left + 2, tile.height) for core, tile in tiles_over(
        -30, 2, 80, 80, core=12, halo=4, there=everywhere)}  # fmt: skip
    two = {core: (tile.top - 22, tile.left - 10, tile.height) for core, tile in tiles_over(
        -22, -10, 80, 80, core=12, halo=4, there=everywhere)}  # fmt: skip
    shared = {(0, 2), (1, 3), (2, 2)}
    assert shared <= one.keys() & two.keys()
    assert all(one[core] == two[core] for core in shared)


def test_noise_is_the_grounds_own_whatever_is_asked_for_around_it() -> None:
    large = ground_noise(7, 0, 32632, -50, -31, 100, 90, 3)
    small = ground_noise(7, 0, 32632, -9, 12, 20, 31, 3)
    assert torch.equal(large[:, :, 41:61, 43:74], small)


def test_noise_differs_by_seed_sample_zone_and_block_and_is_standard_normal() -> None:
    base = ground_noise(7, 0, 32632, 0, 0, 96, 96, 8)
    for other in (
        ground_noise(8, 0, 32632, 0, 0, 96, 96, 8), ground_noise(7, 1, 32632, 0, 0, 96, 96, 8),
        ground_noise(7, 0, 32633, 0, 0, 96, 96, 8), ground_noise(7, 0, 32632, 96, 0, 96, 96, 8),
    ):  # fmt: skip
        assert abs(float((base * other).mean())) < 0.02
    assert abs(float(base.mean())) < 0.02
    assert abs(float(base.std()) - 1) < 0.02
    assert float((base[..., :24] * base[..., 24:48]).mean()) == pytest.approx(0, abs=0.03)


def test_noise_is_the_same_in_all_versions() -> None:
    """Bits of Philox, which numpy promises, through Box-Muller: these values must never change."""
    found = ground_noise(3, 1, 32632, -1, 5, 1, 3, 1).flatten().numpy()
    assert np.allclose(found, FIRST, atol=1e-5)


def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A denoiser that sees 3 cells around."""
    kernel = torch.exp(-0.5 * torch.arange(-3, 4.0) ** 2)
    kernel = torch.outer(kernel, kernel)
    smooth = F.conv2d(x, (kernel / kernel.sum())[None, None].repeat(2, 1, 1, 1), padding=3, groups=2)
    return torch.tanh(smooth / (1 + t[:, None, None, None]))


def test_tiled_equals_untiled_away_from_blended_strips() -> None:
    """With one step what a tile sees in its middle is what the whole canvas sees there."""
    noise = ground_noise(0, 0, 1, 0, 0, 48, 48, 2)
    tiles = lattice_tiles(0, 0, 48, 48, core=24, halo=4)
    canvas = Canvas(48, 48, tiles)
    schedule = VariancePreserving()
    whole = sample(net, noise, schedule, steps=1)
    tiled = sample(canvas.denoiser([net] * len(tiles)), noise, schedule, steps=1)
    inner = [slice(4, 20), slice(28, 44)]  # beyond the halo of each of four cores
    for rows in inner:
        for cols in inner:
            assert torch.allclose(tiled[..., rows, cols], whole[..., rows, cols], atol=1e-6)
    many = sample(net, noise, schedule, steps=8, method="dpmpp")
    blended = sample(canvas.denoiser([net] * len(tiles)), noise, schedule, steps=8, method="dpmpp")
    apart = (blended - many).square().mean().sqrt() / many.square().mean().sqrt()
    assert apart < 0.02, "blending at every step keeps tiles of the same noise together"


def test_threads_do_not_change_a_bit() -> None:
    noise = ground_noise(0, 0, 1, 0, 0, 48, 48, 2)
    tiles = lattice_tiles(0, 0, 48, 48, core=12, halo=4)
    found = []
    with ThreadPoolExecutor(4) as pool:
        for run in (map, pool.map):
            canvas = Canvas(48, 48, tiles, run=run)
            found.append(sample(canvas.denoiser([net] * len(tiles)), noise, VariancePreserving(), steps=3))
    assert torch.equal(*found)
