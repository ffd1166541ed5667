"""Finds Ray for a run: the session in place, the cluster of RAY_ADDRESS, else a private one; or says why not."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from eocube.errors import ClusterError
from eocube.net.redaction import one_line

log = logging.getLogger(__name__)

ANSWER_PATIENCE = 15.0
"""Seconds for which the address of a cluster may keep a connection waiting; Ray itself would try for minutes."""


@contextmanager
def ray_session(*, gpus: bool) -> Iterator[None]:
    """Ray as it is found: the session in place, the cluster of RAY_ADDRESS, else a private one on this machine.

    Raises:
        ClusterError: the cluster cannot be reached or is of another version, or Ray cannot start here.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if "ray" not in sys.modules and not address:
        # Ray reads these as it is imported. A token of this run's own keeps other users of the machine out, and leaves
        # none in the home directory, where a later `ray start` would find it and refuse `ray job submit`.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        yield
        return
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        how |= {"address": "local", "include_dashboard": False, "object_store_memory": 128 * 2**20}
        how["num_gpus"] = None if gpus else 0
    try:
        _check_answer(address)
        ray.init(**how)
    except Exception as error:  # Ray raises anything from OSError to RuntimeError, some of many lines
        why = one_line(error)[:300] or type(error).__name__
        if address:
            raise ClusterError(
                f"the Ray cluster at RAY_ADDRESS={address} cannot be used: {why}; start it, with the Ray and Python of "
                "this environment, or unset RAY_ADDRESS to run on this machine"
            ) from error
        raise ClusterError(
            f"Ray cannot start on this machine: {why}; look at free memory and at /dev/shm and {_folder()}, or set "
            "RAY_ADDRESS to a cluster that runs"
        ) from error
    try:
        yield
    finally:
        try:
            ray.shutdown()
        except Exception as error:  # what was encoded is in the store
            log.warning("Ray did not shut down cleanly: %s", one_line(error)[:300] or type(error).__name__)


def _check_answer(address: str) -> None:
    """Raise OSError where nothing listens at an address that names a host and port."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        host, port = place.hostname, place.port
    except ValueError:  # Ray's to judge
        return
    if host and port:
        socket.create_connection((host, port), ANSWER_PATIENCE).close()


def _folder() -> str:
    return os.environ.get("RAY_TMPDIR", "/tmp/ray")
