"""What is measured, and against what: the network by name, its sensor, windows to encode, the reference."""

from __future__ import annotations

import difflib
import importlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.pictures import block_means, landscape
from benchmarks.results import BadInputError
from model.eo_vae import EOVAE, EOVAEConfig
from model.pixels import SensorLike, sampling_groups
from model.sensors import S2L2A
from model.weights import load_weights
from model.weights_meta import WeightsMeta, published_meta

PUBLISHED_SEED = 0
"""The published size has random weights here: its speed does not depend on them, and they need no download."""
RESOLUTION = 10
"""Metres a pixel."""
DISTINCT = 4
"""Different windows in a batch; a larger one repeats them."""
TINY = EOVAEConfig(
    ch=8, ch_mult=(1, 1, 1, 1), num_res_blocks=1, norm_groups=2, hypernet_layers=1, wavelength_dim=16, hypernet_ff=16,
    hypernet_heads=2,
)  # fmt: skip
"""For tests of the benchmark itself."""
MODELS = {"published": EOVAEConfig(), "nano": None, "tiny": TINY}


class Asked(Protocol):
    """What of the command line decides a measurement, whatever it measures."""

    @property
    def model(self) -> str: ...
    @property
    def quick(self) -> bool: ...
    @property
    def repeats(self) -> int | None: ...
    @property
    def threads(self) -> int | None: ...
    @property
    def device(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class SeenBand:
    """A band as weights were trained with it."""

    name: str
    wavelength: float
    gsd: int
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class SeenSensor:
    """A sensor as weights were trained with it; numbers as Sentinel-2's products of baseline 04.00 have them."""

    name: str
    bands: tuple[SeenBand, ...]
    scale: float = 1e-4
    offset: float = -0.1
    unit_factor: float = 1e4


def sentinel2(meta: WeightsMeta) -> SeenSensor:
    """Twelve bands of Sentinel-2 L2A with the wavelengths and statistics of weights."""
    entry = meta.sensors["S2L2A"]
    places = [entry.bands.index(band) for band in S2L2A.bands]
    bands = (
        SeenBand(name, float(entry.wavelengths[k]), gsd, float(entry.mean[k]), float(entry.std[k]))
        for name, gsd, k in zip(S2L2A.bands, S2L2A.gsd, places, strict=True)
    )
    return SeenSensor("S2L2A", tuple(bands))


@dataclass(frozen=True, slots=True)
class Subject:
    """A network, the sensor it sees and the side of its windows in pixels."""

    name: str
    vae: EOVAE
    sensor: SensorLike
    window: int
    halo: int
    """Latent pixels on each side of a window's core."""

    @property
    def wavelengths(self) -> list[float]:
        """One a band, micrometres."""
        return [band.wavelength for band in self.sensor.bands]


def subject(model: str) -> Subject:
    """The network of that name, with twelve bands of Sentinel-2.

    published: the published size with random weights of a fixed seed; nano: the shipped weights. BadInputError for
    others.
    """
    if model not in MODELS:
        near = difflib.get_close_matches(model, MODELS, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise BadInputError(f"--model: no {model!r}, there is published and nano{hint}")
    config = MODELS[model]
    if config is None:
        vae = load_weights(model).eval()
        assert vae.meta is not None, "shipped weights say what they were trained for"
        meta = vae.meta
    else:
        torch.manual_seed(PUBLISHED_SEED)
        vae, meta = EOVAE(config).eval(), published_meta(config)
        vae.meta = meta
    window, halo = (64, 1) if model == "tiny" else (256, 4)
    return Subject(model, vae, sentinel2(meta), window, halo)


def group_side(what: Subject, gsd: int) -> int:
    """Pixels along a window's group of that sampling, which reaches beyond the window by half a pixel at least and ends
    where such pixels do, as cores do too (`eocube.ground.lattice.Lattice.group_size`)."""
    if gsd == RESOLUTION:
        return what.window
    halo = what.halo * what.vae.scale_factor * RESOLUTION
    margin = -halo % gsd
    margin += gsd if margin < gsd / 2 else 0
    return (what.window * RESOLUTION + 2 * margin) // gsd


def raw_windows(what: Subject, count: int) -> dict[int, Tensor]:
    """Made-up landscapes as they travel: {sampling in metres: (count, bands, h, w) uint16}."""
    groups = sampling_groups(what.sensor, RESOLUTION)
    sides = {gsd: group_side(what, gsd) for gsd in groups}
    side = max(gsd // RESOLUTION * size for gsd, size in sides.items())
    wavelengths = np.array(what.wavelengths)
    made: dict[int, list[np.ndarray[Any, Any]]] = {gsd: [] for gsd in groups}
    for seed in range(min(count, DISTINCT)):
        seen = landscape(seed + 1, wavelengths, side)
        for gsd, places in groups.items():
            ratio = gsd // RESOLUTION
            margin = (side - sides[gsd] * ratio) // 2
            inner = slice(margin, margin + sides[gsd] * ratio)
            block = np.stack([block_means(seen[k, inner, inner], ratio) for k in places])
            raw = (block - what.sensor.offset) / what.sensor.scale
            made[gsd].append(raw.round().clip(1, 65535).astype(np.uint16))
    order = [k % min(count, DISTINCT) for k in range(count)]
    return {gsd: torch.from_numpy(np.stack([blocks[k] for k in order])) for gsd, blocks in made.items()}


@dataclass(frozen=True, slots=True)
class Reference:
    """What ours is held against: unfused, the hypernetwork run at every call."""

    name: str
    encode: Callable[[Tensor, Tensor], Tensor]
    """(B, C, H, W) z-scores, (C,) wavelengths -> (B, z, h, w) posterior means."""
    decode: Callable[[Tensor, Tensor], Tensor]
    """(B, z, h, w) raw latents, (C,) wavelengths -> (B, C, H, W) z-scores."""
    parameters: Mapping[str, int]
    """Numbers in the weights of each half."""


def reference(what: Subject, device: torch.device, checkout: Path | None = None) -> Reference:
    """The published code from a checkout of its repository, or our own unfused network, with the subject's weights.

    Raises:
        BadInputError: no such checkout, packages that it needs are missing, or a network that it cannot build.
    """
    if checkout is not None:
        return _published(what, device, checkout)
    vae = what.vae.to(device)
    return Reference(
        "eocube's unfused EOVAE", lambda x, w: vae.encode(x, w).mode(), lambda z, w: vae.decode(z, w), _sizes(vae)
    )


def _sizes(vae: Any) -> dict[str, int]:
    return {half: sum(p.numel() for p in getattr(vae, half).parameters()) for half in ("encoder", "decoder")}


def _published(what: Subject, device: torch.device, checkout: Path) -> Reference:
    cfg = what.vae.config
    folder = checkout / "eo_vae" / "models"
    if not (folder / "model.py").is_file():
        raise BadInputError(f"--reference: no eo_vae/models/model.py in {checkout}; give a checkout of nilsleh/eo-vae")
    if (cfg.norm_groups, cfg.hypernet_ff, cfg.hypernet_heads) != (32, 2048, 4):
        raise BadInputError(f"--reference: the published code cannot build {what.name}; use --model published")
    # The packages' own __init__ pull in training code and its dependencies: enter them without running it.
    for name, place in (("", checkout / "eo_vae"), (".models", folder), (".models.modules", folder / "modules")):
        package = types.ModuleType(f"_published_eo_vae{name}")
        package.__path__ = [str(place)]
        sys.modules[package.__name__] = package
    try:
        code = importlib.import_module("_published_eo_vae.models.model")
        posterior = importlib.import_module(
            "_published_eo_vae.models.modules.distributions"
        ).DiagonalGaussianDistribution
    except ModuleNotFoundError as error:
        raise BadInputError(f"--reference: the published code needs the package {error.name}; install it") from error
    shared = {
        "z_channels": cfg.z_channels, "resolution": what.window, "ch": cfg.ch, "ch_mult": list(cfg.ch_mult),
        "num_res_blocks": cfg.num_res_blocks, "use_dynamic_ops": True,
        "dynamic_conv_kwargs": {"num_layers": cfg.hypernet_layers, "wv_planes": cfg.wavelength_dim},
    }  # fmt: skip
    whole = torch.nn.Module()
    whole.encoder, whole.decoder = code.Encoder(in_channels=3, **shared), code.Decoder(out_ch=3, **shared)
    ours = {k: v for k, v in what.vae.state_dict().items() if not k.startswith("bn.")}
    whole.load_state_dict(ours)
    whole.eval().requires_grad_(False).to(device)
    encoder, decoder = cast(torch.nn.Module, whole.encoder), cast(torch.nn.Module, whole.decoder)
    return Reference(
        "nilsleh/eo-vae", lambda x, w: posterior(encoder(x, w)).mode(), lambda z, w: decoder(z, w), _sizes(whole)
    )
