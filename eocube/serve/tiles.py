"""Draws tiles: what a layer needs at a place and a scale, gathered, computed, put under the tile, coloured, kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from eocube.errors import InputError
from eocube.serve.cube import TILE, Bounds, ServedCube
from eocube.serve.decoding import Decoding, Stored
from eocube.serve.far import FarView
from eocube.serve.keeping import Kept
from eocube.serve.layers import Layer, Legend
from eocube.serve.pictures import Colours, classified, coloured, empty, plain, png, shaded
from eocube.serve.pool import LatestFirst, Leave
from eocube.serve.raster import Raster, TilePlace, drawn
from eocube.serve.sampling import Sample, Stretch, fixed, real
from eocube.serve.sources import Sources
from eocube.store.receipts import State

Floats = npt.NDArray[np.float32]

COARSE = 0.5
"""Of a cell's side: a tile of 256 pixels that are that large on the ground is drawn from a linear preview of each cell,
a number a band, rather than decoded: a tile there has 30 windows and more."""
MOST_SHARDS = 16
"""Shards that a tile reads values of at most; further out the ground is shown as a plain colour."""
PLAIN = 128
"""Grey of ground that is there and too far out to be read."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a tile shows. `vmin` and `vmax` overrule the stretch where they are given, one or one a layer."""

    layer: str
    time: int
    bands: tuple[str, ...] = ()
    stretch: Literal["percentile", "fixed"] = "percentile"
    vmin: tuple[float, ...] = ()
    vmax: tuple[float, ...] = ()
    other: int | None = None
    of: str = ""
    """The layer of which a difference is."""
    source: bool = False


