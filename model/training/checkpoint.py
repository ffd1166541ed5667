"""Keeps a run's checkpoints: all that the next step depends on, whole or not at all; the last few and the best."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import fsspec
import torch

SHARED, POINTER, BEST = "state.pt", "latest.json", "best"


@dataclass(slots=True)
class Position:
    """How far a run is. `step` counts in the stage `stage`, `total` over all; `spent` are seconds spent in the stage,
    so that a stage bounded by the clock goes on with the time it has left. `best` is the lowest score so far."""

    stage: int = 0
    step: int = 0
    total: int = 0
    spent: float = 0.0
    best: float | None = None
    running: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "stage": self.stage, "step": self.step, "total": self.total, "spent": self.spent, "best": self.best,
            "running": dict(self.running),
        }  # fmt: skip

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Position:
        """The position that `to_dict` gave."""
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`shared` is the same for all workers (network, average, optimiser, scaler, position); `own` is one worker's
    (data source, random generators)."""

    shared: Mapping[str, Any]
    own: Mapping[str, Any]


def own_name(rank: int) -> str:
    """The file of one worker's own state."""
    return f"rank-{rank:04d}.pt"


def write_snapshot(folder: Path, snapshot: Snapshot, rank: int) -> None:
    """This worker's part of a checkpoint: its own state, and the shared one on rank 0."""
    torch.save(dict(snapshot.own), folder / own_name(rank))
    if rank == 0:
        torch.save(dict(snapshot.shared), folder / SHARED)


def read_snapshot(folder: Path, rank: int, *, sliced: bool) -> Snapshot:
    """The snapshot in `folder` for this worker. Where workers compute slices of one stream (`sliced`), all have rank
    0's state, and their number may change. ValueError where this worker's own state is not there."""
    own = folder / own_name(0 if sliced else rank)
    if not (folder / SHARED).is_file() or not own.is_file():
        count = len(list(folder.glob("rank-*.pt")))
        raise ValueError(
            f"checkpoint {folder.name} is of {count} workers, each with its own data order: resume with as many"
        )
    shared = torch.load(folder / SHARED, map_location="cpu", weights_only=True)
    return Snapshot(shared, torch.load(own, map_location="cpu", weights_only=True))


class Keeper(Protocol):
    """Where checkpoints go: Ray Train's storage, or any fsspec URL without Ray."""

    def restore(self) -> AbstractContextManager[Path | None]:
        """A context with a local folder that holds the newest checkpoint, or None at a run's beginning."""
        ...

    def save(self, write: Callable[[Path], None], total: int, metrics: Mapping[str, float]) -> None:
        """Keep what `write` puts into a folder as the checkpoint of step `total`; called on every worker."""
        ...

    def save_best(self, write: Callable[[Path], None]) -> None:
        """Replace the best weights by what `write` puts into a folder; called on rank 0."""
        ...


@dataclass(frozen=True, slots=True)
class Store:
    """Checkpoints of one process at an fsspec URL or path: the last `keep`, and the best.

    A checkpoint counts once the pointer names it: the pointer is replaced last and at once, so that a kill at any
    moment leaves the checkpoint before.
    """

    url: str
    keep: int = 3

    @contextmanager
    def restore(self) -> Iterator[Path | None]:
        fs, root = fsspec.url_to_fs(self.url)
        pointer = f"{root}/{POINTER}"
        if not fs.exists(pointer):
            yield None
            return
        name = json.loads(fs.cat_file(pointer))["checkpoint"]
        with tempfile.TemporaryDirectory() as folder:
            for path in fs.ls(f"{root}/{name}", detail=False):
                fs.get_file(path, f"{folder}/{path.rpartition('/')[2]}")
            yield Path(folder)

    def save(self, write: Callable[[Path], None], total: int, metrics: Mapping[str, float]) -> None:
        fs, root = fsspec.url_to_fs(self.url)
        name = f"checkpoint_{total:09d}"
        upload(self.url, name, write)
        replace_file(self.url, POINTER, json.dumps({"checkpoint": name, "metrics": dict(metrics)}).encode())
        kept = sorted(p for p in fs.ls(root, detail=False) if p.rpartition("/")[2].startswith("checkpoint_"))
        for old in kept[: -self.keep]:
            fs.rm(old, recursive=True)

    def save_best(self, write: Callable[[Path], None]) -> None:
        upload(self.url, BEST, write)


def upload(url: str, name: str, write: Callable[[Path], object]) -> None:
    """Put the files that `write` makes under `url`/`name`, each whole: written beside and moved on a local disk, one
    PUT an object elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        for file in sorted(Path(folder).iterdir()):
            _put(f"{url}/{name}", file)


@contextmanager
def delivered(out: str, *, leads: bool = True) -> Iterator[Path]:
    """Where to write weights meant for `out`, an absolute path or an fsspec URL: of a URL a local file, which is put
    there with the JSON beside it once the work is done, by the worker that leads."""
    if "://" not in out:
        yield Path(out)
        return
    folder, name = out.rsplit("/", 1)
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / name
        yield path
        for file in (path, path.with_suffix(".json")):
            if leads and file.is_file():
                _put(folder, file)


def absolute(place: str) -> str:
    """A URL as it is, a path made absolute: workers run in folders of their own."""
    return place if "://" in place else str(Path(place).resolve())


def check_out(out: str) -> str:
    """`out` as a run is told, see `absolute`. ValueError for a URL that names no file, or a store not known here."""
    if "://" not in out:
        return absolute(out)
    if not out.rsplit("/", 1)[1] or out.count("/") < 3:
        raise ValueError(f"--out {out} names no file: give one, such as s3://bucket/weights.safetensors")
    try:
        fsspec.core.url_to_fs(out)
    except (ImportError, ValueError) as error:
        raise ValueError(f"--out {out}: {error}") from None
    return out


def _put(url: str, file: Path) -> None:
    fs, root = fsspec.url_to_fs(url)
    fs.makedirs(root, exist_ok=True)
    target = f"{root}/{file.name}"
    if "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,)):
        partial = f"{target}.{os.getpid()}.part"
        shutil.copyfile(file, partial)
        os.replace(partial, target)
        return
    fs.put_file(str(file), target)


def replace_file(url: str, name: str, data: bytes) -> None:
    """Write one small file under `url`, whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_bytes(data)
        _put(url, Path(folder) / name)


def started(url: str) -> bool:
    """Whether a run has left anything at `url`."""
    fs, root = fsspec.url_to_fs(url)
    return bool(fs.exists(root) and (not fs.isdir(root) or fs.ls(root, detail=False)))
