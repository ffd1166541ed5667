"""Every kind of object of a store damaged once, in every way: `verify` names it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from eocube.cli import main
from eocube.errors import StoreError
from eocube.net.objects import Objects
from eocube.run.request import Exit
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from tests.faults.killing import Reader, drive, plan_of, scene

SMALL, LARGER = (11.500, 48.100, 11.512, 48.108), (11.500, 48.100, 11.518, 48.112)


@dataclass(frozen=True)
class Sound:
    """A store's objects, and the same objects as they were before its last run (`None`: not there then)."""

    objects: dict[str, bytes]
    before: dict[str, bytes]

    def damaged(self, key: str, data: bytes | None) -> str:
        """A copy of the store with one object replaced or removed: its URL."""
        url = f"memory://corrupt-{uuid.uuid4().hex}/cube.zarr"
        fs = Objects(url).fs
        for name, content in self.objects.items():
            if name != key or data is not None:
                fs.pipe_file(f"{Objects(url).path}/{name}", data if name == key and data is not None else content)
        return url


def everything(url: str) -> dict[str, bytes]:
    target = Objects(url)
    return {key: target.get(key) or b"" for key in target.keys("")}


@pytest.fixture(scope="module")
def sound() -> Sound:
    """A store with two times, a failed window that was done again, and more ground than at first: much to be stale."""
    url = f"memory://corrupt-{uuid.uuid4().hex}/cube.zarr"
    first = plan_of(SMALL, [scene(10)], (10, 10))
    window = next(first.grid.requested_windows())
    drive(url, first, reader=Reader(failing=frozenset({(window.row, window.col)})), commit_every=1)
    before = everything(url)
    drive(url, plan_of(LARGER, [scene(10), scene(15)], (10, 15)), retry=[State.READ_FAILED], commit_every=1)
    after = everything(url)
    assert CubeStore.open(url).verify() == []
    return Sound(after, before)


def kinds(objects: dict[str, bytes]) -> dict[str, list[str]]:
    """The store's keys by kind: each array's metadata and objects, each object of the log, the root."""
    found: dict[str, list[str]] = {}
    for key in objects:
        if not re.search(r"commits/(lease-|runs/)", key):
            found.setdefault(re.sub(r"(/c)(/\d+)*$|\d{8}", r"\1", key), []).append(key)
    return found


def flip(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "a flipped bit": flip,
    "its first byte": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "cut short": lambda data: data[: len(data) * 2 // 3],
    "emptied": lambda data: b"",
    "gone": lambda data: None,
}


def findings(url: str) -> list[tuple[str, str]]:
    """What `verify` says, or what opening says when there is nothing to verify."""
    try:
        return [(f.path, f.what) for f in CubeStore.open(url).verify()]
    except StoreError as error:
        return [("zarr.json", str(error))]


@pytest.mark.faults
@pytest.mark.parametrize("how", DAMAGE)
def test_any_damage_to_any_kind_of_object_is_named(sound: Sound, how: str) -> None:
    unnamed = []
    for keys in kinds(sound.objects).values():
        for key in {keys[0], keys[-1]}:
            url = sound.damaged(key, DAMAGE[how](sound.objects[key]))
            found = findings(url)
            if not any(path == key or key in what for path, what in found):
                unnamed.append((key, found[:2]))
    assert unnamed == []


@pytest.mark.faults
def test_an_object_of_an_earlier_state_is_named(sound: Sound) -> None:
    """Every byte of it sound, only old: as a cache or a restored backup would give it."""
    stale = [key for key, data in sound.before.items() if sound.objects.get(key, data) != data]
    tried = set()
    for key in stale:
        if "lease" in key:
            continue
        found = findings(sound.damaged(key, sound.before[key]))
        assert any(path == key or key in what for path, what in found), (key, found)
        tried.add(key.split("/")[0])
    assert {"latent", "status", "zarr.json", "commits", "time"} <= tried


@pytest.mark.faults
def test_a_shard_in_anothers_place_is_named(sound: Sound) -> None:
    one, other = [key for key in sound.objects if key.startswith("latent/c/")][:2]
    found = findings(sound.damaged(one, sound.objects[other]))
    assert any(path == one for path, _ in found)


@pytest.mark.faults
def test_the_command_says_so_with_its_exit_status(
    sound: Sound, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, data in sound.objects.items():
        (tmp_path / "cube.zarr" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cube.zarr" / key).write_bytes(data)
    url = str(tmp_path / "cube.zarr")
    assert main(["verify", url, "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out)["findings"] == []
    shard = next(key for key in sound.objects if key.startswith("latent/c/"))
    (tmp_path / "cube.zarr" / shard).write_bytes(flip(sound.objects[shard]))
    assert main(["verify", url, "--json"]) == Exit.RETRYABLE
    assert shard in capsys.readouterr().out
