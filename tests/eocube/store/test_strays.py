"""Strays in a folder of a store (.DS_Store, copies, folder markers) stop nothing; verify names them and leaves them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import eocube
from eocube.errors import StoreError
from eocube.net.objects import Objects
from eocube.plan.plan import Plan
from eocube.report.info import status
from eocube.store.lease import Lease
from eocube.store.store import CubeStore
from tests.faults.killing import check_readable, drive, plan_of, scene

SMALL = (11.500, 48.100, 11.518, 48.112)
NORTH_WEST = (11.490, 48.100, 11.518, 48.118)
ROOM = (11.480, 48.095, 11.525, 48.120)
LITTER = (".DS_Store", "Thumbs.db", "._latent", "desktop.ini")
FOLDERS = ("", "commits", "latent", "latent/c", "latent/c/0/0", "valid/c", "status", "requested/c/0", "time")
COPIES = ("latent/c/0/0/0 copy", "latent/c/0/0/0/0 (conflicted copy)", "latent/zarr.json~", "notes.txt")


def plan(box: tuple[float, ...], *days: int) -> Plan:
    return plan_of(box, [scene(d) for d in days], (min(days), max(days)), ROOM)


def strew(target: Objects) -> list[str]:
    """Put strays wherever a person's tools might: their keys."""
    keys = [f"{folder}/{name}".lstrip("/") for folder in FOLDERS for name in LITTER] + list(COPIES)
    for key in keys:
        target.put(key, b"\0\0\0\1Bud1")
    return keys


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path / "cube.zarr")
    return f"s3://{request.getfixturevalue('s3_server').bucket()}/cube.zarr"


def test_strays_stop_nothing_and_are_named_and_left(url: str) -> None:
    target = Objects(url)
    drive(url, plan(SMALL, 10))
    strays = strew(target)
    assert drive(url, plan(SMALL, 10)).reads == []  # opened, resumed and finalised
    assert drive(url, plan(NORTH_WEST, 10, 15)).reads  # extended
    assert check_readable(url)
    store = CubeStore.open(url)
    store.finalise()
    found = {finding.path: finding.what for finding in store.verify()}
    assert sorted(found) == sorted(strays) and set(found.values()) == {"belongs to no part of the store: remove it"}
    assert all(target.get(key) is not None for key in strays)
    for key in strays:
        target.delete(key)
    assert store.verify() == []
    assert status(url).windows["not_attempted"] == 0 and eocube.open(url).sizes["time"] == 2


def test_a_stray_in_the_log_is_no_segment(tmp_path: Path) -> None:
    store = str(tmp_path / "cube.zarr")
    drive(store, plan(SMALL, 10))
    commits = tmp_path / "cube.zarr" / "commits"
    receipts = list(CubeStore.open(store).receipts())
    shutil.copy(commits / "00000000.jsonl", commits / "00000000 (1).jsonl")
    shutil.copy(commits / "00000000.jsonl", commits / "._00000000.jsonl")
    (commits / "lease-copy.json").write_text("{}")
    assert list(CubeStore.open(store).receipts()) == receipts
    assert drive(store, plan(SMALL, 10)).reads == []


def test_a_folder_with_nothing_but_litter_is_empty(tmp_path: Path) -> None:
    place = tmp_path / "cube.zarr"
    place.mkdir()
    (place / ".DS_Store").write_bytes(b"Bud1")
    assert CubeStore.stored_plans(place) == ()
    (place / "commits").mkdir()
    (place / "commits" / ".DS_Store").write_bytes(b"Bud1")
    with Lease(Objects(place), "run"):
        CubeStore.create(place, plan(SMALL, 10))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(StoreError, match=r"is no eocube store \(it holds chapter.txt\)"):
        CubeStore.create(tmp_path / "thesis", plan(SMALL, 10))


@pytest.mark.slow
def test_empty_objects_that_stand_for_folders_are_none(s3_server: Any) -> None:
    """As the consoles of object stores make them: a "folder" is an object whose key ends in a slash."""
    import s3fs

    bucket = s3_server.bucket()
    fs = s3fs.S3FileSystem(**s3_server.storage_options, skip_instance_cache=True)
    url = f"s3://{bucket}/cube.zarr"
    fs.call_s3("put_object", Bucket=bucket, Key="cube.zarr/", Body=b"")
    assert CubeStore.stored_plans(url) == ()
    drive(url, plan(SMALL, 10))
    for folder in FOLDERS[1:]:
        fs.call_s3("put_object", Bucket=bucket, Key=f"cube.zarr/{folder}/", Body=b"")
    drive(url, plan(NORTH_WEST, 10, 15))
    assert CubeStore.open(url).verify() == [] and check_readable(url)


@pytest.mark.filterwarnings("ignore:Object at")
def test_plain_xarray_reads_around_strays(tmp_path: Path) -> None:
    store = str(tmp_path / "cube.zarr")
    drive(store, plan(SMALL, 10))
    before = xr.open_zarr(store).load()
    strew(Objects(store))
    for consolidated in (True, False):
        after = xr.open_zarr(store, consolidated=consolidated).load()
        assert np.array_equal(before.latent.values, after.latent.values, equal_nan=True)
