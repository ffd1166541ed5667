"""Decoders by what they are made of: loaded once a process, checked against the space they must belong to."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eocube.errors import InputError, StoreError
from eocube.net import forks
from eocube.sensors.sensor import Band, Sensor

if TYPE_CHECKING:
    import torch

    from model.eo_vae import EOVAE
    from model.fused import FusedDecoder

log = logging.getLogger(__name__)

Pixels = npt.NDArray[np.float32]
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Short names of the arithmetic a decoder can run in -> torch's names."""
MIXED = "mixed"
"""float32, but bfloat16 inside residual blocks on a CPU that multiplies it in hardware, if `MIXED_ERROR` allows."""
MIXED_ERROR = 1e-3
"""Share of a decoded picture's contrast that mixed precision may be off float32, in L2; beyond, float32 is taken.

A picture's own error is some 3 % of it at best, beside which this is nothing: it costs `nano` under 0.001 dB of PSNR.
"""
_PROBE = 8  # latents a side of the picture that tells


class _Locks:
    """The locks of this module: other threads of the parent may hold them as it forks."""

    def __init__(self) -> None:
        self.forked = False
        self._make()

    def _make(self) -> None:
        # One lock for all: loading is rare, and two threads that want the same decoder must not both load it.
        self.loading = threading.Lock()
        # Tasks on one GPU only queue behind each other there; letting them in one at a time bounds the memory they
        # hold.
        self.on_gpu = threading.Lock()

    def after_fork(self) -> None:
        """New locks. OpenMP's threads stayed in the parent: what would use several waits for ever from now on."""
        self.forked = True
        self._make()


_locks = _Locks()
_weights: dict[tuple[str, str], EOVAE] = {}
_decoders: dict[DecoderSpec, Callable[[Any], Any]] = {}


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What makes a decoder; small and picklable, so that dask workers elsewhere can build their own.

    `weights` is what `load_weights` takes and `sha256` what it must turn out to be; `bands` are output bands in order;
    `device` is a torch device or None for a GPU where there is one; `dtype` is a torch dtype's name ("float32") or
    `MIXED`.
    """

    weights: str
    sha256: str
    sensor: str
    """The sensor as JSON (`sensor_json`): hashable, unlike a `Sensor`."""
    bands: tuple[str, ...]
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in (MIXED, *PRECISIONS.values()):
            raise InputError(f"dtype {self.dtype!r}: take {', '.join((MIXED, *PRECISIONS, *PRECISIONS.values()))}")


def dtype_name(dtype: str | torch.dtype | None) -> str:
    """A torch dtype's name from it, its name or its short name ("fp16"); `MIXED` from None."""
    if dtype is None:
        return MIXED
    name = str(dtype).removeprefix("torch.")
    return PRECISIONS.get(name, name)


def sensor_json(sensor: Sensor) -> str:
    """What of a sensor a decoder needs, as JSON that `DecoderSpec` can carry."""
    return json.dumps(
        {
            "head": [sensor.name, sensor.unit, sensor.dtype, sensor.scale, sensor.offset, sensor.unit_factor],
            "bands": [[b.name, b.wavelength, b.gsd, b.mean, b.std] for b in sensor.bands],
        }
    )


def _sensor(text: str) -> Sensor:
    document = json.loads(text)
    name, unit, dtype, scale, offset, unit_factor = document["head"]
    bands = tuple(Band(n, wavelength, gsd, mean, std, ()) for n, wavelength, gsd, mean, std in document["bands"])
    # Decoders write no nodata: it is the merge that knows where nothing is.
    return Sensor(name, bands, unit, dtype, scale, offset, float("nan"), unit_factor, {})


def check_weights(spec: DecoderSpec) -> None:
    """Load the spec's weights now, unless this process has them; StoreError where they are not the store's own."""
    forks.watch(_locks)
    _vae(spec)


def decode_one(spec: DecoderSpec, latents: Pixels) -> Pixels:
    """Decode one window: (z, h, w) latents -> (bands, h * stride, w * stride) float32 in the sensor's physical unit."""
    import torch

    decoder, device = _decoder(spec), _device(spec)
    z = torch.from_numpy(np.ascontiguousarray(latents, dtype=np.float32))[None]
    if device == "cpu":
        with _one_thread(torch):
            decoded = decoder(z)
    else:
        with _locks.on_gpu:
            decoded = decoder(z.to(device)).cpu()
    pixels: Pixels = decoded[0].float().numpy()
    return pixels


@contextmanager
def _one_thread(torch: Any) -> Iterator[None]:
    """Torch computes on the calling thread alone: dask has a thread a core already, and bits depend on the number.

    OpenMP keeps the number per thread, so nobody else's torch changes. Torch sets it at its first use in a thread,
    which therefore has to come before the limit.
    """
    torch.get_num_threads()
    with _thread_pools().limit(limits=1, user_api="openmp"):
        yield


@cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _device(spec: DecoderSpec) -> str:
    import torch

    return spec.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _decoder(spec: DecoderSpec) -> Callable[[Any], Any]:
    import torch

    found = _decoders.get(spec)
    if found is not None:
        return found
    vae = _vae(spec)
    with _locks.loading, _one_thread(torch) if _locks.forked else nullcontext():
        if spec not in _decoders:
            _decoders[spec] = _mixed(vae, spec) if spec.dtype == MIXED else _made(vae, spec, getattr(torch, spec.dtype))
        return _decoders[spec]


def _made(vae: EOVAE, spec: DecoderSpec, dtype: torch.dtype, branches: torch.dtype | None = None) -> FusedDecoder:
    from model.fused import FusedDecoder

    return FusedDecoder(
        vae, _sensor(spec.sensor), device=_device(spec), dtype=dtype, bands=spec.bands, branches=branches
    )


def _mixed(vae: EOVAE, spec: DecoderSpec) -> FusedDecoder:
    """The decoder in mixed precision where that is faster and, with these weights, as good as float32; else float32.

    What bfloat16 costs depends on how much residual blocks add, and so on the weights: it is tried on one picture.
    """
    import torch

    from model.chip import fastest_cpu_dtype

    exact, fast = _made(vae, spec, torch.float32), fastest_cpu_dtype()
    if _device(spec) != "cpu" or fast == torch.float32:
        return exact
    mixed = _made(vae, spec, torch.float32, branches=fast)
    z = torch.randn(1, vae.config.z_channels, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), _one_thread(torch):
        z = vae.denormalise(z)
        told, found = exact(z), mixed(z)
    contrast = (told - told.mean(dim=(2, 3), keepdim=True)).norm()
    error = float((found - told).norm() / contrast)
    if error <= MIXED_ERROR:
        return mixed
    log.info("weights %s: mixed precision would be %.1e off float32, which is taken", spec.weights, error)
    return exact


def _vae(spec: DecoderSpec) -> EOVAE:
    from model.weights import WeightsError, load_weights

    key = (spec.weights, spec.sha256)
    with _locks.loading:
        if key not in _weights:
            try:
                vae = load_weights(spec.weights)
            except (WeightsError, OSError, ValueError) as error:
                raise StoreError(
                    f"the store's weights {spec.weights!r} cannot be loaded, say where they are with "
                    f"decode(weights=...): {error}"
                ) from error
            found = vae.meta.sha256 if vae.meta is not None else "no metadata"
            if found != spec.sha256:
                raise StoreError(
                    f"weights {spec.weights!r} are not those the store was encoded with: sha256 {found[:16]} here, "
                    f"{spec.sha256[:16]} in the store; give the right ones with decode(weights=...)"
                )
            _weights[key] = vae.eval()
        return _weights[key]
