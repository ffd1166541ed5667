"""Workers forked after a cube was opened and decoded: they read and decode too, or say in one line what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import S3Server
from tests.eocube.cubes import make_plan, make_store, make_weights

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")]


class Decoded(torch.utils.data.Dataset[torch.Tensor]):
    """Decoded time steps of a cube, opened here or in the worker."""

    def __init__(self, url: str, *, kept: bool, bands: list[str]) -> None:
        import eocube

        self.url, self.kept, self.bands, self.cube = url, kept, bands, eocube.open(url)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        import eocube

        cube = self.cube if self.kept else eocube.open(self.url)
        return torch.from_numpy(cube.eocube.decode(self.bands).isel(time=index % 2).compute().values)


class Patches(torch.utils.data.Dataset[torch.Tensor]):
    """Patches of the demo's scenes, whose rasters the parent has open."""

    def __init__(self, catalog: str) -> None:
        from eocube.cube.patches import open_search
        from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

        self.patches = open_search(
            {"catalog": catalog, "sensor": "S2L2A", "bbox": DEMO_BBOX, "datetime": DEMO_DATETIME, "size": 48}
        )

    def __len__(self) -> int:
        return min(len(self.patches), 60)

    def __getitem__(self, index: int) -> torch.Tensor:
        found = self.patches.read(index)
        return torch.zeros(1) if found is None else torch.from_numpy(found.data)


def in_workers(dataset: Any, how: str) -> list[torch.Tensor]:
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, timeout=60, multiprocessing_context=how
    )  # fmt: skip
    return list(loader)


def same(parent: list[torch.Tensor], workers: list[torch.Tensor]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(parent, workers, strict=True))


def decoded(url: str, kept: str, how: str) -> bool:
    dataset = Decoded(url, kept=kept == "kept", bands=["B04"])
    return same([dataset[k] for k in range(len(dataset))], in_workers(dataset, how))


def other_bands(url: str) -> bool:
    """A plain fork, not the DataLoader's, which sets torch to one thread: the child makes a decoder of its own."""
    import multiprocessing

    torch.set_num_threads(2)
    first = Decoded(url, kept=True, bands=["B04"])
    assert first[0].shape[0] == 1
    torch.exp(torch.zeros(2000, 2000))  # OpenMP has its threads now
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child() -> None:
        queue.put(Decoded(url, kept=True, bands=["B02", "B08"])[0].numpy())

    process = context.Process(target=child)
    process.start()
    found = queue.get(timeout=60)
    process.join(60)
    return np.array_equal(found, Decoded(url, kept=True, bands=["B02", "B08"])[0].numpy(), equal_nan=True)


def patches(catalog: str) -> bool:
    dataset = Patches(catalog)
    before = [dataset[k] for k in range(len(dataset))]
    return all(same(before, in_workers(dataset, "fork")) for _ in range(3))


def refusal(url: str) -> str:
    try:
        decoded(url, "kept", "fork")
    except Exception as error:
        return str(error).strip().splitlines()[-1]
    return "nothing was refused"


def ask(name: str, *arguments: str, options: dict[str, Any] | None = None) -> Any:
    """What a function of this file returns in a process of its own, which a hang does not outlive."""
    env = {**os.environ, "EOCUBE_STORAGE_OPTIONS": json.dumps(options) if options else ""}
    code = f"import json, sys\nfrom tests.eocube.net import test_forks as t\nprint(json.dumps(t.{name}(*sys.argv[1:])))"
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *arguments],
        env=env, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("forks")
    url = str(folder / "cube.zarr")
    make_store(url, make_plan(make_weights(folder / "tiny.safetensors")))
    return url


@pytest.mark.parametrize("kept", ["kept", "opened in the worker"])
def test_forked_workers_of_a_data_loader_decode_a_cube_on_disk(cube: str, kept: str) -> None:
    assert ask("decoded", cube, kept, "fork") is True


def test_a_forked_child_makes_a_decoder_of_its_own(cube: str) -> None:
    assert ask("other_bands", cube) is True


def test_forked_workers_read_rasters_that_the_parent_has_open(demo_catalog: Path) -> None:
    """A file's position is shared across a fork: workers that use the parent's handles read each other's bytes."""
    assert ask("patches", str(demo_catalog)) is True


@pytest.fixture
def on_s3(cube: str, s3_server: S3Server) -> str:
    import s3fs

    url = f"s3://{s3_server.bucket()}/cube.zarr"
    s3fs.S3FileSystem(**s3_server.storage_options, skip_instance_cache=True).put(cube, url, recursive=True)
    return url


def test_a_cube_on_s3_opened_before_the_fork_says_to_spawn(on_s3: str, s3_server: S3Server) -> None:
    said = ask("refusal", on_s3, options=s3_server.storage_options)
    assert "opened before this process was forked" in said and 'multiprocessing_context="spawn"' in said


def test_a_cube_on_s3_opened_in_the_worker_is_read_there(on_s3: str, s3_server: S3Server) -> None:
    assert ask("decoded", on_s3, "opened in the worker", "fork", options=s3_server.storage_options) is True


def test_a_cube_on_s3_travels_to_spawned_workers(on_s3: str, s3_server: S3Server) -> None:
    assert ask("decoded", on_s3, "kept", "spawn", options=s3_server.storage_options) is True


def test_locks_that_were_held_are_free_in_the_child() -> None:
    """Quick to tell without a fork: what is watched makes its locks anew."""
    from eocube.net import forks
    from eocube.net.network import Network

    network = Network()
    network._lock.acquire()
    forks._set_right()
    assert network._lock.acquire(blocking=False)
