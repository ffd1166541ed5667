"""A sensor of one's own from end to end: finetuned, told what it is worth and what to type next, evaluated."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from jobs import evaluate, finetune
from tests.model.training.batches import TINY
from tests.model.training.finetuning import short_finetuning


@pytest.mark.slow
def test_a_finetuning_ends_by_saying_what_it_wrote_and_evaluate_measures_the_ground_it_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = short_finetuning(tmp_path, config=replace(TINY, ch_mult=(1, 1, 1, 1)))
    assert finetune.main(options) == 0
    said = capsys.readouterr().out
    assert f"written: {options.out}, figures in " in said and "held out, Dove4: charbonnier" in said
    assert f"jobs/evaluate.py --weights {options.out} --sensor {options.sensor}" in said
    assert f"encode --sensor {options.sensor} --weights {options.out}" in said

    words = ["--weights", options.out, "--sensor", str(options.sensor), "--data", options.data, "--recipe"]
    words += [str(options.recipe), "--out", str(tmp_path / "report")]
    assert evaluate.command(words) == 0
    shown = capsys.readouterr().out
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "| dove |" in shown and (tmp_path / "report" / "report.md").read_text() in shown
    assert report["sensor"] == "Dove4" and report["unit"] == "reflectance" and report["patches"] > 0
    ours, klt, means = report["rows"].values()
    assert next(iter(report["rows"])) == "dove" and klt["rmse"] < means["rmse"], "the KLT holds more than a mean"
    for row in (ours, klt, means):
        assert row["psnr"] == pytest.approx(-20 * math.log10(row["rmse"]), abs=1e-6)
        squares = [value**2 for value in row["by_band"].values()]
        assert math.sqrt(sum(squares) / len(squares)) == pytest.approx(row["rmse"], rel=1e-5)
    # The same ground as finetuning held out: its own figure comes out again.
    held = json.loads(Path(options.out).with_suffix(".json").read_text())["held_out"]["Dove4"]
    assert ours["rmse_z"] == pytest.approx(held["rmse"], rel=0.1)


def test_what_does_not_go_together_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sensor = tmp_path / "my.yaml"
    sensor.write_text("name: x")
    assert evaluate.command(["--sensor", str(sensor), "--terramesh", "x", "--out", str(tmp_path / "r")]) == 2
    assert "--sensor goes with --data" in capsys.readouterr().err
