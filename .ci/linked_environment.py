"""Makes a virtual environment of what a wheel requires and nothing else, out of links to what is installed here.

Usage: INTERPRETER .ci/linked_environment.py WHEEL DIRECTORY

INTERPRETER is one whose environment has the requirements. Only what the wheel asks for without extras, and what that
asks for in turn, is linked: whatever is imported beyond it fails as on a user's machine. Nothing is fetched, and it
takes a second where an installation takes minutes. Versions are those of INTERPRETER's environment.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def required(wheel: Path) -> list[Requirement]:
    """What the wheel's metadata asks for."""
    with ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return [Requirement(text) for text in message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])]


def closure(wanted: list[Requirement]) -> dict[str, Distribution]:
    """Distributions by name: those wanted, with the extras that are asked for, and all that they want themselves."""
    found: dict[str, Distribution] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    todo = [(requirement, frozenset({""})) for requirement in wanted]
    while todo:
        requirement, extras = todo.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key in done:
            continue
        done.add(key)
        found[key[0]] = distribution(requirement.name)
        inner = frozenset({"", *requirement.extras})
        todo += [(Requirement(text), inner) for text in found[key[0]].requires or ()]
    return found


def link(distributions: dict[str, Distribution], purelib: Path) -> None:
    """Link each distribution's top-level files and folders; of folders that several share, each file."""
    owners: dict[str, set[str]] = {}
    for name, dist in distributions.items():
        for file in dist.files or ():
            if file.parts[0] not in ("..", "__pycache__"):
                owners.setdefault(file.parts[0], set()).add(name)
    for dist in distributions.values():
        for file in dist.files or ():
            top = file.parts[0]
            if top in ("..", "__pycache__"):
                continue
            whole = len(owners[top]) == 1
            target = purelib / (top if whole else file)
            if not target.is_symlink() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(Path(str(dist.locate_file(top if whole else file))))


def main(wheel: Path, folder: Path) -> None:
    venv.create(folder, with_pip=True)
    purelib = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    if any(purelib.glob("setuptools*")):  # Python 3.11 brings one that no requirement asked for
        subprocess.run([folder / "bin" / "python", "-m", "pip", "uninstall", "-q", "-y", "setuptools"], check=True)
    distributions = closure(required(wheel))
    link(distributions, purelib)
    print(f"{len(distributions)} packages linked: {' '.join(sorted(distributions))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
