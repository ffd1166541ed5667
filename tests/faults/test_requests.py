"""Single requests over a broken wire: targets on S3, and rasters over HTTP, each against a proxy that breaks them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from eocube.errors import SourceError, StoreError
from eocube.ground.grid import Lattice, Window
from eocube.net.network import Network, NetworkLimits
from eocube.net.objects import Objects
from eocube.read.reader import WindowPixels, WindowReader
from eocube.scenes.scene import BandSource, Scene
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from eocube.store.store import CubeStore
from tests.eocube.rasters import now
from tests.faults import killing
from tests.faults.cog_server import CogServer
from tests.faults.conftest import ProxiedS3, ProxyFactory
from tests.faults.proxy import LIES, FaultProxy, Faults, Kind

pytestmark = pytest.mark.faults

QUICK = NetworkLimits(first_wait=0.01, first_pause=0.05, longest_pause=0.1, patience=30)
LATTICE, WINDOW = Lattice(32633, 10), Window(-2760, 209)
SENSOR = get_sensor("S2L2A").subset(["B02"])


def target(s3: ProxiedS3, network: Network | None = None) -> Objects:
    return Objects(f"s3://{s3.bucket}/cube.zarr", s3.options, network or Network(QUICK))


def once(kind: Kind, method: str) -> Faults:
    """The first try of every request of a method breaks, its retries do not."""
    met: set[str] = set()

    def only(asked: str, path: str) -> bool:
        if asked != method or path in met:
            return False
        met.add(path)
        return True

    return Faults(share=1.0, kinds=(kind,), delay_s=0.01, only=only)


@pytest.mark.parametrize("kind", LIES)
def test_every_fault_is_survived_by_every_request(s3_behind_proxy: ProxiedS3, kind: Kind) -> None:
    s3, data = s3_behind_proxy, bytes(range(256)) * 64
    network = Network(QUICK)
    there = target(s3, network)
    for method in ("PUT", "GET", "DELETE"):
        s3.proxy.faults = once(kind, method)
        there.put("a/b", data)
        assert there.get("a/b") == data
        assert there.get("a/none") is None
        assert there.keys("a") == ["a/b"]
        assert there.names() == ["a"]
        there.delete("a/b")
        assert there.get("a/b") is None
    assert s3.proxy.met[kind] >= 3
    if kind in ("503", "429"):  # aiohttp itself goes over a cut connection once
        assert network.retries.total() >= 3


def test_a_lost_reply_does_not_make_ones_own_create_anothers(s3_behind_proxy: ProxiedS3) -> None:
    s3 = s3_behind_proxy
    there = target(s3)
    s3.proxy.faults = once("lost", "PUT")
    assert there.create("mine", b"by me")
    assert s3.proxy.count("PUT", "/mine") >= 2, "its retry met what the first had left"
    assert not there.create("mine", b"by another")
    assert there.get("mine") == b"by me"


def test_arrays_that_a_store_reads_of_itself_are_asked_for_by_the_same_rules(s3_behind_proxy: ProxiedS3) -> None:
    s3, plan = s3_behind_proxy, killing.plan_of((11.500, 48.100, 11.518, 48.112), [killing.scene(10)])
    url = f"s3://{s3.bucket}/cube.zarr"
    CubeStore.create(url, plan, storage_options=s3.direct)
    store = CubeStore.open(url, storage_options=s3.options)
    store.target.network = network = Network(QUICK)
    s3.proxy.faults = once("503", "GET")
    s3.proxy.forget()
    assert (store.requested == plan.grid.requested_mask).all()
    # The list and each object: failed once, tried again once, and by nobody but the network.
    assert network.retries.total() == 3 and s3.proxy.count("GET") == 6


def test_a_target_that_never_answers_is_an_error_after_bounded_tries(s3_behind_proxy: ProxiedS3) -> None:
    s3 = s3_behind_proxy
    s3.proxy.down(10**6)
    with pytest.raises(StoreError, match="reduce your request rate"):
        target(s3).put("a", b"x")
    assert len(s3.proxy.seen) == QUICK.tries


def test_an_outage_pauses_the_writers_and_loses_nothing(s3_behind_proxy: ProxiedS3) -> None:
    s3, said = s3_behind_proxy, list[str]()
    there = target(s3, Network(QUICK, say=said.append))
    there.put("first", b"x")
    s3.proxy.down(30)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: there.put(f"k{k}", str(k).encode()), range(40)))
    s3.proxy.down(0)
    assert [there.get(f"k{k}") for k in range(40)] == [str(k).encode() for k in range(40)]
    assert any("the run pauses" in line for line in said) and "answers again" in said[-1]
    refused = s3.proxy.met["503"]
    assert refused <= 30, "eight writers alone would have made 40 x 6 requests into the outage"


# -- sources


@pytest.fixture(scope="module")
def rasters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pixels without a single nodata as a COG, tiled without compression, and in strips."""
    folder = tmp_path_factory.mktemp("rasters")
    left, _, _, top = LATTICE.window_bounds(WINDOW)
    values = np.random.default_rng(0).integers(1, 9000, (900, 900)).astype(np.uint16)
    common = {
        "width": 900, "height": 900, "count": 1, "dtype": "uint16", "nodata": 0, "crs": "EPSG:32633",
        "transform": Affine(10, 0, left - 2000, 0, -10, top + 2000),
    }  # fmt: skip
    for name, how in {
        "cog": {"driver": "COG", "compress": "deflate"},
        "plain": {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256},
        "strips": {"driver": "GTiff", "tiled": False},
    }.items():
        with rasterio.open(folder / f"{name}.tif", "w", **common, **how) as out:
            out.write(values, 1)
    return folder


