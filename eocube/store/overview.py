"""Lays out a store's overview: a small pyramid of what was decoded, beside the arrays and no part of their meaning.

`overview/` is a group of its own, with a group a level: `xr.open_zarr(store, group="overview/0", consolidated=False)`.
Level 0 has a pixel of two cells (160 m of a cube at 10 m), every further one twice that. An object holds one shard's
ground on level 0 and the ground of 2 x 2 objects of the level before on the others, so that an object follows from one
shard of one time alone, or from four objects. `overview/made/TIME.json` says of which objects of the values, by their
SHA-256, the overview of a time was made: what was encoded again since is made again, and nothing else. Neither the
root's metadata nor the seal of the layout know of it, so a store with an overview has the bytes of one without.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eocube.net.objects import Objects, storing
from eocube.store.layout import CONVENTIONS, ROOT, spatial
from eocube.store.shard_codec import ShardCodec, compressors

if TYPE_CHECKING:  # zarr is imported by what writes an overview: `verify` asks for a name alone, and a plan for less
    from zarr.abc.buffer import Buffer
    from zarr.storage import MemoryStore

Floats = npt.NDArray[np.float32]

FOLDER = "overview"
ARRAY = "picture"
CELLS = 2
"""Cells along a pixel of level 0, where a shard is that many times something."""
FILL = -32768
STEPS = {"reflectance": 1e-4, "dB": 0.01, "dn8": 0.01}
"""What a stored whole number counts, by the sensor's unit."""
MULTISCALES = {
    "uuid": "d35379db-88df-4056-af3a-620245f8e347",
    "name": "multiscales",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/multiscales/refs/tags/v1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/multiscales/blob/v1/README.md",
    "description": "Multiscale layout of zarr datasets",
}


