"""Rasters over one window of a lattice, for tests of what is read of them and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.warp import transform_bounds

from eocube.ground.grid import Lattice, Window
from eocube.read.reader import WindowPixels, WindowReader
from eocube.read.shard import Asked
from eocube.scenes.scene import BandSource, Scene
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from eocube.sensors.sensor import Sensor

T = TypeVar("T")
LATTICE = Lattice(32633, 10)
WINDOW = Window(-2760, 209)
LEFT, BOTTOM, RIGHT, TOP = LATTICE.window_bounds(WINDOW)
DN = Radiometry(1e-4, -0.1, 0.0, "dn", "test")
SIDE = 320
"""Pixels a side of a raster that covers the window with 32 to spare on each side."""
TRANSFORM = Affine(10, 0, LEFT - 320, 0, -10, TOP + 320)
BBOX = transform_bounds(32633, 4326, LEFT - 320, BOTTOM - 320, RIGHT + 320, TOP + 320)


def tif(path: Path, values: NDArray[Any], **profile: Any) -> Path:
    """Write (H, W) or (C, H, W) as a tiled GeoTIFF."""
    values = values if values.ndim == 3 else values[None]
    given = {
        "driver": "GTiff", "width": values.shape[2], "height": values.shape[1], "count": len(values),
        "dtype": values.dtype, "crs": "EPSG:32633", "transform": TRANSFORM, "tiled": True, "blockxsize": 128,
        "blockysize": 128, **profile,
    }  # fmt: skip
    with rasterio.open(path, "w", **given) as target:
        target.write(values)
    return path


def ground(seed: int = 0, low: float = 0.02, high: float = 0.4) -> NDArray[np.float64]:
    """Reflectance (SIDE, SIDE)."""
    return np.random.default_rng(seed).uniform(low, high, (SIDE, SIDE))


def digital(reflectance: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Digital numbers of the rule `DN`."""
    return np.rint(reflectance * 1e4 + 1000).astype(np.uint16)


def over(
    href: Path | str, rule: Radiometry = DN, *, band: str = "B02", mask: Path | None = None, **changes: Any
) -> Scene:
    """A scene of one band."""
    cover = None if mask is None else BandSource("SCL", "scl", str(mask), 1, Radiometry(1, 0, 0, "dn", "classes"))
    given: dict[str, Any] = {
        "id": "item-1", "collection": "c", "datetime": "2023-08-15T09:57:57Z", "platform": "S2A", "group": "g",
        "time": "2023-08-15T09:57:57Z", "epsg": 32633, "bbox": BBOX, "footprint": None, "cloud_cover": None,
        "baseline": None, "sources": (BandSource(band, band.lower(), str(href), 1, rule),), "mask": cover, **changes,
    }  # fmt: skip
    return Scene(**given)


def s2(*bands: str) -> Sensor:
    """Sentinel-2 with these bands."""
    return get_sensor("S2L2A").subset(bands or ("B02",))


def read(scenes: Scene | Sequence[Scene], sensor: Sensor | None = None, window: Window = WINDOW) -> WindowPixels:
    """One window."""
    with WindowReader(sensor or s2(), LATTICE) as reader:
        return reader.read([scenes] if isinstance(scenes, Scene) else scenes, window)


def now(href: str, work: Callable[[], T]) -> Future[T]:
    """Reads a file as soon as it is asked to: for `WindowReader.read_shard`."""
    future: Future[T] = Future()
    future.set_result(work())
    return future


def together(scene: Scene, windows: Sequence[Window] = (WINDOW,)) -> dict[Window, Asked]:
    """Windows read as one; those that are left out are not in it."""
    with WindowReader(s2(), LATTICE) as reader:
        return reader.read_shard({window: [scene] for window in windows}, None, now)


def cut(values: NDArray[Any]) -> NDArray[Any]:
    """The window's part of what covers `SIDE` pixels."""
    return values[..., 32:288, 32:288]
