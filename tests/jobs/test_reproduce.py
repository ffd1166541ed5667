"""The paper's chain on miniature shards: whole, killed at every joint and gone on with to the same bits, refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import yaml
from safetensors.torch import save_file

from jobs import evaluate, reproduce
from jobs.reproduce import Options, main
from model.sensors import CORRECTED, SENSORS
from model.training.chain import STATE, Chain
from model.training.checkpoint import Store
from model.training.eo_vae.task import EOVAETask
from model.weights import load_weights
from tests.model.training.earlier_runs import MINIMAL
from tests.model.training.eo_vae.test_stage1 import flux
from tests.model.training.shards import make_shards

MODALITIES = ("S2RGB", "S2L2A", "S1RTC")
STAGES = [
    dict(name="stage2", steps=6, batch=2, patch=32, schedule="warmup_cosine", warmup=1, margin=0, sample=True,
         loss={"charbonnier": 1.0}),
]  # fmt: skip
READS_SHARDS = "terramesh" in {field.name for field in fields(evaluate.Options)}


class Killed(BaseException):
    """What a kill is to a job that runs in this process."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two small shards, one to train and one to validate, a teacher, and a short recipe."""
    root = tmp_path_factory.mktemp("paper")
    make_shards(root / "TerraMesh", MODALITIES, (6, 4), root / "scratch")
    for modality in MODALITIES:
        target = root / "TerraMesh" / "val" / modality
        target.mkdir(parents=True)
        source = root / "TerraMesh" / "train" / modality / "majortom_shard_000002.tar"
        source.rename(target / "majortom_shard_000001.tar")
    save_file(flux(MINIMAL), root / "ae.safetensors")
    named = f"[{','.join(MODALITIES)}]/majortom_shard_{{000001..000001}}.tar"
    recipe = dict(
        config=MINIMAL.to_dict(), shards=f"train/{named}", held_out_shards=f"val/{named}", stages=STAGES, ema=0, seed=1,
        precision="fp32", division="shares", augment="symmetries", checkpoint_steps=2, dtype="float32", corrected=True,
    )  # fmt: skip
    (root / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    return root


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def options(world: Path, folder: Path) -> Options:
    return Options(
        out=str(folder / "out"), name="tiny", teacher=str(world / "ae.safetensors"), data=str(world / "TerraMesh"),
        recipe=str(world / "tiny.yaml"), storage=str(folder / "runs"), distil_steps=6, workers=0, threads=1,
    )  # fmt: skip


def noted(shards: str, weights: str, out: Path, **how: Any) -> None:
    """In place of the evaluation: what it was asked."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps({"shards": shards, "weights": weights, **how}))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reproduce, "score", noted)


def refused(options: Options, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(options) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: "), said
    return said


@pytest.fixture(scope="module")
def calm(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chain that nothing happens to: the folder with its `out` and `runs`."""
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce, "score", noted)
        assert main(options(world, folder)) == 0
    return folder


@pytest.mark.slow
def test_one_command_does_the_three_stages(world: Path, calm: Path) -> None:
    out = calm / "out"
    assert {path.name for path in out.iterdir()} == {
        "tiny-distil.safetensors", "tiny.safetensors", "tiny.json", "tiny-evaluation",
    }  # fmt: skip
    start, end = load_weights(out / "tiny-distil.safetensors"), load_weights(out / "tiny.safetensors")
    assert start.meta is not None and "distillation" in start.meta.metrics
    assert end.meta is not None and end.meta.name == "tiny" and set(end.meta.sensors) == set(MODALITIES)
    assert end.meta.metrics["started_from"] == "tiny-distil.safetensors"
    key = "encoder.conv_out.weight"
    assert not torch.equal(start.state_dict()[key], end.state_dict()[key])
    asked = json.loads((out / "tiny-evaluation" / "report.json").read_text())
    assert asked["shards"].endswith("val/[S2RGB,S2L2A,S1RTC]/majortom_shard_{000001..000001}.tar")
    assert asked["corrected"] and asked["side"] == 32 and asked["limit"] is None
    assert asked["weights"] == str(calm / "runs" / "tiny-finetune" / "final" / "tiny.safetensors")
    assert set(json.loads((calm / "runs" / "tiny" / STATE).read_text())) == {"distil", "finetune", "evaluate"}