@pytest.fixture
def sources(rasters: Path, fault_proxy: ProxyFactory) -> Iterator[FaultProxy]:
    with CogServer(rasters) as server:
        yield fault_proxy(server.url)


def scene(href: str) -> Scene:
    source = BandSource("B02", "blue", href, 1, Radiometry(1e-4, -0.1, 0.0, "dn", "test"))
    return Scene("item-1", "c", "2023-08-15T09:57:57Z", "S2A", "g", "2023-08-15T09:57:57Z", 32633, (-180, -80, 180, 84),
                 None, None, None, (source,), None, None)  # fmt: skip


def read(href: str, network: Network, retries: int = 5) -> WindowPixels:
    with WindowReader(SENSOR, LATTICE, retries=retries, network=network) as reader:
        return reader.read([scene(href)], WINDOW)


@pytest.mark.parametrize("limit", [None, 1e6], ids=["gdal", "fsspec"])
@pytest.mark.parametrize("name", ["cog", "plain", "strips"])
def test_a_broken_answer_is_never_nodata(sources: FaultProxy, rasters: Path, name: str, limit: float | None) -> None:
    truth = read(str(rasters / f"{name}.tif"), Network()).groups[10]
    assert truth.all()
    right = failed = 0
    # 503s and their like would only make GDAL wait; these are the faults that leave half an answer.
    kinds: tuple[Kind, ...] = ("cut", "truncated", "long", "short")
    for seed in range(24):
        sources.faults = Faults(share=0.4, seed=seed, kinds=kinds)
        sources.forget()
        network = Network(NetworkLimits(first_wait=0.001, requests_per_second=limit))
        try:
            pixels = read(f"{sources.endpoint}/{name}.tif?{seed}", network, retries=0)
        except SourceError as error:
            assert "item-1" in str(error) and "blue" in str(error)
            failed += 1
            continue
        right += 1
        assert pixels.valid_percent == 100
        np.testing.assert_array_equal(pixels.groups[10], truth)
    assert right and (failed or limit is not None)


def test_a_read_over_a_rough_wire_gives_the_same_pixels(sources: FaultProxy, rasters: Path) -> None:
    truth = read(str(rasters / "cog.tif"), Network()).groups[10]
    sources.faults = Faults(share=0.25, seed=3, kinds=("reset", "cut", "truncated", "long", "short", "slow"))
    for turn in range(6):
        href = f"{sources.endpoint}/cog.tif?{turn}"
        np.testing.assert_array_equal(read(href, Network(QUICK)).groups[10], truth)
    assert sources.met.total() >= 3


@pytest.mark.parametrize("limit", [None, 1e6], ids=["gdal", "fsspec"])
@pytest.mark.parametrize("name", ["cog", "plain", "strips"])
def test_a_broken_answer_to_a_shard_leaves_windows_out_and_is_never_nodata(
    sources: FaultProxy, rasters: Path, name: str, limit: float | None
) -> None:
    """Many ranges at once, merged: whatever of them breaks, windows are right or not given at all."""
    windows = [Window(WINDOW.row + row, WINDOW.col + col) for row in (0, 1) for col in (0, 1)]
    with WindowReader(SENSOR, LATTICE) as reader:
        truth = {w: reader.read([scene(str(rasters / f"{name}.tif"))], w).groups[10] for w in windows}
    kinds: tuple[Kind, ...] = ("cut", "truncated", "long", "short")
    right = 0
    for seed in range(16):
        sources.faults = Faults(share=0.3, seed=seed, kinds=kinds)
        sources.forget()
        network = Network(NetworkLimits(first_wait=0.001, requests_per_second=limit))
        here = scene(f"{sources.endpoint}/{name}.tif?{seed}")
        with WindowReader(SENSOR, LATTICE, retries=0, network=network) as reader:
            found = reader.read_shard({window: [here] for window in windows}, None, now)
        for window, (_, pixels) in found.items():
            assert pixels is not None and pixels.valid_percent == 100
            np.testing.assert_array_equal(pixels.groups[10], truth[window])
        right += len(found)
    assert right


def test_with_a_limit_every_request_of_a_read_is_counted_out(
    sources: FaultProxy, rasters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, lock, enter = [0], threading.Lock(), Network._enter

    def counting(self: Network, at: object, request: bool, patient: bool) -> None:
        with lock:
            counted[0] += request
        enter(self, at, request, patient)  # type: ignore[arg-type]

    monkeypatch.setattr(Network, "_enter", counting)
    network = Network(NetworkLimits(requests_per_second=1e6))
    pixels = read(f"{sources.endpoint}/cog.tif", network)
    np.testing.assert_array_equal(pixels.groups[10], read(str(rasters / "cog.tif"), Network()).groups[10])
    assert 0 < len(sources.seen) <= counted[0]
