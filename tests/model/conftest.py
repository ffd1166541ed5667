"""Fixtures of the model tests: the golden network and vectors, a network small enough for every layout."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from model.eo_vae import EOVAE, EOVAEConfig

SMALL = EOVAEConfig(
    ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=4, norm_groups=4, hypernet_layers=1, wavelength_dim=16,
    hypernet_ff=16, hypernet_heads=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Last bits follow from the number of torch's threads: one, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def golden_vae(shared_dir: Path) -> EOVAE:
    """The golden network in eval mode; read only."""
    path = shared_dir / "golden" / "eo_vae_small_weights.safetensors"
    with safe_open(path, "pt") as file:
        config = EOVAEConfig.from_dict(json.loads(file.metadata()["config"]))
    vae = EOVAE(config)
    vae.load_state_dict(load_file(path))
    return vae.eval()


@pytest.fixture(scope="session")
def golden_vectors(shared_dir: Path) -> Mapping[str, Tensor]:
    """Tensors by `<sensor>.<side>.<what>`."""
    return load_file(shared_dir / "golden" / "eo_vae_small_vectors.safetensors")


@pytest.fixture
def small_vae() -> EOVAE:
    """A network of a few thousand parameters from a fixed seed, with batch-norm statistics that are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = EOVAE(SMALL)
        assert vae.bn.running_mean is not None and vae.bn.running_var is not None
        vae.bn.running_mean.uniform_(-1, 1)
        vae.bn.running_var.uniform_(0.5, 2)
    return vae.eval()
