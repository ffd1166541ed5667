"""jobs/train_sr.py on a tiny real pair store: trained, killed and resumed to the same weights, scored, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from eocube.pairs.encoding import PixelMaker
from eocube.pairs.pair_store import PairPlan, PairStore
from eocube.pairs.pixel_pairs import rows_of
from eocube.pairs.wald import ArrayImage, WaldPairs
from eocube.pairs.writing import write_pairs
from jobs import train_sr
from jobs.train_sr import Options
from model.super_resolution import load_sr
from model.training.checkpoint import Store
from model.training.loop import Loop
from model.weights import load_weights

ROOT = Path(__file__).resolve().parents[2]
BANDS = ("B04", "B03", "B02", "B08")


def image(name: str, seed: int, split: str, side: int) -> ArrayImage:
    """Smooth fields with some detail, in reflectance."""
    rng = np.random.default_rng(seed)
    fine, coarse = (gaussian_filter(rng.normal(size=(4, side, side)), (0, s, s)) for s in (1.0, 6.0))
    data = np.float32(0.2) + 0.05 * (coarse / coarse.std() + 0.3 * fine / fine.std()).astype(np.float32)
    return ArrayImage(name, name, "S2L2A", BANDS, np.clip(data, 0.01, 1), 10.0, split=split)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """8 training pairs of two places and two sides, two held out; latents of both conditionings, pixels."""
    url = str(tmp_path_factory.mktemp("pairs") / "pairs.zarr")
    images = [image("one", 1, "train", 192), image("two", 2, "train", 96), image("three", 3, "val", 96)]
    pairs = WaldPairs(images, 4, 128, 64, 96)
    maker = PixelMaker(pairs, "nano2", upsampled=True)
    rows = rows_of(pairs.notes, splits=("train", "val"), flips=2)
    write_pairs(url, PairPlan.of(rows, maker, image_splits=("train", "val")), maker, threads=1)
    return url


def recipe(folder: Path, **changes: object) -> str:
    """A tiny recipe of the shipped one's kind."""
    network = {
        "channels": 32, "conditioning": "upsampled", "base": 3, "trunk": 16, "trunk_blocks": 1, "features": 4,
        "unet": {"channels_in": 32, "channels_out": 32, "condition": 4, "widths": [8, 16], "blocks": [1, 1]},
    }  # fmt: skip
    stages = [
        {"name": "regression", "batch": 2, "steps": 3, "optimiser": "adamw", "lr": 1e-3, "diffusion": 0.0},
        {"name": "diffusion", "batch": 2, "steps": 3, "optimiser": "adamw", "lr": 1e-3},
    ]
    values = {
        "task": "sr", "network": network, "ema": 0.9, "precision": "fp32", "checkpoint_steps": 2, "gram_pairs": 2,
        "evaluate_minutes": 60, "stages": stages,
    }  # fmt: skip
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return str(path)


