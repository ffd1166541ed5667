"""Runs `eocube info`, `status`, `verify` and `repair`: what a cube is, how it ended, whether it is whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from eocube.commands.answers import answer, quoted, tell_next
from eocube.commands.help_page import Page
from eocube.commands.parsing import guarded, parse
from eocube.console import plain, tell
from eocube.errors import Exit
from eocube.net.storage_options import parse_options

ALL = {"Options": ("json", "group", "storage_options")}


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
    """Print a JSON document."""


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
    """Encoding actors. Without it one a GPU, or one a node without GPUs."""
    allow_local_sources: bool = False
    """Let a store from elsewhere lead to files of this machine."""
    json: bool = False
    """Print a JSON document."""
    quiet: bool = False
    """No progress."""


INFO = Page(
    (
        ("sensor, ground, times, weights, and how each scene's numbers were read", "eocube info munich.zarr"),
        ("one zone of a cube of several, for a program", "eocube info europe.zarr --group utm32 --json"),
    ),
    about="Say what a cube is: sensor, ground, times, weights, space id, and how each scene's numbers were read.",
)
STATUS = Page(
    (
        ("how its windows ended, and why", "eocube status munich.zarr"),
        ("for a program: exit status 3 says that some can be tried again", "eocube status munich.zarr --json"),
    ),
    about="Say how a cube's windows ended, and why. Exit status 3 when some can be tried again.",
)
VERIFY = Page(
    (
        ("hash every object against the log", "eocube verify munich.zarr"),
        ("decode too, and compare with the sources read again", "eocube verify munich.zarr --decode --sample 64"),
    )
)
REPAIR = Page((("mend what `eocube verify` finds damaged", "eocube repair munich.zarr"),))


def tell_zones(
    found: Mapping[str | None, Mapping[str, Any]], describe: Callable[[Mapping[str, Any]], str], *, as_json: bool
) -> None:
    """Print a cube's document, or those of all zones of a cube of several, by zone."""
    document = next(iter(found.values())) if len(found) == 1 else {str(zone): one for zone, one in found.items()}
    answer(document, "" if as_json else describe(document), as_json=as_json)


def info_main(argv: Sequence[str]) -> int:
    """What a cube is: sensor, ground, times, weights, space id, and how each scene's numbers were read."""
    options = parse(StoreOptions, argv, "eocube info", INFO)

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
    options = parse(StoreOptions, argv, "eocube status", STATUS)

    def command() -> int:
        from eocube.report.info import describe, groups_of, status

        given = parse_options(options.storage_options)
        found = {zone: status(options.url, zone, given) for zone in groups_of(options.url, options.group, given)}
        tell_zones({zone: one.document() for zone, one in found.items()}, describe, as_json=options.json)
        return Exit.RETRYABLE if any(one.retryable for one in found.values()) else Exit.DONE

    return guarded(command)


def verify_main(argv: Sequence[str]) -> int:
    """Read every shard back and say what does not fit."""
    options = parse(VerifyOptions, argv, "eocube verify", VERIFY)

    def command() -> int:
        from eocube.report.info import describe, verify

        given = parse_options(options.storage_options)
        how: dict[str, Any] = {"decode": options.decode, "allow_local": options.allow_local_sources}
        found = verify(options.url, options.group, given, sample=options.sample or None, **how)
        document = found.document()
        lines = [] if options.json else [describe({k: v for k, v in document.items() if k not in ("findings", "mend")})]
        lines += [*map(plain, found.findings)] or ["nothing wrong found"]
        lines += [] if found.mend is None else [plain(f"{found.mend} mends it")]
        answer(document, "\n".join(lines), as_json=options.json)
        return Exit.RETRYABLE if found.findings else Exit.DONE

    return guarded(command)


def repair_main(argv: Sequence[str]) -> int:
    """Verify a store, mend what is damaged, verify again; exit 3 when something is left."""
    options = parse(RepairOptions, argv, "eocube repair", REPAIR)

    def command() -> int:
        from eocube.net.storage_options import from_environment
        from eocube.run.repair import lines, repair

        given, sources = parse_options(options.storage_options), parse_options(options.source_options)
        found = repair(
            options.url, storage_options=from_environment() if given is None else given, source_options=sources,
            actors=options.actors, quiet=options.quiet or options.json, trusted=options.allow_local_sources,
            say=(lambda line: None) if options.json else (lambda line: tell(plain(line))),
        )  # fmt: skip
        answer(found.document(), "\n".join(map(plain, lines(found))), as_json=options.json)
        if not options.json:
            cube = quoted(options.url, options.storage_options)
            what = "how its windows end now" if found.exit == Exit.DONE else "what is left"
            tell_next([(what, f"status {cube}")], quiet=options.quiet)
        return found.exit

    return guarded(command)
