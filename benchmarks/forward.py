"""The encoder's and the decoder's forward pass: the reference in its usual forms and ours, interleaved in one run."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import describe, has_compiler, has_native_bf16
from benchmarks.results import OURS, BadInputError, Report, Variant
from benchmarks.subjects import Reference, Subject, raw_windows, reference, subject
from benchmarks.timing import Timed, interleave, peak_memory
from model.fused import FusedDecoder, FusedEncoder
from model.pixels import PixelPipeline

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
QUICK_BUDGET = 45.0
"""Seconds of a quick run that go into timing, at most, beyond the first round."""
GPU_BATCH = 50
"""Windows a call on a GPU: half of a shard, as a card with memory enough takes them."""
MATRIX_SIDE = {"cpu": 2048, "cuda": 8192}
A_THREAD_EACH = "a window a thread"
ENCODER, DECODER = "encoder", "decoder"
LIMITS = {"fp32": 1e-5, "bf16": 1.5e-2, "fp16": 5e-3}
"""Relative L2 error that the latents of each precision of ours may have in the published size."""
EXACT = "fp32"
"""The precision whose limit holds for every network, and for pictures too: how far rounding carries in the others
depends on the weights."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a forward pass is measured."""

    model: str = "nano"
    quick: bool = False
    repeats: int | None = None
    threads: int | None = None
    batch: int | None = None
    device: str | None = None
    reference: Path | None = None
    compile: bool = True
    """Whether torch.compile of the reference is measured too."""


@dataclass(frozen=True, slots=True)
class _Way:
    """A variant before it is measured: `make` readies it and gives the call, `read` makes its output comparable."""

    name: str
    dtype: str
    make: Callable[[], Callable[[], Tensor]]
    read: Callable[[Tensor], Tensor] = lambda out: out
    lanes: int = 1
    """Batches that a call makes at once, each on a thread of its own."""


def choose_device(named: str | None) -> torch.device:
    """The device asked for, else a GPU where there is one. BadInputError where it is not there."""
    name = named or ("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise BadInputError(f"--device: no {name!r}, there is cpu and cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInputError("--device cuda: torch sees no CUDA device here; use --device cpu")
    return torch.device(name)


def positive(value: int | None, flag: str) -> None:
    """BadInputError unless the number, where given, is at least 1."""
    if value is not None and value < 1:
        raise BadInputError(f"{flag} is at least 1, not {value}")


def measure(half: str, settings: Settings, say: Callable[[str], None]) -> Report:
    """Measure `half` ("encoder" or "decoder") of a network in every variant that makes sense on the device.

    Raises:
        BadInputError: an unknown model or device, or a reference that cannot be imported.
    """
    for value, flag in ((settings.threads, "--threads"), (settings.repeats, "--repeats"), (settings.batch, "--batch")):
        positive(value, flag)
    device = choose_device(settings.device)
    threads_before = torch.get_num_threads()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    try:
        with torch.inference_mode():
            return _measure(half, settings, device, say)
    finally:
        torch.set_num_threads(threads_before)


def _measure(half: str, settings: Settings, device: torch.device, say: Callable[[str], None]) -> Report:
    what = subject(settings.model)
    machine = describe(device)
    batch = settings.batch or (GPU_BATCH if device.type == "cuda" else 1)
    against = reference(what, device, settings.reference)
    no_compile = None if settings.compile else "left out by --no-compile"
    if device.type == "cpu" and not has_compiler():
        no_compile = "no C++ compiler here"
    kernels: dict[str, str] = {}
    ways, not_run, exact = _ways(half, what, against, batch, device, no_compile, kernels)
    timed: list[tuple[_Way, Timed, float, float | None]] = []
    for way in ways:
        say(f"readying {way.name} {way.dtype}")
        try:
            ready, error, memory = _ready(way, exact, device)
        except Exception as failure:
            # torch.compile and precisions of a device fail in many ways; that of ours in fp32 is a defect.
            if way.name.startswith(OURS) and way.dtype == "fp32":
                raise
            lines = str(failure).strip().splitlines() or [""]
            not_run[f"{way.name} {way.dtype}"] = f"{type(failure).__name__}: {lines[0][:200]}"
            continue
        width = DTYPES[way.dtype].itemsize if way.name.startswith(OURS) else torch.float32.itemsize
        total = None if memory is None else memory + against.parameters[half] * width / 1e9
        timed.append((way, Timed(f"{way.name} {way.dtype}", ready), error, total))
    matrices = {dtype: Timed(f"matrix {dtype}", _matrix(dtype, device)) for dtype in sorted({w.dtype for w in ways})}
    for matrix in matrices.values():
        matrix.work()
    repeats = settings.repeats or (3 if settings.quick else 7)
    say(f"timing, up to {repeats} rounds")
    began = time.perf_counter()
    budget = QUICK_BUDGET if settings.quick else None
    interleave([*(t for _, t, _, _ in timed), *matrices.values()], repeats, device, budget)
    side = MATRIX_SIDE[device.type]
    rates = {dtype: 2 * side**3 / matrix.best(device) / 1e12 for dtype, matrix in matrices.items()}
    flops = count_flops(half, what)
    first = batch / timed[0][1].best(device)
    variants = tuple(
        Variant(
            way.name, device.type, way.dtype, rate := way.lanes * batch / ready.best(device), rate / first, error,
            rate * flops / 1e12, memory, limit=_limit(half, way, what),
        )
        for way, ready, error, memory in timed
    )  # fmt: skip
    return Report(
        half, {**machine, "matrix_tflops": {k: float(f"{v:.4g}") for k, v in rates.items()}}, what.name,
        against.name, variants,
        {
            "window": what.window, "bands": len(what.sensor.bands), "batch": batch, "gflop_per_window": flops / 1e9,
            "kernels": kernels, "rounds": len(timed[0][1].seconds), "timing_s": round(time.perf_counter() - began, 1),
        },
        not_run,
    )  # fmt: skip


def _a_thread_each(way: _Way, lanes: int) -> _Way:
    """A way as the engine runs ours on a CPU: as many batches at once as there are threads, each computed by one."""

    def make() -> Callable[[], Tensor]:
        pool = ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,))
        work = way.make()

        def one() -> Tensor:
            with torch.inference_mode():
                return work()

        def all_at_once() -> Tensor:
            found = [future.result() for future in [pool.submit(one) for _ in range(lanes)]]
            return found[0]

        return all_at_once

    return replace(way, name=f"{way.name}, {A_THREAD_EACH}", make=make, lanes=lanes)


