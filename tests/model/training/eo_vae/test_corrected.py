"""EO-VAE*: the recipe differs from the published one in its data alone, and those are z-scored as they should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from jobs.finetune import Options, main, opened, planned
from model.eo_vae import EOVAE
from model.sensors import CORRECTED, SENSORS
from model.training.eo_vae.adapt import known_sensors, trained_sensors
from model.training.eo_vae.feeds import terramesh, trained_as
from model.training.eo_vae.recipe import EOVAERecipe
from model.training.eo_vae.stage1 import metadata
from model.training.sources.data_file import open_data
from model.weights import published_meta, save_weights
from tests.model.training import shards as make
from tests.model.training.earlier_runs import MINIMAL

RECENT = "2022-06-01T10:00:00"


def corrected_recipe() -> EOVAERecipe:
    recipe = EOVAERecipe.load("published_corrected")
    stage = replace(recipe.stages[0], batch=2, patch=40, loss={"charbonnier": 1.0})
    shards = "train/[S2L2A,S1RTC]/majortom_shard_{000001..000001}.tar"
    return replace(recipe, stages=(stage,), shards=shards, held_out_shards="", config=MINIMAL)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """One sample of each modality, taken after the day on which the offset begins."""
    root = tmp_path / "TerraMesh"
    for modality in ("S2L2A", "S1RTC"):
        payload = make.zarr_zip(make.pixels(modality, 0), make.BANDS[modality], tmp_path / "z", time=RECENT)
        make.write_tar(root / "train" / modality / "majortom_shard_000001.tar", [("k", payload)])
    return root


def test_the_two_published_recipes_differ_in_their_data_alone() -> None:
    published, corrected = (EOVAERecipe.load(name) for name in ("published", "published_corrected"))
    assert corrected.corrected and not published.corrected
    assert replace(corrected, corrected=False, training_data=published.training_data) == published
    assert "corrected" in corrected.training_data


def test_the_corrected_table_is_the_specifications() -> None:
    assert [name for name in CORRECTED if CORRECTED[name] != SENSORS[name]] == ["S2L2A", "S2L1C"]
    for name, mean, std in (("S2L2A", (1718.9949, 2152.0551), (2126.3409, 1365.1743)),
                            ("S2L1C", (2424.2556, 1917.9390), (1700.3824, 1151.6169))):  # fmt: skip
        sensor = CORRECTED[name]
        assert (sensor.mean[0], sensor.mean[-1]) == mean and (sensor.std[0], sensor.std[-1]) == std
        assert replace(sensor, mean=SENSORS[name].mean, std=SENSORS[name].std) == SENSORS[name]
    assert CORRECTED["S2L1C"].mean[9:11] == (1580.1287, 572.5726)


def test_corrected_data_are_z_scored_with_their_own_statistics(shards: Path) -> None:
    recipe = corrected_recipe()
    data = terramesh(recipe, str(shards), 0, 1, trained_as(recipe, {}, ["S2L2A", "S1RTC"]))
    assert data.sensors == {name: CORRECTED[name] for name in ("S2L2A", "S1RTC")}
    raw = {"S2L2A": np.clip(make.pixels("S2L2A", 0).astype(np.float32) + 1000, 0, 10_000),
           "S1RTC": make.pixels("S1RTC", 0).astype(np.float32)}  # fmt: skip
    seen = set()
    for _ in range(8):
        batch = data.source.draw(1, 40)
        name = batch.sensor.name
        seen.add(name)
        expected = CORRECTED[name].zscore(raw[name])  # turned and mirrored: in any order
        assert np.allclose(np.sort(batch.x[0].numpy().reshape(len(expected), -1)),
                           np.sort(expected.reshape(len(expected), -1)), atol=1e-5)  # fmt: skip
    assert seen == {"S2L2A", "S1RTC"}


def test_a_data_files_shards_are_corrected_as_the_recipe_says(shards: Path, tmp_path: Path) -> None:
    source = dict(kind="terramesh", modalities=["S2L2A"], url="TerraMesh/train/[S2L2A]/majortom_shard_000001.tar")
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump({"sources": [source | {"url": str(tmp_path / source["url"])}]}))  # type: ignore[operator]
    plain, corrected = (
        open_data(file, sensors=CORRECTED, corrected=which).draw(1, 40).x.numpy() for which in (False, True)
    )
    apart = (np.sort(corrected.ravel()) - np.sort(plain.ravel())).mean()
    assert apart == pytest.approx(np.mean(1000 / np.array(CORRECTED["S2L2A"].std)), rel=1e-4)


def test_statistics_are_the_datas_whatever_the_weights_had() -> None:
    known = known_sensors(published_meta(MINIMAL))
    used = trained_as(corrected_recipe(), known)["S2L2A"]
    assert used.mean == CORRECTED["S2L2A"].mean and used.wavelengths[-3:] == (1.610, 2.190, 0.945)
    assert trained_as(EOVAERecipe.load("published"), known)["S2L2A"].mean == SENSORS["S2L2A"].mean


def test_distilled_weights_scaling_is_left_behind() -> None:
    """FLUX.2's pictures lie in -1..1; stage 2 is published with TerraMesh's own statistics of S2RGB."""
    distilled = metadata(EOVAE(MINIMAL), {"encoder weight": 0.0}, "start", "a test's")
    assert distilled.sensors["S2RGB"].mean == (127.5,) * 3 and trained_sensors(distilled) == {}


def options(tmp_path: Path, shards: Path) -> Options:
    recipe = dict(
        stages=[dict(name="s", batch=1, patch=40, steps=1, margin=0)], shards=corrected_recipe().shards, corrected=True,
        config=MINIMAL.to_dict(),
    )  # fmt: skip
    (tmp_path / "star.yaml").write_text(yaml.safe_dump(recipe))
    torch.manual_seed(0)
    save_weights(EOVAE(MINIMAL), tmp_path / "start.safetensors", replace(published_meta(MINIMAL), name="start"))
    return Options(
        str(shards), str(tmp_path / "star.safetensors"), str(tmp_path / "star.yaml"), name="star", workers=0,
        init=str(tmp_path / "start.safetensors"), storage=str(tmp_path / "runs"),
    )  # fmt: skip


def test_the_job_trains_on_them(tmp_path: Path, shards: Path) -> None:
    plan = planned(options(tmp_path, shards))
    assert opened(plan, EOVAE(MINIMAL)).sensors == {name: CORRECTED[name] for name in ("S2L2A", "S1RTC")}


def test_what_cannot_be_corrected_is_refused(tmp_path: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = options(tmp_path, shards)
    assert main(replace(asked, sensor=tmp_path / "none.yaml")) == 2
    assert "--sensor reads rasters" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a listing's images say their own offset"):
        replace(corrected_recipe(), listing="some.yaml")
