"""Runs begun before the loop knew tasks go on to the same end, and the same runs done anew come to it as well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from model.training.tracking import read_history
from tests.model.training.earlier_runs import KINDS, RUNS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begun", [True, False], ids=["resumed", "anew"])
def test_an_earlier_run_ends_as_it_did(kind: str, begun: bool, tmp_path: Path) -> None:
    """On the machine that recorded them the bits are the same. Elsewhere sums are rounded otherwise, of which Muon and
    Adam make more: figures to 1e-3, weights to 2 % of what training moved them by."""
    make, kept = KINDS[kind]
    shutil.unpack_archive(RUNS / f"{kind}.zip", tmp_path / "recorded")
    recorded, folder = tmp_path / "recorded", tmp_path / "again"
    folder.mkdir()
    before = torch.load(recorded / "run" / f"checkpoint_{kept:09d}" / "state.pt", weights_only=True)["network"]
    if begun:
        (recorded / "run").rename(folder / "run")
    torch.set_num_threads(1)
    state = make(folder)
    expected, lines = json.loads((recorded / "history.json").read_text()), read_history(str(folder / "run"))
    # stage 1 notes more of each step than it did
    expected, lines = ([line for line in which if "loss" in line or "score" in line] for which in (expected, lines))
    assert [(line["step"], line["stage"]) for line in lines] == [(line["step"], line["stage"]) for line in expected]
    for line, known in zip(lines, expected, strict=True):
        same = {"loss"} if kind == "distillation" and "loss" in known else set(known) - {"stage"}
        assert {key: line[key] for key in same} == pytest.approx({key: known[key] for key in same}, rel=1e-3)
    end = torch.load(recorded / "end.pt", weights_only=True)
    assert list(state) == list(end)
    ends = {"first.": "encoder.conv_in.", "last.": "decoder.conv_out."}  # stage 1 kept the generators alone
    before = {next((k.replace(a, b, 1) for a, b in ends.items() if k.startswith(a)), k): v for k, v in before.items()}
    trained = [key for key in before if key in end and end[key].is_floating_point()]
    moved = torch.cat([(end[key] - before[key]).flatten() for key in trained])
    apart = torch.cat([(state[key] - end[key]).flatten() for key in trained])
    assert float(moved.norm()) > 0 and float(apart.norm()) <= 0.02 * float(moved.norm())
