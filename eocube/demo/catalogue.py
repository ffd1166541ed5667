"""Makes the embedded catalogue: small made-up scenes, written on the spot, to try eocube without network or data.

A stretch of farmland with a river, woods and a town, seen by "Sentinel-2" on two dates (two overlapping tiles each) and
by "Sentinel-1" once. It is drawn from a seed, not measured: every item says `eocube:synthetic`. Same seed and same
library versions: same bytes.

The two S2 dates differ in the way that is most often read wrongly: the first carries the baseline-04.00 offset in its
pixels, the second had it removed and still declares it (`earthsearch:boa_offset_applied` tells them apart).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from eocube.demo import files
from eocube.demo.ground import FINE, make_ground
from eocube.demo.noise import F32, block_mean, stream
from eocube.demo.scene import Season, Sky, atmosphere, classify, dress, radiance, sense_s1, sense_s2
from eocube.demo.spectra import BANDS, NATIVE, WAVELENGTHS

DEMO_SEED = 20261121
DEMO_EPSG = 32632
# Twelve cores of 1920 m, a little inside their edges, in the overlap of MGRS tiles 32UMU and 32UNU.
DEMO_BBOX = (9.0424, 48.6243, 9.1444, 48.6744)
DEMO_DATETIME = "2024-05-01/2024-08-31"
DEMO_BOUNDS = (502560, 5385120, 511200, 5391840)  # what the scenes cover: left, bottom, right, top, metres

VERSION = 1  # raise when the same seed draws something else
KEYS = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09", "swir16", "swir22"
)  # fmt: skip
S2, S1 = "sentinel-2-l2a", "sentinel-1-rtc"
S1_NODATA = -32768.0

MOST_THREADS = 8
"""Each takes up to 100 MB while it draws."""

Bounds = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Pass:
    """One overflight of Sentinel-2."""

    season: Season
    day: str  # "2024-05-14"
    start: str  # of the datatake, "102559"
    satellite: str  # "S2B"
    orbit: int
    shifted: bool  # the +1000 offset is no longer in the pixels
    sky: Sky
    swath: tuple[float, float] | None  # eastern swath edge: metres from the left at the top and at the bottom
    draw: int


PASSES = (
    Pass("spring", "2024-05-14", "102559", "S2B", 37540, False, Sky(158.2, 58.4, 0.13, 0.35), None, 1),
    Pass("summer", "2024-07-28", "102601", "S2A", 47521, True, Sky(152.0, 57.6, 0.10, 0.70), (8520, 6970), 2),
)
_RADAR_DAY = 0
"""The pass that finds the ground as the radar does: a day apart."""
# Tile -> the part of it that is written. The first ends at the tile's true eastern edge.
_TILES: Mapping[str, Bounds] = {
    "32UMU": (502560, 5385120, 509760, 5391840),
    "32UNU": (505560, 5385120, 511200, 5391840),
}


def make_demo(directory: Path | str, *, seed: int = DEMO_SEED, bounds: Bounds = DEMO_BOUNDS) -> Path:
    """Write the demo scenes and their catalogue under `directory`; returns the path of catalog.json.

    bounds: (left, bottom, right, top) in metres of EPSG:32632, multiples of 60; tiles are cut to them. What an earlier
    call with the same arguments left there complete is kept as it is. Some ten seconds of two cores, and 27 MB.
    """
    root = Path(directory)
    recipe = {"version": VERSION, "seed": seed, "bounds": list(bounds), "gdal": files.gdal_version()}
    index = root / "catalog.json"
    if _is_complete(index, recipe):
        return index
    if any(v % 60 for v in bounds) or bounds[2] <= bounds[0] or bounds[3] <= bounds[1]:
        raise ValueError(f"demo bounds {bounds} must be multiples of 60 m, left < right and bottom < top")
    index.unlink(missing_ok=True)
    left, bottom, right, top = bounds
    shape = (int((top - bottom) / FINE), int((right - left) / FINE))
    threads = _threads()
    ground = make_ground(seed, shape, threads=threads)
    scenes: list[files.Json] = []
    with ThreadPoolExecutor(threads) as pool:
        draws = [seed * 8 + flight.draw for flight in PASSES]
        dressed = [pool.submit(dress, ground, flight.season, draw) for flight, draw in zip(PASSES, draws, strict=True)]
        airs = [pool.submit(atmosphere, ground, flight.sky, draw) for flight, draw in zip(PASSES, draws, strict=True)]
        echo = pool.submit(sense_s1, ground, dressed[_RADAR_DAY].result(), seed * 8 + 3, shift=1)
        for flight, draw, surfaces, above in zip(PASSES, draws, dressed, airs, strict=True):
            surface, air = surfaces.result(), above.result()
            seen = _in_swath(shape, flight.swath)
            bands = sense_s2(surface, air, draw, threads)
            scl = classify(ground, surface, air, flight.season)
            for tile, extent in _TILES.items():
                cut = (max(extent[0], left), max(extent[1], bottom), min(extent[2], right), min(extent[3], top))
                if cut[0] < cut[2] and cut[1] < cut[3]:
                    scenes.append(_write_s2(pool, root, flight, tile, cut, bounds, bands, scl, seen))
        radar = _write_s1(root, bounds, echo.result())
    about = "Made-up demo scenes of eocube; no measurement"
    files.write_json(root / S2 / "collection.json", files.collection(S2, f"{about} (Sentinel-2 L2A form)", scenes))
    files.write_json(root / S1 / "collection.json", files.collection(S1, f"{about} (Sentinel-1 RTC form)", [radar]))
    # Last, so that a catalogue that is there is whole.
    files.write_json(index, files.catalog("eocube-demo", about, (S2, S1), {"eocube:recipe": recipe}))
    return index


def demo_reflectance(seed: int, size: int = 256, *, snow: float | None = None, native: bool = True) -> F32:
    """Another landscape of the same kind for training: (12, size, size) reflectance at 10 m, bands as in BANDS.

    Season and sky are drawn from the seed; a third of the draws are cloudless.

    Args:
        seed: of the ground and of all draws.
        size: pixels a side, a multiple of 6 and at least 48.
        snow: share of the ground that lies in it; None draws it (a sixth of the draws has some).
        native: the 20 m and 60 m bands are sampled as the instrument does and brought back to 10 m bilinearly;
            otherwise all bands are sharp.
    """
    if size % 6 or size < 48:
        raise ValueError(f"size {size} must be multiples of 6, at least 48")
    rng = stream(seed, 90)
    season: Season = ("spring", "summer")[int(rng.integers(2))]
    cloudy = float(rng.uniform(0.05, 0.6)) if rng.random() > 1 / 3 else 0.0
    sky = Sky(float(rng.uniform(140, 190)), float(rng.uniform(25, 62)), cloudy, float(rng.uniform(0, 1)))
    drawn = float(rng.uniform(0.5, 1)) if rng.random() < 1 / 6 else 0.0
    ground = make_ground(seed, (2 * size, 2 * size))
    surface = dress(ground, season, seed, drawn if snow is None else snow)
    air = atmosphere(ground, sky, seed)
    if not native:
        return np.stack([block_mean(radiance(surface, air, k), 2) for k in range(len(BANDS))])
    bands = sense_s2(surface, air, seed)
    return np.stack([_to_10m(bands[name], gsd) for name, gsd in zip(BANDS, NATIVE, strict=True)])


def _to_10m(image: F32, gsd: int) -> F32:
    """Bilinear, half-pixel exact."""
    if gsd == 10:
        return image
    return np.asarray(ndimage.zoom(image, gsd // 10, order=1, mode="nearest", grid_mode=True), dtype=np.float32)


def _is_complete(index: Path, recipe: files.Json) -> bool:
    """Whether `index` is the catalogue of this recipe with every file it leads to in place."""
    found = files.read_json(index)
    if found is None or found.get("eocube:recipe") != recipe:
        return False
    for name in (S2, S1):
        collection = files.read_json(index.parent / name / "collection.json") or {"links": []}
        hrefs = [link["href"] for link in collection["links"] if link["rel"] == "item"]
        for path in (index.parent / name / href for href in hrefs):
            item = files.read_json(path)
            if item is None or not all((path.parent / a["href"]).is_file() for a in item["assets"].values()):
                return False
        if not hrefs:
            return False
    return True


def _threads() -> int:
    """As many as this process may use cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, MOST_THREADS)


