"""Rasters kept open: local ones opened once for all threads, without a wrong pixel; remote ones a thread's own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray

from eocube.raster import cache as raster_cache
from eocube.raster.cache import RasterCache
from eocube.raster.opening import Raster, gdal_environment, open_raster

SIDE, WINDOW, THREADS = 512, 96, 8


def same(href: str) -> str:
    return href


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.uint16]]:
    """Four tiled files and their pixels."""
    folder, found = tmp_path_factory.mktemp("rasters"), {}
    for k in range(4):
        values = np.random.default_rng(k).integers(1, 9000, (SIDE, SIDE)).astype(np.uint16)
        path = folder / f"{k}.tif"
        with rasterio.open(path, "w", driver="COG", width=SIDE, height=SIDE, count=1, dtype="uint16", crs="EPSG:32633",
                           transform=Affine(10, 0, 4e5, 0, -10, 5e6), blocksize=128) as target:  # fmt: skip
            target.write(values, 1)
        found[str(path)] = values
    return found


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every href that is really opened."""
    names: list[str] = []

    def noted(href: str, *rest: Any) -> Raster:
        names.append(href)
        return open_raster(href, *rest)

    monkeypatch.setattr(raster_cache, "open_raster", noted)
    yield names


@pytest.mark.parametrize("limit", [96, 2])  # 2: files are let go of while other threads read them
def test_threads_at_once_read_the_right_pixels(
    files: dict[str, NDArray[np.uint16]], opened: list[str], limit: int
) -> None:
    cache, start = RasterCache({}, limit), Barrier(THREADS)

    def work(turn: int) -> int:
        random, wrong = np.random.default_rng(turn), 0
        start.wait()
        for _ in range(60):
            href = list(files)[random.integers(len(files))]
            row, col = (int(v) for v in random.integers(0, SIDE - WINDOW, 2))
            with gdal_environment({}):
                pixels = cache.get(href, same).read([1], (row, row + WINDOW), (col, col + WINDOW))
            wrong += not np.array_equal(pixels[0], files[href][row : row + WINDOW, col : col + WINDOW])
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(work, range(THREADS))) == 0
    assert sorted(opened) == sorted(files) if limit > len(files) else len(opened) > len(files)
    cache.close()


def test_what_one_thread_drops_another_reads_to_the_end(
    files: dict[str, NDArray[np.uint16]], opened: list[str]
) -> None:
    href, values = next(iter(files.items()))
    cache = RasterCache({})
    with gdal_environment({}):
        held = cache.get(href, same)
        with ThreadPoolExecutor(1) as other:
            other.submit(cache.drop, href).result()
        np.testing.assert_array_equal(held.read([1], (0, SIDE), (0, SIDE))[0], values)
        assert cache.get(href, same) is not held and opened == [href, href]
    cache.close()


def test_a_remote_raster_is_a_thread_s_own_and_any_thread_closes_it(
    files: dict[str, NDArray[np.uint16]], opened: list[str]
) -> None:
    content = Path(next(iter(files))).read_bytes()
    fsspec.filesystem("memory").pipe_file("/raster-cache/a.tif", content)
    cache, together = RasterCache({}), Barrier(3)

    def get(_: int) -> Raster:
        together.wait()
        with gdal_environment({}):
            return cache.get("memory://raster-cache/a.tif", same)

    with ThreadPoolExecutor(3) as pool:
        rasters = list(pool.map(get, range(3)))
    assert len({id(r) for r in rasters}) == 3 == len(opened)
    cache.close()
    assert all(r.dataset.closed for r in rasters)
