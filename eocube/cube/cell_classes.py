"""Classifies cells by their decoded pixels' NDVI, and hands stored values with their classes to a training loop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from eocube.cube.opening import open as open_cube
from eocube.cube.stored_values import Values
from eocube.cube.window_stream import WindowBatches, WindowStream
from eocube.cube.windows import CubeWindows
from eocube.errors import InputError

B = TypeVar("B")
Classes = NDArray[np.int64]
NONE = -1
"""The class of a cell without decoded pixels."""
RED, NEAR_INFRARED = "B04", "B08"


class NdviClasses:
    """Classes of the cells of patches: how many of `thresholds` the mean NDVI of a cell's decoded pixels reaches.

    A time of a cube is decoded whole when its first patch asks for it; two bytes a cell are kept of each. Thread-safe.

    Args:
        windows: whose patches are asked for.
        thresholds: rising NDVI; one more class than there are of them.
        storage_options: fsspec options of the cubes.
        device: of the decoder.

    Raises:
        InputError: thresholds that do not rise, or cubes of a sensor without red or near infrared.
    """

    def __init__(
        self,
        windows: CubeWindows,
        thresholds: Sequence[float] = (0.2, 0.5),
        *,
        storage_options: Mapping[str, Any] | None = None,
        device: str | None = None,
    ) -> None:
        if not thresholds or any(b <= a for a, b in pairwise(thresholds)):
            raise InputError(f"NDVI thresholds {list(thresholds)}: one or more, rising")
        self._windows, self._thresholds, self._device = windows, tuple(thresholds), device
        self._cubes = [
            open_cube(cube.url, None if storage_options is None else dict(storage_options))
            for cube in windows.index.cubes
        ]
        for cube in self._cubes:
            lacking = [band for band in (RED, NEAR_INFRARED) if band not in cube.eocube.bands]
            if lacking:
                raise InputError(
                    f"NDVI needs {RED} and {NEAR_INFRARED}: the cubes' sensor has no {' and '.join(lacking)}"
                )
        self._held: dict[tuple[int, int], NDArray[np.int16]] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self._thresholds) + 1

    def of(self, patch: int) -> Classes:
        """(side, side) class of each cell of a patch, by its index; `NONE` where nothing is decoded."""
        index = self._windows.index
        unit = index.units[int(index.unit_of(np.array([patch]))[0])]
        with self._lock:
            if (unit.cube, unit.time) not in self._held:
                self._held[unit.cube, unit.time] = self._classes(unit.cube, unit.time)
            held = self._held[unit.cube, unit.time]
        row, col, side = int(index.rows[patch]), int(index.cols[patch]), index.side
        return held[row : row + side, col : col + side].astype(np.int64)

    def _classes(self, cube: int, time: int) -> NDArray[np.int16]:
        ds = self._cubes[cube].isel(time=[time])
        decoded = ds.eocube.decode(bands=[RED, NEAR_INFRARED], device=self._device, crop=False)
        red, infrared = decoded.values[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            ndvi = (infrared - red) / (infrared + red)
        ny, nx = ds.sizes["y"], ds.sizes["x"]
        cells = ndvi.reshape(ny, len(ndvi) // ny, nx, ndvi.shape[1] // nx)
        mean = cells.mean(axis=(1, 3))  # NaN where a pixel is: a cell is whole or has no class
        found: NDArray[np.int16] = np.digitize(mean, self._thresholds).astype(np.int16)
        found[~np.isfinite(mean)] = NONE
        return found


class ClassifiedBatches(Generic[B]):
    """A training loop's source of stored values with the classes of their cells.

    Args:
        stream: the patches; it goes on for ever.
        classes: of its patches' cells.
        make: the loop's batch out of values (B, C, side, side) float32 and classes (B, side, side) int64, `NONE` where
            there is none.
    """

    def __init__(self, stream: WindowStream, classes: NdviClasses, make: Callable[[Values, Classes], B]) -> None:
        self._stream, self.classes, self._make = stream, classes, make
        self._batches: WindowBatches | None = None
        self._state = stream.state_dict()

    @property
    def windows(self) -> CubeWindows:
        """Whose patches these are."""
        return self._stream.windows

    def draw(self, batch_size: int, patch: int) -> B:
        """The next `batch_size` patches, of the side that they were opened with whatever `patch` says."""
        if self._batches is None or self._batches.size != batch_size:
            self.close()
            self._stream.load_state_dict(self._state)
            self._batches = WindowBatches(self._stream, batch_size)
        batch = next(self._batches)
        self._state = self._batches.state_dict()
        return self._make(batch.values, np.stack([self.classes.of(int(index)) for index in batch.indices]))

    def epoch(self, batch_size: int) -> list[B]:
        """All of an epoch that is left: what is held out, for instance. The last batch may be smaller."""
        left = self._stream.patches_per_epoch - int(self._state["position"])
        whole, rest = divmod(left, batch_size)
        return [self.draw(size, 0) for size in (*[batch_size] * whole, *[rest] * (rest > 0))]

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches of this worker's share, at least one."""
        return max(1, self._stream.patches_per_epoch // batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The stream's after the last batch drawn."""
        return dict(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the next batch. InputError (a ValueError) where the state is of other patches."""
        self.close()
        self._stream.load_state_dict(state)
        self._state = dict(state)

    def close(self) -> None:
        """Stop reading ahead."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None
