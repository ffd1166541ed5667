"""Packs values into what is stored and back, and knows what "absent" looks like: float16, int8, codes, float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from eocube.errors import InputError

if TYPE_CHECKING:
    import torch

Values = npt.NDArray[Any]
"""(channels, ...): float32 where values are real, int32 where they are codes."""
Stored = npt.NDArray[Any]
"""(channels, ...) in the store's dtype."""
Packing = Literal["zstd", "byte planes"]
"""How the bytes of a chunk are packed, without loss: as they are, or all low bytes first, then all high ones."""

_LARGEST_HALF = 65504.0
_NO_CODE = 65535


class Storage(Protocol):
    """How values are stored."""

    @property
    def name(self) -> str:
        """Its name in a plan's hash and on the command line: "fp16", "codes", "int8", "uint16", "fp32"."""
        ...

    @property
    def dtype(self) -> str:
        """numpy's name of the stored dtype."""
        ...

    @property
    def packing(self) -> Packing:
        """How chunks are packed."""
        ...

    @property
    def unpacked(self) -> str:
        """numpy's name of the dtype of values."""
        ...

    @property
    def as_they_are(self) -> bool:
        """Whether values are stored as they are, so that a cast unpacks them."""
        ...

    @property
    def fill(self) -> float | int:
        """What is stored where there is no value."""
        ...

    def pack(self, values: Values) -> Stored:
        """Values (C, ...) as stored; what cannot be a value (not finite, beyond the codes) becomes the fill value."""
        ...

    def unpack(self, stored: Stored) -> Values:
        """Stored values (C, ...) as float32 with NaN where there is none; codes as int32 with -1."""
        ...

    def there(self, stored: Stored) -> npt.NDArray[np.bool_]:
        """Where values are, number by number: the one mask of presence."""
        ...

    def sound(self, values: torch.Tensor) -> list[bool]:
        """Which windows of (B, C, h, w) may be stored, judged on their device; others are made again more precisely."""
        ...

    def document(self) -> dict[str, Any]:
        """JSON that `storage_of` reads."""
        ...

    def comment(self, array: str) -> str:
        """What readers without eocube need to know of the stored values of an array; empty where nothing."""
        ...

    def coordinates(self) -> dict[str, tuple[Sequence[float], str]]:
        """Coordinates along the channels that reading the stored values takes: name -> (values, their long name)."""
        ...


