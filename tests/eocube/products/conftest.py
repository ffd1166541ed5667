"""The two foreign kinds of product, installed as another package's are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from eocube.products import registry
from tests.eocube.products.toys import ENTRY_POINTS


def install(folder: Path) -> Path:
    """A folder that makes the kinds known where it is on the path, as an installed distribution's is."""
    info = folder / "toys-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("toys") / "site")


@pytest.fixture(scope="module")
def foreign(installed: Path) -> Iterator[Path]:
    """The kinds are known in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(installed))
        registry._found.cache_clear()
        yield installed
    registry._found.cache_clear()
