"""`jobs/evaluate.py --terramesh`: figures of miniature shards, what is left out, land cover, S3, bad input."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import s3fs
import torch
import torch.nn.functional as F

from jobs.evaluate import Options, main
from model.eo_vae import EOVAE, EOVAEConfig
from model.evaluation.figures import batch_spans, figures, measure
from model.evaluation.published import TABLE_1
from model.evaluation.study import CLAMPED, CLAMPED_TRUTH, FREE
from model.evaluation.terramesh_samples import Reader, ahead, shards_of
from model.evaluation.terramesh_study import disagreement
from model.sensors import CORRECTED, SENSORS, TrainedSensor
from model.terramind import STATISTICS, Tokenizer
from model.training.eo_vae.adapt import known_sensors
from model.training.eo_vae.evaluate import RANGES
from model.weights import load_weights, published_meta, save_weights
from tests.conftest import S3Server
from tests.model.mirror import Mirror
from tests.model.training import shards as make

TINY = EOVAEConfig(
    ch=16, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=16, norm_groups=2, hypernet_layers=1, wavelength_dim=32,
    hypernet_ff=32, hypernet_heads=2,
)  # fmt: skip
SIDE, COUNT = 48, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of three and two samples, optical, radar and land cover, in `train`; weights beside them."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("terramesh")
    make.make_shards(root, ("S2L2A", "S1RTC", "LULC"), (3, 2), tmp_path_factory.mktemp("scratch"))
    torch.manual_seed(0)
    save_weights(EOVAE(TINY), root / "tiny.safetensors", published_meta(TINY))
    return root


def run(world: Path, out: Path, **changes: Any) -> int:
    values: dict[str, Any] = {
        "terramesh": f"{world}/train", "out": out, "weights": str(world / "tiny.safetensors"), "resamples": 20,
        "threads": 1, "side": SIDE, "batch": 2, "device": "cpu",
    }  # fmt: skip
    return main(Options(**(values | changes)))


def report(world: Path, out: Path, **changes: Any) -> dict[str, Any]:
    assert run(world, out, **changes) == 0
    return cast(dict[str, Any], json.loads((out / "report.json").read_text()))


@pytest.fixture(scope="module")
def written(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The report of all samples of both modalities, JSON and Markdown."""
    out = tmp_path_factory.mktemp("out")
    return report(world, out), (out / "report.md").read_text()


