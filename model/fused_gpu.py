"""Runs encoder and decoder on a GPU: compiled, captured as a CUDA graph, fed through pinned double buffers."""

from __future__ import annotations

import copy
import importlib.util
import logging
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import Level, Upsample
from model.eo_vae import Decoder, Encoder
from model.fused_body import merged_out, phase_weights
from model.native import NativeUnavailableError, TorchSteps
from model.pixels import PixelPipeline, mark_constants

log = logging.getLogger(__name__)

SLOTS = 2
"""Sets of buffers: while one batch is computed, the next one crosses the bus."""
WARM_UP = 3
"""Calls before a capture: compilation, library handles and workspaces must exist by then."""

Pixels = Mapping[int, Tensor]


class _ExactConvolutions:
    """cuDNN without TF32 and autotuning while at least one caller is inside; counted, so threads may overlap.

    By default cuDNN computes float32 convolutions in TF32 (10 bits): "fp32" would not be. Autotuning picks by timing,
    so that two runs may differ in their last bits. The flags are process-wide: only the first caller in sets them and
    only the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = (True, False, False)

    @contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        if device.type != "cuda":
            yield
            return
        cudnn = torch.backends.cudnn
        with self._lock:
            if self._inside == 0:
                self._saved = (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic)
                cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = False, False, True
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = self._saved


exact_convolutions = _ExactConvolutions()


class PhasedUpsample(nn.Module):
    """`Upsample` as one 2x2 convolution of the coarse image and a rearrangement: 16 products instead of 36."""

    def __init__(self, layer: Upsample) -> None:
        super().__init__()
        conv = layer.conv
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.weight = nn.Parameter(phase_weights(conv.weight.detach()), requires_grad=False)
        self.bias = nn.Parameter(bias.repeat(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return TorchSteps().interleave(F.conv2d(x, self.weight, self.bias, padding=1))


def encoder_body(encoder: Encoder, first: tuple[Tensor, Tensor], channels: int) -> nn.Sequential:
    """A copy of the encoder as plain layers: normalised pixels -> means alone, `quant_conv` merged."""
    body = copy.deepcopy(encoder).eval()
    layers: list[nn.Module] = [static_conv(*first)]
    layers += [*body.down, body.mid, body.norm_out, nn.SiLU(), static_conv(*merged_out(encoder, channels))]
    return nn.Sequential(*layers)


def decoder_body(decoder: Decoder, last: tuple[Tensor, Tensor]) -> nn.Sequential:
    """A copy of the decoder as plain layers: raw latents -> normalised pixels, upsampling in phases."""
    body = copy.deepcopy(decoder).eval()
    for level in body.up:
        assert isinstance(level, Level)
        if level.upsample is not None:
            level.upsample = cast(Upsample, PhasedUpsample(level.upsample))
    levels = reversed(list(body.up))
    return nn.Sequential(
        body.post_quant_conv, body.conv_in, body.mid, *levels, body.norm_out, nn.SiLU(), static_conv(*last)
    )


def static_conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A 3x3 convolution with given weights, zero padding of one."""
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2], padding=weight.shape[2] // 2)
    conv.weight.data, conv.bias = weight.detach().clone(), nn.Parameter(bias.detach().clone())
    return conv


def on_device(body: nn.Sequential, device: torch.device, dtype: torch.dtype) -> nn.Sequential:
    """Ready for inference: no gradients, one precision, channels last, which is what tensor cores want."""
    return body.eval().requires_grad_(False).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def compiler_missing() -> str | None:
    """Why torch.compile cannot work for a GPU here, or None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not any(shutil.which(c) for c in ("cc", "gcc", "clang")):
        return "no C compiler (cc, gcc or clang) was found"
    return None


def compiled(function: Callable[..., Tensor], compile: str) -> tuple[Callable[..., Tensor], str]:
    """The function through torch.compile where it can be, and the name of what computes it now.

    Without autotuning: that picks kernels by timing, and two runs would differ in their last bits.

    Raises:
        NativeUnavailableError: compile "on", and it cannot be.
    """
    missing = compiler_missing() if compile != "off" else None
    if compile == "on" and missing:
        raise NativeUnavailableError(f"torch.compile cannot be used: {missing}")
    if missing:
        log.warning("the encoder is not compiled (%s): torch's own operations take its place, more slowly", missing)
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
    ) -> None:
        self._pixels, self._dtype = pixels, dtype
        self._body = on_device(encoder_body(encoder, first, channels), device, dtype)
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
        return cast(Tensor, self._body(z.to(self._dtype, memory_format=torch.channels_last))).float().contiguous()

    def __call__(self, pixels: Tensor | Pixels) -> Tensor:
        """(B, C, H, W) or groups of it -> (B, channels, H / stride, W / stride), float32."""
        return self._run({0: pixels} if isinstance(pixels, Tensor) else pixels)


def _widened(raw: Tensor) -> Tensor:
    return raw.view(torch.int16).to(torch.int32).bitwise_and(0xFFFF) if raw.dtype == torch.uint16 else raw


class GpuDecoder:
    """Raw latents on either side of the bus -> z-scores on the device."""

    def __init__(
        self, decoder: Decoder, last: tuple[Tensor, Tensor], device: torch.device, dtype: torch.dtype, compile: str
    ) -> None:
        self._dtype = dtype
        self._body = on_device(decoder_body(decoder, last), device, dtype)
        function, self.kernels = compiled(self._decode, compile)
        self._run = GraphRunner(function, device)

    def _decode(self, groups: dict[int, Tensor]) -> Tensor:
        z = groups[0].to(self._dtype, memory_format=torch.channels_last)
        return cast(Tensor, self._body(z)).float().contiguous()

    def __call__(self, z: Tensor) -> Tensor:
        """(B, z, h, w) -> (B, bands, H, W), float32."""
        return self._run({0: z})


class _Slot:
    """One set of static buffers with the graph that reads them."""

    def __init__(
        self,
        inputs: Pixels,
        function: Callable[[dict[int, Tensor]], Tensor],
        device: torch.device,
        pool: Any,
    ) -> None:
        self.host = {k: torch.empty_like(t, device="cpu").contiguous().pin_memory() for k, t in inputs.items()}
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
        key = tuple((k, tuple(t.shape), t.dtype) for k, t in sorted(inputs.items()))
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
