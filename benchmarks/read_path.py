"""GDAL's own HTTP reader against fsspec for windows of a COG: a ratio, from a server on this machine.

    python benchmarks/read_path.py [--delay-ms 20] [--megabytes-per-second 50]

Prints one JSON object: seconds, requests and megabytes of each path for the same windows, neighbours in two rows of a
shard and a few far apart. A delay before every answer and a limit on each connection stand for an object store.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine

from eocube.raster.cache import RasterCache
from eocube.raster.opening import gdal_environment


class _Ranges(BaseHTTPRequestHandler):
    """Serves one file with byte ranges, slowly, and counts what it is asked."""

    protocol_version = "HTTP/1.1"
    content = b""
    delay = 0.0
    bytes_per_second = 5e7
    requests = 0
    sent = 0
    lock = threading.Lock()

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        first, last, status = 0, len(self.content) - 1, 200
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            low, _, high = asked[6:].partition("-")
            first, last, status = int(low), min(int(high or last), last), 206
        size = last - first + 1 if body else 0
        with self.lock:
            _Ranges.requests += 1
            _Ranges.sent += size
        time.sleep(self.delay + size / self.bytes_per_second)
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last - first + 1))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.content)}")
        self.end_headers()
        if body:
            self.wfile.write(self.content[first : last + 1])

    def log_message(self, format: str, *args: object) -> None:
        return


def _cog(path: Path, size: int) -> bytes:
    """A deflated uint16 COG with the compressibility of a Sentinel-2 band."""
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(0, 20, (size, size)), axis=1) + 3000
    with rasterio.open(path, "w", driver="COG", width=size, height=size, count=1, dtype="uint16", crs="EPSG:32633",
                       transform=Affine(10, 0, 399960, 0, -10, 5300040), nodata=0, compress="deflate",
                       predictor=2, blocksize=1024) as target:  # fmt: skip
        target.write(smooth.clip(1, 20000).astype(np.uint16), 1)
    return path.read_bytes()


@dataclass(frozen=True, slots=True, order=True)
class _Run:
    seconds: float
    requests: int
    megabytes: float
    checksum: int


def _read(url: str, options: dict[str, object], windows: list[tuple[int, int]]) -> _Run:
    """Open the URL and read the windows in order, as the reader does."""
    _Ranges.requests = _Ranges.sent = 0
    cache = RasterCache(options)
    started, total = time.perf_counter(), 0
    with gdal_environment(options):
        for row, col in windows:
            raster = cache.get(url, lambda href: href)
            total += int(raster.dataset.read(1, window=((row, row + 256), (col, col + 256))).sum(dtype=np.int64))
        cache.close()
    return _Run(time.perf_counter() - started, _Ranges.requests, _Ranges.sent / 1e6, total)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--delay-ms", type=float, default=20.0, help="wait before every answer, milliseconds")
    parser.add_argument("--megabytes-per-second", type=float, default=50.0, help="speed of each connection")
    parser.add_argument("--size", type=int, default=4096, help="side of the COG, pixels")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _Ranges.content = _cog(Path(folder) / "band.tif", asked.size)
    _Ranges.delay, _Ranges.bytes_per_second = asked.delay_ms / 1000, asked.megabytes_per_second * 1e6
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    steps = range(0, asked.size - 256, 192)
    patterns = {
        "neighbours": [(row, col) for row in (1100, 1292) for col in steps],
        "far_apart": [(100, 100), (100, asked.size - 400), (asked.size - 400, 100), (asked.size // 2, asked.size // 2)],
    }
    report: dict[str, object] = {
        "delay_ms": asked.delay_ms,
        "megabytes_per_second": asked.megabytes_per_second,
        "cog_megabytes": round(len(_Ranges.content) / 1e6, 1),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, GDAL {rasterio.__gdal_version__}",
    }
    for name, windows in patterns.items():
        runs: dict[str, list[_Run]] = {"gdal": [], "fsspec": []}
        for turn in range(3):  # URLs of their own, so that no cache helps
            runs["gdal"].append(_read(f"{base}/{name}-gdal{turn}.tif", {}, windows))
            # An option that GDAL has no word for sends the URL through fsspec.
            runs["fsspec"].append(_read(f"{base}/{name}-fsspec{turn}.tif", {"use_listings_cache": False}, windows))
        if len({run.checksum for found in runs.values() for run in found}) != 1:
            raise SystemExit("the two paths read different pixels")
        best = {path: min(found) for path, found in runs.items()}
        report[name] = {
            "windows": len(windows),
            "fsspec_over_gdal": round(best["fsspec"].seconds / best["gdal"].seconds, 2),
        } | {
            path: {"seconds": round(run.seconds, 3), "requests": run.requests, "megabytes": round(run.megabytes, 1)}
            for path, run in best.items()
        }
    server.shutdown()
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
