"""`jobs/finetune.py --data data.yaml`: searches mixed, split by ground, statistics of a sensor that has none."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from eocube.cube.patches import KINDS
from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from jobs.finetune import Options, main
from model.eo_vae import EOVAE
from model.sensors import SENSORS, TrainedSensor
from model.training.eo_vae.feeds import from_file
from model.training.eo_vae.recipe import EOVAERecipe
from model.training.recipe import RECIPES
from model.weights import load_weights, published_meta, save_weights
from tests.model.training.batches import TINY

SPLIT = {"block": 2400, "margin": 50, "shares": {"train": 0.6, "val": 0.4}, "seed": 9}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finetuning in small: the demo's ground is too small for blocks of larger patches."""
    document = yaml.safe_load((RECIPES / "adapt.yaml").read_text())
    (stage,) = document["stages"]
    document["stages"] = [stage | {"patch": 80, "batch": 2, "loss": {"charbonnier": 1.0}, "ms_ssim_step": None}]
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def data_file(target: Path, catalog: Path, **changes: Any) -> Path:
    """A file with a search of the demo scenes, in two sensors."""
    common = {"kind": "stac", "catalog": str(catalog), "bbox": list(DEMO_BBOX), "datetime": DEMO_DATETIME, "size": 96}
    document = {
        "sources": [
            common | {"sensor": "RGBN", "share": 2},
            common | {"sensor": "S1RTC", "share": 1},
        ],
        "split": SPLIT,
    } | changes
    target.write_text(yaml.safe_dump(document))
    return target


def test_a_search_trains_and_holds_out_other_ground(recipe: Path, demo_catalog: Path, tmp_path: Path) -> None:
    path = data_file(tmp_path / "data.yaml", demo_catalog)
    data = from_file(EOVAERecipe.load(str(recipe)), path, 0, 1, SENSORS, KINDS)
    names = [data.source.draw(2, 80).sensor.name for _ in range(20)]
    assert set(names) == {"RGBN", "S1RTC"} == set(data.sensors)
    assert len(data.held_out) == 8
    feeds = [s.feed for s in data.source.sources.values()]  # type: ignore[attr-defined]
    assert all(f.split == "train" and f.rule.margin == 50 for f in feeds)
    x = torch.cat([b.x.flatten() for b in data.held_out])
    assert torch.isfinite(x).all() and abs(float(x.mean())) < 3
    # the second date's swath ends within the region
    assert {why for f in feeds for _, _, why in f.ledger.entries} <= {"nodata wherever it was cut"}


