"""A tiny world to train on: two synthetic places of twelve bands, one held out, and a radar image, with its listing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml

from model.sensors import S2L1C, S2L2A


def landscape(seed: int, bands: int, size: int = 112) -> np.ndarray:
    """Smooth spectra times shared relief: (bands, size, size) around 2000."""
    rng = np.random.default_rng(seed)
    relief = np.kron(rng.random((size // 8, size // 8)), np.ones((8, 8))) + 0.2 * rng.random((size, size))
    tint = np.kron(rng.random((size // 16, size // 16)), np.ones((16, 16)))
    level = np.linspace(600, 3000, bands)[:, None, None]
    return (level * (0.5 + relief) + 500 * np.sin(np.arange(bands))[:, None, None] * tint).astype(np.float32)


def _write(path: Path, data: np.ndarray) -> None:
    profile = dict(driver="GTiff", count=len(data), height=data.shape[1], width=data.shape[2], dtype=data.dtype)
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(data)


def make_world(root: Path) -> tuple[Path, Path]:
    """Write it into a new folder: (listing, data folder)."""
    root.mkdir(parents=True)
    sources = []
    for number, held_out in ((1, False), (2, True)):
        _write(root / f"s2_{number}.tif", (landscape(number, 12) + 1000).astype(np.int16))
        sources.append(
            dict(name=f"s2_{number}", place=f"p{number}", sensor="S2L2A", kind="rasters", path=".", gsd=10,
                 offset=-1000, held_out=held_out, parts={f"s2_{number}.tif": list(S2L2A.bands)})
        )  # fmt: skip
    _write(root / "l1c.tif", landscape(3, 13).astype(np.int16))
    sources.append(
        dict(
            name="l1c",
            place="p3",
            sensor="S2L1C",
            kind="rasters",
            path=".",
            gsd=10,
            parts={"l1c.tif": list(S2L1C.bands)},
        )
    )
    power = np.exp(np.random.default_rng(5).normal(-2.5, 0.8, (2, 112, 112))).astype(np.float32)
    _write(root / "s1.tif", power)
    sources.append(
        dict(
            name="s1",
            place="p1",
            sensor="S1RTC",
            kind="rasters",
            path=".",
            gsd=10,
            decibel=10,
            parts={"s1.tif": ["VV", "VH"]},
        )
    )
    listing = root / "listing.yaml"
    listing.write_text(yaml.safe_dump({"sources": sources}))
    return listing, root


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(listing, data folder)."""
    return make_world(tmp_path_factory.mktemp("made") / "world")
