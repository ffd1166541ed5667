"""Lists the licences of what eocube installs, by the packages' own metadata, and refuses those it cannot go with.

    python .ci/third_party.py --write     THIRD_PARTY.md anew, from the packages of this environment
    python .ci/third_party.py             exit 1 where a licence is unknown or unfit, or the list is old

Followed are the requirements of eocube and of its extras that the images have; what this environment lacks (extras that
are not installed) stays as listed. Weak copyleft (MPL, LGPL) is allowed: those packages are used as they are.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LISTED = ROOT / "THIRD_PARTY.md"
EXTRAS = ("train", "tables", "pc", "hf", "s3")
FROM_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0", "BSD License": "BSD", "MIT License": "MIT", "MIT": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0", "ISC License (ISCL)": "ISC",
    "Python Software Foundation License": "PSF-2.0", "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib", "Historical Permission Notice and Disclaimer (HPND)": "HPND",
}  # fmt: skip
FROM_TEXT = (
    (r"Apache(?: Software)?(?: License)?,?\s*(?:Version )?2(?:\.0)?", "Apache-2.0"), (r"^Apache", "Apache-2.0"),
    (r"3-Clause BSD|BSD[- ]3", "BSD-3-Clause"), (r"BSD", "BSD"), (r"\bMIT\b", "MIT"), (r"MPL[- ]2", "MPL-2.0"),
    (r"Python Software Foundation|PSF", "PSF-2.0"), (r"matplotlib", "PSF-2.0"),
)  # fmt: skip
STATED = {
    # Their metadata say nothing that a program can read; their licence files do.
    "matplotlib": "PSF-2.0", "scipy": "BSD-3-Clause", "pandas": "BSD-3-Clause", "cycler": "BSD-3-Clause",
}  # fmt: skip
KNOWN = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    "CC0-1.0", "HPND", "ISC", "LGPL-2.1-or-later", "LGPL-3.0-or-later", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0",
    "NCSA", "PSF-2.0", "Python-2.0", "Unicode-3.0", "Unlicense", "Zlib", "ZPL-2.1",
}  # fmt: skip
HEAD = """# Licences of others

eocube itself is under Apache-2.0 (`LICENSE`). It installs the packages below, unchanged, from a registry; none of them
is part of its wheel. Part of the wheel is what the page of `eocube serve` loads: MapLibre GL JS (BSD-3-Clause) and the
typeface Inter (OFL-1.1), with their licences beside them. Made by `python .ci/third_party.py --write`, from
the packages' own metadata.

Some hold compiled libraries of others in their wheels, under their terms: GEOS (LGPL-2.1) in shapely, rasterio and
pyogrio, the runtime of GCC's Fortran (GPL-3.0 with the runtime exception) in numpy and scipy.

In the repository, of others: schemas of Kubernetes resources in `tests/data/kuberay` (Apache-2.0; see its README) and
of a Zarr convention in `tests/data/conventions` (Apache-2.0), kept for tests and not part of the wheel.

The CUDA image holds NVIDIA's libraries and Triton as PyTorch requires them, under NVIDIA's own terms and MIT: who
passes such an image on must heed those terms.

| package | licence |
|---|---|
"""


def licence(dist: Distribution) -> str:
    """The licence of a package in SPDX's words, as its metadata say it; empty where they do not."""
    metadata = dist.metadata
    name = canonicalize_name(metadata["Name"])
    if name in STATED:
        return STATED[name]
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classified = [c.rsplit(" :: ", 1)[1] for c in metadata.get_all("Classifier", []) if c.startswith("License :: OSI")]
    named = [FROM_CLASSIFIERS[c] for c in classified if c in FROM_CLASSIFIERS]
    if classified and len(named) == len(classified):
        return " OR ".join(sorted(set(named)))
    text = metadata.get("License") or ""
    head = text.strip().splitlines()[0] if text.strip() else ""
    if head and compatible(head):
        return head
    return next((spdx for pattern, spdx in FROM_TEXT if re.search(pattern, head, re.I)), "")


def compatible(expression: str) -> bool:
    """Whether every part of a conjunction is known, and one of each choice."""
    parts = re.split(r"\s+AND\s+", expression.replace("(", " ").replace(")", " ").strip())
    return all(any(choice.strip() in KNOWN for choice in re.split(r"\s+OR\s+", part)) for part in parts)


def followed() -> tuple[dict[str, str], set[str]]:
    """Licences by package, of all that is required and installed here; and what is required and not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for extra in EXTRAS for text in extras.get(extra, ()))]
    todo: list[tuple[Requirement, frozenset[str]]] = [(Requirement(text), frozenset()) for text in texts]
    found: dict[str, str] = {}
    absent: set[str] = set()
    done: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement, asked = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": e}) for e in asked | {""}):
            continue
        if name == "eocube" or (name, frozenset(requirement.extras)) in done:
            continue
        done.add((name, frozenset(requirement.extras)))
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            absent.add(name)
            continue
        found[name] = licence(dist)
        todo += [(Requirement(text), frozenset(requirement.extras)) for text in dist.requires or ()]
    return found, absent


def listed() -> dict[str, str]:
    """Licences by package, as the file has them."""
    rows = re.findall(r"^\| ([a-z0-9-]+) \| (.+) \|$", LISTED.read_text(), re.M) if LISTED.is_file() else []
    return {name: text for name, text in rows if name != "package"}


def main(arguments: list[str]) -> int:
    """Write or check; the exit code."""
    found, absent = followed()
    before = listed()
    wrong = [f"{n}: {text or 'no licence in its metadata'}" for n, text in found.items() if not compatible(text)]
    if "--write" in arguments:
        kept = {name: text for name, text in before.items() if absent and name not in found}
        rows = sorted({**kept, **found}.items())
        LISTED.write_text(HEAD + "".join(f"| {name} | {text or 'not stated'} |\n" for name, text in rows))
        print(f"{LISTED.name}: {len(rows)} packages; not installed here: {', '.join(sorted(absent)) or 'none'}")
    else:
        for name, text in sorted(found.items()):
            if before.get(name) != text:
                wrong.append(f"THIRD_PARTY.md has {name} as {before.get(name, 'nothing')}, its metadata say {text}")
    print("\n".join(wrong) or f"the licences of {len(found)} packages go with Apache-2.0")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