def test_the_weights_carry_the_statistics_of_corrected_data(calm: Path) -> None:
    meta = load_weights(calm / "out" / "tiny.safetensors").meta
    assert meta is not None
    for name, sensor in {**SENSORS, **CORRECTED}.items():
        if name in meta.sensors:
            assert (meta.sensors[name].mean, meta.sensors[name].std) == (sensor.mean, sensor.std)
    recipe = meta.metrics["recipe"]
    assert isinstance(recipe, dict) and recipe["corrected"] is True


def kill(patch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool], *, after: bool = False) -> None:
    """Have a method killed the first time that `when` says so of its arguments, before or `after` its work."""
    whole = getattr(owner, name)

    def cut_short(*args: Any, **kwargs: Any) -> Any:
        now = when(*args, **kwargs)
        if now and not after:
            raise Killed
        result = whole(*args, **kwargs)
        if now:
            raise Killed
        return result

    patch.setattr(owner, name, cut_short)


@pytest.mark.slow
def test_killed_at_every_joint_it_ends_as_if_nothing_had_been(
    world: Path, calm: Path, tmp_path: Path, scored: None, caplog: pytest.LogCaptureFixture
) -> None:
    steps = 0

    def fourth_step(*_: Any) -> bool:
        nonlocal steps
        steps += 1
        return steps == 4

    def stage(name: str) -> Callable[..., bool]:
        return lambda chain, which, *_: which == name

    cuts: list[tuple[Any, str, Callable[..., bool], bool]] = [
        (Store, "save", lambda *_: True, False),  # in stage 1, with nothing saved
        (Chain, "note", stage("distil"), False),  # its weights are written, which nobody noted
        (Chain, "note", stage("distil"), True),
        (EOVAETask, "loss", fourth_step, False),  # in stage 2, beyond a checkpoint
        (Store, "save", lambda store, write, total, _: total == 4, True),
        (Chain, "note", stage("finetune"), False),
        (reproduce, "score", lambda *_, **__: True, True),
        (Chain, "note", stage("evaluate"), False),
    ]
    asked = options(world, tmp_path)
    with caplog.at_level("INFO"):
        for owner, name, when, after in cuts:
            with pytest.MonkeyPatch.context() as patch:
                kill(patch, owner, name, when, after=after)
                with pytest.raises(Killed):
                    main(asked)
            asked = replace(asked, resume=True)
        assert main(asked) == 0
    assert "going on from step 2" in caplog.text and "finetune is finished" in caplog.text
    for file in ("tiny-distil.safetensors", "tiny.safetensors"):
        ours, theirs = (load_weights(folder / "out" / file).state_dict() for folder in (tmp_path, calm))
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_what_is_finished_is_left_and_what_is_gone_is_written_again(
    world: Path, calm: Path, tmp_path: Path, scored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(calm, tmp_path, dirs_exist_ok=True)
    again = replace(options(world, tmp_path), resume=True)
    before = (tmp_path / "out" / "tiny.safetensors").read_bytes()
    # the evaluation looks at weights where they lie: a moved storage is evaluated anew, nothing is trained anew
    with monkeypatch.context() as patch:
        patch.setattr("jobs.distill.run", None)
        patch.setattr("jobs.finetune.run", None)
        (tmp_path / "out" / "tiny.safetensors").unlink()  # still in the storage
        assert main(again) == 0 and (tmp_path / "out" / "tiny.safetensors").read_bytes() == before
        assert main(replace(again, limit=2)) == 0
    report = json.loads((tmp_path / "out" / "tiny-evaluation" / "report.json").read_text())
    assert report["limit"] == 2
    (tmp_path / "runs" / "tiny-finetune" / "final" / "tiny.safetensors").unlink()
    assert main(again) == 0
    ours, theirs = (load_weights(folder / "out" / "tiny.safetensors").state_dict() for folder in (tmp_path, calm))
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())


