"""TerraMind's tokenizer: published layout to the tensor, scalars and tokens, the sampler, tiny weights end to end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from model.eo_vae import EOVAE, EOVAEConfig
from model.evaluation.study import FREE, Study
from model.sensors import CORRECTED, SENSORS, TrainedSensor
from model.terramind import (
    STATISTICS,
    FiniteScalars,
    TerraMind,
    Tokenizer,
    TokenizerSizes,
    clamp_alone,
    convert,
    load_tokenizer,
)
from model.unet import ddim, signal_shares
from model.weights_meta import WeightsError
from tests.model import golden
from tests.model.mirror import Mirror

TINY = TokenizerSizes(
    2, width=32, depth=2, heads=4, patch=16, grid=4, levels=(4, 4, 3), unet_base=32, unet_mult=(1, 2), unet_blocks=1,
    attend_at=(2,),
)  # fmt: skip

SMALL = EOVAEConfig(
    ch=16, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=16, norm_groups=2, hypernet_layers=1, wavelength_dim=32,
    hypernet_ff=32, hypernet_heads=2,
)  # fmt: skip


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "tiny.pt"
    torch.save({"model": Tokenizer(TINY).state_dict()}, path)
    return path


def test_layout_is_the_published_one() -> None:
    expected = golden.layouts()["terramind_tok_s2l2a"]
    with torch.device("meta"):
        found = {k: list(v.shape) for k, v in Tokenizer(TokenizerSizes(12)).state_dict().items()}
    assert found == expected


def test_parity_with_vectors_checked_against_the_published_code() -> None:
    """Weights and inputs by the rule of the published vectors: encoder, tokens, U-Net, ten steps of diffusion."""
    path = golden.GOLDEN / "terramind.safetensors"
    net, kept = golden.tokenizer(), load_file(path)
    with safe_open(path, "pt") as file:
        assert golden.crc(net.state_dict()) == int(file.metadata()["crc32_weights"])
    found = golden.tokenizer_outputs(net)
    found["s64.B.decode10.lattice5"] = found.pop("s64.B.decode10")[golden.LATTICE]
    assert set(found) == set(kept)
    for key, value in found.items():
        if key.endswith("indices"):
            assert torch.equal(value, kept[key]), key
        else:  # a LayerNorm's eps of 1e-5 in the place of 1e-6 would be an error of 5.6e-6 in the encoder
            assert golden.relative(value, kept[key]) < (2e-6 if key.endswith(("encoder_out", "latent")) else 1e-5), key


def test_parity_with_the_published_code(shared_dir: Path) -> None:
    errors = golden.check_against_published()
    assert sum(name.startswith("terramind") for name in errors) == 8


def test_parameter_counts_are_the_published_ones() -> None:
    with torch.device("meta"):
        counts = {c: sum(p.numel() for p in Tokenizer(TokenizerSizes(c)).parameters()) for c in (12, 2)}
    assert counts == {12: 289_290_693, 2: 286_587_173}


def test_tokens_and_codes_are_inverse_over_the_whole_book() -> None:
    scalars = FiniteScalars((8, 8, 8, 6, 5))
    tokens = torch.arange(15_360).reshape(1, 120, 128)
    codes = scalars.codes(tokens)
    assert codes.min() == 0 and codes.max() == 1
    torch.testing.assert_close(scalars.tokens(codes), tokens)
    assert scalars.tokens(scalars.codes(torch.tensor([[[512]]]))).item() == 512
    assert scalars.codes(torch.tensor([[[512]]]))[0, :, 0, 0].tolist() == pytest.approx([0, 0, 0, 1 / 5, 0])


def test_scalars_saturate() -> None:
    scalars = FiniteScalars((4, 3))
    z = torch.tensor([1e4, -1e4]).reshape(1, 2, 1, 1)
    assert scalars(z).flatten().tolist() == [1.0, 0.0]


def test_schedule_ends_in_noise_alone_and_begins_as_the_linear_one() -> None:
    shares = signal_shares()
    assert shares[-1] == 0
    assert float(shares[0]) == pytest.approx(1 - 1e-4)
    assert bool((shares.diff() < 0).all())


@pytest.mark.parametrize("clamp", [1.0, None])
def test_sampler_of_an_oracle_gives_the_truth(clamp: float | None) -> None:
    truth = torch.tensor([-3.0, -0.5, 0.2, 2.0]).reshape(1, 1, 2, 2)
    asked: list[int] = []

    def oracle(x: torch.Tensor, step: int) -> torch.Tensor:
        asked.append(step)
        return truth

    out = ddim(oracle, torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0)), 20, clamp=clamp)
    assert asked == list(range(999, 0, -50))
    expected = truth if clamp is None else truth.clamp(-1, 1)
    torch.testing.assert_close(out, expected)


def test_one_step_by_hand() -> None:
    """From step 499 on (two steps): the noise comes from the unclamped prediction."""
    noise = torch.tensor([[[[0.7]]]])
    shares = signal_shares()
    a = float(shares[499])
    x = math.sqrt(a) * 1.0 + math.sqrt(1 - a) * 0.7  # the first prediction, 5, is clamped to 1
    calls = []

    def predict(given: torch.Tensor, step: int) -> torch.Tensor:
        calls.append(float(given))
        return torch.full_like(given, 5.0 if step == 999 else 0.25)

    assert float(ddim(predict, noise, 2)) == pytest.approx(0.25)
    assert calls == pytest.approx([0.7, x])


def test_steps_beyond_the_schedule_are_refused() -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        ddim(lambda x, _: x, torch.zeros(1, 1, 4, 4), 1001)


def test_tiny_weights_reconstruct_any_size_and_the_clamp_binds(tiny: Path) -> None:
    sensor = SENSORS["S1RTC"]
    baseline = TerraMind(load_tokenizer(tiny, "S1RTC", TINY), "S1RTC", steps=3)
    z = np.random.default_rng(0).normal(size=(2, 40, 56)).astype(np.float32)
    clamped, free = (baseline.reconstruct(z, sensor, clamp=c) for c in (True, False))
    assert clamped.shape == free.shape == z.shape and np.isfinite(free).all()
    np.testing.assert_array_equal(clamped, baseline.reconstruct(z, sensor, clamp=True))  # the noise has a seed
    assert np.abs(convert(clamped, sensor, baseline.own)).max() <= 1 + 1e-4


def test_an_image_decodes_alike_in_any_batch(tiny: Path) -> None:
    sensor = SENSORS["S1RTC"]
    baseline = TerraMind(load_tokenizer(tiny, "S1RTC", TINY), "S1RTC", steps=3)
    z = np.random.default_rng(1).normal(size=(3, 2, 32, 32)).astype(np.float32)
    whole = baseline.reconstruct_batch(torch.from_numpy(z), sensor, clamp=True)
    for k in range(3):
        np.testing.assert_allclose(whole[k], baseline.reconstruct(z[k], sensor, clamp=True), atol=1e-4)


@pytest.mark.parametrize("name", ["S2L2A", "S1RTC"])
def test_the_tokenizer_is_fed_with_z_scores_by_its_own_statistics_whatever_the_pixels_had(name: str) -> None:
    dn = np.random.default_rng(0).uniform(-20, 3000, (len(SENSORS[name].bands), 32, 32)).astype(np.float32)
    mean, std = (np.array(v)[:, None, None] for v in STATISTICS[name])
    for theirs in (SENSORS[name], CORRECTED[name]):
        stub = Mirror()
        baseline = TerraMind(cast(Tokenizer, stub), name)
        back = baseline.reconstruct(theirs.zscore(dn), theirs, clamp=False)
        np.testing.assert_allclose(stub.fed[0][0], (dn - mean) / std, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(back, theirs.zscore(dn), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("statistics", [SENSORS, CORRECTED])
def test_the_study_says_which_statistics_its_tiles_have(statistics: Mapping[str, TrainedSensor]) -> None:
    stub, sensor = Mirror(), statistics["S2L2A"]
    study = Study("w", EOVAE(SMALL), [], terramind={"S2L2A": TerraMind(cast(Tokenizer, stub), "S2L2A")}, codecs=())
    dn = np.random.default_rng(0).uniform(0, 3000, (12, 64, 64)).astype(np.float32)
    back = study.methods(sensor)[FREE](sensor.zscore(dn), sensor)
    mean, std = (np.array(v)[:, None, None] for v in STATISTICS["S2L2A"])
    np.testing.assert_allclose(stub.fed[0][0], (dn - mean) / std, rtol=1e-4, atol=1e-4)
    assert back is not None
    np.testing.assert_allclose(back, sensor.zscore(dn), rtol=1e-4, atol=1e-4)


def test_other_bands_than_the_tokenizers_are_said() -> None:
    few = SENSORS["S2L2A"].subset(["B04", "B03"])
    with pytest.raises(ValueError, match="TerraMind S2L2A knows B01"):
        TerraMind(cast(Tokenizer, Mirror()), "S2L2A").reconstruct(np.zeros((2, 32, 32), np.float32), few, clamp=True)


def test_clamp_alone_is_the_truth_where_it_lies_within() -> None:
    sensor = SENSORS["S1RTC"]
    z = np.random.default_rng(0).normal(size=(2, 20, 20)).astype(np.float32)
    own = TerraMind(Tokenizer(TINY), "S1RTC").own
    inside = np.abs(convert(z, sensor, own)) <= 1
    back = clamp_alone(z, sensor)
    np.testing.assert_allclose(back[inside], z[inside], atol=1e-5)
    np.testing.assert_allclose(np.abs(convert(back, sensor, own))[~inside], 1, atol=1e-5)


@pytest.mark.parametrize(
    ("sensor", "content", "told"),
    [
        ("DEM", b"", "tokenizers can be given for"),
        ("S1RTC", b"no checkpoint", "no torch checkpoint"),
        ("S2L2A", None, "no TerraMind tokenizer of S2L2A"),
        ("S1RTC", "absent", "no such weights file"),
    ],
)
def test_bad_weights_are_one_line(sensor: str, content: bytes | str | None, told: str, tiny: Path) -> None:
    if content == "absent":
        tiny.unlink()
    elif isinstance(content, bytes):
        tiny.write_bytes(content)
    with pytest.raises(WeightsError, match=told) as caught:
        load_tokenizer(tiny, sensor, TokenizerSizes(12, width=32) if content is None else TINY)
    assert "\n" not in str(caught.value)
