"""Under Ray Train: a killed worker goes on at the same step with the same data; no name is reused by chance."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from jobs.finetune import Options, main
from model.training.tracking import read_history
from model.weights import load_weights

World = tuple[Path, Path]
ROOT = Path(__file__).parents[3]
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
STEPS = 12


@pytest.fixture
def recipe_file(world: World, tmp_path: Path) -> Path:
    """A nano-like recipe in float32 with a checkpoint every other step; in slices, so that Ray changes no seed."""
    stage = dict(name="all", steps=STEPS, batch=2, patch=48, margin=4, warmup=2, optimiser="adam", lr=1e-4)
    values = dict(
        config=dict(ch=16, ch_mult=[1, 2], num_res_blocks=1, z_channels=8, norm_groups=4, hypernet_layers=1,
                    wavelength_dim=32, hypernet_ff=32, hypernet_heads=2),
        listing=str(world[0]), stages=[stage], precision="fp32", division="slices", checkpoint_steps=2,
        evaluate_minutes=60,
        mix=dict(S2L2A=0.6, S1RTC=0.4), training_data="synthetic", licence="CC0-1.0", dtype="float32",
    )  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def command(recipe: Path, world: World, out: Path, storage: str, *more: str) -> list[str]:
    return [
        sys.executable, "jobs/finetune.py", "--recipe", str(recipe), "--data", str(world[1]), "--out", str(out),
        "--threads", "1", "--init", "random", "--name", "tiny", "--storage", storage, *more,
    ]  # fmt: skip


def history(run: Path) -> list[dict[str, float]]:
    return [line for line in read_history(str(run)) if "loss" in line]


def train_worker(root: psutil.Process) -> psutil.Process | None:
    """The Ray Train worker below a process."""
    for process in root.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return process
        except psutil.Error:
            continue
    return None


@pytest.mark.faults
@pytest.mark.timeout(600)
def test_a_killed_worker_goes_on_as_if_nothing_had_been(recipe_file: Path, world: World, tmp_path: Path) -> None:
    """Equal to the last digit, float32 on one thread; the undisturbed run needs no Ray."""
    run = tmp_path / "runs" / "tiny"
    whole = Options(
        str(world[1]), tmp_path / "whole.safetensors", str(recipe_file), init="random", name="tiny", workers=0,
        threads=1, storage=str(tmp_path / "undisturbed"),
    )  # fmt: skip
    assert main(whole) == 0

    # the same, killed once it has passed a checkpoint
    disturbed = command(recipe_file, world, tmp_path / "again.safetensors", str(tmp_path / "runs"))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(disturbed, cwd=ROOT, env=ENVIRONMENT, stdout=log, stderr=log)
    killed: set[int] = set()
    try:
        deadline = time.monotonic() + 500
        while process.poll() is None and time.monotonic() < deadline:
            # Ray's own note of it: a checkpoint counts from then on
            if not killed and (run / "checkpoint_manager_snapshot.json").is_file():
                worker = train_worker(psutil.Process(process.pid))
                if worker is not None:
                    worker.send_signal(signal.SIGKILL)
                    killed.add(worker.pid)
            time.sleep(0.02)
        assert process.wait(timeout=10) == 0, (tmp_path / "log").read_text()[-3000:]
    finally:
        process.terminate()  # and with the driver its cluster
    assert killed and re.search(r"going on from step [2-9]", (tmp_path / "log").read_text())
    first, second = history(tmp_path / "undisturbed" / "tiny"), history(run)
    assert [line["step"] for line in second] == list(range(1, STEPS + 1))
    assert second == first
    a, b = (load_weights(tmp_path / f"{name}.safetensors").state_dict() for name in ("whole", "again"))
    assert all(bool((a[key] == b[key]).all()) for key in a)
    assert 3 <= len(list(run.glob("checkpoint_2*"))) <= 4  # and perhaps one that was cut short by the kill
    assert list((run / "best").iterdir())
    assert list(run.glob("events.out.tfevents.*"))
