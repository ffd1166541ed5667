"""Gives cubes in xarray their methods: `ds.eocube` for their values, to decode, count and picture them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr

from eocube.cube.labels import clipped, ground_of, labelled, span_of
from eocube.cube.selecting import asked_for, bounds_of, cells_in, pixels_in
from eocube.errors import InputError, StoreError
from eocube.sensors.sensor import Sensor, nearest
from eocube.store.document import CubeInfo, read_info

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from eocube.cube.composite import How
    from eocube.cube.quicklook import Source
    from eocube.cube.sample import What


@xr.register_dataset_accessor("eocube")  # type: ignore[no-untyped-call]
class EocubeAccessor:
    """`ds.eocube`: a latent cube, or any part of one that `isel` or `sel` gives."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    @property
    def info(self) -> CubeInfo:
        """What the store says of itself. StoreError where the dataset is no cube."""
        return read_info(self._ds)

    @property
    def space_id(self) -> str:
        """The id of the latent space: cubes with the same one may be mixed."""
        return self.info.space_id

    @property
    def sensor(self) -> Sensor:
        """The sensor as it was encoded: wavelengths and statistics as the weights know them."""
        return self.info.sensor

    @property
    def bands(self) -> tuple[str, ...]:
        """The names `decode(bands=...)` takes."""
        return self.sensor.band_names

    def values(self) -> xr.DataArray:
        """What the cube holds, lazily, (time, channel, y, x): real values as float32, NaN where no window is ok; codes
        as int32, -1 there.
        """
        info, stored = self.info, self._values()
        storage = info.product.storage
        if storage.as_they_are:
            return stored.astype(storage.unpacked)
        front = ("channel", *(d for d in stored.dims if d != "channel"))
        unpacked: xr.DataArray = xr.apply_ufunc(
            storage.unpack,
            stored.transpose(*front),
            dask="parallelized",
            output_dtypes=[storage.unpacked],
            keep_attrs=True,
        )
        return unpacked.transpose(*stored.dims)

    def latents(self) -> xr.DataArray:
        """Real values as lazy float32, (time, channel, y, x), quantised ones unpacked; NaN where no window is ok.

        InputError for codes, which are no quantities: `values()` gives them.
        """
        product = self.info.product
        if product.summary == "histogram":
            raise InputError(f"{product.array} cubes ({product.kind}) hold codes, no real values: values() gives them")
        return self.values()

    def real_values(self) -> xr.DataArray:
        """`values()` as float32 with NaN where no window is ok, codes too: for pictures."""
        values = self.values()
        return values if values.dtype.kind == "f" else values.where(values >= 0).astype(np.float32)

    def latents_normalised(self) -> xr.DataArray:
        """Real values less each channel's mean, divided by its spread, as the store's own moments give them.

        StoreError where the store has no moments yet.
        """
        moments = self.info.moments
        if moments is None or moments.count == 0:
            raise StoreError("the store has no latent moments yet: they are written when its run ends")
        latents = self.latents()
        mean = xr.DataArray(np.asarray(moments.mean, np.float32), dims="channel")
        std = xr.DataArray(np.maximum(np.asarray(moments.std, np.float32), np.float32(1e-6)), dims="channel")
        return ((latents - mean) / std).transpose(*latents.dims)

    def decode(
        self,
        bands: Sequence[str] | str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        blend: bool = True,
        *,
        bbox: Sequence[float] | None = None,
        crop: bool = True,
        weights: str | None = None,
        mask: bool = True,
        min_valid: int | None = None,
        clip: bool = False,
    ) -> xr.DataArray:
        """Pixels out of latents: a lazy dask array (time, band, y, x), float32, in the sensor's unit and resolution.

        Every core is decoded with a halo of its neighbours' latents around it, mirrored where it has no neighbour, and
        cross-faded with the neighbours' own decodings across the common border. Nothing is decoded twice in one
        `compute`, one chunk is one core, and what is not asked for is not decoded: decode first, select then. A cube
        that is cut before has no latents beyond the cut to decode with, and its outermost pixels suffer.

        NaN where a window is not ok, and where the source lacks the pixel in some band: what the network saw there was
        mirrored filler. A store of an earlier version does not know its source's pixels, only what percent of them each
        latent has (`valid`); of those, latents that are not whole are left out.

        Torch computes on dask's threads, each task on one, so that dask's `num_workers` sets how many cores are busy.
        On a GPU the windows of all threads that wait are one batch (of up to 16, so `num_workers=16` serves it best);
        which batch a window is in, and with it the last bits of half precision, depends on the moment.

        Args:
            bands: band names, in the order wanted; all by default.
            device: torch device; by default a GPU where there is one.
            dtype: arithmetic of the network: "mixed" (default: fp32, but bf16 inside residual blocks where the CPU
                multiplies that in hardware and the weights stand it, see `eocube.products.eo_vae.MIXED_ERROR`; on a
                GPU fp16, and fp32 where that overflows), "fp32" (window by window on a GPU: the same bits every time),
                "fp16", "bf16" or a torch dtype.
            blend: False leaves the seams: each core as its own window decodes it.
            bbox: west, south, east, north in degrees: just the pixels that have ground in it. Latents around it are
                used for decoding, unlike where the cube is cut before.
            crop: False keeps the whole shards that arrays cover; True crops to the cores that were asked for.
            weights: where the weights are now, if not where the store says; they must be the same ones.
            mask: False decodes all of every window that is ok, ground that no source has too.
            min_valid: percent of source pixels, 1 to 100, that a latent must have for any of its pixels to be given. By
                default every pixel with a source is, where the store knows them, and otherwise those of whole latents.
            clip: True keeps reflectance from 0.0001 on, the smallest that Sentinel-2's own files hold, and 8-bit pixels
                within 0 to 255; backscatter stays as it is. Decoding is off by a little, and over water by more than
                the reflectance itself: below 0, a ratio of bands such as NDVI means nothing (40 was seen).

        Raises:
            StoreError: no cube, no weights, or others than the store was encoded with.
            InputError: no such band; latents that are not adjoining ones of the lattice; `min_valid` out of range.
        """
        from eocube.cube.decode import Tiling, decode_array
        from eocube.products.decoder_cache import check, decode_one, spec_of

        info = self.info
        names = self._band_names(bands)
        spec = spec_of(info.product, names, None if device is None else str(device), dtype, weights)
        self._values()
        check(spec)
        if bbox is not None:
            bounds = bounds_of(self._ds, bbox)
            reach = (2 * info.core + info.halo) * info.cell  # what windows around it need, and theirs
            near = self._ds.isel(cells_in(self._ds, bounds, reach))
            how: dict[str, Any] = {"crop": crop, "weights": weights, "mask": mask, "min_valid": min_valid}
            how["clip"] = clip
            return pixels_in(near.eocube.decode(bands, device, dtype, blend, **how), bounds)
        cube = self._cropped(info) if crop else self._ds
        values = cube.eocube.values()
        rows, cols = span_of(cube["y"], info, -1), span_of(cube["x"], info, +1)
        timeless = "time" not in values.dims
        if timeless:
            values = values.expand_dims("time")
        values = values.chunk() if values.chunks is None else values
        tiling = Tiling(rows, cols, info.halo, info.stride, info.halo * info.stride if blend else 0)
        ground = ground_of(cube, min_valid) if mask else None
        data = decode_array(values.data, ground, tiling, partial(decode_one, spec), len(names))
        made = labelled(cube, data[0] if timeless else data, info, names, rows, cols)
        return clipped(made, info.sensor.unit) if clip else made

    def sample(
        self,
        points: Any,
        what: What = "decoded",
        *,
        bands: Sequence[str] | str | None = None,
        radius: float = 0.0,
        crs: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> pd.DataFrame:
        """Values at points through time: a row a point and time, with the state of the window that the point is in.

        Every object is read once a time step, and only windows that hold points are decoded (with their neighbours
        where a point lies near a border). Pixels are those of `decode()`.

        Args:
            points: a file (GeoJSON, CSV, Parquet, Shapefile, GeoPackage), a GeoDataFrame, a table with lon and lat,
                shapely points or an (N, 2) array of lon, lat, in any CRS that it says or `crs` names.
            what: "latents" (the cell that holds the point), "decoded" (the pixel) or "both".
            bands: of decoded pixels; all by default.
            radius: metres; above 0 the mean of the cells and pixels whose centres are that near.
            crs: of points that do not say it.
            device, dtype: of decoding, as in `decode()`.

        Returns:
            Columns: `point` (counted from 0, in their order), `time`, the points' own columns, `lon`, `lat`, `state`,
            `valid`, `cloud` and `shadow` (percent of the latent cell, 255 not known), `pixels` (decoded pixels in the
            mean, with a radius), then values. Values are NaN where `state` is not ok; it is `no_source` where a window
            is ok and the source lacks that pixel, `outside` where the cube has no window.

        Raises:
            InputError: what are no points, no such band, a radius of more than 10,000 pixels.
        """
        from eocube.cube.sample import sample

        how: dict[str, Any] = {"bands": bands, "radius": radius, "crs": crs, "device": device, "dtype": dtype}
        return sample(self._ds, points, what, **how)

    def composite(
        self,
        period: str,
        how: How = "median",
        clear: float | None = 20.0,
        *,
        what: Literal["decoded", "latents"] = "decoded",
        bands: Sequence[str] | str | None = None,
        **decoding: Any,
    ) -> xr.DataArray:
        """One picture a period that has any time step, lazily, (time, band, y, x): `time` is where a period begins.

        Args:
            period: "1MS" (months), "season" (from December on), "1YS", "10D": as pandas names frequencies.
            how: median, mean, min or max of what is there, band by band (of latents: channel by channel, which no
                decoder was made for: composite what is decoded to look at it).
            clear: percent of cloud and shadow that a latent cell may have to count; None takes all. Cells whose cloud
                is not known count as clear.
            what: decoded pixels or latents.
            bands: of decoded pixels; all by default.
            decoding: goes on to `decode()`, such as `bbox`.

        The coordinate `observations` (time, y, x) says how many each pixel is made of; NaN where there are none.

        Raises:
            InputError: no such period, a cube without clouds by cell, or what `decode()` raises.
        """
        from eocube.cube.composite import composite

        return composite(self._ds, period, how, clear, what=what, bands=bands, **decoding)

    def crop(self, bbox: Sequence[float] | None = None) -> xr.Dataset:
        """The cube cut to the ground that was asked for, or to the cells that have ground in a box of degrees.

        For work on latents. Decode before cutting, or by `decode(bbox=...)`: what lies beyond the cut is not there to
        decode with.
        """
        slices = asked_for(self._ds, self.info) if bbox is None else cells_in(self._ds, bounds_of(self._ds, bbox))
        return self._ds.isel({name: cut for name, cut in slices.items() if name in self._ds.dims})

    def to_raster(
        self,
        path: str | Path,
        bands: Sequence[str] | str | None = None,
        time: int | str = 0,
        bbox: Sequence[float] | None = None,
        **how: Any,
    ) -> str:
        """Decode one time step, by its number or date, into a cloud-optimised GeoTIFF; returns its path.

        Band names, units, NaN as nodata and overviews are in it. `how` goes on to `decode()`.
        """
        from eocube.cube.geotiff import write_geotiff
        from eocube.cube.selecting import step_of

        step = step_of(np.atleast_1d(self._ds["time"].values), time)
        one = self._ds.isel(time=[step]) if "time" in self._ds.dims else self._ds.expand_dims("time")
        write_geotiff(one.eocube.decode(bands, bbox=bbox, **how).isel(time=0), str(path))
        return str(path)

    def to_netcdf(
        self,
        path: str | Path,
        what: Literal["decoded", "stored"] = "decoded",
        bands: Sequence[str] | str | None = None,
        bbox: Sequence[float] | None = None,
        **how: Any,
    ) -> str:
        """Decoded pixels, or what is stored, as netCDF: see `eocube.cube.netcdf.write_netcdf`.

        `Dataset.to_netcdf` alone refuses a cube: its `eocube` attribute is an object, which netCDF does not have.
        """
        from eocube.cube.netcdf import write_netcdf

        return write_netcdf(self._ds, path, what, bands, bbox, **how)

    def status(self) -> pd.DataFrame:
        """How many windows ended in which state: a row a time, a column a state, over the dataset's ground."""
        import pandas as pd

        from eocube.store.receipts import STATES

        info = self.info
        if "status" not in self._ds:
            raise StoreError("the dataset has no `status` variable: keep it when selecting variables")
        status = self._ds["status"]
        reach = info.cell * (info.core - 1) / 2
        for axis, windows in (("y", "wy"), ("x", "wx")):
            if axis in self._ds.coords and windows in status.dims:
                edges = np.atleast_1d(self._ds[axis].values)
                inside = (status[windows] >= edges.min() - reach) & (status[windows] <= edges.max() + reach)
                status = status.isel({windows: np.flatnonzero(inside.values)})
        times = np.atleast_1d(self._ds["time"].values) if "time" in self._ds.coords else np.array([0])
        codes = status.values.reshape(len(times), -1)
        counts = [[int((row == value).sum()) for value in range(len(STATES))] for row in codes]
        return pd.DataFrame(counts, index=pd.Index(times, name="time"), columns=pd.Index(STATES, name="state"))

    def quicklook(self, path: str | Path | None = None, time: int = 0, source: Source | None = None) -> str | Figure:
        """Draw source, decoded, error, PCA of the latents and window states: see `eocube.cube.quicklook.quicklook`.

        Returns the path that was written, or the figure when there is none.
        """
        from eocube.cube.quicklook import draw, quicklook

        if path is None:
            return draw(self._ds, source=source, time=time)
        return quicklook(self._ds, path, source=source, time=time)

    def _values(self) -> xr.DataArray:
        product = self.info.product
        name = product.array
        if name not in self._ds:
            raise StoreError(f"the dataset has no `{name}` variable: it is no cube of eocube, or no longer one")
        values = self._ds[name]
        missing = [d for d in ("channel", "y", "x") if d not in values.dims]
        if missing:
            raise InputError(f"{name}s without {', '.join(missing)}: select with slices, which keep dimensions")
        if values.sizes["channel"] != product.channels:
            raise InputError(f"{values.sizes['channel']} {name} channels: decoding needs all {product.channels}")
        return values.transpose(*(d for d in ("time", "channel", "y", "x") if d in values.dims))

    def _band_names(self, bands: Sequence[str] | str | None) -> tuple[str, ...]:
        known = self.bands
        names = known if bands is None else (bands,) if isinstance(bands, str) else tuple(map(str, bands))
        if not names:
            raise InputError(f"no bands named: the cube has {', '.join(known)}")
        for name in names:
            if name not in known:
                raise InputError(f"the cube has no band {name!r}: {nearest(name, known)}")
        return names

    def _cropped(self, info: CubeInfo) -> xr.Dataset:
        """The dataset within the cores that were asked for; as it is when the store does not say which."""
        if info.extent is None or info.origin is None or 0 in (self._ds.sizes["x"], self._ds.sizes["y"]):
            return self._ds
        left, top = info.origin
        row0, col0, row1, col1 = info.extent
        x, y = self._ds["x"].values, self._ds["y"].values
        cropped = self._ds.isel(
            y=(y < top - row0 * info.cell) & (y > top - row1 * info.cell),
            x=(x > left + col0 * info.cell) & (x < left + col1 * info.cell),
        )
        if 0 in (cropped.sizes["x"], cropped.sizes["y"]):
            raise InputError("the selection lies outside of what the cube was asked for: crop=False decodes it anyway")
        return cropped
