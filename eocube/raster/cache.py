"""Keeps rasters open: a local file's handle shared by all threads, a remote one's by none; both bounded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from eocube.net import forks
from eocube.net.network import Network, shared_network
from eocube.net.storage_options import scheme_of
from eocube.raster.opening import Raster, open_raster

KEPT_OPEN = 96
"""Rasters that each reading thread may keep open, and all of them together among the local ones."""

_Key = tuple[str, int | None]


@dataclass(slots=True, eq=False)
class _Place:
    """Where one raster lies once it is open; threads that want it at once wait for the first to open it."""

    opening: threading.Lock = field(default_factory=threading.Lock)
    raster: Raster | None = None


class RasterCache:
    """Open rasters by unsigned href, the latest used ones kept.

    A local file is opened once for all threads, which take turns in it: GDAL keeps decoded blocks with the handle, so
    that a block under several windows is unpacked once. A remote one has a handle a thread: threads that wait for
    the network must not wait for each other.

    """

    def __init__(
        self, storage_options: Mapping[str, Any], limit: int = KEPT_OPEN, network: Network | None = None
    ) -> None:
        self._options, self._limit, self._network = storage_options, limit, network or shared_network()
        self._parents: list[Any] = []
        self.after_fork()
        forks.watch(self)

    def after_fork(self) -> None:
        """Keep nothing open: a forked child shares the parent's positions in its files, and its locks may be held."""
        self._parents.append(getattr(self, "_all", None))  # not closed: what GDAL locked in the parent stays locked
        self._local: OrderedDict[_Key, _Place] = OrderedDict()
        self._own = threading.local()
        self._all = [self._local]
        self._lock = threading.Lock()

    def get(self, href: str, sign: Callable[[str], str], overview: int | None = None) -> Raster:
        """The raster behind an unsigned href, kept or newly opened. `sign` makes the href that is opened, each time."""
        key = (href, overview)
        with self._lock:
            places = self._places(href)
            place = places.setdefault(key, _Place())
            places.move_to_end(key)
            while len(places) > self._limit:
                self._let_go(places.popitem(last=False)[1], places)
        with place.opening:
            if place.raster is None:
                place.raster = open_raster(sign(href), self._options, overview, self._network)
            return place.raster

    def drop(self, href: str) -> None:
        """Forget an href, so that the next `get` signs and opens it anew; of a remote one, this thread's handle."""
        with self._lock:
            places = self._places(href)
            for key in [key for key in places if key[0] == href]:
                self._let_go(places.pop(key), places)

    def close(self) -> None:
        """Close the rasters of all threads. No thread may be reading."""
        with self._lock:
            for places in self._all:
                while places:
                    place = places.popitem()[1]
                    if place.raster is not None:
                        place.raster.close()

    def _let_go(self, place: _Place, places: OrderedDict[_Key, _Place]) -> None:
        """Close a raster that is kept no longer; a shared one closes itself with the last thread that reads it."""
        if place.raster is not None and places is not self._local:
            place.raster.close()

    def _places(self, href: str) -> OrderedDict[_Key, _Place]:
        """The rasters that this one is kept among. Under the lock."""
        if not scheme_of(href):
            return self._local
        mine: OrderedDict[_Key, _Place] | None = getattr(self._own, "places", None)
        if mine is None:
            mine = self._own.places = OrderedDict()
            self._all.append(mine)
        return mine
