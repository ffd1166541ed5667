"""Keeps a store's objects: whole ones by key, on local disk or anything fsspec reaches."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fsspec.asyn import sync
from fsspec.implementations.local import LocalFileSystem

from eocube.errors import StoreError
from eocube.net.failures import knows_no_conditions, refused_condition
from eocube.net.forks import SPAWN
from eocube.net.network import Network, shared_network
from eocube.net.redaction import one_line, redacted, secrets_of
from eocube.net.storage_options import S3_SCHEMES, filesystem_for, host_of, options_for, scheme_of

if TYPE_CHECKING:
    from eocube.store.fence import Fence

_TEMPORARY = ".tmp"
_AT_ONCE = 16  # objects read at the same time
_WHOLE = 4 * 2**30  # bytes below which s3fs makes one request, so that its condition holds for all of it

T = TypeVar("T")
Gate = Callable[[], AbstractContextManager[None]]
"""Entered around the moment at which a write takes effect, at each of its tries; raises where it must not."""


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as it was read or written."""

    data: bytes
    tag: str | None
    """What a conditional write knows it by, an ETag; None where storage has no such thing."""
    modified: datetime | None = None
    """When it was written last, by the storage's own clock, to the second; None where that was not said."""


class ConditionalError(Exception):
    """What a conditional write came to, where not to a write."""


class ChangedError(ConditionalError):
    """An object was not as a conditional write had it, and was left as it was."""


class UnconditionalError(ConditionalError):
    """Storage said that it knows no conditional writes."""


@contextmanager
def storing(doing: str, url: str, secrets: Iterable[str] = ()) -> Iterator[None]:
    """Turn whatever the storage raises inside into a one-line StoreError: "cannot write s3://b/c: no such bucket"."""
    try:
        yield
    except (StoreError, ConditionalError):
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


MAX_OBJECT = 2 * 2**30
"""Bytes of one object that is read whole: a shard of the default store has 4 MB, a plan of 100,000 scenes 500 MB."""


