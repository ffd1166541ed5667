"""Finetuning to a sensor of one's own: from rasters to weights that say what they are; bad input by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml

from jobs.finetune import Options, main
from model.eo_vae import EOVAE, EOVAEConfig
from model.sensors import SENSORS
from model.training.eo_vae import adapt
from model.training.eo_vae.adapt import initial, known_sensors
from model.training.eo_vae.feeds import as_trained
from model.training.eo_vae.recipe import EOVAERecipe, Job
from model.training.tracking import read_history
from model.weights import load_weights, published_meta, save_weights
from tests.model.training.batches import TINY
from tests.model.training.finetuning import BANDS, raster, short_finetuning


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return short_finetuning(tmp_path)


def refused(options: Options, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ")
    return said


@pytest.mark.slow
def test_a_new_sensor_gets_weights_of_its_own(
    options: Options, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def save(vae: EOVAE, out: Path, *more: Any) -> None:
        written.append(out)
        save_weights(vae, out, *more)

    monkeypatch.setattr(adapt, "save_weights", save)
    with caplog.at_level("INFO"):
        assert main(options) == 0
    assert len(written) == 1, "scored at the end alone: measured and written once, and copied"
    assert "Dove4 has no statistics: mean / std computed" in caplog.text
    vae = load_weights(options.out)
    assert vae.config == TINY and vae.meta is not None and set(vae.meta.sensors) == {"Dove4"}
    sensor = vae.meta.sensors["Dove4"]
    assert sensor.bands == BANDS and sensor.unit == "reflectance*1e4" and sensor.wavelengths[3] == 0.842
    assert 300 < sensor.mean[0] < 1500 < sensor.mean[3]  # in the weights' unit: the scale's 1e-4 times 1e4
    figures = vae.meta.metrics["held_out"]
    assert isinstance(figures, dict) and {"charbonnier", "rmse", "sam", "rmse_physical"} == set(figures["Dove4"])
    assert vae.bn.running_var is not None and not torch.allclose(vae.bn.running_var, torch.ones(32))
    losses = [line["loss"] for line in read_history(str(tmp_path / "runs" / "dove")) if "loss" in line]
    assert len(losses) == 4
    best = tmp_path / "runs" / "dove" / "best" / "dove.safetensors"
    assert best.read_bytes() == Path(options.out).read_bytes()
    # a finished run is not done again, but only with --resume can it be asked to
    before = Path(options.out).read_bytes()
    assert main(options) == 2 and main(replace(options, resume=True)) == 0
    assert torch.equal(load_weights(options.out).encoder.conv_out.weight, vae.encoder.conv_out.weight) and before


@pytest.mark.slow
def test_weights_come_from_and_go_to_s3(options: Options, s3_server: Any, tmp_path: Path) -> None:
    bucket = s3_server.bucket()
    init, out = f"s3://{bucket}/tiny.safetensors", f"s3://{bucket}/out/dove.safetensors"
    fsspec.filesystem("s3").put_file(str(options.init), init)
    assert main(replace(options, init=init, out=out)) == 0
    meta = load_weights(out).meta
    assert meta is not None and set(meta.sensors) == {"Dove4"} and not Path(options.out).exists()
    figures = json.loads(fsspec.filesystem("s3", skip_instance_cache=True).cat_file(f"{bucket}/out/dove.json"))
    assert set(figures["held_out"]) == {"Dove4"} and figures["started_from"] == "tiny.safetensors"


@pytest.mark.slow
def test_a_finetuning_goes_on_from_its_checkpoint(options: Options, tmp_path: Path) -> None:
    """The state of the patches' order, read ahead as they are, is part of it."""
    values = yaml.safe_load((tmp_path / "short.yaml").read_text()) | {"checkpoint_steps": 2}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(values))
    assert main(options) == 0
    run = tmp_path / "runs" / "dove"
    whole, lines = load_weights(options.out).state_dict(), read_history(str(run))
    shutil.rmtree(run / "checkpoint_000000004")
    (run / "latest.json").write_text('{"checkpoint": "checkpoint_000000002"}')
    assert main(replace(options, resume=True)) == 0
    again = load_weights(options.out).state_dict()
    assert read_history(str(run)) == lines and all(torch.equal(again[key], tensor) for key, tensor in whole.items())


