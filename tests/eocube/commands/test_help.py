"""Help fits a screen and shows nothing of Python's or tyro's; a mistake is one line that says what was meant."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from eocube.cli import COMMANDS, main
from eocube.commands.help_page import Page, first_sentence, help_text
from eocube.commands.option_table import options_of
from eocube.errors import Exit

INTERNALS = re.compile(r"\bNone\b|\(\)|\bSTR\b|\{None|\(default|\bINT\b|\bFLOAT\b|``|Request\.parse|dataclass")
SCREEN = 38
"""Lines of a terminal that a laptop shows at once."""


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        code = main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", [*COMMANDS, ""])
def test_the_help_of_every_command_fits_a_screen_with_examples_and_without_internals(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = said([*([name] if name else []), "--help"], capsys)
    assert code == Exit.DONE and not err
    assert out.startswith("usage: eocube") and len(out.splitlines()) <= SCREEN, len(out.splitlines())
    assert INTERNALS.search(out) is None, INTERNALS.search(out)
    assert 1 <= out.count("\n  eocube ") <= 3 and "xit status" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("name", COMMANDS)
def test_all_options_are_in_the_long_help_and_each_says_what_it_does(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = said([name, "--help-all"], capsys)
    assert code == Exit.DONE
    without = re.sub(r"`?\{\}`?|\{\"hosts\".*?\}\}\}\}?", "", " ".join(out.split()))  # JSON that a user is to type
    assert INTERNALS.search(without) is None, INTERNALS.search(without)
    for option in options_of(COMMANDS[name].kind):
        assert option.text, option
        assert (option.metavar if option.positional else option.flag) in out


def test_the_first_help_of_encode_has_ten_options_in_groups_and_every_group_names_real_ones() -> None:
    from eocube.commands.encode import FIRST, GROUPS
    from eocube.run.arguments import EncodeOptions

    names = {option.name for option in options_of(EncodeOptions)}
    grouped = [name for group in GROUPS.values() for name in group]
    assert len(FIRST) == 10 and set(FIRST) <= names
    assert sorted(grouped) == sorted(names), "every option stands in one group"


def test_examples_are_commands_that_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """What help shows can be typed: no option in it that a command does not know."""
    import importlib
    import shlex

    from eocube.commands.parsing import mistake

    pages: list[tuple[str, Any]] = []
    for name, command in COMMANDS.items():
        module = importlib.import_module(f"eocube.commands.{command.module}")
        page = module.encode_page(f"eocube {name}") if command.module == "encode" else getattr(module, name.upper())
        pages.append((name, page))
    for name, page in pages:
        for _, typed in page.examples:
            words = shlex.split(re.sub(r'^eval "\$\((.*)\)"$', r"\1", typed).partition(" > ")[0])
            assert words[:2] == ["eocube", name] and mistake(options_of(COMMANDS[name].kind), words[2:]) is None, typed


@dataclasses.dataclass(frozen=True)
class Few:
    """Do something. With more words."""

    many: tuple[str, ...] = ()
    """Several words."""
    share: float | None = None
    """A share. Not more than 1."""


def test_a_page_without_groups_shows_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    text = help_text(Few, "few", Page(), whole=False, width=80)
    assert "--many MANY .." in text and "--share N" in text and "A share. Not more than 1." in text
    brief = help_text(Few, "few", Page(first=("share",)), whole=False, width=80)
    assert "--many" not in brief and "A share\n" in brief and "--help-all lists 1 more option" in brief


def test_a_first_sentence_ends_where_one_does() -> None:
    assert (
        first_sentence("As 2023-08-15, B04.tif (or 3. a) or 3.5: all. More.")
        == "As 2023-08-15, B04.tif (or 3. a) or 3.5: all"
    )
    assert first_sentence("One of it") == "One of it"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["encode", "--bbbox", "1", "2", "3", "4"], "no option --bbbox; did you mean --bbox?"),
        (["encode", "--max_clud", "4"], "no option --max-clud; did you mean --max-cloud?"),
        (["encode", "--Demo"], "did you mean --demo?"),
        (["encode", "--qqqqq"], "no option --qqqqq"),
        (["encode", "--actors", "x"], "--actors: 'x' is not a whole number"),
        (["encode", "--price", "1,2"], "--price: '1,2' is not a number"),
        (["encode", "--out"], "--out needs a value: --out PATH"),
        (["encode", "--out", "--demo"], "--out needs a value"),
        (["encode", "--demo=1"], "--demo takes no value"),
        (["encode", "cube.zarr"], "'cube.zarr' is one word too many"),
        (["info"], "CUBE must be given: path or URL of the cube"),
        (["info", "a", "b"], "'b' is one word too many"),
        (["sample", "a"], "FILE must be given"),
        (["sample", "a", "b"], "--out PATH must be given"),
        (["composite", "a", "--out", "b", "--how", "medain"], "did you mean median?"),
        (["completion", "bahs"], "bahs"),
        (["statsu"], "no command 'statsu'"),
        (["--versoin"], "did you mean --version?"),
        (["decod"], "did you mean decode?"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_was_meant(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(words, capsys)
    assert code == Exit.BAD_INPUT and not out
    assert err.startswith("error: ") and err.count("\n") == 1 and told in err
    assert "Traceback" not in err and "{None}" not in err


def test_options_are_taken_as_they_always_were() -> None:
    from eocube.commands.parsing import parse
    from eocube.run.arguments import EncodeOptions

    box = ("-3.7", "40.2", "-3.5", "40.4")
    for words in (["--bbox", *box], ["--bbox", ",".join(box)], [f"--bbox={','.join(box)}"]):
        assert parse(EncodeOptions, words, "x").bbox == box
    found = parse(EncodeOptions, ["--max_cloud", "40", "--no-plan", "--storage-options", "a=b", "c=d"], "x")
    assert (found.max_cloud, found.plan, found.storage_options) == ("40", False, ("a=b", "c=d"))
    assert parse(EncodeOptions, ["--offset", "-0.1"], "x").offset == "-0.1"


def test_help_and_version_are_documents_too(capsys: pytest.CaptureFixture[str]) -> None:
    from eocube import __version__

    code, out, _ = said(["--version"], capsys)
    assert code == Exit.DONE and out == f"eocube {__version__}\n"
    assert json.loads(said(["--version", "--json"], capsys)[1])["eocube"] == __version__
    document = json.loads(said(["--help", "--json"], capsys)[1])
    assert set(document) == set(COMMANDS)
    assert {"name": "--json", "value": "", "default": ""}.items() <= document["info"]["options"][-1].items()


def test_every_command_has_json() -> None:
    for name, command in COMMANDS.items():
        assert "json" in {option.name for option in options_of(command.kind)}, name
