"""Opens rasters: by GDAL's own fast path for local, https and s3, else by any fsspec URL."""

from __future__ import annotations

import io
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.abc import FileContainer
from rasterio.crs import CRS
from rasterio.session import Session
from rasterio.windows import Window

from eocube.errors import RefusedError, SourceError
from eocube.net.network import Network, shared_network
from eocube.net.ranged_file import RangedFile
from eocube.net.relay import judged_connections
from eocube.net.storage_options import (
    GDAL_S3_CLIENT_OPTIONS,
    GDAL_S3_OPTIONS,
    check_reach,
    filesystem_for,
    gdal_s3_options,
    host_of,
    options_for,
    policy_of,
    scheme_of,
)
from eocube.raster.checks import (
    check_leads_nowhere,
    decoded_sizes,
    has_sound_side_cars,
    masks_of,
    open_by_driver,
    open_by_opener,
    palettes_of,
)

CURL_CACHE = 128 * 2**20
"""Bytes of a process's cache of what GDAL fetched."""
BLOCK_CACHE = 256 * 2**20
"""Bytes of a process's cache of decoded blocks. GDAL's own default is 5 % of the machine's memory, for each process."""

# Every option that a read relies on; a user's own environment variables do not change what is read.
_OPTIONS: Mapping[str, str | int | float] = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # no listing and no probes for side-car files: 10 requests fewer
    # GDAL asks again by itself, with jitter; what still fails goes through `eocube.net.network`.
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 0.5,
    "GDAL_HTTP_RETRY_CODES": "429,500,502,503,504",
    "GDAL_HTTP_CONNECTTIMEOUT": 15,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_MULTIPLEX": "YES",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": 32768,
    "CPL_VSIL_CURL_CACHE_SIZE": CURL_CACHE,
    "GDAL_CACHEMAX": BLOCK_CACHE,
    # GDAL's own threads know neither the options of ours (a bucket's keys) nor rasterio's openers; what they fail to
    # read is left as whatever was in memory: blocks of a JPEG 2000 file came back as noise. Ours are many already.
    "GDAL_NUM_THREADS": 1,
    # A failed request must not be remembered: a retry asks again.
    "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/",
}

# What the environment says in these would go to every host that a catalogue names: what is for one host is said in the
# storage options' `hosts`.
_TO_EVERY_HOST = ("GDAL_HTTP_HEADERS", "GDAL_HTTP_HEADER_FILE", "GDAL_HTTP_BEARER", "GDAL_HTTP_USERPWD")


class _Keys(Session):  # type: ignore[misc]
    """S3 credentials as they are given; without any, GDAL looks in the environment, ~/.aws and the instance itself."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._session = None
        self.credentials = dict(options)

    @classmethod
    def hascreds(cls, config: Mapping[str, Any]) -> bool:
        return True

    def get_credential_options(self) -> dict[str, str]:
        return dict(self.credentials)


@contextmanager
def gdal_environment(storage_options: Mapping[str, Any]) -> Iterator[None]:
    """GDAL configured for eocube's reads on this thread; every read and every opening happens inside it."""
    unsaid = {name: "" for name in _TO_EVERY_HOST if os.environ.get(name)}
    with rasterio.Env(session=_Keys(gdal_s3_options(storage_options)), **_OPTIONS, **unsaid):
        yield


def gdal_path(href: str, storage_options: Mapping[str, Any]) -> str | None:
    """What GDAL itself opens for an href, or None where it must be read through fsspec."""
    scheme = scheme_of(href)
    if scheme == "":
        return unquote(urlsplit(href).path) if href.startswith(("file://", "local://")) else href
    given = options_for(href, storage_options)
    if scheme in ("http", "https") and not given:
        return f"/vsicurl/{href}"
    client = set(given.get("client_kwargs") or {})
    if scheme in ("s3", "s3a") and given.keys() <= GDAL_S3_OPTIONS and client <= GDAL_S3_CLIENT_OPTIONS:
        return f"/vsis3/{href.partition('://')[2]}"
    return None


class _OneFile(FileContainer):  # type: ignore[misc]
    """A single fsspec file as rasterio's opener wants it. Whatever path is asked for, it is this file."""

    def __init__(self, href: str, storage_options: Mapping[str, Any], network: Network) -> None:
        self._filesystem, self._path = filesystem_for(href, storage_options)
        self._host, self._network = host_of(href, storage_options), network

    def open(self, path: str, mode: str = "rb", **options: object) -> BinaryIO:
        if not self._host:  # in memory: its files share one position over all threads
            return io.BytesIO(self._filesystem.cat_file(self._path))
        file: Any = RangedFile(self._filesystem, self._path, self._host, self._network)
        opened: BinaryIO = file
        return opened

    def isfile(self, path: str) -> bool:
        return True

    def isdir(self, path: str) -> bool:
        return False

    def ls(self, path: str) -> list[str]:
        return []

    def mtime(self, path: str) -> int:
        return 0

    def rm(self, path: str) -> None:
        raise PermissionError("sources are only read")

    def size(self, path: str) -> int:
        return int(self._network.call(self._host, lambda: self._filesystem.size(self._path)))


@lru_cache(maxsize=256)
def _crs_name(wkt: str) -> str:
    crs = CRS.from_wkt(wkt)
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else wkt


