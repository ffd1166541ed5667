"""The latent store: what plain xarray sees, whole-shard writes, resuming, finalising, verifying."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import odc.geo.xr  # noqa: F401  registers .odc
import pystac
import pytest
import rioxarray  # noqa: F401  registers .rio
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from eocube.errors import StoreError
from eocube.ground.grid import CubeGrid, grids_for
from eocube.net.objects import Objects
from eocube.net.redaction import redacted
from eocube.plan.plan import Acquisition
from eocube.products.eo_vae_document import Encoding, latents
from eocube.products.identity import digest
from eocube.products.spec import Product
from eocube.sensors import get_sensor
from eocube.store.layout import array_specs, inner_side
from eocube.store.moments import Moments
from eocube.store.receipts import STATES, Receipt, State, WindowResult, pack_mask
from eocube.store.shard_codec import ShardCodec
from eocube.store.store import CubeStore, create_root, finalise_root
from eocube.store.verify import Finding

BOX = (15.3, 46.15, 15.48, 46.27)
GRID = grids_for(BOX, 10, core_px=192, halo_px=32, shard_px=768)[0]
CHANNELS = 3


@dataclass(frozen=True)
class Step:
    time: str
    platform: str
    scene_ids: tuple[str, ...]


TIMES = (
    Step("2023-08-15T09:57:57.246Z", "sentinel-2a", ("S2A_33TWL", "S2A_33TWM")),
    Step("2023-08-20T09:57:59Z", "sentinel-2b", ("S2B_33TWL",)),
)


@dataclass(frozen=True)
class FakePlan:
    grid: CubeGrid = GRID
    times: tuple[Step, ...] = TIMES
    dtype: str = "float16"
    quantisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    channels: int = CHANNELS
    weights: str = "aa"
    salt: int = 0
    channel_names: tuple[str, ...] = field(default=("z00", "z01", "z02"))

    @property
    def product(self) -> Product:
        storage = "fp16" if self.quantisation is None else {"int8": "int8", "int16": "codes"}[self.dtype]
        encoding = Encoding("nano", "nano", self.weights, self.channels, 8, "fp32", storage, self.quantisation)
        return replace(
            latents(get_sensor("S2L2A").subset(["B02"]), encoding, self.grid.lattice), channel_names=self.channel_names
        )

    @property
    def acquisitions(self) -> tuple[Acquisition, ...]:
        return tuple(Acquisition("descending", 122, tuple(step.time for _ in step.scene_ids)) for step in self.times)

    @property
    def space_id(self) -> str:
        return digest(self.document()["space"])

    @property
    def hash(self) -> str:
        return f"{hash((self.grid, self.times, self.dtype, self.weights, self.salt)):x}"

    def document(self) -> dict[str, Any]:
        affine = self.quantisation
        return {
            "space": {"weights": {"sha256": self.weights}, "core": 24, "sensor": {"name": "S2L2A", "bands": [1]}},
            "weights": "nano",
            "storage": self.product.storage.name,
            "quantisation": None if affine is None else {"scale": list(affine[0]), "offset": list(affine[1])},
        }

    def to_json(self) -> str:
        return json.dumps({"hash": self.hash})


INT8 = FakePlan(dtype="int8", quantisation=((0.1, 0.2, 0.05), (0.0, 1.0, -2.0)))
CODES = replace(INT8, dtype="int16")


@pytest.fixture(params=["disk", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store may go: local disk, memory:// and S3 over the wire (reached by the environment)."""
    if request.param == "disk":
        return str(tmp_path / "cube.zarr")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/cube.zarr"
    return f"s3://{request.getfixturevalue('s3_server').bucket()}/cube.zarr"


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "cube.zarr"


def shards_of(plan: FakePlan) -> list[tuple[int, int, int]]:
    return [(t, r, c) for t in range(len(plan.times)) for r, c in plan.grid.shards()]


def make_unit(plan: FakePlan, place: tuple[int, int, int]) -> tuple[np.ndarray, tuple[WindowResult, ...]]:
    """Latents (C, S, S) with NaN and the windows of a unit: a function of its place alone."""
    time, row, col = place
    rng = np.random.default_rng([time, row, col])
    shard = np.full((plan.channels, 96, 96), np.nan, np.float32)
    results = []
    states = [State.OK, State.OK, State.OK, State.NODATA, State.CLOUDY, State.READ_FAILED]
    for window in plan.grid.windows_of_shard(row, col):
        if not plan.grid.requested(window):
            continue
        wy, wx = plan.grid.place_in_status(window)
        state = State.OK if place == (0, 1, 1) else states[rng.integers(len(states))]
        if state is State.OK:
            y, x = plan.grid.place_in_shard(window)
            shard[:, y : y + 24, x : x + 24] = rng.normal(0, 3, (plan.channels, 24, 24))
            mask = np.full((24, 24), 100, np.uint8)
            if rng.random() < 0.3:
                mask[:, :7] = 40
            results.append(
                WindowResult(wy, wx, state, valid_percent=int(mask.mean()), cloud_percent=3, psnr=30.5, sam=0.0625,
                             valid_mask=pack_mask(mask))
            )  # fmt: skip
        elif state is State.READ_FAILED:
            results.append(WindowResult(wy, wx, state, "HTTP 404", item="S2A_33TWL", asset="red"))
        else:
            results.append(WindowResult(wy, wx, state, valid_percent=0, cloud_percent=80))
    return shard, tuple(results)


