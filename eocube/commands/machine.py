"""Finds out what this machine has that eocube can use: chips, compilers, GDAL's drivers, credentials, room, hosts."""

from __future__ import annotations

import configparser
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from eocube.net.redaction import redacted

PACKAGES = ("torch", "ray", "zarr", "xarray", "dask", "numpy", "rasterio", "pyproj", "s3fs", "pystac-client")
EXTRAS = {"tables": ("pyogrio", "pyarrow"), "s3": ("boto3",), "pc": ("planetary_computer",),
          "hf": ("huggingface_hub",), "train": ("h5py", "tensorboardX")}  # fmt: skip
"""Modules of each extra."""
CPU_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "avx512_fp16", "asimd", "sve", "bf16")
"""Instruction sets that matter, as Linux spells them."""
DRIVERS = ("GTiff", "COG", "JP2OpenJPEG", "Zarr")
S3_VARIABLES = (
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_ENDPOINT_URL", "AWS_NO_SIGN_REQUEST", "EOCUBE_STORAGE_OPTIONS",
)  # fmt: skip
NETWORK_S = 10.0
"""Seconds that a catalogue may take to answer."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What was found. `document()` is what `eocube doctor --json` prints under "machine"."""

    versions: Mapping[str, str | None]
    python: str
    system: str
    cpu: str
    cores: int
    core_quota: float | None
    """Cores' worth of time that a container leaves; None without a limit."""
    instruction_sets: tuple[str, ...]
    cpu_precision: str
    """bf16 or fp32: what the CPU is fastest in."""
    gpus: tuple[str, ...]
    gpu_unused: str | None
    """A GPU that the driver sees and this torch cannot use."""
    torch_build: str
    threads: int
    compiler: str | None
    kernels: str
    """The native kernels that a CPU encodes with, or why there are none."""
    gdal: str
    gdal_drivers: Mapping[str, bool]
    extras: Mapping[str, bool]
    s3: tuple[str, ...]
    """Where S3 credentials or settings lie; never what they are."""
    ray: Mapping[str, str | None]
    memory_bytes: int | None
    memory_free_bytes: int | None
    disk_free_bytes: Mapping[str, int]
    network: Mapping[str, str] = field(default_factory=dict)
    """By catalogue what became of asking it; empty where that was not wanted."""

    def document(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)


def look(*, network: bool = False) -> Machine:
    """Find out. Nothing is changed but the cache of native kernels, and no other machine asked without `network`."""
    import rasterio
    import torch
    from rasterio.session import DummySession

    from eocube.run.memory_limit import cpu_limit, memory_limit
    from model.chip import cpu_flags, fastest_cpu_dtype

    flags = cpu_flags()
    # Without a session of AWS's own, which broken credentials would keep from being made.
    with rasterio.Env(session=DummySession()) as env:
        known = set(env.drivers())
    gpus = tuple(_gpu(k) for k in range(torch.cuda.device_count())) if torch.cuda.is_available() else ()
    return Machine(
        versions={"eocube": _version("eocube"), **{name: _version(name) for name in PACKAGES}},
        python=f"{platform.python_version()} ({sys.executable})",
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        core_quota=cpu_limit(),
        instruction_sets=tuple(name for name in CPU_SETS if name in flags),
        cpu_precision="bf16" if fastest_cpu_dtype() == torch.bfloat16 else "fp32",
        gpus=gpus,
        gpu_unused=None if gpus else _seen_by_driver(),
        torch_build=f"{torch.__version__}, {'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU only'}",
        threads=torch.get_num_threads(),
        compiler=_compiler(),
        kernels=_kernels(),
        gdal=rasterio.__gdal_version__,
        gdal_drivers={name: name in known for name in DRIVERS},
        extras={name: all(map(_there, modules)) for name, modules in EXTRAS.items()},
        s3=_s3(),
        ray={name: _shown(os.environ.get(name)) for name in ("RAY_ADDRESS", "RAY_AUTH_MODE")},
        memory_bytes=memory_limit(),
        memory_free_bytes=_memory_free(),
        disk_free_bytes={str(place): shutil.disk_usage(place).free for place in (Path.cwd(), _temporary())},
        network=_network() if network else {},
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _shown(value: str | None) -> str | None:
    return None if value is None else redacted(value)


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "not known"
    found = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model")))
    return next(found, platform.processor() or "not known")


def _gpu(index: int) -> str:
    import torch

    found = torch.cuda.get_device_properties(index)
    fast = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
    return f"{found.name}, {found.total_memory / 1e9:.0f} GB, compute {found.major}.{found.minor}, {fast}"


def _seen_by_driver() -> str | None:
    """The first GPU that NVIDIA's own command lists; None where it is not there or sees none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        said = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return said.splitlines()[0].partition(" (UUID")[0] if said.strip() else None


def _compiler() -> str | None:
    return next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)


def _kernels() -> str:
    from model.native import NativeUnavailableError, native_steps

    try:
        return f"built: {native_steps().name}"
    except NativeUnavailableError as error:
        return f"none: {error}"


def _s3() -> tuple[str, ...]:
    """Names of variables, files and profiles. What they hold is read by the clients alone."""
    found = [name for name in S3_VARIABLES if os.environ.get(name)]
    for variable, usual in (("AWS_SHARED_CREDENTIALS_FILE", "credentials"), ("AWS_CONFIG_FILE", "config")):
        path = Path(os.environ.get(variable) or Path.home() / ".aws" / usual)
        if path.is_file():
            parser = configparser.RawConfigParser(strict=False)
            try:
                parser.read(path)
            except (configparser.Error, OSError, UnicodeDecodeError):
                found.append(f"{path} (cannot be read)")
                continue
            found.append(f"{path} ({', '.join(parser.sections()) or 'no profile'})")
    return tuple(found)


def _memory_free() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _temporary() -> Path:
    import tempfile

    return Path(tempfile.gettempdir())


def _network() -> dict[str, str]:
    """By catalogue: its answer and how long it took. Through the proxies that the environment names."""
    from eocube.scenes.stac import PRESETS

    found = {}
    for name, url in PRESETS.items():
        begun = time.monotonic()
        try:
            asked = Request(url, headers={"Accept": "application/json", "User-Agent": f"eocube/{_version('eocube')}"})
            with urlopen(asked, timeout=NETWORK_S) as reply:
                found[name] = f"answers ({reply.status}) in {time.monotonic() - begun:.1f} s"
        except HTTPError as error:
            found[name] = f"answers with status {error.code}"
        except (OSError, ValueError) as error:
            found[name] = f"no answer: {getattr(error, 'reason', error)}"
    return found
