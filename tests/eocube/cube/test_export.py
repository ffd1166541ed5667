"""Decoded pixels in a cloud-optimised GeoTIFF: on the right ground, whole or not at all, on disk and on S3."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
import rasterio
import xarray as xr
from rasterio.io import MemoryFile

import eocube
from eocube.cube.export import export, write_geotiff
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
