"""A region over two UTM zones: a group with one cube a zone, each on its own grid, both on the right ground."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from eocube.cli import encode_main, main
from eocube.ground.zones import to_lonlat, to_zone
from eocube.run.request import Exit

KEYS = {"B02": "blue", "B03": "green", "B04": "red", "B08": "nir"}
LEFT, TOP, SIDE = 720_000, 5_326_000, 600  # around 12 E, where zone 32 ends and 33 begins


def ground(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reflectance as a smooth function of zone 32's coordinates."""
    return 0.2 + 0.08 * np.sin(x / 300.0) + 0.06 * np.cos(y / 420.0)


@pytest.fixture
def border(tmp_path: Path) -> tuple[Path, tuple[float, float, float, float]]:
    """One scene of zone 32 that lies across the zones' border, as a static catalogue; and a box inside it."""
    x = LEFT + (np.arange(SIDE) + 0.5) * 10
    y = TOP - (np.arange(SIDE) + 0.5) * 10
    pixels = np.rint(ground(*np.meshgrid(x, y)) * 1e4).astype("uint16")
    profile = {
        "driver": "GTiff", "width": SIDE, "height": SIDE, "count": 1, "dtype": "uint16", "crs": "EPSG:32632",
        "transform": from_origin(LEFT, TOP, 10, 10), "nodata": 0, "tiled": True, "blockxsize": 256, "blockysize": 256,
    }  # fmt: skip
    for band in KEYS:
        with rasterio.open(tmp_path / f"{band}.tif", "w", **profile) as file:
            file.write(pixels, 1)
    box = transform_bounds("EPSG:32632", "EPSG:4326", LEFT, TOP - SIDE * 10, LEFT + SIDE * 10, TOP)
    west, south, east, north = box
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": "S2A_32UQU_20190704_0_L2A", "collection": "sentinel-2-l2a",
        "bbox": box, "links": [],
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
        },
        "properties": {
            "datetime": "2019-07-04T10:10:31Z", "platform": "sentinel-2a", "constellation": "sentinel-2",
            "proj:epsg": 32632, "s2:processing_baseline": "02.12", "earthsearch:boa_offset_applied": False,
        },
        "assets": {
            key: {"href": f"./{band}.tif", "raster:bands": [{"scale": 1e-4, "offset": 0, "nodata": 0}]}
            for band, key in KEYS.items()
        },
    }  # fmt: skip
    (tmp_path / "item.json").write_text(json.dumps(item))
    return tmp_path / "item.json", (11.98, 48.02, 12.02, 48.045)


@pytest.mark.slow
def test_two_zones_two_cubes(border: tuple[Path, tuple[float, ...]], tmp_path: Path) -> None:
    import eocube

    item, box = border
    out = tmp_path / "cube.zarr"
    code = encode_main(
        ["--bbox", *map(str, box), "--datetime", "2019-07-04", "--catalog", str(item), "--out", str(out),
         "--bands", "B02,B03,B04,B08", "--quiet"]
    )  # fmt: skip
    assert code == Exit.DONE
    with pytest.raises(eocube.StoreError, match=r"utm32.*utm33"):
        eocube.open(str(out))
    for name, epsg in (("utm32", 32632), ("utm33", 32633)):
        plain = xr.open_zarr(out, group=name)
        assert rasterio.CRS.from_wkt(plain.spatial_ref.attrs["crs_wkt"]).to_epsg() == epsg and plain.sizes["time"] == 1
        decoded = eocube.open(str(out), group=name).eocube.decode().isel(time=0).compute()
        lon, lat = to_lonlat(epsg, *np.meshgrid(decoded.x.values, decoded.y.values))
        there = np.isfinite(decoded.values).all(0)
        assert there.sum() > 100 * 100
        expected = ground(*to_zone(32632, lon, lat))
        # Half a pixel off would be 0.0014 here on top of what the codec itself leaves; a wrong zone is far off.
        error = (decoded.values - expected)[:, there]
        assert np.sqrt(np.square(error).mean()) < 0.02 and np.abs(error.mean()) < 0.01


@pytest.mark.slow
def test_a_zone_comes_later_where_the_extent_reaches_it(
    border: tuple[Path, tuple[float, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    item, box = border
    grown, fresh, west = tmp_path / "grown.zarr", tmp_path / "fresh.zarr", (11.985, 48.025, 11.995, 48.035)
    room = (11.9, 47.9, 12.1, 48.1)

    def encode(out: Path, where: tuple[float, ...], *more: str) -> int:
        return encode_main(
            ["--bbox", *map(str, where), "--datetime", "2019-07-04", "--catalog", str(item), "--out", str(out),
             "--bands", "B02,B03,B04,B08", "--quiet", *more]
        )  # fmt: skip

    assert encode(grown, west, "--extent", *map(str, room)) == Exit.DONE
    assert main(["verify", str(grown)]) == Exit.DONE and main(["info", str(grown)]) == Exit.DONE
    assert main(["quicklook", str(grown), "--out", str(tmp_path / "q.png")]) == Exit.BAD_INPUT
    assert "add --group with one of utm32\n" in capsys.readouterr().err
    first = {p: p.read_bytes() for p in (grown / "utm32" / "latent" / "c").rglob("*") if p.is_file()}
    early = xr.open_zarr(grown, group="utm32", mask_and_scale=False)
    before, fill = early.latent.values, -32768
    assert encode(grown, box) == Exit.DONE  # the extent is the store's own
    assert encode(fresh, box, "--extent", *map(str, room)) == Exit.DONE
    for zone in ("utm32", "utm33"):
        a, b = (xr.open_zarr(store, group=zone, mask_and_scale=False).load() for store in (grown, fresh))
        for name in ("latent", "status", "valid", "x", "y", "requested"):
            assert a[name].values.tobytes() == b[name].values.tobytes(), (zone, name)
    there = before != fill
    assert there.any() and not there.all() and np.array_equal(early.latent.values[there], before[there]) and first
    assert main(["verify", str(grown)]) == Exit.DONE
    # And one that was made without room stays one of one zone.
    narrow = tmp_path / "narrow.zarr"
    assert encode(narrow, west) == Exit.DONE
    assert encode(narrow, box) == Exit.BAD_INPUT
    error = capsys.readouterr().err
    assert "a store of one zone cannot become one of several" in error and error.count("\n") == 1
