"""Makes golden networks and vectors that anyone can check: weights and inputs by a rule, outputs in tests/data/golden.

The outputs were recorded from this code after it had given the published code's own vectors (`../shared/golden`) to
1e-5, which needs that folder:

    python -m tests.model.golden        # checks, then writes tests/data/golden/*.safetensors

The rule, for a key k of shape s: `numpy.random.default_rng([SEED, crc32(k)])` draws in float64, cast to float32: scales
of norms normal(1, 0.1), other tensors of at most one dimension normal(0, 0.05), all else normal(0, 1 / sqrt(fan in)).
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.eo_vae import EOVAE, EOVAEConfig
from model.sensors import SENSORS
from model.terramind import Tokenizer, TokenizerSizes
from model.unet import ddim

SEED = 20261120
GOLDEN = Path(__file__).resolve().parents[1] / "data" / "golden"
SHARED = Path(__file__).resolve().parents[3] / "shared"
EO_VAE_CONFIG = EOVAEConfig(
    ch=32, ch_mult=(1, 1, 2, 2), num_res_blocks=1, z_channels=8, hypernet_layers=2, wavelength_dim=64
)
CASES = [(sensor, side) for sensor in ("S2L2A", "S1RTC", "RGBN") for side in (64, 96)]
WAVELENGTHS = {
    "S2L2A": SENSORS["S2L2A"].wavelengths, "S1RTC": SENSORS["S1RTC"].wavelengths,
    "RGBN": (0.665, 0.560, 0.490, 0.842),
}  # fmt: skip
TOKENIZER = TokenizerSizes(12, width=64, depth=2, heads=4, unet_base=32, unet_blocks=1)
LATTICE = (..., slice(None, None, 5), slice(None, None, 5))
"""Pixels of an image that are kept: 5 shares no factor with patches of 4, 8 and 16, so all their places are hit."""


def drawn(*seed: int, shape: tuple[int, ...]) -> Tensor:
    """An input: standard normal numbers in float32 that follow from the seed."""
    return torch.from_numpy(np.random.default_rng([SEED, *seed]).standard_normal(shape).astype(np.float32))


def weight(key: str, shape: tuple[int, ...], *, scales: Callable[[str], bool]) -> Tensor:
    """A tensor by the rule; `scales` says which one-dimensional keys are scales of norms."""
    rng = np.random.default_rng([SEED, zlib.crc32(key.encode())])
    if key.endswith("num_batches_tracked"):
        return torch.tensor(7)
    if key.endswith("running_var"):
        values = rng.uniform(0.5, 2, shape)
    elif len(shape) == 1 and scales(key):
        values = rng.normal(1, 0.1, shape)
    elif len(shape) <= 1:
        values = rng.normal(0, 0.05, shape)
    else:
        values = rng.normal(0, 1 / math.sqrt(math.prod(shape[1:])), shape)
    return torch.from_numpy(np.asarray(values, np.float32))


def eo_vae() -> EOVAE:
    """A small EO-VAE with weights by the rule, in eval mode."""
    with torch.device("meta"):
        vae = EOVAE(EO_VAE_CONFIG)
    shapes = {key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()}
    of_norms = lambda key: "norm" in key and key.endswith("weight")  # noqa: E731
    vae = EOVAE(EO_VAE_CONFIG)
    vae.load_state_dict({key: weight(key, shape, scales=of_norms) for key, shape in shapes.items()})
    return vae.eval()


def tokenizer() -> Tokenizer:
    """TerraMind's S2L2A tokenizer in its small form with weights by the rule, in eval mode.

    Scales are all one-dimensional keys that end with `weight`: the U-Net calls its GroupNorms `in_layers.0` and so on.
    """
    net = Tokenizer(TOKENIZER)
    state = {
        key: sine_cosine(TOKENIZER.width, TOKENIZER.grid)
        if key.endswith("pos_emb")
        else weight(key, tuple(tensor.shape), scales=lambda key: key.endswith("weight"))
        for key, tensor in net.state_dict().items()
    }
    net.load_state_dict(state)
    return net.eval()


def sine_cosine(width: int, grid: int) -> Tensor:
    """The fixed position table (1, width, grid, grid) of the published tokenizer: sin, cos of rows, then of columns."""
    rates = 1 / 10000 ** (torch.arange(width // 4, dtype=torch.float32) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float32)[:, None] * rates  # (place, channel)
    along = torch.cat([angles.sin(), angles.cos()], dim=1).T  # (width / 2, place)
    shape = (width // 2, grid, grid)
    return torch.cat([along[:, :, None].expand(shape), along[:, None, :].expand(shape)])[None].contiguous()


def crc(tensors: Mapping[str, Tensor], *, order: Sequence[str] | None = None) -> int:
    """CRC-32 over all tensors' bytes, in the order given, else by key and without tables of sines: those differ in the
    last bit between processors."""
    value = 0
    for key in order or sorted(key for key in tensors if not key.endswith("pos_emb")):
        value = zlib.crc32(tensors[key].contiguous().numpy().tobytes(), value)
    return value


def inputs() -> dict[str, Tensor]:
    """EO-VAE's inputs `<sensor>.<side>.x` (2, C, side, side) and `.wavelengths_um` (C,)."""
    found = {}
    for k, (sensor, side) in enumerate(CASES):
        um = torch.tensor(WAVELENGTHS[sensor])
        found[f"{sensor}.{side}.x"] = drawn(200, k, shape=(2, len(um), side, side))
        found[f"{sensor}.{side}.wavelengths_um"] = um
    return found


