"""The training loop on a tiny world: in this process, and through Ray Train as users run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open

from jobs.finetune import Options, main
from model.eo_vae import EOVAE
from model.hypernet import DynamicConvIn
from model.sensors import S1RTC, S2L2A
from model.training.batch import Batch
from model.training.checkpoint import Store
from model.training.eo_vae.batch_norm import calibrate
from model.training.eo_vae.evaluate import LINEAR, MODEL, Evaluator, markdown
from model.training.eo_vae.finetune import train
from model.training.eo_vae.groups import branch_parameters
from model.training.eo_vae.kernels import KernelTable
from model.training.eo_vae.recipe import EOVAERecipe, Job, limited
from model.training.loop import Average
from model.training.sources.images import load_images
from model.training.tracking import Tracker, read_history
from model.weights import load_weights
from model.weights_meta import WeightsMeta
from tests.model.training.batches import TINY

World = tuple[Path, Path]
ROOT = Path(__file__).parents[4]


@pytest.fixture
def recipe_file(world: World, tmp_path: Path) -> Path:
    stages = [
        dict(name="skeleton", steps=4, minutes=5, batch=2, patch=48, skeleton=True, margin=4, warmup=2),
        dict(name="all", steps=3, minutes=5, batch=1, patch=112, margin=8, warmup=2, ms_ssim_from=0.0,
             loss=dict(relative_error=1.0, relative_angle=0.5, charbonnier=0.5, ms_ssim=0.1)),
    ]  # fmt: skip
    values = dict(
        config=dict(ch=32, num_res_blocks=1, norm_groups=2, hypernet_layers=1, wavelength_dim=64, hypernet_ff=64),
        listing=str(world[0]), stages=stages, start_patches=16, start_patch=64, teach_minutes=0.02,
        mix=dict(S2L2A=0.6, S1RTC=0.2, subset=0.2), training_data="synthetic", licence="CC0-1.0",
    )  # fmt: skip
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(autouse=True)
def few_calibration_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every published file is calibrated, which takes longer than these short trainings."""
    monkeypatch.setattr("model.training.eo_vae.finetune.calibrate", partial(calibrate, batches=2))


@pytest.mark.slow
def test_free_kernels_end_up_in_the_generators(recipe_file: Path, world: World, tmp_path: Path) -> None:
    recipe = EOVAERecipe.load(recipe_file)
    codes = replace(recipe.stages[0], name="codes", skeleton=False, steps=2, rounding=1.0, rate=0.01)
    recipe = replace(
        recipe, free_kernels=True, mix={"S2L2A": 0.6, "S1RTC": 0.4}, teach_minutes=0.05,
        stages=(*recipe.stages, codes),
    )  # fmt: skip
    out = tmp_path / "tiny.safetensors"
    tracker = Tracker(str(tmp_path / "run"), "tiny")
    trained = train(recipe, Job(world[1], out, name="tiny"), tracker=tracker)
    tracker.close()
    last = [line for line in read_history(str(tmp_path / "run")) if "loss" in line][-2:]
    assert all(line["code_bytes"] > 0 for line in last)  # in steps measured on the way: there are no earlier weights
    assert type(trained.encoder.conv_in) is DynamicConvIn and out.with_suffix(".partial.pt").is_file()
    partial = torch.load(out.with_suffix(".partial.pt"), weights_only=True)
    for i, sensor in enumerate((S2L2A, S1RTC)):
        weight, bias = trained.encoder.conv_in.kernel(sensor.wavelengths)
        kept = partial[f"encoder.conv_in.weights.{i}"]
        assert float((weight - kept).norm() / kept.norm()) < 0.02
        weight, bias = trained.decoder.conv_out.kernel(sensor.wavelengths)
        assert torch.allclose(bias, partial[f"decoder.conv_out.biases.{i}"], atol=2e-3)


