"""The command line of `jobs/benchmark.py`: a subcommand measures, prints a table and writes JSON."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.results import Report
from eocube.cli import guarded, parse
from eocube.errors import InputError
from eocube.run.request import Exit

PLAIN_WIDTH = 150
"""Characters a line where the output is no terminal."""


@dataclass(frozen=True, slots=True)
class ForwardOptions:
    """Time a forward pass: the reference eager, under autocast and compiled, and ours, interleaved in one run."""

    model: str = "nano"
    """published (random weights of the published size) or nano (the shipped weights)."""
    reference: Path | None = None
    """A checkout of nilsleh/eo-vae to measure against (needs einops). None: eocube's own unfused network, its equal."""
    quick: bool = False
    """Fewer rounds: under three minutes."""
    repeats: int | None = None
    """Rounds of timing. None: 7, or 3 with --quick."""
    threads: int | None = None
    """Threads of torch. None: as torch finds them."""
    batch: int | None = None
    """Windows a call. None: 1 on a CPU, 32 on a GPU."""
    device: str | None = None
    """cpu or cuda. None: a GPU where there is one."""
    compile: bool = True
    """Also torch.compile of the reference, which takes a minute or more to make."""
    json: Path | None = None
    """Where to write the results."""


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
    """local files, or http from a server on this machine."""
    delay: float = 30.0
    """Milliseconds that the server waits before every answer."""
    rate: float = 50.0
    """Megabytes a second of each connection to the server."""
    block: int = 256
    """Side of the files' blocks, pixels; archives have 256 to 1024."""
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


def _encoder(options: Any, console: Console) -> Report:
    return _forward("encoder", options, console)


def _decoder(options: Any, console: Console) -> Report:
    return _forward("decoder", options, console)


def _forward(half: str, options: ForwardOptions, console: Console) -> Report:
    from benchmarks.forward import Settings, measure

    settings = Settings(
        options.model, options.quick, options.repeats, options.threads, options.batch, options.device,
        options.reference, options.compile,
    )  # fmt: skip
    return measure(half, settings, console)


def _pipeline(options: Any, console: Console) -> Report:
    from benchmarks.pipeline import measure

    return measure(options, console)


def _store(options: Any, console: Console) -> Report:
    from benchmarks.storage import measure

    return measure(options, console)


COMMANDS: dict[str, tuple[str, type[Any], Callable[[Any, Console], Report]]] = {
    "encoder": ("the encoder's forward pass in every variant", ForwardOptions, _encoder),
    "decoder": ("the decoder's", ForwardOptions, _decoder),
    "pipeline": ("the whole job against the encoder alone, and where its time goes", PipelineOptions, _pipeline),
    "store": ("shards written, read and decoded", StoreOptions, _store),
}


def main(argv: Sequence[str]) -> int:
    """Exit status 0: measured; 1: measured, but one of ours is too far from the reference; 2: bad input."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: benchmark.py COMMAND [OPTIONS]\n")
        for name, (about, _, _) in COMMANDS.items():
            print(f"  {name:<10} {about}")
        print("\nbenchmark.py COMMAND --help lists a command's options")
        return int(Exit.DONE if argv else Exit.BAD_INPUT)
    if argv[0] not in COMMANDS:
        print(f"error: no command {argv[0]!r}, there is {', '.join(COMMANDS)}", file=sys.stderr)
        return int(Exit.BAD_INPUT)
    _, kind, work = COMMANDS[argv[0]]
    options = parse(kind, argv[1:], f"benchmark.py {argv[0]}")

    def command() -> int:
        if options.json is not None and options.json.is_dir():
            raise InputError(f"--json: {options.json} is a folder; name a file")
        report = work(options, Console(stderr=True, highlight=False))
        if options.json is not None:
            report.write(options.json)
        console = Console()
        # where there is no terminal, nothing says how wide the table may be
        report.show(console if console.is_terminal else Console(width=PLAIN_WIDTH))
        far = [f"{v.name} {v.dtype} ({v.relative_error:.1e})" for v in report.variants if v.breaches]
        if far:
            print(f"error: too far from the reference: {', '.join(far)}", file=sys.stderr)
        return int(Exit.DEFECT if far else Exit.DONE)

    return guarded(command)