def test_statistics_that_a_sensor_lacks_are_taken_from_its_training_patches(
    recipe: Path, demo_catalog: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = data_file(tmp_path / "data.yaml", demo_catalog)
    rgbn = SENSORS["RGBN"]
    bare = TrainedSensor("RGBN", rgbn.unit, rgbn.bands, rgbn.wavelengths, (0.0,) * 4, (1.0,) * 4, rgbn.gsd)
    with caplog.at_level(logging.INFO):
        data = from_file(EOVAERecipe.load(str(recipe)), path, 0, 1, {**SENSORS, "RGBN": bare}, KINDS, measure="RGBN")
    assert sum("RGBN has no statistics" in r.message for r in caplog.records) == 1
    batches = [b for b in (data.source.draw(8, 80) for _ in range(9)) if b.sensor.name == "RGBN"]
    z = torch.cat([b.x for b in batches])
    assert abs(float(z.mean())) < 0.5 and 0.5 < float(z.std()) < 1.5
    with pytest.raises(ValueError, match=r"data\.yaml has no source of S2L1C, the sensor to train for"):
        from_file(EOVAERecipe.load(str(recipe)), path, 0, 1, SENSORS, KINDS, measure="S2L1C")


@pytest.mark.slow
def test_the_job_finetunes_on_a_data_file_and_writes_its_sensors(
    recipe: Path, demo_catalog: Path, tmp_path: Path
) -> None:
    path = data_file(tmp_path / "data.yaml", demo_catalog)
    out = tmp_path / "out" / "mine.safetensors"
    options = Options(
        data=str(path),
        out=str(out),
        recipe=str(recipe),
        name="mine",
        workers=0,
        steps=2,
        threads=1,
        storage=str(tmp_path / "runs"),
    )
    assert main(options) == 0
    meta = load_weights(out).meta
    assert meta is not None and set(meta.sensors) == {"RGBN", "S1RTC"}
    assert json.loads(out.with_suffix(".json").read_text())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": []}, "lists no data"),
        ({"sources": [{"kind": "stac", "sensor": "RGBN"}]}, "catalog is missing"),
        ({"sources": [{"kind": "cube", "url": "a.zarr"}]}, "source 1: kind 'cube' is called 'cube-sources' now"),
        ({"split": SPLIT | {"shares": {"a": 1}}}, "its split has a, but training needs one called train"),
    ],
)
def test_a_file_that_cannot_serve_ends_with_one_line(
    demo_catalog: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: Any, said: str
) -> None:
    path = data_file(tmp_path / "data.yaml", demo_catalog, **changes)
    options = Options(
        data=str(path), out=str(tmp_path / "o.safetensors"), name="x", workers=0, storage=str(tmp_path / "r")
    )
    assert main(options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ") and said in line


DOVE = {"name": "Dove2", "unit": "reflectance", "collections": {"any": ["sentinel-2-l2a"]}, "bands": [
    {"name": "B04", "wavelength": 0.665, "gsd": 10, "assets": ["red"]},
    {"name": "B08", "wavelength": 0.842, "gsd": 10, "assets": ["nir"]},
]}  # fmt: skip


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"sensor": "RGBN", "bands": ["B04", "B08"]}, "has no band B03, B02 of RGBN: fewer than the sensor"),
        ({"sensor": "RGBN", "size": 72}, "is 72x72 px, less than the 80 asked for"),
        ({"sensor": "Dove2"}, "no statistics for Dove2: describe the sensor with --sensor FILE"),
        ({"kind": "terramesh", "url": "gone/[S2L2A]/a.tar", "modalities": ["S2L2A"]}, "there is no gone/S2L2A/a.tar"),
    ],
)
def test_what_cannot_serve_is_refused_before_workers_start_or_the_name_is_taken(
    source: dict[str, Any], said: str, recipe: Path, demo_catalog: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    search = {"kind": "stac", "catalog": str(demo_catalog), "bbox": list(DEMO_BBOX), "datetime": DEMO_DATETIME,
              "size": 96} if "kind" not in source else {}  # fmt: skip
    if source.get("sensor") == "Dove2":
        (tmp_path / "dove.yaml").write_text(yaml.safe_dump(DOVE))
        source = source | {"sensor": str(tmp_path / "dove.yaml")}
    path = data_file(tmp_path / "data.yaml", demo_catalog, sources=[search | source], split=None)
    started: list[object] = []
    monkeypatch.setattr("model.training.ray_train.fit", lambda *given: started.append(given))
    options = Options(
        str(path), str(tmp_path / "o.safetensors"), str(recipe), name="x", workers=2, storage=str(tmp_path / "r")
    )
    assert main(options) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("error: ") and said in line
    assert not started and not (tmp_path / "r").exists()


def test_what_can_serve_gets_to_the_workers(
    recipe: Path, demo_catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = data_file(tmp_path / "data.yaml", demo_catalog)
    started: list[object] = []
    monkeypatch.setattr("model.training.ray_train.fit", lambda *given: started.append(given))
    torch.manual_seed(0)
    save_weights(EOVAE(TINY), tmp_path / "tiny.safetensors", published_meta(TINY))
    options = Options(
        str(path), str(tmp_path / "o.safetensors"), str(recipe), init=str(tmp_path / "tiny.safetensors"), name="x",
        workers=2, storage=str(tmp_path / "r"),
    )  # fmt: skip
    with caplog.at_level(logging.INFO):
        assert main(options) == 0
    assert len(started) == 1 and "RGBN: new to" in caplog.text


def test_a_data_file_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Options(data=str(tmp_path / "gone.yaml"), out=str(tmp_path / "o.safetensors"), name="x", workers=0)
    assert main(options) == 2
    assert "no file" in capsys.readouterr().err
