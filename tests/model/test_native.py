"""The compiled kernels: equal to float64 arithmetic, the same bits on any number of threads, dispensable."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import native
from model.fused import cpu_steps
from model.native import NativeSteps, NativeUnavailableError, Norm, Steps, TorchSteps, native_steps

EPSILON = {torch.float32: 2e-6, torch.bfloat16: 4e-3}


@pytest.fixture(scope="module")
def kernels() -> NativeSteps:
    try:
        return native_steps()
    except NativeUnavailableError as error:
        pytest.skip(f"no kernels on this machine: {error}")


def random(*shape: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale + shift
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def affine(channels: int, groups: int) -> Norm:
    return Norm(random(channels, seed=1), random(channels, seed=2), groups, 1e-6)


def exact(x: Tensor, norm: Norm, silu: bool) -> Tensor:
    y = F.group_norm(x.double().contiguous(), norm.groups, norm.weight.double(), norm.bias.double(), norm.eps)
    return F.silu(y) if silu else y


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize(
    ("channels", "groups", "side", "images"),
    [(32, 2, 64, 1), (8, 4, 16, 3), (128, 32, 33, 2), (20, 5, 7, 1), (3, 1, 1, 1)],
)
def test_norms_equal_float64(
    kernels: NativeSteps, dtype: torch.dtype, silu: bool, channels: int, groups: int, side: int, images: int
) -> None:
    x = random(images, channels, side, side, scale=3, shift=2).to(dtype)
    norm = affine(channels, groups)
    for steps in (kernels, TorchSteps()):
        kept = x.clone(memory_format=torch.preserve_format)
        found = steps.norm(x, norm, silu=silu)
        assert torch.equal(x, kept), "the input is left as it was"
        assert relative(found, exact(x, norm, silu)) < EPSILON[dtype] * (1 if steps is kernels else 2)
    assert torch.equal(kernels.norm(x.clone(), norm, silu=silu, in_place=True), kernels.norm(x, norm, silu=silu))


def test_values_far_from_zero_and_fields_without_any_spread(kernels: NativeSteps) -> None:
    """A spread of 1 on 10,000: a variance as mean of squares less square of the mean would have no digit left."""
    norm = affine(8, 2)
    far = random(1, 8, 64, 64, shift=10_000)
    assert relative(kernels.norm(far, norm, silu=True), exact(far, norm, True)) < 1e-3
    flat = torch.full((1, 8, 16, 16), 7.0).contiguous(memory_format=torch.channels_last)
    found = kernels.norm(flat, norm, silu=False)
    torch.testing.assert_close(found, norm.bias.reshape(1, -1, 1, 1).expand_as(found), rtol=0, atol=1e-6)


def test_one_value_that_is_none_spoils_the_image_and_no_other(kernels: NativeSteps) -> None:
    """What the precision guard relies on."""
    norm = affine(8, 2)
    for bad in (float("nan"), float("inf"), -float("inf")):
        x = random(2, 8, 16, 16)
        x[0, 3, 5, 5] = bad
        found = kernels.norm(x, norm, silu=True)
        assert not found[0, :4].isfinite().any()
        assert found[1].isfinite().all()
    assert kernels.softmax(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]), 1.0).isfinite().tolist() == [
        [False, False],
        [True, True],
    ]


def test_silu_over_its_whole_range(kernels: NativeSteps) -> None:
    """Through a norm that changes nothing: two values of -1 and 1, and the affine part spreads them out."""
    x = torch.tensor([-1.0, 1.0]).repeat(128).reshape(1, 1, 16, 16).contiguous(memory_format=torch.channels_last)
    for reach in (1e-3, 1.0, 20.0, 80.0, 100.0, 1e4):
        norm = Norm(torch.tensor([reach]), torch.tensor([0.0]), 1, 0.0)
        found = kernels.norm(x, norm, silu=True)
        torch.testing.assert_close(found, F.silu(x.double() * reach).float(), rtol=1e-6, atol=1e-34)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_equals_float64(kernels: NativeSteps, dtype: torch.dtype) -> None:
    x = random(37, 53, scale=20).to(dtype)
    for steps in (kernels, TorchSteps()):
        found = steps.softmax(x, 0.3)
        expected = torch.softmax(x.double() * 0.3, -1)
        assert relative(found, expected) < EPSILON[dtype]


@pytest.mark.parametrize("steps", ["native", "torch"])
def test_interleaving_puts_phases_in_their_places(kernels: NativeSteps, steps: str) -> None:
    x = random(2, 12, 4, 6)
    chosen: Steps = kernels if steps == "native" else TorchSteps()
    found = chosen.interleave(x)
    assert found.shape == (2, 3, 6, 10)
    for a in (0, 1):
        for b in (0, 1):
            block = x[:, 3 * (2 * a + b) : 3 * (2 * a + b) + 3]
            assert torch.equal(found[:, :, a::2, b::2], block[:, :, a : a + 3, b : b + 5])


def test_threads_change_no_bit(kernels: NativeSteps) -> None:
    norm, x = affine(32, 2), random(1, 32, 128, 128).bfloat16()
    alone = kernels.norm(x, norm, silu=True), kernels.softmax(x[0, 0].float(), 1.0)
    torch.set_num_threads(2)
    both = kernels.norm(x, norm, silu=True), kernels.softmax(x[0, 0].float(), 1.0)
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))


def test_the_library_lies_where_only_its_user_writes(kernels: NativeSteps) -> None:
    folder = native._folder()
    assert not stat.S_IMODE(folder.stat().st_mode) & 0o022
    assert list(folder.glob(f"kernels-{kernels.name.removeprefix('native-')}-*.so"))


@pytest.fixture
def nothing_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """As on a machine that has built nothing yet, with nothing on its PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    native_steps.cache_clear()
    yield monkeypatch
    native_steps.cache_clear()


def test_without_a_compiler_torch_takes_over_and_says_so(
    nothing_built: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "model.fused"):
        assert cpu_steps(torch.float32).name == "torch"
    assert "no C++ compiler" in caplog.text
    with pytest.raises(NativeUnavailableError, match="no C\\+\\+ compiler"):
        cpu_steps(torch.float32, "on")
    assert cpu_steps(torch.float32, "off").name == "torch"


def test_a_compiler_that_fails_is_named_with_its_words(nothing_built: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 1.0 && exit 0\necho 'out of beans' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(NativeUnavailableError, match="out of beans"):
        native_steps()
    assert not list((tmp_path / "eocube").glob("*.so"))
