"""Remembers which stages of several are finished, so that one command can be killed anywhere and started again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec

from model.training.checkpoint import replace_file

STATE = "reproduce.json"
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages whose state is one small file in the folder `url` (a path or fsspec URL), replaced whole or not at all.

    A stage is finished by the file that it wrote: noted with its hash once it is there, so that a kill in between has
    the stage looked at again, and a file that is gone or another since has it done again.
    """

    url: str

    def finished(self, stage: str, file: str, asked: Mapping[str, Any]) -> bool:
        """Whether the stage has written `file`, as it lies there now, when asked for the same (JSON)."""
        entry = self._state().get(stage)
        return entry is not None and entry["asked"] == dict(asked) and entry["sha256"] == digest(file)

    def note(self, stage: str, file: str, asked: Mapping[str, Any]) -> None:
        """The stage has written `file`. FileNotFoundError where it has not."""
        found = digest(file)
        if found is None:
            raise FileNotFoundError(f"stage {stage} ended without {file}: start again with --resume")
        state = self._state() | {stage: {"asked": dict(asked), "sha256": found}}
        replace_file(self.url, STATE, (json.dumps(state, indent=1) + "\n").encode())

    def _state(self) -> dict[str, Any]:
        fs, root = fresh(self.url)
        if not fs.exists(f"{root}/{STATE}"):
            return {}
        state: dict[str, Any] = json.loads(fs.cat_file(f"{root}/{STATE}"))
        return state


def digest(file: str) -> str | None:
    """SHA-256 of a file at a path or URL, None where there is none."""
    fs, path = fresh(file)
    if not fs.exists(path):
        return None
    found = hashlib.sha256()
    with fs.open(path, "rb") as source:
        while block := source.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def fresh(url: str) -> tuple[Any, str]:
    """Filesystem and path of a path or URL, without remembered listings: other processes write there too."""
    fs, path = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    return fs, path
