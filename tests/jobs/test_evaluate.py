"""`jobs/evaluate.py`: report of a tiny world, figures against scikit-image on its files, bad input in one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import yaml

from jobs.evaluate import Options, main
from model.eo_vae import EOVAE, EOVAEConfig
from model.evaluation.published import TABLE_1
from model.evaluation.study import cover_labels
from model.sensors import SENSORS
from model.training.eo_vae.evaluate import reconstruct
from model.weights import load_weights, published_meta, save_weights

TINY = EOVAEConfig(
    ch=16, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=16, norm_groups=2, hypernet_layers=1, wavelength_dim=32,
    hypernet_ff=32, hypernet_heads=2,
)  # fmt: skip
LABELS = {1: ["Pastures"], 2: ["Pastures", "Water bodies"], 3: ["Pastures"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Listing, weights and rasters: four places of twelve bands (the first trained on) and two of radar."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("evaluate")
    rng = np.random.default_rng(0)
    sources = []
    for place in range(4):
        folder = root / f"p{place}"
        folder.mkdir()
        relief = np.kron(rng.random((8, 8)), np.ones((8, 8))) + 0.2 * rng.random((64, 64))
        optical = np.linspace(800, 3000, 12)[:, None, None] * (0.5 + relief)
        written = [("s2", optical, SENSORS["S2L2A"])]
        if place < 2:
            written.append(("s1", rng.normal(-14, 3, (2, 64, 64)), SENSORS["S1RTC"]))
        for name, data, sensor in written:
            profile = {"driver": "GTiff", "count": len(data), "height": 64, "width": 64, "dtype": "float32"}
            with rasterio.open(folder / f"{name}.tif", "w", **profile) as dataset:
                dataset.write(data.astype(np.float32))
            sources.append({
                "name": f"{name}_{place}", "place": f"p{place}", "sensor": sensor.name, "kind": "rasters",
                "path": f"p{place}", "parts": {f"{name}.tif": list(sensor.bands)}, "gsd": 10, "held_out": place > 0,
            })  # fmt: skip
        if place in LABELS:
            (folder / f"p{place}_labels_metadata.json").write_text(json.dumps({"labels": LABELS[place]}))
    (root / "listing.yaml").write_text(yaml.safe_dump({"sources": sources}))
    torch.manual_seed(0)
    save_weights(EOVAE(TINY), root / "tiny.safetensors", published_meta(TINY))
    return root


def options(world: Path, out: Path, **changes: Any) -> Options:
    values: dict[str, Any] = {
        "data": world, "out": out, "weights": str(world / "tiny.safetensors"), "listing": world / "listing.yaml",
        "resamples": 50, "rate_tiles": 1, "threads": 1,
    }  # fmt: skip
    return Options(**(values | changes))


@pytest.fixture(scope="module")
def written(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The report of one run: JSON, Markdown and folder."""
    out = tmp_path_factory.mktemp("out") / "report"
    assert main(options(world, out)) == 0
    return json.loads((out / "report.json").read_text()), (out / "report.md").read_text(), out


@pytest.mark.slow
def test_every_baseline_is_measured(written: tuple[dict[str, Any], str, Path]) -> None:
    report, _, out = written
    methods = list(report["sensors"]["S2L2A"]["methods"])
    assert methods[1:] == [
        "KLT 8x8, 16 coefficients", "bilinear, as many values", "JPEG 2000, bytes of fp16 latents",
        "JPEG 2000, bytes of int8 latents", "truth clamped to TerraMind's [-1, 1]",
    ]  # fmt: skip
    assert set(report["sensors"]) == {"S2L2A", "RGBN", "S2RGB", "S1RTC"}
    assert any("KLT" in name for name in report["sensors"]["S2RGB"]["methods"])
    assert (out / "rate_distortion.png").stat().st_size > 10_000


@pytest.mark.slow
def test_figures_equal_scikit_image_on_the_files(written: tuple[dict[str, Any], str, Path], world: Path) -> None:
    skimage = pytest.importorskip("skimage.metrics")
    report = written[0]
    figures = report["sensors"]["S2L2A"]["methods"][report["weights"]]
    vae, sensor = load_weights(world / "tiny.safetensors"), SENSORS["S2L2A"]
    truth, back = [], []
    for place in (1, 2, 3):
        with rasterio.open(world / f"p{place}" / "s2.tif") as dataset:
            truth.append(sensor.zscore(dataset.read()))
        back.append(reconstruct(vae, truth[-1], sensor))
    spaces = {"z": (np.stack(truth), np.stack(back))}
    spaces["physical"] = tuple(np.stack([sensor.physical(z) for z in v]) for v in (truth, back))  # type: ignore[assignment]
    for space, (a, b) in spaces.items():
        a, b = a.astype(np.float64), b.astype(np.float64)
        span = 1.0 if space == "physical" else float(a.max() - a.min())
        how = {"data_range": span, "channel_axis": 0, "gaussian_weights": True, "use_sample_covariance": False}
        expected = {
            "rmse": np.sqrt(skimage.mean_squared_error(a, b)),
            "psnr": skimage.peak_signal_noise_ratio(a, b, data_range=span),
        }
        if space == "physical":  # in z-scores SSIM is torchmetrics': tests/model/evaluation/test_figures.py
            pairs = zip(a, b, strict=True)
            expected["ssim"] = np.mean([skimage.structural_similarity(x, y, **how) for x, y in pairs])
        for key, value in expected.items():
            assert figures[space][key]["value"] == pytest.approx(float(value), abs=1e-5), (space, key)


