"""`jobs/encode_pairs.py`: every source, splits, bad input in one line, a kill and the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from eocube.pairs.pair_store import PairStore
from eocube.pairs.pair_windows import PairWindows
from jobs.encode_pairs import Options, main
from model.sensors import S2L1C, S2L2A
from model.training.sources.splits import BlockSplit
from tests.eocube import cubes
from tests.eocube.pair_world import make_weights, objects_of, reflectance, write_area, write_tif

ROOT = Path(__file__).resolve().parents[2]
RGBN = ["B04", "B03", "B02", "B08"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A listing of a trained, a held-out and a test place, an L1C image without bands, radar; weights."""
    root = tmp_path_factory.mktemp("world")
    make_weights(root / "tiny.safetensors")
    sources: list[dict[str, Any]] = []
    for k, (place, sensor, how) in enumerate([
        ("here", S2L2A, {}), ("here", S2L1C, {}), ("there", S2L2A, {"held_out": True}),
        ("last", S2L2A, {"held_out": True, "test": True}),
    ]):  # fmt: skip
        counts = np.rint(reflectance((100, 64), k) * 1e4).astype(np.uint16)
        write_tif(root / f"s{k}" / "x.tif", counts)
        sources.append({"name": f"s{k}", "place": place, "sensor": sensor.name, "kind": "rasters", "path": f"s{k}",
                        "parts": {"x.tif": RGBN}, "gsd": 10, **how})  # fmt: skip
    sources[2]["crop"] = [4, 0, 96, 64]
    write_tif(root / "radar" / "x.tif", np.ones((2, 64, 64), np.float32))
    sources.append({"name": "radar", "place": "here", "sensor": "S1RTC", "kind": "rasters", "path": "radar",
                    "parts": {"x.tif": ["VV", "VH"]}, "gsd": 10})  # fmt: skip
    (root / "listing.yaml").write_text(yaml.safe_dump({"sources": sources}))
    return root


def options(world: Path, out: Path, **how: Any) -> Options:
    said: dict[str, Any] = {"wald": 4, "listing": world / "listing.yaml", "data": world, "side": 64, "stride": 32}
    return Options(out=str(out), weights=str(world / "tiny.safetensors"), threads=1, **{**said, **how})


