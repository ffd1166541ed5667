"""Renders the overlays of infra/kubernetes, and reads what is in them."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
OVERLAYS = ("cpu", "gpu", "spot", "aws", "gcp")
JOBS = ("encode", "distill", "finetune", "super-resolve")

Manifest = dict[str, Any]


@cache
def rendered(folder: str) -> list[Manifest]:
    """The manifests of a folder below infra/kubernetes. Skips where neither kubectl nor kustomize is here."""
    return build(KUBERNETES / folder)


def build(folder: Path) -> list[Manifest]:
    """The manifests of a folder with a kustomization. Skips likewise."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
            return [document for document in yaml.safe_load_all(done.stdout) if document]
    pytest.skip("needs kubectl or kustomize to put the overlays together")


def overlay(name: str) -> list[Manifest]:
    """The manifests of an overlay."""
    return rendered(f"overlays/{name}")


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The manifest of that kind and name."""
    (found,) = (m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)
    return found


def job(manifests: list[Manifest], name: str) -> Manifest:
    """The RayJob of that part."""
    return one(manifests, "RayJob", f"eocube-{name}")


def clusters(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Specs of Ray clusters by part: the one that stays, and the jobs' own."""
    specs = {name: job(manifests, name)["spec"]["rayClusterSpec"] for name in JOBS}
    return {"cluster": one(manifests, "RayCluster", "eocube")["spec"], **specs}
