"""Opens scenes' files and reads of them by the network's rules; tells which of them hold which bands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

from eocube.errors import RefusedError, SourceError
from eocube.net.network import Network, shared_network
from eocube.net.redaction import secrets_of
from eocube.net.storage_options import host_of
from eocube.raster.cache import RasterCache
from eocube.raster.checks import DEFECTS, judge_read
from eocube.raster.opening import Raster
from eocube.read.bands import failure
from eocube.read.place import misplaced
from eocube.scenes.scene import BandSource, Scene
from eocube.scenes.search import sign
from eocube.sensors.sensor import Sensor

T = TypeVar("T")


class Sources:
    """The files of a sensor's scenes, kept open; for many threads at once.

    Args:
        sensor: whose bands are read.
        options: fsspec options.
        retries: how often a remote source is asked again.
        network: None takes this process's own.
    """

    def __init__(
        self, sensor: Sensor, options: Mapping[str, Any], retries: int, network: Network | None = None
    ) -> None:
        self.options, self.retries, self.network = dict(options), retries, network or shared_network()
        self._sensor = sensor
        self._secrets = secrets_of(self.options)
        self._cache = RasterCache(self.options, network=self.network)
        self._held: Mapping[str, tuple[Raster, str]] = {}

    def holding(self, held: Mapping[str, tuple[Raster, str]]) -> Sources:
        """The same files, of which some, by their href, are to be read in what is held of them."""
        other = copy(self)
        other._held = held
        return other

    def close(self) -> None:
        """Close all files. No thread may be reading."""
        self._cache.close()

    def open(self, scene: Scene, source: BandSource) -> tuple[Raster, str]:
        """A source's raster and CRS. RefusedError where nothing says where it lies; else whatever opening raises."""
        if source.href in self._held:
            return self._held[source.href]
        raster = self._cache.get(source.href, lambda href: sign(href, scene.signer))
        if not raster.georeferenced:
            raise RefusedError("it has no transform (ground control points only?); use a terrain-corrected product")
        crs = raster.crs or (f"EPSG:{scene.epsg}" if scene.epsg else None)
        if crs is None:
            raise RefusedError("neither the file nor the item says its CRS")
        return raster, crs

    def overview(self, scene: Scene, source: BandSource, level: int) -> Raster:
        """An overview of a source's raster."""
        return self._cache.get(source.href, lambda href: sign(href, scene.signer), level)

    def files(self, scene: Scene, indices: Sequence[int]) -> dict[str, list[tuple[int, BandSource]]]:
        """The bands of a group by the file they are in, each with its place in the group. SourceError names one not
        there."""
        sources = {source.band: source for source in scene.sources}
        files: dict[str, list[tuple[int, BandSource]]] = {}
        for place_in_group, index in enumerate(indices):
            name = self._sensor.bands[index].name
            if name not in sources:
                raise SourceError(f"item {scene.id} has no asset for band {name}", item=scene.id, asset=name)
            files.setdefault(sources[name].href, []).append((place_in_group, sources[name]))
        return files

    def tried(self, source: BandSource, load: Callable[[], T]) -> T:
        """Run a read; on failure forget the handle, wait, sign and open anew. The last failure when it is no use.

        While the source's host is down the read waits with all others: an outage fails no window before its time.
        """
        host = host_of(source.href, self.options)

        def forget() -> None:
            self._forget(source.href)

        if host:
            # One read makes several requests: GDAL's own, or, where they are counted out, each by the network's rules.
            return self.network.call(host, load, tries=self.retries + 1, judge=judge_read, failed=forget, request=False)
        try:
            return load()
        except DEFECTS:
            raise
        except Exception:  # drivers and filesystems raise whatever they like
            forget()
            raise

    def attempt(self, scene: Scene, source: BandSource, load: Callable[[], T]) -> T:
        """As `tried`; SourceError, which says of what, when it is no use."""
        try:
            return self.tried(source, load)
        except DEFECTS:
            raise
        except Exception as error:
            # `from None`: the original error may hold a signed URL.
            raise failure(scene, source, error, self._secrets) from None

    def _forget(self, href: str) -> None:
        try:
            self._cache.drop(href)
        except Exception:  # closing a broken handle may fail too; it is gone from the cache all the same
            return


def check_place(scene: Scene, raster: Raster, crs: str) -> None:
    """RefusedError where a raster that a window does not meet lies beside its item's whole footprint."""
    why = misplaced(scene, crs, raster.transform, raster.height, raster.width)
    if why is not None:
        raise RefusedError(why)
