"""Sampling at points: the values that decode() and latents() have there, one read an object, a reason with each row."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
import torch
import xarray as xr
import zarr
from pyproj import Transformer

import eocube
from eocube.cli import main
from eocube.cube.points import points_from
from eocube.cube.sample import Wanted
from eocube.cube.sample_zones import sample_url
from eocube.errors import InputError
from eocube.products import decoder_cache
from eocube.store.receipts import State
from tests.eocube.cubes import BBOX, Made, make_plan, make_store, make_weights

BANDS = ["B04", "B08"]
CLOUDY = (0, 1, 2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two times, one window cloudy at the first, a stripe of pixels that no source has."""
    folder = tmp_path_factory.mktemp("sample")
    plan = make_plan(make_weights(folder / "tiny.safetensors"))
    gone = np.zeros(tuple(n * 8 for n in plan.grid.shape), np.bool_)
    gone[:, plan.grid.extent[1] * 8 + 100 : plan.grid.extent[1] * 8 + 109] = True
    return make_store(str(folder / "cube.zarr"), plan, {CLOUDY: State.CLOUDY}, missing=gone)


@pytest.fixture(scope="module")
def ds(made: Made) -> xr.Dataset:
    return eocube.open(made.url)


@pytest.fixture(scope="module")
def places(ds: xr.Dataset) -> np.ndarray:
    """(N, 2) random eastings and northings over the cube and around it."""
    x, y = ds.x.values, ds.y.values
    rng = np.random.default_rng(3)
    return np.stack([rng.uniform(x[0] - 200, x[-1] + 200, 400), rng.uniform(y[-1] - 200, y[0] + 200, 400)], 1)


def at(array: xr.DataArray, places: np.ndarray, band: str) -> np.ndarray:
    """(time, N, band) the pixel that holds each place; NaN off the array."""
    half = abs(float(array.x[1] - array.x[0])) / 2
    x, y = (xr.DataArray(places[:, k], dims="p") for k in (0, 1))
    found = array.sel(x=x, y=y, method="nearest").transpose("time", "p", band).values.copy()
    off = (x < array.x.min() - half) | (x > array.x.max() + half) | (y < array.y.min() - half)
    found[:, (off | (y > array.y.max() + half)).values] = np.nan
    return found


def test_rows_are_what_decode_and_latents_have_there(ds: xr.Dataset, places: np.ndarray) -> None:
    table = ds.eocube.sample(places, "both", bands=BANDS, crs=ds.spatial_ref.attrs["crs_wkt"])
    times, n = ds.sizes["time"], len(places)
    assert len(table) == times * n and (table.point.values.reshape(times, n) == np.arange(n)).all()
    pixels = at(ds.eocube.decode(bands=BANDS).compute(), places, "band")
    np.testing.assert_array_equal(table[BANDS].values.reshape(times, n, -1), pixels)
    cells = at(ds.eocube.latents().compute(), places, "channel")
    np.testing.assert_array_equal(table.filter(regex="^z").values.reshape(times, n, -1), cells)
    # Never NaN without a reason, and no reason where there is a value.
    assert (np.isfinite(table.B08) == (table.state == "ok")).all()
    assert set(table.state) == {"ok", "outside", "cloudy", "no_source"}
    assert set(table[table.state == "cloudy"].time) == {ds.time.values[0]}
    assert (table.valid[table.state == "ok"] > 0).all()


def test_a_radius_gives_the_mean_of_what_is_so_near(ds: xr.Dataset) -> None:
    decoded = ds.eocube.decode(bands=BANDS).compute()
    row, col = ds.eocube.info.extent[:2]
    x, y = float(ds.x[col + 14]) - 45, float(ds.y[row + 3]) - 4
    table = ds.eocube.sample([[x, y]], bands=BANDS, radius=45, crs="EPSG:32632")
    near = np.hypot(decoded.x - x, decoded.y - y) <= 45
    wanted = decoded.where(near).mean(("y", "x"))
    assert table.pixels.tolist() == [int((decoded.notnull().all("band") & near).sum(("y", "x"))[t]) for t in (0, 1)]
    assert table.state.tolist() == ["ok", "ok"] and 50 < table.pixels[0] < 62  # of 64; the missing stripe is near
    np.testing.assert_allclose(table[BANDS].values, wanted.transpose("time", "band").values, rtol=1e-5)
    with pytest.raises(InputError, match="10000 at most"):
        ds.eocube.sample([[x, y]], radius=5000, crs="EPSG:32632")


def test_each_object_is_read_once_and_windows_without_points_never(
    made: Made, ds: xr.Dataset, places: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[str] = Counter()
    decoded: list[int] = []
    one = decoder_cache.decode_one
    monkeypatch.setattr(decoder_cache, "decode_one", lambda *a: (decoded.append(1), one(*a))[1])
    get = zarr.storage.LocalStore.get

    async def counted(self: Any, key: str, prototype: Any, byte_range: Any = None) -> Any:
        if f"{made.plan.product.array}/c/" in key:
            reads[key] += 1
        return await get(self, key, prototype, byte_range)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counted)
    fresh = eocube.open(made.url)
    fresh.eocube.sample(places, "both", crs="EPSG:32632")
    assert reads and set(reads.values()) == {1}
    decoded.clear()
    core = made.plan.grid.lattice.core * made.plan.grid.lattice.cell
    x, y = (round(float(v[8]) / core) * core + core / 2 for v in (ds.x, ds.y))  # the middle of a core
    fresh.isel(time=[1]).eocube.sample([[x, y]], crs="EPSG:32632")
    assert len(decoded) == 1


