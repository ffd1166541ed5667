"""Runs `eocube encode`, `eocube plan` and `jobs/encode_region.py`: a region becomes a cube, or a plan of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eocube.commands.answers import Next, answer, of_cube, quoted, tell_next
from eocube.commands.help_page import Page
from eocube.commands.parsing import guarded, parse
from eocube.errors import Exit
from eocube.run.arguments import EncodeOptions, typed

if TYPE_CHECKING:
    from eocube.run.ending import Outcome

GROUPS = {
    "Ground and time": ("bbox", "region", "datetime", "extent", "since"),
    "Scenes": ("sensor", "bands", "catalog", "max_cloud", "resolution", "offset", "allow_local_sources"),
    "The cube": ("out", "weights", "storage", "quality", "precision", "product", "product_options"),
    "The run": ("retry", "demo", "engine", "actors", "gpus_per_actor", "memory", "unit_timeout", "verify_fraction"),
    "Network and stores": ("storage_options", "source_options", "max_requests_per_second", "patience"),
    "A plan": ("plan", "price", "calibrate", "benchmark"),
    "What is shown": ("quicklook", "overview", "json", "quiet", "log_dir"),
}
FIRST = ("bbox", "region", "datetime", "out", "sensor", "bands", "catalog", "max_cloud", "retry", "quicklook")
REGION = "--bbox 11.3 48.0 11.8 48.3 --datetime 2024-06-01/2024-08-31"


def encode_main(argv: Sequence[str], prog: str = "eocube encode", *, plan: bool = False) -> int:
    """`encode_region.py` and `eocube encode|plan`."""
    options = parse(EncodeOptions, argv, prog, plan_page(prog) if plan else encode_page(prog))
    as_json = options.json
    # `eocube plan` is for people unless it is asked for JSON; `--plan` has always printed JSON.
    options = dataclasses.replace(options, plan=True) if plan else dataclasses.replace(options, json=True)

    def command() -> int:
        from eocube.run.job import encode_region

        outcome = encode_region(*typed(options))
        if not options.plan:
            answer(document_of(outcome), "", as_json=as_json)
        if not as_json and (plan or not options.plan):
            tell_next(planned(options) if options.plan else after(outcome, options), quiet=options.quiet)
        return outcome.exit

    return guarded(command)


def encode_page(prog: str) -> Page:
    """The help of `eocube encode`, or of the job script that does the same."""
    prog = f"python jobs/{prog}" if prog.endswith(".py") else prog
    examples = (
        ("no network, no data: two scenes drawn on the spot, with a picture at the end", f"{prog} --demo"),
        ("a region, a summer, clouds left out", f"{prog} {REGION} --max-cloud 40 --out munich.zarr"),
        ("what is new since the last run, for cron", f"{prog} --since last --out munich.zarr"),
    )
    return Page(examples, GROUPS, FIRST)


def plan_page(prog: str) -> Page:
    """The help of `eocube plan`."""
    examples = (
        ("scenes, bytes and hours of a region", f"{prog} {REGION}"),
        ("measured here, and what it costs", f"{prog} {REGION} --calibrate 16 --price 1.20"),
        ("for a program", f"{prog} {REGION} --json"),
    )
    first = ("bbox", "region", "datetime", "sensor", "bands", "catalog", "max_cloud", "calibrate", "price", "json")
    about = "Search, and say what encoding a region would take: scenes, bytes, hours. Nothing is written."
    return Page(examples, GROUPS, first, about)


def document_of(outcome: Outcome) -> dict[str, Any]:
    """What `eocube encode --json` prints."""
    tally = outcome.tally
    found: dict[str, Any] = {
        "exit": int(outcome.exit), "cubes": list(outcome.urls), "picture": outcome.picture,
        "windows": {state.label: many for state, many in sorted(outcome.counts.items())},
    }  # fmt: skip
    if tally is not None:
        found["run"] = {
            "windows": {state.label: many for state, many in sorted(tally.windows.items())}, "seconds": tally.seconds,
            "bytes_in": tally.bytes_in, "bytes_out": tally.bytes_out, "requests_made_again": tally.retries,
            "units_lost": list(tally.lost), "interrupted": tally.interrupted,
        }  # fmt: skip
    return found


def after(outcome: Outcome, options: EncodeOptions) -> list[Next]:
    """What to type after a run."""
    if not outcome.urls:
        return []
    given = options.storage_options
    out = options.out or outcome.urls[0]
    failed = ",".join(s.label for s in outcome.counts if s.retryable and s.label.endswith("_failed"))
    if outcome.exit is Exit.RETRYABLE:
        cube = quoted(out, given)
        again = [("those windows again", f"encode --out {cube} --retry {failed}")] if failed else []
        return [*again, ("why they ended so", f"status {cube}"), ("a page on it", f"report {cube} --out report.html")]
    return of_cube(out, given)


def planned(options: EncodeOptions) -> list[Next]:
    """What to type after a plan."""
    out = "" if options.out else " --out cube.zarr"
    return [("the same words encode it", f"encode ...{out}")]


def plan_main(argv: Sequence[str]) -> int:
    """`eocube plan`."""
    return encode_main(argv, "eocube plan", plan=True)
