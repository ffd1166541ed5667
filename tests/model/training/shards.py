"""Small shards in TerraMesh's published layout: tars of zipped Zarr groups of format 2, one folder a modality."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import xarray as xr

BANDS = {
    "S2L2A": ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"),
    "S1RTC": ("vv", "vh"),
    "S2RGB": ("r", "g", "b"),
    "LULC": ("lulc",),
}
DTYPES = {"S2L2A": np.int16, "S1RTC": np.float16, "S2RGB": np.uint8, "LULC": np.uint8}


def pixels(modality: str, number: int, side: int = 40) -> np.ndarray:
    """(C, side, side): each band's level tells sample and band apart; of LULC a class each quarter, by the sample."""
    if modality == "LULC":
        quarters = np.array([[1, 2], [4 + number % 2, 9]], np.uint8)
        return np.kron(quarters, np.ones((side // 2, side // 2), np.uint8))[None]
    rng = np.random.default_rng([number, len(modality)])
    count = len(BANDS[modality])
    noise = rng.integers(0, 40, (count, side, side))
    if modality == "S1RTC":
        return (-12 - 0.5 * np.arange(count)[:, None, None] - noise / 64).astype(np.float16)
    base = 30 if modality == "S2RGB" else 500
    return (base + number + 10 * np.arange(count)[:, None, None] + noise).astype(DTYPES[modality])


def zarr_zip(
    data: np.ndarray, bands: Sequence[str], folder: Path, *, lon: float = 11.0, lat: float = 48.0,
    time: str = "2021-07-23T13:22:41", place: bool = True,
) -> bytes:  # fmt: skip
    """One member: `bands` (1, C, y, x) in one Blosc chunk, `cloud_mask`, `time`, centre and CRS, consolidated."""
    coords: dict[str, Any] = {"band": list(bands), "time": np.array([time], "datetime64[ns]")}
    variables: dict[str, Any] = {
        "bands": (("time", "band", "y", "x"), data[None]),
        "cloud_mask": (("time", "y", "x"), np.zeros((1, *data.shape[1:]), np.uint8)),
        "crs": ((), 32632),
        "file_id": ((), "0001"),
    }
    if place:
        variables |= {"center_lon": ((), lon), "center_lat": ((), lat)}
    encoding = {
        "bands": {"compressors": [numcodecs.Blosc()], "chunks": (1, *data.shape)},
        "time": {"units": "nanoseconds since 1970-01-01", "dtype": "int64"},
    }
    target = folder / "sample.zarr"
    xr.Dataset(variables, coords).to_zarr(target, mode="w", zarr_format=2, consolidated=True, encoding=encoding)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(target.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(target).as_posix())
    return packed.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """A shard of (key, payload) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, payload in members:
            info = tarfile.TarInfo(f"{key}.zarr.zip")
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))


def make_shards(
    root: Path, modalities: Sequence[str], sizes: Sequence[int], scratch: Path, *, spread: float = 0.0
) -> str:
    """Shards of the given numbers of samples, `spread` degrees between neighbours; the URL pattern of all of them."""
    number = 0
    for shard, size in enumerate(sizes, start=1):
        keys = [f"majortom_train_{number + i:07d}" for i in range(size)]
        for modality in modalities:
            members = [
                (
                    key,
                    zarr_zip(pixels(modality, number + i), BANDS[modality], scratch, lon=11.0 + spread * (number + i)),
                )
                for i, key in enumerate(keys)
            ]
            write_tar(root / "train" / modality / f"majortom_shard_{shard:06d}.tar", members)
        number += size
    return f"{root}/train/[{','.join(modalities)}]/majortom_shard_{{000001..{len(sizes):06d}}}.tar"
