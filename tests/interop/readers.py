"""Reads a store with everything but eocube, and compares what comes out with what was written."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
ARRAYS = ("latent", "status", "valid", "y", "x")
NODE_MODULES = "EOCUBE_INTEROP_NODE"
"""Variable: a folder with node_modules/zarrita."""
CF_CHECKER = "EOCUBE_INTEROP_CF"
"""Variable: the path of `compliance-checker`, in an environment of its own."""


class AbsentError(Exception):
    """A reader is not installed here; the message says how it would be."""


@dataclass(frozen=True)
class Truth:
    """What a store holds: its arrays by name, as they were written."""

    arrays: dict[str, np.ndarray]
    epsg: int
    transform: tuple[float, ...]
    """a, b, c, d, e, f of the latents' grid."""

    def same(self, name: str, found: Any) -> None:
        """AssertionError where an array is not the one that was written, to the bit (NaN as NaN)."""
        want = self.arrays[name]
        got = np.asarray(found)
        assert got.shape == want.shape, (name, got.shape, want.shape)
        np.testing.assert_array_equal(got, want.astype(got.dtype) if got.dtype != want.dtype else want, err_msg=name)


@dataclass(frozen=True)
class Reader:
    """One way to read a store: `read` gives a line on what was read, or raises AbsentError or AssertionError."""

    name: str
    number: Callable[[], str]
    """Its version; raises AbsentError."""
    read: Callable[[Path, Truth], str]


def installed(package: str, hint: str = "") -> Callable[[], str]:
    """The version of a Python package."""

    def number() -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            raise AbsentError(f"{package} is not installed: {hint or f'pip install {package}'}") from None

    return number


def by_zarr(store: Path, truth: Truth) -> str:
    """zarr-python alone."""
    import zarr

    group = zarr.open_group(str(store), mode="r")
    for name in ARRAYS:
        truth.same(name, group[name][...])
    return f"{len(ARRAYS)} arrays to the bit, consolidated metadata"


def by_zarrs(store: Path, truth: Truth) -> str:
    """zarr-python with the codecs of zarrs (Rust), in a process of its own: the choice is the whole process's."""
    code = (
        "import sys, zarr, hashlib, json, numpy as np\n"
        "zarr.config.set({'codec_pipeline.path': 'zarrs.ZarrsCodecPipeline'})\n"
        "import zarrs\n"
        "group = zarr.open_group(sys.argv[1], mode='r')\n"
        "for name in sys.argv[2:]:\n"
        "    data = np.ascontiguousarray(group[name][...])\n"
        "    print(json.dumps([name, hashlib.sha256(data.tobytes()).hexdigest()]))\n"
    )
    lines = _run([sys.executable, "-c", code, str(store), *ARRAYS]).splitlines()
    for name, digest in map(json.loads, lines):
        assert digest == _digest(truth.arrays[name]), name
    return f"{len(lines)} arrays to the bit"


def by_xarray(store: Path, truth: Truth) -> str:
    """xarray, not knowing of eocube."""
    import xarray as xr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds = xr.open_zarr(str(store), chunks=None, mask_and_scale=False)
    for name in ARRAYS:
        truth.same(name, ds[name].values)
    assert ds["latent"].dims == ("time", "channel", "y", "x") and ds["time"].dtype.kind == "M"
    meanings = ds["status"].attrs["flag_meanings"].split()
    assert len(meanings) == len(ds["status"].attrs["flag_values"])
    return "names, dimensions, dates, values to the bit"


def by_dask(store: Path, truth: Truth) -> str:
    """dask, a chunk at a time."""
    import dask.array as da

    lazy = da.from_zarr(str(store), component="latent")
    truth.same("latent", lazy.compute(scheduler="threads"))
    return f"latents in {lazy.npartitions} chunks, to the bit"


def by_rioxarray(store: Path, truth: Truth) -> str:
    """rioxarray: CRS, transform, bounds."""
    import rioxarray  # noqa: F401
    import xarray as xr

    ds = xr.open_zarr(str(store), chunks=None, decode_coords="all")
    assert ds["latent"].rio.crs.to_epsg() == truth.epsg
    np.testing.assert_allclose(tuple(ds["latent"].rio.transform())[:6], truth.transform)
    return "CRS, transform and bounds of the latents"


def by_odc(store: Path, truth: Truth) -> str:
    """odc-geo: the geobox."""
    import odc.geo.xr  # noqa: F401
    import xarray as xr

    ds = xr.open_zarr(str(store), chunks=None, decode_coords="all")
    box = ds["latent"].odc.geobox
    assert box.crs.to_epsg() == truth.epsg and box.shape == truth.arrays["latent"].shape[-2:]
    np.testing.assert_allclose(tuple(box.transform)[:6], truth.transform)
    return "the latents' geobox"


def by_gdal(store: Path, truth: Truth) -> str:
    """GDAL's Zarr driver, through rasterio."""
    import rasterio
    from rasterio.errors import RasterioIOError

    try:
        with rasterio.open(f'ZARR:"{store}":/status') as source:
            truth.same("status", source.read())
            return "window states"
    except RasterioIOError as error:
        raise AssertionError(str(error).splitlines()[0]) from error


