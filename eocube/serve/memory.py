"""Bounds what the server holds, whatever is asked of it: as a formula."""

from __future__ import annotations

import math

from eocube.serve.cube import TILE, ServedCube
from eocube.serve.tiles import COARSE

DRAWING = 4
"""Tiles and points that are worked on at once."""
BASE = 600_000_000
"""Python, torch and GDAL with a decoder of the shipped weights, and a sample of each cube: 0.45 to 0.55 GB measured."""
ACTIVATIONS = 12
"""Feature maps of a window in float32 that a decoder holds at once, of as many channels as its finest level has."""
FINEST_CHANNELS = 32
"""Of the shipped weights."""


def windows_of_a_tile(cube: ServedCube) -> int:
    """Windows of the largest ground that a tile decodes; of larger ground it shows a preview of each cell."""
    frame = cube.frame
    along = TILE * COARSE * frame.cell / frame.pixel  # pixels of the cube
    reach = 2 * cube.info.halo * frame.stride
    return (math.ceil((along + reach) / (frame.core * frame.stride)) + 1) ** 2


def tile_bytes(cube: ServedCube) -> int:
    """Bytes that drawing one tile takes at most.

        windows x window_px^2 x (2 x bands + 4 x 3) + pixels x 3 layers x 4 bytes x 3 copies

    Windows as they are kept, in case that they no longer are; of three bands in float32; the picture of the ground
    before it is blended, after, and as GDAL takes it.
    """
    frame, info = cube.frame, cube.info
    window = info.product.window_px**2
    bands = len(info.sensor.band_names)
    along = TILE * COARSE * frame.cell / frame.pixel + 4 * frame.stride
    return int(windows_of_a_tile(cube) * window * (2 * bands + 12) + along**2 * 36)


def most_bytes(cubes: tuple[ServedCube, ...], memory: int, threads: int) -> int:
    """Upper bound of the server's memory: `BASE + memory + DRAWING x tile + threads x decoding`.

    `memory` is what is kept (`--memory`): decoded windows, shards as they are stored, sources' windows, pictures.
    """
    tile = max(tile_bytes(cube) for cube in cubes)
    decoding = max(cube.info.product.window_px**2 for cube in cubes) * 4 * FINEST_CHANNELS * ACTIVATIONS
    return BASE + memory + DRAWING * tile + threads * decoding
