"""What a file declares in a few bytes takes memory within bounds: it is read thinned out, or refused in one line."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine

from eocube.errors import SourceError
from eocube.read.reader import WindowReader
from tests.eocube.rasters import LATTICE, LEFT, TOP, WINDOW, over, read, s2


def sparse(path: Path, side: float, size: int, block: int = 512) -> Path:
    """A file of a few hundred bytes that declares size x size pixels."""
    with rasterio.open(
        path, "w", driver="GTiff", height=size, width=size, count=1, dtype="uint8", crs="EPSG:32633", tiled=True,
        transform=Affine(side, 0, LEFT - 100, 0, -side, TOP + 100), blockxsize=block, blockysize=block,
        compress="deflate", sparse_ok=True,
    ):  # fmt: skip
        pass
    return path


def test_finer_pixels_without_overviews_are_thinned_and_lie_on_their_ground(tmp_path: Path) -> None:
    """A ramp at 0.8 m: what is read of it is right to the few pixels of one that is read, at a fraction of them all."""
    size = 3500
    columns = (np.arange(size, dtype=np.uint32) // 2 + 2000).astype(np.uint16)
    path = tmp_path / "fine.tif"
    with rasterio.open(
        path, "w", driver="GTiff", height=size, width=size, count=1, dtype="uint16", crs="EPSG:32633", tiled=True,
        transform=Affine(0.8, 0, LEFT - 100, 0, -0.8, TOP + 100), blockxsize=512, blockysize=512, compress="deflate",
    ) as target:  # fmt: skip
        target.write(np.broadcast_to(columns, (size, size)), 1)
    pixels = read(over(path))
    assert pixels.valid_percent == 100 and pixels.bytes_read < 2e6 < size * size
    east = 10 + np.arange(256) * 1.0  # in pixels of 10 m from the file's edge, 12.5 of its own a pixel
    assert np.abs(pixels.groups[10][0].astype(float) - ((east + 0.5) * 6.25 + 2000)[None, :]).max() < 3


def test_pixels_beyond_counting_are_refused(tmp_path: Path) -> None:
    path = sparse(tmp_path / "b.tif", 0.004, 700_000, 16384)
    assert path.stat().st_size < 20_000
    with pytest.raises(SourceError, match=r"item item-1, asset b02: .*no overviews of them; add some \(gdaladdo\)"):
        read(over(path))
    with pytest.raises(SourceError, match=r"asset scl: .*gdaladdo"), WindowReader(s2(), LATTICE) as reader:
        reader.mask([over(path, mask=path)], WINDOW)


READS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from eocube.read.reader import WindowReader
from tests.eocube.rasters import LATTICE, WINDOW, over, s2
with WindowReader(s2(), LATTICE) as reader, ThreadPoolExecutor(8) as pool:
    scenes = [over(path) for path in sys.argv[1:]]
    print([p.valid_percent for p in pool.map(lambda scene: reader.read([scene], WINDOW), scenes)])
"""


@pytest.mark.slow
@pytest.mark.parametrize("side, size", [(0.04, 66_000), (0.6, 4_500)])
def test_eight_threads_stay_within_a_limit_of_memory(tmp_path: Path, side: float, size: int) -> None:
    paths = [str(sparse(tmp_path / f"{k}.tif", side, size)) for k in range(8)]
    limit = int(3e9)
    done = subprocess.run(
        [sys.executable, "-c", READS, *paths], capture_output=True, text=True, timeout=240,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )  # fmt: skip
    assert done.stdout.strip() == str([0] * 8), done.stderr[-2000:]
