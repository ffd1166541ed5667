"""What is installed: locks that fit pyproject.toml and one another, licences of all of it, one version."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import eocube

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
IN_IMAGES = ("train", "tables", "pc", "hf", "s3")
LOCKS = {
    "requirements.lock": (*IN_IMAGES, "dev"),
    "requirements-cpu.lock": IN_IMAGES,
    "requirements-cuda.lock": IN_IMAGES,
}


def pins(name: str) -> dict[str, str]:
    """Versions by package, of a lock."""
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / "infra" / name).read_text(), re.M))


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_has_all_that_is_required_in_a_version_that_is_allowed(lock: str) -> None:
    found = pins(lock)
    texts = [*PROJECT["dependencies"], *(text for extra in LOCKS[lock] for text in EXTRAS[extra])]
    for requirement in map(Requirement, texts):
        name = canonicalize_name(requirement.name)
        if name == "eocube" or (name == "torch" and lock == "requirements-cpu.lock"):
            continue  # a CPU's torch is installed by its version: see Dockerfile.cpu
        assert name in found and requirement.specifier.contains(found[name]), f"{requirement}: run infra/lock"


@pytest.mark.parametrize("lock", LOCKS)
def test_locks_agree_and_name_no_host(lock: str) -> None:
    every = pins("requirements.lock")
    assert {name: every.get(name) for name in pins(lock)} == pins(lock)
    assert "://" not in (ROOT / "infra" / lock).read_text()


@pytest.mark.parametrize("lock", ["requirements-cpu.lock", "requirements-cuda.lock"])
def test_images_install_by_hash(lock: str) -> None:
    text = (ROOT / "infra" / lock).read_text()
    entries = re.split(r"\n(?=[a-z])", text)[1:]
    assert len(entries) == len(pins(lock)) > 100
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", entry) for entry in entries)


def test_a_cpu_image_gets_nothing_for_a_gpu() -> None:
    more = set(pins("requirements-cuda.lock")) - set(pins("requirements-cpu.lock"))
    assert {"torch", "triton"} <= more and all(re.match("torch|triton|cuda-|nvidia-", name) for name in more)


def test_every_direct_requirement_has_a_lower_bound() -> None:
    texts = [*PROJECT["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    named = [requirement for requirement in map(Requirement, texts) if requirement.name != "eocube"]
    unbounded = [str(r) for r in named if not any(s.operator in (">=", "==", "~=") for s in r.specifier)]
    assert unbounded == []


def test_licences_are_known_and_listed() -> None:
    done = subprocess.run([sys.executable, str(ROOT / ".ci" / "third_party.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_one_and_the_command_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    from eocube.cli import main

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"eocube {eocube.__version__}\n"
    assert Version(eocube.__version__) >= Version("0.1.0.dev0")
    assert eocube.__version__ == distribution("eocube").version
