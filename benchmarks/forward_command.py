"""The command line of `benchmark.py encoder|decoder`, which asks for torch, numpy and safetensors alone.

A machine with a GPU is often lent bare: nothing here imports eocube's readers and stores, nor what draws their tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from benchmarks.results import BadInputError

DONE, DEFECT, BAD_INPUT = 0, 1, 2


class _Parser(argparse.ArgumentParser):
    """A mistake is one line and exit status 2."""

    def error(self, message: str) -> NoReturn:
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


def parser(half: str) -> argparse.ArgumentParser:
    """The options of a forward pass."""
    made = _Parser(
        prog=f"benchmark.py {half}", allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Time a forward pass: the reference eager, under autocast and compiled, and ours, interleaved in "
                    "one run.",
    )  # fmt: skip
    flag = argparse.BooleanOptionalAction
    made.add_argument("--model", default="nano", help="published (random weights of that size) or nano (the shipped)")
    made.add_argument("--reference", type=Path, help="a checkout of nilsleh/eo-vae to measure against (needs einops); "
                                                     "else eocube's own unfused network, its equal")  # fmt: skip
    made.add_argument("--quick", action=flag, default=False, help="fewer rounds: under three minutes")
    made.add_argument("--repeats", type=int, help="rounds of timing: 7, or 3 with --quick")
    made.add_argument("--threads", type=int, help="threads of torch: as torch finds them")
    made.add_argument("--batch", type=int, help="windows a call: 1 on a CPU, 50 on a GPU")
    made.add_argument("--device", help="cpu or cuda: a GPU where there is one")
    made.add_argument("--compile", action=flag, default=True,
                      help="also torch.compile of the reference, which takes a minute or more to make")  # fmt: skip
    made.add_argument("--json", type=Path, help="where to write the results")
    return made


def main(argv: Sequence[str]) -> int:
    """Exit status 0: measured; 1: measured, but one of ours is too far from the reference; 2: bad input."""
    half, *rest = argv
    options = parser(half).parse_args(rest)
    try:
        if options.json is not None and options.json.is_dir():
            raise BadInputError(f"--json: {options.json} is a folder; name a file")
        from benchmarks.forward import Settings, measure

        settings = Settings(
            options.model, options.quick, options.repeats, options.threads, options.batch, options.device,
            options.reference, options.compile,
        )  # fmt: skip
        report = measure(half, settings, lambda text: print(text, file=sys.stderr))
        return report.told(options.json)
    except BadInputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
