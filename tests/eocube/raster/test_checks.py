"""What a file named .tif may make GDAL open: itself alone, served or local, through its tags or what lies beside."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio

from eocube.errors import RefusedError, SourceError
from eocube.net.network import Network, NetworkLimits
from eocube.raster.opening import gdal_environment, open_raster
from eocube.read.reader import WindowReader
from eocube.scenes.dark_pixels import overview_reader
from tests.eocube.rasters import LATTICE, SIDE, TRANSFORM, WINDOW, cut, digital, ground, over, read, s2, tif

SECRET = 7777
HEAD = (
    f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:32633</SRS><GeoTransform>{TRANSFORM.c},10,0,'
    f"{TRANSFORM.f},0,-10</GeoTransform>"
)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A raster of this machine that no catalogue may reach."""
    folder = tmp_path / "private"
    folder.mkdir()
    values = np.full((SIDE, SIDE), SECRET, np.uint16)
    (folder / "raw.bin").write_bytes(values.tobytes())
    return tif(folder / "secret.tif", values)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder that is served over http, and where."""
    folder = tmp_path_factory.mktemp("served")
    command = [sys.executable, str(Path(__file__).parents[1] / "range_server.py"), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        yield folder, f"http://127.0.0.1:{int(running.stdout.readline())}"
        running.terminate()


@pytest.fixture
def site(server: tuple[Path, str], request: pytest.FixtureRequest) -> tuple[Path, str]:
    """A folder of it for one test, and where."""
    name = re.sub(r"\W", "_", request.node.name)
    (server[0] / name).mkdir()
    return server[0] / name, f"{server[1]}/{name}"


def vrt(secret: Path, side: int = SIDE) -> str:
    return (
        f'{HEAD.replace(str(SIDE), str(side))}<VRTRasterBand dataType="UInt16" band="1"><SimpleSource><SourceFilename '
        f'relativeToVRT="0">{secret}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>'
    )


def raw_vrt(secret: Path) -> str:
    return (
        f'{HEAD}<VRTRasterBand dataType="UInt16" band="1" subClass="VRTRawRasterBand"><SourceFilename relativeToVRT='
        f'"0">{secret.parent}/raw.bin</SourceFilename><ImageOffset>0</ImageOffset><PixelOffset>2</PixelOffset>'
        f"<LineOffset>{2 * SIDE}</LineOffset></VRTRasterBand></VRTDataset>"
    )


def wms(secret: Path, server: str) -> str:
    return (
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{server}/tile.png?${{z}}${{x}}${{y}}</ServerUrl></Service>'
        f"<DataWindow><UpperLeftX>{TRANSFORM.c}</UpperLeftX><UpperLeftY>{TRANSFORM.f}</UpperLeftY>"
        f"<LowerRightX>{TRANSFORM.c + 3200}</LowerRightX><LowerRightY>{TRANSFORM.f - 3200}</LowerRightY>"
        f"<SizeX>{SIDE}</SizeX><SizeY>{SIDE}</SizeY><TileLevel>0</TileLevel></DataWindow><Projection>EPSG:32633"
        f"</Projection><BlockSizeX>{SIDE}</BlockSizeX><BlockSizeY>{SIDE}</BlockSizeY><BandsCount>1</BandsCount>"
        f"<Cache><Path>{secret.parent}/written</Path></Cache></GDAL_WMS>"
    )


def refused(href: str, options: dict[str, Any] | None = None) -> str:
    """The one line with which a read of an href fails."""
    network = Network(NetworkLimits(first_wait=0.001, tries=2))
    with (
        WindowReader(s2(), LATTICE, storage_options=options, retries=0, network=network) as reader,
        pytest.raises(SourceError) as said,
    ):
        reader.read([over(href)], WINDOW)
    assert "item-1, asset b02" in str(said.value) and "\n" not in str(said.value)
    return str(said.value)


@pytest.mark.parametrize("kind", ["vrt", "raw", "wms"])
def test_other_formats_named_tif_are_refused_wherever_they_lie(kind: str, secret: Path, site: tuple[Path, str]) -> None:
    folder, server = site
    tif(
        folder / "tile.png",
        np.full((SIDE, SIDE), 200, np.uint8),
        driver="PNG",
        tiled=None,
        blockxsize=None,
        blockysize=None,
    )
    text = {"vrt": vrt(secret), "raw": raw_vrt(secret), "wms": wms(secret, server)}[kind]
    (folder / "B02.tif").write_text(text)
    fsspec.filesystem("memory").pipe_file(f"/raster-checks/{kind}.tif", text.encode())
    for href, options in (
        (f"{server}/B02.tif", {}),  # GDAL's own requests
        (f"{server}/B02.tif", {"use_listings_cache": False}),  # through fsspec
        (f"memory://raster-checks/{kind}.tif", {}),
        (str(folder / "B02.tif"), {}),
    ):
        assert "neither a GeoTIFF nor a JPEG 2000" in refused(href, options)
        if not href.startswith("http"):
            with pytest.raises((OSError, rasterio.errors.RasterioError)):
                overview_reader(options)(href)  # what decides about offsets opens scenes too
    assert not (secret.parent / "written").exists()


def test_a_tiff_s_own_tag_leads_to_no_other_file(secret: Path, site: tuple[Path, str]) -> None:
    """GDAL takes OVERVIEW_FILE of a file's own metadata for its overviews, by any driver."""
    folder, server = site
    (folder / "o.vrt").write_text(vrt(secret, SIDE // 2))
    for leading in (str(folder / "o.vrt"), f"{server}/o.vrt", vrt(secret, SIDE // 2)):
        path = tif(folder / "B02.tif", digital(ground()))
        with rasterio.open(path, "r+") as target:
            target.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=leading)
        for href in (str(path), f"{server}/B02.tif"):
            assert "OVERVIEW_FILE" in refused(href)
            with gdal_environment({}), pytest.raises((RefusedError, rasterio.errors.RasterioIOError)):
                open_raster(href, {}, 0)
        path.unlink()


@pytest.mark.parametrize("ending", [".ovr", ".msk", ".aux.xml", ".ovr.ovr", ".ovr.aux.xml"])
def test_nothing_beside_a_local_file_leads_elsewhere(ending: str, secret: Path, tmp_path: Path) -> None:
    path = tif(tmp_path / "B02.tif", digital(ground()))
    pointing = (
        f'<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">{secret}</MDI></Metadata></PAMDataset>'
    )
    if ending.startswith(".ovr."):
        tif(Path(f"{path}.ovr"), digital(ground())[::2, ::2], crs=None, transform=None)
    Path(f"{path}{ending}").write_text(pointing if ending.endswith("xml") else vrt(secret, SIDE // 2))
    assert "remove" in refused(str(path))


def test_what_lies_beside_a_remote_file_is_not_opened(secret: Path, site: tuple[Path, str]) -> None:
    """Neither with a transform, nor without one, when what lies beside is asked for it."""
    folder, server = site
    for name, where in (("placed", {}), ("bare", {"crs": None, "transform": None})):
        tif(folder / f"{name}.tif", digital(ground()), **where)
        for ending in (".ovr", ".msk"):
            (folder / f"{name}.tif{ending}").write_text(vrt(secret, SIDE // (2 if ending == ".ovr" else 1)))
    (folder / "bare.tfw").write_text(f"10\n0\n0\n-10\n{TRANSFORM.c + 5}\n{TRANSFORM.f - 5}\n")
    for name in ("placed", "bare"):
        with gdal_environment({}):
            raster = open_raster(f"{server}/{name}.tif", {})
            assert (raster.overviews, raster.masked, raster.georeferenced) == ((), (False,), True)
            assert raster.transform == TRANSFORM
            raster.close()
        np.testing.assert_array_equal(read(over(f"{server}/{name}.tif")).groups[10][0], cut(digital(ground())))


def test_honest_side_cars_of_local_files_are_used(tmp_path: Path) -> None:
    path = tif(tmp_path / "B02.tif", digital(ground()))
    with rasterio.Env(TIFF_USE_OVR=True), rasterio.open(path, "r+") as target:
        target.build_overviews([2, 4])
    Path(f"{path}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>7</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    assert Path(f"{path}.ovr").exists()
    with gdal_environment({}):
        raster = open_raster(str(path), {})
        assert raster.overviews == (2, 4) and raster.nodata == (7.0,)
        coarse = open_raster(str(path), {}, 1)
        assert coarse.width == SIDE // 4
        raster.close()
        coarse.close()


def test_geotiff_and_jpeg_2000_are_read_in_every_way(site: tuple[Path, str]) -> None:
    folder, server = site
    values = digital(ground())
    tif(folder / "a.tif", values)
    tif(folder / "a.jp2", values, driver="JP2OpenJPEG", tiled=None, QUALITY=100, REVERSIBLE="YES")
    for name in ("a.tif", "a.jp2"):
        fsspec.filesystem("memory").pipe_file(f"/raster-checks/{name}", (folder / name).read_bytes())
        for href in (str(folder / name), f"{server}/{name}", f"memory://raster-checks/{name}"):
            np.testing.assert_array_equal(read(over(href)).groups[10][0], cut(values))
