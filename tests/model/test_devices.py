"""Choices that depend on the machine: precision by CPU flags, batches by measured memory, compilation on a GPU."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model import fused_gpu
from model.chip import cpu_flags, fastest_cpu_dtype, may_have_gpu
from model.eo_vae import EOVAE
from model.fused import FusedEncoder
from model.fused_gpu import GpuDecoder, GpuEncoder, compiled, compiler_missing
from model.fused_gpu_body import decoder_body
from model.memory import MemoryModel
from model.native import NativeUnavailableError
from tests.model.test_fused import OPTICAL, native_pixels


def test_flags_decide_and_nothing_else(tmp_path: Path) -> None:
    """AVX512 alone is not enough: there bfloat16 is emulated, and still reported as supported."""
    cpuinfo = tmp_path / "cpuinfo"
    for flags, expected in (
        ("fpu avx2 avx512f avx512bw", torch.float32),
        ("fpu avx2 avx512f avx512_bf16 fsrm", torch.bfloat16),
        ("fpu avx512f amx_tile amx_bf16", torch.bfloat16),
    ):
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n\nprocessor\t: 1\nflags\t\t: other\n")
        assert cpu_flags(cpuinfo) == frozenset(flags.split())
        assert fastest_cpu_dtype(cpu_flags(cpuinfo)) == expected
    cpuinfo.write_text("processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd\n")
    assert fastest_cpu_dtype(cpu_flags(cpuinfo)) == torch.float32
    assert fastest_cpu_dtype(cpu_flags(tmp_path / "nowhere")) == torch.float32


def test_batches_follow_from_a_line_through_two_measurements() -> None:
    asked: list[int] = []

    def probe(batch: int) -> int:
        asked.append(batch)
        return 100 + 30 * batch

    model = MemoryModel.measured(probe)
    assert asked == [1, 3] and (model.fixed, model.per_window) == (100, 30)
    assert model.bytes(10) == 400
    # 0.8 * 1000 hold one batch of 20 (700), two of 10 (800), none of 25 (850)
    assert model.largest_batch(1000, 100, 50) == 20
    assert model.largest_batch(1000, 100, 50, at_once=2) == 10
    assert model.largest_batch(1200, 100, 50, at_once=2) == 10, "a little more memory changes nothing"
    assert model.largest_batch(10**9, 100, 50) == 50
    assert model.largest_batch(10**9, 81, 50) == 27 and model.largest_batch(10**9, 1, 50) == 1
    assert model.largest_batch(1, 100, 50) == 1


def test_a_probe_that_measures_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="measures nothing"):
        MemoryModel.measured(lambda batch: 500)


def test_on_a_cpu_there_is_no_batch_to_choose(small_vae: EOVAE) -> None:
    encoder = FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32)
    with pytest.raises(ValueError, match="one by one"):
        encoder.memory_model({})


def test_without_a_compiler_the_gpu_path_runs_as_it_is_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused_gpu.shutil, "which", lambda name: None)
    monkeypatch.setattr(fused_gpu.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(fused_gpu, "_said", set())
    monkeypatch.delenv("CC", raising=False)
    assert "no C compiler" in (compiler_missing() or "")

    def double(groups: dict[int, Tensor]) -> Tensor:
        return groups[0] * 2

    with caplog.at_level(logging.WARNING, "model.fused_gpu"):
        function, name = compiled(double, "auto")
        assert compiled(double, "auto") == (function, name)
    assert function is double and name == "torch"
    (said,) = caplog.messages  # once, however many networks there are
    assert "no C compiler" in said and "CUDA graphs" in said
    with pytest.raises(NativeUnavailableError, match="no C compiler"):
        compiled(double, "on")
    assert compiled(double, "off") == (double, "torch")
    monkeypatch.setenv("CC", "/opt/cc")
    monkeypatch.setattr(fused_gpu.sysconfig, "get_path", lambda name: "/nowhere")
    assert "python3-dev" in (compiler_missing() or "")
    monkeypatch.setattr(fused_gpu.importlib.util, "find_spec", lambda name: None)
    assert compiler_missing() == "triton is not installed"


@pytest.mark.slow
def test_the_decoder_is_one_graph_for_the_compiler_too(small_vae: EOVAE) -> None:
    """Exported and traced whole, in float16's layout and as it is; not captured where nobody wants a graph."""
    waves = [band.wavelength for band in OPTICAL.bands]
    last = small_vae.decoder.conv_out.kernel(waves)
    device, z = torch.device("cpu"), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = small_vae.decode(z, waves)
    gpu = GpuDecoder(small_vae.decoder, last, device, torch.float32, "off", capture=False)
    torch.testing.assert_close(gpu(z), expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        traced = torch.compile(gpu._function, fullgraph=True, dynamic=False, backend="aot_eager")
        torch.testing.assert_close(traced({0: z}), expected, rtol=1e-4, atol=1e-5)
    exported = torch.export.export(decoder_body(small_vae.decoder, last, padded=True), (z,))
    torch.testing.assert_close(exported.module()(z), expected, rtol=1e-4, atol=1e-5)


def test_narrow_latents_are_the_same_numbers(small_vae: EOVAE) -> None:
    plain = FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32, window=64, compile="off")
    first = small_vae.encoder.conv_in.kernel([band.wavelength for band in OPTICAL.bands])
    pixels = {s: fused_gpu._widened(t) for s, t in native_pixels(2).items()}
    with torch.inference_mode():
        narrow, wide = (
            GpuEncoder(
                small_vae.encoder, first, plain.channels, plain.pixels, torch.device("cpu"), torch.float16, "off", said
            )._latents(pixels)
            for said in (True, False)
        )
    assert (narrow.dtype, wide.dtype) == (torch.float16, torch.float32) and torch.equal(narrow.float(), wide)


