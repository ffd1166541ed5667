"""Storage options reach every command and actor as arguments: no child finds a credential in its environment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import s3fs

from eocube.cli import main
from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from tests.conftest import S3Server
from tests.eocube.cubes import make_plan, make_store, make_weights

ROOT = Path(__file__).resolve().parents[3]
SECRET = "hush-in-no-environment-4711"


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server) -> str:
    """A cube on S3."""
    folder = tmp_path_factory.mktemp("cube")
    made = make_store(str(folder / "cube.zarr"), make_plan(make_weights(folder / "tiny.safetensors")))
    bucket = s3_server.bucket()
    s3fs.S3FileSystem(**s3_server.storage_options).put(made.url, f"{bucket}/cube.zarr", recursive=True)
    return f"s3://{bucket}/cube.zarr"


@pytest.fixture
def options(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """What alone opens the server: the environment says nothing of it."""
    for name in [n for n in os.environ if n.startswith("AWS_") and n != "AWS_CA_BUNDLE"]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("EOCUBE_STORAGE_OPTIONS", raising=False)
    client = {"endpoint_url": s3_server.endpoint, "region_name": "us-east-1"}
    return json.dumps({"key": "testing", "secret": SECRET, "client_kwargs": client})


COMMANDS = {
    "info": [],
    "status": [],
    "verify": [],
    "decode": ["--out", "{folder}/one.tif"],
    "quicklook": ["--out", "{folder}/one.png", "--no-source"],
}
OF_SOURCES = {
    "verify": ["--decode", "--sample", "1"],
    "quicklook": ["--out", "{folder}/one.png"],
    "report": ["--out", "{folder}/one.html", "--source"],
}


@pytest.mark.parametrize("command", ["info", "status", "verify", "decode", "quicklook", "report"])
def test_no_command_puts_its_options_into_the_environment(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("EOCUBE_STORAGE_OPTIONS", raising=False)
    out = ["--out", str(tmp_path / "x.tif")] if command == "decode" else []
    assert main([command, "memory://no-such-cube.zarr", *out, "--storage-options", f"secret={SECRET}"]) == 2
    assert SECRET not in str(dict(os.environ)) and SECRET not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_its_options_as_arguments(
    command: str, cube: str, options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(folder=tmp_path) for word in COMMANDS[command]]
    assert main([command, cube, *words, "--storage-options", options]) == 0
    assert SECRET not in str(dict(os.environ))
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose name Ray's sockets fit into."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_no_process_of_a_run_has_a_credential_in_its_environment_and_no_log_of_ray(
    demo_catalog: Path, options: str, s3_server: S3Server, tmp_path: Path, short_folder: Path
) -> None:
    (tmp_path / "options.json").write_text(options)
    url = f"s3://{s3_server.bucket()}/cube.zarr"
    command = [
        sys.executable, "jobs/encode_region.py", "--bbox", *map(str, DEMO_BBOX), "--datetime", DEMO_DATETIME,
        "--catalog", str(demo_catalog), "--out", url, "--storage-options", f"@{tmp_path / 'options.json'}", "--bands",
        "B02,B03,B04,B08", "--resolution", "20", "--engine", "ray",
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_")) or k == "AWS_CA_BUNDLE"}
    env |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_TMPDIR": str(short_folder)}
    run = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = set[bytes]()
    try:
        while run.poll() is None:
            for child in psutil.Process(run.pid).children(recursive=True):
                try:
                    environ, words = (Path(f"/proc/{child.pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
                except OSError:
                    continue
                if b"PATH=" in environ:
                    seen.add(words)
                assert SECRET.encode() not in environ + words, words
            time.sleep(0.2)
    finally:
        run.kill()
        said = "".join(run.communicate())
    assert run.returncode == 0, said
    assert any(b"/raylet" in words for words in seen), "from which the actors have theirs: they write over it later"
    logs = [path for path in short_folder.rglob("*") if path.is_file()]
    assert logs and not [path for path in logs if SECRET.encode() in path.read_bytes()]
    assert SECRET not in said
    for name, flags in OF_SOURCES.items():  # a cube in a bucket that was made of scenes of this machine
        given = [*(flag.format(folder=tmp_path) for flag in flags), "--allow-local-sources"]
        assert main([name, url, *given, "--storage-options", options]) == 0, name
