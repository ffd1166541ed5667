"""Runs the `eocube` command, and parses for the job scripts: a command calls the library, returns a code."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from eocube.commands.export import decode_main, export_main
from eocube.commands.overview import overview_main
from eocube.commands.parsing import guarded, parse
from eocube.commands.sample import sample_main
from eocube.commands.serve import serve_main
from eocube.commands.stac import stac_main
from eocube.console import complain, plain, tell
from eocube.net.storage_options import parse_options
from eocube.run.arguments import EncodeOptions, typed
from eocube.run.request import Exit

__all__ = ["decode_main", "encode_main", "guarded", "main", "parse"]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """A cube, and its zone where it holds several."""

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube, and of its sources by host: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones, such as utm32."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True, slots=True)
class VerifyOptions(StoreOptions):
    """Read every shard back; exit 3 when something is wrong."""

    decode: bool = False
    """Also decode, and compare with the sources read again: PSNR, RMSE and SAM a time step."""
    sample: int = 64
    """With --decode: windows of a time step that are compared, at most; 0 for all."""
    allow_local_sources: bool = False
    """Let the plan of a cube from elsewhere lead to files of this machine."""


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """Verify a store, write damaged metadata anew, encode damaged shards again from their sources, verify again.

    The store says itself what it was made of. Exit 0 when it is whole, 3 when something is left.
    """

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the store; of one of several zones, all of them are looked at."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the store, and of its sources where --source-options does not say otherwise: a JSON object,
    name=value pairs, or @file.json."""
    source_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the sources, where they differ; `{}` for none."""
    actors: int | None = None
    """Encoding actors. None: one a GPU, or one a node without GPUs."""
    allow_local_sources: bool = False
    """Let a store from elsewhere lead to files of this machine."""
    json: bool = False
    """Print JSON."""
    quiet: bool = False
    """No progress."""


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """One self-contained HTML page on a cube: how its windows ended, how good they are, how the run went."""

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube."""
    out: str = "report.html"
    """The page."""
    source: bool = False
    """Read the sources again, to draw them beside what is decoded."""
    allow_local_sources: bool = False
    """Let the plan of a cube from elsewhere lead to files of this machine."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones."""


@dataclass(frozen=True, slots=True)
class QuicklookOptions:
    """Draw source, decoded picture, PCA of the latents, error and window states side by side."""

    url: Annotated[str, tyro.conf.Positional]
    """Path or URL of the cube."""
    out: str = "quicklook.png"
    """The picture."""
    time: int = 0
    """Time step."""
    source: bool = True
    """Read the source again for comparison."""
    allow_local_sources: bool = False
    """Let the plan of a cube from elsewhere lead to files of this machine."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube: a JSON object, name=value pairs, or @file.json."""
    group: str | None = None
    """Zone of a cube of several zones."""


def encode_main(argv: Sequence[str], prog: str = "encode_region.py", *, plan: bool = False) -> int:
    """`encode_region.py` and `eocube encode|plan`."""
    options = parse(EncodeOptions, argv, prog)
    # `eocube plan` is for people unless it is asked for JSON; `--plan` has always printed JSON.
    options = dataclasses.replace(options, plan=True) if plan else dataclasses.replace(options, json=True)

    def command() -> int:
        from eocube.run.job import encode_region

        return encode_region(*typed(options)).exit

    return guarded(command)


def tell_zones(
    found: Mapping[str | None, Mapping[str, Any]], describe: Callable[[Mapping[str, Any]], str], *, as_json: bool
) -> None:
    """Print a cube's document, or those of all zones of a cube of several, by zone."""
    document = next(iter(found.values())) if len(found) == 1 else {str(zone): one for zone, one in found.items()}
    tell(json.dumps(document, indent=1) if as_json else describe(document))


def info_main(argv: Sequence[str]) -> int:
    """What a cube is: sensor, ground, times, weights, space id, and how each scene's numbers were read."""
    options = parse(StoreOptions, argv, "eocube info")

    def command() -> int:
        from eocube.report.info import brief, describe, groups_of, info

        given = parse_options(options.storage_options)
        found = {zone: info(options.url, zone, given) for zone in groups_of(options.url, options.group, given)}
        shown = {zone: (one if options.json else brief(one)).document() for zone, one in found.items()}
        tell_zones(shown, describe, as_json=options.json)
        return Exit.DONE

    return guarded(command)


