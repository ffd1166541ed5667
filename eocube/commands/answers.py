"""Gives a command's answer: a JSON document or lines on standard output, and what to type next on standard error."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eocube.console import for_people, plain, say, tell

Next = tuple[str, str]
"""(what it is for, the words behind `eocube`)."""


def answer(document: Any, text: str, *, as_json: bool, then: Sequence[Next] = ()) -> None:
    """Print what a command came to.

    With `as_json` the document, and nothing else on standard output; else the text, and on standard error, where people
    look and programs do not, what to type next.
    """
    if as_json:
        tell(json.dumps(finite(document), indent=1, default=str))
        return
    if text:
        tell(text)
    tell_next(then)


def tell_next(then: Sequence[Next], *, quiet: bool = False) -> None:
    """Say what to type next, each with what it is for."""
    if not then:
        return
    console, name = for_people(quiet=quiet), command_name()
    say(console, "next:")
    typed = [(f"{name} {words}", what) for what, words in then]
    width = min(70, max(len(line) for line, _ in typed))
    for line, what in typed:
        say(console, f"  {line:<{width}}  # {what}")


def command_name() -> str:
    """How the user can call `eocube` from where they are: by its name, its path in a virtual environment, or Python's.

    A job script may run in an environment that is not on the PATH.
    """
    beside = Path(sys.executable).with_name("eocube")
    found = shutil.which("eocube")
    if found is not None and (not beside.exists() or Path(found).samefile(beside)):
        return "eocube"
    if beside.exists():
        return shlex.quote(_near(beside))
    return f"{shlex.quote(_near(Path(sys.executable)))} -m eocube.cli"


def _near(path: Path) -> str:
    """A path as it is shortest to type from here."""
    try:
        return os.path.join(".", os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else str(path)
    except OSError:  # the folder that we are in is gone
        return str(path)


def quoted(url: str, options: Sequence[str] = (), group: str | None = None) -> str:
    """A cube as it is typed, with its zone; options of its storage may hold secrets and are only hinted at."""
    zone = "" if group is None else f" --group {shlex.quote(group)}"
    return f"{shlex.quote(plain(url))}{zone}{' --storage-options ...' if options else ''}"


def of_cube(url: str, options: Sequence[str] = (), *, decodes: bool = True, bands: Sequence[str] = ()) -> list[Next]:
    """What is usually done with a cube next."""
    cube = quoted(url, options)
    three = f" --bands {','.join(bands[:3])}" if bands else ""
    found = [("how its windows ended", f"status {cube}"), ("one page on all of it", f"report {cube} --out report.html")]
    if decodes:
        found.insert(0, ("a picture", f"quicklook {cube} --out picture.png"))
        found.append(("pixels of one date as a GeoTIFF", f"decode {cube}{three} --out decoded.tif"))
    return found


def finite(value: Any) -> Any:
    """A document in which what is no finite number is null: JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inside) for inside in value]
    return value
