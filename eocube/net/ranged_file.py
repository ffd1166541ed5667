"""Reads a remote file as seekable bytes, for GDAL's opener: every range is one request by the network's rules."""

from __future__ import annotations

import io

from fsspec import AbstractFileSystem

from eocube.net.http_client import read_range
from eocube.net.network import Network

BLOCK = 2**20
"""Bytes fetched at a time, at least: fsspec's own 5 MB is most of a band for one window."""
_KEPT = 2  # ranges kept besides the first, which holds a COG's directory


class RangedFile(io.RawIOBase):
    """Reads ranges of one object, keeping the first and the latest few. An answer of the wrong length is a failure."""

    def __init__(self, filesystem: AbstractFileSystem, path: str, host: str, network: Network) -> None:
        super().__init__()
        self._filesystem, self._path, self._host, self._network = filesystem, path, host, network
        self._size = int(network.call(host, lambda: filesystem.size(path)))
        self._at = 0
        self._ranges: list[tuple[int, bytes]] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._at + size, self._size)
        if self._at >= stop:
            return b""
        start, data = self._around(self._at, stop)
        part = data[self._at - start : stop - start]
        self._at = stop
        return part

    def readall(self) -> bytes:
        return self.read()

    def _around(self, low: int, high: int) -> tuple[int, bytes]:
        for start, data in self._ranges:
            if start <= low and high <= start + len(data):
                return start, data
        stop = min(self._size, max(high, low + BLOCK))
        found = low, self._network.call(self._host, lambda: self._fetch(low, stop))
        if len(self._ranges) > _KEPT:
            del self._ranges[1]
        self._ranges.append(found)
        return found

    def _fetch(self, low: int, high: int) -> bytes:
        if self._path.startswith(("http://", "https://")):
            data = read_range(self._filesystem, self._path, low, high)
        else:
            data = bytes(self._filesystem.cat_file(self._path, start=low, end=high))
        if len(data) != high - low:
            raise ConnectionError(f"{len(data)} bytes came where {high - low} were asked for")
        return data
