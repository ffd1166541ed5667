"""A small cube to be super-resolved, and random weights that do it: no training, no scenes."""

from __future__ import annotations

from pathlib import Path

import torch

from eocube.ground.grid import grids_for
from eocube.plan.plan import Plan, TimeStep
from eocube.products.eo_vae_document import Encoding, latents
from eocube.sensors import get_sensor
from model.eo_vae import EOVAE
from model.super_resolution import SRConfig, SRMeta, SuperResolver, save_sr
from model.unet import UNetConfig
from model.weights import load_weights, save_weights
from model.weights_meta import SensorMeta, WeightsMeta
from tests.eocube.cubes import TIMES, TINY

CORE, HALO, SHARD = 8, 2, 16
BOX = (11.500, 48.100, 11.517, 48.112)


def make_encoder(path: Path, seed: int = 0, sensor: str = "RGBN") -> Path:
    """Random weights that know one sensor."""
    torch.manual_seed(seed)
    s = get_sensor(sensor)
    known = SensorMeta(
        s.band_names, tuple(b.wavelength for b in s.bands), tuple(b.mean for b in s.bands),
        tuple(b.std for b in s.bands), "reflectance*1e4", True, "test",
    )  # fmt: skip
    save_weights(EOVAE(TINY).eval(), path, WeightsMeta("tiny", TINY, {sensor: known}, "none", "CC0-1.0", "2026-11-27"))
    return path


def make_parent_plan(
    weights: Path, *, storage: str = "fp16", times: tuple[str, ...] = TIMES[:1], sensor: str = "RGBN",
    resolution: int = 10,
) -> Plan:  # fmt: skip
    """A plan of 10 m cells whose cores of 8 cells can be cut into four parts."""
    vae = load_weights(weights)
    assert vae.meta is not None
    grid = grids_for(BOX, resolution, core_px=CORE * 8, halo_px=HALO * 8, shard_px=SHARD * 8)[0]
    steps = ((0.05,) * 4, (0.1, 0.0, -0.1, 0.2)) if storage in ("int8", "codes") else None
    encoding = Encoding(str(weights), "tiny", vae.meta.sha256, 4, 8, "fp32", storage, steps)
    made = latents(get_sensor(sensor).with_weights(vae.meta), encoding, grid.lattice)
    taken = tuple(TimeStep(t, "sentinel-2a", f"group-{t}", (f"scene-{t}",)) for t in times)
    return Plan(made, grid, taken, (), {"bbox": list(BOX)})


def make_resolver(path: Path, encoder: Path, seed: int = 0, *, conditioning: str = "native") -> Path:
    """Random weights of a super-resolver of four channels for latents of an encoder, far from the identity."""
    torch.manual_seed(seed)
    net = SuperResolver(
        SRConfig(
            UNetConfig(4, 4, (8,), (1,), condition=4, condition_scale=4)
            if conditioning == "native"
            else UNetConfig(4, 4, (8,), (1,), condition=5),
            channels=4, base=3, conditioning=conditioning,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(0.05 * torch.randn_like(parameter) if "base" not in name else torch.zeros_like(parameter))
        assert net.base is not None
        net.base.weight[:, :, 1, 1] = torch.eye(4).repeat_interleave(
            net.config.finer**2, 0
        )  # each cell's latents, 4 x 4 times
        net.white.back.mul_(0.3)
        net.white.forth.div_(0.3)
    meta = load_weights(encoder).meta
    assert meta is not None
    save_sr(
        net, path,
        SRMeta(
            "tiny-sr", get_sensor("RGBN").band_names, {"weights": "tiny", "sha256": meta.sha256},
            ((40.0, 10.0),), (0.3,) * 4,
        ),
        torch.float32,
    )  # fmt: skip
    return path
