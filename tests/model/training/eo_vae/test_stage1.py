"""Stage 1 on synthetic teachers in both key layouts: it converges, and what it writes is the teacher on RGB."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from jobs.distill import Options, main
from model.eo_vae import EOVAE, EOVAEConfig
from model.layouts import STATIC_ENDS, is_dynamic
from model.training.checkpoint import Store
from model.training.eo_vae.stage1 import (
    WAVELENGTHS,
    Distillation,
    Teacher,
    distil_teacher,
    generated,
    loss_of,
    metadata,
    read_teacher,
    save_distilled,
)
from model.weights import WeightsError, load_weights
from tests.model.test_weights import to_diffusers
from tests.model.training.batches import TINY

State = dict[str, Tensor]


def flux(config: EOVAEConfig, seed: int = 3) -> State:
    """A FLUX.2 autoencoder of these sizes, its ends initialised as PyTorch does, its statistics not trivial."""
    torch.manual_seed(seed)
    vae = EOVAE(config)
    assert vae.bn.running_mean is not None and vae.bn.running_var is not None
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    first, last = nn.Conv2d(3, config.ch, 3), nn.Conv2d(config.ch, 3, 3)
    ends = (first.weight, first.bias, last.weight, last.bias)
    state = {key: tensor.clone() for key, tensor in vae.state_dict().items() if not is_dynamic(key)}
    return state | {key: p.detach().clone() for key, p in zip(STATIC_ENDS, ends, strict=True) if p is not None}


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_teacher_is_read_in_either_layout(layout: str, tmp_path: Path) -> None:
    state = flux(TINY)
    path = tmp_path / "ae.safetensors"
    stored = to_diffusers(state, len(TINY.ch_mult)) if layout == "diffusers" else state
    save_file({key: tensor.contiguous() for key, tensor in stored.items()}, path)
    vae, teacher = read_teacher(path, TINY)
    assert all(torch.equal(a, state[key]) for a, key in zip(teacher.tensors, STATIC_ENDS, strict=True))
    assert all(torch.equal(vae.state_dict()[k], t) for k, t in state.items() if k not in STATIC_ENDS)


def test_distilled_weights_are_the_teacher_on_rgb(tmp_path: Path) -> None:
    state = flux(TINY)
    save_file(state, tmp_path / "ae.safetensors")
    vae, teacher = read_teacher(tmp_path / "ae.safetensors", TINY)
    before = teacher.errors(vae)
    errors = distil_teacher(vae, teacher, Distillation(steps=200, lr=3e-3, warmup=20))
    assert sum(errors.values()) / 4 < 1e-2 < min(before.values())
    out = tmp_path / "eo_vae.safetensors"
    save_distilled(vae, out, errors, "distilled", "a test's")
    loaded = load_weights(out)
    for key, tensor in state.items():  # the body and the batch norm's statistics, to the bit
        if key not in STATIC_ENDS:
            assert torch.equal(loaded.state_dict()[key], tensor), key
    assert loaded.meta is not None and loaded.meta.sensors["S2RGB"].wavelengths == WAVELENGTHS
    assert loaded.meta.metrics["distillation"] == pytest.approx(errors)
    # FLUX.2's own forward pass, with its static convolutions
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    weight, bias, last, last_bias = (state[key] for key in STATIC_ENDS)
    with torch.no_grad():
        z = loaded.encoder.body(F.conv2d(x, weight, bias, padding=1)).chunk(2, 1)[0]
        expected = F.conv2d(loaded.decoder.body(z), last, last_bias, padding=1)
        got = loaded.decode(loaded.encode(x, WAVELENGTHS).mode(), WAVELENGTHS)
    assert float((got - expected).norm() / expected.norm()) < 0.02


def test_the_decoders_bias_is_matched_at_inferences_scale() -> None:
    """The published script compared it before the second scaling by 0.1."""
    vae = EOVAE(TINY)
    bias = generated(vae)[3]
    raw = vae.decoder.conv_out._generate(WAVELENGTHS)[1]
    assert torch.allclose(bias, 0.01 * raw) and not torch.allclose(bias, 0.1 * raw)


def test_losses_by_hand() -> None:
    vae = EOVAE(TINY)
    got = tuple(t.detach() for t in generated(vae))
    teacher = Teacher(tuple(2 * t for t in got))  # type: ignore[arg-type]
    assert float(loss_of(generated(vae), teacher, "relative").detach()) == pytest.approx(4 * 0.25, rel=1e-5)
    by_hand = sum(float(t.square().mean()) for t in got)
    assert float(loss_of(generated(vae), teacher, "published").detach()) == pytest.approx(by_hand, rel=1e-5)
    assert teacher.errors(vae)["decoder bias"] == pytest.approx(0.5, rel=1e-5)


def test_published_settings_to_the_number() -> None:
    how = Distillation.published()
    assert (how.steps, how.lr, how.final_lr, how.weight_decay, how.loss) == (5000, 1e-4, 1e-6, 1e-5, "published")
    assert WAVELENGTHS == (0.665, 0.560, 0.490)


def test_only_the_generators_change_and_a_run_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ae.safetensors"
    save_file(flux(TINY), path)
    how = Distillation(steps=9, checkpoint_steps=4)
    vae, teacher = read_teacher(path, TINY)
    start = {key: tensor.clone() for key, tensor in vae.state_dict().items()}
    distil_teacher(vae, teacher, how)
    assert {k for k, t in vae.state_dict().items() if not torch.equal(t, start[k])} <= set(filter(is_dynamic, start))

    class Stop(Store):
        def save(self, write, total, metrics):  # type: ignore[no-untyped-def]
            super().save(write, total, metrics)
            if total == 4:
                raise KeyboardInterrupt

    second, _ = read_teacher(path, TINY)
    with pytest.raises(KeyboardInterrupt):
        distil_teacher(second, teacher, how, keeper=Stop(str(tmp_path / "run")))
    third, _ = read_teacher(path, TINY, seed=5)
    distil_teacher(third, teacher, how, keeper=Store(str(tmp_path / "run")))
    assert all(torch.equal(t, vae.state_dict()[k]) for k, t in third.state_dict().items())


def test_what_is_no_teacher_is_named(tmp_path: Path) -> None:
    vae = EOVAE(TINY)
    save_distilled(vae, tmp_path / "own.safetensors", {}, "x", "y")
    with pytest.raises(WeightsError, match=r"no FLUX\.2 autoencoder"):
        read_teacher(tmp_path / "own.safetensors", TINY)
    assert metadata(vae, {}, "x", "y").config == TINY


def test_job_writes_weights_and_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path, recipe, out = tmp_path / "ae.safetensors", tmp_path / "tiny.yaml", tmp_path / "out.safetensors"
    save_file(flux(TINY), path)
    recipe.write_text(
        yaml.safe_dump({"config": TINY.to_dict(), "stages": [dict(name="s", batch=1, patch=32, steps=1)]})
    )
    options = Options(str(path), str(out), str(recipe), steps=3, threads=1, storage=str(tmp_path / "runs"))
    with caplog.at_level("INFO"):
        assert main(options) == 0
    assert load_weights(out).config == TINY and "give it more --steps" in caplog.text
    assert main(options) == 2 and "--resume goes on with it" in capsys.readouterr().err
    assert main(replace(options, resume=True, steps=4)) == 2 and "begun with steps 3" in capsys.readouterr().err
    assert main(replace(options, resume=True)) == 0
    assert main(replace(options, teacher=str(out), name="other")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "no FLUX.2 autoencoder" in said


def test_the_teacher_and_what_is_written_may_lie_on_s3(
    tmp_path: Path, s3_server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """So that the stages chain from node to node without a shared disk."""
    bucket, recipe = s3_server.bucket(), tmp_path / "tiny.yaml"
    save_file(flux(TINY), tmp_path / "ae.safetensors")
    fsspec.filesystem("s3").put_file(str(tmp_path / "ae.safetensors"), f"{bucket}/ae.safetensors")
    recipe.write_text(
        yaml.safe_dump({"config": TINY.to_dict(), "stages": [dict(name="s", batch=1, patch=32, steps=1)]})
    )
    out = f"s3://{bucket}/weights/start.safetensors"
    options = Options(
        f"s3://{bucket}/ae.safetensors", out, str(recipe), steps=3, threads=1, storage=f"s3://{bucket}/runs"
    )  # fmt: skip
    assert main(options) == 0
    there, final = load_weights(out), load_weights(f"s3://{bucket}/runs/distilled/final/start.safetensors")
    assert there.config == TINY and there.meta is not None and there.meta == final.meta
    for wrong, said in (
        (replace(options, teacher=f"s3://{bucket}/none.safetensors"), f"no such weights file: s3://{bucket}/none"),
        (replace(options, teacher=out, name="other"), f"{out}: no FLUX.2 autoencoder"),
        (replace(options, out=f"s3://{bucket}"), "names no file"),
        (replace(options, out="nowhere://a/b"), "--out nowhere://a/b: "),
    ):
        assert main(wrong) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and said in error, error


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_default_steps_converge_at_full_size() -> None:
    """The generators as published, 11.5 million parameters; the body takes no part and is left small."""
    torch.set_num_threads(1)  # of two, each waits for the other wherever another test has a core
    config = EOVAEConfig(ch_mult=(1,), num_res_blocks=1)
    torch.manual_seed(0)
    vae = EOVAE(config)
    state = flux(config)
    teacher = Teacher(tuple(state[key] for key in STATIC_ENDS))  # type: ignore[arg-type]
    errors = distil_teacher(vae, teacher, Distillation())
    assert sum(errors.values()) / 4 < 1e-2
