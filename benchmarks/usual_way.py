"""Encodes a region as people do today: odc-stac and dask, the published network in eager mode, `to_zarr`.

Run as a process of its own by `benchmarks.race`, with JSON that says what. It is the script that somebody writes
who knows these libraries and this network: windows with a halo on the same lattice, each date read while the one before
is encoded, offsets by the items' own metadata, pixels as integers until a window is encoded. Nothing of `eocube` is
imported, whose accessor and decoders it does not need, but the weights' reader.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
import odc.stac
import pystac
import torch
import xarray as xr
from odc.geo.geobox import GeoBox

from benchmarks.subjects import sentinel2
from model.weights import load_weights

KEYS = ("coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "swir16",
        "swir22")  # fmt: skip
"""Assets of Earth Search's items, in the order of Sentinel-2's bands."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is encoded: cores of `core` pixels from the north-western corner on, each seen with `halo` more around."""

    catalog: str
    collection: str
    interval: tuple[str, str]
    """First and last moment, ISO 8601."""
    weights: str
    out: str
    epsg: int
    left: float
    top: float
    rows: int
    columns: int
    core: int = 192
    halo: int = 32
    resolution: int = 10
    batch: int = 4
    """Windows a call of the network."""
    threads: int = 2

    @property
    def geobox(self) -> GeoBox:
        """The pixels, halo included."""
        shape = (self.rows * self.core + 2 * self.halo, self.columns * self.core + 2 * self.halo)
        margin = self.halo * self.resolution
        box = (self.left - margin, self.top + margin - shape[0] * self.resolution,
               self.left - margin + shape[1] * self.resolution, self.top + margin)  # fmt: skip
        return GeoBox.from_bbox(box, f"EPSG:{self.epsg}", shape=shape)


def items_of(work: Work) -> list[pystac.Item]:
    """The items of the interval that a static catalogue leads to."""
    first, last = work.interval
    collection = pystac.Catalog.from_file(work.catalog).get_child(work.collection)
    assert collection is not None
    return [item for item in collection.get_items() if item.datetime and first <= item.datetime.isoformat() <= last]


def offset_of(item: pystac.Item) -> float:
    """What is added to DN * 1e-4: Earth Search says where it is no longer in the pixels."""
    if item.properties.get("earthsearch:boa_offset_applied"):
        return 0.0
    return float(item.assets["red"].extra_fields["raster:bands"][0]["offset"])


def encoder_of(work: Work) -> Any:
    """(12, H, W) integers with their offset -> (32, h, w) latents of the cores."""
    vae = load_weights(work.weights).eval()
    assert vae.meta is not None
    bands = sentinel2(vae.meta).bands
    mean, std = (torch.tensor([getattr(b, name) for b in bands])[:, None, None] for name in ("mean", "std"))
    wavelengths = torch.tensor([b.wavelength for b in bands])
    side, inner = work.core + 2 * work.halo, slice(work.halo // 8, (work.halo + work.core) // 8)

    def encode(pixels: npt.NDArray[Any], offset: float) -> npt.NDArray[np.float16]:
        places = [(r, c) for r in range(work.rows) for c in range(work.columns)]
        core = work.core // 8
        out = np.empty((vae.config.z_channels, work.rows * core, work.columns * core), dtype=np.float16)
        with torch.inference_mode():
            for first in range(0, len(places), work.batch):
                some = places[first : first + work.batch]
                cut = [pixels[:, r * work.core : r * work.core + side, c * work.core : c * work.core + side]
                       for r, c in some]  # fmt: skip
                seen = torch.from_numpy(np.stack(cut).astype(np.float32))
                scores = ((seen * 1e-4 + offset) * 1e4 - mean) / std  # as published: reflectance times 10,000
                latents = vae.encode(scores, wavelengths).mode()[..., inner, inner].numpy()
                for (r, c), z in zip(some, latents, strict=True):
                    out[:, r * core : (r + 1) * core, c * core : (c + 1) * core] = z
        return out

    return encode


def encode_region(work: Work) -> None:
    """The whole job, by dask's threads."""
    odc.stac.configure_rio(cloud_defaults=True)
    items = items_of(work)
    geobox = work.geobox
    ds = odc.stac.load(
        items, bands=list(KEYS), geobox=geobox, groupby="solar_day", resampling="bilinear", dtype="uint16", nodata=0,
        chunks={"x": geobox.shape[1], "y": geobox.shape[0]},
    )  # fmt: skip
    offsets = {str(item.datetime.date()): offset_of(item) for item in items if item.datetime}
    encode = encoder_of(work)
    layers: Any = da.stack([ds[key].data for key in KEYS], axis=1)  # type: ignore[no-untyped-call]
    pixels = layers.rechunk((1, len(KEYS), -1, -1))
    shape = (work.rows * work.core // 8, work.columns * work.core // 8)

    def date(block: npt.NDArray[Any], block_info: Any = None) -> npt.NDArray[np.float16]:
        torch.set_num_threads(1)  # of this thread: dask's share the cores, a date each
        step = block_info[0]["chunk-location"][0]
        latents: npt.NDArray[np.float16] = encode(block[0], offsets[str(ds.time.values[step])[:10]])
        return latents[None]

    latents = da.map_blocks(  # type: ignore[no-untyped-call]
        date, pixels, dtype=np.float16, chunks=((1,) * len(ds.time), (32,), (shape[0],), (shape[1],)),
        meta=np.empty((0, 0, 0, 0), np.float16),
    )  # fmt: skip
    cell = 8 * work.resolution
    coords = {
        "time": ds.time.values, "y": work.top - cell * (np.arange(shape[0]) + 0.5),
        "x": work.left + cell * (np.arange(shape[1]) + 0.5),
    }  # fmt: skip
    cube = xr.Dataset({"latent": (("time", "channel", "y", "x"), latents)}, coords)
    with dask.config.set(scheduler="threads", num_workers=work.threads):
        cube.to_zarr(work.out, mode="w")


def main(argv: Sequence[str]) -> None:
    """`python -m benchmarks.usual_way JSON`, of `Work`'s fields."""
    given = json.loads(argv[0])
    encode_region(Work(**given | {"interval": tuple(given["interval"])}))


if __name__ == "__main__":
    main(sys.argv[1:])
