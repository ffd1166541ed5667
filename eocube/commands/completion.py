"""Runs `eocube completion`: writes what bash, zsh or fish need to complete commands, options and their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from eocube.commands.answers import answer
from eocube.commands.help_page import Page, first_sentence
from eocube.commands.option_table import Option, options_of
from eocube.commands.parsing import guarded, parse
from eocube.errors import Exit

VALUES = {
    "sensor": ("S2L2A", "S2L1C", "RGBN", "S2RGB", "S1RTC", "S1GRD"),
    "catalog": ("earth-search", "planetary-computer", "cdse", "demo"),
    "weights": ("nano2", "nano"), "storage": ("codes", "fp16", "int8"), "precision": ("auto", "fp16", "bf16", "fp32"),
    "quality": ("near-lossless", "default", "small"), "engine": ("auto", "local", "ray"), "since": ("last",),
    "retry": ("read_failed", "encode_failed", "damaged", "lost"), "what": ("decoded", "latents"),
    "format": ("cog", "geoparquet"), "period": ("1MS", "season", "1YS", "10D"),
}  # fmt: skip
"""What an option of that name usually is; where it may be a file too, files are offered beside."""


@dataclass(frozen=True, slots=True)
class CompletionOptions:
    """Print what a shell needs to complete eocube's commands, options and values by the Tab key."""

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]
    """bash, zsh or fish."""
    json: bool = False
    """Print a JSON document with the script."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command as a shell completes it."""

    name: str
    about: str
    options: tuple[Option, ...]


COMPLETION = Page((
    ("bash, for this session (put the line into ~/.bashrc to keep it)", 'eval "$(eocube completion bash)"'),
    ("zsh, likewise (~/.zshrc, behind compinit)", 'eval "$(eocube completion zsh)"'),
    ("fish, kept", "eocube completion fish > ~/.config/fish/completions/eocube.fish"),
))  # fmt: skip


def completion_main(argv: Sequence[str], commands: Callable[[], Mapping[str, tuple[str, type[object]]]]) -> int:
    """Print the script; `commands` gives each command's text and options."""
    options = parse(CompletionOptions, argv, "eocube completion", COMPLETION)

    def command() -> int:
        known = [Completed(name, about, options_of(kind)) for name, (about, kind) in commands().items()]
        script = {"bash": bash, "zsh": zsh, "fish": fish}[options.shell](known)
        answer({"shell": options.shell, "script": script}, script, as_json=options.json)
        return Exit.DONE

    return guarded(command)


def _flags(option: Option) -> list[str]:
    """All that is typed for an option: a switch that is on has its opposite."""
    off = [f"--no-{option.flag[2:]}"] if option.kind is bool and option.default is True else []
    return [option.flag, *off]


def _values_of(option: Option) -> tuple[str, ...]:
    return option.choices or VALUES.get(option.name, ())


def bash(commands: Sequence[Completed]) -> str:
    """A script for bash 4 and newer."""
    cases: list[str] = []
    values: dict[str, tuple[str, ...]] = {}
    for command in commands:
        flags = [flag for o in command.options if not o.positional for flag in _flags(o)]
        words = [v for o in command.options if o.positional for v in o.choices]
        cases.append(f"        {command.name}) words='{' '.join([*words, *flags, '--help', '--help-all'])}' ;;")
        values |= {o.flag: _values_of(o) for o in command.options if _values_of(o) and not o.positional}
    known = "\n".join(
        f'        {flag}) COMPREPLY=($(compgen -W \'{" ".join(v)}\' -- "$here") $(compgen -f -- "$here")); return ;;'
        for flag, v in values.items()
    )
    names = " ".join(command.name for command in commands)
    return "\n".join((
        "# Completes eocube in bash: eval \"$(eocube completion bash)\"",
        "_eocube() {",
        "    local here=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words",
        "    if [ \"$COMP_CWORD\" -eq 1 ]; then",
        f"        COMPREPLY=($(compgen -W '{names} --help --version' -- \"$here\")); return",
        "    fi",
        "    case $before in",
        known,
        "    esac",
        "    case ${COMP_WORDS[1]} in",
        *cases,
        "        *) return ;;",
        "    esac",
        "    case $here in",
        "        -*) COMPREPLY=($(compgen -W \"$words\" -- \"$here\")) ;;",
        "        *) COMPREPLY=($(compgen -W \"${words%%--*}\" -- \"$here\") $(compgen -f -- \"$here\")) ;;",
        "    esac",
        "}",
        "complete -o filenames -F _eocube eocube",
    ))  # fmt: skip


def _single(text: str) -> str:
    """A text that stands between single quotes in zsh's and fish's descriptions."""
    return text.replace("'", "").replace("[", "(").replace("]", ")").replace(":", ",").replace("\\", "/")


def zsh(commands: Sequence[Completed]) -> str:
    """A script for zsh with its completion system loaded."""
    described = "\n".join(f"        '{c.name}:{_single(c.about)}'" for c in commands)
    cases = []
    for command in commands:
        specs = []
        for option in command.options:
            if option.positional:
                many = "*" if option.many else ""
                action = f"({' '.join(option.choices)})" if option.choices else "_files"
                specs.append(f"'{many}:{option.metavar.lower()}:{action}'")
                continue
            for flag in _flags(option):
                offered = f"{{_files; compadd -- {' '.join(_values_of(option))}}}" if _values_of(option) else "_files"
                value = "" if option.kind is bool else f":{_single(option.metavar)}:{offered}"
                specs.append(f"'{flag}[{_single(first_sentence(option.text))}]{value}'")
        specs += ["'--help[the options most used]'", "'--help-all[every option]'"]
        cases.append(f"        {command.name}) _arguments " + " \\\n            ".join(specs) + " ;;")
    return "\n".join((
        "#compdef eocube",
        "_eocube() {",
        "    local -a commands",
        "    commands=(",
        described,
        "    )",
        "    if (( CURRENT == 2 )); then _describe command commands; return; fi",
        "    local name=$words[2]",
        "    shift words; (( CURRENT-- ))",
        "    case $name in",
        *cases,
        "    esac",
        "}",
        "if [ \"$funcstack[1]\" = _eocube ]; then _eocube \"$@\"; else compdef _eocube eocube; fi",
    ))  # fmt: skip


def fish(commands: Sequence[Completed]) -> str:
    """A script for fish 3 and newer."""
    lines = ["# Completes eocube in fish", "complete -c eocube -f"]
    lines += [f"complete -c eocube -n __fish_use_subcommand -a {c.name} -d '{_single(c.about)}'" for c in commands]
    for command in commands:
        when = f"complete -c eocube -n '__fish_seen_subcommand_from {command.name}'"
        words = [v for o in command.options if o.positional for v in o.choices]
        lines.append(f"{when} -a '{' '.join(words)}'" if words else f"{when} -F")
        for option in command.options:
            if option.positional:
                continue
            for flag in _flags(option):
                said = f"-l {flag[2:]} -d '{_single(first_sentence(option.text))}'"
                offered = f" -r -F -a '{' '.join(_values_of(option))}'" if _values_of(option) else " -r -F"
                lines.append(f"{when} {said}" + ("" if option.kind is bool else offered))
    return "\n".join(lines)
