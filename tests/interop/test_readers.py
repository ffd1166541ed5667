"""Other libraries read a store: what is installed here is tried, what is not is skipped with what to install."""

from __future__ import annotations

import pytest

from tests.interop.matrix import KINDS, Store, make
from tests.interop.readers import READERS, AbsentError, Reader

SHARDED = (3, 12)
"""GDAL up to this version does not know `sharding_indexed`; what newer ones do is tried."""


@pytest.fixture(scope="module", params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make(tmp_path_factory.mktemp("interop"), request.param)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_reader_gets_what_was_written(reader: Reader, store: Store) -> None:
    try:
        number = reader.number()
    except AbsentError as absent:
        pytest.skip(f"{absent} (.ci/interop does)")
    if reader.name.startswith("GDAL") and tuple(map(int, number.split()[0].split(".")[:2])) <= SHARDED:
        pytest.skip(f"GDAL {number} does not know Zarr's sharding")
    assert reader.read(store.path, store.truth)
