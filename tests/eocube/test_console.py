"""What is printed: markup, control characters and formulas of a catalogue or a store are shown and do nothing."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from eocube import cli
from eocube.console import complain, for_people, plain, say
from eocube.errors import InputError
from eocube.report.info import describe
from eocube.run.ending import report
from eocube.run.progress import Progress
from eocube.store.receipts import State
from eocube.store.tables import Failure

EVIL = "S2B_[/red]_[link=x]\x1b[2J\x07\r\x9b31m\u202e\ud800\x7f"


def harmless(text: str) -> bool:
    return not set(text) & set("\x1b\x07\r\x9b\u202e\ud800\x7f")


def test_a_text_is_shown_with_its_controls_spelt_out() -> None:
    assert plain("plain Größe 漢字 [/red]") == "plain Größe 漢字 [/red]"
    assert plain("a\x1b[2J\nb\x9b\u202e\ud800\U000e0001") == r"a\x1b[2J\nb\x9b\u202e\ud800\U000e0001"


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_is_printed_without_its_markup_being_followed(terminal: bool) -> None:
    said = io.StringIO()
    say(Console(file=said, force_terminal=terminal, color_system=None, width=300), f"refused {EVIL}: no asset", "red")
    assert "[/red]_[link=x]\\x1b[2J" in said.getvalue() and harmless(said.getvalue())


def test_markup_in_an_id_does_not_end_the_report_of_a_run() -> None:
    """The last lines of a finished run were a traceback of rich: closing tag '[/red]' matches no open tag."""
    summary: Any = SimpleNamespace(
        counts={State.READ_FAILED: 1}, scores=SimpleNamespace(psnr=None, sam=None, windows=0), breaches=0, dark={},
        seams=SimpleNamespace(borders=0), precision={},
        failures=(Failure(State.READ_FAILED, EVIL, "[/x]", f"{EVIL} gone", 1),),
    )  # fmt: skip
    plan: Any = SimpleNamespace(
        sensor=SimpleNamespace(name="[/blue]"), grid=SimpleNamespace(lattice=SimpleNamespace(epsg=32633)), times=(1,),
        disorder=0, product=SimpleNamespace(precision="fp32"), refused=((EVIL, f"because of {EVIL}"),),
    )  # fmt: skip
    tally: Any = SimpleNamespace(units=0, lost=("t[/red]",), interrupted=False)
    cube: Any = SimpleNamespace(url="cube[/bold].zarr", plan=plan)
    said = io.StringIO()
    report(Console(file=said, width=400, soft_wrap=True), [cube], tally, [summary])
    text = said.getvalue()
    assert "refused S2B_[/red]_" in text and "failed S2B_[/red]_" in text and harmless(text)


def test_what_a_store_says_of_itself_is_shown_line_by_line() -> None:
    text = describe({"refused": {EVIL: f"a\nb {EVIL}"}, "times": [EVIL], "url": EVIL})
    assert harmless(text) and text.count("\n") == 3


def test_errors_and_warnings_are_one_harmless_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise InputError(f"{EVIL}\nsecond line")

    assert cli.guarded(command) == 2
    complain(f"https://me:pw4you@host/x?token=hush {EVIL}")
    with Progress(None) as progress:
        progress.say(f"a host is down: {EVIL}")
    with pytest.raises(SystemExit):
        cli.parse(cli.StoreOptions, ["a", "b\x1b[2Jx"], "eocube info")
    cli.main(["\x1b[2J"])
    said = capsys.readouterr().err
    assert harmless(said) and said.count("\n") == 5 and "hush" not in said and "pw4you" not in said
    assert "a host is down: S2B_[/red]_" in said


def test_a_formula_in_a_name_does_not_end_a_picture() -> None:
    """matplotlib reads $...$ as a formula, and raises where it is none."""
    from eocube.cube.quicklook import _ground

    figure = Figure()
    FigureCanvasAgg(figure)
    shown: Any = SimpleNamespace(crs=None)
    _ground(figure.add_subplot(), r"B$\frac$04", shown, (0.0, 1.0, 0.0, 1.0))
    figure.savefig(io.BytesIO())


def test_for_people_follows_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    for_people().print("[/red] :smile:")
    assert capsys.readouterr().err == "[/red] :smile:\n"
