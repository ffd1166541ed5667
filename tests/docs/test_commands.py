"""Every command in the tutorials and how-to pages runs here on the demo scenes; those elsewhere, and others, parse."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from eocube.demo.catalogue import DEMO_DATETIME

# Tests are no package: the helper beside this file is loaded by its path.
_spec = importlib.util.spec_from_file_location("docs_commands", Path(__file__).with_name("commands.py"))
assert _spec is not None and _spec.loader is not None
commands = importlib.util.module_from_spec(_spec)
sys.modules["docs_commands"] = commands
_spec.loader.exec_module(commands)

DOCS = commands.ROOT / "docs"
RUN = sorted(page for folder in ("tutorials", "howto") for page in (DOCS / folder).glob("*.md"))
ALL = [commands.ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def named(page: Path) -> str:
    return page.relative_to(commands.ROOT).as_posix()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a reader sits who has run `eocube encode --demo`, and a cube of a few of its windows."""
    from eocube.cli import main

    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["encode", "--demo", "--quiet"]) == 0
        part = ["--bbox", "9.055", "48.635", "9.056", "48.636", "--datetime", DEMO_DATETIME, "--out", "small.zarr"]
        catalog = str(folder / "eocube-demo" / "catalog" / "catalog.json")
        assert main(["encode", "--catalog", catalog, "--sensor", "S2L2A", *part, "--quiet"]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=named)
def test_a_page_runs_from_top_to_bottom(
    page: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in commands.quiet_environment().items():
        monkeypatch.setenv(name, value)
    for cube in ("eocube-demo/cube.zarr", "small.zarr"):
        shutil.copytree(world / cube, tmp_path / cube)
    (tmp_path / "eocube-demo" / "catalog").symlink_to(world / "eocube-demo" / "catalog")
    (tmp_path / "jobs").symlink_to(commands.ROOT / "jobs")
    commands.run_page(page, tmp_path)


@pytest.mark.parametrize("page", ALL, ids=named)
def test_what_does_not_run_parses(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for block in commands.blocks_of(page):
        if block.language != "sh" or (page in RUN and block.note("not run") is None):
            continue
        for words in commands.foreign_commands(block):
            try:
                commands.parse_only(words)
            except SystemExit as end:
                assert end.code in (0, None), f"{block.where}: {' '.join(words)}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", RUN, ids=named)
def test_a_block_that_does_not_run_says_why(page: Path) -> None:
    for block in commands.blocks_of(page):
        reason = block.note("not run")
        assert reason is None or len(reason) > 8, f"{block.where}: say why it is not run"
        assert block.language, f"{block.where}: a block without a language: sh, python, yaml, toml or text"