def direct(world: Path, modality: str) -> tuple[TrainedSensor, list[np.ndarray], list[np.ndarray]]:
    """Sensor, targets and reconstructions, tile by tile."""
    vae = load_weights(world / "tiny.safetensors")
    sensor = known_sensors(vae.meta)[modality]
    targets, backs = [], []
    for number in range(COUNT):
        z = torch.from_numpy(sensor.zscore(make.pixels(modality, number).astype(np.float32)))[None]
        x = F.interpolate(z, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        with torch.no_grad():
            y = vae.decode(vae.encode(x, sensor.wavelengths).mode(), sensor.wavelengths)
        targets.append(x[0].numpy())
        backs.append(y[0].numpy())
    return sensor, targets, backs


def close(found: Any, expected: Any, where: str = "") -> None:
    """The same figures, to what float32 in batches of another size leaves."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            close(found[key], expected[key], f"{where}/{key}")
    elif expected is None:
        assert found is None, where
    else:
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6), where


@pytest.mark.parametrize("modality", ["S2L2A", "S1RTC"])
def test_figures_are_those_of_the_tiles_one_by_one(
    written: tuple[dict[str, Any], str], world: Path, modality: str
) -> None:
    sensor, targets, backs = direct(world, modality)
    names = [f"majortom_train_{k:07d}" for k in range(COUNT)]
    spans = batch_spans(targets, 2)
    z = [measure(b, t, s, n, borders=True) for b, t, s, n in zip(backs, targets, spans, names, strict=True)]
    red_nir = (3, 7) if modality == "S2L2A" else None
    physical = [
        measure(sensor.physical(b), sensor.physical(t), RANGES[sensor.unit], n, red_nir)
        for b, t, n in zip(backs, targets, names, strict=True)
    ]
    how: dict[str, Any] = {"bands": sensor.bands, "resamples": 20}
    item = written[0]["sensors"][modality]
    assert (item["tiles"], item["samples"], item["left_out"]["counts"]) == (COUNT, COUNT, {})
    assert item["seconds"] > 0 and item["samples_per_second"] > 0
    found = item["methods"][written[0]["weights"]]
    close(found["z"], figures(z, batch=2, **how))
    close(found["physical"], figures(physical, **how))


def test_land_cover_is_summed_over_the_pixels_of_each_class(written: tuple[dict[str, Any], str], world: Path) -> None:
    sensor, targets, backs = direct(world, "S2L2A")
    nearest = ((np.arange(SIDE) + 0.5) * 40 / SIDE).astype(int)
    square, pixels = np.zeros(10), np.zeros(10)
    for number, (back, target) in enumerate(zip(backs, targets, strict=True)):
        labels = make.pixels("LULC", number)[0][nearest][:, nearest]
        errors = ((sensor.physical(back).astype(float) - sensor.physical(target)) ** 2).sum(0)
        for code in np.unique(labels):
            square[code] += errors[labels == code].sum()
            pixels[code] += (labels == code).sum()
    item, name = written[0]["sensors"]["S2L2A"], written[0]["weights"]
    classes = {1: "1 water", 2: "2 trees", 4: "4 crops", 5: "5 built area", 9: "9 rangeland"}
    assert item["cover_pixels"] == {label: pixels[code] for code, label in classes.items()}
    for code, label in classes.items():
        mse = square[code] / pixels[code] / 12
        assert item["cover"][name][label]["rmse"]["value"] == pytest.approx(mse**0.5, rel=1e-4)
        assert item["cover"][name][label]["psnr"]["value"] == pytest.approx(-10 * np.log10(mse), rel=1e-4)


def test_markdown_has_the_published_rows_beside_ours(written: tuple[dict[str, Any], str]) -> None:
    text = written[1]
    row = next(line for line in text.splitlines() if line.startswith("| EO-VAE* |"))
    assert all(f" {v:.2f} " in row or f" {v:.4f} " in row for v in TABLE_1["EO-VAE*"]["S2L2A"])
    assert "| eo-vae | here, TerraMesh |" in text
    assert "### S2L2A, land cover of each pixel, in reflectance" in text and "| 2 trees | 25.00% |" in text
    assert f"{COUNT} of {COUNT} samples measured" in text and "Nothing was left out." in text
    assert "nan" not in text and "None" not in text


def test_physical_figures_do_not_depend_on_the_batch(
    written: tuple[dict[str, Any], str], world: Path, tmp_path: Path
) -> None:
    other = report(world, tmp_path, batch=3, modalities=("S2L2A",))
    name = other["weights"]
    close(*(r["sensors"]["S2L2A"]["methods"][name]["physical"] for r in (other, written[0])))
    close(*(r["sensors"]["S2L2A"]["cover"] for r in (other, written[0])))


def test_a_limit_takes_the_first_samples_and_a_pattern_names_shards(world: Path, tmp_path: Path) -> None:
    url = f"{world}/train/[S2L2A]/majortom_shard_{{000001..000002}}.tar"
    few = report(world, tmp_path / "few", limit=4, modalities=("S2L2A",), terramesh=url)["sensors"]["S2L2A"]
    assert (few["tiles"], few["samples"]) == (4, 4)
    assert sum(few["cover_pixels"].values()) == 4 * SIDE**2
    alone = url.replace("..000002", "..000001")
    first = report(world, tmp_path / "one", modalities=("S2L2A",), terramesh=alone)["sensors"]["S2L2A"]
    assert first["tiles"] == 3


def test_what_cannot_be_measured_is_counted_by_name(world: Path, tmp_path: Path) -> None:
    good = make.zarr_zip(make.pixels("S1RTC", 0), make.BANDS["S1RTC"], tmp_path / "a")
    hole = make.pixels("S1RTC", 1)
    hole[0, 3, 4] = np.nan
    holed = make.zarr_zip(hole, make.BANDS["S1RTC"], tmp_path / "b")
    cover = make.zarr_zip(make.pixels("LULC", 0), make.BANDS["LULC"], tmp_path / "c")
    members = [("good", good), ("holed", holed), ("torn", good[:200]), ("blind", good), ("lone", good)]
    make.write_tar(tmp_path / "val" / "S1RTC" / "a.tar", members)
    covers = [(key, cover[:200] if key == "blind" else cover) for key, _ in members if key != "lone"]
    make.write_tar(tmp_path / "val" / "LULC" / "a.tar", covers)
    make.write_tar(tmp_path / "val" / "S1RTC" / "b.tar", [("bare", good)])  # a shard without land cover
    (tmp_path / "val" / "S1RTC" / "c.tar").write_bytes(b"no tar")
    item = report(world, tmp_path / "out", terramesh=f"{tmp_path}/val", modalities=("S1RTC",))["sensors"]["S1RTC"]
    assert (item["tiles"], item["samples"]) == (3, 5)
    assert item["left_out"]["counts"] == {"sample": 3, "land cover": 1, "shard": 1}
    named = {name: why for _, name, why in item["left_out"]["entries"]}
    assert set(named) == {"a.tar/holed", "a.tar/torn", "a.tar/blind", "lone", "c.tar"}
    assert named["a.tar/holed"] == "pixels that are not finite" and "damaged zip" in named["a.tar/torn"]
    assert sum(item["cover_pixels"].values()) == SIDE**2
    assert "a.tar/holed (pixels that are not finite)" in (tmp_path / "out" / "report.md").read_text()


def test_terramind_is_fed_by_its_own_statistics_and_compared_in_the_weights_z_scores(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Mirror()
    monkeypatch.setattr("model.terramind.load_tokenizer", lambda path, name: cast(Tokenizer, stub))
    found = report(world, tmp_path, modalities=("S1RTC",), limit=1, terramind={"S1RTC": Path("x.pt")})
    dn = torch.from_numpy(make.pixels("S1RTC", 0).astype(np.float32))[None]
    x = F.interpolate(dn, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0].numpy()
    mean, std = (np.array(v)[:, None, None] for v in STATISTICS["S1RTC"])
    np.testing.assert_allclose(stub.fed[0][0], (x - mean) / std, atol=1e-4)
    assert run(world, tmp_path, modalities=("S2L2A",), terramind={"S1RTC": Path("x.pt")}) == 2
    methods = found["sensors"]["S1RTC"]["methods"]
    assert methods[FREE]["z"]["rmse"]["value"] == pytest.approx(0, abs=1e-5)
    least = np.clip((x - mean) / std, -1, 1) * std + mean
    error = (SENSORS["S1RTC"].zscore(least) - SENSORS["S1RTC"].zscore(x)).astype(float)
    for name in (CLAMPED, CLAMPED_TRUTH):
        assert methods[name]["z"]["rmse"]["value"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-5)


def test_corrected_data_are_read_as_such(tmp_path: Path) -> None:
    sensor, data = CORRECTED["S2L2A"], make.pixels("S2L2A", 0)
    late = make.zarr_zip(data, make.BANDS["S2L2A"], tmp_path / "a", time="2023-01-01T00:00:00")
    make.write_tar(tmp_path / "S2L2A" / "a.tar", [("k", late)])
    shards = shards_of(str(tmp_path), ["S2L2A"])["S2L2A"]
    (samples,) = Reader(shards, "S2L2A", sensor, side=40, corrected=True)
    np.testing.assert_allclose(samples.z[0], sensor.zscore(data.astype(np.float32) + 1000), atol=1e-6)


def test_statistics_of_the_other_variant_are_warned_of(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert disagreement(SENSORS["S2L2A"], corrected=False) is None
    assert disagreement(CORRECTED["S2L2A"], corrected=True) is None
    assert disagreement(CORRECTED["S1RTC"], corrected=True) is None
    assert "add --corrected" in str(disagreement(CORRECTED["S2L1C"], corrected=False))
    report(world, tmp_path, corrected=True, limit=1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert lines == [
        "warning: S2L2A: the weights have the legacy statistics, the data are corrected: leave --corrected out"
    ]


def test_shards_on_s3_give_the_same(
    written: tuple[dict[str, Any], str], world: Path, tmp_path: Path, s3_server: S3Server
) -> None:
    bucket = s3_server.bucket()
    s3fs.S3FileSystem(**s3_server.storage_options).put(str(world / "train"), f"{bucket}/val", recursive=True)
    found = report(world, tmp_path, terramesh=f"s3://{bucket}/val")
    for modality, item in written[0]["sensors"].items():
        for key in ("tiles", "methods", "cover", "cover_pixels", "left_out"):
            assert found["sensors"][modality][key] == item[key]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"terramesh": "/nowhere/val"}, "no shards at /nowhere/val/{modality}/*.tar that have S2L2A"),
        ({"terramesh": "/nowhere/[S2L2A]/{1..2}.tar"}, "no shards at /nowhere/[S2L2A]/{1..2}.tar that S2L2A could be"),
        ({"terramesh": "/nowhere/a.tar"}, "has no place for 2 modalities"),
        ({"terramesh": None}, "give one of --data (a listing's folder) and --terramesh (shards)"),
        ({"data": Path(".")}, "give one of --data (a listing's folder) and --terramesh (shards)"),
        ({"modalities": ("S1GRD",)}, "eo-vae does not know S1GRD: --modalities of S2L2A, S2L1C, S1RTC, S2RGB"),
        ({"modalities": ()}, "--modalities of nothing"),
        ({"modalities": ("DEM",)}, "no sensor for DEM of TerraMesh"),
        ({"modalities": ("S2RGB",)}, "that have S2RGB"),
        ({"device": "tpu"}, "--device tpu: choose auto, cpu or cuda"),
        ({"limit": 0}, "--limit 0"),
        ({"side": 50}, "--side 50 must be a multiple of 8"),
        ({"test": True}, "--test goes with --data"),
        ({"terramesh": None, "data": Path("."), "limit": 3}, "--limit goes with --terramesh"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    changes: dict[str, Any], told: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(world, tmp_path / "out", **changes) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_other_bands_than_the_modalitys_are_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = make.zarr_zip(make.pixels("S2L2A", 0)[:10], make.BANDS["S2L2A"][:10], tmp_path / "few")
    make.write_tar(tmp_path / "val" / "S2L2A" / "a.tar", [("k", few)])
    assert run(world, tmp_path / "out", terramesh=f"{tmp_path}/val", modalities=("S2L2A",)) == 2
    assert "k: S2L2A has 10 bands, fewer than the 12 it should" in capsys.readouterr().err


def test_no_more_than_two_batches_are_held(world: Path) -> None:
    """However many samples there are: one that is measured, one that is read meanwhile."""
    alive = weakref.WeakSet[torch.Tensor]()
    most = 0
    reader = Reader(shards_of(f"{world}/train", ["S1RTC"])["S1RTC"], "S1RTC", SENSORS["S1RTC"], side=SIDE, batch=1)
    seen = 0
    for samples in ahead(iter(reader)):
        seen += 1
        alive.add(samples.z)
        most = max(most, len(alive))
    assert seen == COUNT and most <= 2


def test_no_such_device_is_said(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(world, tmp_path, device="cuda") == 2
    assert "--device cuda: torch sees no such device" in capsys.readouterr().err
