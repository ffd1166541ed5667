"""Gathers the pages of the documentation: those in docs/, the command line's own help, and notebooks with outputs.

python .ci/site/stage.py TARGET     the folder is made anew
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import runpy
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
JOBS = {
    "encode_region.py": "The same as `eocube encode`, for a checkout or a cluster's job.",
    "super_resolve.py": "Latents or pixels four times finer.",
    "finetune.py": "Train weights: to a sensor of your own, or by a recipe.",
    "evaluate.py": "Figures of weights, beside baselines.",
    "distill.py": "Stage 1: from a FLUX.2 autoencoder.",
    "reproduce.py": "Stage 1, stage 2 and the evaluation under one name.",
    "encode_pairs.py": "Pairs of one ground at two resolutions.",
    "train_sr.py": "Train super-resolution on pairs.",
    "train_probe.py": "Train a linear head on a cube's values.",
    "benchmark.py": "Rates on this machine.",
}
"""Scripts that have help, and what each is for."""


def help_of(call: Callable[[], object]) -> str:
    """What a command prints as its help, without colours and the frame around it."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        call()
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
    lines = [re.sub(r"^[│ ] ?(.*?)\s*│?$", r"\1", line).rstrip() for line in text.splitlines()]
    kept = [re.sub(r"^╭─+ (.*?) ─*╮$", r"\1:", line) for line in lines if not line.startswith("╰")]
    return "\n".join(kept).strip()


def job_help(name: str) -> str:
    """The help of a script in jobs/."""

    def call() -> None:
        sys.argv = [name, "--help"]
        runpy.run_path(str(ROOT / "jobs" / name), run_name="__main__")

    return help_of(call)


def command_line() -> Iterator[str]:
    """The page on the command line, from the help that the commands themselves print."""
    from eocube import cli

    yield "# Command line\n"
    yield "This page is what each command prints with `--help-all`; it is made when the site is built.\n"
    yield f"## eocube\n\n```text\n{help_of(lambda: cli.main(['--help']))}\n```\n"
    for name, command in cli.COMMANDS.items():

        def call(name: str = name) -> int:
            return cli.main([name, "--help-all"])

        about = command.about
        yield f"## eocube {name}\n\n{about[0].upper()}{about[1:]}.\n\n```text\n{help_of(call)}\n```\n"
    yield "## Scripts\n\nThey are in `jobs/` of a checkout and run as `python jobs/NAME`.\n"
    for name, what in JOBS.items():
        yield f"### {name}\n\n{what}\n\n```text\n{job_help(name)}\n```\n"


def shown(output: dict[str, Any], save: Callable[[bytes], str]) -> str:
    """One output of a notebook's cell as Markdown: a picture, a small table, or text."""
    data = output.get("data", {})
    text = "".join(output.get("text") or data.get("text/plain") or "")
    html = "".join(data.get("text/html", ""))
    if "image/png" in data:
        return f"![]({save(base64.b64decode(data['image/png']))})"
    if "<table" in html and "<svg" not in html and "<style>" not in html.replace("<style scoped>", "", 1):
        return re.sub(r"\n\s*\n", "\n", html)
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def paged(text: str) -> str:
    """Links to notebooks as links to the pages that are made of them."""
    return re.sub(r"\]\(([\w./-]+)\.ipynb\)", r"](\1.md)", text)


def notebook(path: Path, target: Path) -> str:
    """Write a notebook as a page, its pictures beside it; returns its title and first paragraph, as a list's entry."""
    pages: list[str] = []
    pictures = 0

    def save(data: bytes) -> str:
        nonlocal pictures
        pictures += 1
        name = f"{path.stem}-{pictures}.png"
        (target / name).write_bytes(data)
        return name

    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            pages.append(paged(source))
        elif cell["cell_type"] == "code" and source:
            pages.append(f"```python\n{source}\n```")
            pages += filter(None, (shown(output, save) for output in cell.get("outputs", ())))
    (target / f"{path.stem}.md").write_text("\n\n".join(pages) + "\n", encoding="utf-8")
    title, _, rest = pages[0].removeprefix("# ").partition("\n")
    about = rest.strip().split("\n\n")[0].replace("\n", " ")
    return f"- [{title}]({path.stem}.md){': ' + about if about else ''}"


def stage(target: Path) -> None:
    """Fill the folder with every page of the site."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(DOCS, target, ignore=shutil.ignore_patterns("*.ipynb", "*.py", "__pycache__"))
    (target / "reference" / "cli.md").write_text("\n".join(command_line()), encoding="utf-8")
    books = target / "notebooks"
    books.mkdir(exist_ok=True)
    entries = [notebook(path, books) for path in sorted((DOCS / "notebooks").glob("*.ipynb"))]
    if (books / "README.md").is_file():
        (books / "index.md").write_text(paged((books / "README.md").read_text(encoding="utf-8")), encoding="utf-8")
        (books / "README.md").unlink()
    else:
        listed = "\n".join(entries) or "There are none in this version."
        text = f"# Notebooks\n\nThey lie in `docs/notebooks` and run on a laptop. Outputs are kept.\n\n{listed}\n"
        (books / "index.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ.update(COLUMNS="100", NO_COLOR="1", TERM="dumb")
    sys.path.insert(0, str(ROOT))
    stage(Path(sys.argv[1]))
