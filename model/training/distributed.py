"""Shares one training run among several workers: ranks, decisions, DDP or FSDP2 around the network, whole states."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

STRATEGIES = ("ddp", "fsdp")
K = TypeVar("K")
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True, slots=True)
class Team:
    """The workers of a run, seen from one of them. `device` is where this one computes."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    strategy: str = "ddp"

    @classmethod
    def here(cls, strategy: str = "ddp", device: torch.device | None = None) -> Team:
        """This process's place in the process group, or alone. ValueError for an unknown strategy."""
        if strategy not in STRATEGIES:
            raise ValueError(f"no way {strategy!r} to share a network: there are {', '.join(STRATEGIES)}")
        device = device or torch.device("cpu")
        if not dist.is_initialized():
            return cls(0, 1, device, strategy)
        return cls(dist.get_rank(), dist.get_world_size(), device, strategy)

    @property
    def leads(self) -> bool:
        """Whether this worker writes what is written once."""
        return self.rank == 0

    def agree(self, *values: float) -> tuple[float, ...]:
        """Rank 0's values on every worker: what depends on a clock must be decided once."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.float64)  # by gloo, which no GPU has to wait for
        dist.broadcast(shared, 0)
        return tuple(shared.tolist())

    def means(self, values: Mapping[K, float]) -> dict[K, float]:
        """Each value's mean over the workers; all must give the same names."""
        if self.world == 1:
            return dict(values)
        shared = torch.tensor(list(values.values()), dtype=torch.float32)
        dist.all_reduce(shared)
        return dict(zip(values, (shared / self.world).tolist(), strict=True))

    def same_start(self, module: nn.Module) -> None:
        """Give every worker rank 0's tensors."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def shard(self, module: nn.Module, units: Sequence[nn.Module]) -> None:
        """FSDP2 in place, one unit each of `units` and one for the rest; nothing under another strategy."""
        if self.strategy != "fsdp" or not dist.is_initialized():
            return
        for unit in units:
            fully_shard(unit)
        fully_shard(module)

    def wrap(self, module: nn.Module, *, unused: bool = False) -> nn.Module:
        """DDP around the module as it is now; itself for one worker or under FSDP2. `unused`: some parameters may get
        no gradient, as under a skeleton or with free kernels."""
        if self.world == 1 or self.strategy == "fsdp":
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=unused)


@contextmanager
def gathered_late(module: nn.Module, last: bool) -> Iterator[None]:
    """Within it, backward passes share no gradients unless this is the `last` part of an accumulated batch."""
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    yield


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict with full tensors on the CPU, FSDP2's shards put together; every worker must call it."""
    state = {}
    for key, value in module.state_dict().items():
        found = value.full_tensor() if isinstance(value, DTensor) else value
        state[key] = found.detach().to("cpu", copy=True)
    return state


def load_whole_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `whole_state` gave, into shards or not."""
    if any(isinstance(p, DTensor) for p in module.parameters()):
        set_model_state_dict(module, dict(state), options=_WHOLE)
    else:
        module.load_state_dict(state)


def optimiser_state(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state, whole; every worker must call it."""
    if any(isinstance(p, DTensor) for p in module.parameters()):
        return cast("dict[str, Any]", get_optimizer_state_dict(module, optimiser, options=_WHOLE))
    return optimiser.state_dict()


def load_optimiser_state(module: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `optimiser_state` gave."""
    if any(isinstance(p, DTensor) for p in module.parameters()):
        set_optimizer_state_dict(module, optimiser, state, options=_WHOLE)
    else:
        optimiser.load_state_dict(state)


def plain(network: nn.Module, blank: nn.Module | None = None) -> nn.Module:
    """The network on this CPU with whole tensors, to be scored and written; every worker must call it. Where it is in
    shards they are put together in a copy of `blank`, the same network whole."""
    if not any(isinstance(p, DTensor) for p in network.parameters()):
        return network if all(p.device.type == "cpu" for p in network.parameters()) else deepcopy(network).cpu()
    if blank is None:
        raise ValueError("a network in shards can only be put together in a whole one of the same sizes")
    state = whole_state(network)
    copy = deepcopy(blank)
    copy.load_state_dict(state)
    return copy.requires_grad_(False).eval()


def whole(total: Tensor) -> Tensor:
    """A gradient's norm as one scalar, whether sharded or not; still on its device."""
    found: Tensor = total.full_tensor() if isinstance(total, DTensor) else total
    return found