def test_a_listing_is_split_as_training_splits_it(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pairs.zarr"
    assert main(options(world, out, pixels=("val",), flips=2)) == 0
    said = capsys.readouterr()
    assert "14 pairs (12 train, 2 val)" in said.out and said.err.endswith("1 of 1 units\n")
    store = PairStore.open(out)
    tables = store.tables
    named = zip(*(tables[name].tolist() for name in ("split", "place", "level")), strict=True)
    assert set(named) == {
        ("train", "here", "S2L2A"), ("train", "here", "S2L1C"), ("val", "there", "S2L2A"),
    }  # fmt: skip
    assert store.document["skipped"] == {"test pairs (--test)": 3}
    val = PairWindows(out, "val").read(0)
    np.testing.assert_allclose(val["hr_image"], reflectance((100, 64), 2)[:, 4:68], atol=1e-6)
    assert val["epsg"] == 32632 and val["bounds"][3] == 5_300_000 - 40  # the crop moves the corner
    assert main(options(world, tmp_path / "all.zarr", test=True)) == 0
    assert PairStore.open(tmp_path / "all.zarr").document["splits"] == {"train": 6, "val": 2, "test": 3}


@pytest.mark.slow
def test_rasters_are_split_by_blocks_of_ground(world: Path, tmp_path: Path) -> None:
    path = write_tif(tmp_path / "scene.tif", np.rint(reflectance((448, 448)) * 1e4).astype(np.uint16))
    how = {"listing": None, "data": None, "images": (path,), "block": 2000, "margin": 100, "held_out": (0.3, 0.2)}
    assert main(options(world, tmp_path / "p.zarr", stride=32, test=True, **how)) == 0
    store = PairStore.open(tmp_path / "p.zarr")
    kept = len(store)
    assert store.document["skipped"]["pairs within the margin of another split"] == 169 - kept and 0 < kept < 169
    rule = BlockSplit(2000, 100, {"train": 0.5, "val": 0.3, "test": 0.2})
    windows = PairWindows(tmp_path / "p.zarr", None, arrays=("lr",))
    from eocube.pairs.pixel_pairs import PairNote

    for row in windows:
        note = PairNote("", "", "", 10, 64, None, 32632, tuple(row["transform"]))
        assert rule.split_of(note.ground) == row["split"]  # type: ignore[arg-type]
    assert len(store.document["splits"]) > 1


def test_sen2naip_and_cubes(world: Path, tmp_path: Path) -> None:
    for k in range(3):
        write_area(tmp_path / "naip" / f"a{k}", k, at=(500_000.0 + 1000 * k, 5_300_000.0))
    how = {"wald": None, "listing": None, "data": None, "sen2naip": tmp_path / "naip", "side": 64, "split": "train"}
    assert main(options(world, tmp_path / "n.zarr", upsampled=True, published=True, **how)) == 0
    store = PairStore.open(tmp_path / "n.zarr")
    assert store.document["splits"] == {"train": 3} and set(store.statistics) == {"lr", "hr", "lr_up"}
    (space,) = store.document["spaces"]["lr"].values()
    assert [b["mean"] for b in space["sensor"]["bands"]] == [1302.9685, 1085.2820, 764.7739, 2769.4824]

    plan = cubes.make_plan(cubes.make_weights(tmp_path / "w.safetensors"))
    high = cubes.make_store(str(tmp_path / "high.zarr"), plan)
    from eocube.ground.grid import grids_for

    grid = grids_for(cubes.BBOX, 20, core_px=24, halo_px=16, shard_px=cubes.SHARD * 8)[0]
    meaning = {**plan.product.meaning, "resolution": 20, "core": 3}
    coarse = replace(plan, grid=grid, product=replace(plan.product, meaning=meaning, core_px=24))
    low = cubes.make_store(str(tmp_path / "low.zarr"), coarse)
    how = {"wald": None, "listing": None, "data": None, "side": 48, "split": "train"}
    assert main(options(world, tmp_path / "c.zarr", cubes=(low.url, high.url), **how)) == 0
    assert PairStore.open(tmp_path / "c.zarr").document["source"] == {"kind": "cubes"}


@pytest.mark.parametrize(("how", "told"), [
    ({"wald": None}, "give one of --wald N, --sen2naip FOLDER and --cubes LOW HIGH"),
    ({"listing": None}, "--wald takes one of --images"),
    ({"side": 100}, "multiples of 32 px"),
    ({"data": None}, "no folder None"),
    ({"listing": Path("none.yaml")}, "no listing none.yaml"),
    ({"weights": "none.safetensors"}, "none.safetensors"),
    ({"precision": "fp8"}, "--precision fp8"),
    ({"pixels": ("all",)}, "--pixels all"),
    ({"bands": ("B02", "B11")}, "there are no images"),
    ({"mtf": (0.2, 0.3)}, "names 2: give one for each of B04"),
    ({"listing": None, "data": None, "images": ("none.tif",)}, "none.tif cannot be read"),
    ({"wald": None, "listing": None, "data": None, "sen2naip": Path("none")}, "no folder none"),
    ({"wald": None, "listing": None, "data": None, "cubes": ("a.zarr",)}, "--cubes takes LOW and HIGH"),
    ({"wald": None, "listing": None, "data": None, "cubes": ("a.zarr", "b.zarr")}, "no eocube store at a.zarr"),
    ({"split": "north", "listing": None, "data": None, "images": ("HERE",)}, "--split north"),
    ({"held_out": (0.9, 0.9), "listing": None, "data": None, "images": ("HERE",)}, "shares"),
])  # fmt: skip
def test_bad_input_is_one_line_and_nothing_is_written(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: dict[str, Any], told: str
) -> None:
    if how.get("images") == ("HERE",):
        how = {**how, "images": (str(world / "s0" / "x.tif"),)}
    given = options(world, tmp_path / "out.zarr", **{k: v for k, v in how.items() if k != "weights"})
    assert main(replace(given, **{k: v for k, v in how.items() if k == "weights"})) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and told in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.slow
@pytest.mark.faults
def test_killed_it_goes_on_to_the_same_bytes(world: Path, tmp_path: Path) -> None:
    path = write_tif(tmp_path / "scene.tif", np.rint(reflectance((384, 384)) * 1e4).astype(np.uint16))

    def command(out: Path) -> list[str]:
        said = f"--wald 4 --images {path} --split train --side 64 --stride 32 --threads 1"
        weights = str(world / "tiny.safetensors")
        return [sys.executable, "jobs/encode_pairs.py", *said.split(), "--weights", weights, "--out", str(out)]

    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen(command(tmp_path / "killed.zarr"), cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    receipts = tmp_path / "killed.zarr" / "commits"
    for _ in range(600):
        if len(list(receipts.glob("0*.json"))) >= 2 or run.poll() is not None:
            break
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not (tmp_path / "killed.zarr" / "zarr.json").exists()
    subprocess.run(command(tmp_path / "killed.zarr"), cwd=ROOT, env=env, check=True)
    subprocess.run(command(tmp_path / "whole.zarr"), cwd=ROOT, env=env, check=True)
    assert objects_of(tmp_path / "killed.zarr") == objects_of(tmp_path / "whole.zarr")
    assert PairStore.open(tmp_path / "killed.zarr").verify() == []


@pytest.mark.real
@pytest.mark.slow
def test_the_training_listing_gives_pairs_of_every_split(shared_dir: Path, tmp_path: Path) -> None:
    listing = ROOT / "model" / "training" / "recipes" / "nano_data.yaml"
    given = Options(out=str(tmp_path / "p.zarr"), wald=4, listing=listing, data=shared_dir / "data", side=224,
                    stride=100_000, test=True)  # fmt: skip
    assert main(given) == 0
    store = PairStore.open(tmp_path / "p.zarr")
    assert set(store.document["splits"]) == {"train", "val", "test"} and store.document["resolutions"]["hr"] == [
        10,
        100,
        120,
    ]
    tables = store.tables
    places = {split: set(tables["place"][tables["split"] == split]) for split in ("train", "val", "test")}
    assert {"terramesh_38D_", "29SND_56_35"} == places["test"] and "terramesh_282D" in places["train"]
    assert not places["train"] & (places["val"] | places["test"])
    assert set(tables["level"]) == {"S2L2A", "S2L1C"} and store.verify() == []
