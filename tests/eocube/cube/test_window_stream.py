"""The stream of patches: its order, reads, workers, resume, memory, damage, batches and torch's DataLoader."""

from __future__ import annotations

import pickle
import re
import shutil
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eocube.cube.window_stream import WindowBatches, WindowStream, torch_dataset
from eocube.cube.windows import CubeWindows
from eocube.errors import InputError, StoreError
from eocube.ground.grid import grids_for
from eocube.net.objects import Objects
from tests.eocube.cube.test_windows import SIX
from tests.eocube.cubes import BBOX, CORE, SHARD, Made, make_plan, make_store, make_weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    weights = make_weights(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    return make_store(str(tmp_path_factory.mktemp("cube") / "cube.zarr"), make_plan(weights, times=SIX))


@pytest.fixture(scope="module")
def windows(made: Made) -> CubeWindows:
    return CubeWindows(made.url, side=CORE, seed=7)


def indices(stream: WindowStream) -> list[int]:
    return [patch.index for patch in stream]


def at_once(windows: CubeWindows, order: np.ndarray) -> int:
    """The most units in use at a time: between their first and last patch of an order."""
    units = windows.index.unit_of(order)
    spans = [np.flatnonzero(units == u)[[0, -1]] for u in np.unique(units)]
    return max(sum(a <= k <= b for a, b in spans) for k in range(len(units)))


@given(st.integers(0, 5), st.integers(1, 6), st.integers(1, 9))
def test_workers_share_an_epoch_without_gap_or_double(
    windows: CubeWindows, epoch: int, world: int, open_units: int
) -> None:
    orders = [windows.order(epoch, rank, world, open_units) for rank in range(world)]
    assert sorted(np.concatenate(orders).tolist()) == list(range(len(windows)))
    units = [set(windows.index.unit_of(order).tolist()) for order in orders]
    assert sum(map(len, units)) == len(set().union(*units))  # each object is one worker's
    largest = int(np.diff(windows.index.starts).max())
    assert max(map(len, orders)) - min(map(len, orders)) <= largest
    assert all(at_once(windows, order) <= open_units for order in orders)
    again = windows.order(epoch, 0, world, open_units)
    np.testing.assert_array_equal(again, orders[0])


def test_epochs_and_seeds_differ_and_patches_of_units_mix(made: Made, windows: CubeWindows) -> None:
    first = windows.order(0)
    assert not np.array_equal(first, windows.order(1))
    assert not np.array_equal(first, CubeWindows(made.url, side=CORE, seed=8).order(0))
    units = windows.index.unit_of(first)
    middle = units[len(units) // 4 : 3 * len(units) // 4]
    assert (middle[1:] != middle[:-1]).mean() > 0.5
    within = [first[units == unit] for unit in set(units.tolist())]
    assert any(not np.array_equal(np.sort(order), order) for order in within)


@settings(max_examples=15)
@given(st.integers(0, 200), st.integers(1, 3))
def test_a_stream_taken_up_again_goes_on_with_the_very_next_patch(windows: CubeWindows, at: int, world: int) -> None:
    whole = WindowStream(windows, rank=world - 1, world=world, epochs=3)
    want = indices(whole)
    at = min(at, len(want))
    first = WindowStream(windows, rank=world - 1, world=world, epochs=3)
    got = [next(first).index for _ in range(at)]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    first.close()
    second = WindowStream(pickle.loads(pickle.dumps(windows)), rank=world - 1, world=world, epochs=3)
    second.load_state_dict(state)
    assert got + indices(second) == want


def test_each_object_is_read_once_an_epoch(made: Made, windows: CubeWindows, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    get = Objects.get

    def counted(self: Objects, key: str) -> bytes | None:
        asked[key] += 1
        return get(self, key)

    monkeypatch.setattr(Objects, "get", counted)
    objects = {str(p.relative_to(made.url)) for p in (Path(made.url) / "latent" / "c").rglob("*") if p.is_file()}
    for epoch in (1, 2):
        stream = WindowStream(windows, epochs=epoch, open_units=3, threads=4)
        stream.load_state_dict({**stream.state_dict(), "epoch": epoch - 1})
        asked.clear()
        assert sorted(indices(stream)) == list(range(len(windows)))
        assert {key: n for key, n in asked.items() if key.startswith("latent/c/")} == dict.fromkeys(objects, 1)
    pairs = CubeWindows(made.url, side=CORE, pair="next")
    asked.clear()
    indices(WindowStream(pairs, epochs=1))
    assert set(asked.values()) == {1}


def test_each_object_of_a_bucket_is_asked_for_once(made: Made, s3_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    url = f"s3://{s3_server.bucket()}/cube.zarr"
    s3fs.S3FileSystem(**s3_server.storage_options).put(f"{made.url}/", url, recursive=True)
    windows = CubeWindows(url, side=CORE, storage_options=s3_server.storage_options, seed=7)
    requests: Counter[str] = Counter()
    call = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if "/latent/c/" in str(kwargs.get("Key", "")):
            requests[f"{method} {kwargs['Key']}"] += 1
        return await call(self, method, *args, **kwargs)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    got = indices(WindowStream(windows, epochs=1))
    assert sorted(got) == list(range(len(windows)))
    assert len(requests) == len(windows.index.units) and set(requests.values()) == {1}
    assert {name.split()[0] for name in requests} == {"get_object"}


def test_memory_stays_under_the_stated_bound(tmp_path: Path) -> None:
    plan = make_plan(make_weights(tmp_path / "w.safetensors"), times=SIX)
    wide = plan.__class__(**{
        **{name: getattr(plan, name) for name in plan.__dataclass_fields__},
        "grid": grids_for(BBOX, 10, core_px=192, halo_px=16, shard_px=1920)[0],
    })  # fmt: skip
    made = make_store(str(tmp_path / "cube.zarr"), wide, valid=np.full(wide.grid.shape, 100, "uint8"))
    windows = CubeWindows(made.url, side=8)
    indices(WindowStream(windows, epochs=1))  # what libraries keep after their first call
    stream = WindowStream(windows, open_units=2, ahead=1, threads=1, epochs=2)
    tracemalloc.start()
    try:
        indices_seen = sum(1 for _ in stream)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert indices_seen == 2 * len(windows)
    assert peak <= stream.memory_bytes, (peak, stream.memory_bytes)


def test_a_damaged_shard_ends_the_stream_or_is_left_out(made: Made, tmp_path: Path) -> None:
    url = tmp_path / "cube.zarr"
    shutil.copytree(made.url, url)
    windows = CubeWindows(url, side=CORE, seed=7)
    lost = next(p for p in sorted((url / "latent" / "c" / "3").rglob("*")) if p.is_file())
    data = lost.read_bytes()
    lost.unlink()
    stream = WindowStream(windows, epochs=1)
    got = []
    with pytest.raises(StoreError, match="lacks values"):
        for patch in stream:
            got.append(patch.index)
    lost.write_bytes(data)  # mended: the same stream goes on where it stood
    assert got + indices(stream) == windows.order(0).tolist()
    lost.unlink()
    left = WindowStream(windows, epochs=1, on_error="skip")
    some = indices(left)
    assert len(left.failed) == 1 and 0 < len(some) < len(windows)
    assert [i for i in windows.order(0).tolist() if i in set(some)] == some
    for path in (url / "latent" / "c").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(StoreError, match="gave none"):
        indices(WindowStream(windows, on_error="skip"))


def test_a_place_in_other_patches_is_refused(made: Made, windows: CubeWindows) -> None:
    state = WindowStream(windows).state_dict()
    for other in (
        WindowStream(CubeWindows(made.url, side=SHARD, seed=7)),
        WindowStream(CubeWindows(made.url, side=CORE, seed=8)),
        WindowStream(windows, world=2),
        WindowStream(windows, open_units=4),
    ):
        with pytest.raises(InputError, match="of other patches"):
            other.load_state_dict(state)
    with pytest.raises(InputError, match="workers"):
        WindowStream(windows, rank=0, world=10_000)


def test_batches_are_those_of_the_stream_and_resume_between_them(windows: CubeWindows) -> None:
    size = 7
    want = indices(WindowStream(windows, epochs=2))
    patches = {i: windows.read(i) for i in range(len(windows))}
    batches = WindowBatches(WindowStream(windows, epochs=2), size)
    got = [next(batches) for _ in range(5)]
    state = batches.state_dict()
    batches.close()
    again = WindowBatches(WindowStream(windows, epochs=2), size, ahead=3)
    again.load_state_dict(state)
    got += list(again)
    again.close()
    assert [len(b.times) for b in got[:-1]] == [size] * (len(got) - 1)
    values = np.concatenate([b.values for b in got])
    assert len(values) == len(want)
    for place, index in enumerate(want):
        np.testing.assert_array_equal(values[place], patches[index].values)  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_data_loader_shares_an_epoch_out_over_its_processes(windows: CubeWindows) -> None:
    from torch.utils.data import DataLoader

    dataset = torch_dataset(windows)
    for workers in (0, 2):
        how: dict[str, Any] = {"multiprocessing_context": "spawn"} if workers else {}
        loader: Any = DataLoader(dataset, batch_size=4, num_workers=workers, **how)
        seen = np.concatenate([batch["values"].numpy() for batch in loader])
        want = np.stack([p.values for i in range(len(windows)) if (p := windows.read(i)) is not None])
        assert len(seen) == len(want)
        np.testing.assert_array_equal(np.sort(seen.sum((1, 2, 3))), np.sort(want.sum((1, 2, 3))))


def test_the_page_on_reading_cubes_runs(made: Made) -> None:
    page = (Path(__file__).parents[3] / "docs" / "howto" / "cubes.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    given: dict[str, Any] = {"urls": [made.url], "options": None}
    exec(compile(code, "docs/howto/cubes.md", "exec"), given)
    assert given["state"]["data"]["epoch"] == 1 and torch.isfinite(given["loss"])
