"""Checkpoints at any fsspec URL, whole or not at all; the run's history, TensorBoard and Weights & Biases."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest

from model.sensors import S1RTC, S2L2A
from model.training.checkpoint import POINTER, Snapshot, Store, read_snapshot, started, write_snapshot
from model.training.ray_train import Run, RunError, _storage
from model.training.tracking import Tracker, panel, read_history


def save(store: Store, total: int) -> None:
    snapshot = Snapshot({"position": {"total": total}}, {"source": {"rng": {"state": 2**100}}})
    store.save(lambda folder: write_snapshot(folder, snapshot, 0), total, {"loss": 1.0})


def total(store: Store) -> int | None:
    with store.restore() as folder:
        if folder is None:
            return None
        snapshot = read_snapshot(folder, 0, sliced=False)
        assert snapshot.own["source"]["rng"]["state"] == 2**100  # numpy's random states are wider than 64 bits
        return int(snapshot.shared["position"]["total"])


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"), keep=2)
    assert total(store) is None and not started(store.url)
    for step in (1, 2, 10):
        save(store, step)
    assert total(store) == 10 and started(store.url)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoint_000000002", "checkpoint_000000010", POINTER,
    ]  # fmt: skip


def test_a_kill_while_saving_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    save(store, 1)

    def dies(folder: Path) -> None:
        (folder / "state.pt").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save(dies, 2, {})
    (tmp_path / "checkpoint_000000003").mkdir()
    (tmp_path / "checkpoint_000000003" / "state.pt").write_bytes(b"not yet named by the pointer")
    assert total(store) == 1


def test_checkpoints_and_history_on_s3(s3_server: Any) -> None:
    url = f"s3://{s3_server.bucket()}/runs/tiny"
    store = Store(url, keep=1)
    save(store, 1)
    save(store, 2)
    store.save_best(lambda folder: (folder / "w.json").write_text("{}"))
    assert total(store) == 2
    fs, root = fsspec.url_to_fs(url)
    names = {path.removeprefix(root + "/") for path in fs.find(root)}
    assert {"best/w.json", POINTER, "checkpoint_000000002/state.pt"} <= names
    assert not any("checkpoint_000000001" in name for name in names)
    for first in (0, 1):  # the second goes on after step 1
        tracker = Tracker(url, "tiny")
        tracker.open(first)
        tracker.scalars(first + 1, "s", {"loss": float(first)})
        tracker.scalars(first + 2, "s", {"loss": float(first)})
        tracker.close()
    assert [(line["step"], line["loss"]) for line in read_history(url)] == [(1, 0.0), (2, 1.0), (3, 1.0)]
    assert any("tfevents" in path for path in fs.find(root))
    path, filesystem = _storage(url)
    assert path == root and filesystem.get_file_info(f"{root}/{POINTER}").is_file


def test_a_line_cut_by_a_kill_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "history.jsonl").write_text('{"step": 1, "stage": "s", "loss": 2.0}\n{"step": 2, "st')
    tracker = Tracker(str(tmp_path), "run")
    tracker.open(5)
    tracker.picture(1, "held_out/S1RTC", np.zeros((8, 24, 3), np.uint8))
    tracker.close()
    assert [line["step"] for line in read_history(str(tmp_path))] == [1]
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("works", [True, False])
def test_weights_and_biases_where_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    logged: list[tuple[Any, ...]] = []
    began: list[dict[str, Any]] = []

    def init(**how: Any) -> Any:
        if not works:
            raise RuntimeError("not signed in")
        began.append(how)
        log = lambda values, step: logged.append((values, step))  # noqa: E731
        return SimpleNamespace(log=log, finish=lambda: logged.append(("end",)))

    fake = SimpleNamespace(init=init, Image=lambda pixels: pixels.shape, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    for _ in range(2):
        tracker = Tracker(str(tmp_path), "run")
        tracker.open(0)
        tracker.scalars(1, "s", {"loss": 2.0})
        tracker.picture(1, "p", np.zeros((8, 24, 3), np.uint8))
        tracker.close()
    if works:
        assert logged[:3] == [({"loss": 2.0}, 1), ({"p": (8, 24, 3)}, 1), ("end",)]
        assert began[0]["id"] == began[1]["id"] and began[0]["resume"] == "allow"
    else:
        assert logged == []


def test_panel_shows_source_result_and_error() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 16, 16)).astype(np.float32)
    same = panel(x, x, S2L2A)
    assert same.shape == (16, 48, 3) and (same[:, :16] == same[:, 16:32]).all() and (same[:, 32:] == 0).all()
    assert panel(x[:2], x[:2] + 1, S1RTC)[:, 32:].min() > 100


def test_a_runs_name_is_claimed(tmp_path: Path) -> None:
    run = Run("tiny", str(tmp_path), workers=0)
    run.claim({"recipe": "nano"})
    with pytest.raises(RunError, match="--resume goes on"):
        run.claim({"recipe": "nano"})
    Run("tiny", str(tmp_path), resume=True).claim({"recipe": "nano"})
    with pytest.raises(RunError, match="recipe nano, now it is published"):
        Run("tiny", str(tmp_path), resume=True).claim({"recipe": "published"})
    with pytest.raises(RunError, match="no run to resume"):
        Run("other", str(tmp_path), resume=True).claim({})
    with pytest.raises(RunError, match="one folder"):
        Run("a/b", str(tmp_path)).claim({})
    with pytest.raises(RunError, match="workers must be"):
        Run("a", str(tmp_path), workers=-1).claim({})