def options(store: str, folder: Path, name: str = "tiny", **changes: object) -> Options:
    made = Options(
        pairs=store,
        out=str(folder / f"{name}.safetensors"),
        recipe=recipe(folder),
        workers=0,
        storage=str(folder / "runs"),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert train_sr.main(options(store, folder)) == 0
    return folder


def test_weights_figures_and_pictures_are_written(store: str, trained: Path) -> None:
    net = load_sr(trained / "tiny.safetensors")
    meta = net.meta
    assert meta is not None and meta.name == "tiny" and meta.bands == BANDS and meta.resolutions == ((40.0, 10.0),)
    assert meta.encoder is not None and meta.encoder["sha256"] == load_weights("nano2").meta.sha256  # type: ignore[union-attr]
    assert meta.split["train"] == ["one", "two"]
    figures = json.loads((trained / "tiny.json").read_text())["held_out"]["three_S2L2A"]
    assert figures["ceiling"]["psnr"] > figures["one_step"]["psnr"] > 20
    # put right by the low resolution's pixels: nothing is left of the difference but rounding
    assert figures["one_step+"]["consistency"] < 1e-4 < figures["one_step"]["consistency"]
    assert figures["one_step+"]["psnr"] > figures["one_step"]["psnr"]
    assert (trained / "tiny-pictures" / "three_S2L2A.png").stat().st_size > 1000


def test_the_statistics_are_the_stores_own(store: str, trained: Path) -> None:
    said = PairStore.open(store).statistics["lr_up"]
    state = load_file(trained / "tiny.safetensors")
    # the recipe's balance draws places otherwise than the store counts them: near, not equal
    assert torch.allclose(state["condition_std"].double(), torch.tensor(said["std"]).double(), rtol=0.35)


@pytest.mark.slow
def test_killed_and_resumed_to_the_same_weights(store: str, trained: Path, tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    step = Loop._step

    def dies(self: Loop, *args: object) -> object:  # type: ignore[type-arg]
        if self.at.total == 5:
            raise KeyboardInterrupt
        return step(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as broken:
        broken.setattr(Loop, "_step", dies)
        with pytest.raises(KeyboardInterrupt):
            train_sr.main(options(store, tmp_path))
    with Store(str(tmp_path / "runs" / "tiny")).restore() as folder:
        assert folder is not None
        assert torch.load(folder / "state.pt", weights_only=True)["position"]["total"] == 4
    assert train_sr.main(options(store, tmp_path)) == 2  # the name is taken
    assert train_sr.main(options(store, tmp_path, resume=True)) == 0
    one, other = (load_file(f / "tiny.safetensors") for f in (trained, tmp_path))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_streamed_from_a_store_that_does_not_fit(store: str, tmp_path: Path) -> None:
    assert train_sr.main(options(store, tmp_path, memory=0.0, steps=2)) == 0
    assert load_sr(tmp_path / "tiny.safetensors").config.conditioning == "upsampled"


@pytest.mark.slow
def test_pixels_with_the_same_code(store: str, tmp_path: Path) -> None:
    network = {
        "channels": 4, "space": "pixel", "base": 5, "trunk": 8, "trunk_blocks": 1, "features": 2,
        "unet": {"channels_in": 4, "channels_out": 4, "condition": 2, "widths": [8], "blocks": [1]},
    }  # fmt: skip
    made = options(store, tmp_path, space="pixel")
    path = recipe(tmp_path, network=network, whiten="channels", ridge=1e-6)
    assert train_sr.main(replace(made, recipe=path)) == 0
    figures = json.loads((tmp_path / "tiny.json").read_text())["held_out"]["three_S2L2A"]
    # the base is a ridge regression on 5x5 pixels
    assert figures["one_step"]["psnr"] > figures["bicubic"]["psnr"] + 0.5
    assert load_sr(tmp_path / "tiny.safetensors").meta.encoder is None  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pairs": "nowhere.zarr"}, "no pair store at"),
        ({"space": "pixel"}, "is of latent space"),
        ({"steps": 0}, "--steps 0 must be above 0"),
        ({"autoencoder": "flux2"}, "go together"),
        ({"recipe": "probe"}, "is a recipe for probe"),
        ({"recipe": "sr_pixel"}, ""),
    ],
)
def test_bad_input_is_one_line(
    store: str, tmp_path: Path, changes: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = options(store, tmp_path)
    if not said:  # a scale that the store has not
        network = {
            "channels": 4, "space": "pixel", "scale": 2, "trunk": 8, "trunk_blocks": 0, "features": 1,
            "unet": {"channels_in": 4, "channels_out": 4, "condition": 1, "widths": [8], "blocks": [1]},
        }  # fmt: skip
        changes, said = {"recipe": recipe(tmp_path, network=network)}, "holds pairs of scale 4"
    assert train_sr.main(replace(made, **changes)) == 2  # type: ignore[arg-type]
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "tiny.safetensors").exists() and not (tmp_path / "runs").exists()


def test_a_store_without_what_the_recipe_needs(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "bare.zarr")
    pairs = WaldPairs([image("one", 1, "train", 96)], 4, 96)
    maker = PixelMaker(pairs, "nano2")
    write_pairs(url, PairPlan.of(rows_of(pairs.notes, splits=("train",)), maker), maker, threads=1)
    assert train_sr.main(options(url, tmp_path)) == 2
    assert (
        "has no lr_up, which the recipe needs: encode it with jobs/encode_pairs.py --upsampled"
        in capsys.readouterr().err
    )
    # the store says that other weights made it than those of that name here
    maker = PixelMaker(pairs, "nano")
    document = {**maker.document, "encoder": {**maker.document["encoder"], "weights": "nano2"}}
    strange = str(tmp_path / "strange.zarr")
    plan = PairPlan.of(rows_of(pairs.notes, splits=("train",)), maker)
    write_pairs(strange, replace(plan, document={**plan.document, "encoder": document["encoder"]}), maker, threads=1)
    network = {
        "channels": 32, "conditioning": "native", "trunk": 8, "trunk_blocks": 0, "features": 1,
        "unet": {"channels_in": 32, "channels_out": 32, "condition": 1, "widths": [8], "blocks": [1]},
    }  # fmt: skip
    made = replace(options(strange, tmp_path), recipe=recipe(tmp_path, network=network))
    assert train_sr.main(made) == 2
    assert "encode the pairs again" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_under_ray_train_and_resumed_to_the_same_weights(store: str, tmp_path: Path) -> None:
    """The driver and every process of its Ray get SIGKILL after a checkpoint, in the middle of a stage."""
    # Nothing of the Ray that this process may have started: the jobs start their own.
    bare = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment = {**bare, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    stage = {"name": "diffusion", "batch": 2, "steps": 120, "optimiser": "adamw", "lr": 1e-3}
    path = recipe(tmp_path, stages=[stage], checkpoint_steps=10)

    def command(name: str, *more: str) -> list[str]:
        return [
            sys.executable, str(ROOT / "jobs/train_sr.py"), "--pairs", store, "--recipe", path, "--workers", "1",
            "--threads", "1", "--name", name, "--storage", str(tmp_path / "runs"), "--out",
            str(tmp_path / f"{name}.safetensors"), *more,
        ]  # fmt: skip

    subprocess.run(command("whole"), env=environment, cwd=ROOT, check=True)
    begun = subprocess.Popen(command("cut"), env=environment, cwd=ROOT, start_new_session=True)
    deadline = time.monotonic() + 180
    while begun.poll() is None and time.monotonic() < deadline and not checkpoints(tmp_path / "runs" / "cut"):
        time.sleep(0.02)
    os.killpg(begun.pid, signal.SIGKILL)
    assert begun.wait() == -signal.SIGKILL, "it had ended before it was killed"
    assert checkpoints(tmp_path / "runs" / "cut") and not (tmp_path / "cut.safetensors").exists()
    subprocess.run(command("cut", "--resume"), env=environment, cwd=ROOT, check=True)
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "cut"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def checkpoints(folder: Path) -> list[Path]:
    """Snapshots that are whole: Ray Train writes them where it keeps its own state."""
    return list(folder.rglob("state.pt"))