def test_a_kernel_outside_the_mix_is_named() -> None:
    table = KernelTable(DynamicConvIn(8, 16, 1, 2, 16), [S2L2A.wavelengths])
    with pytest.raises(KeyError, match="only those of the recipe's mix"):
        table.kernel((0.5, 0.6))


@pytest.mark.slow
def test_run_writes_weights_that_say_what_they_are(recipe_file: Path, world: World, tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    run = tmp_path / "run"
    recipe = EOVAERecipe.load(recipe_file)
    tracker = Tracker(str(run), "tiny")
    trained = train(recipe, Job(world[1], out, name="tiny"), keeper=Store(str(run)), tracker=tracker)
    tracker.close()
    lines = read_history(str(run))
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == list(range(1, 8)) and "ms_ssim" in losses[-1]
    assert all(0 < line["relative_error"] < 50 for line in losses) and "ms_ssim" not in losses[0]
    assert [line["step"] for line in lines if "score" in line] == [4, 7]
    assert sorted(p.name for p in run.glob("checkpoint_*")) == ["checkpoint_000000004", "checkpoint_000000007"]
    loaded = load_weights(str(out))
    assert loaded.config == recipe.config
    with safe_open(out, "pt") as file:
        meta = WeightsMeta.from_header(file.metadata())
    assert meta is not None and meta.name == "tiny" and meta.licence == "CC0-1.0"
    assert set(meta.sensors) == {"S2L2A", "S1RTC"} and meta.sensors["S2L2A"].wavelengths[-2:] == (1.61, 2.19)
    table = meta.metrics["held_out"]
    assert isinstance(table, dict) and set(table) == {"s2_2 S2L2A 12", "s2_2 RGBN 4", "s2_2 S2RGB 3"}
    assert all(LINEAR in row for row in table.values())
    row = table["s2_2 S2L2A 12"]
    assert {MODEL, LINEAR} == set(row) and {"rmse", "sam", "psnr_physical", "ndvi_mae"} <= set(row[MODEL])
    assert json.loads(out.with_suffix(".json").read_text())["held_out"] == json.loads(json.dumps(table))
    assert "| s2_2 S2L2A 12 |" in markdown(table)
    # The figures are those of the file, and its latents can be stored as codes.
    again = Evaluator.build(load_images(*world)).table(loaded)
    for name, entry in again.items():  # threads share a sum out otherwise from run to run
        assert entry[MODEL] == pytest.approx(table[name][MODEL], rel=1e-4), name
    steps = {name: sensor.code_steps for name, sensor in meta.sensors.items()}
    assert all(given is not None and len(given) == recipe.config.z_channels for given in steps.values())
    assert all(torch.isfinite(v).all() for v in trained.state_dict().values())
    assert loaded.bn.running_var is not None and not torch.allclose(loaded.bn.running_var, torch.ones(128))


def test_limits_scale_the_stages(recipe_file: Path, tmp_path: Path) -> None:
    recipe = limited(EOVAERecipe.load(recipe_file), Job(tmp_path, tmp_path, steps=70, minutes=1.0))
    assert [s.steps for s in recipe.stages] == [40, 30] and sum(s.minutes for s in recipe.stages) == pytest.approx(1.0)


def test_recipe_errors_name_the_key(recipe_file: Path) -> None:
    values = yaml.safe_load(recipe_file.read_text())
    values["stages"][0]["learning_rate"] = 1
    recipe_file.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match="learning_rate"):
        EOVAERecipe.load(recipe_file)
    with pytest.raises(ValueError, match="nano"):
        EOVAERecipe.load("no-such-recipe")


@pytest.mark.parametrize("name", ["nano", "nano_more", "nano2"])
def test_shipped_recipe_loads_and_fits_the_limit(name: str) -> None:
    recipe = EOVAERecipe.load(name)
    assert recipe.config == EOVAERecipe.load("nano").config  # one goes on from the other
    parameters = sum(p.numel() for p in EOVAE(recipe.config).parameters())
    assert 2 * parameters < 16e6 and Path(recipe.listing).is_file()
    assert recipe.config.ch // recipe.config.norm_groups >= 4