def gdal_version() -> str:
    """GDAL's, not rasterio's."""
    import rasterio

    return f"{rasterio.__gdal_version__} (rasterio {version('rasterio')})"


def zarrita_version() -> str:
    """zarrita.js and node."""
    node, folder = shutil.which("node"), os.environ.get(NODE_MODULES, "")
    package = Path(folder) / "node_modules" / "zarrita" / "package.json"
    if node is None:
        raise AbsentError("node is not installed")
    if not folder or not package.is_file():
        raise AbsentError(f"zarrita is not installed: npm install zarrita in a folder, and {NODE_MODULES} names it")
    return f"{json.loads(package.read_text())['version']} (node {_run([node, '--version']).strip()})"


def by_zarrita(store: Path, truth: Truth) -> str:
    """zarrita.js under node; Float16Array, which half floats need, came with node 24."""
    node = shutil.which("node")
    assert node is not None
    out = _run([node, str(HERE / "read_zarrita.mjs"), str(store), *ARRAYS], cwd=os.environ[NODE_MODULES])
    read, halves = 0, 0
    for found in map(json.loads, out.splitlines()):
        want = truth.arrays[found["name"]]
        if want.dtype == np.float16 and "error" in found:
            halves += 1
            continue
        assert "error" not in found, found
        assert found["shape"] == list(want.shape) and found["sha256"] == _digest(want), found["name"]
        read += 1
    return f"{read} arrays to the bit" + (", half floats only from node 24 on" if halves else "")


def cf_version() -> str:
    """The CF checker of the IOOS."""
    program = os.environ.get(CF_CHECKER)
    if not program or not Path(program).is_file():
        raise AbsentError(
            f"compliance-checker is not installed: pip install it into an environment, {CF_CHECKER} names it"
        )
    if not _netcdf():
        raise AbsentError(
            "netCDF4 or h5netcdf is not installed, by which the store is written as netCDF for the checker"
        )
    return _run([program, "--version"]).strip().split()[-1]


def by_cf_checker(store: Path, truth: Truth) -> str:
    """Attributes as CF 1.11 wants them, of the store written as netCDF; an error is one of high priority."""
    import eocube

    program = os.environ[CF_CHECKER]
    ds = eocube.open(str(store))
    path = store.parent / f"{store.stem}.nc"
    ds.eocube.to_netcdf(path, what="stored")
    done = subprocess.run(
        [program, "--test=cf:1.11", "--format=json", "--output=-", str(path)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    start = done.stdout.find("{")
    assert start >= 0, done.stderr[-500:]
    (report,) = json.loads(done.stdout[start:]).values()
    said = [f"{one['name']}: {text}" for one in report["high_priorities"] for text in one["msgs"]]
    errors = [text for text in said if '"dB"' not in text]
    assert not errors, errors
    points = f"{report['scored_points']} of {report['possible_points']} points"
    return f"{points}, no error" + (" but `dB`, a unit that UDUNITS does not have" if said else "")


def _netcdf() -> bool:
    from importlib.util import find_spec

    return find_spec("netCDF4") is not None or find_spec("h5netcdf") is not None


def by_netcdf(store: Path, truth: Truth) -> str:
    """netCDF of what is stored, read back by xarray."""
    import xarray as xr

    import eocube

    path = store.parent / f"{store.stem}-back.nc"
    eocube.open(str(store)).eocube.to_netcdf(path, what="stored")
    with xr.open_dataset(path, mask_and_scale=False) as back:
        for name in ARRAYS:
            truth.same(name, back[name].values)
    return f"{len(ARRAYS)} arrays the same through ds.eocube.to_netcdf"


def netcdf_version() -> str:
    """netCDF4 or h5netcdf, whichever is there."""
    for package in ("netCDF4", "h5netcdf"):
        try:
            return f"{version(package)} ({package})"
        except PackageNotFoundError:
            continue
    raise AbsentError("netCDF4 and h5netcdf are not installed: pip install h5netcdf")


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _run(words: list[str], cwd: str | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=cwd)
    assert done.returncode == 0, done.stderr[-800:]
    return done.stdout


READERS = (
    Reader("zarr-python", installed("zarr"), by_zarr),
    Reader("zarrs (by zarr-python)", installed("zarrs"), by_zarrs),
    Reader("xarray", installed("xarray"), by_xarray),
    Reader("dask", installed("dask"), by_dask),
    Reader("rioxarray", installed("rioxarray"), by_rioxarray),
    Reader("odc-geo", installed("odc-geo"), by_odc),
    Reader("zarrita.js", zarrita_version, by_zarrita),
    Reader("GDAL's Zarr driver", gdal_version, by_gdal),
    Reader("netCDF by xarray", netcdf_version, by_netcdf),
    Reader("CF checker (IOOS)", cf_version, by_cf_checker),
)
