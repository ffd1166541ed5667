"""Storages give back what they were given, as near as they say, and never take what is not there for a value."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eocube.errors import InputError
from eocube.products.storage import (
    Affine8,
    Affine16,
    Codes,
    Half,
    Raw32,
    Storage,
    known,
    none_of,
    plain_storage,
    storage_of,
)  # fmt: skip

ALL: list[Storage] = [Half(), Raw32(), Affine8((0.1, 0.5), (0.0, -3.0)), Affine16((0.1, 0.5), (0.0, -3.0)), Codes(1000)]
REALS = st.lists(st.floats(width=32), min_size=6, max_size=6)


@pytest.mark.parametrize("storage", ALL, ids=lambda s: s.name)
def test_its_document_gives_it_back(storage: Storage) -> None:
    assert storage_of(storage.document()) == storage
    blank = np.full((2, 3), storage.fill, storage.dtype)
    assert not storage.there(blank).any()
    assert (known(storage.unpack(blank)) == storage.there(blank)).all()
    assert (
        storage.unpack(blank).dtype
        == np.dtype(storage.unpacked)
        == np.asarray(none_of(storage.unpacked)).astype(storage.unpacked).dtype
    )


@given(REALS)
def test_reals_come_back_as_near_as_their_storage(numbers: list[float]) -> None:
    values = np.array(numbers, np.float32).reshape(2, 3)
    for storage in ALL[:4]:
        with np.errstate(over="ignore"):
            back = storage.unpack(storage.pack(values))
        assert back.dtype == np.float32 and storage.pack(values).dtype == np.dtype(storage.dtype)
        if storage.name == "fp32":
            finite = np.isfinite(values)
            assert (back[finite] == values[finite]).all() and np.isnan(back[~finite]).all()
        if storage.name == "fp16":
            inside = np.isfinite(values) & (np.abs(values) <= 65504)
            assert np.allclose(back[inside], values[inside], rtol=2**-11, atol=2**-24)
            assert np.isnan(back[~np.isfinite(values)]).all()
        if isinstance(storage, Affine8 | Affine16):
            scale, offset = (np.array(v, np.float32)[:, None] for v in (storage.scale, storage.offset))
            inside = np.isfinite(values) & (np.abs(values - offset) <= np.iinfo(storage.dtype).max * scale)
            # Half a step, and what float32 rounds off numbers of that size.
            assert (np.abs(back - values) <= scale * 0.5 + 1e-6 + 4e-7 * np.abs(values))[inside].all()
            assert np.isnan(back[~np.isfinite(values)]).all() and np.isfinite(back[np.isfinite(values)]).all()


@given(st.lists(st.integers(-5, 70_000), min_size=4, max_size=4))
def test_codes_are_kept_or_are_none(numbers: list[int]) -> None:
    values, storage = np.array(numbers, np.int32).reshape(1, 4), Codes(1000)
    back = storage.unpack(storage.pack(values))
    inside = (values >= 0) & (values < 1000)
    assert back.dtype == np.int32 and (back[inside] == values[inside]).all() and (back[~inside] == -1).all()
    assert (storage.there(storage.pack(values)) == inside).all()


def test_every_nan_has_one_bit_pattern() -> None:
    odd = np.array([0x7FC00001, 0xFFC00000, 0x7F800000], np.uint32).view(np.float32).reshape(3, 1)
    assert np.unique(Half().pack(odd).view(np.uint16)).tolist() == [0x7E00]
    assert np.unique(Raw32().pack(odd).view(np.uint32)).tolist() == [0x7FC00000]


def test_sound_windows_are_told_one_by_one() -> None:
    values = torch.zeros(4, 1, 2, 2)
    values[1, 0, 0, 0], values[2, 0, 1, 1], values[3, 0, 0, 1] = float("nan"), 7e4, 999.0
    assert Half().sound(values) == Affine8((1.0,), (0.0,)).sound(values) == [True, False, False, True]
    assert Affine16((1.0,), (0.0,)).sound(values) == [True, False, False, True]  # 7e4 steps are beyond 16 bits
    assert Affine16((4.0,), (0.0,)).sound(values.half()) == [True, False, False, True]  # no half either
    assert Affine16((4.0,), (0.0,)).sound(values) == [True, False, True, True]
    assert Raw32().sound(values) == [True, False, True, True]
    assert Codes(999).sound(values) == [True, False, False, False]
    assert Codes(1000).sound(values.nan_to_num().int()) == [True, True, False, True]


def test_what_makes_no_sense_is_refused_in_one_line() -> None:
    for wrong in (
        {"name": "fp8"},
        {},
        {"name": "uint16", "levels": 0},
        {"name": "int8", "scale": [0.0], "offset": [0]},
    ):
        with pytest.raises(InputError) as error:
            storage_of(wrong)
        assert "\n" not in str(error.value)
    assert plain_storage("float16") == Half() and plain_storage("int8") is None
