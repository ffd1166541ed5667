"""Tests of `jobs/super_resolve.py`: cube and GeoTIFF under Ray, samples, a plan, a kill, bad input in one line."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

import eocube
from eocube.store.store import CubeStore
from jobs.super_resolve import main
from model.wald import degrade
from tests.eocube.cubes import make_store
from tests.eocube.finer_cubes import make_encoder, make_parent_plan, make_resolver

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A parent's URL and the path of weights."""
    folder = tmp_path_factory.mktemp("given")
    encoder = make_encoder(folder / "tiny.safetensors")
    parent = make_store(str(folder / "parent.zarr"), make_parent_plan(encoder))
    return parent.url, str(make_resolver(folder / "sr.safetensors", encoder))


def arguments(given: tuple[str, str], out: Path, *more: str) -> list[str]:
    return [given[0], "--out", str(out), "--weights", given[1], "--steps", "2", "--quiet", *more]


def shards(url: Path) -> dict[str, str]:
    found = (p for p in sorted((url / "latent/c").rglob("*")) if p.is_file())
    return {str(p.relative_to(url)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def test_a_plan_says_what_will_be_made_and_writes_nothing(
    given: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(given, tmp_path / "fine.zarr", "--plan")) == 0
    (said,) = json.loads(capfd.readouterr().out)
    assert (said["from_m"], said["to_m"], said["cell_m"]) == (10, 2.5, 20)
    assert said["space_id"] == eocube.open(given[0]).eocube.space_id
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--out", "x.png"], "give a name that ends in .zarr"),
        (["--steps", "0"], "--steps 0"),
        (["--bbox", "1", "2", "3"], "--bbox takes four numbers"),
        (["--weights", "nowhere.safetensors"], "nowhere.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    given: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main([*arguments(given, tmp_path / "fine.zarr"), *more]) == 2
    said = capfd.readouterr().err.strip()
    assert words in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_geotiff_has_the_exact_transform_and_the_cubes_pixels(
    ray_local: Any, given: tuple[str, str], tmp_path: Path
) -> None:
    assert main(arguments(given, tmp_path / "fine.zarr", "--samples", "2")) == 0
    assert main(arguments(given, tmp_path / "fine.tif")) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["fine.samples.tif", "fine.tif", "fine.zarr"], "cubes on the way are gone"
    ds = eocube.open(str(tmp_path / "fine.zarr"))
    decoded = ds.eocube.decode().isel(time=0)
    with rasterio.open(tmp_path / "fine.tif") as image, rasterio.open(tmp_path / "fine.samples.tif") as both:
        assert (image.transform.a, image.transform.e) == (2.5, -2.5)
        assert image.transform.c == float(decoded.x[0]) - 1.25
        assert image.transform.f == float(decoded.y[0]) + 1.25
        assert image.transform.c % 80 == 0
        assert image.crs.to_epsg() == 32632
        assert np.allclose(image.read(), decoded.values, equal_nan=True, atol=1e-6)
        assert both.transform == image.transform
        assert both.descriptions[:1] == ("B04 mean",)
        assert both.descriptions[4:5] == ("B04 spread",)
        spread = both.read()[4:]
        assert np.nanmin(spread) >= 0
        assert np.nanmax(spread) > 0


@pytest.mark.slow
def test_a_consistent_geotiff_averages_back_to_the_parents_pixels(given: tuple[str, str], tmp_path: Path) -> None:
    assert main(arguments(given, tmp_path / "fine.tif", "--consistent")) == 0
    coarse = eocube.open(given[0]).eocube.decode().isel(time=0).values
    with rasterio.open(tmp_path / "fine.tif") as image:
        fine = image.read()
    # A window that nobody asked for is a gap; coarse pixels whose low-pass reaches into it are not compared.
    apart = np.abs(degrade(torch.from_numpy(fine)[None], (0.3,) * 4, 4)[0].numpy() - coarse)
    assert np.isfinite(apart).mean() > 0.5
    assert np.nanmean(apart) < 1e-5


@pytest.mark.slow
def test_a_killed_job_goes_on_to_the_same_bytes_and_verifies(given: tuple[str, str], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.zarr", tmp_path / "cut.zarr"
    # Nothing of the Ray that this process may have started: the jobs start their own.
    bare = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = {**bare, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "jobs/super_resolve.py")]
    assert subprocess.run([*command, *arguments(given, whole)], env=environment, cwd=ROOT).returncode == 0
    begun = subprocess.Popen([*command, *arguments(given, cut)], env=environment, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 120
    while begun.poll() is None and not (cut / "latent/c").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(begun.pid, signal.SIGKILL)
    begun.wait()
    assert subprocess.run([*command, *arguments(given, cut)], env=environment, cwd=ROOT).returncode == 0
    assert shards(cut) == shards(whole)
    assert CubeStore.open(str(cut)).verify() == []
