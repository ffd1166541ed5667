"""Runs encoder and decoder on a GPU: compiled, captured as a CUDA graph, fed through pinned double buffers."""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import shutil
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from model.eo_vae import Decoder, Encoder
from model.fused_gpu_body import decoder_body, encoder_body, on_device
from model.native import NativeUnavailableError
from model.pixels import PixelPipeline, mark_constants

log = logging.getLogger(__name__)

SLOTS = 2
"""Sets of buffers: while one batch is computed, the next one crosses the bus."""
WARM_UP = 3
"""Calls before a capture: compilation, library handles and workspaces must exist by then."""

Pixels = Mapping[int, Tensor]


class _ExactArithmetic:
    """cuDNN and cuBLAS without TF32, autotuning and sums in half precision while at least one caller is inside.

    By default cuDNN computes float32 convolutions in TF32 (10 bits): "fp32" would not be. Autotuning picks by timing,
    so that two runs may differ in their last bits; cuBLAS may add up a half-precision product in half precision. The
    flags are process-wide and callers counted, so that threads may overlap: only the first one in sets them and only
    the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved: tuple[bool, ...] = ()

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        if device.type != "cuda":
            yield
            return
        with self._lock:
            if self._inside == 0:
                self._saved = _flags()
                _set_flags(False, False, True, False, False, False)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    _set_flags(*self._saved)


def _flags() -> tuple[bool, ...]:
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    return (
        cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, products.allow_tf32,
        products.allow_fp16_reduced_precision_reduction, products.allow_bf16_reduced_precision_reduction,
    )  # fmt: skip


def _set_flags(tf32: bool, benchmark: bool, deterministic: bool, product_tf32: bool, fp16: bool, bf16: bool) -> None:
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = tf32, benchmark, deterministic
    products.allow_tf32 = product_tf32
    products.allow_fp16_reduced_precision_reduction = fp16
    products.allow_bf16_reduced_precision_reduction = bf16


exact_arithmetic = _ExactArithmetic()


def compiler_missing() -> str | None:
    """Why torch.compile cannot work for a GPU here, or None where it can. Triton builds its launchers in C."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not os.environ.get("CC") and not any(map(shutil.which, ("gcc", "clang"))):
        return "no C compiler was found: install gcc or clang, or name one in CC"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python.h was not found: install Python's headers (python3-dev)"
    return None


_said: set[str] = set()


def compiled(function: Callable[..., Tensor], compile: str) -> tuple[Callable[..., Tensor], str]:
    """The function through torch.compile where it can be, and the name of what computes it now.

    Without autotuning: that picks kernels by timing, and two runs would differ in their last bits.

    Raises:
        NativeUnavailableError: compile "on", and it cannot be.
    """
    missing = compiler_missing() if compile != "off" else None
    if compile == "on" and missing:
        raise NativeUnavailableError(f"torch.compile cannot be used: {missing}")
    if missing and missing not in _said:
        _said.add(missing)  # once a process: encoders and decoders of every precision come by here
        log.warning("networks are not compiled (%s): torch's own kernels run in CUDA graphs instead, slower", missing)
    if compile == "off" or missing:
        return function, "torch"
    mark_constants()
    return torch.compile(function, dynamic=False, fullgraph=True), "inductor"


class GpuEncoder:
    """Raw pixels on either side of the bus -> raw latents on the device."""

    def __init__(
        self,
        encoder: Encoder,
        first: tuple[Tensor, Tensor],
        channels: int,
        pixels: PixelPipeline,
        device: torch.device,
        dtype: torch.dtype,
        compile: str,
        narrow: bool = False,
    ) -> None:
        self._pixels, self._dtype = pixels, dtype
        self._out = torch.float16 if narrow and dtype == torch.float16 else torch.float32
        half = dtype != torch.float32
        self._body = on_device(encoder_body(encoder, first, channels, padded=half), device, dtype)
        self._function, self.kernels = compiled(self._latents, compile)
        self._run = GraphRunner(self._encode, device)
        self._device = device

    def peak_bytes(self, pixels: Pixels) -> int:
        """Memory in bytes that these windows need beyond the weights, computed step by step (compiled needs less)."""
        groups = {k: t.to(self._device) for k, t in pixels.items()}
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        with torch.inference_mode():
            self._latents({k: _widened(t) for k, t in groups.items()})
        torch.cuda.synchronize(self._device)
        peak: int = torch.cuda.max_memory_allocated(self._device)
        return peak - before

    def _encode(self, groups: dict[int, Tensor]) -> Tensor:
        # uint16 crosses the bus; the compiler knows few operations on it, so it is widened before.
        return self._function({k: _widened(t) for k, t in groups.items()})

    def _latents(self, groups: dict[int, Tensor]) -> Tensor:
        whole = groups.get(0)
        z = self._pixels.zscore(self._pixels.physical(groups if whole is None else whole))
        latents = cast(Tensor, self._body(z.to(self._dtype, memory_format=torch.channels_last)))
        return latents.to(self._out).contiguous()

    def __call__(self, pixels: Tensor | Pixels) -> Tensor:
        """(B, C, H, W) or groups of it -> (B, channels, H / stride, W / stride), float32, or float16 if `narrow`."""
        return self._run({0: pixels} if isinstance(pixels, Tensor) else pixels)


