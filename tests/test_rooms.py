"""What the house promises of its imports beyond the contracts that `lint-imports` holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "ray", "rasterio", "aiohttp", "boto3", "matplotlib", "odc")


@pytest.mark.parametrize("module", ["eocube", "eocube.cli", "eocube.run.request"])
def test_starting_up_imports_nothing_heavy(module: str) -> None:
    """Torch and Ray take seconds, GDAL and HTTP clients tenths: who needs them imports them."""
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


def test_every_room_says_what_it_is_for() -> None:
    rooms = [path for path in (ROOT / "eocube").iterdir() if (path / "__init__.py").is_file()]
    assert len(rooms) == 13
    for room in rooms:
        first = (room / "__init__.py").read_text().splitlines()[0]
        assert first.startswith('"""') and first.endswith('."""'), room.name
