"""`eocube doctor`: what is here is found, what would help is said with a command, and no secret is ever shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import rasterio
import torch

from eocube.cli import main
from eocube.commands.doctor import advised, described
from eocube.commands.machine import Machine, look

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="module")
def machine() -> Machine:
    return look()


def test_what_is_found_is_what_the_libraries_say(machine: Machine) -> None:
    assert machine.gdal == rasterio.__gdal_version__ and machine.gdal_drivers["GTiff"] and machine.gdal_drivers["COG"]
    assert machine.torch_build.startswith(torch.__version__) and machine.cores >= 1
    assert machine.versions["zarr"] is not None and machine.versions["eocube"] is not None
    assert (machine.compiler is None) == ("no C++ compiler" in machine.kernels)
    assert not machine.network, "no other machine is asked without --network"


def test_no_secret_is_shown_and_where_it_lies_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[mine]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = {SECRET}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("EOCUBE_STORAGE_OPTIONS", f'{{"secret": "{SECRET}"}}')
    monkeypatch.setenv("RAY_ADDRESS", f"ray://me:{SECRET}@head:10001")
    for words in ([], ["--json"]):
        assert main(["doctor", *words]) == 0
        captured = capsys.readouterr()
        assert SECRET not in captured.out + captured.err and "AKIA" not in captured.out + captured.err
        assert "AWS_SECRET_ACCESS_KEY" in captured.out and f"{credentials} (mine)" in captured.out
        assert "no S3 credentials seen" not in captured.out


def test_broken_credentials_do_not_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "credentials"
    broken.write_bytes(b"\xff\xfe no section\n=")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(broken))
    assert any("cannot be read" in found for found in look().s3)


def test_each_lack_has_a_command(machine: Machine) -> None:
    whole = replace(
        machine, compiler="c++", kernels="built: x", gpus=(), gpu_unused=None, threads=2, cores=2, core_quota=None,
        s3=("AWS_PROFILE",), memory_bytes=64 * 10**9, disk_free_bytes={"/": 10**12},
        gdal_drivers=dict.fromkeys(machine.gdal_drivers, True), extras=dict.fromkeys(machine.extras, True),
    )  # fmt: skip
    assert not list(advised(whole)) and "nothing to improve was found" in described(whole, [])
    lacks = {
        "torch cannot use GPU 0": (replace(whole, gpu_unused="GPU 0: NVIDIA H100"), "pip install --upgrade torch"),
        "no C++ compiler": (replace(whole, compiler=None), "install"),
        "1 of 2 cores": (replace(whole, threads=1), "unset OMP_NUM_THREADS"),
        "leaves 1.5 of 2": (replace(whole, core_quota=1.5), "export OMP_NUM_THREADS=1"),
        "GDAL lacks JP2OpenJPEG": (replace(whole, gdal_drivers={"JP2OpenJPEG": False}), "rasterio"),
        "of memory": (replace(whole, memory_bytes=4 * 10**9), "--memory 1"),
        "free at /": (replace(whole, disk_free_bytes={"/": 10**9}), "eocube plan"),
        "no S3 credentials": (replace(whole, s3=()), "aws configure"),
        "`pc`": (replace(whole, extras={**whole.extras, "pc": False}), 'pip install "eocube[pc]"'),
    }
    for what, (lacking, typed) in lacks.items():
        (one,) = advised(lacking)
        assert what in one.what and typed in one.type and one.why, (what, one)
        assert one.type in described(lacking, [one])


def test_the_document_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"machine", "advice"} and document["machine"]["cores"] >= 1
    assert all(set(one) == {"what", "why", "type"} for one in document["advice"])
