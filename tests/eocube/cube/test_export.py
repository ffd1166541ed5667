"""Decoded pixels in a cloud-optimised GeoTIFF: on the right ground, whole or not at all, on disk and on S3."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
import rasterio
import xarray as xr
from pyproj import Transformer
from rasterio.io import MemoryFile

import eocube
from eocube.cli import main
from eocube.cube.export import export
from eocube.cube.geotiff import write_geotiff
from eocube.errors import InputError
from tests.conftest import S3Server
from tests.eocube.cubes import Made, make_plan, make_store, make_weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("export")
    return make_store(str(folder / "cube.zarr"), make_plan(make_weights(folder / "tiny.safetensors")))


@pytest.fixture(scope="module")
def decoded(made: Made) -> xr.DataArray:
    return eocube.open(made.url).eocube.decode(bands=["B04", "B08"]).isel(time=0).compute()


def check(source: rasterio.DatasetReader, decoded: xr.DataArray) -> None:
    assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and source.overviews(1)
    assert source.descriptions == ("B04", "B08") and np.isnan(source.nodata)
    assert source.crs.to_epsg() == 32632 and source.dtypes == ("float32", "float32")
    x, y = rasterio.transform.xy(source.transform, [0, source.height - 1], [0, source.width - 1])
    np.testing.assert_allclose([x, y], [decoded.x.values[[0, -1]], decoded.y.values[[0, -1]]], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(source.read(), decoded.values)


def big(decoded: xr.DataArray) -> xr.DataArray:
    """The image beside itself until it needs overviews."""
    row = xr.concat([decoded.assign_coords(x=decoded.x + k * 10 * decoded.sizes["x"]) for k in range(8)], "x")
    step = 10 * decoded.sizes["y"]
    return xr.concat([row.assign_coords(y=row.y - k * step) for k in range(8)], "y").assign_coords(
        spatial_ref=decoded.spatial_ref
    )


def test_a_time_step_as_a_cog(decoded: xr.DataArray, tmp_path: Path) -> None:
    image = big(decoded).chunk({"y": 300})
    write_geotiff(image, str(tmp_path / "image.tif"))
    assert [p.name for p in tmp_path.iterdir()] == ["image.tif"]
    with rasterio.open(tmp_path / "image.tif") as source:
        check(source, image)
        coarse = source.read(1, out_shape=(source.height // 2, source.width // 2))
        blocks = image.values[0][: 2 * coarse.shape[0], : 2 * coarse.shape[1]].reshape(coarse.shape[0], 2, -1, 2)
        whole = np.isfinite(blocks).all(axis=(1, 3))
        np.testing.assert_allclose(coarse[whole], blocks.mean(axis=(1, 3))[whole], rtol=1e-4, atol=1e-6)


def test_the_command_writes_it_to_a_bucket_too(made: Made, decoded: xr.DataArray, s3_server: S3Server) -> None:
    out = f"s3://{s3_server.bucket()}/image.tif"
    said = export(made.url, out, bands=["B04", "B08"], storage_options=s3_server.storage_options)
    assert said.startswith(f"{out}: ")
    with fsspec.open(out, **s3_server.storage_options) as file, MemoryFile(file.read()) as memory, memory.open() as tif:
        np.testing.assert_array_equal(tif.read(), decoded.values)
        assert tif.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


def test_nothing_is_left_where_writing_fails(decoded: xr.DataArray, tmp_path: Path) -> None:
    def fails(block: np.ndarray) -> np.ndarray:
        raise RuntimeError("no more")

    (tmp_path / "image.tif").write_bytes(b"before")
    broken = xr.apply_ufunc(
        fails, decoded.chunk({"y": 48}), dask="parallelized", output_dtypes=["float32"], keep_attrs=True
    )
    with pytest.raises(RuntimeError, match="no more"):
        write_geotiff(broken, str(tmp_path / "image.tif"))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("image.tif", b"before")]
    with pytest.raises(InputError, match="there is no folder"):
        write_geotiff(decoded, str(tmp_path / "none" / "image.tif"))


def box_of(ds: xr.Dataset) -> tuple[float, float, float, float]:
    """A box of some 300 m around the cube's middle, in degrees."""
    to = Transformer.from_crs(32632, 4326, always_xy=True)
    row0, col0, row1, col1 = ds.eocube.info.extent
    x, y = float(ds.x[(col0 + col1) // 2]), float(ds.y[(row0 + row1) // 2])
    lon, lat = to.transform([x - 150, x + 150], [y - 150, y + 150])
    return lon[0], lat[0], lon[1], lat[1]


def test_a_box_is_decoded_with_what_lies_around_it(made: Made, decoded: xr.DataArray, tmp_path: Path) -> None:
    ds = eocube.open(made.url)
    box = box_of(ds)
    cut = ds.eocube.decode(bands=["B04", "B08"], bbox=box).isel(time=0)
    assert 30 <= cut.sizes["x"] <= 33 and 30 <= cut.sizes["y"] <= 33
    xr.testing.assert_equal(cut.compute(), decoded.sel(x=cut.x, y=cut.y))
    assert ds.eocube.crop(box).sizes["x"] in (4, 5) and eocube.open(made.url, crop=box).sizes["x"] in (4, 5)
    asked = ds.eocube.info.extent
    assert eocube.open(made.url, crop=True).sizes["y"] == asked[2] - asked[0]
    words = ",".join(map(str, box))
    code = main(["decode", made.url, "--bands", "B04,B08", "--time", "2023-08-15", f"--bbox={words}", "--out",
                 str(tmp_path / "a.tif")])  # fmt: skip
    assert code == 0
    with rasterio.open(tmp_path / "a.tif") as tif:
        np.testing.assert_array_equal(tif.read(), cut.values)
        assert tif.tags()["TIFFTAG_DATETIME"] == "2023-08-15 09:57:57"
        assert tif.tags()["long_name"].startswith("surface reflectance")
    with pytest.raises(InputError, match="shares no ground"):
        ds.eocube.decode(bbox=(0, 0, 1, 1))


def test_other_writers_find_crs_and_nodata(decoded: xr.DataArray, tmp_path: Path) -> None:
    import odc.geo.xr  # noqa: F401  (registers .odc)
    import rioxarray  # noqa: F401
    from odc.geo.cog import write_cog

    named = decoded.assign_attrs(long_name=tuple(decoded.band.values))
    named.rio.to_raster(tmp_path / "rio.tif")
    write_cog(decoded, tmp_path / "odc.tif")
    decoded.sel(band="B08").rio.to_raster(tmp_path / "one.tif")
    for name, bands in (("rio.tif", ("B04", "B08")), ("odc.tif", (None, None)), ("one.tif", None)):
        with rasterio.open(tmp_path / name) as tif:
            assert np.isnan(tif.nodata) and tif.crs.to_epsg() == 32632
            assert bands is None or tif.descriptions == bands
    decoded.to_dataset(name="r").to_zarr(tmp_path / "r.zarr")
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "r.zarr", decode_coords="all")["r"], decoded)


