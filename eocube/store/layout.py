"""Lays out a new store before a shard is written: arrays, coordinates, and attributes that plain xarray reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from pyproj import CRS

from eocube.ground.grid import CubeGrid
from eocube.products.spec import Product
from eocube.products.storage import Packing
from eocube.read.coverage import UNKNOWN_PERCENT, cell_bytes
from eocube.store.receipts import STATES, State
from eocube.store.shard_codec import Block, ShardCodec, compressors

ROOT = "zarr.json"

# How arrays are cut never depends on how large they are: a store that grows keeps its objects, and those that hold
# more than before still serve who opened it when it was smaller.
_WINDOWS_SIDE = 64  # cores along a chunk of the (time, wy, wx) arrays
_WINDOWS_TIMES = 256  # times in one object of those arrays
_CHUNK = 48  # cells along an inner chunk, about: 288 KiB of EO-VAE's latents
_VALID_SIDE = 960  # cells along one object of `valid`, about
_AXIS = {"time": 1024, "channel": 1024, "y": 8192, "x": 8192, "wy": _WINDOWS_SIDE, "wx": _WINDOWS_SIDE}
_STEPS = 256  # time steps in one object of what is said of each

CONVENTIONS = [
    {
        "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        "name": "spatial",
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v0.1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/spatial/blob/v0.1/README.md",
        "description": "Spatial coordinate information",
    },
    {
        "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
        "name": "proj",
        "schema_url": "https://raw.githubusercontent.com/zarr-conventions/proj/refs/tags/v0.1/schema.json",
        "spec_url": "https://github.com/zarr-conventions/proj/blob/v0.1/README.md",
        "description": "Coordinate reference system information for geospatial data",
    },
]

COORDINATES = (
    "spatial_ref", "platform", "scene_ids", "item_datetimes", "orbit_state", "relative_orbit", "requested",
)  # fmt: skip


class Step(Protocol):
    """A time step of a plan, as far as a store needs it."""

    @property
    def time(self) -> str: ...
    @property
    def platform(self) -> str: ...
    @property
    def scene_ids(self) -> Sequence[str]: ...


class Acquired(Protocol):
    """What is known of a time step beyond that."""

    @property
    def orbit_state(self) -> str: ...
    @property
    def relative_orbit(self) -> int: ...
    @property
    def item_datetimes(self) -> Sequence[str]: ...


class StorePlan(Protocol):
    """A plan as far as a store needs it; `eocube.plan.plan.Plan` is one."""

    @property
    def grid(self) -> CubeGrid: ...
    @property
    def times(self) -> Sequence[Step]: ...
    @property
    def acquisitions(self) -> Sequence[Acquired]: ...
    @property
    def product(self) -> Product: ...
    @property
    def space_id(self) -> str: ...
    @property
    def hash(self) -> str: ...
    def document(self) -> dict[str, Any]: ...
    def to_json(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a store and how it is cut into objects."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    dtype: str
    fill: float | int | str
    packing: Packing = "zstd"

    @property
    def codec(self) -> ShardCodec:
        """The codec of this array's objects. On the latent grid what is all fill is left out: a sea costs nothing."""
        if self.shards is None or isinstance(self.fill, str):
            raise TypeError(f"{self.name} is not sharded")
        return ShardCodec(
            self.shards, self.chunks, self.dtype, self.fill, keep_empty="wx" in self.dims, packing=self.packing
        )

    def key(self, *index: int) -> str:
        """Key of the object at an index of the grid of objects."""
        return "/".join([self.name, "c", *map(str, index)])

    @classmethod
    def parse(cls, name: str, metadata: Mapping[str, Any]) -> ArraySpec:
        """The spec in an array's own zarr.json (Zarr v3, regular chunk grid)."""
        outer = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        sharding = [c for c in metadata["codecs"] if c["name"] == "sharding_indexed"]
        inner = tuple(sharding[0]["configuration"]["chunk_shape"]) if sharding else outer
        packed = sharding[0]["configuration"]["codecs"] if sharding else metadata["codecs"]
        fill = metadata["fill_value"]
        return cls(
            name=name,
            dims=tuple(metadata.get("dimension_names", ())),
            shape=tuple(metadata["shape"]),
            chunks=inner,
            shards=outer if sharding else None,
            dtype=str(metadata["data_type"]),
            fill=float(fill) if fill == "NaN" else fill,
            packing="byte planes" if any(codec["name"] == "blosc" for codec in packed) else "zstd",
        )


def is_chunk(key: str, name: str) -> bool:
    """Whether a key has the form of an array's objects; what else lies in its folder is none of the store's."""
    head, *index = key.removeprefix(f"{name}/").split("/")
    return key.startswith(f"{name}/") and head == "c" and all(part.isascii() and part.isdigit() for part in index)


