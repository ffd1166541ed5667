"""Models for a plan: precision ladder, halved batches, numerics that a resumed store goes on with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from eocube.errors import InputError
from eocube.ground.boxes import parse_interval
from eocube.products import registry
from eocube.products.base import Ask, models_of
from eocube.products.eo_vae import DTYPES, GPU_BATCH, LADDER, gpu_batch, load, numerics
from eocube.products.half_batches import HalfBatches
from eocube.products.registry import WEIGHTS
from eocube.products.spec import Actor
from eocube.products.storage import Affine16, Half
from eocube.run.asked import Running, Selection
from eocube.run.job import as_before, as_stored
from eocube.run.request import PRECISIONS, Request, fastest_on_cpu, product_of, settled
from eocube.sensors import get_sensor
from tests.eocube.cubes import make_plan, make_weights

ASKED = Selection(boxes=((11.3, 48, 11.4, 48.1),), interval=parse_interval("2024-06-01"), out="cube.zarr")


class Filling:
    """An encoder on a device that holds so many windows at once."""

    channels, stride = 4, 8

    def __init__(self, holds: int) -> None:
        self.holds = holds
        self.calls: list[int] = []

    def __call__(self, pixels: Mapping[int, torch.Tensor]) -> torch.Tensor:
        batch = pixels[10].shape[0]
        self.calls.append(batch)
        if batch > self.holds:
            raise torch.OutOfMemoryError("tried to allocate 20.00 GiB")
        return pixels[10][:, :1].repeat(1, 4, 1, 1)[:, :, ::8, ::8]


def test_out_of_memory_halves_the_batch_once_and_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    inner = Filling(holds=4)
    encoder = HalfBatches(inner)
    pixels = {10: torch.arange(7.0)[:, None, None, None].expand(7, 2, 16, 16)}
    with caplog.at_level(logging.WARNING, "eocube.products.half_batches"):
        latents = encoder(pixels)
    assert latents[:, 0, 0, 0].tolist() == list(range(7)) and inner.calls == [7, 4, 3]
    assert encoder.halved and "batches of 7" in caplog.text
    assert torch.equal(encoder(pixels), latents) and inner.calls[3:] == [4, 3], "halves from now on, without a try"
    inner.holds = 1
    with pytest.raises(torch.OutOfMemoryError):
        encoder(pixels)


def test_one_window_cannot_be_halved() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        HalfBatches(Filling(holds=0))({10: torch.zeros(1, 1, 16, 16)})


def test_storable_is_finite_and_within_float16() -> None:
    latents = torch.zeros(5, 4, 3, 3)
    latents[1, 2, 0, 1] = float("nan")
    latents[2, 0, 2, 2] = -float("inf")
    latents[3, 3, 1, 1] = 7e4
    latents[4, 3, 1, 1] = -65504
    assert Half().sound(latents) == [True, False, False, False, True]


def test_a_resumed_store_goes_on_with_the_kernels_it_was_begun_with(tmp_path: Path) -> None:
    weights = load(str(make_weights(tmp_path / "tiny.safetensors")))
    plan = make_plan(Path(weights.source))
    for recorded, expected in (({"kernels": "torch"}, {"torch"}), ({}, {numerics("cpu")["kernels"]})):
        models = models_of(registry.open(plan.product), "cpu", recorded)
        assert {make().kernels for make in models.encoders.values()} == expected  # type: ignore[attr-defined]
        assert models.batch == 1


def test_the_ladder_ends_in_float32_and_knows_every_precision() -> None:
    assert set(LADDER) == set(DTYPES) == set(PRECISIONS) - {"auto"}
    assert all(steps[0] == name and steps[-1] == "fp32" for name, steps in LADDER.items())


def test_numerics_say_what_decides_a_bit() -> None:
    cpu = numerics("cpu", 32)
    assert cpu["batch"] == 1 and cpu["device"] == "cpu"
    assert cpu["kernels"] == "torch" or cpu["kernels"].startswith("native-")
    assert numerics("cuda", 32)["batch"] == 32 and numerics("cuda")["batch"] == GPU_BATCH


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_without_a_gpu_here_the_batch_is_the_fixed_one() -> None:
    weights = load("nano")
    sensor = Request.parse(ASKED, Running(), on_gpu=False).sensor
    assert gpu_batch(weights, sensor, 10, 256, "fp16", Actor()) == GPU_BATCH
    assert gpu_batch(weights, sensor, 10, 256, "fp16", Actor(windows=81)) == 9


def test_precision_is_the_machines_unless_one_is_asked_for() -> None:
    assert Request.parse(ASKED, Running(), on_gpu=False).precision == fastest_on_cpu()
    assert Request.parse(replace(ASKED, precision="auto"), Running(), on_gpu=True).precision == "fp16"
    assert Request.parse(replace(ASKED, precision="fp32"), Running(), on_gpu=True).precision == "fp32"


def test_a_store_keeps_its_precision_on_another_machine(tmp_path: Path) -> None:
    plan = make_plan(make_weights(tmp_path / "tiny.safetensors"))
    other = Request.parse(replace(ASKED, precision="bf16"), Running(), on_gpu=False)
    automatic = replace(other, precision_stated=False)
    stored = plan.product.precision
    assert as_stored(automatic, [plan]).precision == stored
    assert as_stored(automatic, []).precision == "bf16"
    coded = replace(plan, request={**plan.request, "storage": "codes", "quality": "small"})
    assert (as_stored(other, [coded]).storage, as_stored(other, [coded]).quality) == ("codes", "small")
    asked = Request.parse(replace(ASKED, storage="fp16"), Running(), on_gpu=False)
    assert (as_stored(asked, [coded]).storage, as_stored(asked, [coded]).quality) == ("fp16", None)
    fine = Request.parse(replace(ASKED, storage="codes", quality="near-lossless"), Running(), on_gpu=False)
    assert as_stored(fine, [coded]).quality == "near-lossless"
    finer = as_stored(Request.parse(replace(ASKED, quality="near-lossless"), Running(), on_gpu=False), [plan])
    assert (finer.storage, finer.quality) == (None, "near-lossless"), "codes, to be told as what the store is not"
    assert as_stored(other, [plan]).precision == "bf16", "asked for: the difference is for the user to see"
    half = replace(plan, product=replace(plan.product, meaning={**plan.product.meaning, "precision": "fp16"}))
    assert as_stored(automatic, [half]).precision == "bf16", "no float16 on a CPU by accident"


def test_a_store_keeps_its_weights_and_storage_unless_others_are_asked_for(tmp_path: Path) -> None:
    plan = make_plan(make_weights(tmp_path / "tiny.safetensors"))
    was = {**plan.request, "weights": "nano", "storage": "fp16", "precision": "fp32"}
    plain = Request.parse(ASKED, Running(), on_gpu=False)
    assert (plain.weights, plain.storage) == (WEIGHTS, None)
    for found in (as_stored(plain, [replace(plan, request=was)]), as_before(plain, was)):
        assert (found.weights, found.storage, found.quality, found.precision) == ("nano", "fp16", None, "fp32")
    stated = Request.parse(replace(ASKED, weights=WEIGHTS, storage="codes"), Running(), on_gpu=False)
    assert (as_before(stated, was).weights, as_before(stated, was).storage) == (WEIGHTS, "codes")
    other = {**was, "product": "tokens"}
    assert as_before(plain, other).weights == WEIGHTS, "another kind's weights are no choice of this one's"
    assert as_stored(plain, [plan]).storage == plan.product.storage.name, "of a store that does not say"


def test_the_default_is_codes_by_weights_that_have_steps(tmp_path: Path) -> None:
    tiny = str(make_weights(tmp_path / "tiny.safetensors"))
    plain = Request.parse(ASKED, Running(), on_gpu=False)
    for request, name, quality in (
        (plain, "codes", 1.0),
        (Request.parse(replace(ASKED, quality="small"), Running(), on_gpu=False), "codes", 2.0),
        (Request.parse(replace(ASKED, weights="nano"), Running(), on_gpu=False), "codes", 1.0),
        (Request.parse(replace(ASKED, storage="fp16"), Running(), on_gpu=False), "fp16", None),
        (Request.parse(replace(ASKED, weights=tiny, bands=("B02", "B03")), Running(), on_gpu=False), "fp16", None),
    ):
        product = product_of(request)
        assert product.storage.name == name == settled(request, product).storage
        assert settled(request, product).document()["storage"] == name
        if isinstance(product.storage, Affine16):
            entry = load(request.weights).meta.coded("S2L2A", request.sensor.band_names)
            assert entry is not None and entry.code_steps is not None and quality is not None
            assert product.storage.scale == tuple(quality * step for step in entry.code_steps)
    asked = Ask(get_sensor("S2L2A").subset(["B02", "B03"]), 10, tiny, "fp32", "codes", "cpu")
    with pytest.raises(InputError, match="carry no steps for B02, B03 of S2L2A; take --storage fp16"):
        registry.kind("eo-vae").plan(asked)
    with pytest.raises(InputError, match="carry no steps"):
        registry.kind("eo-vae").plan(replace(asked, storage=None, quality="small"))


@pytest.mark.parametrize("storage", (None, "fp16", "codes", "int8"))
@pytest.mark.parametrize("weights", ("nano", "nano2", "tiny"))
def test_a_plan_alone_is_of_the_same_product_without_the_network(
    weights: str, storage: str | None, tmp_path: Path
) -> None:
    named = str(make_weights(tmp_path / "tiny.safetensors")) if weights == "tiny" else weights
    sensor = get_sensor("S2L2A").subset(["B02", "B03", "B04", "B08"])
    kind, ask = registry.kind("eo-vae"), Ask(sensor, 10, named, "fp32", storage, "cpu")
    if weights == "tiny" and storage == "codes":
        for given in (ask, replace(ask, only_plans=True)):
            with pytest.raises(InputError, match="carry no steps"):
                kind.plan(given)
        return
    made = kind.plan(ask)
    planned = kind.plan(replace(ask, only_plans=True))
    assert planned == made and planned.space_id == made.space_id


@pytest.mark.parametrize(("harm", "said"), (("cut", "truncated"), ("nan", "not finite"), ("none", "no such weights")))
def test_a_plan_alone_says_what_is_wrong_with_weights(harm: str, said: str, tmp_path: Path) -> None:
    path = make_weights(tmp_path / "w.safetensors")
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "none":
        path.unlink()
    else:
        content = path.read_bytes()
        path.write_bytes(content[:-4] + b"\xff\xff\xff\x7f")
    ask = Ask(get_sensor("S2L2A"), 10, str(path), "fp32", None, "cpu", only_plans=True)
    with pytest.raises(InputError, match=said):
        registry.kind("eo-vae").plan(ask)
