"""Reads and writes weights: shipped names, files, hf:// and foreign layouts read; safetensors with metadata written.

A loader that matches no key, or too few, raises: nothing is filled in silently.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import layouts
from model.eo_vae import EOVAE, EOVAEConfig
from model.weights_meta import SensorMeta, WeightsError, WeightsMeta, content_hash, published_meta

__all__ = [
    "SensorMeta", "WeightsError", "WeightsMeta", "content_hash", "flux_ends", "load_weights", "published_meta",
    "read_tensors", "save_weights", "shipped_names",
]  # fmt: skip

_HF = re.compile(r"^hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<rev>[^/]+))?(/(?P<file>.+))?$")
_SHOWN = 4
MAX_CONFIG = 2**20
MAX_WEIGHTS = 16 * 2**30
"""Bytes of a weights file, and of what it unpacks to: the largest that are read have 1.4 GB."""


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
    with _found(str(source)) as (path, stated):
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
    with _found(source) as (path, _):
        state, header = _read(path)
    return (source.split("?")[0] if "://" in source else str(path)), state, header


def flux_ends(source: str | Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """FLUX.2's own first and last convolution, which EO-VAE generates instead: encoder weight and bias, decoder weight
    and bias, float32, of an `ae.safetensors` in the original or the diffusers layout.

    WeightsError where the file lacks one of them, or cannot be read.
    """
    with _found(str(source)) as (path, _):
        state = layouts.strip_prefix(_read(path)[0])
        missing = [key for key in layouts.STATIC_ENDS if key not in state]
        if missing:
            raise WeightsError(f"{path}: no FLUX.2 autoencoder, it has no {_few(missing)}")
    first, first_bias, last, last_bias = (state[key].to(torch.float32) for key in layouts.STATIC_ENDS)
    return first, first_bias, last, last_bias


def shipped_names() -> tuple[str, ...]:
    """Names of the weights inside the package: encoders', and those of super-resolvers (sr-...)."""
    folder = resources.files("model") / "weights_data"
    if not folder.is_dir():
        return ()
    files = (Path(entry.name) for entry in folder.iterdir())
    return tuple(sorted(file.stem for file in files if file.suffix == ".safetensors"))


@contextmanager
def _found(source: str) -> Iterator[tuple[Path, EOVAEConfig | None]]:
    """The file that a source means, on this machine, and the sizes that lie beside it on the hub; what a URL gives is
    kept while it is read and no longer, and errors name the URL."""
    if source.startswith("hf://"):
        yield _from_hub(source)
    elif "://" not in source:
        yield _resolve(source), None
    else:
        said = source.split("?")[0]  # what follows may be a signature
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / (PurePosixPath(said).name or "weights")
            _fetch(source, said, path)
            try:
                yield path, None
            except WeightsError as error:
                raise WeightsError(str(error).replace(str(path), said)) from error


def _fetch(url: str, said: str, path: Path) -> None:
    import fsspec  # not where weights lie on a disk

    try:
        files, inside = fsspec.core.url_to_fs(url)
        size = files.info(inside)["size"]
        if size is not None and size > MAX_WEIGHTS:
            raise WeightsError(
                f"{said}: {size / 2**30:.0f} GiB, more than the {MAX_WEIGHTS // 2**30} that weights take"
            )
        files.get_file(inside, str(path))
    except WeightsError:
        raise
    except FileNotFoundError as error:
        raise WeightsError(f"no such weights file: {said}") from error
    except Exception as error:  # each store has errors of its own; each one means "cannot be had"
        raise WeightsError(f"{said}: cannot be fetched ({_line(error)})") from error
    if not path.is_file():
        raise WeightsError(f"{said} is a folder: name the weights file inside it")


def _resolve(text: str) -> Path:
    """The file that a shipped name or a path means."""
    shipped = shipped_names()
    if text in shipped:
        # Wheels are unpacked on installation, so the resource is a file.
        return Path(str(resources.files("model") / "weights_data" / f"{text}.safetensors"))
    path = Path(text).expanduser()
    if path.is_dir():
        raise WeightsError(f"{text} is a folder: name the weights file inside it")
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"no such weights file: {text}")
    near = difflib.get_close_matches(text.lower(), shipped, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise WeightsError(f"no weights named {text!r}: {hint}Shipped are {', '.join(shipped) or 'none'}; or give a path")


def _from_hub(url: str) -> tuple[Path, EOVAEConfig | None]:
    """Download a hub repository's weights file, and the configuration that lies beside it."""
    parts = _HF.match(url)
    if parts is None:
        raise WeightsError(f"{url}: write hf://owner/name, hf://owner/name@revision or hf://owner/name/file")
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise WeightsError(f'{url} needs huggingface_hub: pip install "eocube[hf]"') from error
    repo, revision = parts["repo"], parts["rev"]
    try:
        names = sorted(hub.list_repo_files(repo, revision=revision))
        name = parts["file"] or _choose(url, names)
        path = Path(hub.hf_hub_download(repo, name, revision=revision))
        beside = "model_config.yaml"
        config = None
        if beside in names and not name.endswith(".safetensors"):
            config = _config_from_yaml(Path(hub.hf_hub_download(repo, beside, revision=revision)))
    except WeightsError:
        raise
    except Exception as error:  # the hub's errors differ between its versions; each one means "cannot be had"
        raise WeightsError(f"{url}: cannot be fetched ({_line(error)})") from error
    return path, config


def _choose(url: str, names: Iterable[str]) -> str:
    """The one weights file of a repository: safetensors before .ckpt."""
    present = list(names)
    for suffix in (".safetensors", ".ckpt"):
        found = [name for name in present if name.endswith(suffix)]
        if len(found) == 1:
            return found[0]
        if found:
            raise WeightsError(f"{url}: several weights files, name one: {url}/{found[0]} (of {', '.join(found)})")
    raise WeightsError(f"{url}: no .safetensors or .ckpt in the repository")


def _config_from_yaml(path: Path) -> EOVAEConfig | None:
    """The first mapping in a model_config.yaml, at any depth, that states the body's sizes; None without one."""
    import yaml

    known = set(EOVAEConfig().to_dict())
    seen = set[int]()

    def search(node: Any) -> EOVAEConfig | None:
        if id(node) in seen:  # what aliases repeat is looked at once
            return None
        seen.add(id(node))
        if isinstance(node, dict):
            if {"ch", "ch_mult", "z_channels"} <= set(node):
                return EOVAEConfig.from_dict({key: value for key, value in node.items() if key in known})
            node = list(node.values())
        if isinstance(node, list):
            for child in node:
                if (found := search(child)) is not None:
                    return found
        return None

    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(f"it has more than {MAX_CONFIG} bytes")
        return search(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: no configuration of a network ({_line(error)})") from error


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
            raise WeightsError(f"{path}: truncated or no safetensors file ({_line(error)}): fetch it again") from error
    return _read_checkpoint(path), None


def _check_archive(path: Path) -> None:
    """WeightsError for an archive that holds more than it seems: torch stores its members as they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise WeightsError(f"{path}: a broken archive ({_line(error)}): fetch it again") from error
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > MAX_WEIGHTS:
        raise WeightsError(f"{path}: no torch checkpoint, its members are packed: save it with torch.save")


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The `state_dict` of a torch or Lightning checkpoint, tensors only; no code in it is ever run."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are no pickle the unpickler fails in any way whatever
        raise WeightsError(
            f"{path}: neither safetensors nor a torch checkpoint of tensors only ({_line(error)})"
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


def _line(error: BaseException) -> str:
    """An error as one short line."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