def do_unit(store: CubeStore, plan: FakePlan, place: tuple[int, int, int], *, seconds: float = 1.0) -> Receipt:
    """Write a unit's shard and give its receipt, as an actor would."""
    shard, results = make_unit(plan, place)
    size, sha = store.write_shard(*place, store.storage.pack(shard))
    return Receipt(
        f"t{place[0]:05d}/r{place[1]:04d}/c{place[2]:04d}", place[0], place[1:], results, bytes_in=1000, bytes_out=size,
        seconds=seconds, sha256=sha, moments=Moments.of(store.storage.unpack(store.storage.pack(shard))),
        precision={"fp32": sum(w.state is State.OK for w in results)}, created="2026-11-21T02:00:00Z", run="r1",
    )  # fmt: skip


def fill(store: CubeStore, plan: FakePlan) -> list[Receipt]:
    receipts = [do_unit(store, plan, place) for place in shards_of(plan)]
    store.commit(receipts)
    store.finalise()
    return receipts


def contents(url: str | Path, *, log: bool = False) -> dict[str, bytes]:
    """Every object of a store by key, without the commit log's segments and their sums unless asked for."""
    target = Objects(url)
    keys = [k for k in target.keys("") if log or not k.endswith((".jsonl", "segments.json"))]
    return dict(zip(keys, target.get_many(keys), strict=True))


# -- what readers see


