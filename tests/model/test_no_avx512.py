"""Checks that bfloat16 runs on CPUs where oneDNN has no layout of its own for it (without AVX-512)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.fused_body import Conv


def test_a_convolution_in_bf16_is_not_packed_where_the_cpu_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)

    def refuse(*_: object) -> None:
        raise RuntimeError("mkldnn_reorder_conv2d_weight: bf16 path needs the cpu support")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", refuse)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 4, 3, 3, generator=generator).bfloat16()
    x = torch.randn(1, 4, 16, 16, generator=generator).bfloat16()
    bias = torch.zeros(8)
    found = Conv(weight, bias, torch.bfloat16, 16, padding=1)(x)
    assert torch.equal(found, F.conv2d(x, weight, bias.bfloat16(), padding=1))
