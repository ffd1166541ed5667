"""Makes the tables of speed (page and README) and the rates of `eocube plan` from the JSON beside this file.

python benchmarks/readme_table.py --check    says whether all are up to date (exit 1 when not)
python benchmarks/readme_table.py --write    brings them up to date
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmarks: made by benchmarks/readme_table.py -->", "<!-- /benchmarks -->"
HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
PAGE = Path("docs", "figures", "speed.md")
"""Where, from the README, the whole tables go."""
RECORDED = Path("eocube", "plan", "recorded")
"""Where, from the README, the results of whole jobs go that ship with the package."""
ORDER = ("encoder", "decoder", "pipeline", "store")
FORWARD = ("encoder", "decoder")
SPELLED = {"avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX", "avx512f": "AVX512", "avx2": "AVX2"}
"""Flags worth naming, the most telling first."""


QUIET = 1.0
"""Load of a machine, as a run began, up to which its figures are taken as undisturbed."""


class ResultError(ValueError):
    """A result or a README that the table cannot be made from; one line."""


def load(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder: the encoder's first, the published size before the others.

    ResultError where a file is no result, or a result lacks something.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ResultError(f"{path.name} is no JSON: {error}") from error
        if not isinstance(document, dict) or document.get("benchmark") not in ORDER:
            continue  # another measurement's, such as read_path's
        if document.get("settings", {}).get("stub"):
            continue  # of reading and writing alone, which NOTES.md tells of
        missing = {"machine", "model", "reference", "variants", "settings"} - document.keys()
        if missing:
            raise ResultError(f"{path.name} lacks {', '.join(sorted(missing))}: measure it again")
        found.append(document)
    return sorted(found, key=lambda d: (ORDER.index(d["benchmark"]), d["model"] != "published", d["model"]))


def machine(document: Mapping[str, Any]) -> str:
    """The machine in a few words: what computed, how many threads, which torch."""
    of = document["machine"]
    if of["gpu"]:
        return f"{of['gpu']}, torch {of['torch']}"
    flag = next((word for flag, word in SPELLED.items() if flag in of["flags"]), "")
    return f"{of['cpu']}{f' with {flag}' if flag else ''}, {of['threads']} threads, torch {of['torch']}"


def figure(value: float | None, form: str, unit: str = "") -> str:
    """A number as the table shows it; nothing for None."""
    return "" if value is None else f"{value:{form}}{unit}"


def number(value: float) -> str:
    """Three significant digits, never in powers of ten."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def share(variant: Mapping[str, Any], rates: Mapping[str, float]) -> str:
    """Counted operations a second, and what part of the matrix rate of that precision they are."""
    if variant["tflops"] is None:
        return ""
    rate = rates.get(variant["dtype"])
    return f"{variant['tflops']:.2g}" + (f" ({100 * variant['tflops'] / rate:.0f} %)" if rate else "")