@pytest.mark.slow
def test_ndvi_is_of_reflectance_alone(written: tuple[dict[str, Any], str, Path]) -> None:
    report = written[0]
    figures = report["sensors"]["RGBN"]["methods"][report["weights"]]
    assert "ndvi_mae" in figures["physical"] and "ndvi_mae" not in figures["z"]
    assert all("ndvi_mae" not in m["physical"] for m in report["sensors"]["S1RTC"]["methods"].values())


@pytest.mark.slow
def test_one_place_has_no_interval_and_three_have(written: tuple[dict[str, Any], str, Path]) -> None:
    report = written[0]
    name = report["weights"]
    assert report["sensors"]["S1RTC"]["methods"][name]["z"]["rmse"]["low"] is None
    interval = report["sensors"]["S2L2A"]["methods"][name]["physical"]["rmse"]
    assert interval["low"] <= interval["value"] <= interval["high"]


@pytest.mark.slow
def test_land_cover_counts_a_patch_for_each_of_its_labels(written: tuple[dict[str, Any], str, Path]) -> None:
    item = written[0]["sensors"]["S2L2A"]
    assert item["cover_tiles"] == {"Pastures": 3, "Water bodies": 1}
    name = written[0]["weights"]
    assert item["cover"][name]["Pastures"]["rmse"]["value"] == pytest.approx(
        item["methods"][name]["physical"]["rmse"]["value"]
    )


@pytest.mark.slow
def test_markdown_has_the_published_table_and_keeps_the_spaces_apart(
    written: tuple[dict[str, Any], str, Path],
) -> None:
    text = written[1]
    row = next(line for line in text.splitlines() if line.startswith("| EO-VAE |"))
    for value in (*TABLE_1["EO-VAE"]["S1RTC"], *TABLE_1["EO-VAE"]["S2L2A"]):
        assert f" {value:.2f} " in row or f" {value:.4f} " in row
    assert "### S2L2A in z-scores" in text and "### S2L2A in reflectance (range 1)" in text
    assert "### S1RTC in dB (range 40)" in text
    assert "nan" not in text and "None" not in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weights": "nanoo"}, "did you mean 'nano'"),
        ({"data": Path("/nowhere")}, "no folder /nowhere"),
        ({"listing": Path("/nowhere.yaml")}, "no listing /nowhere.yaml"),
        ({"batch": 0}, "--batch 0"),
        ({"rate_tiles": -1}, "--rate-tiles -1"),
        ({"draws": -1}, "--draws -1"),
        ({"sensors": ("S1RTC", "S3")}, "--sensors S3: no such sensor"),
        ({"sensors": ("S2L1C",)}, "of S2L1C"),
        ({"terramind": {"DEM": Path("x.pt")}}, "TerraMind DEM"),
        ({"terramind": {"S1RTC": Path("x.pt")}}, "no such weights file: x.pt"),
        ({"terramind_steps": 1001}, "--terramind-steps 1001"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    changes: dict[str, Any], told: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options(world, tmp_path / "out", **changes)) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.slow
def test_one_sensor_at_equal_bits(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = published_meta(TINY)
    sensors = {n: replace(s, code_steps=(0.05,) * 16) for n, s in meta.sensors.items()}
    torch.manual_seed(0)
    save_weights(EOVAE(TINY), tmp_path / "coded.safetensors", replace(meta, sensors=sensors))
    monkeypatch.setattr("model.evaluation.equal_bits.RATES", (4, 16))
    how: dict[str, Any] = {"weights": str(tmp_path / "coded.safetensors"), "sensors": ("S1RTC",), "rate_tiles": 0}
    # Images of 64 pixels are mirrored to a patch's 96.
    assert main(options(world, tmp_path / "out", draws=4, **how)) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert list(report["sensors"]) == ["S1RTC"] == list(report["equal_bits"])
    found = report["equal_bits"]["S1RTC"]
    assert list(found["places"]) == ["p1"] and found["places"]["p1"] == found["pooled"] and found["tiles"] == 1
    assert list(found["pooled"])[:3] == ["codes", "KLT 8x8, images", "KLT 8x8, images and draws"]
    assert {row["rate"] for row in found["pooled"]["codes"]} == {4, None, 16}
    assert "1 tile of 1 independent validation place" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "equal_bits.png").is_file()
    assert main(options(world, tmp_path / "none", equal_bits=False, **how)) == 0
    assert json.loads((tmp_path / "none" / "report.json").read_text())["equal_bits"] == {}


def test_no_held_out_place_is_said(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = yaml.safe_load((world / "listing.yaml").read_text())
    kept = [s | {"held_out": False} for s in document["sources"]]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"sources": kept}))
    assert main(options(world, tmp_path / "out", listing=tmp_path / "all.yaml")) == 2
    assert "no place is held out" in capsys.readouterr().err


def test_broken_labels_are_named(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x_labels_metadata.json").write_text("[]")
    source = {"name": "a", "place": "a", "sensor": "S1RTC", "kind": "rasters", "path": "p", "parts": {}, "gsd": 10}
    (tmp_path / "listing.yaml").write_text(yaml.safe_dump({"sources": [source]}))
    with pytest.raises(ValueError, match=r"x_labels_metadata\.json: no BigEarthNet labels"):
        cover_labels(tmp_path / "listing.yaml", tmp_path)