def _ways(
    half: str,
    what: Subject,
    against: Reference,
    batch: int,
    device: torch.device,
    no_compile: str | None,
    kernels: dict[str, str],
) -> tuple[list[_Way], dict[str, str], Tensor]:
    """The variants, the reference in eager fp32 first; those left out and why; and the exact result.

    Ours enter in `kernels`, by precision, what they run on as they are made.
    """
    raw = {gsd: block.to(device) for gsd, block in raw_windows(what, batch).items()}
    pixels = PixelPipeline(what.sensor, 10, what.window, device)
    x = pixels.zscore(pixels.physical(raw)).contiguous()
    wavelengths = torch.tensor(what.wavelengths, device=device)
    with _tf32(device, allowed=False):
        latents = against.encode(x, wavelengths).clone()
        exact = latents if half == ENCODER else against.decode(latents, wavelengths).clone()

    def eager() -> Tensor:
        return against.encode(x, wavelengths) if half == ENCODER else against.decode(latents, wavelengths)

    def compiled(dtype: str) -> Callable[[], Callable[[], Tensor]]:
        given, work = (x, against.encode) if half == ENCODER else (latents, against.decode)

        def make() -> Callable[[], Tensor]:
            fast = torch.compile(work)
            return under(dtype, lambda: fast(given, wavelengths))

        return make

    def under(dtype: str, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with nullcontext() if dtype == "fp32" else torch.autocast(device.type, DTYPES[dtype]):
                return work()

        return call

    def fused(dtype: str) -> _Way:
        def make() -> Callable[[], Tensor]:
            if half == ENCODER:
                encoder = FusedEncoder(what.vae, what.sensor, device=device, dtype=DTYPES[dtype], window=what.window)
                kernels[dtype] = encoder.kernels
                return lambda: encoder(raw)
            decoder = FusedDecoder(what.vae, what.sensor, device=device, dtype=DTYPES[dtype])
            kernels[dtype] = decoder.kernels
            return lambda: decoder(latents)

        return _Way(OURS, dtype, make, (lambda out: out) if half == ENCODER else pixels.zscore)

    not_run: dict[str, str] = {}
    ways = [_Way("reference, eager", "fp32", lambda: eager)]
    if device.type == "cuda":
        half_precisions: Sequence[str] = ("fp16",)
        fast: Sequence[str] = ("fp16", "bf16", "fp32")
    else:
        half_precisions = ("bf16",) if has_native_bf16() else ()
        fast = (*half_precisions, "fp32")
        not_run["fp16"] = "no CUDA device; a CPU emulates fp16 many times slower"
        if not half_precisions:
            not_run["bf16"] = "the CPU has no bf16 arithmetic (by its flags); emulated it is slower than fp32"
    alone: list[_Way] = []
    if device.type == "cpu" and (lanes := torch.get_num_threads()) > 1:
        alone = [_a_thread_each(way, lanes) for way in (ways[0], *(fused(dtype) for dtype in fast))]
    ways += [_Way("reference, autocast", dtype, lambda d=dtype: under(d, eager)) for dtype in half_precisions]  # type: ignore[misc]
    if no_compile is None:
        ways.append(_Way("reference, torch.compile", "fp32", compiled("fp32")))
        if device.type == "cuda":
            ways.append(_Way("reference, torch.compile and autocast", "fp16", compiled("fp16")))
    else:
        not_run["reference, torch.compile"] = no_compile
    return [*ways, *(fused(dtype) for dtype in fast), *alone], not_run, exact


def _limit(half: str, way: _Way, what: Subject) -> float | None:
    """The error that a variant may have; only ours has a limit."""
    latents = half == ENCODER and what.name == "published"
    checked = way.name.startswith(OURS) and (way.dtype == EXACT or latents)
    return LIMITS[way.dtype] if checked else None


def _ready(way: _Way, exact: Tensor, device: torch.device) -> tuple[Callable[[], Tensor], float, float | None]:
    """Make a variant and call it until it is warm: the call, its relative error, its growth of memory in GB."""
    work = way.make()
    error = relative_error(way.read(work()), exact)
    with peak_memory(device) as peak:
        work()
    return work, error, peak.gigabytes


def relative_error(found: Tensor, exact: Tensor) -> float:
    """L2 norm of the difference over that of `exact`, in float64."""
    wanted = exact.double()
    return float((found.double() - wanted).norm() / wanted.norm())


def _matrix(dtype: str, device: torch.device) -> Callable[[], Tensor]:
    """A large square product: the rate that the device reaches at its best (in fp32 with TF32, which torch's
    convolutions use on a GPU unless told otherwise)."""
    side = MATRIX_SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    a = torch.randn(side, side, generator=generator, device=device).to(DTYPES[dtype])
    b = torch.randn(side, side, generator=generator, device=device).to(DTYPES[dtype])

    def product() -> Tensor:
        with _tf32(device, allowed=True):
            return a @ b

    return product


@contextmanager
def _tf32(device: torch.device, *, allowed: bool) -> Iterator[None]:
    """Whether a GPU's convolutions and products in fp32 may use TF32 inside the block."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = (cudnn.allow_tf32, matmul.allow_tf32)
    if device.type == "cuda":
        cudnn.allow_tf32 = matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        if device.type == "cuda":
            cudnn.allow_tf32, matmul.allow_tf32 = before


def count_flops(half: str, what: Subject) -> float:
    """Operations for one window in the frozen network, counted by torch without computing (2 a multiply-add)."""
    vae, window = copy.deepcopy(what.vae).to("meta"), what.window
    bands, ch, last = len(what.sensor.bands), vae.config.ch, vae.config.ch * vae.config.ch_mult[0]
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        if half == ENCODER:
            first = torch.empty(ch, bands, 3, 3, device="meta")
            vae.encoder.body(F.conv2d(torch.empty(1, bands, window, window, device="meta"), first, padding=1))
        else:
            side = window // vae.scale_factor
            h = vae.decoder.body(torch.empty(1, vae.config.z_channels, side, side, device="meta"))
            F.conv2d(h, torch.empty(bands, last, 3, 3, device="meta"), padding=1)
    return float(counter.get_total_flops())
