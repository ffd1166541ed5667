"""A real server on a real cube: tiles are what decoding and GDAL give, points and downloads say the same."""

from __future__ import annotations

import io
import math
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from rasterio.warp import Resampling, reproject, transform_bounds

import eocube
from eocube.cube.export import export
from eocube.cube.overview import make_overviews
from eocube.serve import app
from eocube.serve.app import Serving
from eocube.serve.cube import EQUATOR, open_cubes
from eocube.serve.layers import LEAST, Layers
from eocube.serve.memory import BASE, DRAWING, most_bytes, tile_bytes, windows_of_a_tile
from eocube.serve.raster import TilePlace
from eocube.serve.sampling import Sample
from eocube.serve.tiles import Ask
from eocube.store.existing import create_root, finalise_root
from eocube.store.receipts import STATES, State
from tests.conftest import S3Server
from tests.eocube.cubes import Made, held_back, make_plan, make_store, make_weights
from tests.eocube.serve.running import Running, running, tile_at

BAD = {(0, 1, 1): State.CLOUDY, (1, 0, 2): State.READ_FAILED}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("serve") / "tiny.safetensors")


@pytest.fixture(scope="module")
def made(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two dates over two by three shards, two windows of which are not ok, with holes in the sources."""
    plan = make_plan(weights)
    stride = plan.grid.lattice.stride
    missing = np.zeros([n * stride for n in plan.grid.shape], np.bool_)
    missing[60:90, 130:190] = True
    return make_store(str(tmp_path_factory.mktemp("serve") / "a.zarr"), plan, BAD, missing=missing)


@pytest.fixture(scope="module")
def server(made: Made) -> Iterator[Running]:
    with running(open_cubes([made.url])) as one:
        yield one


def middle(server: Running) -> tuple[float, float]:
    west, south, east, north = server.get("/api/cubes").json()["cubes"][0]["bounds"]
    return (west + east) / 2, (south + north) / 2


def warped(pixels: np.ndarray, left: float, top: float, z: int, x: int, y: int, size: int = 256) -> np.ndarray:
    """GDAL's own bilinear warp of (bands, H, W) pixels of 10 m in zone 32, written apart from the server's."""
    side = EQUATOR / 2**z
    west, north = x * side - EQUATOR / 2, EQUATOR / 2 - y * side
    out = np.full((len(pixels), size, size), np.nan, np.float32)
    reproject(
        pixels, out, src_transform=rasterio.transform.from_origin(left, top, 10, 10), src_crs="EPSG:32632",
        src_nodata=np.nan, dst_crs="EPSG:3857", dst_nodata=np.nan, resampling=Resampling.bilinear, tolerance=0,
        dst_transform=rasterio.transform.from_bounds(west, north - side, west + side, north, size, size),
    )  # fmt: skip
    return out


def test_the_cube_is_described(server: Running, made: Made) -> None:
    found = server.get("/api/cubes").json()
    (cube,) = found["cubes"]
    assert cube["zone"] == "utm32" and cube["epsg"] == 32632 and cube["resolution"] == 10
    assert [t["index"] for t in cube["times"]] == [0, 1] and cube["times"][0]["time"] == "2023-08-15T09:57:57Z"
    assert [t["windows"] - t["ok"] for t in cube["times"]] == [1, 1]
    assert [b["name"] for b in cube["bands"]] == ["B02", "B03", "B04", "B08"]
    ids = [layer["id"] for layer in cube["layers"]]
    assert ids == [
        "true-colour",
        "infrared",
        "rgb",
        "band",
        "ndvi",
        "ndwi",
        "pca",
        "difference",
        "status",
        "psnr",
        "sam",
        "cloud",
    ]
    status = next(layer for layer in cube["layers"] if layer["id"] == "status")
    assert [c["label"] for c in status["legend"]["classes"]] == [s.replace("_", " ") for s in STATES]
    west, south, east, north = cube["bounds"]
    box = made.plan.request["bbox"]
    assert west <= box[0] and south <= box[1] and east >= box[2] and north >= box[3]


@pytest.mark.parametrize("z", [14, 15])
@pytest.mark.parametrize("time", [0, 1])
def test_a_tile_is_what_decoding_and_gdal_give(server: Running, made: Made, z: int, time: int) -> None:
    decoded = eocube.open(made.url).eocube.decode(["B08", "B04", "B03"]).isel(time=time).compute()
    x, y = tile_at(*middle(server), z)
    low, high = -0.2, 0.5
    got = server.get(f"/tiles/0/rgb/{time}/{z}/{x}/{y}.png?bands=B08,B04,B03&vmin={low}&vmax={high}").pixels()
    want = warped(decoded.values, float(decoded.x[0]) - 5, float(decoded.y[0]) + 5, z, x, y)
    there = np.isfinite(want).all(axis=0)
    assert 0.2 < there.mean() <= 1
    agree = there == (got[3] > 0)
    assert agree.mean() > 0.999  # GDAL approximates the map between grids, to 0.05 of a pixel
    both = there & (got[3] > 0)
    shades = np.clip((want - low) / (high - low), 0, 1) * 255
    off = np.abs(got[:3].astype(float) - shades)[:, both]
    assert np.percentile(off, 99) <= 1.0 and off.max() < 12


def test_an_index_and_a_difference_are_those_of_the_decoded_bands(server: Running, made: Made) -> None:
    pixels = eocube.open(made.url).eocube.decode(["B08", "B04"]).compute()
    shown = server.service.of("0")
    box = shown.cube.frame.bounds
    near, red = (np.maximum(pixels.values[:, k], LEAST) for k in (0, 1))
    ndvi = (near - red) / (near + red)
    row0, col0, row1, col1 = shown.cube.frame.extent
    for ask, want in ((Ask("ndvi", 1), ndvi[1]), (Ask("difference", 1, other=0, of="ndvi"), ndvi[1] - ndvi[0])):
        raster = shown.ground(ask, box)
        assert raster is not None
        assert raster.data.shape == (1, (row1 - row0) * 8, (col1 - col0) * 8)
        assert (np.isfinite(raster.data[0]) == np.isfinite(want)).all()
        # The ratio of two small numbers, kept as float16.
        assert np.nanpercentile(np.abs(raster.data[0] - want), 95) < 0.02
    x, y = tile_at(*middle(server), 14)
    assert server.get(f"/tiles/0/difference/1/14/{x}/{y}.png?other=0").pixels()[3].any()
    assert server.get(f"/tiles/0/difference/1/14/{x}/{y}.png").status == 400


def test_every_layer_draws_and_a_retina_tile_is_the_same_ground(server: Running) -> None:
    (cube,) = server.get("/api/cubes").json()["cubes"]
    x, y = tile_at(*middle(server), 14)
    for layer in cube["layers"]:
        query = {"rgb": "?bands=B08,B04,B03", "band": "?bands=B04", "difference": "?other=1"}.get(layer["id"], "?")
        found = server.get(f"/tiles/0/{layer['id']}/0/14/{x}/{y}.png{query}")
        assert found.status == 200 and found.headers["content-type"] == "image/png", layer["id"]
        pixels = found.pixels()
        empty = layer["id"] in ("psnr", "sam", "cloud")  # nothing was scored, no cloud is known
        assert pixels.shape == (4, 256, 256) and (pixels[3].max() == (0 if empty else 255)), layer["id"]
    small = server.get(f"/tiles/0/status/0/14/{x}/{y}.png").pixels()
    large = server.get(f"/tiles/0/status/0/14/{x}/{y}.png?scale=2").pixels()
    assert large.shape == (4, 512, 512) and (large[:, ::2, ::2] == small).mean() > 0.98
    colours = {tuple(c) for c in small[:3, small[3] > 0].T}
    assert colours == {(0x4C, 0x9F, 0x70), (0x8F, 0xB8, 0xDE)}  # ok and cloudy


def test_the_stretch_is_one_for_all_tiles_and_dates(server: Running) -> None:
    first, second = (server.get(f"/api/stretch/0/true-colour/{t}").json() for t in (0, 1))
    assert first == second and len(first["vmin"]) == 3 and first["vmin"][0] < first["vmax"][0]
    fixed = server.get("/api/stretch/0/rgb/0?bands=B02,B03,B04&stretch=fixed").json()
    assert fixed["vmin"] == [0.0] * 3 and fixed["vmax"] == [0.35] * 3
    assert server.get("/api/stretch/0/ndvi/0?vmin=0&vmax=0.5").json()["vmax"] == [0.5]
    assert len(server.get("/api/colormap/rdylgn").json()["colours"]) == 32
    assert server.get("/api/colormap/nope").status == 404


def test_clouds_in_the_sample_leave_the_ground_as_bright_as_it_was(made: Made) -> None:
    (cube,) = open_cubes([made.url])
    rng = np.random.default_rng(0)
    ground = rng.uniform([[0.03], [0.05], [0.04], [0.25]], [[0.06], [0.09], [0.10], [0.45]], (4, 8000))
    ground = ground.astype(np.float32)
    clouds = rng.uniform(0.6, 1.0, (4, 1000)).astype(np.float32)
    drawn = Sample(cube, None)
    for layer, bands in (("infrared", ("B08", "B04", "B03")), ("band", ("B08",))):
        found = []
        for pixels in (ground, np.concatenate([ground, clouds], axis=1)):
            drawn._seen = (pixels, None)  # type: ignore[assignment]
            found.append(drawn.stretch(cube.layers[layer], bands).vmax)
        assert found[1] == pytest.approx(found[0], rel=0.02) and found[0][0] == pytest.approx(0.446, abs=0.01)


def test_a_point_has_its_pixel_through_time(server: Running, made: Made) -> None:
    lon, lat = middle(server)
    lat -= 0.004  # beside the hole in the sources
    found = server.get(f"/api/point/0?lon={lon}&lat={lat}").json()
    ds = eocube.open(made.url)
    x, y = Transformer.from_crs(4326, 32632, always_xy=True).transform(lon, lat)
    pixels = ds.eocube.decode().sel(x=x, y=y, method="nearest").compute()
    for one in found["times"]:
        want = pixels.isel(time=one["index"])
        assert one["status"] == "ok" and one["source"] is None
        for band in ("B02", "B03", "B04", "B08"):
            assert one["decoded"][band] == pytest.approx(float(want.sel(band=band)), abs=5e-4)
    near, red = (found["times"][0]["decoded"][b] for b in ("B08", "B04"))
    near, red = max(near, LEAST), max(red, LEAST)
    assert found["indices"]["ndvi"][0] == pytest.approx((near - red) / (near + red), abs=1e-4)
    # A window that is not ok has its state and no numbers.
    frame = server.service.of("0").cube.frame
    west, north = frame.left + 1.5 * frame.core_m, frame.top - 1.5 * frame.core_m
    lon, lat = Transformer.from_crs(32632, 4326, always_xy=True).transform(west, north)
    first = server.get(f"/api/point/0?lon={lon}&lat={lat}").json()["times"][0]
    assert first["status"] == "cloudy" and set(first["decoded"].values()) == {None}


def test_a_download_is_what_export_writes(server: Running, made: Made, tmp_path: Path) -> None:
    lon, lat = middle(server)
    box = f"{lon - 0.004},{lat - 0.003},{lon + 0.004},{lat + 0.003}"
    found = server.get(f"/download/0/true-colour/1.tif?bbox={box}&what=values")
    assert (
        found.headers["content-type"] == "image/tiff"
        and "a_true-colour_20230820" in found.headers["content-disposition"]
    )
    export(
        made.url,
        str(tmp_path / "want.tif"),
        bands=["B04", "B03", "B02"],
        time=1,
        bbox=tuple(map(float, box.split(","))),
    )
    with rasterio.open(io.BytesIO(found.body)) as got, rasterio.open(tmp_path / "want.tif") as want:
        assert got.descriptions == ("B04", "B03", "B02") and np.isnan(got.nodata) and got.crs.to_epsg() == 32632
        assert got.transform == want.transform and got.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_array_equal(got.read(), want.read())
    ndvi = server.get(f"/download/0/ndvi/1.tif?bbox={box}")
    picture = server.get(f"/download/0/true-colour/1.tif?bbox={box}&what=picture")
    with rasterio.open(io.BytesIO(ndvi.body)) as got, rasterio.open(io.BytesIO(picture.body)) as seen:
        assert got.descriptions == ("ndvi",) and -1 <= np.nanmin(got.read()) <= np.nanmax(got.read()) <= 1
        assert seen.dtypes == ("uint8",) * 4 and abs(seen.width - got.width) <= 1
        bounds = transform_bounds("EPSG:4326", seen.crs, *map(float, box.split(",")))
        assert seen.bounds.left <= bounds[0] and seen.bounds.top >= bounds[3]
    for layer, count in (("pca", 3), ("status", 1), ("difference", 1)):
        got = server.get(f"/download/0/{layer}/0.tif?other=1")
        with rasterio.open(io.BytesIO(got.body)) as file:
            assert file.count == count and file.crs.to_epsg() == 32632, layer


def test_far_out_a_tile_is_a_preview_of_every_cell(server: Running) -> None:
    x, y = tile_at(*middle(server), 11)
    near = server.get(f"/tiles/0/true-colour/1/11/{x}/{y}.png").pixels()
    assert near[3].any()
    preview = server.service.of("0").sample.preview
    assert np.isfinite(preview.error).all()
    world = server.get("/tiles/0/true-colour/1/0/0/0.png")
    assert world.status == 200


def test_cubes_of_several_zones_are_served_each(weights: Path, tmp_path: Path) -> None:
    plan = make_plan(weights)
    root = tmp_path / "both.zarr"
    create_root(str(root), ["utm32", "utm33"], {})
    for zone in ("utm32", "utm33"):
        make_store(str(root / zone), plan)
    finalise_root(str(root))
    with running(open_cubes([str(root), str(root / "utm32")])) as server:
        cubes = server.get("/api/cubes").json()["cubes"]
        assert [c["id"] for c in cubes] == ["0", "1", "2"] and cubes[0]["name"] == "both.zarr utm32"
        x, y = tile_at(*middle(server), 14)
        assert server.get(f"/tiles/1/true-colour/0/14/{x}/{y}.png").pixels()[3].any()
        assert server.get(f"/tiles/3/true-colour/0/14/{x}/{y}.png").status == 404


def test_radar_is_shown_in_decibels(weights: Path, tmp_path: Path) -> None:
    made = make_store(str(tmp_path / "radar.zarr"), make_plan(weights, "S1RTC"))
    with running(open_cubes([made.url])) as server:
        (cube,) = server.get("/api/cubes").json()["cubes"]
        assert [layer["id"] for layer in cube["layers"]][:2] == ["vv-vh", "band"]
        assert cube["bands"][0]["unit"] == "dB" and cube["bands"][0]["wavelength_um"] is None
        x, y = tile_at(*middle(server), 14)
        for path in ("vv-vh/0", "band/0"):
            assert server.get(f"/tiles/0/{path}/14/{x}/{y}.png?bands=VV").pixels()[3].any()
        assert server.get("/api/stretch/0/band/0?bands=VV&stretch=fixed").json()["vmin"] == [-25.0]


def test_what_is_not_decoded_shows_its_values_and_states(made: Made) -> None:
    (cube,) = open_cubes([made.url])
    info = replace(cube.info, product=replace(cube.info.product, scores=()))
    bare = replace(cube, info=info, layers=Layers.of(info, ("status", "cloud_percent")))
    with running((bare,)) as server:
        (found,) = server.get("/api/cubes").json()["cubes"]
        assert [layer["id"] for layer in found["layers"]] == ["pca", "status", "cloud"] and not found["decodes"]
        lon, lat = middle(server)
        x, y = tile_at(lon, lat, 14)
        assert server.get(f"/tiles/0/pca/1/14/{x}/{y}.png").pixels()[3].any()
        said = server.get(f"/tiles/0/true-colour/1/14/{x}/{y}.png")
        assert said.status == 400 and "no layer" in said.json()["error"]
        point = server.get(f"/api/point/0?lon={lon}&lat={lat}").json()
        assert set(point["times"][0]["decoded"].values()) == {None}


@pytest.mark.slow
def test_a_cube_in_a_bucket_is_served(weights: Path, s3_server: S3Server) -> None:
    url = f"s3://{s3_server.bucket()}/a.zarr"
    made = make_store(url, make_plan(weights))
    with running(open_cubes([made.url], storage_options=s3_server.storage_options)) as server:
        x, y = tile_at(*middle(server), 14)
        assert server.get(f"/tiles/0/true-colour/0/14/{x}/{y}.png").pixels()[3].any()


def test_what_is_kept_stays_within_the_memory_given(made: Made) -> None:
    with running(open_cubes([made.url]), Serving(memory=1_000_000)) as server:
        lon, lat = middle(server)
        for z in (13, 14, 15):
            x, y = tile_at(lon, lat, z)
            for time in (0, 1):
                assert server.get(f"/tiles/0/true-colour/{time}/{z}/{x}/{y}.png").status == 200
        service = server.service
        assert service.kept.bytes <= service.kept.limit and service.pictures.bytes <= service.pictures.limit
        assert service.kept.limit + service.pictures.limit <= 1_000_000


def test_eight_who_ask_for_one_tile_have_each_window_decoded_once(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from eocube.serve import decoding

    decoded: list[bytes] = []
    decode_one = decoding.decode_one

    def counted(spec: object, values: np.ndarray) -> np.ndarray:
        decoded.append(values.tobytes())
        return decode_one(spec, values)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "decode_one", counted)
    with running(open_cubes([made.url])) as server, ThreadPoolExecutor(8) as clients:
        x, y = tile_at(*middle(server), 14)
        path = f"/tiles/0/true-colour/1/14/{x}/{y}.png?stretch=fixed"
        answers = list(clients.map(lambda _: server.get(path), range(8)))
        assert len({answer.body for answer in answers}) == 1 and answers[0].status == 200
        assert len(decoded) == len(set(decoded)) > 0
        once = len(decoded)
        assert server.get(path).body == answers[0].body
        assert server.get(path.replace("true-colour", "infrared")).status == 200
        assert len(decoded) == once


def test_the_memory_is_bounded_by_its_formula(made: Made) -> None:
    cubes = open_cubes([made.url])
    core, halo, cell, bands = 48, 16, 8, 4
    along = 256 * 40 / 10
    windows = (math.ceil((along + 2 * halo) / core) + 1) ** 2
    assert windows_of_a_tile(cubes[0]) == windows
    tile = windows * (core + 2 * halo) ** 2 * (2 * bands + 12) + (along + 4 * cell) ** 2 * 36
    assert tile_bytes(cubes[0]) == int(tile)
    least = most_bytes(cubes, 0, 1)
    assert most_bytes(cubes, 10**9, 1) == least + 10**9 > BASE + DRAWING * tile
    # No tile that is decoded has more windows than the formula says, whatever its zoom and size.
    with running(cubes) as server:
        shown = server.service.of("0")
        for z in range(10, 18):
            for size in (256, 512):
                place = TilePlace(z, *tile_at(*middle(server), z), size)
                if not shown._is_coarse(place):
                    assert shown.decoding is not None
                    assert shown.decoding.windows_of(place.bounds_in(32632)) <= windows


def test_a_client_that_leaves_ends_no_other_and_says_nothing(
    made: Made, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from eocube.serve import decoding

    hold, begun, decode_one = threading.Event(), threading.Event(), decoding.decode_one

    def held(spec: object, values: np.ndarray) -> np.ndarray:
        begun.set()
        hold.wait(120)
        return decode_one(spec, values)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "decode_one", held)
    with running(open_cubes([made.url]), Serving(memory=200_000_000, threads=1)) as server:
        x, y = tile_at(*middle(server), 14)
        path = f"/tiles/0/true-colour/1/14/{x}/{y}.png?stretch=fixed"
        leaver = socket.create_connection(("127.0.0.1", server.port))
        leaver.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        begun.wait(120)
        assert len(server.service.pool) > 1
        leaver.close()
        while len(server.service.pool) > 1:  # what had not begun is dropped
            time.sleep(0.01)
        with ThreadPoolExecutor(1) as stays:
            answer = stays.submit(server.get, path)
            hold.set()
            assert answer.result(120).status == 200
    assert capfd.readouterr().err == ""


def test_a_cube_that_grows_is_shown_as_it_is_now(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "LOOK", 0.0)
    store, receipts = held_back(made, tmp_path / "b.zarr")
    first = [r for r in receipts if r.time == 0]
    store.commit(first)
    store.finalise()
    with running(open_cubes([store.target.url])) as server, running(open_cubes([made.url])) as whole:
        x, y = tile_at(*middle(server), 14)
        path = f"/tiles/0/true-colour/1/14/{x}/{y}.png?stretch=fixed"
        (before,) = server.get("/api/cubes").json()["cubes"]
        assert [t["ok"] > 0 for t in before["times"]] == [True, False]
        assert not server.get(path).pixels()[3].any()
        assert server.get("/api/cubes").json()["cubes"] == [before], "nothing was written: nothing is opened anew"
        shown = server.service.of("0")

        store.commit([r for r in receipts if r.time == 1])
        store.finalise()
        (after,) = server.get("/api/cubes").json()["cubes"]
        assert after["version"] != before["version"] and after["id"] == before["id"]
        assert after["times"] == whole.get("/api/cubes").json()["cubes"][0]["times"]
        assert server.get(path).body == whole.get(path).body
        assert server.service.of("0") is not shown

        list(make_overviews(store.target.url))
        (seen,) = server.get("/api/cubes").json()["cubes"]
        assert seen["has_overview"] and not after["has_overview"] and seen["version"] != after["version"]

        # A store that is gone for a while is shown as it was.
        away = tmp_path / "away.zarr"
        (tmp_path / "b.zarr").rename(away)
        assert server.get("/api/cubes").json()["cubes"] == [seen]
        away.rename(tmp_path / "b.zarr")
        assert server.get("/api/cubes").json()["cubes"] == [seen]
    assert "Traceback" not in capfd.readouterr().err


def test_who_asks_for_tiles_alone_sees_growth_too(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "GLANCE", 0.0)
    store, receipts = held_back(made, tmp_path / "b.zarr")
    with running(open_cubes([store.target.url])) as server:
        x, y = tile_at(*middle(server), 14)
        path = f"/tiles/0/true-colour/1/14/{x}/{y}.png?stretch=fixed"
        assert not server.get(path).pixels()[3].any()
        store.commit(receipts)
        store.finalise()
        end = time.monotonic() + 60
        while not server.get(path).pixels()[3].any():
            assert time.monotonic() < end, "it was never seen"
            time.sleep(0.1)
