"""Asks what every training job is asked (where it runs, on how many workers), and ends it on bad input."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from model.training.ray_train import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of a run, whatever it trains."""

    name: Annotated[str, tyro.conf.arg(help="name written into the weights, and of the run: new for a new run")]
    resume: Annotated[bool, tyro.conf.arg(help="go on with the run of this name, from its last checkpoint")] = False
    workers: Annotated[int, tyro.conf.arg(help="Ray Train workers (gloo on CPU, NCCL on GPU); 0: without Ray")] = 1
    gpu: Annotated[bool, tyro.conf.arg(help="one GPU a worker")] = False
    threads: Annotated[int | None, tyro.conf.arg(help="threads of each worker (default: torch's own)")] = None
    storage: Annotated[str, tyro.conf.arg(help="path or fsspec URL where runs keep checkpoints and figures")] = "runs"
    keep: Annotated[int, tyro.conf.arg(help="how many checkpoints are kept; the best weights are kept besides")] = 3
    max_failures: Annotated[int, tyro.conf.arg(help="how often dead workers are started again; -1: always")] = 3

    def where(self) -> Run:
        """Where and how the run is done."""
        from model.training.ray_train import Run

        return Run(self.name, self.storage, self.workers, self.gpu, self.resume, self.max_failures, self.keep)


def run_job(work: Callable[[], None], also: tuple[type[Exception], ...] = ()) -> int:
    """Do it, with the log on the terminal: exit status 0, or 2 and one line for bad input.

    `also` are errors of other packages that say the same: this one knows none of a cube's.
    """
    from model.training.ray_train import BAD_INPUT

    bad: tuple[type[Exception], ...] = (*BAD_INPUT, *also)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        work()
    except bad as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0