@dataclass(frozen=True, slots=True)
class Overview:
    """Where the pixels and objects of an overview are. It follows from the store's grid, and grows with it."""

    bands: tuple[str, ...]
    unit: str
    times: int
    shards: tuple[int, int]
    """Of the store, down and across."""
    side: int
    """Cells along a shard."""
    transform: tuple[float, ...]
    """Of cells to metres: an affine's six numbers."""
    epsg: int

    @property
    def cells(self) -> int:
        """Cells along a pixel of level 0."""
        return CELLS if self.side % CELLS == 0 else 1

    @property
    def block(self) -> int:
        """Pixels along an object."""
        return self.side // self.cells

    @property
    def levels(self) -> int:
        """As many as it takes until one object holds all ground."""
        return 1 + max(0, max(self.shards) - 1).bit_length()

    def blocks(self, level: int) -> tuple[int, int]:
        """Objects of a level, down and across."""
        down, across = self.shards
        return -(-down // 2**level), -(-across // 2**level)

    def pixel(self, level: int) -> float:
        """Metres along a pixel."""
        return float(self.transform[0] * self.cells * 2**level)

    @property
    def step(self) -> float:
        """What a stored whole number counts."""
        return STEPS.get(self.unit, 0.01)

    @property
    def codec(self) -> ShardCodec:
        """Of an object."""
        shape = (1, len(self.bands), self.block, self.block)
        return ShardCodec(shape, shape, "int16", FILL, keep_empty=False)

    def key(self, level: int, time: int, row: int, col: int) -> str:
        """Of an object."""
        return f"{FOLDER}/{level}/{ARRAY}/c/{time}/0/{row}/{col}"

    # -- objects

    def encode(self, pixels: Floats) -> bytes | None:
        """(bands, block, block) pixels, NaN where nothing is, as an object; None where nothing is at all."""
        counts = np.clip(np.nan_to_num(np.rint(pixels / self.step), nan=0.0), FILL + 1, -FILL - 1)
        stored = np.where(np.isfinite(pixels).all(axis=0), counts, FILL).astype(np.int16)
        return self.codec.encode(stored[None])

    def decode(self, data: bytes) -> Floats:
        """Inverse of `encode`, to half a step."""
        stored = self.codec.decode(data)[0]
        return np.where(stored == FILL, np.float32(np.nan), stored * np.float32(self.step)).astype(np.float32)

    def read(self, target: Objects, level: int, time: int, row: int, col: int) -> Floats | None:
        """An object's pixels; None where there is none. StoreError for one that is damaged."""
        key = self.key(level, time, row, col)
        data = target.get(key)
        if data is None:
            return None
        with storing("decode", target.at(key)):
            return self.decode(data)

    def above(self, parts: Mapping[tuple[int, int], Floats | None]) -> Floats:
        """An object's pixels out of those of the level before, by their place (0 or 1 down, 0 or 1 across)."""
        block = self.block
        whole = np.full((len(self.bands), 2 * block, 2 * block), np.nan, np.float32)
        for (down, across), part in parts.items():
            if part is not None:
                whole[:, down * block : (down + 1) * block, across * block : (across + 1) * block] = part
        return halved(whole, 2)

    # -- metadata

    def metadata(self) -> dict[str, bytes]:
        """The zarr.json of the group, of its levels and their arrays, with coordinates: {key: bytes}."""
        import zarr
        from zarr.storage import MemoryStore

        objects: dict[str, Buffer] = {}
        store = MemoryStore(objects)
        zarr.create_group(store, path=FOLDER, attributes=self._attributes())
        for level in range(self.levels):
            self._level(store, level)
        return {key: objects[key].to_bytes() for key in sorted(objects) if key != ROOT}

    def _attributes(self) -> dict[str, Any]:
        layout: list[dict[str, Any]] = []
        for level in range(self.levels):
            derived: dict[str, Any] = {"derived_from": str(level - 1)} if level else {}
            scale = 2.0 if level else 1.0
            layout.append({"asset": str(level), **derived, "transform": {"scale": [scale] * 2}})
        return {
            "title": f"Overview of what was decoded: {', '.join(self.bands)}",
            "proj:code": f"EPSG:{self.epsg}",
            "multiscales": {"layout": layout, "resampling_method": "average"},
            "zarr_conventions": [MULTISCALES, *CONVENTIONS],
        }

    def _level(self, store: MemoryStore, level: int) -> None:
        import zarr

        down, across = (n * self.block for n in self.blocks(level))
        pixel, left, top = self.pixel(level), self.transform[2], self.transform[5]
        place = spatial(["y", "x"], (down, across), [pixel, 0.0, left, 0.0, -pixel, top], self.epsg)
        path = f"{FOLDER}/{level}"
        zarr.create_group(store, path=path, attributes={**place, "zarr_conventions": CONVENTIONS})
        shape = (self.times, len(self.bands), down, across)
        chunk = (1, len(self.bands), self.block, self.block)
        zarr.create_array(
            store, name=f"{path}/{ARRAY}", shape=shape, chunks=chunk, shards=chunk, dtype="int16", fill_value=FILL,
            compressors=compressors(), dimension_names=("time", "band", "y", "x"),
            attributes={
                "long_name": "mean of decoded pixels", "units": "1" if self.unit == "reflectance" else self.unit,
                "scale_factor": self.step, "_FillValue": FILL, "grid_mapping": "spatial_ref", **place,
                "zarr_conventions": CONVENTIONS,
            },
        )  # fmt: skip
        for name, count, first, step in (("y", down, top, -pixel), ("x", across, left, pixel)):
            centres = first + (np.arange(count) + 0.5) * step
            zarr.create_array(
                store, name=f"{path}/{name}", data=centres, chunks=(count,), dimension_names=(name,),
                attributes={"units": "m", "standard_name": f"projection_{name}_coordinate"},
            )  # fmt: skip
        names = np.array(self.bands, np.dtypes.StringDType())
        bands = zarr.create_array(
            store, name=f"{path}/band", shape=names.shape, dtype="str", fill_value="", chunks=names.shape,
            dimension_names=("band",),
        )  # fmt: skip
        bands[...] = names


def halved(pixels: Floats, factor: int) -> Floats:
    """(bands, H, W) to (bands, H / factor, W / factor): the mean of what is there, NaN where nothing is."""
    bands, height, width = pixels.shape
    blocks = pixels.reshape(bands, height // factor, factor, width // factor, factor)
    there = np.isfinite(blocks)
    count = there.sum(axis=(2, 4))
    total = np.where(there, blocks, 0.0).sum(axis=(2, 4), dtype=np.float64)
    mean = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.asarray(mean, np.float32)


def made_key(time: int) -> str:
    """Of what says of which shards the overview of a time was made."""
    return f"{FOLDER}/made/{time}.json"


def made_of(target: Objects, time: int) -> dict[tuple[int, int], str]:
    """SHA-256 of the shards that the overview of a time was made of, by row and column; empty where there is none."""
    data = target.get(made_key(time))
    if data is None:
        return {}
    try:
        listed: Sequence[Sequence[Any]] = json.loads(data)["shards"]
        return {(int(row), int(col)): str(sha256) for row, col, sha256 in listed}
    except (ValueError, KeyError, TypeError):
        return {}  # damaged: it is made again


def made_bytes(shards: Mapping[tuple[int, int], str]) -> bytes:
    """What `made_of` reads."""
    return json.dumps({"shards": [[row, col, sha256] for (row, col), sha256 in sorted(shards.items())]}).encode()