@dataclass(frozen=True, slots=True)
class Raster:
    """An open dataset and what is asked of it again and again.

    `crs` is "EPSG:32633", WKT where it has no code, or None; `overviews` the decimation factors of the first band;
    `nodata`, `dtypes`, `masked` (a mask or alpha band says which pixels are there) and `palettes` (values are places in
    a colour table) are each band's.
    """

    dataset: rasterio.DatasetReader
    transform: Affine
    height: int
    width: int
    crs: str | None
    overviews: tuple[int, ...]
    georeferenced: bool
    nodata: tuple[float | None, ...]
    block_bytes: int
    """What the largest block decodes to."""
    item_bytes: int
    """Bytes of the widest band's pixel."""
    dtypes: tuple[str, ...]
    masked: tuple[bool, ...]
    palettes: tuple[bool, ...]
    step: int = 1
    """Every how many-th pixel of the file's rows and columns is one of this raster's (`every`)."""
    _context: Context = field(default_factory=copy_context, repr=False, compare=False)
    """That it was opened in: rasterio looks there for the files of an opener, and dies where they are not."""
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def read(self, bands: Sequence[int], rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[Any]:
        """Pixels (C, rows, columns) of bands counted from 1, of half-open ranges; by one thread at a time.

        GDAL allows no two threads in one dataset. Whatever it raises.
        """
        with self._turn:
            pixels: NDArray[Any] = self.dataset.read(list(bands), **self._part(bands, rows, cols))
        return pixels

    def mask(self, bands: Sequence[int], rows: tuple[int, int], cols: tuple[int, int]) -> NDArray[np.bool_]:
        """Which of the pixels that `read` gives are there, by masks and alpha bands; (C, rows, columns)."""
        with self._turn:
            return np.asarray(self.dataset.read_masks(list(bands), **self._part(bands, rows, cols)) != 0)

    def _part(self, bands: Sequence[int], rows: tuple[int, int], cols: tuple[int, int]) -> dict[str, Any]:
        high, wide, step = rows[1] - rows[0], cols[1] - cols[0], self.step
        window = Window(cols[0] * step, rows[0] * step, wide * step, high * step)
        return {"window": window} if step == 1 else {"window": window, "out_shape": (len(bands), high, wide)}

    def every(self, step: int) -> Raster:
        """The raster with one pixel out of step x step, which GDAL picks block by block: no more is held at once."""
        return replace(
            self, transform=self.transform * Affine.scale(step), height=self.height // step,
            width=self.width // step, overviews=(), step=step,
        )  # fmt: skip

    def close(self) -> None:
        """Close the dataset, on any thread."""
        self._context.copy().run(self.dataset.close)


def _open(path: str, options: Mapping[str, Any], *, side_cars: bool) -> rasterio.DatasetReader:
    """Open with or without a look for side-car files, where some products keep their transform."""
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE" if side_cars else "EMPTY_DIR"):
        return checked(open_by_driver(path, **options))


def checked(dataset: rasterio.DatasetReader) -> rasterio.DatasetReader:
    """The dataset; closed, and RefusedError, where it leads to other files."""
    try:
        check_leads_nowhere(dataset)
    except BaseException:
        dataset.close()
        raise
    return dataset


def open_raster(
    href: str, storage_options: Mapping[str, Any], overview: int | None = None, network: Network | None = None
) -> Raster:
    """Open an href (already signed), or one of its overviews. Inside `gdal_environment`.

    Where the network limits requests, a remote file is read through fsspec, whose every request can be counted out;
    GDAL's own cannot. AddressError where an href, or what it redirects to, may not be asked; RefusedError for a file
    that leads to others; else whatever GDAL raises.
    """
    policy = policy_of(storage_options)
    try:
        check_reach(href, storage_options)
    except SourceError as error:
        raise RefusedError(str(error)) from None
    policy.check_url(href)
    with judged_connections(href, policy):
        return _opened(href, storage_options, overview, network or shared_network())


def _opened(href: str, storage_options: Mapping[str, Any], overview: int | None, network: Network) -> Raster:
    path = gdal_path(href, storage_options)
    if network.limited and scheme_of(href):
        path = None
    options: dict[str, Any] = {} if overview is None else {"overview_level": overview}
    georeference: rasterio.DatasetReader | None = None
    if path is None:
        try:
            container = _OneFile(href, storage_options, network)
            container.size("")  # what is not there says so in its own words, which GDAL's are not
        except TypeError as error:
            if not options_for(href, storage_options):
                raise
            raise RefusedError(f"its storage options are not what its filesystem takes: {error}") from error
        # A name of its own each time: rasterio mixes up threads that open one path through an opener.
        dataset = checked(open_by_opener(f"{uuid.uuid4().hex}.tif", container, **options))
    else:
        side_cars = not scheme_of(href) and has_sound_side_cars(path)
        dataset = _open(path, options, side_cars=side_cars)
    try:
        if path is not None and scheme_of(href) and dataset.transform == Affine.identity():
            # What lies beside a remote file says where it is, and no more: overviews and masks may be anything.
            georeference = _open(path, options, side_cars=True)
        return _described(dataset, georeference or dataset)
    except BaseException:
        dataset.close()
        raise
    finally:
        if georeference is not None:
            georeference.close()


def _described(dataset: rasterio.DatasetReader, georeference: rasterio.DatasetReader) -> Raster:
    transform = georeference.transform
    block_bytes, item_bytes = decoded_sizes(dataset)
    return Raster(
        dataset=dataset,
        transform=transform,
        height=dataset.height,
        width=dataset.width,
        crs=_crs_name(georeference.crs.to_wkt()) if georeference.crs else None,
        overviews=tuple(dataset.overviews(1)),
        georeferenced=transform != Affine.identity(),
        nodata=georeference.nodatavals,
        block_bytes=block_bytes,
        item_bytes=item_bytes,
        dtypes=tuple(dataset.dtypes),
        masked=masks_of(dataset),
        palettes=palettes_of(dataset),
    )
