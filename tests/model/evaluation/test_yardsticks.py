"""The KLTs of the comparison at equal bits: of images alone, and of images and what training draws of them."""

from __future__ import annotations

import numpy as np

from model.evaluation.yardsticks import DRAWS, IMAGES, linear
from model.sensors import SENSORS, Floats
from model.training.eo_vae.klt import Klt, fit_klt
from model.training.sources.images import Image, complete, completed

RADAR = SENSORS["S1RTC"]


def stripes(seed: int = 0, size: int = 128) -> Floats:
    """(2, size, size) dB that change along rows alone: turned patches change along columns too."""
    line = np.random.default_rng(seed).normal(-14, 3, (2, 1, size))
    return np.broadcast_to(line, (2, size, size)).astype(np.float32).copy()


def image(data: Floats, *, held_out: bool = False, place: str = "p") -> Image:
    return Image("i", place, "S1RTC", RADAR.bands, data, 10.0, held_out=held_out)


def lost(klt: Klt, tile: Floats) -> float:
    return float(np.square(klt.reconstruct(tile) - tile).mean())


def few(klt: Klt, coefficients: int = 40) -> Klt:
    return Klt(klt.mean, np.ascontiguousarray(klt.basis[:, :coefficients]))


def test_the_second_klt_is_fitted_on_what_the_sampler_draws() -> None:
    log: list[str] = []
    found = linear([image(stripes())], RADAR, 16, 0, log.append)
    assert list(found) == [IMAGES, DRAWS] and not log
    turned = RADAR.zscore(np.ascontiguousarray(stripes(1).transpose(0, 2, 1)))
    # No image has rows that change downwards: only the turned draws do.
    assert lost(few(found[DRAWS]), turned) < 0.3 * lost(few(found[IMAGES]), turned)
    again = linear([image(stripes())], RADAR, 16, 0, log.append)
    assert np.array_equal(again[DRAWS].basis, found[DRAWS].basis)
    assert not np.array_equal(linear([image(stripes())], RADAR, 16, 1, log.append)[DRAWS].basis, found[DRAWS].basis)


def test_patches_weigh_as_much_as_images_whatever_their_number() -> None:
    rng = np.random.default_rng(0)
    patches = [rng.normal(size=(2, 16, 16)).astype(np.float32) for _ in range(3)]
    images = [image(stripes())]
    one, three = (fit_klt(images, RADAR, 8, more=patches * n) for n in (1, 3))
    alone = fit_klt(images, RADAR, 8)
    assert one is not None and three is not None and alone is not None
    np.testing.assert_allclose(one.mean, three.mean)
    np.testing.assert_allclose(np.abs((one.basis * three.basis).sum(0)), 1, atol=1e-6)
    own = np.mean([p.reshape(2, 2, 8, 2, 8).transpose(1, 3, 0, 2, 4).reshape(4, 128).mean(0) for p in patches], axis=0)
    np.testing.assert_allclose(one.mean, (alone.mean + own) / 2, atol=1e-6)


def test_without_images_or_draws_there_are_fewer_yardsticks() -> None:
    log: list[str] = []
    assert linear([image(stripes(), held_out=True)], RADAR, 8, 0, log.append) == {}
    assert list(linear([image(stripes())], RADAR, 0, 0, log.append)) == [IMAGES] and not log
    gaps = stripes()
    gaps[:, ::16, ::16] = np.nan  # whole blocks there are, whole patches none
    assert list(linear([image(gaps)], RADAR, 8, 0, log.append)) == [IMAGES]
    assert len(log) == 1 and "S1RTC: no KLT of the sampler's draws: no valid patch of 96 px" in log[0]


def test_nothing_is_completed_without_a_complete_image() -> None:
    assert complete([image(stripes())]) == [] and completed([image(stripes())]) == []
