"""Reads tar shards over any fsspec URL: names spelt out, modalities joined by key, faults told apart."""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import IO, Any

import fsspec

SUFFIX = ".zarr.zip"
# Shards are read from front to back: large reads ahead cost nothing and save requests.
READ_AHEAD = 8 * 2**20
# Samples a modality may be ahead of another before the shard counts as not aligned.
ASKEW = 64
_FIRST_WAIT = 0.5
_END = bytes(tarfile.BLOCKSIZE)


class ShardError(ValueError):
    """A shard that is damaged: what was read of it before the fault is good, the rest is lost."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: a tar of each modality. `name` is the file's own, the same for all."""

    name: str
    urls: tuple[tuple[str, str], ...]
    """(modality, URL) pairs."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The still packed members of one key, one a modality. `ordinal` counts the whole samples of its shard."""

    key: str
    shard: str
    ordinal: int
    packed: Mapping[str, bytes]


def expand(pattern: str) -> list[str]:
    """Numbered braces spelt out: "a_{001..003}.tar" and "{x,y}.tar", any number of them; ValueError for a bad range."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    inner = found.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    if numbers:
        first, last = numbers.groups()
        if int(last) < int(first):
            raise ValueError(f"shards {pattern}: {inner} counts down")
        choices = [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    else:
        choices = inner.split(",")
    return [end for c in choices for end in expand(pattern[: found.start()] + c + pattern[found.end() :])]


def find_shards(
    url: str, modalities: Sequence[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[Shard, ...]:
    """The shards of a data set: `url` names the tars, with "[...]" (or "{modality}") in place of the modality's folder.

    Examples: "s3://b/train/[S2L2A,S1RTC]/majortom_shard_{000001..000793}.tar" and "data/train/{modality}/*.tar", where
    the folder is listed. With neither mark, the one modality's tars are meant. What the brackets name is replaced by
    `modalities`.

    Raises:
        ValueError: no modality, a pattern without a place for several of them, or nothing found.
    """
    if not modalities:
        raise ValueError("no modality named: name one of the folders of the data set, such as S2L2A")
    template = re.sub(r"\[[^\]]*\]", "{modality}", url)
    if "{modality}" not in template and len(modalities) > 1:
        raise ValueError(f"{url} has no place for {len(modalities)} modalities: write [{','.join(modalities)}] in it")
    named: dict[str, dict[str, str]] = {}
    for modality in modalities:
        for one in expand(template.replace("{modality}", modality)):
            for place in _listed(one, storage_options) if "*" in one else [one]:
                named.setdefault(place.rsplit("/", 1)[-1], {})[modality] = place
    shards = tuple(
        Shard(name, tuple((m, places[m]) for m in modalities))
        for name, places in sorted(named.items())
        if len(places) == len(modalities)
    )
    if not shards:
        raise ValueError(f"no shards at {url} that have {', '.join(modalities)}: check the URL and the modalities")
    return shards


def _listed(pattern: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    files, _, _ = fsspec.get_fs_token_paths(pattern, storage_options=dict(storage_options or {}))
    return sorted(str(files.unstrip_protocol(path)) for path in files.glob(files._strip_protocol(pattern)))


class _Tar:
    """One modality's tar: headers in order, payloads on demand."""

    def __init__(self, url: str, file: IO[bytes]) -> None:
        self.url, self._file = url, file
        self._start()

    def _start(self) -> None:
        try:
            self._tar = tarfile.open(fileobj=self._file, mode="r:")  # noqa: SIM115 (the caller closes the file)
        except tarfile.TarError as error:
            raise ShardError(f"{plain(self.url)}: no tar ({error})") from None

    def members(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
        """(key, header) of each sample. ShardError where the file ends early or a header is damaged."""
        while True:
            try:
                member = self._tar.next()
            except tarfile.TarError as error:
                raise ShardError(f"{plain(self.url)}: {error}") from None
            if member is None:
                break
            if member.isfile() and member.name.endswith(SUFFIX):
                yield member.name.rsplit("/", 1)[-1][: -len(SUFFIX)], member
        # tarfile takes a file cut off between two members for a whole one; a whole one ends with a block of zeros
        self._file.seek(self._tar.offset)
        if self._file.read(tarfile.BLOCKSIZE) != _END:
            raise ShardError(f"{plain(self.url)}: cut off after {self._tar.offset} bytes, or damaged there")

    def read(self, member: tarfile.TarInfo) -> bytes:
        """One payload."""
        self._file.seek(member.offset_data)
        payload = self._file.read(member.size)
        if len(payload) != member.size:
            raise ShardError(f"{plain(self.url)}: ends inside {member.name}")
        return payload


def read_shard(
    shard: Shard,
    wanted: Callable[[int], bool],
    storage_options: Mapping[str, Any] | None = None,
    *,
    incomplete: Callable[[str, str], None] | None = None,
    retries: int = 3,
) -> Iterator[Sample]:
    """The samples of a shard whose ordinal is wanted, in the shard's order; the payloads of others are not read.

    Modalities are joined by key, whatever their order within `ASKEW`; a key that some modality lacks is handed to
    `incomplete` with the reason. A read that fails is tried again from where it was, `retries` times with growing
    waits.

    Raises:
        ShardError: a shard that is missing, cut off, damaged or not aligned, once all before the fault is yielded.
    """
    done, attempt = 0, 0
    lacking: set[str] = set()

    def once(key: str, why: str) -> None:
        if incomplete is not None and key not in lacking:
            lacking.add(key)
            incomplete(key, why)

    while True:
        try:
            for sample in _read_once(shard, wanted, storage_options, once, done):
                done, attempt = sample.ordinal + 1, 0
                yield sample
            return
        except ShardError:
            raise
        except FileNotFoundError:
            raise ShardError(f"{shard.name}: there is no {_missing(shard, storage_options)}") from None
        except Exception as error:  # each file system raises errors of its own
            attempt += 1
            if attempt > retries:
                why = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ShardError(f"{shard.name}: cannot be read after {retries} more tries: {plain(why)}") from None
            time.sleep(_FIRST_WAIT * 2 ** (attempt - 1))


def _read_once(
    shard: Shard,
    wanted: Callable[[int], bool],
    storage_options: Mapping[str, Any] | None,
    incomplete: Callable[[str, str], None],
    start: int,
) -> Iterator[Sample]:
    options = dict(storage_options or {})
    with ExitStack() as stack:
        tars = {modality: _Tar(url, stack.enter_context(_opened(url, options))) for modality, url in shard.urls}
        for ordinal, (key, found) in enumerate(_joined(shard, tars, incomplete)):
            if ordinal >= start and wanted(ordinal):
                yield Sample(key, shard.name, ordinal, {m: tars[m].read(found[m]) for m in tars})


def _joined(
    shard: Shard, tars: Mapping[str, _Tar], incomplete: Callable[[str, str], None]
) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """Keys that every tar has, with their headers, in the order in which they become whole."""
    running = {modality: tar.members() for modality, tar in tars.items()}
    pending: dict[str, dict[str, tarfile.TarInfo]] = {}
    while running:
        for modality, members in list(running.items()):
            try:
                key, member = next(members)
            except StopIteration:
                del running[modality]
                continue
            pending.setdefault(key, {})[modality] = member
            if len(pending[key]) == len(tars):
                yield key, pending.pop(key)
        if len(pending) > ASKEW * len(tars):
            raise ShardError(f"{shard.name}: {' and '.join(tars)} are not aligned: {len(pending)} keys without partner")
    for key, found in pending.items():
        incomplete(key, f"{shard.name} has no {', '.join(m for m in tars if m not in found)} of it")


def _opened(url: str, options: Mapping[str, Any]) -> Any:
    local = "://" not in url or url.startswith(("file://", "memory://"))
    how = {} if local else {"block_size": READ_AHEAD, "cache_type": "readahead"}
    files, path = fsspec.core.url_to_fs(url, **options)
    return files.open(path, "rb", **how)


def _missing(shard: Shard, storage_options: Mapping[str, Any] | None) -> str:
    for _, url in shard.urls:
        files, path = fsspec.core.url_to_fs(url, **dict(storage_options or {}))
        if not files.exists(path):
            return plain(url)
    return shard.name


def plain(url: str) -> str:
    """A URL without its query, which may hold a token."""
    return re.sub(r"\?\S*", "", url)
