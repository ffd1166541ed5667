"""Which precision a decoder runs in: mixed where that is as good as float32 with its weights, else float32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from eocube.errors import InputError
from eocube.products import decoder_cache, eo_vae, registry
from eocube.products.base import Ask
from eocube.products.decoder_cache import MIXED, decode_one, spec_of
from eocube.products.eo_vae import MIXED_ERROR
from eocube.products.shared_batches import SIZES, Widening
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


def test_on_a_gpu_float16_is_taken_and_a_runs_own_check_captures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for a GPU: decoders are not computed there, only chosen."""
    product = registry.kind("eo-vae").plan(Ask(get_sensor("S2L2A"), 10, "nano", "fp16", None, "cpu"))
    made: list[dict[str, Any]] = []

    def decoder(vae: Any, sensor: Any, **how: Any) -> str:
        made.append(how)
        return "made"

    monkeypatch.setattr(eo_vae, "FusedDecoder", decoder)
    codec = registry.open(product)
    check = codec.decoder("meta", numerics={"kernels": "inductor"})
    reader, exact = codec.decoder("meta", MIXED, ("B04",)), codec.decoder("meta", "float32", ("B04",))
    assert isinstance(check, Widening) and isinstance(reader, Widening) and exact == "made"  # type: ignore[comparison-overlap]
    ours, theirs, wide = made
    assert ours["dtype"] == theirs["dtype"] == torch.float16 and wide["dtype"] == torch.float32
    assert ours["compile"] == "off" and ours["capture"] is False
    assert "capture" not in theirs and "compile" not in theirs


def test_windows_for_a_gpu_go_in_batches_and_come_out_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU around the CPU's decoder, which computes windows one by one whatever their mates."""
    product = registry.kind("eo-vae").plan(Ask(get_sensor("S2L2A"), 10, "nano", "fp32", None, "cpu"))
    kept = decoder_cache._Kept()
    monkeypatch.setattr(decoder_cache, "_kept", kept)
    default, same = (spec_of(product, ("B04",), "cpu", dtype) for dtype in (MIXED, "float32"))
    windows = np.random.default_rng(1).normal(0, 1, (6, 32, 8, 8)).astype(np.float32)
    expected = [decode_one(default, window) for window in windows]
    decode_one(same, windows[0])
    monkeypatch.setattr(decoder_cache, "_device", lambda spec: "cuda")
    with ThreadPoolExecutor(6, initializer=torch.set_num_threads, initargs=(1,)) as threads:
        found = list(threads.map(partial(decode_one, default), windows))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert kept.shared(default)._sizes == SIZES and kept.shared(same)._sizes == (1,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_decodes_as_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    product = registry.kind("eo-vae").plan(Ask(get_sensor("S2L2A"), 10, "nano", "fp32", None, "cpu"))
    monkeypatch.setattr(decoder_cache, "_kept", decoder_cache._Kept())
    windows = np.random.default_rng(2).normal(0, 1, (40, 32, 32, 32)).astype(np.float32)
    expected = np.stack([decode_one(spec_of(product, ("B04",), "cpu", "float32"), w) for w in windows])
    contrast = np.linalg.norm(expected - expected.mean(axis=(2, 3), keepdims=True))
    for dtype, limit in ((MIXED, 1e-2), ("float32", 1e-4)):
        spec = spec_of(product, ("B04",), "cuda", dtype)
        with ThreadPoolExecutor(20) as threads:
            found, again = (np.stack(list(threads.map(partial(decode_one, spec), windows))) for _ in range(2))
        assert np.linalg.norm(found - expected) / contrast < limit
        assert dtype == MIXED or np.array_equal(found, again)


def test_what_is_not_decoded_says_so() -> None:
    from tests.eocube.products.toys import MEANS

    product = MEANS.plan(Ask(get_sensor("S2L2A"), 10, "", "fp32", None, "cpu"))
    with pytest.raises(InputError, match=r"embedding cubes \(band-means\) are not decoded: values\(\)"):
        spec_of(product, ("B04",))