class Shown:
    """One cube and all that is made of it."""

    def __init__(self, cube: ServedCube, kept: Kept, pool: LatestFirst, sources: Sources | None = None) -> None:
        self.cube, self.sources, self._kept = cube, sources, kept
        self.stored = Stored(cube, kept)
        self.decoding = Decoding(self.stored, kept, pool) if cube.info.product.decodes else None
        self.sample = Sample(self.cube, self.decoding)
        self.far = FarView(self.stored, kept)

    # -- what is drawn

    def checked(self, ask: Ask) -> tuple[Layer, tuple[str, ...]]:
        """The layer and its bands. InputError where the cube has no such layer, bands or time steps."""
        layer = self.cube.layers[ask.layer]
        self.cube.step(ask.time)
        if ask.source and self.sources is None:
            raise InputError("the sources are not served: eocube serve --source lets them be")
        if ask.source and layer.origin != "decoded":
            raise InputError(f"layer {layer.id} is not of pixels: the sources have none of it")
        if layer.id == "difference":
            if ask.other is None:
                raise InputError("a difference takes other=TIME, the time step that is subtracted")
            self.cube.step(ask.other)
            of = self._of(ask)
            return of, of.chosen(ask.bands, self.cube.info.sensor)
        return layer, layer.chosen(ask.bands, self.cube.info.sensor)

    def tile(self, ask: Ask, place: TilePlace, leave: Leave | None = None) -> bytes:
        """A tile as PNG; LeftError where the client left before it was made."""
        layer, bands = self.checked(ask)
        if self._too_far(layer, bands, place, ask):
            return self._footprint(ask.time, place)
        values = self._under(ask, layer, bands, place, leave)
        if values is None or not np.isfinite(values).any():
            return empty(place.size)
        return png(self.colours(ask, values))

    def colours(self, ask: Ask, values: Floats) -> Colours:
        """What is drawn of (layers, H, W) values of a layer."""
        layer, _ = self.checked(ask)
        if layer.kind == "classes":
            assert layer.legend is not None
            return classified(values, layer.legend)
        stretch = self.stretch(ask)
        if ask.layer == "difference":
            return coloured(values, DIFFERENCE, stretch)
        return shaded(values, stretch) if layer.legend is None else coloured(values, layer.legend, stretch)

    def ground(self, ask: Ask, bounds: Bounds, leave: Leave | None = None) -> Raster | None:
        """A layer around bounds in metres of the zone, at its own sampling; None where the cube has no ground there."""
        layer, bands = self.checked(ask)
        found = self._fine(layer, ask, ask.time, bands, bounds, leave)
        if found is None or ask.layer != "difference":
            return found
        assert ask.other is not None
        return _changed(layer, found, self._fine(layer, ask, ask.other, bands, bounds, leave))

    def stretch(self, ask: Ask) -> Stretch:
        """The stretch of a layer's tiles, the same for every tile and date."""
        layer, bands = self.checked(ask)
        if ask.layer == "difference":
            found = self._spread_of_difference(layer, bands)
        elif layer.id == "pca":
            found = Stretch(self.sample.basis.low, self.sample.basis.high)
        elif layer.origin == "decoded" and (layer.legend is None or layer.free):
            count = 3 if layer.kind == "rgb" else 1
            if ask.stretch == "percentile" or layer.formula == "radar":
                found = self._percentiles(layer, bands)
            else:
                found = fixed(self.cube.info.sensor.unit, count)
        else:
            assert layer.legend is not None
            found = Stretch((layer.legend.vmin,), (layer.legend.vmax,))
        return _overruled(found, ask.vmin, ask.vmax)

    def _percentiles(self, layer: Layer, bands: tuple[str, ...]) -> Stretch:
        """The stretch by percentile, found once for each layer and choice of bands."""
        key = ("stretch", self.cube.key, layer.id, bands)
        return self._kept.once(key, lambda: (self.sample.stretch(layer, bands), 0))

    def _spread_of_difference(self, layer: Layer, bands: tuple[str, ...]) -> Stretch:
        """As wide to both sides as the layer's own range is from its middle."""
        if layer.legend is not None and not layer.free:
            half = (layer.legend.vmax - layer.legend.vmin) / 2
        else:
            own = self._percentiles(layer, bands)
            half = max(high - low for low, high in zip(own.vmin, own.vmax, strict=True)) / 2
        return Stretch((-half,), (half,))

    def _of(self, ask: Ask) -> Layer:
        """The layer of which a difference is: the one named, else the first index, else the first picture."""
        if ask.of:
            layer = self.cube.layers[ask.of]
            if layer.origin != "decoded" or layer.id == "difference":
                raise InputError(f"of={ask.of}: a difference is of a picture or an index")
            return layer
        known = [layer for layer in self.cube.layers.known.values() if layer.origin == "decoded" and not layer.free]
        return next((layer for layer in known if layer.group == "index" and layer.id != "difference"), known[0])

    # -- from ground to tile

    def _under(
        self, ask: Ask, layer: Layer, bands: tuple[str, ...], place: TilePlace, leave: Leave | None
    ) -> Floats | None:
        """(layers, size, size) under a tile."""
        bounds = place.bounds_in(self.cube.frame.epsg)
        if layer.origin == "windows" or ask.source or not self._is_coarse(place):
            found = self.ground(ask, bounds, leave)
        else:
            found = self._seen_from_afar(layer, ask.time, bands, place)
            if found is not None and ask.layer == "difference":
                assert ask.other is not None
                found = _changed(layer, found, self._seen_from_afar(layer, ask.other, bands, place))
        return None if found is None else drawn(found, place, squares=layer.origin == "windows")

    def _fine(
        self, layer: Layer, ask: Ask, time: int, bands: tuple[str, ...], bounds: Bounds, leave: Leave | None
    ) -> Raster | None:
        if layer.origin == "windows":
            return self._windows(layer, time)
        if layer.origin == "values":
            return self._coarse(layer, time, bands, bounds)
        if ask.source:
            assert self.sources is not None
            found = self.sources.raster(time, bounds, bands, leave)
        else:
            assert self.decoding is not None
            found = self.decoding.raster(time, bounds, bands, leave)
        return None if found is None else replace(found, data=layer.picture(found.data))

    def _windows(self, layer: Layer, time: int) -> Raster:
        frame, status = self.cube.frame, self.cube.status[time]
        if layer.id == "status":
            data = np.where(status == State.OUTSIDE, np.nan, status.astype(np.float32))
        else:
            data = self.cube.windows(layer.variable, time)
        return Raster(data[None].astype(np.float32), frame.left, frame.top, frame.core_m, frame.epsg)

    def _is_coarse(self, place: TilePlace) -> bool:
        return place.ground_pixel * place.size / TILE >= COARSE * self.cube.frame.cell

    def _too_far(self, layer: Layer, bands: tuple[str, ...], place: TilePlace, ask: Ask) -> bool:
        """Whether too many shards lie under a tile to be read for it, and no overview is there for it."""
        if layer.origin == "windows" or not (layer.origin == "values" or self._is_coarse(place)):
            return False
        if ask.source:
            return True
        times = {ask.time, ask.time if ask.other is None else ask.other}
        if layer.origin == "decoded" and all(self.far.serves(t, bands, place.ground_pixel) for t in times):
            return False
        frame = self.cube.frame
        rows, cols = frame.blocks_in(place.bounds_in(frame.epsg), frame.shard)
        return len(rows) * len(cols) > MOST_SHARDS

    def _footprint(self, time: int, place: TilePlace) -> bytes:
        """Where windows are ok, by one colour."""
        frame = self.cube.frame
        ok = np.where(self.cube.status[time] == State.OK, np.float32(1), np.float32(np.nan))
        under = drawn(Raster(ok[None], frame.left, frame.top, frame.core_m, frame.epsg), place, squares=True)
        return png(plain(np.asarray(np.isfinite(under[0])), PLAIN))

    def _seen_from_afar(self, layer: Layer, time: int, bands: tuple[str, ...], place: TilePlace) -> Raster | None:
        bounds = place.bounds_in(self.cube.frame.epsg)
        if self.far.serves(time, bands, place.ground_pixel) and layer.origin == "decoded":
            found = self.far.raster(time, bands, bounds, place.ground_pixel)
            return None if found is None else replace(found, data=layer.picture(found.data))
        return self._coarse(layer, time, bands, bounds)

    def _coarse(self, layer: Layer, time: int, bands: tuple[str, ...], bounds: Bounds) -> Raster | None:
        """A number a cell and band: of values their components, of pixels their preview."""
        frame = self.cube.frame
        rows, cols = frame.blocks_in(bounds, frame.shard)
        if not rows or not cols:
            return None
        names = self.cube.info.sensor.band_names
        chosen = [names.index(band) for band in bands]
        count = 3 if layer.origin == "values" else len(chosen)
        side = frame.shard
        out = np.full((count, len(rows) * side, len(cols) * side), np.nan, np.float32)
        for i in rows:
            for j in cols:
                cells = self._seen(layer.origin == "values", time, i, j)
                part = cells if layer.origin == "values" else cells[chosen]
                top, left = (i - rows.start) * side, (j - cols.start) * side
                out[:, top : top + part.shape[1], left : left + part.shape[2]] = part
        data = out if layer.origin == "values" else layer.picture(out)
        left_m, top_m = frame.left + cols.start * side * frame.cell, frame.top - rows.start * side * frame.cell
        return Raster(data, left_m, top_m, frame.cell, frame.epsg)

    def _seen(self, components: bool, time: int, row: int, col: int) -> npt.NDArray[np.half]:
        """A shard's components or preview, kept as float16, NaN where a cell has no source."""
        find = self.sample.basis.components if components else self.sample.preview

        def make() -> tuple[npt.NDArray[np.half], int]:
            side, (height, width) = self.cube.frame.shard, self.cube.frame.shape
            box = (row * side, col * side, min((row + 1) * side, height), min((col + 1) * side, width))
            values, valid, _ = self.stored.cut(time, box)
            seen = find(real(values))
            if valid is not None:
                seen[:, valid == 0] = np.nan
            made = seen.astype(np.half)
            return made, made.nbytes

        return self._kept.once(("seen", self.cube.key, components, time, row, col), make)


DIFFERENCE = Legend("", -1, 1, "rdbu")
"""Blue where it grew, red where it shrank."""


def _changed(layer: Layer, first: Raster, second: Raster | None) -> Raster | None:
    """What is more in the first of two rasters of a place; of a picture the mean over its bands, of radar its first."""
    if second is None:
        return None
    change = first.data - second.data
    return replace(first, data=change[:1] if layer.formula == "radar" else change.mean(axis=0, keepdims=True))


def _overruled(found: Stretch, vmin: Sequence[float], vmax: Sequence[float]) -> Stretch:
    """A stretch with the ends that a request gives."""
    count = len(found.vmin)
    for name, given in (("vmin", vmin), ("vmax", vmax)):
        if len(given) not in (0, 1, count):
            raise InputError(f"{name}: one number, or {count}; {len(given)} given")
    low = tuple(vmin) * (count if len(vmin) == 1 else 1) or found.vmin
    high = tuple(vmax) * (count if len(vmax) == 1 else 1) or found.vmax
    return replace(found, vmin=low, vmax=high)
