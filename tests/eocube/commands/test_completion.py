"""Completion: bash completes commands, options and values; zsh and fish read their scripts where they are installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from eocube.cli import COMMANDS, main
from eocube.commands.option_table import options_of


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


def completed(text: str, words: list[str], where: Path) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(f'"{word}"' for word in words)
    code = f'{text}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _eocube; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=where, timeout=30)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_and_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = script("bash", capsys)
    (tmp_path / "munich.zarr").mkdir()
    assert completed(text, ["eocube", ""], tmp_path) == [*COMMANDS, "--help", "--version"]
    assert completed(text, ["eocube", "com"], tmp_path) == ["composite", "completion"]
    assert completed(text, ["eocube", "encode", "--max"], tmp_path) == ["--max-cloud", "--max-requests-per-second"]
    assert completed(text, ["eocube", "encode", "--sensor", "S2"], tmp_path) == ["S2L2A", "S2L1C", "S2RGB"]
    assert completed(text, ["eocube", "info", "mun"], tmp_path) == ["munich.zarr"]
    assert completed(text, ["eocube", "completion", ""], tmp_path)[:3] == ["bash", "zsh", "fish"]
    assert "--no-source" in completed(text, ["eocube", "quicklook", "--"], tmp_path)
    assert completed(text, ["eocube", "nonsense", "--"], tmp_path) == []


def test_every_option_of_every_command_is_in_every_script(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh", "fish"):
        text = script(shell, capsys)
        for name, command in COMMANDS.items():
            assert name in text
            for option in options_of(command.kind):
                flag = f"-l {option.flag[2:]}" if shell == "fish" else option.flag
                assert option.positional or flag in text, (shell, name, option.name)


@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_a_shell_reads_its_script(shell: str, check: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed here: apt-get install {shell}")
    path = tmp_path / "script"
    path.write_text(script(shell, capsys))
    done = subprocess.run([program, check, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_the_script_is_a_document_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["shell"] == "fish" and document["script"] + "\n" == script("fish", capsys)
