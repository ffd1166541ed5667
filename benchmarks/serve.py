"""Tiles of `eocube serve`: cold, warm, and held by eight clients, against decoding each tile's ground by itself.

    python -m benchmarks.serve [--cube cube.zarr] [--weights nano] [--memory 1.0] [--quick]

Prints one JSON object: milliseconds of a 256 px tile (median, 90th percentile, largest), tiles a second, and the most
memory that the server had. The server runs in a process of its own, as users start it; clients keep their connections.
Without `--cube`, a shard of made-up scenes (10 x 10 windows, two dates) is encoded first.

"cold" tiles share no window with any tile asked for before; their windows are decoded. "kept" tiles are of windows that
are kept, in a layer that was not drawn before. "warm" tiles are asked for a second time. The reference does for each
cold tile what a user would without a server: `ds.eocube.decode()` of the tile's ground, GDAL's warp, a PNG.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rasterio.enums import Resampling
from rasterio.warp import reproject

import eocube
from benchmarks.machine import describe
from benchmarks.shard_scenes import shard_scenes
from eocube.cli import main as eocube_main
from eocube.serve.pictures import png, shaded
from eocube.serve.raster import MERCATOR, TilePlace
from eocube.serve.sampling import Stretch

CLIENTS = 8
FIXED = "?stretch=fixed"
APART = 4
"""Tiles between cold ones: further than the windows of one reach."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile of one date."""

    time: int
    z: int
    x: int
    y: int

    def path(self, layer: str = "true-colour") -> str:
        """Where the server has it."""
        return f"/tiles/0/{layer}/{self.time}/{self.z}/{self.x}/{self.y}.png"


class Client:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def get(self, path: str) -> tuple[float, bytes]:
        """Milliseconds and the body."""
        began = time.perf_counter()
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {body[:200]!r}")
        return (time.perf_counter() - began) * 1e3, body


