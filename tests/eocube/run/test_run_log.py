"""Structured logs: JSON lines with the run's id, from driver and actors, in the store or a folder, without secrets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from eocube.errors import StoreError
from eocube.net.objects import Objects
from eocube.plan.plan import WorkUnit
from eocube.run import driver as engine
from eocube.run import run_log as runlog
from eocube.run.options import Cube, EngineOptions
from eocube.run.run_log import FileSink, JsonLines, Kept, RunLog, StoreSink, attached, event, of_unit
from eocube.store.store import CubeStore
from tests.eocube.cubes import make_plan, make_weights
from tests.eocube.stub_actors import Writer

SECRET = "do-not-tell-91f2"


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def test_every_line_is_json_with_the_run_and_no_secret(tmp_path: Path) -> None:
    log = RunLog("run1", FileSink(str(tmp_path), "run1"), [SECRET])
    with attached(log):
        with of_unit("t00000/r0000/c0001"):
            event("window_failed", level=logging.WARNING, reason=f"403 https://u:p@host/a.tif?sig={SECRET}", row=3)
        event("run_ended", windows={"ok": 3}, cubes=[f"s3://b/{SECRET}"])
        try:
            raise ValueError(f"bad {SECRET}")
        except ValueError:
            logging.getLogger("eocube.store.store").exception("cannot write")
    text = (tmp_path / "run1.jsonl").read_text()
    assert SECRET not in text and "u:p" not in text
    first, second, third = lines_of(tmp_path)
    assert {line["run"] for line in (first, second, third)} == {"run1"}
    assert (first["event"], first["unit"], first["row"], first["level"]) == (
        "window_failed", "t00000/r0000/c0001", 3, "warning",
    )  # fmt: skip
    assert second["windows"] == {"ok": 3} and "unit" not in second
    assert third["event"] == "message" and "ValueError" in third["error"]


def test_segments_in_a_store_hold_every_line_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runlog, "SEGMENT_LINES", 10)
    log = RunLog("r", StoreSink(Objects(tmp_path), "r"))
    with attached(log):
        for k in range(35):
            event("step", k=k)
    found = lines_of(tmp_path / "commits" / "runs" / "r")
    assert [line["k"] for line in found] == list(range(35))
    assert len(list((tmp_path / "commits" / "runs" / "r").iterdir())) > 1


class Broken(Objects):
    """A target that refuses every write."""

    def put(self, key: str, data: bytes) -> None:
        raise StoreError("no space left")


def test_a_log_that_cannot_be_written_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with attached(RunLog("r", StoreSink(Broken(tmp_path), "r"))):
        event("step")
    assert "given up" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="give another --log-dir"):
        FileSink(str(tmp_path / "file" / "logs"), "r")


def test_an_actor_keeps_the_newest_lines_until_they_are_taken() -> None:
    kept = Kept()
    kept.setFormatter(JsonLines("r"))
    for k in range(runlog.KEPT + 5):
        kept.handle(logging.makeLogRecord({"msg": str(k)}))
    taken = [json.loads(line)["message"] for line in kept.take()]
    assert taken == [str(k) for k in range(5, runlog.KEPT + 5)]
    assert kept.take() == ()


def test_a_run_leaves_its_log_in_the_store_beside_the_commits(tmp_path: Path) -> None:
    plan = make_plan(make_weights(tmp_path / "w.safetensors"))
    url = str(tmp_path / "cube.zarr")
    CubeStore.create(url, plan)
    unit = WorkUnit(0, *min(plan.grid.shards()))
    engine.run([Cube(plan, url)], EngineOptions(quiet=True), [(0, unit)], "abc", actor_class=Writer)
    found = lines_of(Path(url) / "commits" / "runs" / "abc")
    assert {line["run"] for line in found} == {"abc"}
    events = [line["event"] for line in found]
    assert events[0] == "run_started" and events[-1] == "run_ended" and "actor_started" in events
    assert found[-1]["units"] == 1
    store = CubeStore.open(url)
    assert len(list(store.receipts())) == 1
    store.finalise()
    assert store.verify() == []
