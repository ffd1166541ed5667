"""Starts the small Ray that tests of one process share."""

from __future__ import annotations

import logging


def start_ray() -> None:
    """Two CPUs on this machine, without dashboard."""
    import ray

    ray.init(
        address="local",  # never a cluster that somebody else started on this machine
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=128 * 2**20,
        ignore_reinit_error=True,
    )
