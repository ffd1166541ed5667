"""Runs a training under Ray Train: workers, storage at any fsspec URL, resuming by name, and errors in one line."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import torch

from model.training.checkpoint import Keeper, Store, replace_file, started, upload
from model.training.distributed import Team

CHECKPOINTS_KEPT = 3
ABOUT = "run.json"
BAD_INPUT = (ValueError, FileNotFoundError)
"""What a job's own code raises where its input is at fault."""


class RunError(ValueError):
    """A run that cannot be started as asked; one line that names it and the way out."""


@dataclass(frozen=True, slots=True)
class Run:
    """Where and how a run is done. `storage` is a path or fsspec URL; a run's own folder is `storage`/`name`.

    `workers` 0 runs in this process, without Ray. `resume` goes on with a run of the same name.
    """

    name: str
    storage: str
    workers: int = 1
    gpu: bool = False
    resume: bool = False
    max_failures: int = 3
    keep: int = CHECKPOINTS_KEPT

    @property
    def url(self) -> str:
        """The run's own folder."""
        return f"{storage_url(self.storage)}/{self.name}"

    def claim(self, about: Mapping[str, Any]) -> None:
        """Take the name for a run that `about` describes (JSON), or find the one that is resumed to be the same.

        Ray Train goes on with whatever has the same name and storage, a finished run included: never by accident.
        RunError where the name is taken and `resume` was not asked for, the other way round, or where what is resumed
        is described otherwise.
        """
        if "/" in self.name or self.name in ("", ".", ".."):
            raise RunError(f"name {self.name!r}: a run's name is one folder's")
        if self.workers < 0 or self.max_failures < -1 or self.keep < 1:
            raise RunError("workers must be 0 or more, max-failures -1 (without end) or more, and keep at least 1")
        if self.gpu and self.workers == 0 and not torch.cuda.is_available():
            raise RunError("--gpu: torch sees no GPU on this machine: leave --gpu out, or give --workers of a cluster")
        there = started(self.url)
        if there and not self.resume:
            raise RunError(f"{self.url} holds a run of this name: --resume goes on with it, another --name begins anew")
        if self.resume and not there:
            raise RunError(f"{self.url} holds no run to resume: check --name and --storage, or leave --resume out")
        fs, root = fsspec.url_to_fs(self.url)
        if there and fs.exists(f"{root}/{ABOUT}"):
            before = json.loads(fs.cat_file(f"{root}/{ABOUT}"))
            for key, value in json.loads(json.dumps(about)).items():
                if before.get(key) != value:
                    raise RunError(
                        f"{self.url} was begun with {key} {before.get(key)}, now it is {value}: another --name"
                    )
        replace_file(self.url, ABOUT, json.dumps(about).encode())

    def team(self, strategy: str = "ddp") -> Team:
        """The one worker of a run without Ray, on the GPU that was asked for."""
        return Team.here(strategy, torch.device("cuda" if self.gpu else "cpu"))

    def store(self) -> Keeper:
        """Checkpoints of a run without Ray."""
        return Store(self.url, self.keep)


def storage_url(storage: str) -> str:
    """An absolute path or URL without a slash at its end."""
    text = storage if "://" in storage else str(Path(storage).expanduser().resolve())
    return text.rstrip("/")


@dataclass(frozen=True, slots=True)
class RayKeeper:
    """Checkpoints reported to Ray Train, which keeps the last few; the best weights lie beside them under `url`."""

    url: str

    @contextmanager
    def restore(self) -> Iterator[Path | None]:
        import ray.train

        found = ray.train.get_checkpoint()
        if found is None:
            yield None
            return
        with found.as_directory() as folder:
            yield Path(folder)

    def save(self, write: Callable[[Path], None], total: int, metrics: Mapping[str, float]) -> None:
        import ray.train

        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(dict(metrics), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def save_best(self, write: Callable[[Path], None]) -> None:
        upload(self.url, "best", write)


def team_of_ray(strategy: str) -> Team:
    """This Ray Train worker's place, computing on the device that Ray gave it."""
    import ray.train.torch

    return Team.here(strategy, ray.train.torch.get_device())


Worker = Callable[[Mapping[str, Any], "RayKeeper"], None]


def fit(worker: Worker, options: Mapping[str, Any], run: Run) -> None:
    """Call `worker` with the options on each of Ray Train's workers until it ends; when one dies, all start again from
    the last checkpoint.

    The cluster is the one that RAY_ADDRESS names (as under `ray job submit`), or one of this machine's own.

    Raises:
        RunError: the workers refused their input (the message is theirs), or Ray cannot be used.
        ray.train.TrainingFailedError: anything else, once `max_failures` are used up.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if "ray" not in sys.modules and not address:
        # Ray reads these as it is imported. A token of this run's own leaves none in the home directory, where a later
        # `ray start` would find it and refuse `ray job submit`.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    if not ray.is_initialized():
        try:
            ray.init(address=address or "local")  # not whatever cluster somebody else has started on this machine
        except (OSError, RuntimeError) as error:
            where = f"at RAY_ADDRESS={address}" if address else "on this machine"
            raise RunError(f"Ray {where} cannot be used: {error}; --workers 0 trains without it") from error
    storage, filesystem = _storage(run.storage)
    trainer = TorchTrainer(
        partial(_call, worker),
        train_loop_config={"options": dict(options), "url": run.url},
        scaling_config=ScalingConfig(num_workers=run.workers, use_gpu=run.gpu),
        run_config=RunConfig(
            name=run.name,
            storage_path=storage,
            storage_filesystem=filesystem,
            checkpoint_config=CheckpointConfig(num_to_keep=run.keep),
            failure_config=FailureConfig(max_failures=run.max_failures),
        ),
        # gloo beside NCCL: the ranks agree on small things without the GPU
        torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if run.gpu else "gloo"),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            if isinstance(failure, BAD_INPUT):
                raise RunError(str(failure).splitlines()[0]) from None
        raise


def _call(worker: Worker, config: dict[str, Any]) -> None:
    """On a worker: the job's own function."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    worker(config["options"], RayKeeper(str(config["url"])))


def _storage(storage: str) -> tuple[str, Any]:
    """What Ray Train wants of a path or URL: a path and, where it is no local one, a filesystem of pyarrow's around
    fsspec's own, so that the same credentials and endpoints hold as everywhere else."""
    url = storage_url(storage)
    if "://" not in url:
        return url, None
    import pyarrow.fs

    fs, root = fsspec.url_to_fs(url)
    return root, pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
