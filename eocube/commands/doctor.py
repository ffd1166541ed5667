"""Runs `eocube doctor`: what this machine has, what would make eocube faster on it, and what to type for that."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.filesize import decimal

from eocube.commands.answers import answer
from eocube.commands.help_page import Page
from eocube.commands.parsing import guarded, parse
from eocube.console import plain
from eocube.errors import Exit

if TYPE_CHECKING:
    from eocube.commands.machine import Machine

FEW_BYTES, LITTLE_DISK = 8e9, 10e9
"""Memory below which a run's rows are better bounded by hand, and disk below which a cube may not fit."""
CUDA_TORCH = "pip install --upgrade torch --index-url https://download.pytorch.org/whl/cu128"


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    """Say what this machine has that eocube uses, and what would make it faster, each with the command to type."""

    network: bool = False
    """Also ask the catalogues whether they answer; without it no other machine is asked."""
    json: bool = False
    """Print a JSON document."""


@dataclass(frozen=True, slots=True)
class Advice:
    """Something that would help."""

    what: str
    why: str
    type: str
    """The command, or how an option is given."""


DOCTOR = Page((
    ("this machine", "eocube doctor"),
    ("and whether Earth Search, Planetary Computer and CDSE can be reached", "eocube doctor --network"),
    ("for a bug report", "eocube doctor --json"),
))  # fmt: skip


def doctor_main(argv: Sequence[str]) -> int:
    """Say what is here."""
    options = parse(DoctorOptions, argv, "eocube doctor", DOCTOR)

    def command() -> int:
        from eocube.commands.machine import look

        found = look(network=options.network)
        advice = list(advised(found))
        document = {"machine": found.document(), "advice": [asdict(one) for one in advice]}
        answer(document, described(found, advice), as_json=options.json)
        return Exit.DONE

    return guarded(command)


def advised(machine: Machine) -> Iterator[Advice]:
    """What would help on a machine, the most telling first."""
    if machine.gpu_unused is not None:
        yield Advice(f"torch cannot use {machine.gpu_unused}", "a GPU encodes many times faster", CUDA_TORCH)
    if machine.compiler is None and not machine.gpus:
        yield Advice("no C++ compiler", "the native kernels make a CPU encode faster", _install("g++"))
    elif machine.kernels.startswith("none") and not machine.gpus:
        yield Advice(
            f"the native kernels are not built ({machine.kernels[6:]})",
            "they make a CPU encode faster",
            _install("g++"),
        )
    if machine.threads < machine.cores and not machine.gpus:
        yield Advice(
            f"torch takes {machine.threads} of {machine.cores} cores", "a variable such as OMP_NUM_THREADS bounds it",
            "unset OMP_NUM_THREADS MKL_NUM_THREADS",
        )  # fmt: skip
    if machine.core_quota is not None and machine.core_quota < machine.cores:
        yield Advice(
            f"the container leaves {machine.core_quota:g} of {machine.cores} cores", "threads wait for each other",
            f"export OMP_NUM_THREADS={max(1, int(machine.core_quota))}",
        )  # fmt: skip
    missing = [name for name, there in machine.gdal_drivers.items() if not there and name != "Zarr"]
    if missing:
        yield Advice(
            f"GDAL lacks {', '.join(missing)}",
            "some scenes cannot be read",
            "pip install --force-reinstall --only-binary :all: rasterio",
        )
    if machine.memory_bytes is not None and machine.memory_bytes < FEW_BYTES:
        gb = max(1, int(machine.memory_bytes / 4e9))
        yield Advice(
            f"{decimal(machine.memory_bytes)} of memory",
            "fewer rows read at once need less",
            f"eocube encode ... --memory {gb}",
        )
    for place, free in machine.disk_free_bytes.items():
        if free < LITTLE_DISK:
            yield Advice(
                f"{decimal(free)} free at {plain(place)}", "see first what a cube will take", "eocube plan ..."
            )
    if not machine.s3:
        yield Advice(
            "no S3 credentials seen",
            "CDSE's and your own buckets need them; public ones are read by --storage-options anon=true",
            "aws configure",
        )
    wants = {
        "s3": "GDAL finds AWS profiles and roles by boto3", "tables": "Shapefiles, GeoPackages and GeoParquet",
        "pc": "Planetary Computer", "hf": "weights by hf://", "train": "training",
    }  # fmt: skip
    for name, what in wants.items():
        if not machine.extras[name]:
            yield Advice(f"the extra `{name}` is not whole", what, f'pip install "eocube[{name}]"')


def _install(package: str) -> str:
    if shutil.which("apt-get"):
        return f"sudo apt-get install {package}"
    if shutil.which("dnf"):
        return "sudo dnf install gcc-c++"
    if platform.system() == "Darwin":
        return "xcode-select --install"
    return f"conda install -c conda-forge {'gxx' if package == 'g++' else package}"


def described(machine: Machine, advice: Sequence[Advice]) -> str:
    """What was found, for people."""
    lines = [f"{name:<12} {plain(value)}" for name, value in _rows(machine)]
    lines += ["", "what would help:" if advice else "nothing to improve was found"]
    for one in advice:
        lines += [f"  {plain(one.what)}: {one.why}", f"    {one.type}"]
    return "\n".join(lines)


def _rows(machine: Machine) -> Iterator[tuple[str, str]]:
    yield "eocube", f"{machine.versions['eocube']}, Python {machine.python}"
    yield "system", machine.system
    quota = "" if machine.core_quota is None else f", {machine.core_quota:g} by the container's quota"
    yield "cpu", f"{machine.cpu}, {machine.cores} cores{quota}"
    yield (
        "",
        f"{' '.join(machine.instruction_sets) or 'instruction sets not known'}; fastest in {machine.cpu_precision}",
    )
    yield (
        "gpu",
        "; ".join(machine.gpus)
        or (f"none that torch can use ({machine.gpu_unused})" if machine.gpu_unused else "none"),
    )
    yield "torch", f"{machine.torch_build}, {machine.threads} threads"
    yield "compiler", f"{machine.compiler or 'none'}; native kernels {machine.kernels}"
    drivers = ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in machine.gdal_drivers.items())
    yield "gdal", f"{machine.gdal}: {drivers}"
    yield "s3", ", ".join(machine.s3) or "no credentials seen"
    yield "ray", ", ".join(f"{name}={'not set' if value is None else value}" for name, value in machine.ray.items())
    free = "" if machine.memory_free_bytes is None else f", {decimal(machine.memory_free_bytes)} free now"
    yield "memory", "not known" if machine.memory_bytes is None else f"{decimal(machine.memory_bytes)}{free}"
    yield "disk", ", ".join(f"{decimal(free)} free at {place}" for place, free in machine.disk_free_bytes.items())
    yield (
        "packages",
        ", ".join(f"{name} {number or 'missing'}" for name, number in machine.versions.items() if name != "eocube"),
    )
    yield "extras", ", ".join(f"{name} {'yes' if there else 'no'}" for name, there in machine.extras.items())
    for name, said in machine.network.items():
        yield f"{name[:11]}", said