def inner_side(core: int, shard: int) -> int:
    """Latents along an inner chunk: the multiple of the core that divides the shard and is nearest to 48."""
    fitting = [core * k for k in range(1, shard // core + 1) if shard % (core * k) == 0]
    return min(fitting, key=lambda side: (abs(side - _CHUNK), side))


def array_specs(plan: StorePlan) -> dict[str, ArraySpec]:
    """The arrays of a plan's store that hold results: latent, those beside it, and those of one value a window."""
    grid, lattice, times = plan.grid, plan.grid.lattice, len(plan.times)
    (ny, nx), (wy, wx) = grid.shape, grid.windows_shape
    side = inner_side(lattice.core, lattice.shard)
    block, many = lattice.shard * max(1, _VALID_SIDE // lattice.shard), _WINDOWS_SIDE
    made, storage = plan.product, plan.product.storage
    values = ArraySpec(
        made.array, ("time", "channel", "y", "x"), (times, made.channels, ny, nx), (1, made.channels, side, side),
        (1, made.channels, lattice.shard, lattice.shard), storage.dtype, storage.fill, storage.packing,
    )  # fmt: skip
    valid = ArraySpec("valid", ("time", "y", "x"), (times, ny, nx), (1, side, side), (1, block, block), "uint8", 0)
    bits = cell_bytes(lattice.stride)
    missing = ArraySpec(
        "missing", (*valid.dims, "cell_byte"), (*valid.shape, bits), (*valid.chunks, bits), (1, block, block, bits),
        "uint8", 0,
    )  # fmt: skip
    cloud, shadow = (replace(valid, name=name, fill=UNKNOWN_PERCENT) for name in ("cloud", "shadow"))
    specs = {spec.name: spec for spec in (values, valid, missing, cloud, shadow)}
    for name, dtype, fill in (
        ("status", "uint8", int(State.NOT_ATTEMPTED)),
        ("valid_percent", "uint8", UNKNOWN_PERCENT),
        ("cloud_percent", "uint8", UNKNOWN_PERCENT),
        *((score, "float16", float("nan")) for score in made.scores),
    ):
        # Chunks of one time as the latents have, so that dask chunks agree along time; objects of many times.
        specs[name] = ArraySpec(
            name, ("time", "wy", "wx"), (times, wy, wx), (1, many, many), (_WINDOWS_TIMES, many, many), dtype, fill
        )
    return specs


def spatial(dims: list[str], shape: Sequence[int], transform: Sequence[float], epsg: int) -> dict[str, Any]:
    a, _, c, _, e, f = transform
    ny, nx = shape
    return {
        "spatial:dimensions": dims,
        "spatial:shape": [ny, nx],
        "spatial:transform": list(transform),
        "spatial:bbox": [c, f + ny * e, c + nx * a, f],
        "spatial:registration": "pixel",
        "proj:code": f"EPSG:{epsg}",
    }


def _array_attributes(plan: StorePlan) -> dict[str, dict[str, Any]]:
    grid, lattice = plan.grid, plan.grid.lattice
    t = grid.transform
    fine = [float(v) for v in (t.a, t.b, t.c, t.d, t.e, t.f)]
    core = lattice.core
    coarse = [fine[0] * core, fine[1], fine[2], fine[3], fine[4] * core, fine[5]]
    on_pixels = {
        "grid_mapping": "spatial_ref",
        **spatial(["y", "x"], grid.shape, fine, lattice.epsg),
        "zarr_conventions": CONVENTIONS,
    }
    on_windows = {
        **spatial(["wy", "wx"], grid.windows_shape, coarse, lattice.epsg),
        "zarr_conventions": CONVENTIONS,
    }
    made = plan.product
    values: dict[str, Any] = {"long_name": made.long_name, "units": "1", **on_pixels}
    if comment := made.storage.comment(made.array):
        values["comment"] = comment
    return {
        made.array: values,
        "valid": {
            "long_name": f"share of valid source pixels in each {made.array} pixel, 0 where no window is ok",
            "units": "percent",
            **on_pixels,
        },
        "missing": {
            "long_name": f"source pixels that some band lacks: the bits of each {made.array} pixel's square, row by "
            "row, the first pixel the highest bit of the first byte",
            "comment": f"{lattice.stride} x {lattice.stride} bits; valid is 100 where none is set",
            **on_pixels,
        },
        "cloud": {
            "long_name": f"cloud over the valid mask samples of each {made.array} pixel, {UNKNOWN_PERCENT} unknown",
            "units": "percent",
            **on_pixels,
        },
        "shadow": {
            "long_name": f"cloud shadow over the valid mask samples of each {made.array} pixel, "
            f"{UNKNOWN_PERCENT} unknown",
            "units": "percent",
            **on_pixels,
        },
        "status": {
            "long_name": "how each window ended",
            "standard_name": "status_flag",
            "flag_values": [int(s) for s in State],
            "flag_meanings": " ".join(STATES),
            **on_windows,
        },
        "valid_percent": {
            "long_name": "valid source pixels in the window's core, 255 unknown", "units": "percent", **on_windows,
        },
        "cloud_percent": {
            "long_name": "cloud over the valid pixels of the window's core, 255 unknown", "units": "percent",
            **on_windows,
        },
        "psnr": {"long_name": "PSNR of the decoded window against its source", "units": "dB", **on_windows},
        "sam": {"long_name": "spectral angle of the decoded window to its source", "units": "rad", **on_windows},
    }  # fmt: skip


def _coordinates(plan: StorePlan) -> dict[str, tuple[tuple[str, ...], Block, dict[str, Any]]]:
    grid = plan.grid
    seconds = np.array([step.time.rstrip("Z") for step in plan.times], "datetime64[s]").astype(np.int64)
    t = grid.transform
    crs = CRS.from_epsg(grid.lattice.epsg)
    mapping = {
        **crs.to_cf(),
        "spatial_ref": crs.to_wkt(),
        "GeoTransform": " ".join(repr(float(v)) for v in (t.c, t.a, t.b, t.f, t.d, t.e)),
    }

    def axis(letter: str, of: str) -> dict[str, Any]:
        named = {
            "long_name": f"{'easting' if letter == 'x' else 'northing'} of the {of}'s centre",
            "standard_name": f"projection_{letter}_coordinate",
            "units": "m",
        }
        # CF allows one X and one Y axis: those of the latent pixels.
        return named if of == "window" else {**named, "axis": letter.upper()}

    disordered = bool((np.diff(seconds) < 0).any())
    order = {"comment": "in the order in which they were added, not in order of time: sortby"} if disordered else {}
    text = np.dtypes.StringDType()
    made, names = plan.product, list(plan.product.channel_names)
    found: dict[str, tuple[tuple[str, ...], Block, dict[str, Any]]] = {
        "time": (
            ("time",), seconds,
            {"long_name": "start of the acquisition, UTC", "standard_name": "time", "axis": "T",
             "units": "seconds since 1970-01-01T00:00:00", "calendar": "proleptic_gregorian", **order},
        ),
        "channel": (("channel",), np.arange(made.channels), {"long_name": f"{made.array} channel", "names": names}),
        "y": (("y",), grid.y, axis("y", f"{made.array} pixel")),
        "x": (("x",), grid.x, axis("x", f"{made.array} pixel")),
        "wy": (("wy",), grid.wy, axis("y", "window")),
        "wx": (("wx",), grid.wx, axis("x", "window")),
        "spatial_ref": ((), np.array(0, np.int64), mapping),
        "platform": (
            ("time",), np.array([s.platform for s in plan.times], text), {"long_name": "platform"},
        ),
        "scene_ids": (
            ("time",), np.array(["\n".join(s.scene_ids) for s in plan.times], text),
            {"long_name": "ids of the STAC items, one a line, in mosaic order"},
        ),
        "item_datetimes": (
            ("time",), np.array(["\n".join(a.item_datetimes) for a in plan.acquisitions], text),
            {"long_name": "each item's own moment, ISO 8601 UTC, one a line, in the order of scene_ids"},
        ),
        "orbit_state": (
            ("time",), np.array([a.orbit_state for a in plan.acquisitions], text),
            {"long_name": "orbit direction: ascending, descending, or empty where no item says"},
        ),
        "relative_orbit": (
            ("time",), np.array([a.relative_orbit for a in plan.acquisitions], np.int16),
            {"long_name": "number of the track, 0 where no item says"},
        ),
        "requested": (
            ("wy", "wx"), np.asarray(grid.requested_mask).astype(np.uint8),
            {"long_name": "1 where the window's core lies in the area asked for"},
        ),
    }  # fmt: skip
    for name, (values, long_name) in made.storage.coordinates().items():
        found[name] = (("channel",), np.array(values, np.float64), {"long_name": long_name})
    return found


def template(plan: StorePlan) -> dict[str, bytes]:
    """Every object of a new store but the root's zarr.json, the results and the commits: {key: bytes}."""
    import zarr
    from zarr.abc.buffer import Buffer
    from zarr.storage import MemoryStore

    objects: dict[str, Buffer] = {}
    store = MemoryStore(objects)
    attributes = _array_attributes(plan)
    for name, spec in array_specs(plan).items():
        zarr.create_array(
            store, name=name, shape=spec.shape, chunks=spec.chunks, shards=spec.shards, dtype=spec.dtype,
            fill_value=spec.fill, compressors=compressors(spec.packing, spec.chunks, spec.dtype),
            dimension_names=spec.dims, attributes=attributes[name],
        )  # fmt: skip
    for name, (dims, values, attrs) in _coordinates(plan).items():
        text = values.dtype.kind == "T"
        # Cut by time as the latents are, so that dask chunks agree; the sharding keeps them few objects.
        whole = tuple(_AXIS[dim] for dim in dims) or "auto"
        each = dims == ("time",) and name != "time"
        cut: dict[str, Any] = {"chunks": (1,), "shards": (_STEPS,)} if each else {"chunks": whole}
        array = zarr.create_array(
            store, name=name, shape=values.shape, dtype="str" if text else values.dtype,
            fill_value="" if text else 0, compressors=compressors(), dimension_names=dims or None, attributes=attrs,
            config={"write_empty_chunks": True}, **cut,
        )  # fmt: skip
        array[...] = values
    return {key: objects[key].to_bytes() for key in sorted(objects) if key != ROOT}
