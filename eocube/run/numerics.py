"""Asks whoever will compute for a run's numerics: this machine, or a cluster's worker with a share of a GPU."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any

from eocube.products.spec import Actor, Batching, Product
from eocube.run.ray_session import ray_session

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds that a GPU of the cluster is waited for: nodes may have to be added for it."""

Numerics = dict[str, Any]


def numerics_here(product: Product, device: str, actor: Actor) -> Numerics:
    """The numerics as this process finds them, its batch for what an actor has of this machine's GPU."""
    from eocube.products import registry

    kind = registry.kind(product.kind)
    if device == "cuda" and isinstance(kind, Batching):
        return kind.numerics_for(product, device, actor)
    return kind.numerics(product, device)


def numerics_of_actors(
    product: Product, device: str, actor: Actor, ask: Callable[[Product, Actor], Numerics | None] | None = None
) -> Numerics:
    """The numerics of the machines that will encode: the batch, the kernels and the device that actors have.

    Where actors are on a cluster's GPUs, a worker there is asked, with the share of a GPU that an actor will have: the
    driver may have no GPU, another one, or another torch.

    Args:
        product: of the plan.
        device: what actors encode on.
        actor: what each has.
        ask: how a worker of the cluster is asked; None where it has none to answer.
    """
    if device == "cuda" and os.environ.get("RAY_ADDRESS"):
        found = (ask or _asked)(product, actor)
        if found is not None:
            return found
        log.warning(
            "no GPU of the cluster has answered in %.0f s: batches are of the size that is taken where none is known",
            PATIENCE,
        )
    return numerics_here(product, device, actor)


def _asked(product: Product, actor: Actor) -> Numerics | None:
    import ray

    with ray_session(gpus=True):
        task: Any = ray.remote(numerics_here)
        # An eighth of a core: a node whose cores are all taken can still answer.
        answer = task.options(num_gpus=actor.gpu_share, num_cpus=0.125, max_retries=2).remote(product, "cuda", actor)
        ready, _ = ray.wait([answer], timeout=PATIENCE)
        if not ready:
            ray.cancel(answer, force=True)
            return None
        found: Mapping[str, Any] = ray.get(answer)
        return dict(found)
