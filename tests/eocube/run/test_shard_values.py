"""What is packed and counted many windows at a time is what it is window by window, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eocube.plan.plan import Plan
from eocube.products.storage import Affine8, Affine16, Codes, Half, Raw32, Storage
from eocube.run import shard_values
from eocube.run.shard_values import ShardValues, as_packed
from eocube.store.histogram import Histogram
from eocube.store.moments import Moments
from tests.eocube.cubes import fullest, make_plan, make_weights


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return make_plan(make_weights(tmp_path_factory.mktemp("w") / "tiny.safetensors"))


STEPS = (0.05, 0.1, 0.2, 0.03), (0.1, 0.0, -0.1, 0.2)
STORAGES = (Half(), Affine16(*STEPS), Affine8(*STEPS), Raw32(), Codes(300))


@pytest.mark.parametrize("together", [1, 3, 25])
@pytest.mark.parametrize(
    "storage", [Half(), Affine16(*STEPS), Affine8(*STEPS), Raw32(), Codes(300)], ids=lambda s: s.name
)
def test_together_or_one_by_one_is_the_same(
    plan: Plan, storage: Storage, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_values, "TOGETHER", together)
    rng, core = np.random.default_rng(0), plan.grid.lattice.core
    coded = isinstance(storage, Codes)
    product = replace(plan.product, storage=storage, summary="histogram" if coded else "moments")
    windows = plan.grid.windows_of_shard(*fullest(plan))
    values = {
        w: rng.integers(0, 300, (4, core, core)) if coded else rng.normal(0, 3, (4, core, core)).astype(np.float32)
        for w in windows
    }
    shard = ShardValues(product, plan.grid, storage)
    kept = storage.pack(values[windows[1]])
    for window in windows[2:]:
        shard.add(window, as_packed(torch.from_numpy(values[window]), storage))
    shard.keep(windows[1], kept)
    whole = shard.whole()
    for window in windows:
        row, col = plan.grid.place_in_shard(window)
        found = whole[:, row : row + core, col : col + core]
        if window == windows[0]:
            assert not storage.there(found).any(), "nothing was added there"
        else:
            assert found.tobytes() == storage.pack(values[window]).tobytes()
    summary = shard.summary(windows)
    stored = [storage.unpack(storage.pack(values[w])) for w in windows[1:]]
    if coded:
        assert summary == {"histogram": Histogram.merged(map(Histogram.of, stored))}
    else:
        assert summary == {"moments": Moments.merged(map(Moments.of, stored))}


def test_moments_of_each_are_those_of_one_to_the_bit() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(3, 2, (32, 25, 24, 24)).astype(np.float32)
    assert Moments.of_each(values) == [Moments.of(values[:, k]) for k in range(25)]
    values[3, 7, 1] = np.nan
    values[:, 9] = np.inf
    assert Moments.of_each(values) == [Moments.of(values[:, k]) for k in range(25)]
    assert Moments.of_each(values)[9].count == 0 and Moments.of_each(values)[7].count == 24 * 23


def test_moments_merge_as_pairs_do() -> None:
    rng = np.random.default_rng(2)
    parts = [Moments.of(rng.normal(0, 1, (4, n))) for n in (5, 1, 30)] + [Moments(0, (0.0,) * 4, (0.0,) * 4)]
    total = Moments(0, (), ())
    for part in parts:
        total = total.merge(part)
    assert Moments.merged(parts) == total and total.count == 36
    assert Moments.merged(()) == Moments(0, (), ())
    with pytest.raises(ValueError, match="do not merge"):
        Moments.merged([parts[0], Moments.of(np.ones((3, 2)))])


def test_torch_and_numpy_agree_on_every_float16() -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    number = ~np.isnan(every)
    wide = torch.from_numpy(every.copy()).float()
    assert wide.numpy()[number].tobytes() == every.astype(np.float32)[number].tobytes()
    floats = np.random.default_rng(3).integers(0, 2**32, 10**6, dtype=np.uint32).view(np.float32)
    number = ~np.isnan(floats)
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16)
    found = as_packed(torch.from_numpy(floats.copy()), Half())
    assert found[number].tobytes() == expected[number].tobytes()
    assert Half().pack(found).tobytes() == Half().pack(floats).tobytes(), "what is no number is one NaN"
    assert as_packed(wide.half(), Affine16(*STEPS)).dtype == np.float32


def test_where_values_are_finite_is_told_by_their_bits(tmp_path: Path) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    packed = Half().pack(every)
    np.testing.assert_array_equal(np.isfinite(packed), np.isfinite(every))
    assert (packed[~np.isfinite(every)].view(np.uint16) == np.float16(np.nan).view(np.uint16)).all()