def rows(document: Mapping[str, Any]) -> Iterable[tuple[str, ...]]:
    """The rows of one result."""
    rates = document["machine"].get("matrix_tflops") or {}
    for variant in document["variants"]:
        what = variant["name"]
        cells = (what, variant["dtype"], number(variant["windows_per_s"]), figure(variant["ratio"], ".2f", "x"))
        if document["benchmark"] in FORWARD:
            yield (
                f"{document['benchmark']}, {document['model']}", *cells, share(variant, rates),
                figure(variant["peak_memory_gb"], ".2f"), figure(variant["relative_error"], ".0e"),
            )  # fmt: skip
        else:
            more = figure(variant.get("megabytes_per_s"), ".0f", " MB/s")
            asked = variant.get("requests_per_unit")
            more += "" if asked is None else f", {asked:g} request{'s' if asked != 1 else ''} a shard"
            yield (f"{document['benchmark']}, {document['model']}", *cells, more.removeprefix(", "))


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right; a first cell that repeats the one above is left empty."""
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|" + "---:|" * (len(head) - 3)]
    above = ""
    for cells in body:
        first, above = ("" if cells[0] == above else cells[0]), cells[0]
        lines.append("| " + " | ".join((first, *cells[1:])) + " |")
    return lines


def section(documents: Sequence[Mapping[str, Any]]) -> str:
    """The section between the markers, without them. Empty when nothing was measured."""
    lines: list[str] = []
    for kinds, head in (
        (FORWARD, ("", "variant", "dtype", "windows/s", "ratio", "TFLOP/s (of a matrix product's)", "memory, GB",
                   "rel. error")),
        (ORDER[2:], ("", "variant", "dtype", "windows/s", "ratio", "")),
    ):  # fmt: skip
        chosen = [document for document in documents if document["benchmark"] in kinds]
        for where in dict.fromkeys(map(machine, chosen)):
            here = [document for document in chosen if machine(document) == where]
            lines += [f"{where}; ratios within one run, the first of each kind is 1x:", ""]
            lines += [*table(head, (row for document in here for row in rows(document))), ""]
            load = max(document["machine"]["load_before"] for document in here)
            if load > QUIET:
                said = "what was measured before them included: rates are rough."
                lines += [f"The load as runs began was up to {load:.1f}, {said}", ""]
        for document in chosen:
            if "share_of_encoder" in document:
                lines += [
                    f"The whole job reaches {100 * document['share_of_encoder']:.0f} % of what the encoder alone does "
                    f"on the same windows ({document['model']}); nothing is encoded on "
                    f"{100 * document['device_idle_share']:.0f} % of the device's time.",
                    "",
                ]
    return "\n".join(lines).strip()


def short(documents: Sequence[Mapping[str, Any]]) -> str:
    """The README's table: each network of the first machine, the reference as it is and at its best, and eocube."""
    chosen = [d for d in documents if d["benchmark"] in FORWARD]
    if not chosen:
        return ""
    where = machine(chosen[0])
    head = ("windows/s", "reference, fp32", "its best", "eocube, bf16", "to fp32", "to its best")
    lines = [f"{where}:", "", "| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for document in (d for d in chosen if machine(d) == where):
        rates = {
            kind: [v for v in document["variants"] if v["name"].startswith(kind)] for kind in ("reference", "eocube")
        }
        best = max(rates["reference"], key=lambda v: float(v["windows_per_s"]))
        ours = [v for v in rates["eocube"] if v["dtype"] == "bf16"] or rates["eocube"]
        if not ours:
            continue
        plain, top, mine = (float(v["windows_per_s"]) for v in (rates["reference"][0], best, max(
            ours, key=lambda v: float(v["windows_per_s"])
        )))  # fmt: skip
        lines.append(
            f"| {document['benchmark']}, {document['model']} | {number(plain)} | {number(top)} ({best['dtype']}) | "
            f"{number(mine)} | {mine / plain:.1f}x | {mine / top:.1f}x |"
        )
    return "\n".join(lines)


def renewed(document: str, text: str, name: str) -> str:
    """A document with the section replaced. ResultError where it has no pair of markers."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ResultError(f"{name} has no lines {BEGIN} and {END} around the section: add them")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def whole_jobs(folder: Path) -> dict[str, str]:
    """The results of the pipeline in a folder, by the files' names."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))}
    documents = {name: json.loads(text) for name, text in texts.items()}
    return {
        name: texts[name] for name, of in documents.items()
        if of.get("benchmark") == "pipeline" and not of.get("settings", {}).get("stub")
    }  # fmt: skip


def main(argv: Sequence[str], folder: Path = HERE, readme: Path = README) -> int:
    """Exit status 0: up to date or written; 1: out of date; 2: cannot be made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit 1 when a table is out of date")
    action.add_argument("--write", action="store_true", help="bring the tables up to date")
    asked = parser.parse_args(argv)
    page = readme.parent / PAGE
    try:
        old = {path: path.read_text(encoding="utf-8") for path in (readme, page)}
        found = load(folder)
        made = {readme: short(found), page: section(found)}
        new = {path: renewed(text, made[path], path.name) for path, text in old.items()}
        measured, recorded = whole_jobs(folder), readme.parent / RECORDED
        known = whole_jobs(recorded)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.write:
        for path, text in new.items():
            path.write_text(text, encoding="utf-8")
        recorded.mkdir(parents=True, exist_ok=True)
        for name in known.keys() - measured.keys():
            (recorded / name).unlink()
        for name, text in measured.items():
            (recorded / name).write_text(text, encoding="utf-8")
        return 0
    current = old == new and measured == known
    if not current:
        print("error: the tables of speed are out of date: python benchmarks/readme_table.py --write", file=sys.stderr)
    return int(not current)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
