"""The whole comparison on made pairs: known answers, schema, saved files; methods of a small super-resolver."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import Tensor

from model.evaluation.super_resolution.methods import Method, Resolver, Sampling, baselines
from model.evaluation.super_resolution.pairs import Case
from model.evaluation.super_resolution.report import json_text, markdown, write
from model.evaluation.super_resolution.ridge import fit_ridge
from model.evaluation.super_resolution.saved import file_name
from model.evaluation.super_resolution.study import Costs, Curve, SuperResolutionStudy, goals, one_a_place, throughput
from model.sensors import Floats
from model.super_resolution import SRConfig, SuperResolver
from model.unet import UNetConfig
from model.wald import bicubic, sharpened
from tests.model.evaluation.super_resolution.scenes import MTF, pair, with_hole

CPU = torch.device("cpu")
NEEDED = {"psnr", "ssim", "rmse", "sam", "consistency", "seconds_per_image", "parameters"}


class Identity:
    """A space of 4 channels at full size: nothing is lost."""

    parameters = 7

    def below(self, lr: Floats) -> Tensor:
        return torch.from_numpy(lr)[None]

    def upsampled(self, lr: Floats, factor: int, mtf: Sequence[float] | None = None) -> Tensor:
        return bicubic(self.below(lr), factor) if mtf is None else sharpened(self.below(lr), mtf, factor)

    def above(self, hr: Floats) -> Tensor:
        return torch.from_numpy(hr)[None]

    def decode(self, z: Tensor) -> Floats:
        return np.asarray(z.numpy())


def small(space: str = "latent") -> SuperResolver:
    torch.manual_seed(0)
    unet = UNetConfig(channels_in=4, channels_out=4, condition=4, widths=(8,), blocks=(1,))
    net = SuperResolver(
        SRConfig(unet=unet, channels=4, scale=4, space=space, trunk=8, trunk_blocks=1, features=4)
    ).eval()
    net.white.back.mul_(0.05)  # white residuals are of the size of what is left to know
    return net


def resolver(space: str = "latent", samples: int = 3) -> Resolver:
    return Resolver(small(space), Identity() if space == "latent" else None, Sampling(2, samples), MTF, CPU)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], SuperResolutionStudy, Path]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("saved")
    ridge = fit_ridge([pair(seed, split="train") for seed in range(5, 7)])
    cases = [
        Case.of(pair(0), 0),
        Case.of(with_hole(pair(1), slice(0, 8), slice(0, 8)), 1),
        Case.of(pair(2, place="place0"), 2),
    ]
    latent = resolver()
    methods = [*baselines(ridge, Identity(), MTF), *latent.methods("latent"), *resolver("pixel").methods("pixel")]
    study = SuperResolutionStudy(
        cases, methods, MTF, CPU, latent, Costs(1, 0.01), Curve((1, 2), 1), folder, log=lambda _: None
    )
    about = {"weights": "small", "split": "val", "machine": {"cpu": "some", "load_before": 0.0}}
    return study.run() | about, study, folder


def test_the_schema(ran: tuple[dict[str, Any], SuperResolutionStudy, Path]) -> None:
    report = json.loads(json_text(ran[0]))
    assert report["pairs"] == 3 and set(report["places"]) == {"place0", "place1"}
    assert {
        "bicubic",
        "bicubic_consistent",
        "ridge",
        "ceiling",
        "latent_one_step",
        "latent",
        "latent_mean",
        "latent_consistent",
        "pixel",
    } <= set(report["methods"])
    for name, figures in report["methods"].items():
        assert set(figures) >= NEEDED and figures["seconds_per_image"] > 0, name
        assert set(figures["places"]) == {"place0", "place1"}
    assert report["methods"]["latent_mean"]["samples"] == 3 and report["methods"]["latent"]["steps"] == 2
    assert report["methods"]["latent"]["parameters"] == report["methods"]["latent"]["parameters_diffusion"] + 7
    assert set(report["methods"]["latent"]["timing"]["parts"]) == {"encode", "diffuse", "decode"}
    assert report["throughput"]["latent_against_pixel"] > 0
    assert set(report["curve"]["samplers"]) == {"ddim", "heun", "dpmpp"}


def test_known_answers(ran: tuple[dict[str, Any], SuperResolutionStudy, Path]) -> None:
    methods = ran[0]["methods"]
    assert methods["ceiling"]["psnr"] == math.inf and methods["ceiling"]["sharpness"] == pytest.approx(1)
    assert methods["bicubic"]["sharpness"] < methods["ridge"]["sharpness"] < 1
    assert methods["ridge"]["psnr"] > methods["bicubic"]["psnr"]
    for name in ("ridge_consistent", "latent_consistent", "latent_one_step_consistent", "latent_mean_consistent"):
        assert methods[name]["consistency"] < 1e-5, name
    assert methods["bicubic"]["consistency"] > 1e-4


def test_saved_files_say_where_they_lie(ran: tuple[dict[str, Any], SuperResolutionStudy, Path]) -> None:
    report, study, folder = ran
    case = study.cases[1]
    for name in report["methods"]:
        with rasterio.open(folder / name / "p1.tif") as made:
            assert tuple(made.transform)[:6] == case.pair.transform and made.crs.to_epsg() == 32633
            assert made.shape == (64, 64) and made.descriptions == case.pair.bands
    with rasterio.open(folder / "bicubic" / "p1.tif") as made, rasterio.open(folder / "truth" / "p1.tif") as truth:
        a, b = made.read().astype(np.float64), truth.read().astype(np.float64)
    known = np.isfinite(b).all(0)
    assert known.sum() == 64 * 64 - 64
    psnr = -10 * np.log10(np.mean((a - b)[:, known] ** 2))
    assert report["methods"]["bicubic"]["places"]["place1"]["psnr"] == pytest.approx(psnr, abs=1e-6)
    with rasterio.open(folder / "input" / "p1.tif") as low:
        assert low.transform.a == 40 and low.bounds == rasterio.open(folder / "truth" / "p1.tif").bounds


def test_the_report_is_written(ran: tuple[dict[str, Any], SuperResolutionStudy, Path], tmp_path: Path) -> None:
    report, study, _ = ran
    paths = write(report, study.shown, tmp_path)
    assert [path.name for path in paths] == ["report.json", "report.md", "sr.png", "sr_steps.png"]
    assert all(path.stat().st_size > 500 for path in paths)
    text = markdown(report)
    for part in ("EO-VAE*", "21.76", "latent_one_step", "times** the images a second", "place1"):
        assert part in text, part


def test_a_draw_follows_from_seed_and_pair_alone() -> None:
    case, other = Case.of(pair(0), 0), Case.of(pair(0), 1)
    methods: dict[str, Method] = {m.name: m for m in resolver().methods("latent")}
    first = methods["latent"].result(case)
    assert np.array_equal(first, {m.name: m for m in resolver(samples=1).methods("latent")}["latent"].run(case))
    assert not np.array_equal(first, methods["latent"].result(other))
    drawn = resolver().drawn(case)
    assert np.allclose(methods["latent_mean"].run(case), drawn.mean(0), atol=1e-6) and drawn.std(0).mean() > 1e-4


def test_goals_name_place_and_figure() -> None:
    def of(psnr: float, sharpness: float = 0.5, consistency: float = 0.0) -> dict[str, Any]:
        return {"places": {"a": {"psnr": psnr, "sam": 0.1, "sharpness": sharpness, "consistency": consistency}}}

    found = goals({"bicubic": of(30), "ridge": of(32), "latent_one_step": of(31.4), "latent": of(29, 0.4, 0.02)})
    assert found["means"]["latent_one_step"]["ridge"]["a"] == pytest.approx(-0.6)
    assert len(found["short"]) == 5 and all(line.startswith("a: ") for line in found["short"])
    good = goals({"bicubic": of(30), "ridge": of(32), "latent_one_step": of(33), "latent": of(29, 0.9)})
    assert good["short"] == []


def test_throughput_is_at_the_same_steps() -> None:
    cost = {
        "seconds_per_image": 0.1,
        "steps": 8,
        "timing": {"parts": {"encode": 0.02, "diffuse": 0.05, "decode": 0.03}},
    }
    other = {"seconds_per_image": 2.0, "steps": 8, "timing": {"parts": {"diffuse": 2.0}}}
    found = throughput({"latent": cost, "pixel": other}, {"latent": 0.1, "pixel": 2.0})
    assert found["latent_against_pixel"] == pytest.approx(20) and found["reached"]
    assert found["denoising_alone"] == pytest.approx(40) and found["from_stored_latents"] == pytest.approx(25)
    assert throughput({"latent": cost}, {}) == {}


def test_the_curve_takes_every_place_in_turn() -> None:
    cases = [Case.of(pair(k, place="a" if k < 3 else "b"), k) for k in range(4)]
    assert [case.number for case in one_a_place(cases, 3)] == [0, 3, 1]


def test_names_become_files() -> None:
    assert file_name("image one/00000_00112~3") == "image_one_00000_00112_3.tif"