def test_average_follows_the_parameters(recipe_file: Path) -> None:
    config = EOVAERecipe.load(recipe_file).config
    live, average = EOVAE(config), Average(EOVAE(config), decay=0.5)
    for _ in range(40):
        average.update(live)
    pairs = zip(average.network.parameters(), live.parameters(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in pairs)
    assert "encoder.down.1.block.0.nin_shortcut.weight" not in branch_parameters(live)


def test_calibration_gives_unit_latents(recipe_file: Path) -> None:
    class Fixed:
        def draw(self, batch_size: int, patch: int) -> Batch:
            generator = torch.Generator().manual_seed(0)
            return Batch(torch.randn(batch_size, 12, patch, patch, generator=generator), S2L2A)

    vae = EOVAE(replace(EOVAERecipe.load(recipe_file).config)).eval()
    calibrate(vae, Fixed(), batches=1)  # type: ignore[arg-type]
    batch = Fixed().draw(4, 128)
    with torch.no_grad():
        z = vae.normalise(vae.encode(batch.x, batch.wavelengths).mode())[..., 2:-2, 2:-2]
    assert float(z.mean()) == pytest.approx(0, abs=0.05) and float(z.std()) == pytest.approx(1, abs=0.1)


@pytest.mark.slow
def test_a_run_of_the_recipe_goes_on_from_its_checkpoint(recipe_file: Path, world: World, tmp_path: Path) -> None:
    stage = dict(name="all", steps=6, batch=2, patch=48, margin=4, warmup=2)
    values = yaml.safe_load(recipe_file.read_text()) | dict(
        config=TINY.to_dict() | {"ch_mult": [1, 1, 1, 1]}, stages=[stage], precision="fp32", checkpoint_steps=2,
        evaluate_minutes=60, teach_minutes=0.0, dtype="float32",
    )  # fmt: skip
    recipe_file.write_text(yaml.safe_dump(values))
    options = Options(
        str(world[1]), str(tmp_path / "tiny.safetensors"), str(recipe_file), init="random", name="tiny", workers=0,
        threads=1, storage=str(tmp_path / "runs"),
    )  # fmt: skip
    assert main(options) == 0
    run = tmp_path / "runs" / "tiny"
    whole, lines = load_weights(options.out).state_dict(), read_history(str(run))
    for later in (4, 6):
        shutil.rmtree(run / f"checkpoint_{later:09d}")
    (run / "latest.json").write_text('{"checkpoint": "checkpoint_000000002"}')
    assert main(replace(options, resume=True)) == 0
    again = load_weights(options.out).state_dict()
    assert read_history(str(run)) == lines and all(torch.equal(again[key], tensor) for key, tensor in whole.items())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.timeout(600)
def test_job_through_ray_train(recipe_file: Path, world: World, tmp_path: Path) -> None:
    out = tmp_path / "ray.safetensors"
    command = [
        sys.executable, "jobs/finetune.py", "--recipe", str(recipe_file), "--data", str(world[1]), "--out", str(out),
        "--workers", "2", "--threads", "1", "--steps", "4", "--name", "tiny", "--storage", str(tmp_path / "runs"),
    ]  # fmt: skip
    env = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {"HOME": str(tmp_path)}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=560)
    assert result.returncode == 0, result.stderr[-2000:]
    assert not (tmp_path / ".ray" / "auth_token").exists()  # it would lock `ray job submit` out of later clusters
    assert load_weights(str(out)).config.ch == 32
    run = tmp_path / "runs" / "tiny"
    assert {p.name for p in run.glob("checkpoint_*/*")} == {"state.pt", "rank-0000.pt", "rank-0001.pt"}
    assert (run / "final" / out.name).read_bytes() == out.read_bytes()


def test_job_refuses_a_missing_folder_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(Options(str(tmp_path / "none"), str(tmp_path / "o"), storage=str(tmp_path / "runs"))) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "none" in said and not (tmp_path / "runs").exists()
