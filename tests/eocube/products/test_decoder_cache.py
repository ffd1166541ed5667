"""Which precision a decoder runs in: mixed where that is as good as float32 with its weights, else float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from eocube.products import decoder_cache as decoders
from eocube.products.decoder_cache import MIXED, MIXED_ERROR, DecoderSpec, decode_one, sensor_json
from eocube.products.eo_vae import fit_sensor, load
from eocube.sensors import get_sensor


@pytest.mark.parametrize("limit", [MIXED_ERROR, 0.0])
def test_mixed_precision_is_taken_where_the_weights_stand_it(limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = load("nano")
    sensor = fit_sensor(get_sensor("S2L2A"), weights)
    monkeypatch.setattr("model.chip.fastest_cpu_dtype", lambda: torch.bfloat16)  # what is asked here is not the speed
    monkeypatch.setattr(decoders, "MIXED_ERROR", limit)
    monkeypatch.setattr(decoders, "_decoders", {})
    specs = [
        DecoderSpec("nano", weights.meta.sha256, sensor_json(sensor), ("B04", "B8A"), "cpu", dtype)
        for dtype in (MIXED, "float32")
    ]
    latents = np.random.default_rng(0).normal(0, 1, (32, 12, 12)).astype(np.float32)
    mixed, exact = (decode_one(spec, latents) for spec in specs)
    contrast = np.linalg.norm(exact - exact.mean(axis=(1, 2), keepdims=True))
    error = float(np.linalg.norm(mixed - exact) / contrast)
    assert error == 0.0 if limit == 0.0 else 0.0 < error <= 3 * MIXED_ERROR