def test_plain_xarray_reads_what_was_written(url: str) -> None:
    plan = FakePlan()
    store = CubeStore.create(url, plan)
    fill(store, plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.open_zarr(url).load()
    assert ds.latent.dims == ("time", "channel", "y", "x")
    assert ds.latent.dtype == np.float16
    assert ds.latent.shape == (2, CHANNELS, *plan.grid.shape)
    for t, r, c in shards_of(plan):
        expected, results = make_unit(plan, (t, r, c))
        got = ds.latent[t, :, r * 96 : (r + 1) * 96, c * 96 : (c + 1) * 96].values
        np.testing.assert_array_equal(got, expected.astype(np.float16))
        for w in results:
            assert ds.status.values[t, w.row, w.col] == w.state
            assert ds.valid_percent.values[t, w.row, w.col] == w.valid_percent
            assert ds.cloud_percent.values[t, w.row, w.col] == w.cloud_percent
    ok = ds.status.values == State.OK
    assert (ds.psnr.values[ok] == 30.5).all() and np.isnan(ds.psnr.values[~ok]).all()
    assert (ds.sam.values[ok] == 0.0625).all()
    assert (ds.status.values[:, ~plan.grid.requested_mask] == State.OUTSIDE).all()
    assert not (ds.status.values == State.NOT_ATTEMPTED).any()
    on_latents = np.repeat(np.repeat(ok, 24, 1), 24, 2)
    assert (np.isfinite(ds.latent.values).all(1) == on_latents).all()
    assert ((ds.valid.values > 0) == on_latents).all()
    assert set(np.unique(ds.valid.values)) == {0, 40, 100}


def test_coordinates_flags_and_attributes(disk: Path) -> None:
    plan = FakePlan()
    fill(CubeStore.create(disk, plan), plan)
    ds = xr.open_zarr(disk)
    np.testing.assert_array_equal(ds.x, plan.grid.x)
    np.testing.assert_array_equal(ds.y, plan.grid.y)
    np.testing.assert_array_equal(ds.wx, plan.grid.x.reshape(-1, 24).mean(1))
    np.testing.assert_array_equal(ds.wy, plan.grid.y.reshape(-1, 24).mean(1))
    assert ds.x.dtype == ds.y.dtype == np.float64
    assert [str(t)[:19] for t in ds.time.values] == ["2023-08-15T09:57:57", "2023-08-20T09:57:59"]
    assert list(ds.platform.values) == ["sentinel-2a", "sentinel-2b"]
    assert [s.split("\n") for s in ds.scene_ids.values] == [list(t.scene_ids) for t in TIMES]
    assert [s.split("\n") for s in ds.item_datetimes.values] == [[t.time for _ in t.scene_ids] for t in TIMES]
    assert list(ds.orbit_state.values) == ["descending"] * 2 and list(ds.relative_orbit.values) == [122] * 2
    assert ds.status.attrs["flag_values"] == list(range(7))
    assert ds.status.attrs["flag_meanings"].split() == list(STATES)
    assert ds.status.dtype == np.uint8
    assert {"spatial_ref", "platform", "scene_ids", "orbit_state", "relative_orbit", "requested"} <= set(ds.coords)
    beside = {"valid", "missing", "cloud", "shadow"}
    assert set(ds.data_vars) == {"latent", *beside, "status", "valid_percent", "cloud_percent", "psnr", "sam"}
    assert ds.latent.attrs["grid_mapping"] == "spatial_ref"
    assert ds.channel.attrs["names"] == ["z00", "z01", "z02"]
    document = ds.attrs["eocube"]
    assert isinstance(document, dict)
    assert (
        document["space_id"] == plan.space_id and document["plan_hash"] == plan.hash and document["weights"] == "nano"
    )
    row0, col0, row1, col1 = document["extent"]
    inside = np.zeros(plan.grid.shape, bool)
    inside[row0:row1, col0:col1] = True
    assert (inside | ~np.repeat(np.repeat(plan.grid.requested_mask, 24, 0), 24, 1)).all()
    for attrs in (ds.attrs, ds.latent.attrs, ds.status.attrs):
        assert attrs["proj:code"] == "EPSG:32633"
        assert {c["name"] for c in attrs["zarr_conventions"]} == {"spatial", "proj"}
        ny, nx = attrs["spatial:shape"]
        a, _, c, _, e, f = attrs["spatial:transform"]
        assert attrs["spatial:bbox"] == [c, f + e * ny, c + a * nx, f]
    assert ds.status.attrs["spatial:bbox"] == ds.latent.attrs["spatial:bbox"]
    assert ds.chunks["y"] == (48,) * (plan.grid.shape[0] // 48)  # raises where variables disagree


def test_moments_are_those_of_the_stored_latents(disk: Path) -> None:
    plan = FakePlan()
    store = CubeStore.create(disk, plan)
    fill(store, plan)
    values = np.moveaxis(xr.open_zarr(disk).latent.values, 1, 0).reshape(CHANNELS, -1).astype(np.float64)
    values = values[:, np.isfinite(values).all(0)]
    found = CubeStore.open(disk).document["moments"]
    assert found["count"] == values.shape[1]
    np.testing.assert_allclose(found["mean"], values.mean(1), rtol=1e-9)
    np.testing.assert_allclose(found["std"], values.std(1), rtol=1e-9)


def test_rioxarray_and_odc_geo_find_the_ground(disk: Path) -> None:
    plan = FakePlan()
    CubeStore.create(disk, plan)
    for ds in (xr.open_zarr(disk), xr.open_zarr(disk, decode_coords="all")):
        assert ds.rio.crs.to_epsg() == 32633
        assert ds.latent.rio.crs.to_epsg() == 32633
        assert ds.latent.rio.transform().almost_equals(plan.grid.transform)
        box = GeoBox(plan.grid.shape, plan.grid.transform, f"EPSG:{plan.grid.lattice.epsg}")
        assert ds.latent.odc.geobox == box and ds.odc.geobox == box
    transform = [float(v) for v in ds.spatial_ref.attrs["GeoTransform"].split()]
    assert transform == list(plan.grid.transform.to_gdal())


def test_the_store_opens_without_eocube(disk: Path) -> None:
    fill(CubeStore.create(disk, FakePlan()), FakePlan())
    script = (
        "import sys, xarray as xr; ds = xr.open_zarr(sys.argv[1]); ds.load();"
        "assert not any(m.split('.')[0] == 'eocube' for m in sys.modules); print(ds.latent.shape)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(disk)], capture_output=True, text=True, cwd=disk.parent
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str((2, CHANNELS, *GRID.shape))


def test_the_item_beside_the_store_is_stac(disk: Path) -> None:
    CubeStore.create(disk, FakePlan())
    item = pystac.Item.from_file(str(disk / "stac.json"))
    assert item.id == "cube"
    assert item.properties["start_datetime"] == "2023-08-15T09:57:57Z"
    assert item.properties["proj:code"] == "EPSG:32633"
    west, south, east, north = item.bbox or ()
    assert west < BOX[0] and south < BOX[1] and east > BOX[2] and north > BOX[3]
    assert west > BOX[0] - 0.05 and north < BOX[3] + 0.05
    assert item.assets["cube"].media_type == "application/vnd.zarr; version=3"


def test_the_item_of_a_cube_on_the_antimeridian_wraps(disk: Path) -> None:
    plan = FakePlan(grid=grids_for((179.9, 10.0, 180.0, 10.1), 10, core_px=192, shard_px=768)[0], times=TIMES[:1])
    CubeStore.create(disk, plan)
    item = json.loads((disk / "stac.json").read_text())
    west, _, east, _ = item["bbox"]
    assert 179 < west < 180 and -180 < east < -179
    assert item["geometry"]["type"] == "MultiPolygon"
    assert item["properties"]["datetime"] == "2023-08-15T09:57:57Z"


# -- shards


def test_default_chunks_follow_the_core() -> None:
    assert inner_side(24, 240) == 48
    assert inner_side(24, 96) == 48
    assert inner_side(24, 24) == 24
    assert inner_side(60, 480) == 60
    assert inner_side(3, 240) == 48
    spec = array_specs(FakePlan(grid=grids_for(BOX, 10)[0], channels=32))["latent"]
    assert spec.shards == (1, 32, 240, 240) and spec.chunks == (1, 32, 48, 48)


def test_shard_bytes_are_zarrs_own_and_deterministic(disk: Path) -> None:
    plan = FakePlan()
    store = CubeStore.create(disk, plan)
    latents = store.storage.pack(make_unit(plan, (0, 1, 1))[0])
    size, sha = store.write_shard(0, 1, 1, latents)
    ours = (disk / "latent/c/0/0/1/1").read_bytes()
    assert size == len(ours)
    zarr.open_array(disk, path="latent", mode="r+")[0, :, 96:192, 96:192] = latents
    assert (disk / "latent/c/0/0/1/1").read_bytes() == ours
    assert store.write_shard(0, 1, 1, latents.copy()) == (size, sha)
    assert store.write_shard(1, 1, 1, np.asfortranarray(latents)) == (size, sha)
    metadata = json.loads((disk / "latent/zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    inner = {c["name"]: c["configuration"] for c in sharding["configuration"]["codecs"]}
    assert inner["zstd"] == {"level": 3, "checksum": True}
    assert {c["name"] for c in sharding["configuration"]["index_codecs"]} == {"bytes", "crc32c"}


def test_every_nan_is_stored_alike(disk: Path) -> None:
    store = CubeStore.create(disk, FakePlan())
    odd = np.full((CHANNELS, 4, 4), np.nan, np.float32)
    odd.view(np.uint32)[:] |= 0x1234
    odd[0, 0, 0] = -np.inf
    odd[0, 0, 1] = 1e6
    assert np.unique(store.storage.pack(odd).view(np.uint16)).tolist() == [0x7E00]
    assert np.isnan(store.storage.unpack(store.storage.pack(odd))).all()


def test_int8_is_affine_per_channel(disk: Path) -> None:
    store = CubeStore.create(disk, INT8)
    latents = np.array([[[0.0, 1.26, 99.0]], [[1.0, np.nan, -99.0]], [[-2.0, np.inf, -2.05]]], np.float32)
    codes = store.storage.pack(latents)
    assert codes.dtype == np.int8
    assert codes.tolist() == [[[0, 13, 127]], [[0, -128, -127]], [[0, -128, -1]]]
    back = store.storage.unpack(store.storage.pack(latents))
    np.testing.assert_allclose(back[0, 0], [0, 1.3, 12.7], rtol=1e-6)
    assert np.isnan(back[1:, 0, 1]).all()
    fill(store, INT8)
    ds = xr.open_zarr(disk)
    assert ds.latent.dtype == np.int8
    ok = np.repeat(np.repeat(ds.status.values == State.OK, 24, 1), 24, 2)
    assert ((ds.latent.values != -128).all(1) == ok).all()
    np.testing.assert_array_equal(ds.scale, INT8.quantisation[0])
    np.testing.assert_array_equal(ds.offset, INT8.quantisation[1])
    assert {"scale", "offset"} <= set(ds.coords)
    assert store.verify() == []


@pytest.mark.slow
def test_codes_are_byte_planes_that_plain_xarray_opens(url: str) -> None:
    store = CubeStore.create(url, CODES)
    fill(store, CODES)
    ds = xr.open_zarr(url)
    assert ds.latent.dtype == np.int16
    ok = np.repeat(np.repeat(ds.status.values == State.OK, 24, 1), 24, 2)
    assert ((ds.latent.values != -32768).all(1) == ok).all()
    np.testing.assert_array_equal(ds.scale, CODES.quantisation[0])  # type: ignore[index]
    first = ds.isel(time=0)
    values = (first.latent * first.scale + first.offset).transpose("channel", "y", "x").values
    np.testing.assert_allclose(values[:, ok[0]], store.storage.unpack(first.latent.values)[:, ok[0]], rtol=1e-5)
    packing = json.loads(store.target.get("latent/zarr.json") or b"")["codecs"][0]["configuration"]["codecs"]
    assert [codec["name"] for codec in packing] == ["bytes", "blosc", "crc32c"]
    assert store.verify() == []


def test_a_flipped_bit_of_a_code_is_told(disk: Path) -> None:
    store = CubeStore.create(disk, CODES)
    fill(store, CODES)
    shard = next(p for p in sorted((disk / "latent" / "c").rglob("*")) if p.is_file())
    sound = shard.read_bytes()
    for at in (len(sound) // 3, len(sound) - 10):
        shard.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        assert any("damaged" in finding.what for finding in store.verify()), at
    shard.write_bytes(sound)
    assert store.verify() == []


def test_all_fill_leaves_no_object_and_removes_a_stale_one(url: str) -> None:
    store = CubeStore.create(url, FakePlan())
    empty = np.full((CHANNELS, 96, 96), np.nan, np.float16)
    assert store.write_shard(0, 0, 0, empty) == (0, None)
    store.write_shard(0, 0, 0, np.ones_like(empty))
    assert store.target.keys("latent/c") == ["latent/c/0/0/0/0"]
    assert store.write_shard(0, 0, 0, empty) == (0, None)
    assert store.target.keys("latent/c") == []
    assert np.isnan(store.read_shard(0, 0, 0)).all()


def test_wrong_shards_are_refused(disk: Path) -> None:
    store = CubeStore.create(disk, FakePlan())
    good = np.zeros((CHANNELS, 96, 96), np.float16)
    for wrong in (good.astype(np.float32), good[:2], good[:, :48]):
        with pytest.raises(ValueError, match="shard of"):
            store.write_shard(0, 0, 0, wrong)
    for place in ((2, 0, 0), (0, 3, 0), (0, 0, -1)):
        with pytest.raises(ValueError, match="outside the store"):
            store.write_shard(*place, good)


def test_actors_and_threads_write_different_shards_at_once(disk: Path) -> None:
    plan = FakePlan()
    store = CubeStore.create(disk, plan)
    actors = [CubeStore.open(disk) for _ in range(2)]
    places = shards_of(plan)
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda k: do_unit(actors[k % 2], plan, places[k]), range(len(places))))
    store.commit(receipts)
    store.finalise()
    assert store.verify() == []
    calm = disk.parent / "calm.zarr"
    fill(CubeStore.create(calm, plan), plan)
    assert _without_name(contents(disk)) == _without_name(contents(calm))


def _without_name(objects: dict[str, bytes]) -> dict[str, bytes]:
    """Objects but those that name the store."""
    return {k: v for k, v in objects.items() if k not in ("stac.json", "commits/layout.json")}


def test_one_put_a_shard_on_s3(s3_server: Any) -> None:
    url = f"s3://{s3_server.bucket()}/cube.zarr"
    plan = FakePlan()
    CubeStore.create(url, plan)
    requests: list[str] = []

    def seen(request: Any, **_: Any) -> None:
        requests.append(request.method)

    def counted(what: str, work: Any) -> list[str]:
        requests.clear()
        work()
        return list(requests)

    # A file system of its own, so that only this store's requests are counted, on the wire.
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.connect()
    fs.s3.meta.events.register("before-send.s3", seen)
    store = CubeStore.open(url)
    store.target.fs = fs
    shard = store.storage.pack(make_unit(plan, (0, 1, 1))[0])
    assert counted("a shard", lambda: store.write_shard(0, 1, 1, shard)) == ["PUT"]
    assert counted("again", lambda: store.write_shard(0, 1, 1, shard)) == ["PUT"]
    assert counted("all fill", lambda: store.write_shard(0, 0, 0, np.full_like(shard, np.nan))) == ["DELETE"]
    assert counted("a shard back", lambda: store.read_shard(0, 1, 1)) == ["GET"]
    store.commit([])
    receipt = do_unit(store, plan, (0, 1, 1))
    assert Counter(counted("first commit", lambda: store.commit([receipt]))) == {"GET": 1, "PUT": 1}
    assert counted("next commit", lambda: store.commit([receipt])) == ["PUT"]


@pytest.mark.slow
def test_an_fsspec_mapper_opens_as_well(s3_server: Any) -> None:
    url = f"s3://{s3_server.bucket()}/cube.zarr"
    store = CubeStore.create(url, FakePlan(), storage_options=s3_server.storage_options)
    receipt = do_unit(store, FakePlan(), (0, 1, 1))
    store.commit([receipt])
    store.finalise()
    fs = fsspec.filesystem("s3", **s3_server.storage_options)
    ds = xr.open_zarr(fs.get_mapper(url), mask_and_scale=False)
    assert (ds.status.values == State.OK).sum() == 16
    everything = b"".join(fs.cat(fs.find(url)).values())
    assert b"testing" not in everything


def test_a_failing_write_leaves_nothing_half_written(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CubeStore.create(disk, FakePlan())

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot write .*latent/c/0/0/0/0: No space left on device; ") as caught:
        store.write_shard(0, 0, 0, np.zeros((CHANNELS, 96, 96), np.float16))
    assert "\n" not in str(caught.value)
    assert store.target.keys("latent/c") == []
    assert [p for p in disk.rglob("*") if ".tmp" in p.parts and p.is_file()] == []


# -- create, open, resume


def test_the_same_plan_resumes(url: str) -> None:
    plan = FakePlan()
    store = CubeStore.create(url, plan)
    receipts = [do_unit(store, plan, place) for place in shards_of(plan)[:3]]
    store.commit(receipts)
    before = contents(url, log=True)
    again = CubeStore.create(url, plan)
    assert contents(url, log=True) == before
    assert {r.unit for r in again.receipts() if r.complete} == {r.unit for r in receipts}
    assert CubeStore.stored_plans(url) == (plan.to_json(),)
    assert str(CubeStore.open(url).values) == str(store.values)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            FakePlan(weights="bb"),
            r"another space \([0-9a-f]{16}, asked [0-9a-f]{16}\): weights.sha256 'aa', asked 'bb'",
        ),
        (
            FakePlan(grid=grids_for((15.3, 46.15, 15.7, 46.27), 10, core_px=192, shard_px=768)[0]),
            r"another grid: shape \[288, 192\], asked \[288, ",
        ),
        (FakePlan(grid=grids_for(BOX, 20, core_px=192, shard_px=768)[0]), r"another grid: resolution 10, asked 20"),
        (replace(INT8), r"another storage: storage 'fp16', asked 'int8'"),
        (FakePlan(times=TIMES[:1]), r"other times \(2, asked 1\): 1 only in it, first 2023-08-20T09:57:59Z"),
        (
            FakePlan(times=(TIMES[0], Step(TIMES[1].time, "sentinel-2b", ("S2B_33TWX",)))),
            r"other scenes at 2023-08-20T09:57:59Z: S2B_33TWL; S2B_33TWX",
        ),
        (FakePlan(salt=1), r"another plan"),
    ],
)
def test_another_plan_is_refused_with_the_difference(disk: Path, other: FakePlan, said: str) -> None:
    CubeStore.create(disk, FakePlan())
    before = contents(disk)
    with pytest.raises(StoreError, match=said) as caught:
        CubeStore.create(disk, other)
    assert "\n" not in str(caught.value)
    assert contents(disk) == before


def test_what_is_no_eocube_store_is_left_alone(url: str) -> None:
    target = Objects(url)
    target.put("thesis.txt", b"years of work")
    for attempt in (
        lambda: CubeStore.create(url, FakePlan()),
        lambda: CubeStore.stored_plans(url),
        lambda: create_root(url, ["utm32"], {}),
    ):
        with pytest.raises(StoreError, match=r"exists and is no eocube store \(it holds thesis.txt\)"):
            attempt()
    assert contents(url) == {"thesis.txt": b"years of work"}


def test_another_zarr_store_a_file_and_no_place_at_all(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "other.zarr", attributes={"eocube": 3})
    (tmp_path / "file.zarr").write_text("a file")
    for path, said in (("other.zarr", "not those of an eocube store"), ("file.zarr", "cannot open")):
        with pytest.raises(StoreError, match=said):
            CubeStore.create(tmp_path / path, FakePlan())
    with pytest.raises(StoreError, match=r"cannot write /proc/nowhere/cube\.zarr"):
        CubeStore.create("/proc/nowhere/cube.zarr", FakePlan())
    with pytest.raises(StoreError, match="no eocube store at"):
        CubeStore.open(tmp_path / "nothing.zarr")
    with pytest.raises(StoreError, match="cannot open nothing"):
        CubeStore.open("nothing://x/cube.zarr")
    assert CubeStore.stored_plans(tmp_path / "nothing.zarr") == ()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file.zarr", "other.zarr"]


def test_a_bucket_that_is_not_there_is_one_line(s3_server: Any) -> None:
    with pytest.raises(StoreError, match=r"cannot write s3://no-such-bucket-here/c.zarr/commits/plan.json: ") as caught:
        CubeStore.create("s3://no-such-bucket-here/c.zarr", FakePlan())
    assert "\n" not in str(caught.value)


def test_messages_carry_no_secrets() -> None:
    assert redacted("s3://AKIA:secret@bucket/x?sig=abc&y failed") == "s3://bucket/x failed"
    assert str(Objects("memory://user:pw@host/cube")) == "memory://host/cube"


@pytest.mark.parametrize("at", range(0, 40, 3))
def test_killed_in_the_making_is_made_again(tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, hurt = tmp_path / "a" / "cube.zarr", tmp_path / "b" / "cube.zarr"
    CubeStore.create(whole, FakePlan())
    (tmp_path / "b").mkdir()
    hurt.mkdir()  # there before: so that nothing is cleared away, as when the process is killed
    put, left = Objects.put, iter(range(at))

    def dying(self: Objects, key: str, data: bytes, **how: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        put(self, key, data, **how)

    monkeypatch.setattr(Objects, "put", dying)
    try:
        CubeStore.create(hurt, FakePlan())
    except KeyboardInterrupt:
        assert not (hurt / "zarr.json").exists()
        with pytest.raises(StoreError, match="no eocube store"):
            CubeStore.open(hurt)
    monkeypatch.setattr(Objects, "put", put)
    if at and not (hurt / "zarr.json").exists():
        assert CubeStore.stored_plans(hurt) == (FakePlan().to_json(),)
        with pytest.raises(StoreError, match="half made for another plan"):
            CubeStore.create(hurt, FakePlan(salt=1))
    CubeStore.create(hurt, FakePlan())
    assert contents(hurt) == contents(whole)


def test_a_failed_creation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Objects.put

    def full(self: Objects, key: str, data: bytes, **how: Any) -> None:
        if key.startswith("status"):
            raise StoreError("no space")
        put(self, key, data, **how)

    monkeypatch.setattr(Objects, "put", full)
    with pytest.raises(StoreError, match="no space"):
        CubeStore.create(tmp_path / "new" / "cube.zarr", FakePlan())
    assert list(tmp_path.iterdir()) == []


def test_unfinished_writes_are_cleared_on_resume(disk: Path) -> None:
    CubeStore.create(disk, FakePlan())
    (disk / ".tmp").mkdir(exist_ok=True)
    (disk / ".tmp" / "left").write_bytes(b"half a shard")
    CubeStore.create(disk, FakePlan())
    assert not (disk / ".tmp").exists()


# -- several zones


def test_zones_are_groups_of_a_root(url: str) -> None:
    grids = grids_for((11.9, 48.0, 12.1, 48.1), 10, core_px=192, shard_px=768)
    names = [g.name for g in grids]
    assert names == ["utm32", "utm33"]
    create_root(url, names, {"request": {}})
    create_root(url, names, {"request": {}})
    assert CubeStore.stored_plans(url) == ()
    for grid in grids:
        CubeStore.create(f"{url}/{grid.name}", FakePlan(grid=grid))
    assert CubeStore.stored_plans(url) == tuple(FakePlan(grid=g).to_json() for g in grids)
    with pytest.raises(StoreError, match=r"holds several zones: open one of .*/utm32, .*/utm33"):
        CubeStore.open(url)
    with pytest.raises(StoreError, match="of the zones utm32, utm33, not of utm32"):
        create_root(url, ["utm32"], {})
    with pytest.raises(StoreError, match="several zones"):
        CubeStore.create(url, FakePlan())
    with pytest.raises(StoreError, match="store of one zone"):
        create_root(f"{url}/utm32", names, {})
    fill(CubeStore.open(f"{url}/utm33"), FakePlan(grid=grids[1]))
    finalise_root(url)
    finalise_root(f"{url}/utm33")
    create_root(url, names, {"request": {}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert xr.open_zarr(url).attrs["eocube"]["zones"] == names
        ds = xr.open_zarr(url, group="utm33")
        assert ds.rio.crs.to_epsg() == 32633
        assert ds.attrs == xr.open_zarr(f"{url}/utm33").attrs
        tree = xr.open_datatree(url, engine="zarr")
    assert list(tree.children) == names
    assert tree["utm33/status"].equals(ds.status)


def test_a_zone_that_is_missing_is_named(disk: Path) -> None:
    create_root(disk, ["utm32", "utm33"], {})
    with pytest.raises(StoreError, match="utm32 is missing: run the same command again"):
        finalise_root(disk)
    finalise_root(disk / "nothing")
    assert not (disk / "nothing").exists()


# -- finalise, retry, summaries


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_of_receipts_ends_in_the_same_store(data: st.DataObject, calm_objects: dict[str, bytes]) -> None:
    plan = FakePlan()
    url = f"memory://{uuid.uuid4().hex}/cube.zarr"
    places = shards_of(plan)
    order = data.draw(st.permutations(places + data.draw(st.lists(st.sampled_from(places), max_size=5))))
    store = CubeStore.create(url, plan)
    left = list(order)
    while left:
        size = data.draw(st.integers(1, len(left)))
        # Seconds, as everything about how a run went, must not show in the arrays.
        store.commit([do_unit(store, plan, p, seconds=data.draw(st.floats(0, 9))) for p in left[:size]])
        left = left[size:]
        if data.draw(st.booleans()):
            store.finalise()
        if data.draw(st.booleans()):  # killed, and resumed
            if left:
                do_unit(store, plan, left[0])
            store = CubeStore.create(url, plan)
    store.finalise()
    assert contents(url) == calm_objects
    assert store.verify() == []


@pytest.fixture(scope="module")
def calm_objects() -> dict[str, bytes]:
    """The objects of a run that nothing disturbed."""
    url = f"memory://{uuid.uuid4().hex}/cube.zarr"
    fill(CubeStore.create(url, FakePlan()), FakePlan())
    return contents(url)


def test_finalise_is_idempotent_and_shows_what_is_left(url: str) -> None:
    plan = FakePlan()
    store = CubeStore.create(url, plan)
    place = (0, 1, 1)
    store.commit([do_unit(store, plan, place)])
    summary = store.finalise()
    once = contents(url)
    assert store.finalise() == summary
    assert contents(url) == once
    requested = int(plan.grid.requested_mask.sum())
    done = len(make_unit(plan, place)[1])
    assert summary.counts[State.OK] == done
    assert summary.counts[State.NOT_ATTEMPTED] == 2 * requested - done == summary.retryable
    assert sum(summary.counts.values()) == 2 * plan.grid.requested_mask.size
    ds = xr.open_zarr(url)
    assert {State(k): n for k, n in zip(*np.unique(ds.status, return_counts=True), strict=True)} == {
        k: n for k, n in store.status_counts().items() if n
    }
    assert store.scores().psnr == 30.5 and store.scores().sam == 0.0625 and store.scores().windows == done


def test_finalising_and_verifying_read_each_receipt_once(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = FakePlan()
    store = CubeStore.create(disk, plan)
    units = [r.unit for r in fill(store, plan)]
    read: list[str] = []
    parse = Receipt.from_json

    def counted(line: str | bytes) -> Receipt:
        receipt = parse(line)
        read.append(receipt.unit)
        return receipt

    monkeypatch.setattr(Receipt, "from_json", counted)
    before = store.finalise()
    assert sorted(read) == sorted(units)
    assert store.verify() == []  # once for what follows from the log, once beside the shards
    assert sorted(read) == sorted(3 * units)
    monkeypatch.undo()
    assert before == store.summary()


def test_a_retry_replaces_what_was_there(disk: Path) -> None:
    plan = FakePlan()
    store = CubeStore.create(disk, plan)
    receipts = fill(store, plan)
    failed = {r.unit for r in receipts if any(w.state is State.READ_FAILED for w in r.windows)}
    failures = store.summary().failures
    assert [(f.item, f.asset, f.reason) for f in failures] == [("S2A_33TWL", "red", "HTTP 404")]
    assert failures[0].windows == store.status_counts()[State.READ_FAILED]
    first = next(r for r in receipts if r.unit in failed)
    again = replace(first, windows=tuple(replace(w, state=State.NODATA) for w in first.windows), moments=None)
    again = replace(again, sha256=store.write_shard(again.time, *again.shard, np.full((3, 96, 96), np.nan, "f2"))[1])
    store.commit([again])
    store.finalise()
    (logged,) = (r for r in store.receipts() if r.unit == first.unit)
    assert not any(w.state is State.READ_FAILED for w in logged.windows)
    assert store.verify() == []
    ds = xr.open_zarr(disk)
    row, col = first.shard
    assert (ds.valid[first.time, row * 96 : (row + 1) * 96, col * 96 : (col + 1) * 96] == 0).all()


def test_a_unit_with_a_window_not_attempted_is_not_done(disk: Path) -> None:
    store = CubeStore.create(disk, FakePlan())
    store.commit([Receipt("u", 0, (0, 0), (WindowResult(2, 2, State.NOT_ATTEMPTED),))])
    assert not any(r.complete for r in store.receipts())


# -- verify


@pytest.fixture
def sound(disk: Path) -> Iterator[CubeStore]:
    store = CubeStore.create(disk, FakePlan())
    fill(store, FakePlan())
    assert store.verify() == []
    yield store


def _objects(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_verify_names_a_flipped_bit_in_any_object(sound: CubeStore, disk: Path) -> None:
    keys = _objects(disk)
    shards = [k for k in keys if k.startswith("latent/c")]
    rng = np.random.default_rng(0)
    for key in [k for k in keys if k not in shards] + shards[:4]:
        path = disk / key
        whole = path.read_bytes()
        hurt = bytearray(whole)
        at = int(rng.integers(len(hurt)))
        hurt[at] ^= 0x10
        path.write_bytes(bytes(hurt))
        found = {f"{f.path} {f.what}" for f in sound.verify()}
        assert any(key in f for f in found), (key, at)
        path.unlink()
        if key != "zarr.json":
            assert sound.verify(), key
        path.write_bytes(whole)
    assert sound.verify() == []


def test_verify_compares_states_with_contents(sound: CubeStore, disk: Path) -> None:
    receipt = next(r for r in sound.receipts() if r.shard == (1, 1) and r.time == 0)
    latents = sound.read_shard(0, 1, 1)
    key = "latent/c/0/0/1/1"
    latents[:, :24, :24] = np.nan
    _, sha = sound.write_shard(0, 1, 1, latents)
    sound.commit([replace(receipt, sha256=sha)])
    sound.finalise()
    assert sound.verify() == [Finding(key, "1 ok windows lack values")]
    states = [State.NODATA if i < 2 else w.state for i, w in enumerate(receipt.windows)]
    windows = tuple(replace(w, state=s) for w, s in zip(receipt.windows, states, strict=True))
    sound.commit([replace(receipt, sha256=sha, windows=windows)])
    sound.finalise()
    assert sound.verify() == [Finding(key, "1 windows that are not ok hold values")]
    progress: list[tuple[int, int]] = []
    sound.verify(lambda done, whole: progress.append((done, whole)))
    assert progress[-1] == (len(shards_of(FakePlan())),) * 2


def test_verify_names_shards_the_log_does_not_know(disk: Path) -> None:
    store = CubeStore.create(disk, FakePlan())
    store.write_shard(0, 1, 1, np.ones((CHANNELS, 96, 96), np.float16))
    assert [f.path for f in store.verify()] == ["latent/c/0/0/1/1"]
    store.commit([Receipt("u", 0, (1, 1), (WindowResult(4, 4, State.NODATA),))])
    store.finalise()
    assert [f.what for f in store.verify()] == ["should not be there: its unit wrote nothing"]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["float16", "int8", "uint8"]))
@settings(max_examples=20, deadline=None)
def test_the_codec_round_trips(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    codec = ShardCodec((1, 2, 12, 12), (1, 2, 6, 6), dtype, 0, keep_empty=False)
    block = rng.integers(0, 100, (1, 2, 12, 12)).astype(dtype)
    data = codec.encode(block)
    assert data is not None
    np.testing.assert_array_equal(codec.decode(data), block)
    edge = codec.encode(block[..., :5])
    assert edge is not None
    np.testing.assert_array_equal(codec.decode(edge)[..., :5], block[..., :5])
    assert not codec.decode(edge)[..., 5:].any()
    hurt = bytearray(data)
    hurt[int(rng.integers(len(hurt)))] ^= 1 << int(rng.integers(8))
    try:
        again = codec.decode(bytes(hurt))
    except (ValueError, RuntimeError):
        return
    np.testing.assert_array_equal(again, block)  # a bit that means nothing, as zstd's frame header has