@torch.no_grad()
def eo_vae_outputs(vae: EOVAE, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the network makes of the inputs; names as in `../shared/golden`."""
    found = {}
    for case in sorted({key.rsplit(".", 1)[0] for key in given}):
        x, um = given[f"{case}.x"], given[f"{case}.wavelengths_um"]
        posterior = vae.encode(x, um)
        found |= {
            f"{case}.mean": posterior.mode(),
            f"{case}.logvar": posterior.logvar,
            f"{case}.packed_normalised": vae.normalise_packed(vae.pack(posterior.mean)),
            f"{case}.spatial_normalised": vae.normalise(posterior.mean),
            f"{case}.reconstruction": vae.reconstruct(x, um),
        }
    return found


@torch.no_grad()
def tokenizer_outputs(net: Tokenizer) -> dict[str, Tensor]:
    """What the tokenizer makes of the published vectors' own inputs; names as in `../shared/golden`."""
    found: dict[str, Tensor] = {}
    for name, x in {"s64": drawn(7, shape=(2, 12, 64, 64)), "s224": drawn(1, 224, shape=(1, 12, 224, 224))}.items():
        found[f"{name}.encoder_out"] = encoded = net.encoder(x)
        found[f"{name}.latent"] = latent = net.quant_proj(encoded)
        codes = net.quantise(latent)
        found[f"{name}.indices"] = net.quantise.tokens(codes).to(torch.int32)
        if name == "s224":
            noise = drawn(2, 224, shape=(1, 12, 224, 224))
            for step in (499, 999):
                found[f"{name}.B.x0_t{step}.lattice5"] = net.decoder(noise, step, codes)[LATTICE].clone()
        else:
            noise = drawn(8, shape=(2, 12, 64, 64))
            found[f"{name}.B.decode10"] = ddim(lambda x, step, codes=codes: net.decoder(x, step, codes), noise, 10)
    return found


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the expected tensor's norm."""
    if found.shape != expected.shape:
        raise ValueError(f"{tuple(found.shape)} against {tuple(expected.shape)}")
    return float((found - expected).double().norm() / expected.double().norm())


def published_eo_vae() -> tuple[EOVAE, dict[str, Tensor]]:
    """The published code's weights and vectors in `../shared`."""
    path = SHARED / "golden" / "eo_vae_small_weights.safetensors"
    with safe_open(path, "pt") as file:
        vae = EOVAE(EOVAEConfig.from_dict(json.loads(file.metadata()["config"])))
    vae.load_state_dict(load_file(path))
    return vae.eval(), load_file(SHARED / "golden" / "eo_vae_small_vectors.safetensors")


def layouts() -> dict[str, dict[str, list[int]]]:
    """Keys and shapes of the published checkpoints, by `eo_vae`, `terramind_tok_s2l2a` and `flux2_ae`."""
    found: dict[str, dict[str, list[int]]] = json.loads((GOLDEN / "layouts.json").read_text())
    return found


def check_against_published() -> dict[str, float]:
    """Relative errors of this code on the published vectors; ValueError where one is above 1e-5 or a token differs."""
    vae, vectors = published_eo_vae()
    given = {key: value for key, value in vectors.items() if key.endswith((".x", ".wavelengths_um"))}
    errors = {f"eo-vae {k}": relative(v, vectors[k]) for k, v in eo_vae_outputs(vae, given).items()}
    net, vectors = tokenizer(), load_file(SHARED / "golden" / "tm_s2l2a_small.safetensors")
    order = list(json.loads((SHARED / "specs" / "terramind_tok_s2l2a_small_state_dict.json").read_text()))
    with safe_open(SHARED / "golden" / "tm_s2l2a_small.safetensors", "pt") as file:
        if crc(net.state_dict(), order=order) != int(file.metadata()["crc32_state_dict_rule_B"]):
            raise ValueError("TerraMind: weights by the rule are not those that the published code had")
    for key, value in tokenizer_outputs(net).items():
        if key.endswith("indices"):
            errors[f"terramind {key}"] = float((value != vectors[key].to(torch.int32)).sum())
        elif key in vectors:
            errors[f"terramind {key}"] = relative(value, vectors[key])
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] > 1e-5:
        raise ValueError(f"{worst} is {errors[worst]:.1e} from the published code")
    return errors


def main() -> None:
    """Check, then write all files."""
    torch.set_num_threads(1)
    errors = check_against_published()
    print(f"{len(errors)} tensors as the published code has them, worst {max(errors.values()):.1e}")
    vae, net, given = eo_vae(), tokenizer(), inputs()
    latents = {
        f"{key}.lattice5" if key.endswith("reconstruction") else key: (
            value[LATTICE] if key.endswith("reconstruction") else value
        )
        for key, value in eo_vae_outputs(vae, given).items()
    }
    tokens = {
        f"{key}.lattice5" if key.endswith("decode10") else key: value[LATTICE] if key.endswith("decode10") else value
        for key, value in tokenizer_outputs(net).items()
    }
    for name, tensors, about in (
        ("eo_vae", latents, {"crc32_weights": str(crc(vae.state_dict())), "crc32_inputs": str(crc(given))}),
        ("terramind", tokens, {"crc32_weights": str(crc(net.state_dict()))}),
    ):
        path = GOLDEN / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata=about)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, {len(tensors)} tensors")
    specs = {
        name: json.loads((SHARED / "specs" / f"{name}_state_dict.json").read_text())
        for name in ("eo_vae", "terramind_tok_s2l2a", "flux2_ae")
    }
    (GOLDEN / "layouts.json").write_text(json.dumps(specs, separators=(",", ":")).replace('],"', '],\n"') + "\n")


if __name__ == "__main__":
    main()
