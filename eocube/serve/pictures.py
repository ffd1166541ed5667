"""Colours layers and writes them as PNG: a stretch for pictures, a map of colours for values, one colour a class."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from rio_tiler.colormap import cmap
from rio_tiler.utils import render

from eocube.serve.layers import Legend
from eocube.serve.sampling import Stretch

Floats = npt.NDArray[np.float32]
Colours = npt.NDArray[np.uint8]
"""(4, H, W): red, green, blue, and 0 where nothing is."""

FAST = 1
"""Of PNG's nine levels: fast rather than small, since pictures travel within one machine."""


def shaded(layers: Floats, stretch: Stretch) -> Colours:
    """(3, H, W) layers as red, green and blue; nothing where one of them is not."""
    there = np.asarray(np.isfinite(layers).all(axis=0))
    scaled = stretch(np.where(there, layers, 0.0).astype(np.float32))
    return _with_alpha((scaled * 255 + 0.5).astype(np.uint8), there)


def coloured(value: Floats, legend: Legend, stretch: Stretch) -> Colours:
    """(1, H, W) values by a map of colours."""
    there = np.asarray(np.isfinite(value[0]))
    scaled = stretch(np.where(there, value, 0.0).astype(np.float32))
    return _with_alpha(_table(legend.colormap)[:, (scaled[0] * 255 + 0.5).astype(np.uint8)], there)


def classified(value: Floats, legend: Legend) -> Colours:
    """(1, H, W) classes by their colours."""
    there = np.asarray(np.isfinite(value[0]))
    table = np.zeros((3, 256), np.uint8)
    for number, _, colour in legend.classes:
        table[:, number] = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    return _with_alpha(table[:, np.where(there, value[0], 0).astype(np.uint8)], there)


def plain(there: npt.NDArray[np.bool_], grey: int) -> Colours:
    """(H, W) where something is, in one grey."""
    return _with_alpha(np.full((3, *there.shape), grey, np.uint8), there)


def png(colours: Colours) -> bytes:
    """Colours as a PNG."""
    made: bytes = render(colours[:3], colours[3], img_format="PNG", ZLEVEL=FAST)
    return made


def colormap(name: str, steps: int = 32) -> list[str]:
    """A map of colours in so many steps, "#rrggbb", for a legend."""
    table = _table(name)
    return ["#{:02x}{:02x}{:02x}".format(*table[:, k]) for k in np.linspace(0, 255, steps).round().astype(int)]


@lru_cache(8)
def empty(size: int) -> bytes:
    """A PNG of nothing."""
    return png(np.zeros((4, size, size), np.uint8))


def _with_alpha(colours: Colours, there: npt.NDArray[np.bool_]) -> Colours:
    return np.concatenate([np.where(there, colours, 0), there[None].astype(np.uint8) * 255]).astype(np.uint8)


@lru_cache(32)
def _table(name: str) -> Colours:
    """(3, 256) colours of a map by name."""
    table: Any = cmap.get(name)
    return np.array([table[k][:3] for k in range(256)], np.uint8).T
