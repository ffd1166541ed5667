"""A run's numerics are those of whoever encodes: asked of a cluster's worker, with an actor's share of its GPU."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from eocube.products import eo_vae
from eocube.products.spec import Actor, Product
from eocube.run import numerics as numerics_module
from eocube.run.asked import Running
from eocube.run.numerics import numerics_here, numerics_of_actors
from eocube.run.request import Request
from model.memory import MemoryModel
from tests.eocube.cubes import make_plan, make_weights
from tests.eocube.products.test_eo_vae import ASKED
from tests.local_ray import start_ray


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Product:
    return make_plan(make_weights(tmp_path_factory.mktemp("w") / "tiny.safetensors")).product


class Card:
    """A GPU of `free` bytes, on which a batch needs 10 bytes and 4 a window."""

    def __init__(self, patch: pytest.MonkeyPatch, free: int) -> None:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "mem_get_info", lambda: (free, 2 * free))
        patch.setattr(torch.cuda, "empty_cache", lambda: None)
        patch.setattr(torch.cuda, "get_device_name", lambda: "a card")
        patch.setattr(eo_vae, "FusedEncoder", self.encoder)
        patch.setattr(torch.nn.Module, "to", lambda module, *where: module)

    def encoder(self, vae: Any, *given: Any, **more: Any) -> Any:
        class Encoder:
            class pixels:  # noqa: N801
                groups: Mapping[int, tuple[int, ...]] = {}

            def memory_model(self, blank: Any) -> MemoryModel:
                return MemoryModel(10.0, 4.0)

        return Encoder()


def test_an_actor_plans_with_its_share_and_fills_shards_with_whole_batches(
    product: Product, monkeypatch: pytest.MonkeyPatch
) -> None:
    # two batches at once in 0.8 of 500 bytes: one has 200, which 47 windows take; half a card: 100, 22
    Card(monkeypatch, 500)
    batches = {share: numerics_here(product, "cuda", Actor(share))["batch"] for share in (2.0, 1.0, 0.5, 0.25, 0.1)}
    assert batches == {2.0: 25, 1.0: 25, 0.5: 20, 0.25: 10, 0.1: 2}
    assert numerics_here(product, "cuda", Actor(windows=81))["batch"] == 27
    assert numerics_here(product, "cuda", Actor())["device"] == "a card"
    assert numerics_here(product, "cuda", Actor(held=300))["batch"] == 10, "shards that lie there take of it"


def test_a_driver_asks_the_clusters_actors(
    product: Product, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[Actor] = []

    def answer(product: Product, actor: Actor) -> dict[str, Any]:
        asked.append(pickle.loads(pickle.dumps((product, actor)))[1])  # as Ray sends it
        return {"device": "theirs", "batch": 50}

    monkeypatch.setenv("RAY_ADDRESS", "ray.example:6379")
    assert numerics_of_actors(product, "cuda", Actor(0.5), answer) == {"device": "theirs", "batch": 50}
    assert asked == [Actor(0.5)]
    assert numerics_of_actors(product, "cpu", Actor(), answer)["batch"] == 1
    with caplog.at_level(logging.WARNING):
        silent = numerics_of_actors(product, "cuda", Actor(), lambda product, actor: None)
    if not torch.cuda.is_available():
        assert silent["batch"] == eo_vae.GPU_BATCH and 100 % silent["batch"] == 0
    assert "no GPU of the cluster has answered" in caplog.text
    monkeypatch.delenv("RAY_ADDRESS")
    numerics_of_actors(product, "cuda", Actor(), answer)
    assert len(asked) == 1, "without a cluster this machine is asked"


def test_a_request_knows_what_an_actor_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parsed = Request.parse(ASKED, Running(gpus_per_actor=0.5), on_gpu=True)
    assert parsed.actor_gpu == 0.5 and not parsed.only_plans
    planned = Request.parse(ASKED, Running(), on_gpu=True, writes=False)
    assert planned.actor_gpu == 1.0 and planned.only_plans


@pytest.mark.slow
def test_a_worker_of_rays_is_asked(product: Product, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Ray itself, with a GPU that Ray is told of."""
    import ray

    shared = ray.is_initialized()  # other tests of this process go on with theirs afterwards
    ray.shutdown()
    ray.init(address="local", num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
    try:
        monkeypatch.setenv("RAY_ADDRESS", "in place")
        found = numerics_of_actors(product, "cuda", Actor(0.5))
        assert found["batch"] == (eo_vae.GPU_BATCH if not torch.cuda.is_available() else found["batch"])
        monkeypatch.setattr(numerics_module, "PATIENCE", 0.5)
        assert numerics_module._asked(product, Actor(2.0)) is None, "no node has two"
    finally:
        ray.shutdown()
        if shared:
            start_ray()
