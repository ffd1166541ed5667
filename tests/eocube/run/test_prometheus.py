"""Ray metrics of a run, scraped from a node's endpoint as Prometheus does; the busy clock."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from eocube.plan.plan import WorkUnit
from eocube.run import driver as engine
from eocube.run import prometheus
from eocube.run.options import Cube, EngineOptions
from eocube.run.prometheus import BusyClock
from eocube.store.store import CubeStore
from tests.eocube.cubes import make_plan, make_weights
from tests.eocube.stub_actors import Writer


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_a_device_is_busy_while_anybody_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(prometheus, "time", clock)
    device = BusyClock()
    with device.inside():
        clock.now += 2
        with device.inside():
            clock.now += 1
        clock.now += 1
    clock.now += 4
    assert device.idle_share() == pytest.approx(0.5)
    with device.inside():
        clock.now += 3
        assert device.idle_share() == pytest.approx(0.0)
        clock.now += 1
    clock.now += 3
    assert device.idle_share() == pytest.approx(0.75)


def samples(text: str, run: str) -> dict[str, float]:
    """The run's samples of an exposition, by name and the labels that are eocube's own."""
    found = {}
    for name, labels, value in re.findall(r"^(ray_eocube_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        own = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if own.pop("run", None) == run:
            kept = ",".join(f"{k}={own[k]}" for k in sorted(own) if k in ("state", "outcome", "queue", "what", "le"))
            found[f"{name}{{{kept}}}"] = float(value)
    return found


def scrape(ray: Any) -> str:
    return "\n".join(
        urllib.request.urlopen(f"http://{n['NodeManagerAddress']}:{n['MetricsExportPort']}/metrics", timeout=10)
        .read()
        .decode()
        for n in ray.nodes()
        if n["Alive"]
    )


@pytest.mark.slow
def test_prometheus_sees_what_a_run_did(ray_local: Any, tmp_path: Path) -> None:
    plan = make_plan(make_weights(tmp_path / "w.safetensors"))
    url = str(tmp_path / "cube.zarr")
    CubeStore.create(url, plan)
    units = [(0, WorkUnit(t, r, c)) for t in range(len(plan.times)) for r, c in sorted(plan.grid.shards())]
    run = f"scraped{time.monotonic_ns()}"
    options = EngineOptions(actors=1, quiet=True, source_options={"seconds": 0.2})
    empty = (0, WorkUnit(units[-1][1].time, units[-1][1].row, units[-1][1].col, empty=True))
    tally = engine.run([Cube(plan, url)], options, [*units[:-1], empty], run, actor_class=Writer)
    want = {
        f"ray_eocube_windows_total{{state={s.label}}}": float(n) for s, n in tally.windows.items()
    } | {
        "ray_eocube_units_total{outcome=done}": float(len(units) - 1),
        "ray_eocube_written_bytes_total{}": float(tally.bytes_out),
    }  # fmt: skip
    until, found = time.monotonic() + 60, dict[str, float]()
    while time.monotonic() < until and not want.items() <= found.items():
        time.sleep(1)
        found = samples(scrape(ray_local), run)
    assert want.items() <= found.items(), found
    assert "ray_eocube_queue_depth{queue=flight}" in found and "ray_eocube_actors{state=ready}" in found
    assert found["ray_eocube_unit_seconds_count{}"] == len(units) - 1