def test_a_used_name_is_refused_with_the_way_out(
    world: Path, calm: Path, tmp_path: Path, scored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    used = options(world, calm)
    assert "tiny-distil holds a run of this name: --resume goes on with it, another --name" in refused(used, capsys)
    assert "begun with steps None, now it is 3" in refused(replace(used, resume=True, steps=3), capsys)
    nothing = replace(options(world, tmp_path), resume=True)
    assert "tiny holds no run to resume" in refused(nothing, capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, "--teacher is missing"),
        ({"data": None}, "--data is missing"),
        ({"limit": 0}, "--limit 0 must be 1 or more"),
        ({"recipe": "nano"}, "recipe nano states no shards"),
        ({"recipe": "none"}, "no recipe none"),
        ({"data": "nowhere"}, "no folder nowhere: give"),
        ({"test_shards": "val/majortom_shard_000001.tar"}, "name no modalities"),
        ({"test_shards": "test/[S2L2A]/x.tar"}, "S2L2A/x.tar"),
        ({"teacher": "nowhere/ae.safetensors"}, "no such weights file"),
        ({"out": "nowhere://a/b"}, "nowhere://a/b"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_begins(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    assert message in refused(replace(options(world, tmp_path), **changes), capsys)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_all_of_it_may_lie_on_s3(
    world: Path, calm: Path, s3_server: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket = s3_server.bucket()
    monkeypatch.setattr(reproduce, "score", noted)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.put(str(world / "TerraMesh"), f"{bucket}/TerraMesh", recursive=True)
    asked = replace(
        options(world, tmp_path),
        out=f"s3://{bucket}/out",
        storage=f"s3://{bucket}/runs",
        data=f"s3://{bucket}/TerraMesh",
    )
    with pytest.MonkeyPatch.context() as patch:
        kill(patch, Chain, "note", lambda chain, which, *_: which == "finetune")
        with pytest.raises(Killed):
            main(asked)
    assert main(replace(asked, resume=True)) == 0
    ours, theirs = load_weights(f"s3://{bucket}/out/tiny.safetensors"), load_weights(calm / "out" / "tiny.safetensors")
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())
    fs.invalidate_cache()
    assert fs.exists(f"{bucket}/out/tiny-evaluation/report.json") and fs.exists(f"{bucket}/out/tiny.json")


@pytest.mark.skipif(not READS_SHARDS, reason="needs evaluate --terramesh")
def test_the_figures_are_those_of_the_shards(world: Path, calm: Path, tmp_path: Path) -> None:
    shards = f"{world}/TerraMesh/val/[S2RGB,S2L2A,S1RTC]/majortom_shard_{{000001..000001}}.tar"
    weights = str(calm / "out" / "tiny.safetensors")
    reproduce.score(shards, weights, tmp_path, side=32, corrected=True, limit=2, threads=1)
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["sensors"]) == set(MODALITIES) and not report["terramesh"]["warnings"]
    assert {found["samples"] for found in report["sensors"].values()} == {2}


def test_the_cost_is_written_beside_nothing_else(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = replace(options(world, tmp_path), cost=True, teacher=None, data=None, gpus=4, gpu_tflops=2.0)
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "assumed (--gpu-tflops)" in said and "measured here" in said and "4 such GPUs" in said
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"cost.json"}
    found = json.loads((tmp_path / "out" / "cost.json").read_text())
    assert found["recipe"]["steps"] == 6 and found["assumed"]["gpus"] == 4
    assert "gpus 0 must be above 0" in refused(replace(asked, gpus=0), capsys)
