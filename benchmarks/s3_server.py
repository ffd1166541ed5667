"""Runs moto's S3 in a process of its own, with one bucket; its own log counts what it is asked."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.results import BadInputError

START_PATIENCE = 30.0
"""Seconds to wait for the server."""
BUCKET = "benchmark"


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of a running server."""

    options: Mapping[str, Any]
    """fsspec's, for whoever reads or writes there."""
    log: Path

    @property
    def url(self) -> str:
        """Of the bucket."""
        return f"s3://{BUCKET}"

    def requests(self, of: str = "") -> int:
        """Requests answered so far, of any kind, whose path has what the pattern says."""
        return len(re.findall(rf'"[A-Z]+ /\S*{of}', self.log.read_text(errors="replace")))

    def take(self, folder: Path) -> None:
        """Copy a folder's files into the bucket."""
        self._files().put(f"{folder}/", BUCKET, recursive=True)

    def alone(self, below: str) -> float:
        """Megabytes a second that the server gives of objects below a path, fetched whole: what it can by itself."""
        files = self._files()
        began = time.perf_counter()
        found = files.cat(files.find(f"{BUCKET}/{below}"))
        return sum(map(len, found.values())) / (time.perf_counter() - began) / 1e6

    def _files(self) -> Any:
        import s3fs

        return s3fs.S3FileSystem(**self.options, skip_instance_cache=True)


def missing() -> str | None:
    """Why there can be no server here; None where there can."""
    if find_spec("moto") is None or find_spec("flask") is None:
        return "moto's server is not installed: pip install 'moto[server]'"
    return None


@contextlib.contextmanager
def bucket(folder: Path) -> Iterator[Bucket]:
    """An empty bucket while inside. BadInputError where moto is not there, or does not start."""
    if why := missing():
        raise BadInputError(why)
    log = folder / "requests.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    options = {"client_kwargs": {"endpoint_url": endpoint}, "key": "testing", "secret": "testing"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("w", encoding="utf-8") as words, subprocess.Popen(command, stdout=words, stderr=words) as server:
        try:
            _wait_for(port, server)
            found = Bucket(options, log)
            found._files().mkdir(BUCKET)
            yield found
        finally:
            server.terminate()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Return once the server listens."""
    until = time.monotonic() + START_PATIENCE
    while server.poll() is None and time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise BadInputError(f"moto's S3 server did not listen within {START_PATIENCE:.0f} s")