@contextmanager
def server(cube: str, memory: float) -> Iterator[tuple[int, int]]:
    """A server of a cube in its own process: its port and its process id."""
    words = [sys.executable, "-m", "eocube.cli", "serve", cube, "--port", "0", "--memory", str(memory)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield int(line.split("//")[1].split("/")[0].rpartition(":")[2]), process.pid
    finally:
        process.terminate()
        process.wait(30)


def made_cube(folder: Path, weights: str, dates: int) -> str:
    """A cube of a shard of made-up scenes."""
    index, interval, box = shard_scenes(folder / "scenes", dates, 10)
    out = str(folder / "cube.zarr")
    words = ["--bbox", *map(str, box), "--datetime", interval, "--catalog", str(index), "--weights", weights]
    if eocube_main(["encode", *words, "--out", out, "--quiet"]) != 0:
        raise RuntimeError("the scenes were not encoded")
    return out


def spread(milliseconds: Sequence[float]) -> dict[str, float]:
    """Median, 90th percentile and largest."""
    found = np.asarray(milliseconds)
    return {
        "tiles": len(found), "median_ms": round(float(np.median(found)), 1),
        "p90_ms": round(float(np.percentile(found, 90)), 1), "most_ms": round(float(found.max()), 1),
    }  # fmt: skip


def grid_of(bounds: Sequence[float], z: int, times: int, apart: int) -> list[Tile]:
    """Tiles whose ground lies within bounds in degrees, every so many."""

    def at(lon: float, lat: float) -> tuple[float, float]:
        row = (1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2
        return (lon + 180) / 360 * 2**z, row * 2**z

    left, bottom = at(bounds[0], bounds[1])
    right, top = at(bounds[2], bounds[3])
    across = range(math.ceil(left), math.floor(right), apart)
    down = range(math.ceil(top), math.floor(bottom), apart)
    found = [Tile(t, z, x, y) for t in range(times) for y in down for x in across]
    return found or [Tile(t, z, int((left + right) / 2), int((top + bottom) / 2)) for t in range(times)]


def together(port: int, paths: Sequence[str]) -> float:
    """Tiles a second of `CLIENTS` clients that take paths in turn."""
    left, lock = list(reversed(paths)), threading.Lock()

    def work() -> None:
        client = Client(port)
        while True:
            with lock:
                if not left:
                    return
                path = left.pop()
            client.get(path)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(len(paths) / (time.perf_counter() - began), 1)


def by_hand(cube: str, tiles: Sequence[Tile], stretch: Stretch) -> list[float]:
    """Milliseconds of each tile by `ds.eocube.decode()`, GDAL and a PNG, without a server."""
    ds, found = eocube.open(cube), []
    epsg = int(str(ds.attrs["eocube"]["grid"]["crs"]).rpartition(":")[2])
    for tile in tiles:
        began = time.perf_counter()
        place = TilePlace(tile.z, tile.x, tile.y)
        west, south, east, north = _degrees(place)
        pixels = ds.isel(time=[tile.time]).eocube.decode(["B04", "B03", "B02"], bbox=(west, south, east, north))
        image = pixels.isel(time=0).compute()
        out = np.full((3, 256, 256), np.nan, np.float32)
        step = float(image.x[1] - image.x[0])
        transform = (step, 0, float(image.x[0]) - step / 2, 0, -step, float(image.y[0]) + step / 2)
        reproject(
            image.values, out, src_transform=_affine(transform), src_crs=f"EPSG:{epsg}", src_nodata=np.nan,
            dst_transform=place.transform, dst_crs=MERCATOR, dst_nodata=np.nan, resampling=Resampling.bilinear,
        )  # fmt: skip
        png(shaded(out, stretch))
        found.append((time.perf_counter() - began) * 1e3)
    return found


def _affine(numbers: Sequence[float]) -> Any:
    from affine import Affine

    return Affine(*numbers)


def _degrees(place: TilePlace) -> tuple[float, float, float, float]:
    from pyproj import Transformer

    found = Transformer.from_crs(3857, 4326, always_xy=True).transform_bounds(*place.bounds)
    return float(found[0]), float(found[1]), float(found[2]), float(found[3])


def peak(pid: int) -> float:
    """Megabytes of memory that a process had at most (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return math.nan
    return round(next((int(x.split()[1]) / 1e3 for x in lines if x.startswith("VmHWM")), math.nan), 0)


def spent(pid: int) -> float:
    """Milliseconds of processor time that a process has had (Linux): what a busy machine does not change much."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e3


def measure(cube: str, memory: float, *, quick: bool) -> dict[str, Any]:
    """All figures of one cube."""
    found: dict[str, Any] = {"machine": describe(torch.device("cpu")), "memory_given_mb": memory * 1e3}
    with server(cube, memory) as (port, pid):
        client = Client(port)
        (about, *_) = json.loads(client.get("/api/cubes")[1])["cubes"]
        times, bounds, native = len(about["times"]), about["bounds"], about["max_zoom"] - 3
        found["memory_at_start_mb"] = peak(pid)
        first, body = client.get("/api/stretch/0/true-colour/0")
        said = json.loads(body)
        stretch = Stretch(tuple(said["vmin"]), tuple(said["vmax"]), said["gamma"])
        found["first_stretch_ms"] = round(first, 0)
        found["zooms"] = {}
        cold: list[Tile] = []
        for z in (native, native - 3) if quick else (native, native + 1, native - 1, native - 2, native - 3):
            tiles = grid_of(bounds, z, times, max(1, round(APART * 2.0 ** (z - native))))
            tiles = tiles[: 4 if quick else 24]
            with server(cube, memory) as (fresh, own):
                # By the fixed stretch, which no window is decoded for; the first tile waits for the decoder's weights.
                new = Client(fresh)
                first_tile, *taken = [new.get(tile.path("true-colour") + FIXED)[0] for tile in tiles]
                before = spent(own)
                warm = [new.get(tile.path("true-colour") + FIXED)[0] for tile in tiles]
                between = spent(own)
                kept = [new.get(tile.path("infrared") + FIXED)[0] for tile in tiles]
                after = spent(own)
                kept += [new.get(tile.path("ndvi"))[0] for tile in tiles]
            found["zooms"][str(z)] = {
                "metres_a_pixel": round(TilePlace(z, tiles[0].x, tiles[0].y).ground_pixel, 1),
                "first_tile_ms": round(first_tile), "cold": spread(taken),
                "cpu_ms_a_tile": {
                    "kept": round((after - between) / len(tiles), 1), "warm": round((between - before) / len(tiles), 1),
                },
                "kept": spread(kept), "warm": spread(warm),
            }  # fmt: skip
            cold = cold or tiles[1:]
        every = grid_of(bounds, native, times, 1)[: 12 if quick else None]
        paths = [tile.path() for tile in every]
        found["eight_clients"] = {
            "tiles": len(paths),
            "first_time_tiles_per_second": together(port, paths),
            "kept_tiles_per_second": together(port, [tile.path("infrared") for tile in every]),
            "warm_tiles_per_second": together(port, paths * (10 if quick else 5)),
        }
        found["most_memory_mb"] = peak(pid)
    reference = by_hand(cube, cold, stretch)
    ours = found["zooms"][str(native)]["cold"]["median_ms"]
    found["reference"] = {"what": "decode, warp and PNG of each cold tile by itself", **spread(reference)}
    found["cold_ratio"] = round(float(np.median(reference)) / ours, 2)
    found["load_after"] = round(os.getloadavg()[0], 1)
    return found


def main() -> None:
    """Measure and print."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--cube")
    words.add_argument("--weights", default="nano")
    words.add_argument("--memory", type=float, default=1.0)
    words.add_argument("--dates", type=int, default=2)
    words.add_argument("--quick", action="store_true")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cube = given.cube or made_cube(Path(folder), given.weights, given.dates)
        print(json.dumps({"weights": given.weights, **measure(cube, given.memory, quick=given.quick)}, indent=1))


if __name__ == "__main__":
    main()
