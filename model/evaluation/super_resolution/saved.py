"""Saves results, inputs and truths as GeoTIFFs, for whoever wants to compute the figures again."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from rasterio.errors import NotGeoreferencedWarning

from model.evaluation.super_resolution.pairs import Case
from model.sensors import Floats

TRUTH, INPUT = "truth", "input"


def file_name(pair_id: str) -> str:
    """A pair's name as a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", pair_id).strip("_") + ".tif"


def save_result(folder: Path, case: Case, image: Floats) -> Path:
    """(C, H, W) reflectance on the truth's grid as `folder`/ID.tif; the path."""
    return _write(folder / file_name(case.pair.id), case, image, 1)


def save_truth(folder: Path, case: Case) -> None:
    """`folder`/truth/ID.tif and `folder`/input/ID.tif, as they are: NaN where there is nothing."""
    _write(folder / TRUTH / file_name(case.pair.id), case, case.hr, 1)
    _write(folder / INPUT / file_name(case.pair.id), case, np.asarray(case.pair.lr, np.float32), case.factor)


def _write(path: Path, case: Case, image: Floats, coarser: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff", "count": len(image), "height": image.shape[1], "width": image.shape[2], "dtype": "float32",
        "nodata": float("nan"), "compress": "deflate", "predictor": 3,
    }  # fmt: skip
    if case.pair.crs is not None and known(case.pair.transform):
        profile |= {
            "crs": f"EPSG:{case.pair.crs}",
            "transform": Affine(*case.pair.transform[:6]) @ Affine.scale(coarser),  # type: ignore[index]
        }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(image.astype(np.float32))
            dataset.descriptions = tuple(case.pair.bands)
    return path


def known(transform: Sequence[float] | None) -> bool:
    """Whether it says where a pair lies."""
    return transform is not None and all(math.isfinite(value) for value in transform[:6])
