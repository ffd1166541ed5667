"""Opens a remote Zarr store for reading that says in one line when a forked child cannot use it."""

from __future__ import annotations

import os
from typing import Any

from zarr.storage import FsspecStore

from eocube.errors import StoreError
from eocube.net.forks import SPAWN
from eocube.net.storage_options import scheme_of


class RemoteStore(FsspecStore):
    """Objects of a remote store, for the process that opened it; pickled, for the one that unpickles it."""

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        """An object, whole or a range of it; StoreError in a child forked after the store was opened."""
        self._check()
        return await super().get(*args, **kwargs)

    async def get_partial_values(self, *args: Any, **kwargs: Any) -> Any:
        """Ranges of objects; StoreError in a child forked after the store was opened."""
        self._check()
        return await super().get_partial_values(*args, **kwargs)

    def _check(self) -> None:
        # fsspec notes which process an asynchronous filesystem is for: sockets and event loop stayed there.
        if getattr(self.fs, "_pid", os.getpid()) != os.getpid():
            raise StoreError(f"{self.path} was opened before this process was forked off: {SPAWN}")


def readable(path: str, storage_options: dict[str, Any] | None) -> RemoteStore | str:
    """What zarr is to open for a path or URL: a local path as it is, a remote one as a `RemoteStore`."""
    if scheme_of(path) in ("", "memory"):
        return path
    store = RemoteStore.from_url(path, storage_options=storage_options, read_only=True)
    assert isinstance(store, RemoteStore)
    return store