class _Reals:
    """Real numbers stored as they are, NaN where there is none."""

    __slots__ = ()
    name: str
    dtype: str
    packing: ClassVar[Packing] = "zstd"
    unpacked = "float32"
    as_they_are = True
    fill = float("nan")

    def pack(self, values: Values) -> Stored:
        """In the stored dtype; one bit pattern for every NaN, so that the same values are the same bytes."""
        dtype = np.dtype(self.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            stored = np.asarray(values).astype(dtype)
        gone = ~_finite(stored)
        if gone.any():
            stored[gone] = dtype.type(np.nan)
        return stored

    def unpack(self, stored: Stored) -> Values:
        """As float32."""
        return stored.astype(np.float32)

    def there(self, stored: Stored) -> npt.NDArray[np.bool_]:
        """Where it is finite."""
        return np.asarray(np.isfinite(stored))

    def document(self) -> dict[str, Any]:
        """Its name."""
        return {"name": self.name}

    def comment(self, array: str) -> str:
        """Nothing."""
        return ""

    def coordinates(self) -> dict[str, tuple[Sequence[float], str]]:
        """None."""
        return {}


@dataclass(frozen=True, slots=True)
class Half(_Reals):
    """float16, NaN where there is no value."""

    name = "fp16"
    dtype = "float16"

    def sound(self, values: torch.Tensor) -> list[bool]:
        """Whether all are finite and within float16's range."""
        largest = values.abs().amax(dim=(1, 2, 3))  # NaN if one is, and NaN is never below
        return [bool(v) for v in (largest <= _LARGEST_HALF).tolist()]


@dataclass(frozen=True, slots=True)
class _Affine:
    """Integer codes, value = code * scale + offset per channel; the lowest integer where there is no value.

    Codes are rounded half to even and saturate one above the lowest integer and at the highest.
    """

    scale: tuple[float, ...]
    offset: tuple[float, ...]

    name: ClassVar[str]
    dtype: ClassVar[str]
    unpacked = "float32"
    as_they_are = False

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.offset) or not all(0 < s < float("inf") for s in self.scale):
            raise InputError(f"{self.name} storage needs one offset and one scale above 0 for every channel")

    @property
    def fill(self) -> int:
        """The lowest integer."""
        return int(np.iinfo(self.dtype).min)

    def _affine(self, ndim: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        shape = (-1, *[1] * (ndim - 1))
        return np.asarray(self.scale, np.float32).reshape(shape), np.asarray(self.offset, np.float32).reshape(shape)

    def pack(self, values: Values) -> Stored:
        """The nearest codes."""
        finite = _finite(values)
        scale, offset = self._affine(values.ndim)
        highest = np.iinfo(self.dtype).max
        with np.errstate(invalid="ignore", over="ignore"):
            codes = np.clip(np.rint((values - offset) / scale), -highest, highest)
        if finite.all():
            return np.asarray(codes.astype(self.dtype))
        return np.where(finite, np.nan_to_num(codes), self.fill).astype(self.dtype)

    def unpack(self, stored: Stored) -> Values:
        """As float32."""
        scale, offset = self._affine(stored.ndim)
        values = stored.astype(np.float32) * scale + offset
        gone = stored == self.fill
        return np.where(gone, np.float32(np.nan), values).astype(np.float32) if gone.any() else values

    def there(self, stored: Stored) -> npt.NDArray[np.bool_]:
        """Where it is not the lowest integer."""
        return np.asarray(stored != self.fill)

    def document(self) -> dict[str, Any]:
        """Its name, scales and offsets."""
        return {"name": self.name, "scale": list(self.scale), "offset": list(self.offset)}

    def comment(self, array: str) -> str:
        """How values follow from codes."""
        return f"{array} = code * scale + offset per channel; {self.fill} where no window is ok"

    def coordinates(self) -> dict[str, tuple[Sequence[float], str]]:
        """The scales and offsets."""
        return {
            "scale": (self.scale, f"scale of the {self.dtype} codes"),
            "offset": (self.offset, f"offset of the {self.dtype} codes"),
        }


@dataclass(frozen=True, slots=True)
class Affine8(_Affine):
    """int8 codes in equal parts of each channel's spread, -128 where there is no value."""

    name = "int8"
    dtype = "int8"
    packing: ClassVar[Packing] = "zstd"

    def sound(self, values: torch.Tensor) -> list[bool]:
        """As for float16, so that a store of either kind re-runs the same windows."""
        return Half().sound(values)


@dataclass(frozen=True, slots=True)
class Affine16(_Affine):
    """int16 codes in steps of a size that the weights state for each channel, -32768 where there is no value.

    Steps are such that each channel's rounding costs the decoded pixels alike. Codes lie about 128, so that one byte
    tells nearly all of them apart; the other leaves room for what is far from ordinary ground, such as cloud.
    """

    name = "codes"
    dtype = "int16"
    packing: ClassVar[Packing] = "byte planes"

    def sound(self, values: torch.Tensor) -> list[bool]:
        """Whether all are finite and within the codes: none saturates."""
        scale, offset = _on_device(self.scale, self.offset, values.device)
        largest = ((values - offset) / scale).abs().amax(dim=(1, 2, 3))  # NaN if one is, and NaN is never below
        return [bool(v) for v in (largest <= np.iinfo(self.dtype).max).tolist()]


@dataclass(frozen=True, slots=True)
class Codes:
    """uint16 codes from 0 to `levels` - 1, 65535 where there is none."""

    levels: int

    name = "uint16"
    dtype = "uint16"
    packing: ClassVar[Packing] = "zstd"
    unpacked = "int32"
    as_they_are = False
    fill = _NO_CODE

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= _NO_CODE:
            raise InputError(f"{self.levels} levels: uint16 codes are from 1 to {_NO_CODE} levels")

    def pack(self, values: Values) -> Stored:
        """Codes as uint16; what is none becomes the fill value."""
        codes = np.asarray(values)
        with np.errstate(invalid="ignore"):
            known = (codes >= 0) & (codes < self.levels)
        return np.where(known, np.where(known, codes, 0), _NO_CODE).astype(np.uint16)

    def unpack(self, stored: Stored) -> Values:
        """As int32, -1 where there is none."""
        return np.where(stored == _NO_CODE, np.int32(-1), stored.astype(np.int32))

    def there(self, stored: Stored) -> npt.NDArray[np.bool_]:
        """Where it is below the number of levels."""
        return np.asarray(stored < self.levels)

    def sound(self, values: torch.Tensor) -> list[bool]:
        """Whether all are codes."""
        known = (values >= 0) & (values < self.levels)  # NaN is neither
        return [bool(v) for v in known.flatten(1).all(1).tolist()]

    def document(self) -> dict[str, Any]:
        """Its name and levels."""
        return {"name": self.name, "levels": self.levels}

    def comment(self, array: str) -> str:
        """The codes there are."""
        return f"codes from 0 to {self.levels - 1}; {_NO_CODE} where no window is ok"

    def coordinates(self) -> dict[str, tuple[Sequence[float], str]]:
        """None."""
        return {}


@dataclass(frozen=True, slots=True)
class Raw32(_Reals):
    """float32, NaN where there is no value."""

    name = "fp32"
    dtype = "float32"

    def sound(self, values: torch.Tensor) -> list[bool]:
        """Whether all are finite."""
        return [bool(v) for v in values.isfinite().flatten(1).all(1).tolist()]


_EXPONENT = np.uint16(0x7C00)


def _finite(values: Values) -> npt.NDArray[np.bool_]:
    """`np.isfinite`; of float16 by its bits, ten times as fast."""
    if values.dtype != np.float16:
        return np.asarray(np.isfinite(values))
    return np.asarray((values.view(np.uint16) & _EXPONENT) != _EXPONENT)


@lru_cache(maxsize=16)
def _on_device(
    scale: tuple[float, ...], offset: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets, float32 (1, C, 1, 1), where values are."""
    import torch

    with torch.inference_mode(False):  # what is kept must serve callers outside of that mode too
        one, other = (torch.tensor(v, dtype=torch.float32, device=device).reshape(1, -1, 1, 1) for v in (scale, offset))
        return one, other


def widened(values: Values) -> Values:
    """float16, as encoders on a GPU give it, as float32, in which values are packed; others as they are."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def known(values: Values) -> npt.NDArray[np.bool_]:
    """Where unpacked values are, number by number: real ones are finite, codes 0 or more."""
    return np.asarray(np.isfinite(values) if values.dtype.kind == "f" else values >= 0)


def none_of(dtype: npt.DTypeLike) -> float | int:
    """What stands for no value among unpacked ones of a dtype."""
    return float("nan") if np.dtype(dtype).kind == "f" else -1


def plain_storage(dtype: str) -> Storage | None:
    """The storage of values that are stored as they are, by its dtype; None where it takes more to know."""
    return next((storage for storage in (Half(), Raw32()) if storage.dtype == dtype), None)


def storage_of(document: Mapping[str, Any]) -> Storage:
    """The storage of a document that `Storage.document` gave. InputError for one that is unknown."""
    name = document.get("name")
    if name == Half.name:
        return Half()
    if name == Raw32.name:
        return Raw32()
    if name == Codes.name:
        return Codes(int(document["levels"]))
    for affine in (Affine8, Affine16):
        if name == affine.name:
            scale, offset = (tuple(map(float, document[key])) for key in ("scale", "offset"))
            return affine(scale, offset)
    known = ", ".join(storage.name for storage in (Half, Affine16, Affine8, Codes, Raw32))
    raise InputError(f"storage {name!r} is not known: there are {known}")
