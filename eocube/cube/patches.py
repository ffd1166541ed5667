"""Cuts patches of source pixels for training, from a search or by a cube's plan: read as the encoder's are.

A patch is a window of the lattice without halo, read by `WindowReader`, so that offsets, mosaics, resampling and nodata
are those of an encoding. Nothing here knows of training: the patches are arrays on known ground.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from pydantic import BeforeValidator
from shapely import STRtree
from shapely.geometry import box

from eocube.cube.window_index import Ground
from eocube.errors import InputError
from eocube.ground.boxes import Interval, parse_bbox, parse_interval
from eocube.ground.grid import BBox, CubeGrid, Lattice, Window
from eocube.ground.zones import to_lonlat, zones_of
from eocube.net.storage_options import scoped
from eocube.plan.plan import Plan, footprint, group_times
from eocube.read.reader import UNKNOWN, WindowReader
from eocube.scenes.scene import Scene
from eocube.scenes.scene_ids import distinct
from eocube.scenes.search import drop_cloudy, search
from eocube.scenes.stac import PRESETS
from eocube.sensors import get_sensor
from eocube.sensors.sensor import Sensor
from eocube.store.store import CubeStore
from model.forms import Form, Items, Number, Text
from model.pixels import PixelPipeline

# A core is a multiple of three latents, where the 60 m bands align; at 8 pixels a latent, patches go by this many.
STRIDE, STEP = 8, 24
# Squares of ground that one region may have: what is listed, time by time, must fit into memory.
MOST_WINDOWS = 250_000
_DEGREE = 111_195.0


@dataclass(frozen=True, slots=True)
class ScenePatch:
    """`data` (C, size, size) float32 in the unit of the weights' statistics, NaN where no pixel is valid."""

    name: str
    bands: tuple[str, ...]
    data: NDArray[np.float32]
    place: Ground


@dataclass(frozen=True, slots=True)
class _Entry:
    lattice: int
    time: str
    scenes: tuple[Scene, ...]
    window: Window