class Objects:
    """Objects of one store, by key relative to its root. Every write is one whole object; safe from several threads.

    Every request to a remote end goes through the network's retries, limit and circuit breaker.

    Args:
        url: local path or any fsspec URL.
        storage_options: fsspec options (endpoint, credentials, ...), never written anywhere; of them those count that
            the URL's protocol takes.
        network: None takes this process's own.
        fence: asked before every write, so that none is made by a run that lost its store; None for who writes alone.
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        network: Network | None = None,
        *,
        fence: Fence | None = None,
    ) -> None:
        self.fence = fence
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

    def put(self, key: str, data: bytes, *, fresh: bool = False) -> None:
        """Write an object whole: one request, or on disk one rename once the bytes are safe.

        `fresh` says that there is most likely none of that key, which saves a fenced write to S3 a look.
        """
        if self.fence is not None:
            self.fence.put(self, key, data, fresh=fresh)
        else:
            self.overwrite(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only where there is none; False when another's is there.

        Conditional where the target can (disk, S3: one request), else a look before the write. A reply that got lost
        makes the retry of one's own create look like another's: what is there is read back and compared.
        """
        return self.fence.create(self, key, data) if self.fence is not None else self.create_new(key, data)

    def delete(self, key: str) -> None:
        """Remove an object, in one request; fine when there is none."""
        if self.fence is not None:
            self.fence.delete(self, key)
        else:
            self.remove(key)

    # -- what they are made of, past the fence

    def overwrite(self, key: str, data: bytes, gate: Gate = nullcontext) -> None:
        """Write an object whole, whatever is there."""
        with self._storing("write", self.at(key)):
            if self.local is None:
                self._ask(lambda: self._within(gate, lambda: self.fs.pipe_file(f"{self.path}/{key}", data)))
                return
            _replace(self.local / key, self.local / _TEMPORARY, data, gate)

    def create_new(self, key: str, data: bytes, gate: Gate = nullcontext) -> bool:
        """`create`, past the fence."""
        with self._storing("write", self.at(key)):
            try:
                self._swap(key, data, None, gate)
                return True
            except ChangedError:
                return self.get(key) == data
            except UnconditionalError:
                found = self.get(key)
                if found is None:
                    self.overwrite(key, data, gate)
                    found = self.get(key)
                return found == data

    def swap(self, key: str, data: bytes, was: Seen | None, gate: Gate = nullcontext) -> Seen:
        """Write an object where it is what was seen, or where none is (None); what it is now.

        Raises:
            ChangedError: it is another, or one is there; also one's own, made again because its reply got lost.
            UnconditionalError: storage knows no such writes, or only those where nothing was.
        """
        with self._storing("write", self.at(key)):
            return self._swap(key, data, was, gate)

    def _swap(self, key: str, data: bytes, was: Seen | None, gate: Gate) -> Seen:
        if self.local is not None and was is None:
            try:
                _create(self.local / key, self.local / _TEMPORARY, data, gate)
            except FileExistsError:
                raise ChangedError(key) from None
            return Seen(data, None)
        if was is not None and (was.tag is None or not self._s3):
            raise UnconditionalError(key)
        how: dict[str, Any] = {"mode": "create"} if was is None else {"IfMatch": was.tag}
        if self._s3:
            how["chunksize"] = _WHOLE
        path = f"{self.path}/{key}"
        try:
            said = self._ask(lambda: self._within(gate, lambda: self.fs.pipe_file(path, data, **how)))
        except Exception as error:
            if refused_condition(error) or (was is not None and isinstance(error, FileNotFoundError)):
                raise ChangedError(key) from error
            if knows_no_conditions(error):
                raise UnconditionalError(key) from error
            if was is None and self.get(key) is not None:  # an error that says neither, and yet something is there
                raise ChangedError(key) from error
            raise
        return Seen(data, said.get("ETag") if isinstance(said, dict) else None)

    @staticmethod
    def _within(gate: Gate, do: Callable[[], T]) -> T:
        with gate():
            return do()

    def remove(self, key: str, gate: Gate = nullcontext) -> None:
        """Remove an object; fine when there is none."""
        with self._storing("remove", self.at(key)), suppress(FileNotFoundError):
            if self.local is not None:
                with gate():
                    (self.local / key).unlink()
            else:
                self._ask(lambda: self._within(gate, lambda: self.fs.rm_file(f"{self.path}/{key}")))

    # -- reading

    def look(self, key: str) -> Seen | None:
        """The object with what a conditional write needs to know of it; None when there is none. One request."""
        if not self._s3:
            data = self.get(key)
            return None if data is None else Seen(data, None)
        with self._storing("read", self.at(key)):
            try:
                return self._ask(lambda: self._look(f"{self.path}/{key}"))
            except FileNotFoundError:
                return None

    def _look(self, path: str) -> Seen:
        """One object of S3 with its ETag, which s3fs's own reading keeps to itself."""

        async def ask() -> Seen:
            bucket, key, _ = self.fs.split_path(path)
            answer = await self.fs._call_s3("get_object", Bucket=bucket, Key=key)
            try:
                return Seen(bytes(await answer["Body"].read()), answer.get("ETag"), answer.get("LastModified"))
            finally:
                answer["Body"].close()

        found: Seen = sync(self.fs.loop, ask)
        return found

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
        if isinstance(self.fs, LocalFileSystem) and (size := os.stat(path).st_size) > MAX_OBJECT:
            # A sparse file of any size costs who writes it nothing. Elsewhere to ask would be a request more.
            raise StoreError(f"{path} has {size / 2**30:.0f} GiB, more than any object of a store: remove it")
        return bytes(self.fs.cat_file(path, **how))

    def get_many(self, keys: Sequence[str]) -> list[bytes]:
        """The bytes of several objects, in order, read several at a time. StoreError when one is not there."""
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="get") as pool:
            found = list(pool.map(self.get, keys))
        for key, data in zip(keys, found, strict=True):
            if data is None:
                raise StoreError(f"{self.at(key)} is missing: it was there a moment ago")
        return [data for data in found if data is not None]

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
            if self.fence is not None:
                self.fence.confirm()
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


def _replace(final: Path, folder: Path, data: bytes, gate: Gate) -> None:
    """Write a file so that it is there whole or not at all, whenever the process or the machine dies."""
    with _written(final, folder, data) as temporary, gate():
        os.replace(temporary, final)


def _create(final: Path, folder: Path, data: bytes, gate: Gate) -> None:
    """The same, but FileExistsError where the file is there already."""
    with _written(final, folder, data) as temporary, gate():
        try:
            os.link(temporary, final)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            with final.open("xb") as file:  # a file system without hard links
                file.write(data)
        temporary.unlink()


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
