"""Writes a file whole or not at all: beside its place first, then into it, on this machine or at any fsspec URL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eocube.errors import InputError
from eocube.net.objects import storing
from eocube.net.storage_options import filesystem_for, options_for
from eocube.net.trust import scheme


@contextmanager
def staged(out: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """A path of this machine to write to; what is there as the block ends becomes `out`, a path or an fsspec URL.

    Nothing is left, and what was there stays, where the block raises. InputError where `out` names no folder.
    """
    remote = scheme(out) not in ("", "file")
    home = None if remote else Path(out.removeprefix("file://")).absolute().parent
    if home is not None and not home.is_dir():
        raise InputError(f"--out {out}: there is no folder {home}")
    name = Path(out.partition("?")[0]).name
    with TemporaryDirectory(dir=home, prefix=".eocube-") as folder:
        made = Path(folder) / name
        yield made
        if home is not None:
            made.replace(home / name)
            return
        filesystem, path = filesystem_for(out, options_for(out, storage_options))
        with storing("write", out):
            filesystem.put_file(str(made), path)
