"""Finds the file that weights are named by: shipped names, paths, hf:// and other URLs. Without torch."""

from __future__ import annotations

import difflib
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from model.config import EOVAEConfig
from model.weights_meta import WeightsError

_HF = re.compile(r"^hf://(?P<repo>[^/@]+/[^/@]+)(@(?P<rev>[^/]+))?(/(?P<file>.+))?$")
MAX_CONFIG = 2**20
MAX_WEIGHTS = 16 * 2**30
"""Bytes of a weights file, and of what it unpacks to: the largest that are read have 1.4 GB."""


def shipped_names() -> tuple[str, ...]:
    """Names of the weights inside the package: encoders', and those of super-resolvers (sr-...)."""
    folder = resources.files("model") / "weights_data"
    if not folder.is_dir():
        return ()
    files = (Path(entry.name) for entry in folder.iterdir())
    return tuple(sorted(file.stem for file in files if file.suffix == ".safetensors"))


@contextmanager
def found(source: str) -> Iterator[tuple[Path, EOVAEConfig | None]]:
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
        raise WeightsError(f"{said}: cannot be fetched ({line_of(error)})") from error
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
            config = config_from_yaml(Path(hub.hf_hub_download(repo, beside, revision=revision)))
    except WeightsError:
        raise
    except Exception as error:  # the hub's errors differ between its versions; each one means "cannot be had"
        raise WeightsError(f"{url}: cannot be fetched ({line_of(error)})") from error
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


def config_from_yaml(path: Path) -> EOVAEConfig | None:
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
        raise WeightsError(f"{path}: no configuration of a network ({line_of(error)})") from error


def line_of(error: BaseException) -> str:
    """An error as one short line."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__
