"""A defect of this program is told apart from a source that fails: it ends the run, and no window is tried again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import eocube.read.reader
import eocube.read.shard
import eocube.read.sources
from eocube.errors import SourceError
from eocube.net.network import Network, NetworkLimits
from eocube.plan.plan import WorkUnit
from eocube.read.reader import WindowReader
from eocube.run import driver as engine
from eocube.run.actor import EncodeActor
from eocube.run.options import Cube, EngineOptions, Limits
from eocube.store.store import CubeStore
from tests.eocube.cubes import fullest, make_plan, make_weights
from tests.eocube.rasters import LATTICE, WINDOW, digital, ground, over, s2, tif, together
from tests.eocube.run.test_unit import over as over_files

DEFECTS = (TypeError, AttributeError, AssertionError, NameError, UnboundLocalError)


def broken(kind: type[Exception], calls: list[int]) -> Callable[..., Any]:
    """A part of the reader that a change has broken."""

    def fail(*_: Any, **__: Any) -> Any:
        calls.append(1)
        raise kind("a part that was changed")

    return fail


@pytest.mark.parametrize("kind", DEFECTS)
@pytest.mark.parametrize("remote", [False, True])
def test_a_defect_comes_through_at_once(
    kind: type[Exception], remote: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(eocube.read.reader, "read_bands", broken(kind, calls))
    scene = over(tif(tmp_path / "b.tif", digital(ground())))
    network = Network(NetworkLimits(first_wait=0.001))
    with WindowReader(s2(), LATTICE, network=network) as reader:
        if remote:  # a host's failures are asked again; the file itself is opened here all the same
            monkeypatch.setattr(eocube.read.sources, "host_of", lambda href, options: "host")
        with pytest.raises(kind, match="a part that was changed"):
            reader.read([scene], WINDOW)
    assert calls == [1]


@pytest.mark.parametrize("kind", DEFECTS)
def test_a_defect_in_reading_windows_together_is_not_passed_over(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = over(tif(tmp_path / "b.tif", digital(ground())))
    monkeypatch.setattr(eocube.read.shard, "read_raw", broken(kind, []))
    with pytest.raises(kind, match="a part that was changed"):
        together(scene)


@pytest.mark.parametrize("kind", [OSError, ValueError, RuntimeError, KeyError])
def test_what_drivers_raise_is_a_failed_read(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = over(tif(tmp_path / "b.tif", digital(ground())))
    monkeypatch.setattr(eocube.read.reader, "read_bands", broken(kind, []))
    with WindowReader(s2(), LATTICE) as reader, pytest.raises(SourceError, match="item item-1, asset b02"):
        reader.read([scene], WINDOW)
    monkeypatch.setattr(eocube.read.shard, "read_raw", broken(kind, []))
    assert not together(scene)


class Defective(EncodeActor):
    """The real actor, with a reader that a change has broken."""

    def __init__(self, urls: Any, options: EngineOptions, device: str, run_id: str) -> None:
        super().__init__(urls, options, device, run_id)
        self.calls = Path(urls[0]).parent / "calls"
        eocube.read.reader.read_bands = eocube.read.shard.read_raw = self.fail

    def fail(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a part that was changed")

    def run(self, cube: int, unit: WorkUnit) -> tuple[str, tuple[str, ...]]:
        with self.calls.open("a") as file:
            file.write(f"{unit.key}\n")
        return super().run(cube, unit)


@pytest.mark.slow
def test_a_defect_in_an_actor_ends_the_run_and_is_not_tried_again(ray_local: object, tmp_path: Path) -> None:
    plan = over_files(make_plan(make_weights(tmp_path / "w.safetensors")), tmp_path)
    plan = replace(plan, numerics={})
    url = str(tmp_path / "cube.zarr")
    CubeStore.create(url, plan)
    todo = [(0, WorkUnit(0, *fullest(plan)))]
    options = EngineOptions(actors=1, limits=Limits(max_cloud=None), quiet=True)
    with pytest.raises(TypeError, match="a part that was changed"):
        engine.run([Cube(plan, url)], options, todo, "run-1", actor_class=Defective)
    assert (tmp_path / "calls").read_text().splitlines() == [todo[0][1].key]
    assert len(CubeStore.open(url).log.latest()) == 0
