"""Which precision a decoder runs in: mixed where that is as good as float32 with its weights, else float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eocube.errors import InputError
from eocube.products import decoder_cache, eo_vae, registry
from eocube.products.base import Ask
from eocube.products.decoder_cache import MIXED, decode_one, spec_of
from eocube.products.eo_vae import MIXED_ERROR
from eocube.sensors import get_sensor


@pytest.mark.parametrize("limit", [MIXED_ERROR, 0.0])
def test_mixed_precision_is_taken_where_the_weights_stand_it(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    product = registry.kind("eo-vae").plan(Ask(get_sensor("S2L2A"), 10, "nano", "fp32", None, "cpu"))
    monkeypatch.setattr(eo_vae, "fastest_cpu_dtype", lambda: torch.bfloat16)  # what is asked here is not the speed
    monkeypatch.setattr(eo_vae, "MIXED_ERROR", limit)
    monkeypatch.setattr(decoder_cache, "_kept", decoder_cache._Kept())
    specs = [spec_of(product, ("B04", "B8A"), "cpu", dtype) for dtype in (MIXED, "float32")]
    latents = np.random.default_rng(0).normal(0, 1, (32, 12, 12)).astype(np.float32)
    mixed, exact = (decode_one(spec, latents) for spec in specs)
    contrast = np.linalg.norm(exact - exact.mean(axis=(1, 2), keepdims=True))
    error = float(np.linalg.norm(mixed - exact) / contrast)
    assert error == 0.0 if limit == 0.0 else 0.0 < error <= 3 * MIXED_ERROR


def test_a_bounded_number_of_decoders_is_kept() -> None:
    product = registry.kind("eo-vae").plan(Ask(get_sensor("S2L2A"), 10, "nano", "fp32", None, "cpu"))
    kept = decoder_cache._Kept()
    bands = product.sensor.band_names
    specs = [spec_of(product, (name,), "cpu", "float32") for name in bands]
    made = [kept.decoder(spec) for spec in specs]
    assert len(specs) > decoder_cache.MOST_DECODERS == len(kept._decoders) and len(kept._codecs) == 1
    assert kept.decoder(specs[-1]) is made[-1] and kept.decoder(specs[0]) is not made[0]


def test_what_is_not_decoded_says_so() -> None:
    from tests.eocube.products.toys import MEANS

    product = MEANS.plan(Ask(get_sensor("S2L2A"), 10, "", "fp32", None, "cpu"))
    with pytest.raises(InputError, match=r"embedding cubes \(band-means\) are not decoded: values\(\)"):
        spec_of(product, ("B04",))
