"""Streams that are closed, full, left by their reader or of another encoding cost a line, never a run."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eocube.console import PatientConsole
from eocube.run.progress import Progress
from eocube.run.run_log import FileSink

ROOT = Path(__file__).resolve().parents[2]


def shell(line: str, code: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "CODE": code, "PY": sys.executable, **environment}
    return subprocess.run(["bash", "-c", line], env=env, cwd=ROOT, capture_output=True, timeout=100)


class Full(io.TextIOWrapper):
    """A terminal on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


def test_a_console_that_cannot_be_written_loses_its_line_alone() -> None:
    PatientConsole(file=Full(io.BytesIO())).print("[red]gone[/red]")
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    PatientConsole(file=ascii_only).print("grün")


def test_progress_goes_on_without_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full(io.BytesIO()))
    with Progress(3) as progress:
        progress.say("a line")


def test_a_log_on_a_full_disk_is_given_up_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = FileSink(str(tmp_path), "run")
    sink._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115
    sink.write(["one"])
    sink.write(["two"])
    sink.close()
    assert caplog.text.count("the run's log is given up") == 1


@pytest.mark.slow
def test_a_process_without_standard_error_has_an_empty_one() -> None:
    """Else the next file that is opened gets its number, and what libraries say goes into it."""
    code = (
        "import sys, os; from eocube.cli import guarded; from eocube.errors import InputError\n"
        "def command():\n"
        "    file = open(os.environ['OUT'], 'w'); assert file.fileno() > 2, file.fileno()\n"
        "    os.write(2, b'a library speaks'); sys.stderr.write('so do we'); raise InputError('no')\n"
        "sys.exit(guarded(command))"
    )
    for closed in ("2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-"):
        ended = shell(f'"$PY" -c "$CODE" {closed}', code, OUT=os.devnull)
        assert ended.returncode == 2, (closed, ended)


@pytest.mark.slow
def test_a_reader_that_leaves_does_not_change_what_a_command_came_to() -> None:
    code = (
        "import sys; from eocube.cli import guarded; from eocube.console import tell\n"
        "def command():\n"
        "    for _ in range(9): tell('x' * 100_000)\n"
        "    return 3\n"
        "sys.exit(guarded(command))"
    )
    ended = shell('set -o pipefail; "$PY" -c "$CODE" | head -c 1', code)
    assert ended.returncode == 3 and b"Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_letter_that_the_locale_lacks_is_written_as_its_number() -> None:
    code = (
        "import sys; from eocube.cli import guarded; from eocube.console import tell\n"
        "def command():\n    tell('gr' + chr(252) + 'n')\n    return 0\n"
        "sys.exit(guarded(command))"
    )
    ended = shell('"$PY" -c "$CODE"', code, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert ended.returncode == 0 and ended.stdout.strip() == rb"gr\xfcn", ended
