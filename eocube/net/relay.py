"""Connects GDAL to web servers whose addresses may be asked: a SOCKS5 proxy on loopback, for this process alone.

GDAL follows redirects by itself and tells nobody where to. With this proxy, which resolves names too, each of its
connections is judged by the address that it really goes to.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import rasterio

from eocube.net.addresses import AddressError, Policy, Reach
from eocube.net.http_client import proxies


@contextlib.contextmanager
def judged_connections(href: str, policy: Policy) -> Iterator[None]:
    """Inside, what GDAL opens of an href connects, now and later, to addresses that the policy lets through alone.

    Not so where the environment names a proxy: that connects in GDAL's stead, and to what it likes.

    Raises:
        AddressError: it, or where it redirects to, is at another address.
    """
    if policy.reach is Reach.ANY or not href.startswith(("http://", "https://")) or _has_proxy():
        yield
        return
    with contextlib.suppress(OSError):  # GDAL would ask for what is refused several times over
        policy.check_name(href)
    relay = relay_for(policy)
    try:
        with rasterio.Env(**relay.gdal_options):  # GDAL keeps these with a file that it has opened
            yield
    except rasterio.errors.RasterioIOError as error:
        why = relay.refusal(str(error))
        if why is None:
            raise
        raise AddressError(why) from None


def _has_proxy() -> bool:
    return bool(proxies()) or any(os.environ.get(name) for name in ("GDAL_HTTP_PROXY", "GDAL_HTTPS_PROXY"))


# Without the package's own imports (xarray and what it brings), which take a second of a core.
_SERVE = """
import sys, types
package = types.ModuleType("eocube")
package.__path__ = [sys.argv.pop(1)]
sys.modules["eocube"] = package
from eocube.net.relay_server import main
main()
"""


class RelayProcess:
    """A relay in a process of its own, which ends with this one. `gdal_options` make GDAL go through it."""

    def __init__(self, policy: Policy) -> None:
        command = [sys.executable, "-c", _SERVE, str(Path(__file__).parents[1]), str(int(policy.reach)), *policy.named]
        # Its own session: Ctrl-C is for the run, which still has reads to end.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        atexit.register(self.close)
        self._turn = threading.Lock()
        self.gdal_options: dict[str, str] = json.loads(self._said())

    @property
    def ended(self) -> bool:
        """Whether its process is gone."""
        return self._process.poll() is not None

    def refusal(self, text: str) -> str | None:
        """Why a connection to a host that is named in a text was refused; None where none was."""
        with self._turn:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(text) + "\n")
            self._process.stdin.flush()
            why: str | None = json.loads(self._said())
            return why

    def close(self) -> None:
        """End its process."""
        self._process.kill()
        self._process.wait()

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ConnectionError("the process that connects GDAL to web servers has ended")
        return line


def relay_for(policy: Policy) -> RelayProcess:
    """This process's relay for a policy; another where the last one's process is gone."""
    relay = _relay_of(policy)
    if relay.ended:
        _relay_of.cache_clear()
        relay = _relay_of(policy)
    return relay


@lru_cache(maxsize=8)
def _relay_of(policy: Policy) -> RelayProcess:
    return RelayProcess(policy)


# A forked child starts its own: two processes would mix up what they ask its parent's.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_relay_of.cache_clear)
