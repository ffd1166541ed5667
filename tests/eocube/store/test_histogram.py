"""Histograms of codes merge in any order, come back from a receipt as they were, and take no absurd ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eocube.store.histogram import MOST_CODES, Histogram

CODES = st.lists(st.lists(st.integers(-1, 40), min_size=8, max_size=8), min_size=1, max_size=4)


@given(CODES)
def test_parts_make_the_whole_in_any_order(parts: list[list[int]]) -> None:
    arrays = [np.array(part, np.int32).reshape(2, 2, 2) for part in parts]
    whole = Histogram.of(np.concatenate(arrays, axis=1))
    assert Histogram.merged(map(Histogram.of, arrays)) == Histogram.merged(map(Histogram.of, arrays[::-1])) == whole
    assert Histogram.from_dict(whole.to_dict()) == whole
    assert whole.count == sum(int((a[0] >= 0).sum()) for a in arrays)


def test_entropy_is_bits_a_code() -> None:
    assert Histogram.of(np.arange(16).reshape(1, 4, 4)).entropy == (4.0,)
    assert Histogram.of(np.zeros((1, 4, 4), int)).entropy == (0.0,) and Histogram().entropy == ()


def test_absurd_ones_are_refused() -> None:
    sound = Histogram.of(np.arange(6).reshape(2, 3)).to_dict()
    for wrong in ({**sound, "codes": [MOST_CODES + 1]}, {**sound, "codes": [-1]}, {**sound, "codes": [3, 2]}):
        with pytest.raises(ValueError):
            Histogram.from_dict(wrong)
    with pytest.raises(ValueError, match="do not merge"):
        Histogram.of(np.zeros((1, 2), int)).merge(Histogram.of(np.zeros((2, 2), int)))
