"""Finds the blocks of code of a page, runs them in order in a folder, or parses the options of those that cannot."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import tyro

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(\w*)\n(.*?)^```", re.M | re.S)
COMMANDS = ("eocube ", "python jobs/")


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code of a page, with what comments before it say."""

    page: str
    line: int
    language: str
    text: str
    notes: tuple[str, ...]

    def note(self, kind: str) -> str | None:
        """What follows a word in a comment before the block; None where no comment begins with it."""
        return next((n.removeprefix(kind).strip(" :") for n in self.notes if n.startswith(kind)), None)

    @property
    def where(self) -> str:
        """The block's place, for people."""
        return f"{self.page}:{self.line}"

    def shortened(self) -> str:
        """The text as it runs here: `<!-- in tests: A => B -->` replaces what would take too long."""
        text = self.text
        for note in self.notes:
            if note.startswith("in tests:"):
                old, _, new = note.removeprefix("in tests:").partition("=>")
                assert old.strip() in text, f"{self.where}: its comment replaces {old.strip()!r}, which is not there"
                text = text.replace(old.strip(), new.strip())
        return text


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        notes = tuple(re.findall(r"<!-- (.*?) -->", match[1]))
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(page.relative_to(ROOT).as_posix(), line, match[2], match[3], notes))
    return found


def lines_of(text: str) -> list[str]:
    """Shell commands, one each, with continued lines joined."""
    joined = text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def argv_of(line: str) -> list[str]:
    """A command's words, without comments."""
    return shlex.split(line, comments=True)


def run_eocube(words: Sequence[str]) -> int:
    """A command in this process: starting Python and torch anew for each would take most of the time."""
    from eocube.cli import main

    if words[0] == "eocube":
        return main(list(words[1:]))
    sys.argv = list(words[1:])
    try:
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def run_page(page: Path, folder: Path) -> None:
    """Run the blocks of a page that can run, in a folder. AssertionError where one ends otherwise than it says."""
    names: dict[str, Any] = {"__name__": "page"}
    with contextlib.chdir(folder), mock.patch.object(sys, "argv", list(sys.argv)):
        for block in blocks_of(page):
            if block.note("not run") is not None or block.language not in ("sh", "python"):
                continue
            expected = int(block.note("exit") or 0)
            if block.language == "python":
                exec(compile(block.shortened(), block.where, "exec"), names)
                continue
            commands = lines_of(block.shortened())
            if not all(command.startswith(COMMANDS) for command in commands):
                done = subprocess.run(["bash", "-eu", "-c", block.shortened()], capture_output=True, text=True)
                assert done.returncode == expected, f"{block.where}: exit {done.returncode}\n{done.stderr}"
                continue
            for command in commands:
                said = io.StringIO()
                with contextlib.redirect_stderr(said):
                    status = run_eocube(argv_of(command))
                assert status == expected, f"{block.where}: {command}: exit {status}\n{said.getvalue()[-2000:]}"


def foreign_commands(block: Block) -> Iterator[list[str]]:
    """The commands of eocube in a block that does not run, also those behind `ray job submit ... --`."""
    for line in lines_of(block.text):
        words = argv_of(line)
        if words[:3] == ["ray", "job", "submit"]:
            words = words[words.index("--") + 1 :]
        while words and "=" in words[0]:
            words = words[1:]
        if words and words[0].endswith("bin/eocube"):
            words[0] = "eocube"
        if words[:1] == ["eocube"] or (words[:1] == ["python"] and words[1].startswith("jobs/")):
            ends = next((k for k, word in enumerate(words) if word in (">", ">>", "|", "||", "&&")), len(words))
            yield [word for word in words[:ends] if word != "..."]


def parse_only(words: Sequence[str]) -> None:
    """Parse a command's options with its own parser and do nothing. SystemExit where it would be refused."""
    from eocube.cli import COMMANDS as TABLE
    from eocube.cli import main

    def nothing(command: object) -> int:
        return 0

    # What is imported while the door is shut would keep it shut.
    for command in TABLE.values():
        importlib.import_module(f"eocube.commands.{command.module}")
    places = [name for name, module in sys.modules.items() if name.startswith("eocube") and hasattr(module, "guarded")]
    with contextlib.ExitStack() as stack:
        for name in places:
            stack.enter_context(mock.patch.object(sys.modules[name], "guarded", nothing))
        if words[0] == "eocube":
            status = main(list(words[1:]))
            assert status == 0, words
            return
        script = importlib.import_module(f"jobs.{Path(words[1]).stem}")
        if hasattr(script, "Options"):
            tyro.cli(script.Options, args=list(words[2:]))
        else:
            assert (script.main if hasattr(script, "main") else script.encode_main)(list(words[2:])) == 0, words


def quiet_environment() -> dict[str, str]:
    """What keeps a run on a build machine short and silent."""
    return {"RAY_USAGE_STATS_ENABLED": "0", "MPLBACKEND": "agg", "NO_COLOR": "1"}