@pytest.mark.parametrize(("time", "said"), [
    ("1", 1), ("-1", 1), ("2023-08-20", 1), ("2023-08-15T09:57:57", 0), ("2023-08", "2 time steps are of it"),
    ("2023-08-16", "the nearest are 2023-08-15T09:57:57Z"), ("2", "time steps 0 to 1"), ("soon", "is no date"),
])  # fmt: skip
def test_a_time_step_is_named_by_number_or_date(made: Made, time: str, said: int | str) -> None:
    from eocube.cube.selecting import step_of

    times = eocube.open(made.url).time.values
    if isinstance(said, int):
        assert step_of(times, time) == said
        return
    with pytest.raises(InputError, match=said):
        step_of(times, time)


def test_a_file_a_time_step_of_latents_and_pixels(made: Made, decoded: xr.DataArray, tmp_path: Path) -> None:
    ds = eocube.open(made.url)
    out = tmp_path / "out"
    assert main(["export", made.url, "--out", str(out), "--what", "latents"]) == 0
    assert main(["export", made.url, "--out", str(out), "--what", "latents", "--format", "geoparquet"]) == 0
    more = ["--format", "geoparquet", "--bands", "B04,B08", "--datetime", "2023-08-15"]
    assert main(["export", made.url, "--out", str(out), *more]) == 0
    stamps = [f"utm32_202308{day}T095757Z" for day in (15, 20)]
    assert sorted(p.name for p in out.iterdir()) == sorted(
        [*(f"{s}_latents.{e}" for s in stamps for e in ("tif", "parquet")), f"{stamps[0]}_decoded.parquet"]
    )
    latents = ds.eocube.crop().eocube.latents().isel(time=0).compute()
    with rasterio.open(out / f"{stamps[0]}_latents.tif") as tif:
        np.testing.assert_array_equal(tif.read(), latents.values)
        assert tif.descriptions == ("z00", "z01", "z02", "z03") and tif.res == (80, 80)
    table = pd.read_parquet(out / f"{stamps[0]}_latents.parquet")
    there = np.isfinite(latents.values).all(axis=0)
    assert len(table) == there.sum()
    np.testing.assert_array_equal(table[["z00", "z03"]].values, latents.values[[0, 3]][:, there].T)
    pixels = pd.read_parquet(out / f"{stamps[0]}_decoded.parquet")
    row = pixels.iloc[1234]
    assert np.float32(decoded.sel(x=row.x, y=row.y, band="B08")) == row.B08
    assert main(["export", made.url, "--out", str(out), "--datetime", "1999"]) == 2
    assert main(["export", made.url, "--out", str(out), "--what", "tokens"]) == 2
