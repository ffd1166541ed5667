"""Reads what weights say of themselves, without the network and without torch, for whoever only plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from model.weights_meta import WeightsError, WeightsMeta
from model.weights_source import found

_MEAN = "bn.running_mean"


@dataclass(frozen=True, slots=True)
class WeightsFacts:
    """Weights' metadata, and the means of their latents."""

    source: str
    """As the user names them."""
    meta: WeightsMeta
    means: tuple[float, ...] | None
    """Of each latent channel (z,), from the running statistics; None where the weights keep none."""


def weights_facts(source: str) -> WeightsFacts | None:
    """The facts of a safetensors file with our metadata on this machine; None for any other, which has to be loaded.

    Whether the tensors are those of the network is not looked at.

    Raises:
        WeightsError: no such weights, damaged metadata, or values that are not finite.
    """
    if "://" in source:
        return None
    with found(source) as (path, _):
        read = _read(path)
    if read is None:
        return None
    meta, state = read
    broken = [key for key, values in state.items() if not np.isfinite(values).all()]
    if broken:
        raise WeightsError(f"{path}: values that are not finite in {broken[0]}")
    means = None
    if _MEAN in state:  # of latents packed 2x2, channel-major: as `EOVAE.channel_statistics` has them, to the bit
        packed = state[_MEAN].astype(np.float64).reshape(meta.config.z_channels, -1)
        means = tuple(packed.mean(axis=1).tolist())
    return WeightsFacts(source, meta.with_hash(state), means)


def _read(path: Path) -> tuple[WeightsMeta, dict[str, NDArray[Any]]] | None:
    """Metadata and arrays; None where they are not ours, or not of numpy's types."""
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata()
            try:
                meta = WeightsMeta.from_header(header)
            except WeightsError as error:
                raise WeightsError(f"{path}: {error}") from error
            if meta is None:
                return None
            return meta, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except WeightsError:
        raise
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError):
        return None  # whoever loads it says what it is
