"""`jobs/evaluate.py --task sr` on a tiny store and on folders: JSON, saved files, bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from eocube.pairs.encoding import PixelMaker
from eocube.pairs.pair_plan import PairPlan
from eocube.pairs.pixel_pairs import rows_of
from eocube.pairs.wald import WaldPairs
from eocube.pairs.writing import write_pairs
from jobs.evaluate import command
from model.super_resolution import SRConfig, SRMeta, SuperResolver, save_sr
from model.unet import UNetConfig
from model.wald import degrade, mtf_of
from model.weights import load_weights
from tests.eocube.cubes import TINY
from tests.eocube.pair_world import BANDS, image, make_weights, reflectance, write_area, write_tif

QUICK = ["--timing-iterations", "1", "--timing-seconds", "0.01", "--curve-pairs", "0", "--samples", "2", "--steps", "2",
         "--threads", "1"]  # fmt: skip


def resolver(path: Path, channels: int, space: str, encoder: dict[str, object] | None, bands: tuple[str, ...]) -> str:
    torch.manual_seed(0)
    unet = UNetConfig(channels_in=channels, channels_out=channels, condition=4, widths=(8,), blocks=(1,))
    config = SRConfig(unet=unet, channels=channels, space=space, trunk=8, trunk_blocks=1, features=4)
    save_sr(SuperResolver(config), path, SRMeta(path.stem, bands, encoder))
    return str(path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two trained places and a held-out one, without and with pixels; weights in both spaces."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    weights = make_weights(root / "tiny.safetensors")
    images = [image("one", (96, 96), 1), image("two", (64, 96), 2), image("three", (96, 64), 3, split="val")]
    pairs = WaldPairs(images, 4, 64, 32, 64)
    for name, splits in (("pairs", ("train", "val")), ("bare", ())):
        maker = PixelMaker(pairs, weights)
        rows = rows_of(pairs.notes, splits=("train", "val"))
        plan = PairPlan.of(rows, maker, image_splits=splits)
        write_pairs(str(root / f"{name}.zarr"), plan, maker, threads=1)
    meta = load_weights(weights).meta
    assert meta is not None
    encoder = {"weights": weights, "sha256": meta.sha256, "bands": list(BANDS), "sensor": "RGBN"}
    resolver(root / "latent.safetensors", TINY.z_channels, "latent", encoder, BANDS)
    resolver(root / "pixel.safetensors", 4, "pixel", None, BANDS)
    resolver(root / "others.safetensors", TINY.z_channels, "latent", {**encoder, "sha256": "0" * 64}, BANDS)
    resolver(root / "rgb.safetensors", TINY.z_channels, "latent", encoder, BANDS[:3])
    return root


@pytest.mark.slow
def test_a_store_side_by_side(world: Path, tmp_path: Path) -> None:
    arguments = ["--task", "sr", "--pairs", str(world / "pairs.zarr"), "--weights", str(world / "latent.safetensors"),
                 "--pixel-weights", str(world / "pixel.safetensors"), "--save", str(tmp_path / "saved"),
                 "--json", str(tmp_path / "sr.json"), "--out", str(tmp_path / "out"),
                 "--save-ridge", str(tmp_path / "ridge.safetensors"), *QUICK]  # fmt: skip
    assert command(arguments) == 0
    report = json.loads((tmp_path / "sr.json").read_text())
    assert report["pairs"] == 2 and list(report["places"]) == ["three S2L2A"] and report["split"] == "val"
    needed = {"psnr", "ssim", "rmse", "sam", "consistency", "seconds_per_image", "parameters"}
    for name in (
        "bicubic",
        "bicubic_consistent",
        "ridge",
        "ceiling",
        "latent",
        "latent_mean",
        "latent_one_step",
        "latent_consistent",
        "pixel",
    ):
        assert set(report["methods"][name]) >= needed, name
    assert report["ridge"]["places"] == ["one S2L2A 10 m", "two S2L2A 10 m"]
    assert report["throughput"]["steps"] == {"latent": 2, "pixel": 2}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.md", "sr.png"}
    truth, made = (sorted((tmp_path / "saved" / name).iterdir()) for name in ("truth", "bicubic"))
    errors = []
    for one, other in zip(truth, made, strict=True):
        with rasterio.open(one) as a, rasterio.open(other) as b:
            assert a.transform == b.transform and a.crs == b.crs and a.crs.to_epsg() == 32632 and a.transform.a == 10
            errors.append(np.mean((a.read().astype(np.float64) - b.read()) ** 2))
    assert report["methods"]["bicubic"]["psnr"] == pytest.approx(-10 * np.log10(np.mean(errors)), abs=1e-4)


def test_a_chosen_few(world: Path, tmp_path: Path) -> None:
    arguments = ["--task", "sr", "--pairs", str(world / "pairs.zarr"), "--weights", str(world / "latent.safetensors"),
                 "--pixel-weights", str(world / "pixel.safetensors"), "--methods", "pixel", "bicubic", "latent",
                 "--json", str(tmp_path / "sr.json"), "--out", str(tmp_path / "out"), *QUICK]  # fmt: skip
    assert command(arguments) == 0
    report = json.loads((tmp_path / "sr.json").read_text())
    assert list(report["methods"]) == ["bicubic", "latent", "pixel"] and report["throughput"]["seconds"]


@pytest.mark.slow
def test_a_folder_of_reflectances_in_sen2naips_layout(world: Path, tmp_path: Path) -> None:
    """Two areas of different sizes, uint16: no resampling, reflectance, the shipped ridge."""
    for k, side in enumerate((64, 96)):
        high = reflectance((side, side), k)
        low = degrade(torch.from_numpy(high)[None], mtf_of(BANDS), 4)[0].numpy()
        folder = write_area(tmp_path / "pairs" / f"a{k}", k)
        for name, data, pixel in (("hr.tif", high, 10.0), ("lr.tif", low, 40.0)):
            counts = np.rint(data * 1e4).astype(np.uint16)
            write_tif(folder / name, counts, transform=(pixel, 0, 500_000, 0, -pixel, 5_300_000))
    arguments = ["--task=sr", "--pairs", str(tmp_path / "pairs"), "--weights", str(world / "latent.safetensors"),
                 "--json", str(tmp_path / "sr.json"), "--save", str(tmp_path / "saved"), *QUICK]  # fmt: skip
    assert command(arguments) == 0
    report = json.loads((tmp_path / "sr.json").read_text())
    assert report["pairs"] == 2 and "29RKH S2L2A 100 m" in report["ridge"]["places"]  # the shipped one
    assert [entry["sides"] for entry in report["places"].values()] == [[64], [96]]
    assert report["truth_consistency"] < 1e-4
    with rasterio.open(tmp_path / "saved" / "truth" / "AOI_a1.tif") as truth:
        assert np.abs(truth.read() - reflectance((96, 96), 1)).max() < 1e-6 and truth.transform.a == 10


@pytest.mark.slow
def test_a_folder_of_rasters(world: Path, tmp_path: Path) -> None:
    write_tif(tmp_path / "pairs" / "ground.tif", np.rint(reflectance((96, 96)) * 1e4).astype(np.uint16))
    arguments = ["--task", "sr", "--pairs", str(tmp_path / "pairs"), "--weights", "none", "--side", "96", "--json",
                 str(tmp_path / "sr.json"), *QUICK]  # fmt: skip
    assert command(arguments) == 0
    assert set(json.loads((tmp_path / "sr.json").read_text())["methods"]) == {
        "bicubic",
        "bicubic_consistent",
        "ridge",
        "ridge_consistent",
    }


@pytest.mark.parametrize(("changes", "said"), [
    ({"--weights": "others.safetensors"}, "another encoder"),
    ({"--weights": "rgb.safetensors"}, "is of B04 B03 B02, the pairs of B04 B03 B02 B08"),
    ({"--weights": "pixel.safetensors"}, "is of pixel space, give one of latent space"),
    ({"--pairs": "bare.zarr"}, "no pixels of split val"),
    ({"--split": "test"}, "no pair of split 'test'"),
    ({"--pairs": "nothing.zarr"}, "no pairs at"),
    ({"--steps": "0"}, "--steps 0 must be at least 1"),
    ({"--methods": "pixel"}, "--methods pixel: there is bicubic, bicubic_consistent, ridge, "),
    ({"--out": "tiny.safetensors"}, "is a file: give a folder"),
])  # fmt: skip
def test_bad_input_is_one_line(
    world: Path, changes: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"--pairs": "pairs.zarr", "--weights": "latent.safetensors"} | changes
    plain = ("--split", "--steps", "--methods")
    words = [w for k, v in given.items() for w in (k, v if k in plain else str(world / v))]
    assert command(["--task", "sr", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]


def test_lpips_says_what_it_needs(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import torchvision  # noqa: F401
    except ImportError:
        assert command(["--task", "sr", "--pairs", str(world / "pairs.zarr"), "--weights", "none", "--lpips"]) == 2
        assert "torchvision" in capsys.readouterr().err
    else:
        pytest.skip("torchvision is here, and its AlexNet would be downloaded")


def test_another_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["--task", "colour"]) == 2
    assert "choose sr or reconstruction" in capsys.readouterr().err
