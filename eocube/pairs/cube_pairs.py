"""Makes pairs of two cubes of the same ground at two resolutions: of what they store, with no pixel read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from eocube.cube.window_index import EVERY
from eocube.cube.windows import CubeWindows
from eocube.errors import InputError
from eocube.pairs.encoding import BOTH, Form, Made, Which
from eocube.pairs.pixel_pairs import PairNote
from eocube.products.documents import from_attribute
from eocube.products.lone_windows import STORED
from eocube.store.store import CubeStore


class CubePairs:
    """The pairs of a coarse cube and a fine one, source and maker in one: values as they are stored.

    Pairs are squares of whole cells of the coarse cube that tile its shards (`CubeWindows`), at the times that both
    have; those on a window that is not ok, or that lack a pixel, end as nodata.

    Args:
        low, high: URLs of single cubes, or of roots over several zones in the same order.
        side: pixels a side of the high resolution.
        storage_options: fsspec options.

    Raises:
        InputError: cubes of other weights, bands or ground, or resolutions or sides that do not go together.
        StoreError: a cube that cannot be opened.
    """

    def __init__(self, low: str, high: str, side: int, storage_options: Mapping[str, Any] | None = None) -> None:
        products = [from_attribute(CubeStore.open(u, storage_options=storage_options).document) for u in (low, high)]
        one, other = products
        metres = [int(p.meaning["resolution"]) for p in products]
        if metres[0] <= metres[1] or metres[0] % metres[1]:
            raise InputError(
                f"{low} is at {metres[0]} m, {high} at {metres[1]} m: give the coarser first, a multiple of the finer"
            )
        if (one.weights_sha256, one.sensor.band_names) != (other.weights_sha256, other.sensor.band_names):
            raise InputError(
                f"{low} has {_said(one)}, {high} {_said(other)}: pairs need the same weights and bands on both sides"
            )
        self.scale, self._products = metres[0] // metres[1], dict(zip(BOTH, products, strict=True))
        step = self.scale * one.cell_px
        if side % step or side < step:
            raise InputError(f"--side {side}: pairs of {low} and {high} need a multiple of {step} px")
        self._windows = CubeWindows(low, side=side // step, pair=high, storage_options=storage_options)
        self._low, self._resolution = low, metres[1]
        self.skipped: Counter[str] = Counter()
        self.notes = [self._note(k, side) for k in range(len(self._windows))]

    @property
    def document(self) -> dict[str, Any]:
        """The weights of both, and that the pairs are of cubes."""
        product = self._products["lr"]
        return {
            "encoder": {
                "weights": product.weights, "name": product.network, "sha256": product.weights_sha256,
                "bands": list(product.sensor.band_names), "sensor": product.sensor.name,
                "precision": product.precision,
            },
            "source": {"kind": "cubes"}, "scale": self.scale, "upsampled": False, "sharpened": False,
        }  # fmt: skip

    @property
    def numerics(self) -> dict[str, Any]:
        """Nothing is computed."""
        return {}

    def forms(self, side: int, images: bool) -> dict[str, Form]:
        """Values as a cube of reals stores them."""
        if images:
            raise InputError("--pixels: cubes store no pixels; leave it out, or make the pairs of images")
        found = {}
        for which, product in self._products.items():
            cells = side // (self.scale if which == "lr" else 1) // product.cell_px
            found[str(which)] = Form((product.channels, cells, cells), STORED.dtype, STORED.fill)
        return found

    def images(self) -> dict[str, dict[str, Any]]:
        """None."""
        return {}

    def spaces(self, note: PairNote) -> dict[Which, tuple[str, Mapping[str, Any]]]:
        """The cubes' own."""
        return {which: (product.space_id, product.meaning) for which, product in self._products.items()}

    def make(self, source: int, note: PairNote, images: bool) -> Made | None:
        """One pair of values; None where one is missing."""
        if note.flip:
            raise InputError("--flips: stored values do not turn with the ground; leave it out")
        patch = self._windows.read(source)
        if patch is None or patch.pair is None:
            return None
        whole = all((p.valid == 100).all() and np.isfinite(p.values).all() for p in (patch, patch.pair))
        return Made(patch.values, patch.pair.values) if whole else None

    def _note(self, k: int, side: int) -> PairNote:
        index = self._windows.index
        unit = index.units[int(index.unit_of(np.array([k]))[0])]
        cube, row, col = index.cubes[unit.cube], int(index.rows[k]), int(index.cols[k])
        assert unit.turn == EVERY
        left, top = float(cube.left + col * cube.cell), float(cube.top - row * cube.cell)
        metres = float(self._resolution)
        return PairNote(
            f"{cube.epsg}/{cube.times[unit.time]}/{row:05d}_{col:05d}", f"{cube.epsg}/{unit.row:05d}_{unit.col:05d}",
            self._products["lr"].sensor.name, metres, side, None, cube.epsg, (metres, 0.0, left, 0.0, -metres, top),
        )  # fmt: skip


def _said(product: Any) -> str:
    return f"{product.network} {product.weights_sha256[:8]} of {', '.join(product.sensor.band_names)}"
