"""Fixtures of the model tests: golden networks and vectors, a network small enough for every layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.eo_vae import EOVAE, EOVAEConfig
from tests.model import golden

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
def golden_vae() -> EOVAE:
    """A network with weights by a rule, in eval mode; read only."""
    return golden.eo_vae()


@pytest.fixture(scope="session")
def golden_vectors() -> Mapping[str, Tensor]:
    """Its tensors by `<sensor>.<side>.<what>`: inputs by a rule, outputs as kept (pictures: every 5th pixel)."""
    return {**golden.inputs(), **load_file(golden.GOLDEN / "eo_vae.safetensors")}


@pytest.fixture(scope="session")
def published(shared_dir: Path) -> tuple[EOVAE, Mapping[str, Tensor]]:
    """The network and vectors of the published code; read only. Skips without `../shared`."""
    return golden.published_eo_vae()


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
