"""netCDF of a cube and of decoded pixels: written without a word by plain means, and the same when read back."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr

import eocube
from eocube.cube.netcdf import attributes, netcdf_safe
from eocube.errors import InputError
from tests.eocube.cubes import make_plan, make_store, make_weights


@pytest.fixture(scope="module")
def ds(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    folder = tmp_path_factory.mktemp("netcdf")
    made = make_store(str(folder / "cube.zarr"), make_plan(make_weights(folder / "tiny.safetensors")))
    return eocube.open(made.url)


def test_decoded_pixels_are_the_same_when_read_back(ds: xr.Dataset, tmp_path: Path) -> None:
    path = ds.eocube.to_netcdf(tmp_path / "decoded.nc", bands=["B04", "B08"])
    decoded = ds.eocube.decode(bands=["B04", "B08"]).compute()
    with xr.open_dataset(path, decode_coords="all") as back:
        (name,) = back.data_vars
        np.testing.assert_array_equal(back[name].values, decoded.values)
        assert back["band"].values.tolist() == ["B04", "B08"] and (back["time"].values == decoded["time"].values).all()
        assert back["spatial_ref"].attrs["crs_wkt"] == decoded["spatial_ref"].attrs["crs_wkt"]
        assert back[name].attrs["space_id"] == decoded.attrs["space_id"] and back.attrs["Conventions"]


def test_everything_stored_fits_into_netcdf(ds: xr.Dataset, tmp_path: Path) -> None:
    safe = netcdf_safe(ds)
    assert set(safe.variables) == set(ds.variables)
    assert json.loads(safe.attrs["eocube"])["space_id"] == ds.attrs["eocube"]["space_id"]
    for name, variable in safe.variables.items():
        assert variable.dtype.kind not in "T" and variable.dtype != np.float16, name
        kinds = str | int | float | np.number | np.ndarray | list | tuple
        assert all(isinstance(value, kinds) for value in variable.attrs.values()), name
    if find_spec("netCDF4") is None and find_spec("h5netcdf") is None:
        with pytest.raises(InputError, match="pip install h5netcdf"):
            ds.eocube.to_netcdf(tmp_path / "stored.nc", what="stored")
        return
    with xr.open_dataset(ds.eocube.to_netcdf(tmp_path / "stored.nc", what="stored")) as back:
        np.testing.assert_array_equal(back["status"].values, ds["status"].values)


def test_what_is_wrong_is_said(ds: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="decoded or stored"):
        ds.eocube.to_netcdf(tmp_path / "x.nc", what="latents")
    with pytest.raises(InputError, match="bands are of decoded"):
        ds.eocube.to_netcdf(tmp_path / "x.nc", what="stored", bands=["B04"])
    with pytest.raises(InputError, match="cannot be written"):
        ds.eocube.to_netcdf(tmp_path / "nowhere" / "x.nc", bands=["B04"])


def test_attributes() -> None:
    found = attributes({"a": {"b": 1}, "t": True, "n": None, "l": [1, 2.5], "s": ["y", "x"], "m": [{"k": 1}], "w": "x"})
    assert found == {"a": '{"b": 1}', "t": 1, "n": "null", "l": [1, 2.5], "s": "y x", "m": '[{"k": 1}]', "w": "x"}


def test_a_raster_by_plain_rioxarray_keeps_names_and_nodata(ds: xr.Dataset, tmp_path: Path) -> None:
    """A dataset of bands does: rioxarray takes a band's name from it, and nodata from each band's encoding."""
    import rioxarray  # noqa: F401  (gives xarray `.rio`)

    decoded = ds.eocube.decode(bands=["B04", "B08"]).isel(time=0)
    decoded.drop_vars("wavelength").to_dataset("band").rio.to_raster(tmp_path / "bands.tif")
    with rasterio.open(tmp_path / "bands.tif") as source:
        assert source.descriptions == ("B04", "B08") and np.isnan(source.nodata)
        assert source.crs.to_epsg() == 32632
        np.testing.assert_array_equal(source.read(), decoded.values)
    decoded.rio.to_raster(tmp_path / "array.tif")
    with rasterio.open(tmp_path / "array.tif") as source:
        assert np.isnan(source.nodata)


def test_clipped_reflectance_makes_no_nonsense_of_ratios(ds: xr.Dataset) -> None:
    plain, kept = (ds.eocube.decode(bands=["B04", "B08"], clip=clip).isel(time=0).compute() for clip in (False, True))
    assert float(kept.min()) >= np.float32(1e-4) and set(kept.encoding) == set(plain.encoding)
    np.testing.assert_array_equal(np.isnan(kept.values), np.isnan(plain.values))
    fine = plain.values > np.float32(1e-4)
    np.testing.assert_array_equal(kept.values[fine], plain.values[fine])
    ndvi = (kept.sel(band="B08") - kept.sel(band="B04")) / (kept.sel(band="B08") + kept.sel(band="B04"))
    assert float(np.abs(ndvi).max()) <= 1.0
    box = ds.eocube.decode(bands=["B04"], clip=True, bbox=_inside(ds))
    assert float(box.isel(time=0).min()) >= np.float32(1e-4)


def _inside(ds: xr.Dataset) -> tuple[float, float, float, float]:
    from pyproj import Transformer

    to = Transformer.from_crs(ds["spatial_ref"].attrs["crs_wkt"], 4326, always_xy=True)
    decoded = ds.eocube.decode(bands=["B04"])
    x, y = float(decoded.x.mean()), float(decoded.y.mean())
    west, south = to.transform(x - 200, y - 200)
    east, north = to.transform(x + 200, y + 200)
    return west, south, east, north