class ScenePatches:
    """Squares of `size` pixels of every time step of some scenes, side by side on the zones' lattices.

    `read` may be called from many threads. Pickles without its open files, so that one search serves many workers.

    Args:
        sensor: what to read.
        grids: the ground, one grid a zone; their lattices have no halo and a core of the patch's size.
        scenes: those of each grid.
        max_cloud: patches cloudier than this, in percent by the scenes' own masks, count as without data.
        storage_options: fsspec options of the sources.
    """

    def __init__(
        self,
        sensor: Sensor,
        grids: Sequence[CubeGrid],
        scenes: Sequence[Sequence[Scene]],
        *,
        max_cloud: float | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._sensor, self._max_cloud, self._options = sensor, max_cloud, storage_options
        self._lattices = tuple(grid.lattice for grid in grids)
        self._entries: list[_Entry] = [
            entry
            for number, (grid, found) in enumerate(zip(grids, scenes, strict=True))
            for entry in _entries(number, grid, found)
        ]
        self.places: tuple[Ground, ...] = tuple(_ground(self._lattices[e.lattice], e.window) for e in self._entries)
        self._open_files()

    @property
    def sensor(self) -> str:
        """Name of the sensor."""
        return self._sensor.name

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in the sensor's order."""
        return self._sensor.band_names

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> ScenePatch | None:
        """One patch; None where no pixel is valid or it is too cloudy. SourceError, with item and asset, otherwise."""
        entry = self._entries[index]
        lattice, (reader, pipeline) = self._lattices[entry.lattice], self._readers[entry.lattice]
        if self._max_cloud is not None:
            valid, cloud, _ = reader.mask(entry.scenes, entry.window)
            if valid == 0 or (cloud != UNKNOWN and cloud > self._max_cloud):
                return None
        pixels = reader.read(entry.scenes, entry.window)
        if not pixels.valid.any():
            return None
        groups = {s: torch.from_numpy(np.ascontiguousarray(a))[None] for s, a in pixels.groups.items()}
        physical = pipeline.physical(groups)[0].numpy() * np.float32(self._sensor.unit_factor)
        # latent pixels that are not whole hold mirrored filler
        whole = np.repeat(np.repeat(pixels.valid == 100, lattice.stride, 0), lattice.stride, 1)
        if not whole.any():
            return None
        data = np.where(whole, physical, np.float32(np.nan)).astype(np.float32)
        name = f"{'+'.join(s.id for s in entry.scenes)} {lattice.name} {entry.window.row} {entry.window.col}"
        return ScenePatch(name, self.bands, data, self.places[index])

    def close(self) -> None:
        """Close all sources. No thread may be reading."""
        for reader, _ in self._readers:
            reader.close()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_readers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open_files()

    def _open_files(self) -> None:
        self._readers = tuple(
            (
                WindowReader(self._sensor, lattice, storage_options=self._options),
                PixelPipeline(self._sensor, lattice.metres, lattice.window_px, torch.device("cpu")),
            )
            for lattice in self._lattices
        )

    @classmethod
    def from_search(
        cls,
        catalog: str,
        sensor: Sensor,
        boxes: Sequence[BBox],
        interval: Interval,
        *,
        size: int,
        resolution: int = 10,
        max_cloud: float | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> ScenePatches:
        """The patches of all scenes that a catalogue has for a region.

        Args:
            catalog: as `eocube.scenes.search.search` takes it.
            sensor: what to read.
            boxes: (west, south, east, north) in degrees.
            interval: first and last moment.
            size: pixels a side, a multiple of 24 (where 10, 20 and 60 m pixels align).
            resolution: ground sampling in metres.
            max_cloud: see the class; scenes without a mask are judged by their cloud cover as a whole.
            storage_options: fsspec options of catalogue and sources.

        Raises:
            InputError: a size that does not fit, no ground, a catalogue that cannot serve, or no scenes.
        """
        grids, scenes, searched = [], [], ""
        for grid in _grids(boxes, resolution, size):
            found = search(
                catalog, sensor, grid.search_boxes(), interval, storage_options=storage_options, check_pixels=True
            )
            searched = found.searched
            usable, _ = drop_cloudy(found.scenes, max_cloud)
            if usable:
                grids.append(grid)
                scenes.append(usable)
        if not grids:
            raise InputError(f"no scenes found: {searched}")
        sources = scoped(storage_options, PRESETS.get(catalog, catalog))
        return cls(sensor, grids, scenes, max_cloud=max_cloud, storage_options=sources)

    @classmethod
    def from_plans(
        cls,
        plans: Sequence[Plan],
        *,
        size: int | None = None,
        max_cloud: float | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> ScenePatches:
        """The source pixels of cubes, by the plans they were made by: same scenes, sensor, radiometry and ground.

        `size` None takes the cube's own cores, so that a patch is what one window's latents stand for.

        Raises:
            InputError: no plan, plans of several sensors, or a size that does not fit.
        """
        if not plans:
            raise InputError("no plan: give the URL of a cube that eocube made")
        sensors = {plan.sensor.name: plan.sensor for plan in plans}
        if len(sensors) > 1:
            raise InputError(f"the plans are of several sensors, {', '.join(sensors)}: take one at a time")
        grids = []
        for plan in plans:
            old = plan.grid.lattice
            side = old.core_px if size is None else size
            lattice = _lattice(old.epsg, old.metres, side)
            grids.append(CubeGrid.over(lattice, plan.grid.parts, region=plan.grid.region))
        return cls(
            plans[0].sensor,
            grids,
            [distinct(plan.scenes) for plan in plans],
            max_cloud=max_cloud,
            storage_options=storage_options,
        )


def _boxes(given: Any) -> Any:
    """One box as a list of boxes."""
    if not isinstance(given, (list, tuple)) or (given and isinstance(given[0], (list, tuple))):
        return given
    return [given]


class _Search(Form):
    refusal = InputError

    catalog: Text
    sensor: Text
    bbox: Annotated[Items[Items[Number]], BeforeValidator(_boxes)]
    datetime: Text
    bands: Items[str] | None = None
    offset: Number | None = None
    size: int = 264
    resolution: int = 10
    max_cloud: Number | None = None
    storage_options: dict[str, Any] | None = None


class _CubeSources(Form):
    refusal = InputError

    url: Text
    size: int | None = None
    max_cloud: Number | None = None
    storage_options: dict[str, Any] | None = None


def open_search(options: Mapping[str, Any]) -> ScenePatches:
    """`ScenePatches.from_search` from plain values, as a file names them.

    Keys: catalog, sensor (a name or a YAML file), bbox (W S E N, or a list of such), datetime; bands, offset (of items
    that leave it open), size (264), resolution (10), max_cloud, storage_options. InputError names a key that is
    missing, unknown or wrong.
    """
    given = _Search.read(options, "patches")
    sensor = get_sensor(given.sensor)
    if given.offset is not None:
        sensor = sensor.with_offset(given.offset)
    if given.bands:
        sensor = sensor.subset(given.bands)
    boxes: list[BBox] = []
    for corners in given.bbox:
        if len(corners) != 4:
            raise InputError(f"bbox takes four numbers, west south east north; {len(corners)} given")
        boxes += parse_bbox(*corners)
    return ScenePatches.from_search(
        given.catalog,
        sensor,
        boxes,
        parse_interval(given.datetime),
        size=given.size,
        resolution=given.resolution,
        max_cloud=given.max_cloud,
        storage_options=given.storage_options,
    )


def open_cube_sources(options: Mapping[str, Any]) -> ScenePatches:
    """`ScenePatches.from_plans` of a stored cube, all its zones, from plain values.

    Keys: url; size (default: the cube's own cores), max_cloud, storage_options. InputError as `open_search`.
    """
    given = _CubeSources.read(options, "patches")
    texts = CubeStore.stored_plans(given.url, storage_options=given.storage_options)
    if not texts:
        raise InputError(f"{given.url}: no eocube cube is there")
    return ScenePatches.from_plans(
        [Plan.from_json(text) for text in texts],
        size=given.size,
        max_cloud=given.max_cloud,
        storage_options=scoped(given.storage_options, given.url),
    )


KINDS: Mapping[str, Callable[[Mapping[str, Any]], ScenePatches]] = {
    "stac": open_search,
    "cube-sources": open_cube_sources,
}
"""What a training data file calls them, and how they are opened."""


def _lattice(epsg: int, resolution: int, size: int) -> Lattice:
    if size < STEP or size % STEP:
        near = max(STEP, round(size / STEP) * STEP)
        raise InputError(f"patches of {size} px: take a multiple of {STEP}, such as {near}")
    return Lattice(epsg, resolution, STRIDE, core_px=size, halo_px=0, shard_px=size)


def _grids(boxes: Sequence[BBox], resolution: int, size: int) -> list[CubeGrid]:
    parts: dict[int, list[BBox]] = {}
    side = size * resolution
    squares = sum((east - west) * (north - south) * (_DEGREE / side) ** 2 for west, south, east, north in boxes)
    if squares > MOST_WINDOWS:
        raise InputError(
            f"the region has about {squares:.0f} squares of {side} m, more than {MOST_WINDOWS}: "
            "give several smaller boxes"
        )
    for one in boxes:
        for epsg, part in zones_of(one):
            parts.setdefault(epsg, []).append(part)
    if not parts:
        raise InputError(f"bbox {list(boxes)} covers no ground; give it some width and height")
    return [CubeGrid.over(_lattice(epsg, resolution, size), parts[epsg]) for epsg in sorted(parts)]


def _entries(number: int, grid: CubeGrid, scenes: Sequence[Scene]) -> Iterator[_Entry]:
    """Every (time step, window) that a scene touches, by time, then row, then column."""
    windows = list(grid.requested_windows())
    tree = STRtree([box(*grid.lattice.window_bounds(w)) for w in windows])
    by_id = {scene.id: scene for scene in scenes}
    outlines = {scene.id: footprint(scene, grid.lattice.epsg) for scene in scenes}
    for step in group_times(scenes):
        touched: dict[int, list[Scene]] = {}
        for name in step.scene_ids:
            shapely.prepare(outlines[name])
            for k in tree.query(outlines[name], predicate="intersects"):
                touched.setdefault(int(k), []).append(by_id[name])
        for k in sorted(touched):
            yield _Entry(number, step.time, tuple(touched[k]), windows[k])


def _ground(lattice: Lattice, window: Window) -> Ground:
    left, bottom, right, top = lattice.window_bounds(window)
    lon, lat = to_lonlat(lattice.epsg, np.array([(left + right) / 2]), np.array([(bottom + top) / 2]))
    return Ground(float(lon[0]), float(lat[0]), (right - left) / 2)
