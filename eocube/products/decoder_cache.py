"""Keeps decoders by what they are made of: made once a process, a bounded number of them, safe after a fork."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eocube.errors import InputError, StoreError
from eocube.net import forks
from eocube.products.documents import from_attribute, to_attribute
from eocube.products.spec import Product

if TYPE_CHECKING:
    import torch

    from eocube.products.base import Codec, Decoder
    from eocube.products.shared_batches import SharedBatches

Pixels = npt.NDArray[np.float32]
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Short names of the arithmetic a decoder can run in -> torch's names."""
MIXED = "mixed"
"""float32, but faster arithmetic where a codec says that it costs hardly anything (EO-VAE: bfloat16 in residual blocks
on a CPU, float16 on a GPU)."""
MOST_CODECS, MOST_DECODERS = 2, 8
"""How many are kept: the weights of the published size take 0.3 GB, and a decoder its own copy of some of them."""


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """What makes a decoder; small and picklable, so that dask workers elsewhere can build their own.

    `bands` are output bands in order; `device` is a torch device or None for a GPU where there is one; `dtype` is a
    torch dtype's name ("float32") or `MIXED`.
    """

    product: str
    """The product as JSON (`spec_of`): hashable, unlike a `Product`."""
    bands: tuple[str, ...]
    device: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in (MIXED, *PRECISIONS.values()):
            raise InputError(f"dtype {self.dtype!r}: take {', '.join((MIXED, *PRECISIONS, *PRECISIONS.values()))}")


def spec_of(
    product: Product,
    bands: tuple[str, ...],
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    weights: str | None = None,
) -> DecoderSpec:
    """The decoder of some bands of a product; `weights` is where they are now, if not where the store says.

    `dtype` is torch's, its name or its short name ("fp16"); `MIXED` by default. InputError for a product that is not
    decoded.
    """
    if not product.decodes:
        raise InputError(f"{product.array} cubes ({product.kind}) are not decoded: values() gives what they hold")
    if weights is not None:
        product = replace(product, made_by={**product.made_by, "weights": weights})
    name = MIXED if dtype is None else str(dtype).removeprefix("torch.")
    document = {"space": dict(product.meaning), **to_attribute(product)}
    return DecoderSpec(json.dumps(document, sort_keys=True), bands, device, PRECISIONS.get(name, name))


class _Kept:
    """The codecs and decoders of this process, the latest used of each."""

    def __init__(self) -> None:
        self.forked = False
        self._codecs: OrderedDict[Hashable, Codec] = OrderedDict()
        self._decoders: OrderedDict[Hashable, Decoder] = OrderedDict()
        self._shared: OrderedDict[Hashable, SharedBatches] = OrderedDict()
        self._make_locks()

    def _make_locks(self) -> None:
        # One lock for all: loading is rare, and two threads that want the same decoder must not both load it.
        self._loading = threading.RLock()
        # Batches on one GPU only queue behind each other there; one at a time bounds the memory they hold.
        self._on_gpu = threading.Lock()

    def after_fork(self) -> None:
        """New locks: threads of the parent may have held these. OpenMP's threads stayed in the parent, too: what would
        use several waits for ever from now on.
        """
        self.forked = True
        self._make_locks()

    def codec(self, spec: DecoderSpec) -> Codec:
        """The codec of a spec's product; StoreError where it is not to be had."""
        from eocube.products import registry

        with self._loading:
            if spec.product not in self._codecs:
                try:
                    codec = registry.open(from_attribute(json.loads(spec.product)))
                except InputError as error:
                    raise StoreError(str(error)) from error
                _put(self._codecs, spec.product, codec, MOST_CODECS)
            self._codecs.move_to_end(spec.product)
            return self._codecs[spec.product]

    def decoder(self, spec: DecoderSpec) -> Decoder:
        """The decoder of a spec."""
        import torch

        with self._loading:
            if spec not in self._decoders:
                codec = self.codec(spec)
                with _one_thread(torch) if self.forked or spec.dtype == MIXED else nullcontext():
                    _put(self._decoders, spec, codec.decoder(_device(spec), spec.dtype, spec.bands), MOST_DECODERS)
            self._decoders.move_to_end(spec)
            return self._decoders[spec]

    def shared(self, spec: DecoderSpec) -> SharedBatches:
        """The decoder of a spec on a GPU, for many threads at once."""
        from eocube.products.shared_batches import SIZES, SharedBatches

        with self._loading:
            decoder = self.decoder(spec)
            if spec not in self._shared:
                # float32 is asked for by those who want the same bits every time
                sizes = (1,) if spec.dtype == PRECISIONS["fp32"] else SIZES
                _put(self._shared, spec, SharedBatches(decoder, self._on_gpu, sizes), MOST_DECODERS)
            self._shared.move_to_end(spec)
            return self._shared[spec]


def _put(kept: OrderedDict[Hashable, Any], key: Hashable, value: Any, most: int) -> None:
    kept[key] = value
    while len(kept) > most:
        kept.popitem(last=False)


_kept = _Kept()


def check(spec: DecoderSpec) -> None:
    """Load the spec's codec now, unless this process has it; StoreError where its weights are not the store's own."""
    forks.watch(_kept)
    _kept.codec(spec)


def decode_one(spec: DecoderSpec, values: npt.NDArray[Any]) -> Pixels:
    """Decode one window: (C, h, w) values -> (bands, h * cell, w * cell) float32 in the sensor's physical unit.

    On a CPU alone, on the calling thread; on a GPU with whatever other threads want decoded meanwhile.
    """
    import torch

    if _device(spec) != "cpu":
        return _kept.shared(spec)(values)
    decoder = _kept.decoder(spec)
    z = torch.from_numpy(np.ascontiguousarray(values))[None]
    with _one_thread(torch):
        decoded = decoder(z)
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