def _widened(raw: Tensor) -> Tensor:
    return raw.view(torch.int16).to(torch.int32).bitwise_and(0xFFFF) if raw.dtype == torch.uint16 else raw


class GpuDecoder:
    """Raw latents on either side of the bus -> z-scores on the device.

    Without `capture` each step is launched as it comes: for the few windows of a sample, which are done before a graph
    would have been captured.
    """

    def __init__(
        self, decoder: Decoder, last: tuple[Tensor, Tensor], device: torch.device, dtype: torch.dtype, compile: str,
        capture: bool = True,
    ) -> None:  # fmt: skip
        self._dtype, self._device = dtype, device
        self._body = on_device(decoder_body(decoder, last, padded=dtype != torch.float32), device, dtype)
        self._function, self.kernels = compiled(self._decode, compile)
        self._run = GraphRunner(self._function, device) if capture else None

    def _decode(self, groups: dict[int, Tensor]) -> Tensor:
        z = groups[0].to(self._dtype, memory_format=torch.channels_last)
        return cast(Tensor, self._body(z)).float().contiguous()

    def __call__(self, z: Tensor) -> Tensor:
        """(B, z, h, w) -> (B, bands, H, W), float32."""
        return self._function({0: z.to(self._device)}) if self._run is None else self._run({0: z})


class _Slot:
    """One set of static buffers with the graph that reads them."""

    def __init__(
        self,
        inputs: Pixels,
        function: Callable[[dict[int, Tensor]], Tensor],
        device: torch.device,
        pool: Any,
    ) -> None:
        self.host = {
            k: torch.empty_like(t, device="cpu").contiguous().pin_memory()
            for k, t in inputs.items()
            if t.device.type == "cpu"
        }
        self.static = {k: t.to(device, copy=True).contiguous() for k, t in inputs.items()}
        self.copied: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.done: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        for _ in range(WARM_UP):
            function(self.static)
        torch.cuda.synchronize(device)
        self.graph = torch.cuda.CUDAGraph()
        # One pool of memory for all graphs: they run one after another on one stream, and what they leave is copied.
        with torch.cuda.graph(self.graph, pool=pool, capture_error_mode="thread_local"):
            self.output = function(self.static)


class GraphRunner:
    """A function of tensors of fixed shapes as CUDA graphs; safe to call from several threads.

    With two callers, one batch crosses the bus on its own stream while the other is computed. Each new combination of
    shapes and types is captured once, which takes as long as the function's compilation.
    """

    def __init__(self, function: Callable[[dict[int, Tensor]], Tensor], device: torch.device) -> None:
        self._function, self._device = function, device
        self._slots: dict[tuple[object, ...], queue.SimpleQueue[_Slot]] = {}
        self._capturing, self._launching = threading.Lock(), threading.Lock()
        self._copies: torch.cuda.Stream | None = None
        self._compute: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, inputs: Pixels) -> Tensor:
        """The function's value for these inputs, on the device, ready for the caller's current stream."""
        slots = self._ready(inputs)
        assert self._copies is not None and self._compute is not None
        slot = slots.get()
        caller = torch.cuda.current_stream(self._device)
        try:
            if slot.host:
                slot.copied.synchronize()  # the pinned buffer may still be on its way from the call before
            with torch.cuda.stream(self._copies):
                self._copies.wait_event(slot.done)  # the graph may still be reading
                for key, tensor in inputs.items():
                    if tensor.device.type == "cpu":
                        slot.static[key].copy_(slot.host[key].copy_(tensor), non_blocking=True)
                    else:
                        self._copies.wait_stream(caller)
                        slot.static[key].copy_(tensor)
                        tensor.record_stream(self._copies)
                slot.copied.record(self._copies)
            with self._launching, torch.cuda.stream(self._compute):
                self._compute.wait_event(slot.copied)
                slot.graph.replay()
                output = slot.output.clone()
                slot.done.record(self._compute)
                output.record_stream(caller)
            caller.wait_event(slot.done)
            return output
        finally:
            slots.put(slot)

    def _ready(self, inputs: Pixels) -> queue.SimpleQueue[_Slot]:
        key = tuple((k, tuple(t.shape), t.dtype, t.device.type) for k, t in sorted(inputs.items()))
        with self._capturing:
            if self._copies is None:
                self._copies = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._compute = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
                self._pool = torch.cuda.graph_pool_handle()
            if key not in self._slots:
                slots: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
                # A capture forbids other launches of this process that would join it: none may start meanwhile.
                with self._launching, torch.cuda.stream(self._compute):
                    for _ in range(SLOTS):
                        slots.put(_Slot(inputs, self._function, self._device, self._pool))
                self._slots[key] = slots
            return self._slots[key]