def status_main(argv: Sequence[str]) -> int:
    """How a cube's windows ended, and why; exit 3 when some can be tried again."""
    options = parse(StoreOptions, argv, "eocube status")

    def command() -> int:
        from eocube.report.info import describe, groups_of, status

        given = parse_options(options.storage_options)
        found = {zone: status(options.url, zone, given) for zone in groups_of(options.url, options.group, given)}
        tell_zones({zone: one.document() for zone, one in found.items()}, describe, as_json=options.json)
        return Exit.RETRYABLE if any(one.retryable for one in found.values()) else Exit.DONE

    return guarded(command)


def verify_main(argv: Sequence[str]) -> int:
    """Read every shard back and say what does not fit."""
    options = parse(VerifyOptions, argv, "eocube verify")

    def command() -> int:
        from eocube.report.info import describe, verify

        given = parse_options(options.storage_options)
        how: dict[str, Any] = {"decode": options.decode, "allow_local": options.allow_local_sources}
        found = verify(options.url, options.group, given, sample=options.sample or None, **how)
        if options.json:
            tell(json.dumps(found.document(), indent=1))
        else:
            tell(describe({k: v for k, v in found.document().items() if k not in ("findings", "mend")}))
            tell("\n".join(map(plain, found.findings)) or "nothing wrong found")
            if found.mend is not None:
                tell(plain(f"{found.mend} mends it"))
        return Exit.RETRYABLE if found.findings else Exit.DONE

    return guarded(command)


def repair_main(argv: Sequence[str]) -> int:
    """Verify a store, mend what is damaged, verify again; exit 3 when something is left."""
    options = parse(RepairOptions, argv, "eocube repair")

    def command() -> int:
        from eocube.net.storage_options import from_environment
        from eocube.run.repair import lines, repair

        given, sources = parse_options(options.storage_options), parse_options(options.source_options)
        found = repair(
            options.url, storage_options=from_environment() if given is None else given, source_options=sources,
            actors=options.actors, quiet=options.quiet or options.json, trusted=options.allow_local_sources,
            say=(lambda line: None) if options.json else (lambda line: tell(plain(line))),
        )  # fmt: skip
        tell(json.dumps(found.document(), indent=1) if options.json else "\n".join(map(plain, lines(found))))
        return found.exit

    return guarded(command)


def quicklook_main(argv: Sequence[str]) -> int:
    """Draw a cube."""
    options = parse(QuicklookOptions, argv, "eocube quicklook")

    def command() -> int:
        from eocube.report.info import quicklook

        given, out = parse_options(options.storage_options), Path(options.out)
        how: dict[str, Any] = {"source": options.source, "allow_local": options.allow_local_sources}
        tell(quicklook(options.url, options.group, out, options.time, given, **how))
        return Exit.DONE

    return guarded(command)


def report_main(argv: Sequence[str]) -> int:
    """Write the report page of a cube."""
    options = parse(ReportOptions, argv, "eocube report")

    def command() -> int:
        from eocube.report.page import write_page

        how: dict[str, Any] = {"group": options.group, "source": options.source}
        how |= {"storage_options": parse_options(options.storage_options), "allow_local": options.allow_local_sources}
        tell(write_page(options.url, options.out, **how))
        return Exit.DONE

    return guarded(command)


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "plan": ("search and print the plan, before a pixel is read", lambda a: encode_main(a, "eocube plan", plan=True)),
    "encode": ("encode a region into a latent cube", lambda a: encode_main(a, "eocube encode")),
    "info": ("what a cube is", info_main),
    "status": ("how its windows ended, and why", status_main),
    "verify": ("read every shard back", verify_main),
    "repair": ("mend what verify finds damaged", repair_main),
    "decode": ("decode to GeoTIFF or Zarr", decode_main),
    "export": ("a COG or GeoParquet file a time step", export_main),
    "sample": ("values at points through time, as a table", sample_main),
    "serve": ("show cubes in a browser", serve_main),
    "overview": ("a small pyramid by which a large cube opens at once", overview_main),
    "stac": ("a STAC collection of cubes", stac_main),
    "report": ("write one HTML page on a cube and its run", report_main),
    "quicklook": ("draw a picture", quicklook_main),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The `eocube` command."""
    arguments: list[Any] = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: eocube COMMAND [OPTIONS]\n")
        for name, (what, _) in COMMANDS.items():
            print(f"  {name:<10} {what}")
        print("\neocube COMMAND --help lists a command's options")
        return int(Exit.DONE if arguments else Exit.BAD_INPUT)
    if arguments[0] not in COMMANDS:
        near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        complain(f"no command {arguments[0]!r}, there is {', '.join(COMMANDS)}{hint}")
        return int(Exit.BAD_INPUT)
    return COMMANDS[arguments[0]][1](arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