def test_the_command_takes_points_in_any_crs_and_keeps_their_columns(
    made: Made, ds: xr.Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lon, lat = np.linspace(BBOX[0], BBOX[2], 5)[1:-1], np.linspace(BBOX[1], BBOX[3], 5)[1:-1]
    x, y = Transformer.from_crs(4326, 3857, always_xy=True).transform(lon, lat)
    crops = ["maize", "rye", None]
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [a, b]},
            "properties": {"crop": c, "state": "x"},
        }
        for a, b, c in zip(x, y, crops, strict=True)
    ]
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    (tmp_path / "p.geojson").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    (tmp_path / "p.csv").write_text("id,lon,lat\n" + "".join(f"7,{a},{b}\n" for a, b in zip(lon, lat, strict=True)))
    wanted = ds.eocube.sample(np.stack([lon, lat], 1), bands=BANDS)
    for name, out in (("p.geojson", "a.parquet"), ("p.csv", "a.csv"), ("p.geojson", "a.geojson")):
        code = main(["sample", made.url, str(tmp_path / name), "--out", str(tmp_path / out), "--bands", "B04,B08"])
        assert code == 0 and f"{len(wanted)} rows of 3 points" in capsys.readouterr().out
    parquet = pd.read_parquet(tmp_path / "a.parquet")
    assert parquet.crop.fillna("").tolist() == ["maize", "rye", ""] * 2 and set(parquet.state_) == {"x"}
    np.testing.assert_allclose(parquet[BANDS], wanted[BANDS], rtol=1e-6)
    assert shapely.from_wkb(parquet.geometry.iloc[0]).distance(shapely.Point(lon[0], lat[0])) < 1e-9
    again = points_from(str(tmp_path / "a.parquet"))
    np.testing.assert_allclose(again.x, np.tile(lon, 2))
    table = pd.read_csv(tmp_path / "a.csv")
    np.testing.assert_allclose(table[BANDS], wanted[BANDS], rtol=1e-6)
    assert pd.to_datetime(table.time).dt.tz_localize(None).tolist() == wanted.time.tolist() and set(table.id) == {7}
    written = json.loads((tmp_path / "a.geojson").read_text())["features"]
    np.testing.assert_allclose(np.array([f["properties"]["B08"] for f in written], float), wanted.B08, rtol=1e-6)


def test_points_of_several_zones_go_to_the_zone_that_has_their_ground(made: Made, tmp_path: Path) -> None:
    root, names = tmp_path / "two.zarr", ["utm32", "utm33"]
    root.mkdir()
    zones = {"attributes": {"eocube": {"zones": names}}, "zarr_format": 3, "node_type": "group"}
    (root / "zarr.json").write_text(json.dumps(zones))
    for zone in names:
        shutil.copytree(made.url, root / zone)
    lon, lat = (BBOX[0] + BBOX[2]) / 2, (BBOX[1] + BBOX[3]) / 2
    points = points_from([[lon, lat], [13.0, lat], [100.0, 0.0]])
    moments = (np.datetime64("2023-08-20"), np.datetime64("2023-08-21"))
    tables = list(sample_url(str(root), points, Wanted("latents"), interval=moments))
    rows = {(int(p), str(z)): str(s) for t in tables for p, z, s in zip(t["point"], t["zone"], t["state"], strict=True)}
    # Both groups hold one cube here, so that the zone alone tells where a point was looked up.
    assert rows == {(0, "utm32"): "ok", (2, "utm32"): "outside", (1, "utm33"): "outside"}
    with pytest.raises(InputError, match="no time step"):
        list(sample_url(made.url, points, Wanted(), interval=(moments[1], moments[1])))


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "p.geojson",
            '{"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}',
            "is a Polygon, not a point",
        ),
        ("p.geojson", "{}", "is no GeoJSON"),
        ("p.csv", "a,b\n1,2\n", "name two of them lon and lat"),
        ("p.csv", "x,y\n1,2\n", "no CRS: say --crs"),
        ("p.csv", "lon,lat\n1,\n", "1 of 1 points have no coordinates"),
        ("p.csv", "lon,lat\n48.1,151.5\n", "longitude first"),
        ("p.csv", "lon,lat\n", "no point in it"),
    ],
)
def test_a_file_that_will_not_do_is_said_in_one_line(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    assert main(["sample", made.url, str(tmp_path / name), "--out", str(tmp_path / "o.csv")]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not (tmp_path / "o.csv").exists()


def test_what_cannot_be_written_or_read_is_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.shp").write_bytes(b"")
    for argv, said in (
        (["nowhere.zarr", "p.csv", "--out", "o.xlsx"], "ending in .parquet, .csv or .geojson"),
        (["nowhere.zarr", str(tmp_path / "none.csv"), "--out", "o.csv"], "there is no such file"),
        (["nowhere.zarr", "p.csv", "--out", "o.csv", "--what", "pixels"], "take latents, decoded, both"),
    ):
        assert main(["sample", *argv]) == 2
        assert said in capsys.readouterr().err
