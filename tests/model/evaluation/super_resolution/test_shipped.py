"""The shipped `sr-nano`: it loads, knows its encoder, and is on a held-out place what its table says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from eocube.pairs.wald import ArrayImage, WaldPairs
from model.evaluation.super_resolution.methods import Resolver, Sampling, consistent
from model.evaluation.super_resolution.pairs import Case
from model.evaluation.super_resolution.ridge import shipped_ridge
from model.evaluation.super_resolution.space import EoVaeSpace
from model.sensors import Floats
from model.super_resolution import load_sr
from model.training.sources.images import load_source, read_listing
from model.weights import load_weights

ROOT = Path(__file__).parents[4]
LISTING = ROOT / "model" / "training" / "recipes" / "nano_data.yaml"
BANDS = ("B04", "B03", "B02", "B08")


def test_it_knows_the_shipped_encoder_and_what_it_was_not_trained_on() -> None:
    net, vae = load_sr("sr-nano"), load_weights("nano2")
    assert vae.meta is not None and net.meta is not None
    net.check_encoder(vae.meta.sha256, BANDS)
    held_out = {source.place for source in read_listing(LISTING) if source.held_out}
    trained = set(net.meta.split["train"])
    assert trained and not trained & held_out
    assert (ROOT / "model" / "weights_data" / "sr-nano.safetensors").stat().st_size < 16e6


@pytest.mark.real
def test_a_held_out_place_is_above_the_ridge_and_as_stated(shared_dir: Path) -> None:
    listed = next(s for s in read_listing(LISTING) if s.name == "bigearthnet_29UPU_4_55")
    (image,) = load_source(listed, shared_dir / "data")
    pixels = image.select(BANDS) * np.float32(1e-4)
    pairs = WaldPairs([ArrayImage("a", "a", "S2L2A", BANDS, pixels, 10.0, split="val")], 4, 224, 112, 96)
    net, vae = load_sr("sr-nano"), load_weights("nano2")
    assert net.meta is not None
    torch.set_num_threads(1)
    resolver = Resolver(net, EoVaeSpace(vae, BANDS, "RGBN"), Sampling(4, 1), net.meta.mtf)
    ridge = shipped_ridge(4, BANDS)
    assert ridge is not None
    errors: dict[str, list[Floats]] = {"sr": [], "ridge": [], "draw": []}
    for number in range(len(pairs.notes)):
        case = Case.of(pairs.read(number), number)
        errors["sr"].append(consistent(resolver.one_step(case), case, net.meta.mtf) - case.hr)
        errors["ridge"].append(ridge(case.lr) - case.hr)
        condition = resolver.condition(case)
        draw = resolver.pixels(resolver.draw(case, condition, 1, 4, "dpmpp"))[0]
        errors["draw"].append(draw - case.hr)
        assert np.isfinite(draw).all()
    psnr = {name: -10 * np.log10(np.mean(np.square(of))) for name, of in errors.items()}
    stated = net.meta.metrics["held_out"]["29UPU_4_55_S2L2A"]
    # The pair's border is mirrored here, where the store's has the image's own pixels: 0.14 dB of 96 px squares.
    assert psnr["sr"] == pytest.approx(stated["one_step+"]["psnr"], abs=0.2)
    assert psnr["sr"] > psnr["ridge"] + 0.1
    assert psnr["ridge"] > psnr["draw"] > stated["sample"]["psnr"] - 1