def test_arithmetic_is_exact_inside_and_the_processs_own_outside() -> None:
    def flags() -> tuple[bool, ...]:
        cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
        return (
            cudnn.allow_tf32, cudnn.benchmark, products.allow_tf32, products.allow_fp16_reduced_precision_reduction,
            products.allow_bf16_reduced_precision_reduction,
        )  # fmt: skip

    before = flags()
    with fused_gpu.exact_arithmetic(torch.device("cuda")), fused_gpu.exact_arithmetic(torch.device("cuda")):
        assert not any(flags()) and torch.backends.cudnn.deterministic
    assert flags() == before and any(before)


@pytest.mark.parametrize("name", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_the_image_has_the_compiler_that_is_looked_for(name: str) -> None:
    image = (Path(__file__).parents[2] / "infra" / name).read_text()
    assert any("g++" in installed.split() for installed in re.findall(r"apt-get install .*?&&", image, re.DOTALL)), (
        "g++ brings gcc, which Triton looks for"
    )


@pytest.mark.slow
def test_what_a_gpu_runs_is_one_graph_for_the_compiler(small_vae: EOVAE) -> None:
    """Traced whole, native samplings included, without code generation: a break would raise."""
    plain = FusedEncoder(small_vae, OPTICAL, device="cpu", dtype=torch.float32, window=64, compile="off")
    waves = [band.wavelength for band in OPTICAL.bands]
    first = small_vae.encoder.conv_in.kernel(waves)
    device = torch.device("cpu")
    gpu = GpuEncoder(small_vae.encoder, first, plain.channels, plain.pixels, device, torch.float32, "off")
    traced = torch.compile(gpu._latents, fullgraph=True, dynamic=False, backend="aot_eager")
    pixels = {s: fused_gpu._widened(t) for s, t in native_pixels(2).items()}
    with torch.inference_mode():
        found = traced(pixels)
    torch.testing.assert_close(found, plain(native_pixels(2)), rtol=1e-4, atol=1e-5)


def test_without_the_drivers_library_no_gpu_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("ctypes.CDLL", missing)
    assert may_have_gpu() == Path("/dev/kfd").exists()
    monkeypatch.setattr("ctypes.CDLL", lambda name: None)
    assert may_have_gpu()


def test_what_the_chips_can_do_is_told_without_torch() -> None:
    code = "import sys; from model.chip import *; multiplies_bf16(), may_have_gpu(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
