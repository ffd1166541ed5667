"""Where a store's objects go: whole objects by key, on local disk or anything fsspec reaches."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from eocube.errors import StoreError
from eocube.forks import SPAWN
from eocube.network import Network, shared_network
from eocube.redaction import one_line, redacted, secrets_of
from eocube.storage_options import S3_SCHEMES, filesystem_for, host_of, options_for, scheme_of

_TEMPORARY = ".tmp"
_AT_ONCE = 16  # objects read at the same time

T = TypeVar("T")


@contextmanager
def storing(doing: str, url: str, secrets: Iterable[str] = ()) -> Iterator[None]:
    """Turn whatever the storage raises inside into a one-line StoreError: "cannot write s3://b/c: no such bucket"."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # every fsspec backend raises classes of its own
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        why = one_line((why.strip().splitlines() or [""])[0], secrets) or type(error).__name__
        hint = _HINTS.get(type(error), "check that the target exists and may be written")
        if "fork-safe" in why:  # fsspec's word for a filesystem whose sockets are the parent's
            hint = SPAWN
        # `from None` where there are secrets: a traceback would show the words of the client library.
        cause = None if secrets else error
        raise StoreError(f"cannot {doing} {redacted(url, secrets)}: {why}; {hint}") from cause


_HINTS: dict[type[Exception], str] = {
    PermissionError: "check the rights and credentials for the target",
    FileExistsError: "choose another target",
    NotADirectoryError: "choose another target",
}


class Target:
    """Objects of one store, by key relative to its root. Every write is one whole object; safe from several threads.

    Every request to a remote end goes through the network's retries, limit and circuit breaker.

    Args:
        url: local path or any fsspec URL.
        storage_options: fsspec options (endpoint, credentials, ...), never written anywhere; of them those count that
            the URL's protocol takes.
        network: None takes this process's own.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        network: Network | None = None,
    ) -> None:
        self.url = os.fspath(url).rstrip("/") or "/"
        self.options = options_for(self.url, storage_options)
        self.network = network or shared_network()
        self.host = host_of(self.url, self.options)
        self._secrets = secrets_of(self.options)
        self._s3 = scheme_of(self.url) in S3_SCHEMES
        with self._storing("open", self.url):
            self.fs, self.path = filesystem_for(self.url, self.options)
        self.local = Path(self.path) if isinstance(self.fs, LocalFileSystem) else None

    def __str__(self) -> str:
        return redacted(self.url)

    def _storing(self, doing: str, url: str) -> AbstractContextManager[None]:
        # Keys come from metadata too, and those may be somebody else's.
        if ".." in url.removeprefix(str(self)).split("/"):
            raise StoreError(f"{redacted(url)} leads out of the store {self}: its metadata are not to be trusted")
        return storing(doing, url, self._secrets)

    def _ask(self, request: Callable[[], T]) -> T:
        """Make a request by the rules of the network; what is in this process or on its disk needs none."""
        return self.network.call(self.host, request) if self.host else request()

    def at(self, key: str) -> str:
        """Where the object of a key is, for messages."""
        return f"{self}/{key}"

    def put(self, key: str, data: bytes) -> None:
        """Write an object whole: one request, or on disk one rename once the bytes are safe."""
        with self._storing("write", self.at(key)):
            if self.local is None:
                self._ask(lambda: self.fs.pipe_file(f"{self.path}/{key}", data))
                return
            _replace(self.local / key, self.local / _TEMPORARY, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only where there is none; False when another's is there.

        Conditional where the target can (disk, S3: one request), else a look before the write. A reply that got lost
        makes the retry of one's own create look like another's: what is there is read back and compared.
        """
        with self._storing("write", self.at(key)):
            try:
                if self.local is None:
                    self._ask(lambda: self.fs.pipe_file(f"{self.path}/{key}", data, mode="create"))
                else:
                    _create(self.local / key, self.local / _TEMPORARY, data)
                return True
            except FileExistsError:
                return self.get(key) == data
            except Exception as error:
                found = self.get(key)
                if found is None and _unconditional(error):
                    self.put(key, data)
                    found = self.get(key)
                if found is None:
                    raise
                return found == data

    def get(self, key: str) -> bytes | None:
        """The object's bytes; None when there is none."""
        with self._storing("read", self.at(key)):
            try:
                return self._ask(lambda: self._get(f"{self.path}/{key}"))
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _get(self, path: str) -> bytes:
        # Either way s3fs would otherwise ask for the size first, and list the folder when it fails. Of a whole object
        # its checksum is checked where the server sends one, which tells a body cut short whatever its length says.
        how: dict[str, Any] = {"max_concurrency": 1} if self._s3 else {"start": 0}
        return bytes(self.fs.cat_file(path, **how))

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
        with self._storing("remove", self.at(key)), suppress(FileNotFoundError):
            if self.local is not None:
                (self.local / key).unlink()
            else:
                self._ask(lambda: self.fs.rm_file(f"{self.path}/{key}"))

    def keys(self, prefix: str) -> list[str]:
        """Keys of all objects under a folder, sorted; the empty objects that stand for folders are none."""
        root = f"{self.path}/{prefix}".rstrip("/")
        with self._storing("list", self.at(prefix)):
            start = len(self.path.rstrip("/")) + 1
            found = (str(p)[start:] for p in self._ask(lambda: self._list(self.fs.find, root)))
            return sorted(key for key in found if key and not key.endswith("/"))

    def names(self) -> list[str]:
        """What lies directly at the root, sorted; empty when there is nothing, or nothing there at all."""
        with self._storing("open", self.url):
            if self.local is not None:
                if not self.local.exists():
                    return []
                return sorted(p.name for p in self.local.iterdir() if p.name != _TEMPORARY)
            try:
                found = self._ask(lambda: self._list(self.fs.ls, self.path))
            except FileNotFoundError:
                return []
            here = self.path.rstrip("/")
            names = (str(p).rstrip("/") for p in found)
            return sorted(name.rsplit("/", 1)[-1] for name in names if name != here)

    def _list(self, how: Callable[..., Iterable[str]], path: str) -> list[str]:
        """A listing made anew: nothing of an earlier one, nor of a part of one that failed, is taken for it."""
        self.fs.invalidate_cache()
        return list(how(path, detail=False))

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


def _replace(final: Path, folder: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, whenever the process or the machine dies."""
    with _written(final, folder, data) as temporary:
        os.replace(temporary, final)


def _create(final: Path, folder: Path, data: bytes) -> None:
    """The same, but FileExistsError where the file is there already."""
    with _written(final, folder, data) as temporary:
        try:
            os.link(temporary, final)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            with final.open("xb") as file:  # a file system without hard links
                file.write(data)
        temporary.unlink()


def _unconditional(error: Exception) -> bool:
    """Whether a target said that it knows no conditional writes."""
    return isinstance(error, NotImplementedError | TypeError | ValueError) or "NotImplemented" in str(error)


@contextmanager
def _written(final: Path, folder: Path, data: bytes) -> Iterator[Path]:
    """A temporary file with the bytes safe on disk, to be moved to `final` inside."""
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
        yield temporary
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
