"""Runs the `eocube` command: finds the command that was typed, which calls the library and returns a code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from eocube.commands.parsing import guarded, meant, parse
from eocube.console import complain
from eocube.errors import Exit

if TYPE_CHECKING:
    from eocube.commands.encode import encode_main
    from eocube.commands.export import decode_main
    from eocube.commands.reading import StoreOptions

__all__ = ["COMMANDS", "StoreOptions", "decode_main", "encode_main", "guarded", "main", "parse"]


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what it does in a few words, and where it is. Nothing of it is imported before it is typed."""

    about: str
    group: str
    module: str
    """Below `eocube.commands`."""
    options: str
    """The dataclass of its options."""

    def run(self, name: str, argv: Sequence[str]) -> int:
        """Run it; gives the exit status."""
        work: Callable[[Sequence[str]], int] = getattr(import_module(f"eocube.commands.{self.module}"), f"{name}_main")
        return work(argv)

    @property
    def kind(self) -> type[Any]:
        """The dataclass of its options, imported."""
        found: type[Any] = getattr(import_module(f"eocube.commands.{self.module}"), self.options)
        return found


MAKE, LOOK, TAKE, HELP = "Make a cube, keep it whole", "See what it is", "Take out of it", "This machine"
COMMANDS: dict[str, Command] = {
    "plan": Command("search and say what it would take, before a pixel is read", MAKE, "encode", "EncodeOptions"),
    "encode": Command("encode a region into a latent cube", MAKE, "encode", "EncodeOptions"),
    "verify": Command("read every shard back", MAKE, "reading", "VerifyOptions"),
    "repair": Command("mend what verify finds damaged", MAKE, "reading", "RepairOptions"),
    "info": Command("what a cube is", LOOK, "reading", "StoreOptions"),
    "status": Command("how its windows ended, and why", LOOK, "reading", "StoreOptions"),
    "quicklook": Command("draw a picture", LOOK, "pictures", "QuicklookOptions"),
    "report": Command("write one HTML page on a cube and its run", LOOK, "pictures", "ReportOptions"),
    "serve": Command("show cubes in a browser", LOOK, "serve", "ServeOptions"),
    "overview": Command("a small pyramid by which a large cube opens at once", MAKE, "overview", "OverviewOptions"),
    "decode": Command("decode to GeoTIFF or Zarr", TAKE, "export", "DecodeOptions"),
    "export": Command("a COG or GeoParquet file a time step", TAKE, "export", "ExportOptions"),
    "composite": Command("a picture a month or season, without clouds", TAKE, "composite", "CompositeOptions"),
    "sample": Command("values at points through time, as a table", TAKE, "sample", "SampleOptions"),
    "stac": Command("a STAC collection of cubes", TAKE, "stac", "StacOptions"),
    "doctor": Command("what this machine has, and what would make it faster", HELP, "doctor", "DoctorOptions"),
    "completion": Command("completion by Tab for bash, zsh or fish", HELP, "completion", "CompletionOptions"),
}
"""`NAME_main` of its module runs a command."""
EXAMPLES = (
    ("no network, no data: see what it does", "eocube encode --demo"),
    (
        "a region, a summer",
        "eocube encode --bbox 11.3 48.0 11.8 48.3 --datetime 2024-06-01/2024-08-31 --out munich.zarr",
    ),
    ("pixels back, of one date", "eocube decode munich.zarr --bands B04,B03,B02 --out munich.tif"),
)
EXITS = "Exit status: 0 done, 2 bad input (said in one line), 3 some windows can be tried again, 1 a defect of eocube."


def overview() -> str:
    """What `eocube --help` prints."""
    out = ["usage: eocube COMMAND [OPTIONS]", ""]
    out += ["A region of the Earth goes in; a cube of latents comes out, which xarray opens and eocube decodes.", ""]
    out += [line for what, typed in EXAMPLES for line in (f"  # {what}", f"  {typed}")]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        out += ["", f"{group}:"]
        out += [f"  {name:<11}{c.about}" for name, c in COMMANDS.items() if c.group == group]
    return "\n".join([*out, "", "eocube COMMAND --help shows the options most used, --help-all every one.", EXITS])


def document() -> dict[str, Any]:
    """What `eocube --help --json` prints: every command with its options."""
    from eocube.commands.option_table import options_of

    return {
        name: {
            "about": command.about, "group": command.group,
            "options": [
                {"name": o.metavar if o.positional else o.flag, "value": o.metavar, "default": o.usual, "about": o.text}
                for o in options_of(command.kind)
            ],
        }
        for name, command in COMMANDS.items()
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The `eocube` command."""
    given: list[Any] = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in given
    first = next((word for word in given if word != "--json"), "")
    if first in ("", "-h", "--help", "--help-all", "help"):
        from eocube.commands.answers import answer

        answer(document() if as_json else {}, overview(), as_json=as_json)
        return int(Exit.DONE if first else Exit.BAD_INPUT)
    if first in ("-V", "--version", "version"):
        return version(as_json=as_json)
    if given[0] not in COMMANDS:
        known = {name: None for name in (*COMMANDS, "--help", "--version")}
        what = "option" if str(given[0]).startswith("-") else "command"
        complain(f"no {what} {given[0]!r}, there is {', '.join(COMMANDS)}{meant(given[0], known)}")
        return int(Exit.BAD_INPUT)
    if given[0] == "completion":
        from eocube.commands.completion import completion_main

        return completion_main(given[1:], lambda: {name: (c.about, c.kind) for name, c in COMMANDS.items()})
    return COMMANDS[given[0]].run(given[0], given[1:])


def version(*, as_json: bool) -> int:
    """What `eocube --version` prints."""
    from eocube import __version__
    from eocube.commands.answers import answer

    answer({"eocube": __version__, "python": sys.version.split()[0]}, f"eocube {__version__}", as_json=as_json)
    return int(Exit.DONE)


def __getattr__(name: str) -> Any:
    """What job scripts take from here, imported as it is asked for."""
    module = {"encode_main": "encode", "decode_main": "export", "StoreOptions": "reading"}.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"eocube.commands.{module}"), name)


if __name__ == "__main__":
    sys.exit(main())
