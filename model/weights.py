"""Reads and writes weights: shipped names, files, hf:// and foreign layouts read; safetensors with metadata written.

A loader that matches no key, or too few, raises: nothing is filled in silently.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import layouts
from model.eo_vae import EOVAE, EOVAEConfig
from model.weights_meta import SensorMeta, WeightsError, WeightsMeta, content_hash, published_meta
from model.weights_source import MAX_WEIGHTS, found, line_of, shipped_names

__all__ = [
    "SensorMeta", "WeightsError", "WeightsMeta", "content_hash", "flux_ends", "load_weights", "published_meta",
    "read_tensors", "save_weights", "shipped_names",
]  # fmt: skip

_SHOWN = 4


def load_weights(source: str | Path, *, device: str | torch.device = "cpu", config: EOVAEConfig | None = None) -> EOVAE:
    """An EO-VAE in float32 and eval mode, with `vae.meta` (None where the file says nothing of itself).

    Args:
        source: a shipped name ("nano"), a path, `hf://owner/name[@revision][/file]`, or any other fsspec URL
            (s3://bucket/w.safetensors). Files: our safetensors, a published Lightning .ckpt, FLUX.2's ae.safetensors in
            the original or the diffusers layout. Of FLUX.2 only the body is taken: the generated convolutions keep
            their random start.
        device: where the network goes.
        config: sizes, for files that do not state them; the published ones by default.

    Raises:
        WeightsError: no such weights, no weights file, or keys missing, unexpected or of another shape.
    """
    with found(str(source)) as (path, stated):
        config = config or stated
        state, header = _read(path)
        try:
            meta = WeightsMeta.from_header(header)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
        if meta is not None:
            if config is not None and config != meta.config:
                raise WeightsError(f"{path}: holds {meta.config}, not the configuration asked for: leave `config` out")
            config = meta.config
        return _build(path, state, meta, config or EOVAEConfig()).to(device).eval()


def save_weights(vae: EOVAE, path: str | Path, meta: WeightsMeta, dtype: torch.dtype = torch.float32) -> None:
    """Write weights as safetensors with their metadata, whole or not at all.

    Args:
        vae: the network.
        path: the target; its folder must exist.
        meta: metadata; its config must be the network's.
        dtype: float32 or float16. Batch-norm statistics stay float32: they need the range. So do the generators of the
            first and last convolution: what they generate is a small difference of large numbers (rounding them cost
            `nano` up to 8 % of RMSE, the body nothing).

    Raises:
        WeightsError: another dtype, metadata of another network, or values that are not finite in that dtype.
    """
    if dtype not in (torch.float32, torch.float16):
        raise WeightsError(f"weights are saved as float32 or float16, not {dtype}")
    if meta.config != vae.config:
        raise WeightsError(f"metadata state {meta.config}, the network is {vae.config}: state the network's own")
    state: dict[str, Tensor] = {}
    for key, tensor in vae.state_dict().items():
        value = tensor.detach().cpu()
        if value.is_floating_point():
            value = value.to(torch.float32 if key.startswith("bn.") or layouts.is_dynamic(key) else dtype)
            if not torch.isfinite(value).all():
                raise WeightsError(f"{key} is not finite in {dtype}: save as float32, or train again")
        state[key] = value.contiguous()
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        save_file(state, partial, metadata=meta.to_header())
        partial.chmod(0o644)  # safetensors writes for the owner alone; weights are there to be shared
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(source: str) -> tuple[str, dict[str, Tensor], dict[str, str] | None]:
    """What a weights file holds, for networks of another kind: how it is called, tensors by key, safetensors header.

    `source` is whatever `load_weights` takes. WeightsError where there is none, or it cannot be read.
    """
    with found(source) as (path, _):
        state, header = _read(path)
    return (source.split("?")[0] if "://" in source else str(path)), state, header


def flux_ends(source: str | Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FLUX.2's own first and last convolution, which EO-VAE generates instead: encoder weight and bias, decoder weight
    and bias, float32, of an `ae.safetensors` in the original or the diffusers layout.

    WeightsError where the file lacks one of them, or cannot be read.
    """
    with found(str(source)) as (path, _):
        state = layouts.strip_prefix(_read(path)[0])
        missing = [key for key in layouts.STATIC_ENDS if key not in state]
        if missing:
            raise WeightsError(f"{path}: no FLUX.2 autoencoder, it has no {_few(missing)}")
    first, first_bias, last, last_bias = (state[key].to(torch.float32) for key in layouts.STATIC_ENDS)
    return first, first_bias, last, last_bias


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Tensors by key and the safetensors header (None for a torch checkpoint)."""
    size = path.stat().st_size
    if size == 0:
        raise WeightsError(f"{path}: the file is empty")
    if size > MAX_WEIGHTS:
        raise WeightsError(
            f"{path}: has {size / 2**30:.0f} GiB, more than the {MAX_WEIGHTS // 2**30} that weights take"
        )
    if zipfile.is_zipfile(path):
        _check_archive(path)
        return _read_checkpoint(path), None
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError as error:
        if path.suffix == ".safetensors":
            raise WeightsError(
                f"{path}: truncated or no safetensors file ({line_of(error)}): fetch it again"
            ) from error
    return _read_checkpoint(path), None


def _check_archive(path: Path) -> None:
    """WeightsError for an archive that holds more than it seems: torch stores its members as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise WeightsError(f"{path}: a broken archive ({line_of(error)}): fetch it again") from error
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > MAX_WEIGHTS:
        raise WeightsError(f"{path}: no torch checkpoint, its members are packed: save it with torch.save")


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The `state_dict` of a torch or Lightning checkpoint, tensors only; no code in it is ever run."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are no pickle the unpickler fails in any way whatever
        raise WeightsError(
            f"{path}: neither safetensors nor a torch checkpoint of tensors only ({line_of(error)})"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: holds no state_dict")
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _build(path: Path, state: Mapping[str, Tensor], meta: WeightsMeta | None, config: EOVAEConfig) -> EOVAE:
    """The network with these tensors, after its keys have been brought to the network's own and checked."""
    state = layouts.strip_prefix(state)
    if layouts.is_diffusers(state):
        state = layouts.from_diffusers(state, len(config.ch_mult))
    body_only = layouts.is_flux(state)
    with torch.device("meta"):
        vae = EOVAE(config)
    expected = {key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()}
    absent: list[str] = []
    if body_only:
        state, absent = layouts.flux_body(state)
        expected = {key: shape for key, shape in expected.items() if not layouts.is_dynamic(key)}
    _check(path, state, expected, absent)
    tensors = {key: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    # By numpy: torch would wake its threads for each of hundreds of small tensors, for seconds on a busy machine.
    broken = [key for key, tensor in tensors.items() if not np.isfinite(tensor.numpy()).all()]
    if broken:
        raise WeightsError(f"{path}: values that are not finite in {_few(broken)}")
    if body_only:
        vae = EOVAE(config)
        vae.load_state_dict(tensors, strict=False)
        return vae
    vae.load_state_dict(tensors, assign=True)
    if meta is None and path.suffix == ".ckpt":
        meta = published_meta(config)
    vae.meta = None if meta is None else meta.with_hash(tensors)
    return vae


def _check(
    path: Path, state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], absent: Iterable[str]
) -> None:
    """WeightsError naming keys that are missing, unexpected or of another shape."""
    missing = [*absent, *(key for key in expected if key not in state)]
    unexpected = [key for key in state if key not in expected]
    common = [key for key in expected if key in state]
    if not common:
        raise WeightsError(f"{path}: no key of an EO-VAE among its {len(state)} ({_few(list(state))})")
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {expected[key]}"
        for key in common
        if tuple(state[key].shape) != expected[key]
    ]
    problems = [
        f"{len(keys)} {what}: {_few(keys)}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if keys
    ]
    if problems:
        raise WeightsError(f"{path}: not these weights' network; keys " + "; ".join(problems))


def _few(keys: list[str]) -> str:
    """The first few keys, and how many more there are."""
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
