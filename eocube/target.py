"""Where a store's objects go: whole objects by key, on local disk or anything fsspec reaches."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from eocube.errors import StoreError

_TEMPORARY = ".tmp"
_AT_ONCE = 16  # objects read at the same time


def redacted(text: str) -> str:
    """A URL or message without user information and without what follows a question mark: safe to print."""
    return re.sub(r"\?[^\s'\"]*", "", re.sub(r"//[^/\s@]+@", "//", text))


@contextmanager
def storing(doing: str, url: str) -> Iterator[None]:
    """Turn whatever the storage raises inside into a one-line StoreError: "cannot write s3://b/c: no such bucket"."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # every fsspec backend raises classes of its own
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        why = redacted((why.strip().splitlines() or [""])[0]) or type(error).__name__
        hint = _HINTS.get(type(error), "check that the target exists and may be written")
        raise StoreError(f"cannot {doing} {redacted(url)}: {why}; {hint}") from error


_HINTS: dict[type[Exception], str] = {
    PermissionError: "check the rights and credentials for the target",
    FileExistsError: "choose another target",
    NotADirectoryError: "choose another target",
}


class Target:
    """Objects of one store, by key relative to its root. Every write is one whole object; safe from several threads.

    Args:
        url: local path or any fsspec URL.
        storage_options: fsspec options (endpoint, credentials, ...), never written anywhere.
    """

    def __init__(self, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = os.fspath(url).rstrip("/") or "/"
        self.options = dict(storage_options or {})
        with storing("open", self.url):
            probe, _ = url_to_fs(self.url)
            # Options are for remote ends: a local path must not fail on an endpoint given for the sources.
            self.fs, self.path = (
                url_to_fs(self.url) if isinstance(probe, LocalFileSystem) else url_to_fs(self.url, **self.options)
            )
        self.local = Path(self.path) if isinstance(self.fs, LocalFileSystem) else None

    def __str__(self) -> str:
        return redacted(self.url)

    def at(self, key: str) -> str:
        """Where the object of a key is, for messages."""
        return f"{self}/{key}"

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole: one request, or on disk one rename once the bytes are safe."""
        with storing("write", self.at(key)):
            if self.local is None:
                self.fs.pipe_file(f"{self.path}/{key}", data)
                return
            _replace(self.local / key, self.local / _TEMPORARY, data)

    def get(self, key: str) -> bytes | None:
        """The object's bytes; None when there is none."""
        with storing("read", self.at(key)):
            try:
                # From a stated start: s3fs would otherwise ask for the size first, and list the folder when it fails.
                return bytes(self.fs.cat_file(f"{self.path}/{key}", start=0))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """The bytes of several objects, in order, read several at a time. StoreError when one is not there."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="get") as pool:
            found = list(pool.map(self.get, keys))
        for key, data in zip(keys, found, strict=True):
            if data is None:
                raise StoreError(f"{self.at(key)} is missing: it was there a moment ago")
        return [data for data in found if data is not None]

    def delete(self, key: str) -> None:
        """Remove an object, in one request; fine when there is none."""
        with storing("remove", self.at(key)), suppress(FileNotFoundError):
            if self.local is not None:
                (self.local / key).unlink()
            else:
                self.fs.rm_file(f"{self.path}/{key}")

    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects under a folder, sorted."""
        root = f"{self.path}/{prefix}".rstrip("/")
        with storing("list", self.at(prefix)):
            self.fs.invalidate_cache()
            start = len(self.path.rstrip("/")) + 1
            return sorted(str(p)[start:] for p in self.fs.find(root))

    def names(self) -> list[str]:
        """What lies directly at the root, sorted; empty when there is nothing, or nothing there at all."""
        with storing("open", self.url):
            if self.local is not None:
                if not self.local.exists():
                    return []
                return sorted(p.name for p in self.local.iterdir() if p.name != _TEMPORARY)
            self.fs.invalidate_cache()
            try:
                return sorted(str(p).rstrip("/").rsplit("/", 1)[-1] for p in self.fs.ls(self.path, detail=False))
            except FileNotFoundError:
                return []

    def tidy(self, *, everything: bool = False) -> None:
        """Remove the folder of unfinished writes where it is empty.

        With `everything` also what killed writers left in it: for the driver, while no writer is at work.
        """
        if self.local is None:
            return
        if everything:
            shutil.rmtree(self.local / _TEMPORARY, ignore_errors=True)
        else:
            with suppress(OSError):
                (self.local / _TEMPORARY).rmdir()

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Remove the local folders made inside when it fails, so that a target refused leaves nothing behind."""
        first = None
        if self.local is not None:
            missing = [p for p in (self.local, *self.local.parents) if not p.exists()]
            first = missing[-1] if missing else None
        try:
            yield
        except BaseException:
            if first is not None:
                shutil.rmtree(first, ignore_errors=True)
            raise

    def zarr(self) -> Store:
        """The target as a read-only zarr store."""
        if self.local is not None:
            return LocalStore(self.local, read_only=True)
        return FsspecStore.from_url(self.url, storage_options=self.options, read_only=True)


def _replace(final: Path, folder: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process or the machine dies."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder / uuid.uuid4().hex
    try:
        try:
            file = temporary.open("xb")
        except FileNotFoundError:  # no folder yet, or tidied away by another process just now
            folder.mkdir(parents=True, exist_ok=True)
            file = temporary.open("xb")
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(final.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename outlast the machine; not every file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
