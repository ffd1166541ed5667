"""The command line of `jobs/benchmark.py`: a subcommand measures, prints a table and writes JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.results import BadInputError, Report

if TYPE_CHECKING:
    from rich.console import Console

BAD_INPUT = 2


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """Time the whole job, through the real engine, and the encoder alone on the same windows; says where time goes."""

    model: str = "nano"
    """published (random weights of the published size) or nano (the shipped weights)."""
    quick: bool = False
    """One repeat over fewer windows: under three minutes."""
    repeats: int | None = None
    """Runs of the job. None: 3, or 1 with --quick."""
    threads: int | None = None
    """Cores that the job may use. None: all."""
    device: str | None = None
    """cpu or cuda. None: a GPU where there is one."""
    precision: str | None = None
    """fp16, bf16 or fp32. None: the job's own default."""
    dates: int | None = None
    """Dates of the scenes, a shard each. None: 6 on a CPU (2 with --quick), 24 on a GPU (6)."""
    source: str = "local"
    """local files, http from a server on this machine, or s3 from moto's."""
    delay: float = 30.0
    """Milliseconds that the http server waits before every answer."""
    rate: float = 50.0
    """Megabytes a second of each connection to the http server."""
    block: int = 256
    """Side of the files' blocks, pixels; archives have 256 to 1024."""
    jp2: bool = False
    """Files are JPEG 2000, as some archives have nothing else."""
    stub: bool = False
    """Stand-ins that take no time for encoder and decoder: what reading and writing can do."""
    json: Path | None = None
    """Where to write the results."""


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Time writing and reading shards, locally and over S3's wire, and decoding a stored cube against unfused."""

    model: str = "nano"
    """published (random weights of the published size) or nano (the shipped weights)."""
    quick: bool = False
    """Fewer shards and windows: under three minutes."""
    repeats: int | None = None
    """Rounds of timing. None: 5, or 2 with --quick."""
    threads: int | None = None
    """Threads that decode. None: all cores."""
    device: str | None = None
    """cpu or cuda, for the decoding. None: a GPU where there is one."""
    json: Path | None = None
    """Where to write the results."""


@dataclass(frozen=True, slots=True)
class RaceOptions:
    """Race the whole job against the usual way (odc-stac, dask, the network in eager mode, to_zarr), cold, in turns."""

    model: str = "nano"
    """published (random weights of the published size) or nano (the shipped weights)."""
    quick: bool = False
    """A quarter of a shard a date, with the small network too."""
    repeats: int | None = None
    """Runs of each. None: 3."""
    threads: int | None = None
    """Threads of dask, and of torch outside of them. None: all cores."""
    device: str | None = None
    """cpu alone: both sides run there."""
    dates: int | None = None
    """Dates of the scenes: with nano a whole shard each, a quarter of one with the published size. None: 4."""
    source: str = "local"
    """local files, or http from a server on this machine."""
    delay: float = 30.0
    """Milliseconds that the server waits before every answer."""
    rate: float = 50.0
    """Megabytes a second of each connection to the server."""
    block: int = 256
    """Side of the files' blocks, pixels; archives have 256 to 1024."""
    catalog: str | None = None
    """A static catalogue of Sentinel-2 L2A with Earth Search's asset names, in the place of made-up scenes."""
    bbox: tuple[float, ...] = ()
    """With --catalog: west south east north, degrees."""
    datetime: str | None = None
    """With --catalog: A/B."""
    json: Path | None = None
    """Where to write the results."""


def _race(options: Any, console: Console) -> Report:
    try:
        from benchmarks.race import measure
    except ModuleNotFoundError as error:
        raise BadInputError(f"race needs the package {error.name}: pip install 'eocube[race]'") from error
    return measure(options, console)


def _pipeline(options: Any, console: Console) -> Report:
    from benchmarks.pipeline import measure

    return measure(options, console)


def _store(options: Any, console: Console) -> Report:
    from benchmarks.storage import measure

    return measure(options, console)


FORWARD = {"encoder": "the encoder's forward pass in every variant", "decoder": "the decoder's"}
"""Commands of their own (`benchmarks.forward_command`), for machines where eocube's requirements are not installed."""
COMMANDS: dict[str, tuple[str, type[Any], Callable[[Any, Console], Report]]] = {
    "pipeline": ("the whole job against the encoder alone, and where its time goes", PipelineOptions, _pipeline),
    "race": ("the whole job against what people do today", RaceOptions, _race),
    "store": ("shards written, read and decoded", StoreOptions, _store),
}


def main(argv: Sequence[str]) -> int:
    """Exit status 0: measured; 1: measured, but one of ours is too far from the reference; 2: bad input."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: benchmark.py COMMAND [OPTIONS]\n")
        for name, about in {**FORWARD, **{name: about for name, (about, _, _) in COMMANDS.items()}}.items():
            print(f"  {name:<10} {about}")
        print("\nbenchmark.py COMMAND --help lists a command's options")
        return 0 if argv else BAD_INPUT
    if argv[0] in FORWARD:
        from benchmarks.forward_command import main as forward

        return forward(argv)
    if argv[0] not in COMMANDS:
        print(f"error: no command {argv[0]!r}, there is {', '.join((*FORWARD, *COMMANDS))}", file=sys.stderr)
        return BAD_INPUT
    from rich.console import Console

    from eocube.cli import guarded, parse

    _, kind, work = COMMANDS[argv[0]]
    options = parse(kind, argv[1:], f"benchmark.py {argv[0]}")

    def command() -> int:
        try:
            if options.json is not None and options.json.is_dir():
                raise BadInputError(f"--json: {options.json} is a folder; name a file")
            return work(options, Console(stderr=True, highlight=False)).told(options.json)
        except BadInputError as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT

    return guarded(command)
