"""Batches measured on a device: equal to the measuring of one tile after another; land cover by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.evaluation.batches import measure_batch, physical
from model.evaluation.figures import measure
from model.evaluation.land_cover import UNLABELLED, ClassSums, class_name
from model.sensors import SENSORS


@pytest.mark.parametrize("borders", [True, False])
@pytest.mark.parametrize("red_nir", [None, (3, 7)])
def test_a_batch_is_measured_as_its_tiles_are(borders: bool, red_nir: tuple[int, int] | None) -> None:
    rng = np.random.default_rng(0)
    target = rng.uniform(-0.02, 0.4, (3, 12, 24, 20)).astype(np.float32)
    back = (target + 0.02 * rng.normal(size=target.shape)).astype(np.float32)
    rows = measure_batch(torch.from_numpy(back), torch.from_numpy(target), 1.5, "abc", red_nir, borders=borders)
    for row, a, b, name in zip(rows, back, target, "abc", strict=True):
        expected = measure(a, b, 1.5, name, red_nir, borders=borders)
        assert (row.ground, row.pixels, row.span) == (expected.ground, expected.pixels, expected.span)
        assert row.ndvi_pixels == expected.ndvi_pixels
        for key in ("square", "ssim", "angle", "ndvi"):
            np.testing.assert_allclose(getattr(row, key), getattr(expected, key), rtol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", ["S2L2A", "S1RTC"])
def test_physical_units_are_the_sensors(name: str) -> None:
    sensor = SENSORS[name]
    z = np.random.default_rng(0).normal(size=(2, len(sensor.bands), 4, 4)).astype(np.float32)
    expected = np.stack([sensor.physical(one) for one in z])
    np.testing.assert_allclose(physical(torch.from_numpy(z), sensor).numpy(), expected, rtol=1e-6)


def test_land_cover_counts_each_pixel_for_its_class_and_none_without() -> None:
    sums = ClassSums(2)
    target = torch.zeros(1, 2, 2, 2)
    back = torch.tensor([[[[1.0, 2], [3, 4]], [[0, 0], [0, 0]]]])
    sums.add(back, target, torch.tensor([[[2, 2], [UNLABELLED, 17]]]))
    sums.add(back, target, torch.tensor([[[2, UNLABELLED], [UNLABELLED, UNLABELLED]]]))
    assert sums.counts() == {"2 trees": 3, "17 unknown": 1}
    found = sums.figures(10.0)
    assert found["2 trees"]["rmse"]["value"] == pytest.approx((6 / 6) ** 0.5)
    assert found["17 unknown"]["psnr"]["value"] == pytest.approx(10 * np.log10(100 / 8))


def test_classes_are_esris_without_gaps() -> None:
    assert [class_name(code) for code in (1, 5, 9, 10)] == ["1 water", "5 built area", "9 rangeland", "10 unknown"]