@pytest.mark.slow
def test_bands_are_found_by_their_descriptions(options: Options, tmp_path: Path) -> None:
    for path in Path(options.data).iterdir():
        raster(path, 1, bands=5, east=60_000.0 * int(path.stem[1]), described=True)
    assert main(replace(options, steps=3, freeze_body=True)) == 0
    start, end = (load_weights(p).state_dict() for p in (tmp_path / "tiny.safetensors", options.out))
    assert torch.equal(start["decoder.conv_in.weight"], end["decoder.conv_in.weight"])
    assert not torch.equal(start["encoder.conv_in.weight_generator.fc_bias.bias"],
                           end["encoder.conv_in.weight_generator.fc_bias.bias"])  # fmt: skip


def test_fewer_bands_than_the_sensor(options: Options, capsys: pytest.CaptureFixture[str]) -> None:
    raster(Path(options.data) / "r9.tif", 1, bands=3)
    said = refused(options, capsys)
    assert "r9.tif has 3 bands, fewer than the 4 of Dove4" in said


def test_no_data(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "no GeoTIFF in" in refused(replace(options, data=str(tmp_path / "empty")), capsys)
    assert "no folder" in refused(replace(options, data=str(tmp_path / "none")), capsys)
    assert "no shards" in refused(
        replace(options, data=str(tmp_path / "empty"), sensor=None, recipe=_shards(tmp_path)), capsys
    )


def _shards(tmp_path: Path) -> str:
    values = yaml.safe_load((tmp_path / "short.yaml").read_text()) | {"shards": "train/[S2L2A]/*.tar"}
    (tmp_path / "shards.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "shards.yaml")


def test_weights_of_another_config(options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load((tmp_path / "short.yaml").read_text()) | {"config": TINY.to_dict() | {"z_channels": 4}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(values))
    said = refused(replace(options, recipe=str(tmp_path / "other.yaml")), capsys)
    assert "tiny.safetensors has" in said and "z_channels=8" in said and "z_channels=4" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "linear"}, "starts from weights"),
        ({"steps": 0}, "must be above 0"),
        ({"recipe": "published", "init": None, "sensor": None}, "--init"),
        ({"recipe": "adapt", "sensor": None}, "names no data of its own"),
        ({"recipe": "nanoo"}, "no recipe nanoo: give a YAML file or one of adapt, nano"),
        ({"sensor": Path("none.yaml")}, "none.yaml"),
    ],
)
def test_contradictions(
    options: Options, capsys: pytest.CaptureFixture[str], changes: dict[str, object], message: str
) -> None:
    assert message in refused(replace(options, **changes), capsys)  # type: ignore[arg-type]


def test_weights_keep_the_wavelengths_they_know() -> None:
    """The released EO-VAE knows three of S2L2A's bands by other wavelengths; finetuning it must not turn them over."""
    known = known_sensors(published_meta(EOVAEConfig()))
    used = as_trained({"S2L2A": SENSORS["S2L2A"]}, known)
    assert used["S2L2A"].wavelengths[-3:] == (1.610, 2.190, 0.945) and used["S2L2A"].gsd == SENSORS["S2L2A"].gsd
    assert as_trained({"S2L2A": SENSORS["S2L2A"]}, {})["S2L2A"].wavelengths[-3:] == (0.945, 1.610, 2.190)


def test_a_random_start_needs_sizes(tmp_path: Path) -> None:
    job = Job(tmp_path, tmp_path / "o", "random")
    with pytest.raises(ValueError, match="no config"):
        initial(replace(EOVAERecipe.load("adapt"), config=None), job)
    assert initial(replace(EOVAERecipe.load("adapt"), config=TINY), job).config == TINY
