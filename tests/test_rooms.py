"""What the house promises of its imports beyond the contracts that `lint-imports` holds."""

from __future__ import annotations

import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "ray", "rasterio", "aiohttp", "boto3", "matplotlib", "odc", "pydantic")


@pytest.mark.parametrize("module", ["eocube", "eocube.cli", "eocube.run.request"])
def test_starting_up_imports_nothing_heavy(module: str) -> None:
    """Torch and Ray take seconds, GDAL and HTTP clients tenths: who needs them imports them."""
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


def test_every_room_says_what_it_is_for() -> None:
    rooms = [path for path in (ROOT / "eocube").iterdir() if (path / "__init__.py").is_file()]
    assert len(rooms) == 16
    for room in rooms:
        first = (room / "__init__.py").read_text().splitlines()[0]
        assert first.startswith('"""') and first.removesuffix('"""').endswith("."), room.name


# What EO-VAE's latents are made of and look like: known to products/ alone.
OF_LATENTS = {
    "EOVAE", "EoVae", "INT8_NODATA", "NODATA_CODE", "int8", "float16", "latent", "eo-vae", "z00", "Half", "Affine8",
    "Affine16",
}  # fmt: skip
# Scores are half floats whatever is scored, and netCDF has none; completion offers the values of options; recorded
# rates name benchmarks' arithmetic and weights; a seam of what is stored has that name in every store.
ELSEWHERE = {
    ("store/layout.py", "float16"), ("plan/rates.py", "float16"), ("plan/rates.py", "eo-vae"),
    ("store/seams.py", "latent"), ("cube/netcdf.py", "float16"), ("commands/completion.py", "int8"),
}  # fmt: skip


def words_of(path: Path) -> set[str]:
    """Names and whole string constants in a file's code, without its comments and docstrings."""
    found: set[str] = set()
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME:
                found.add(token.string)
            elif token.type == tokenize.STRING and not token.string.startswith(("'''", '"""', 'r"""')):
                found.add(token.string.strip("frb").strip("\"'"))
    return found


def test_nobody_but_products_knows_what_a_latent_is() -> None:
    named = set()
    for path in (ROOT / "eocube").rglob("*.py"):
        place = path.relative_to(ROOT / "eocube").as_posix()
        if not place.startswith("products/"):
            named |= {(place, word) for word in words_of(path) & OF_LATENTS}
    assert named == ELSEWHERE
