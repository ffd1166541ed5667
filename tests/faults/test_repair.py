"""Every kind of object of a store damaged in every way: repaired, the store is the undisturbed run's, byte for byte."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from eocube.errors import StoreError
from eocube.net.objects import Objects
from eocube.plan.plan import Plan, WorkUnit
from eocube.products.base import Models
from eocube.run import repair as repairing
from eocube.run.driver import RunTally, empty_receipt
from eocube.run.options import Cube, EngineOptions, Limits
from eocube.run.repair import Repaired, repair
from eocube.run.request import Exit
from eocube.run.unit import UnitRunner
from eocube.store.commit_log import PLAN
from eocube.store.existing import gathered
from eocube.store.fence import Fence
from eocube.store.receipts import State
from eocube.store.store import CubeStore, finalise_root
from eocube.store.survey import survey
from tests.faults.killing import Death, Killed, Reader, drive, encoder, plan_of, scene
from tests.faults.test_corrupt import DAMAGE, everything, flip, kinds

SMALL, LARGER = (11.500, 48.100, 11.512, 48.108), (11.500, 48.100, 11.518, 48.112)

WAYS: dict[str, Callable[[bytes], bytes | None]] = {
    **DAMAGE,
    "one byte more": lambda data: data + b"x",
    "zeroes": lambda data: bytes(len(data)),
}


class Engine:
    """Carries units out in this process, with the stand-in reader and encoder; counts them."""

    def __init__(self) -> None:
        self.units: list[str] = []
        self.reader = Reader()

    def __call__(
        self,
        cubes: Sequence[Cube],
        options: EngineOptions,
        todo: Iterable[tuple[int, WorkUnit]],
        run_id: str,
        *,
        total: int | None = None,
        check: Callable[[], None] | None = None,
        fence: Fence | None = None,
        died: bool = False,
    ) -> RunTally:
        tally = RunTally()
        for k, unit in todo:
            self.units.append(unit.key)
            plan, store = cubes[k].plan, CubeStore.open(cubes[k].url, fence=fence)
            if unit.empty:
                receipt = empty_receipt(plan, unit, run_id)
            else:
                encoders: Any = {"fp32": lambda: encoder}
                same: Any = lambda z: z  # noqa: E731
                models = Models(encoders, same, lambda p: next(iter(p.values())))
                runner = UnitRunner(plan, store, models, Limits(read_threads=1), run_id=run_id, inputs=self.reader)
                try:
                    receipt = runner.run(unit)
                finally:
                    runner.close()
            if check is not None:
                check()
            store.commit([receipt])
            tally.add(receipt)
        return tally


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    found = Engine()
    monkeypatch.setattr(repairing, "run_engine", found)
    monkeypatch.setattr(repairing, "default_gpus", lambda options: 0.0)
    monkeypatch.setattr(repairing, "_check_models", lambda *_: None)
    monkeypatch.setattr(repairing, "sampled_fraction", lambda *_: 0.0)
    return found


@dataclass(frozen=True)
class Sound:
    """A store as an undisturbed run leaves it, as it was before its last run, and its plan."""

    objects: dict[str, bytes]
    before: dict[str, bytes]
    plan: Plan
    states: list[tuple[str, str | None, Any]]

    def copy(self, changes: dict[str, bytes | None]) -> str:
        """A copy with some objects replaced or gone: its URL."""
        url = f"memory://repair-{uuid.uuid4().hex}/cube.zarr"
        target = Objects(url)
        for key, data in {**self.objects, **changes}.items():
            if data is not None:
                target.put(key, data)
        return url


@pytest.fixture(scope="module")
def sound() -> Sound:
    """Two times, ground that was added, a window that failed and was done again, one without data."""
    url = f"memory://repair-{uuid.uuid4().hex}/cube.zarr"
    first = plan_of(SMALL, [scene(10)], (10, 10))
    windows = [(w.row, w.col) for w in first.grid.requested_windows()]
    reader = Reader(nodata=frozenset(windows[2:3]))
    drive(url, first, reader=Reader(frozenset(windows[:1]), reader.nodata), commit_every=1)
    before = everything(url)
    asked = plan_of(LARGER, [scene(10), scene(15)], (10, 15))
    drive(url, asked, reader=reader, retry=[State.READ_FAILED], commit_every=1)
    assert CubeStore.open(url).verify() == []
    return Sound(everything(url), before, Plan.from_json((Objects(url).get(PLAN) or b"").decode()), states(url))


@pytest.fixture(autouse=True)
def same_ground(engine: Engine, sound: Sound) -> None:
    """What is encoded again is read as it was."""
    first = plan_of(SMALL, [scene(10)], (10, 10))
    engine.reader = Reader(nodata=frozenset([(w.row, w.col) for w in first.grid.requested_windows()][2:3]))


def whole(objects: dict[str, bytes]) -> dict[str, bytes]:
    """What must be equal: all but the lease, and the log, whose receipts hold times of day and run ids."""
    return {k: v for k, v in objects.items() if not k.startswith("commits/") or k.split("/")[1] in NOT_OF_A_RUN}


NOT_OF_A_RUN = ("plan.json", "layout.json")


def mended(url: str, sound: Sound, **how: Any) -> Repaired:
    found = repair(url, say=lambda line: None, **how)
    assert found.exit == Exit.DONE and found.left == (), (found.damaged, found.left)
    assert survey(url) == []
    assert whole(everything(url)) == whole(sound.objects)
    assert states(url) == sound.states
    Objects(url).fs.rm(
        url.removeprefix("memory:/"), recursive=True
    )  # a listing of any store walks all that are in memory
    return found


def states(url: str) -> list[tuple[str, str | None, Any]]:
    return [(r.unit, r.sha256, r.windows) for r in CubeStore.open(url).receipts()]


@pytest.mark.faults
@pytest.mark.parametrize("how", WAYS)
def test_any_damage_to_any_kind_of_object_is_mended(sound: Sound, engine: Engine, how: str) -> None:
    """Of each kind its first object or its last, in turn from way to way: a repair takes half a second."""
    tried = 0
    for number, (kind, keys) in enumerate(kinds(sound.objects).items()):
        key = keys[0] if (number + list(WAYS).index(how)) % 2 else keys[-1]
        damaged = WAYS[how](sound.objects[key])
        if damaged == sound.objects[key]:
            continue
        url = sound.copy({key: damaged})
        engine.units.clear()
        found = mended(url, sound, search=lambda request: [sound.plan])
        assert found.damaged, key
        if not kind.startswith(("latent/c", "commits/.jsonl")):
            assert engine.units == [], (key, "nothing needs encoding for this")
        tried += 1
    assert tried > 35


@pytest.mark.faults
def test_an_object_of_an_earlier_state_is_mended(sound: Sound, engine: Engine) -> None:
    stale = [k for k, data in sound.before.items() if sound.objects.get(k, data) != data and "lease" not in k]
    for key in stale:
        mended(sound.copy({key: sound.before[key]}), sound, search=lambda request: [sound.plan])
    assert len(stale) > 10


@pytest.mark.faults
def test_an_object_in_anothers_place_is_mended(sound: Sound, engine: Engine) -> None:
    for prefix in ("latent/c/", "valid/c/", "commits/0"):
        one, *_, other = [key for key in sound.objects if key.startswith(prefix)]
        for a, b in ((one, other), (other, one)):
            mended(sound.copy({a: sound.objects[b]}), sound)


@pytest.mark.faults
def test_many_damages_at_once_are_mended(sound: Sound, engine: Engine) -> None:
    """Whatever else is damaged, the plan brings it back."""
    rng = random.Random(12)
    keys = [k for found in kinds(sound.objects).values() for k in found if k != PLAN]
    for _ in range(12):
        chosen = rng.sample(keys, rng.randint(2, 8))
        mended(sound.copy({k: rng.choice(list(WAYS.values()))(sound.objects[k]) for k in chosen}), sound)
    mended(sound.copy({k: None for k in keys}), sound)


@pytest.mark.faults
@pytest.mark.parametrize("key", ["zarr.json", PLAN, "commits/layout.json"])
def test_any_flipped_bit_of_the_root_or_the_plan_is_one_line_and_mended(sound: Sound, engine: Engine, key: str) -> None:
    rng = random.Random(key)
    data = sound.objects[key]
    for at in rng.sample(range(len(data)), 40):
        bad = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        url = sound.copy({key: bad})
        assert survey(url) != []
        mended(url, sound, search=lambda request: [sound.plan])


@pytest.mark.faults
def test_a_repair_killed_at_any_storage_call_goes_on(sound: Sound, engine: Engine) -> None:
    segments = [k for k in sound.objects if k.endswith(".jsonl") and "runs" not in k]
    shards = [k for k in sound.objects if k.startswith("latent/c/")]
    changes = {
        "zarr.json": None, "commits/layout.json": b"", "x/zarr.json": None, "status/c/0/0/0": flip(b"12345678"),
        segments[1]: flip(sound.objects[segments[1]]), segments[-1]: None, shards[0]: b"", "stac.json": b"{}",
    }  # fmt: skip
    url = sound.copy(changes)
    with Death().hanging_over() as watch:
        mended(url, sound)
    assert watch.calls > 30
    killed = 0
    for at in range(1, watch.calls + 1, 3):
        url = sound.copy(changes)
        try:
            with Death(at, after=bool(at % 2)).hanging_over():
                repair(url, say=lambda line: None)
        except Killed:  # an object that is there already is not written: one life may have fewer calls than another
            killed += 1
        for key in Objects(url).keys("commits"):
            if "lease" in key:
                Objects(url).delete(key)  # its process would be seen to be dead
        mended(url, sound)
    assert killed > watch.calls // 4


def test_a_damaged_shard_is_encoded_again_and_no_other(sound: Sound, engine: Engine) -> None:
    shard = next(k for k in sound.objects if k.startswith("latent/c/1/"))
    found = mended(sound.copy({shard: flip(sound.objects[shard])}), sound)
    assert len(engine.units) == 1 and engine.units[0].startswith("t00001/") and found.windows == 2
    assert [path for path, _ in found.damaged] == [shard]


def test_a_sound_store_is_left_alone(sound: Sound, engine: Engine) -> None:
    url = sound.copy({})
    before = everything(url)
    assert repair(url, say=lambda line: None) == Repaired(url, (), ())
    assert everything(url) == before


def test_strays_are_named_and_left(sound: Sound, engine: Engine) -> None:
    url = sound.copy({"notes.txt": b"mine", "latent/c/9/0/0/0": b"?"})
    found = repair(url, say=lambda line: None)
    assert {path for path, _ in found.left} == {"notes.txt", "latent/c/9/0/0/0"} and found.exit == Exit.RETRYABLE
    assert Objects(url).get("notes.txt") == b"mine"


def test_what_is_whole_of_a_damaged_segment_stays(sound: Sound, engine: Engine) -> None:
    """Every line has a check of its own: the units of the others are not encoded again."""
    segments = [k for k in sound.objects if k.endswith(".jsonl")]
    both = sound.objects[segments[-2]] + sound.objects[segments[-1]]
    merged = {segments[-2]: both, segments[-1]: None}
    url = sound.copy(merged)
    CubeStore.open(url).finalise()
    assert survey(url) == []
    Objects(url).put(segments[-2], both[:-40])
    repair(url, say=lambda line: None)
    assert len(engine.units) == 1 and whole(everything(url)) == whole(sound.objects)


def test_a_plan_that_no_search_gives_again_is_one_line(sound: Sound, engine: Engine) -> None:
    url = sound.copy({PLAN: None})
    other = plan_of(SMALL, [scene(11)], (11, 11))
    with pytest.raises(StoreError, match=r"commits/plan\.json is missing.*put that object back"):
        repair(url, say=lambda line: None, search=lambda request: [other])
    assert Objects(url).get(PLAN) is None


def test_a_plan_that_the_search_gives_again_is_put_back(sound: Sound, engine: Engine) -> None:
    asked: list[Any] = []

    def search(request: Any) -> list[Plan]:
        asked.append(request)
        return [sound.plan]

    mended(sound.copy({PLAN: None}), sound, search=search)
    assert asked == [dict(sound.plan.request)] and engine.units == []


def test_nothing_there_is_said_and_nothing_is_left_behind(tmp_path: Any, engine: Engine) -> None:
    with pytest.raises(StoreError, match="no eocube store"):
        repair(str(tmp_path / "none.zarr"), say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def zones(sound: Sound) -> str:
    """Two zones under one root."""
    url = f"memory://repair-{uuid.uuid4().hex}/cube.zarr"
    for name in ("utm32", "utm33"):
        target = Objects(f"{url}/{name}")
        for key, data in sound.objects.items():
            if "lease" not in key:
                target.put(key, data)
    Objects(url).put("zarr.json", gathered(Objects(url), ["utm32", "utm33"]))
    finalise_root(url)
    return url


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_the_root_over_several_zones_is_named_and_mended(zones: str, engine: Engine, how: str) -> None:
    target = Objects(zones)
    data = target.get("zarr.json") or b""
    bad = WAYS[how](data)
    target.delete("zarr.json") if bad is None else target.put("zarr.json", bad)
    assert [path for path, _ in survey(zones)] == ["zarr.json"]
    found = repair(zones, say=lambda line: None)
    assert found.exit == Exit.DONE and target.get("zarr.json") == data and engine.units == []


def test_a_zones_own_damage_is_mended_through_the_root(zones: str, engine: Engine) -> None:
    target = Objects(zones)
    before = {k: v for k, v in everything(zones).items() if "lease" not in k and ".jsonl" not in k}
    shard = next(k for k in before if k.startswith("utm33/latent/c/"))
    target.put(shard, b"")
    target.delete("utm32/zarr.json")
    assert {path for path, _ in survey(zones)} == {shard, "utm32/zarr.json"}
    found = repair(zones, say=lambda line: None)
    after = everything(zones)
    assert found.exit == Exit.DONE and len(engine.units) == 1
    assert {k: after.get(k) for k in before if "segments" not in k} == {
        k: data for k, data in before.items() if "segments" not in k
    }
