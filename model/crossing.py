"""Takes many arrays to a device in one copy, and brings what is made of them back into one array."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.host import to_host

ALIGNED = 256
"""Bytes that arrays begin at multiples of, which suits every type and a GPU's wide reads."""

Array = NDArray[Any]


def crossing_bytes(arrays: Sequence[tuple[tuple[int, ...], np.dtype[Any]]]) -> int:
    """Bytes of arrays of these shapes and types as they cross."""
    return sum(-(-int(np.prod(shape)) * kind.itemsize // ALIGNED) * ALIGNED for shape, kind in arrays)


@dataclass(frozen=True, slots=True, eq=False)
class Arrived:
    """Tensors on a device, which are there once its copy is done."""

    tensors: tuple[Tensor, ...]
    whole: Tensor | None = None
    copied: Any = None

    def await_here(self) -> None:
        """Have the thread's stream wait until they are there, and their memory for what it does with them."""
        if self.copied is not None and self.whole is not None:
            stream = torch.cuda.current_stream(self.whole.device)
            stream.wait_event(self.copied)
            self.whole.record_stream(stream)


class Crossing:
    """The way to a device and back; for many threads at once.

    Arrays are gathered in one buffer, pinned for a GPU, and cross on a stream of their own: while the next ones are on
    their way, others compute. On the CPU there is nothing to take anywhere.

    Args:
        device: where to.
        copies: whether arrays are copied; by default on every device but the CPU.
    """

    def __init__(self, device: str | torch.device, copies: bool | None = None) -> None:
        self.device = torch.device(device)
        self.copies = self.device.type != "cpu" if copies is None else copies
        self._gpu = self.device.type == "cuda"
        self._local = threading.local()
        self._stream: Any = torch.cuda.Stream(self.device) if self._gpu else None  # type: ignore[no-untyped-call]

    @contextmanager
    def lane(self) -> Iterator[None]:
        """What a thread asks of the GPU within goes to a stream of its own, waiting for no other thread's."""
        if not self._gpu:
            yield
            return
        if not hasattr(self._local, "stream"):
            self._local.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._local.stream):
            yield

    def take(self, arrays: Sequence[Sequence[Array]]) -> Arrived:
        """Arrays on the device, in one copy: each of one or more of the same shape, stacked (N, *shape)."""
        forms = [((len(some), *some[0].shape), some[0].dtype) for some in arrays]
        staged = torch.empty(crossing_bytes(forms), dtype=torch.uint8, pin_memory=self._gpu)
        room, at, places = staged.numpy(), 0, []
        for some, (shape, kind) in zip(arrays, forms, strict=True):
            size = int(np.prod(shape)) * kind.itemsize
            laid = room[at : at + size].view(kind).reshape(shape)
            for place, one in zip(laid, some, strict=True):
                np.copyto(place, one)
            places.append((at, size))
            at += crossing_bytes([(shape, kind)])
        whole, copied = self._cross(staged)
        return Arrived(
            tuple(
                whole[at : at + size].view(torch_dtype(kind)).reshape(shape)
                for (at, size), (shape, kind) in zip(places, forms, strict=True)
            ),
            whole, copied,
        )  # fmt: skip

    def _cross(self, staged: Tensor) -> tuple[Tensor, Any]:
        """The buffer on the device, and what tells that it is there. Pinned memory stays taken until it is."""
        if not self._gpu:
            return staged.to(self.device, copy=True), None
        with torch.cuda.stream(self._stream):
            there = on_device(staged, self.device)
            there.copy_(staged, non_blocking=True)
            copied: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        return there, copied


class Returned:
    """One array on the host for the values of so many windows, which come in parts; for many threads at once.

    It has the type and form of what comes first, and is pinned for a GPU. Values of another, and those that are on the
    host already, are handed on as they are.
    """

    def __init__(self, windows: int) -> None:
        self._windows = windows
        self._making = threading.Lock()
        self.array: Tensor | None = None
        """None before anything came from a device."""

    def bring(self, values: Tensor, first: int) -> Tensor:
        """Values (B, ...) of the windows from `first` on, on the host: waited for, and not for what comes after."""
        if values.device.type == "cpu":
            return values
        with self._making:
            if self.array is None:
                self.array = host_array((self._windows, *values.shape[1:]), values)
        if self.array.dtype != values.dtype or self.array.shape[1:] != values.shape[1:]:
            return to_host(values)
        return to_host(values, self.array[first : first + len(values)])


def on_device(like: Tensor, device: torch.device) -> Tensor:
    """Room on a device for a tensor of the host."""
    return torch.empty(like.shape, dtype=like.dtype, device=device)


def host_array(shape: Sequence[int], like: Tensor) -> Tensor:
    """An array on the host for values such as these, pinned where they come from a GPU."""
    return torch.empty(tuple(shape), dtype=like.dtype, pin_memory=like.device.type == "cuda")


def in_place(array: Array) -> Tensor:
    """An array as a tensor of the same memory; of one that may not be written, or that torch cannot take, of a copy."""
    usable = array.flags.writeable and all(step >= 0 for step in array.strides)
    return torch.from_numpy(array if usable else array.copy())


def torch_dtype(kind: np.dtype[Any]) -> torch.dtype:
    """Torch's name of a type."""
    return torch.from_numpy(np.empty(0, kind)).dtype
