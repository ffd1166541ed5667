"""A shard's pixels cross once and are gathered where they are encoded: the same windows, to the bit, at every place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from eocube.plan.plan import WorkUnit
from eocube.products.base import Models
from eocube.products.half_batches import HalfBatches
from eocube.read.areas import Area, Layout
from eocube.read.reader import WindowReader
from eocube.read.window_pixels import Cut, WindowPixels
from eocube.run.memory import area_bytes, card_bytes, window_bytes
from eocube.run.options import Limits
from eocube.run.pool import UNITS_PER_ACTOR
from eocube.run.shard_batches import ShardBatches
from eocube.run.unit import UnitRunner
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from eocube.store.receipts import Receipt, State
from eocube.store.store import CubeStore
from model import crossing as crossings
from model import host
from model.crossing import ALIGNED, Crossing, Returned
from tests.eocube.cubes import fullest, make_plan, make_weights
from tests.eocube.rasters import now
from tests.eocube.read.test_shard import LATTICE, SENSOR, WINDOWS, Maker
from tests.eocube.run.test_unit import Means, over

OPTICAL = get_sensor("S2L2A")
DN = Radiometry(1e-4, -0.1, 0.0, "dn", "test")


class Counted(Crossing):
    """A crossing to the CPU as if it were a device, which counts what crosses."""

    def __init__(self) -> None:
        super().__init__("cpu", copies=True)
        self.crossed: list[int] = []

    def _cross(self, staged: torch.Tensor) -> tuple[torch.Tensor, Any]:
        self.crossed.append(staged.nbytes)
        return super()._cross(staged)


def ways() -> list[Crossing]:
    found: list[Crossing] = [Crossing("cpu"), Counted()]
    return [*found, Crossing("cuda")] if torch.cuda.is_available() else found


def random_shard(own: Sequence[int] = (), gone: Sequence[int] = (), dtype: str = "uint16") -> dict[int, WindowPixels]:
    """Windows of `LATTICE` by their place, in all samplings: parts of arrays, or arrays of their own."""
    rng = np.random.default_rng(0)
    area = Area.around(WINDOWS)
    layouts = {s: Layout.of_group(LATTICE, area, s) for s in OPTICAL.groups(LATTICE.metres)}
    arrays = {
        s: rng.integers(0, 2**16, (len(bands), *layouts[s].shape)).astype(dtype)
        for s, bands in OPTICAL.groups(LATTICE.metres).items()
    }
    steps = {s: layout.step for s, layout in layouts.items()}
    full = np.full((LATTICE.core,) * 2, 100, np.uint8)
    found = {}
    for place, window in enumerate(WINDOWS):
        groups = {s: array[:, *layouts[s].of(window)] for s, array in arrays.items()}
        cut: Cut | None = Cut(arrays, steps, window.row - area.row0, window.col - area.col0)
        if place in own:
            groups, cut = {s: rng.integers(0, 2**16, g.shape).astype(dtype) for s, g in groups.items()}, None
        if place not in gone:
            found[place] = WindowPixels(groups, full, 100, 255, (), 0, None, None, cut)
    return found


def stacked(windows: Mapping[int, WindowPixels], number: int, size: int) -> dict[int, np.ndarray]:
    """A batch as it is meant: every window at its place, blank where there is none."""
    of = next(iter(windows.values())).groups
    found = {s: np.zeros((size, *g.shape), g.dtype) for s, g in of.items()}
    for place, pixels in windows.items():
        if place // size == number:
            for s, g in pixels.groups.items():
                found[s][place % size] = g
    return found


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize(
    ("own", "gone"), [((), ()), ((0, 5, 6), ()), ((), (0, 3, 4, 5, 6, 7)), ((1, 9), (8, 15)), (range(16), (2,))]
)
def test_what_is_gathered_are_the_windows_to_the_bit(size: int, own: Sequence[int], gone: Sequence[int]) -> None:
    for dtype in ("uint16", "float32"):
        windows = random_shard(own, gone, dtype)
        assert {10, 20, 60} == next(iter(windows.values())).groups.keys()
        for crossing in ways():
            batches = ShardBatches(windows, size, crossing)
            for number in sorted({place // size for place in windows}):
                found = batches.batch(number)
                for sampling, expected in stacked(windows, number, size).items():
                    assert found[sampling].dtype == torch.from_numpy(expected).dtype
                    np.testing.assert_array_equal(found[sampling].cpu().numpy(), expected)
            for place, pixels in windows.items():
                for sampling, group in batches.window(place).items():
                    np.testing.assert_array_equal(group.cpu().numpy()[0], pixels.groups[sampling])


def test_a_window_lies_at_its_place_whoever_else_is_there() -> None:
    """Blank places, the first ones too, and windows that are left out for a second precision."""
    everyone, size = random_shard(own=(3,)), 4
    for crossing in ways():
        whole = ShardBatches(everyone, size, crossing)
        for gone in ((0,), (0, 1, 2), (5, 6), (0, 1, 2, 3, 12, 15)):
            some = ShardBatches({p: w for p, w in everyone.items() if p not in gone}, size, crossing)
            for number in {place // size for place in everyone if place not in gone}:
                kept = [p for p in range(number * size, (number + 1) * size) if p not in gone]
                for found in (some.batch(number), whole.batch(number, kept)):
                    for sampling, values in whole.batch(number).items():
                        assert found[sampling].shape == values.shape == (size, *values.shape[1:])
                        for place in range(number * size, (number + 1) * size):
                            one = found[sampling][place % size].cpu().numpy()
                            expected = values[place % size].cpu().numpy() if place in kept else np.zeros_like(one)
                            np.testing.assert_array_equal(one, expected)


def test_one_window_a_batch_is_a_view_of_what_was_read() -> None:
    windows = random_shard()
    batches = ShardBatches(windows, 1, Crossing("cpu"))
    for place, pixels in windows.items():
        for sampling, values in batches.batch(place).items():
            assert np.shares_memory(values.numpy(), pixels.groups[sampling])
    frozen = {s: g.copy() for s, g in windows[0].groups.items()}
    for group in frozen.values():
        group.flags.writeable = False  # another package's inputs may give such
    kept = replace(windows[0], groups=frozen, cut=None)
    for sampling, values in ShardBatches({0: kept}, 1, Crossing("cpu")).batch(0).items():
        np.testing.assert_array_equal(values.numpy()[0], frozen[sampling])


@pytest.mark.parametrize("own", [(), (1, 7)])
def test_a_shard_crosses_in_one_copy_of_its_pixels_without_overlaps(own: Sequence[int]) -> None:
    windows, crossing = random_shard(own), Counted()
    batches = ShardBatches(windows, 8, crossing)
    for number in (0, 1, 0):
        batches.batch(number)
    of = next(w.cut for w in windows.values() if w.cut is not None)
    pixels = sum(array.nbytes for array in of.arrays.values())
    alone = sum(g.nbytes for place in own for g in windows[place].groups.values())
    sources = 2 if own else 1
    (crossed,) = crossing.crossed
    assert pixels + alone <= crossed <= pixels + alone + sources * (16 * 17 + 6 * ALIGNED)
    assert pixels < 0.6 * sum(g.nbytes for w in windows.values() for g in w.groups.values()), "windows overlap"


@pytest.mark.parametrize("seed", range(3))
def test_what_is_read_of_scenes_is_gathered_as_it_would_be_alone(tmp_path: Path, seed: int) -> None:
    """Scenes with gaps, bands of 10, 20 and 60 m, halos over edges: read as one and gathered, against read alone."""
    maker = Maker(tmp_path, seed)
    scenes = [maker.scene(DN) for _ in range(2)]
    with WindowReader(SENSOR, LATTICE) as reader:
        asked = reader.read_shard(dict.fromkeys(WINDOWS, scenes), None, now)
        pixels = {WINDOWS.index(w): found for w, (_, found) in asked.items() if found is not None}
        assert pixels
        for crossing in ways():
            batches = ShardBatches(pixels, 4, crossing)
            for place in pixels:
                alone = reader.read(scenes, WINDOWS[place])
                for sampling, group in alone.groups.items():
                    found = batches.batch(place // 4)[sampling][place % 4]
                    np.testing.assert_array_equal(found.cpu().numpy(), group)


# -- through a unit


def run(
    folder: Path, name: str, models: Models, crossing: Crossing | None, limits: Limits | None = None
) -> tuple[bytes, Receipt]:
    """The shard of a unit, of which windows are cloudy and one has a gap, and its receipt."""
    (folder / name).mkdir()
    plan = over(make_plan(make_weights(folder / "w.safetensors")), folder)
    store = CubeStore.create(folder / name / "cube.zarr", plan)
    runner = UnitRunner(plan, store, models, limits or Limits(max_cloud=50.0), crossing=crossing)
    receipt = runner.run(WorkUnit(0, *fullest(plan)))
    runner.close()
    shard = (folder / name / "cube.zarr" / store.shard_key(0, *fullest(plan))).read_bytes()
    return shard, replace(receipt, seconds=0.0, created="")


def test_a_units_bytes_are_the_same_by_views_and_by_gathering(tmp_path: Path) -> None:
    def models(batch: int) -> Models:
        return Models({"fp32": Means}, None, None, batch=batch)  # type: ignore[arg-type]

    views = run(tmp_path, "views", models(1), None)
    assert {State.OK, State.CLOUDY} <= {window.state for window in views[1].windows}
    for batch, rows, crossed in ((1, None, 1), (2, None, 1), (4, None, 1), (2, 1, 2)):
        crossing = Counted()
        limits = Limits(max_cloud=50.0, rows=rows)
        assert run(tmp_path, f"{batch}-{rows}", models(batch), crossing, limits) == views
        assert len(crossing.crossed) == crossed, "one copy for what is read as one"
        assert run(tmp_path, f"{batch}-{rows}-here", models(batch), None, limits) == views


class Overflowing:
    """As `Means`, but not finite where a precision is too narrow for a window, told by its place in the batch."""

    def __init__(self, too_wide: Sequence[int], seen: list[list[bool]]) -> None:
        self.too_wide, self.seen = too_wide, seen

    def __call__(self, pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
        self.seen.append([bool(window.any()) for window in pixels[10]])
        values = torch.nn.functional.avg_pool2d(pixels[10][:, :4].float(), 8) / 7
        values[list(self.too_wide)] = torch.inf
        return values


def test_a_window_that_overflows_is_done_again_alone_at_its_place(tmp_path: Path) -> None:
    """fp16, bf16, fp32: each window once it is sound, by the first precision that holds it; others keep their bits."""
    shards = []
    for name, crossing in (("here", None), ("there", Counted())):
        seen: dict[str, list[list[bool]]] = {"fp16": [], "bf16": [], "fp32": []}
        made = {
            name: partial(Overflowing, wide, seen[name])
            for name, wide in (("fp16", (0, 1, 2)), ("bf16", (0, 1)), ("fp32", (0,)))
        }
        models = Models(made, None, None, batch=4)  # type: ignore[arg-type]
        shard, receipt = run(tmp_path, name, models, crossing, Limits())
        assert [State.ENCODE_FAILED, *[State.OK] * 3] == [window.state for window in receipt.windows]
        assert receipt.precision == {"bf16": 1, "fp16": 1, "fp32": 1}
        assert seen == {"fp16": [[True] * 4], "bf16": [[True] * 3 + [False]], "fp32": [[True, True, False, False]]}
        shards.append(shard)
    assert shards[0] == shards[1]


def test_when_the_device_is_full_halves_of_the_batch_are_encoded(tmp_path: Path) -> None:
    class Full(Means):
        def __call__(self, pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
            if len(pixels[10]) > 2:
                raise torch.OutOfMemoryError("full")
            return super().__call__(pixels)

    whole = run(tmp_path, "whole", Models({"fp16": Means}, None, None, batch=4), None)  # type: ignore[arg-type]
    halves = Models({"fp16": lambda: HalfBatches(Full())}, None, None, batch=4)  # type: ignore[arg-type]
    shard, receipt = run(tmp_path, "halves", halves, Counted())
    assert shard == whole[0] and set(receipt.precision) == {"fp16 in half batches"}


# -- the way back, and a GPU's streams


def test_values_come_back_into_one_array_of_the_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values on a device that is not there: its copies are made up here."""
    made: list[tuple[int, ...]] = []
    copies: list[tuple[int, int]] = []

    def array(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
        made.append(tuple(shape))
        return torch.zeros(tuple(shape), dtype=like.dtype)

    def copied(values: torch.Tensor, into: torch.Tensor | None = None) -> torch.Tensor:
        if into is None:
            return torch.full(values.shape, -1.0, dtype=values.dtype)
        copies.append((into.storage_offset() // into[0].numel(), len(into)))
        return into.fill_(len(copies))

    monkeypatch.setattr(crossings, "host_array", array)
    monkeypatch.setattr(crossings, "to_host", copied)
    returned = Returned(100)
    values = torch.empty((25, 4, 8, 8), dtype=torch.float16, device="meta")
    parts = [returned.bring(values, first) for first in (0, 75, 25, 50)]
    assert made == [(100, 4, 8, 8)] and copies == [(0, 25), (75, 25), (25, 25), (50, 25)]
    assert returned.array is not None and returned.array.dtype == torch.float16
    assert all(
        part.data_ptr() == returned.array[at].data_ptr() for part, at in zip(parts, (0, 75, 25, 50), strict=True)
    )
    wide = returned.bring(values.float(), 0)
    assert wide.dtype == torch.float32 and float(returned.array[0, 0, 0, 0]) == 1, "another form leaves it as it is"
    here = torch.ones(2, 4, 8, 8)
    assert Returned(2).bring(here, 0) is here


def test_copies_go_ahead_on_a_stream_of_their_own_and_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[Any, ...]] = []
    numbers = count()

    class Stream:
        def __init__(self, device: object = None, name: str = "") -> None:
            self.name = name or f"stream {next(numbers)}"
            steps.append(("made", self.name))

        def wait_event(self, event: object) -> None:
            steps.append(("waits", self.name))

        def __enter__(self) -> None:
            steps.append(("on", self.name))

        def __exit__(self, *_: object) -> None:
            steps.append(("off", self.name))

    current = Stream(name="the thread's")
    event = SimpleNamespace(record=lambda stream: steps.append(("recorded", stream.name)))
    cuda = SimpleNamespace(
        Stream=Stream, stream=lambda stream: stream, Event=lambda: event, current_stream=lambda device: current
    )
    there = SimpleNamespace(
        copy_=lambda staged, non_blocking: steps.append(("copied", non_blocking)), device="cuda",
        record_stream=lambda stream: steps.append(("kept for", stream.name)),
    )  # fmt: skip
    steps.clear()
    monkeypatch.setattr(crossings.torch, "cuda", cuda)
    monkeypatch.setattr(crossings, "on_device", lambda staged, device: there)
    crossing = Crossing("cuda")
    whole, copied = crossing._cross(torch.zeros(4, dtype=torch.uint8))
    own = steps[0][1]
    assert steps[1:] == [("on", own), ("copied", True), ("recorded", own), ("off", own)]
    steps.clear()
    crossings.Arrived((), whole, copied).await_here()
    assert steps == [("waits", "the thread's"), ("kept for", "the thread's")]
    steps.clear()
    with crossing.lane():
        pass
    with crossing.lane():
        pass
    made = [step for step in steps if step[0] == "made"]
    assert len(made) == 1 and made[0][1] != own and steps[1:] == [("on", made[0][1]), ("off", made[0][1])] * 2


def test_what_a_gpu_holds_is_bounded_by_the_formula() -> None:
    plan = make_plan_of_all_bands()
    lattice, windows, limits = plan.lattice, random_shard(own=range(8)), Limits()
    crossing = Counted()
    ShardBatches(windows, 4, crossing)
    (crossed,) = crossing.crossed
    held = area_bytes(plan.product, lattice, 16) + 16 * window_bytes(plan.product, lattice)
    assert crossed <= held
    batch = 4 * 4 * window_bytes(plan.product, lattice)
    assert card_bytes(plan.product, lattice, limits, batch=4) > UNITS_PER_ACTOR * held + batch
    assert card_bytes(plan.product, lattice, replace(limits, rows=1), batch=4) < card_bytes(
        plan.product, lattice, limits, batch=4
    )


def make_plan_of_all_bands() -> Any:
    product = SimpleNamespace(sensor=OPTICAL, channels=4)
    return SimpleNamespace(product=product, lattice=LATTICE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_batches_are_views_of_pinned_and_waited_for_copies(tmp_path: Path) -> None:
    views = run(tmp_path, "views", Models({"fp32": Means}, None, None), None)  # type: ignore[arg-type]
    models = Models({"fp32": Means}, None, None, batch=2, device="cuda")  # type: ignore[arg-type]
    assert run(tmp_path, "gpu", models, None)[1].windows == views[1].windows
    assert host.to_host(torch.ones(2, device="cuda")).is_pinned()
