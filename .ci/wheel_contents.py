"""Checks what a wheel of eocube holds: every file of the packages and nothing else, whole weights, metadata; its size.

Usage: .ci/wheel_contents.py WHEEL SDIST     from the checkout's root
"""

from __future__ import annotations

import hashlib
import sys
import tarfile
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

PACKAGES = ("eocube", "model")
WEIGHTS = [f"model/weights_data/{name}.safetensors" for name in ("nano", "nano2", "sr-nano")]
MOST = 40 * 2**20
"""Bytes: more than this is a file too many. The weights are 27 MB of it."""


def in_checkout() -> set[str]:
    """The packages' files here."""
    here = (path for package in PACKAGES for path in Path(package).rglob("*") if path.is_file())
    return {path.as_posix() for path in here if path.suffix not in (".pyc", ".pyo")}


def problems(wheel: Path, sdist: Path) -> list[str]:
    """What is wrong, in words."""
    found = []
    with ZipFile(wheel) as archive:
        inside = {info.filename: info for info in archive.infolist() if not info.is_dir()}
        files = {name for name in inside if ".dist-info/" not in name}
        found += [f"missing in the wheel: {name}" for name in sorted(in_checkout() - files)]
        found += [f"only in the wheel: {name}" for name in sorted(files - in_checkout())]
        for name in WEIGHTS:
            digest = hashlib.sha256(Path(name).read_bytes()).hexdigest()
            if name not in inside or hashlib.sha256(archive.read(name)).hexdigest() != digest:
                found.append(f"not as in the checkout: {name}")
        names = {name.split("/", 1)[1]: name for name in inside if ".dist-info/" in name}
        metadata = message_from_bytes(archive.read(names["METADATA"]))
        if metadata["License-Expression"] != "Apache-2.0" or "licenses/LICENSE" not in names:
            found.append("the wheel's metadata have no licence")
        if b"eocube = eocube.cli:main" not in archive.read(names["entry_points.txt"]):
            found.append("the wheel installs no command eocube")
        largest = sorted(inside.values(), key=lambda info: -info.compress_size)[:4]
    if wheel.stat().st_size > MOST:
        found.append(f"the wheel has {wheel.stat().st_size / 1e6:.1f} MB, over {MOST / 1e6:.0f}")
    with tarfile.open(sdist) as archive:
        packed = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    found += [f"missing in the sdist: {name}" for name in sorted(in_checkout() - packed)]
    found += [
        f"missing in the sdist: {name}" for name in ("LICENSE", "README.md", "THIRD_PARTY.md") if name not in packed
    ]
    sizes = ", ".join(f"{info.filename} {info.compress_size / 1e6:.1f}" for info in largest)
    print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(files)} files ({sizes})")
    print(f"{sdist.name}: {sdist.stat().st_size / 1e6:.1f} MB, {len(packed)} entries")
    return found


if __name__ == "__main__":
    said = problems(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(said) or "contents as they should be")
    sys.exit(1 if said else 0)