def _in_swath(shape: tuple[int, int], swath: tuple[float, float] | None) -> NDArray[np.bool_]:
    """Which 5 m cells lie west of the swath's slanted eastern edge."""
    if swath is None:
        return np.ones(shape, dtype=bool)
    edge = np.linspace(*swath, shape[0])
    return np.asarray((np.arange(shape[1])[None] + 0.5) * FINE < edge[:, None])


def _cut(image: NDArray[Any], gsd: int, extent: Bounds, bounds: Bounds) -> NDArray[Any]:
    """The part of a scene-wide (..., H, W) image that lies in `extent`."""
    rows = slice((bounds[3] - extent[3]) // gsd, (bounds[3] - extent[1]) // gsd)
    cols = slice((extent[0] - bounds[0]) // gsd, (extent[2] - bounds[0]) // gsd)
    return image[..., rows, cols]


def _outline(seen: NDArray[np.bool_], extent: Bounds) -> list[tuple[float, float]]:
    """The corners of what a tile shows, clockwise from the north-west, metres; the swath's edge may cut its east."""
    across = seen.sum(axis=1) * FINE
    right_top, right_bottom = extent[0] + float(across[0]), extent[0] + float(across[-1])
    corners = [(float(extent[0]), float(extent[3])), (right_top, float(extent[3]))]
    full = np.flatnonzero(across == extent[2] - extent[0])
    if 0 < len(full) < len(across):
        corners.append((float(extent[2]), extent[3] - float(full[-1] + 1) * FINE))
    return [*corners, (right_bottom, float(extent[1])), (float(extent[0]), float(extent[1]))]


def _write_s2(
    pool: Executor, root: Path, flight: Pass, tile: str, extent: Bounds, bounds: Bounds, bands: Mapping[str, F32],
    scl: NDArray[np.uint8], seen: NDArray[np.bool_],
) -> files.Json:  # fmt: skip
    """Write one tile of one date, its files on the pool's threads; returns its item."""
    day = flight.day.replace("-", "")
    name = f"{flight.satellite}_{tile}_{day}_0_L2A"
    folder = root / S2 / name
    folder.mkdir(parents=True, exist_ok=True)
    seen = _cut(seen, int(FINE), extent, bounds)
    whole = {gsd: block_mean(seen, int(gsd / FINE)) == 1 for gsd in (10, 20, 60)}
    assets: dict[str, files.Json] = {}
    written: list[Future[None]] = []

    def asset(key: str, file: str, image: NDArray[Any], gsd: int, more: files.Json, resampling: str) -> None:
        where = (DEMO_EPSG, extent[0], extent[3], gsd)
        written.append(pool.submit(files.write_cog, folder / file, image, *where, 0, resampling))
        assets[key] = {
            "href": f"./{file}", "type": files.COG_TYPE, "gsd": gsd,
            "proj:shape": list(image.shape[1:]), "proj:transform": [gsd, 0, extent[0], 0, -gsd, extent[3]], **more,
        }  # fmt: skip

    for key, band, gsd, wavelength in zip(KEYS, BANDS, NATIVE, WAVELENGTHS, strict=True):
        numbers = np.rint(_cut(bands[band], gsd, extent, bounds) * 1e4) + (0 if flight.shifted else 1000)
        stored = np.where(whole[gsd], np.clip(numbers, 1, 65535), 0).astype(np.uint16)[None]
        raster = {"nodata": 0, "data_type": "uint16", "spatial_resolution": gsd, "scale": 1e-4, "offset": -0.1}
        about = {"name": key, "center_wavelength": wavelength}
        more = {"roles": ["data", "reflectance"], "eo:bands": [about], "raster:bands": [raster]}
        asset(key, f"{band}.tif", stored, gsd, more, "average")
    colours = [_cut(bands[b], 10, extent, bounds) for b in ("B04", "B03", "B02")]
    true_colour = np.rint(np.clip(np.stack(colours) / 0.3558, 0, 1) * 254) + 1  # the scaling of the mission's TCI
    visual = np.where(whole[10], true_colour, 0).astype(np.uint8)
    asset("visual", "TCI.tif", visual, 10, {"roles": ["visual"], "raster:bands": [{"nodata": 0}] * 3}, "average")
    classes = np.where(whole[20], _cut(scl, 20, extent, bounds), 0).astype(np.uint8)
    more = {"roles": ["data"], "raster:bands": [{"nodata": 0, "data_type": "uint8", "spatial_resolution": 20}]}
    asset("scl", "SCL.tif", classes[None], 20, more, "nearest")

    known = max(int((classes > 0).sum()), 1)
    clock = f"{flight.start[:2]}:{flight.start[2:4]}:{flight.start[4:]}"
    product = f"{flight.satellite}_MSIL2A_{day}T{flight.start}_N0510_R108_T{tile}_{day}T170000.SAFE"
    properties = {
        "datetime": f"{flight.day}T10:36:{12 if tile == '32UNU' else 14}.000000Z",
        "created": f"{flight.day}T20:00:00.000Z",
        "updated": f"{flight.day}T20:00:00.000Z",
        "platform": f"sentinel-{flight.satellite[1:].lower()}",
        "constellation": "sentinel-2",
        "instruments": ["msi"],
        "gsd": 10,
        "eo:cloud_cover": round(100 * float(np.isin(classes, (8, 9, 10)).sum()) / known, 3),
        "view:sun_azimuth": flight.sky.sun_azimuth,
        "view:sun_elevation": flight.sky.sun_elevation,
        "grid:code": f"MGRS-{tile}",
        "s2:tile_id": f"{tile}",
        "s2:sequence": "0",
        "s2:product_uri": product,
        "s2:datatake_id": f"G{flight.satellite}_{day}T{flight.start}_{flight.orbit:06d}_N05.10",
        "s2:datatake_type": "INS-NOBS",
        "s2:processing_baseline": "05.10",
        "s2:generation_time": f"{flight.day}T17:00:00.000000Z",
        "s2:nodata_pixel_percentage": round(100 * float((classes == 0).mean()), 3),
        "earthsearch:boa_offset_applied": flight.shifted,
        "proj:shape": assets["red"]["proj:shape"],
        "proj:transform": assets["red"]["proj:transform"],
        "description": f"Made-up scene, {date.fromisoformat(flight.day):%d %B %Y}, datatake {clock} UTC",
    }
    item = files.item(name, S2, DEMO_EPSG, _outline(seen, extent), properties, assets)
    for file in written:
        file.result()
    files.write_json(folder / f"{name}.json", item)
    return item


def _write_s1(root: Path, bounds: Bounds, power: F32) -> files.Json:
    """Write the radar scene, whose grid lies 5 m off the optical one; returns its item."""
    name = "S1A_IW_GRDH_1SDV_20240515T053441_20240515T053506_053873_068C43_rtc"
    folder = root / S1 / name
    folder.mkdir(parents=True, exist_ok=True)
    left, top = bounds[0] + int(FINE), bounds[3] - int(FINE)
    height, width = power.shape[1:]
    first = np.linspace(24, 6, height).astype(int)  # the swath's slanted western edge, in pixels
    seen = np.arange(width)[None] >= first[:, None]
    assets = {}
    for key, image in zip(("vv", "vh"), power, strict=True):
        stored = np.where(seen, image, np.float32(S1_NODATA))[None]
        files.write_cog(folder / f"{key}.tif", stored, DEMO_EPSG, left, top, 10, S1_NODATA, "average")
        raster = {"nodata": S1_NODATA, "data_type": "float32", "spatial_resolution": 10}
        assets[key] = {"href": f"./{key}.tif", "type": files.COG_TYPE, "roles": ["data"], "raster:bands": [raster]}
    right, bottom = left + 10.0 * width, top - 10.0 * height
    outline = [(left + 10.0 * first[0], float(top)), (right, float(top)), (right, bottom),
               (left + 10.0 * first[-1], bottom)]  # fmt: skip
    properties = {
        "datetime": "2024-05-15T05:34:53.500000Z",
        "start_datetime": "2024-05-15T05:34:41.000000Z",
        "end_datetime": "2024-05-15T05:35:06.000000Z",
        "platform": "SENTINEL-1A",
        "constellation": "Sentinel-1",
        "sar:instrument_mode": "IW",
        "sar:frequency_band": "C",
        "sar:polarizations": ["VV", "VH"],
        "sar:product_type": "RTC",
        "sat:orbit_state": "descending",
        "sat:relative_orbit": 66,
        "proj:shape": [height, width],
        "proj:transform": [10, 0, left, 0, -10, top],
        "description": "Made-up scene, gamma0 in linear power",
    }
    item = files.item(name, S1, DEMO_EPSG, outline, properties, assets)
    files.write_json(folder / f"{name}.json", item)
    return item
