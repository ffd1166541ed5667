"""Describes how a cube was made from another at a coarser resolution: what its plan records beside its product.

Such a cube holds its parent's product. Its values mean what the parent's do, since the parent's decoder decodes them:
`meaning` and with it the space id are the parent's to the letter, the resolution at which its encoder saw the ground
included. What the cube's own pixels measure stands in its grid. Everything that decided its values besides is here, and
in the plan's hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MEAN = "mean"
"""The method that samples nothing: the regression's conditional mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """How a super-resolved cube follows from its parent."""

    parent: str
    """URL of the parent, of one zone, without secrets. Where it lies decides nothing."""
    parent_plan: str
    """Its plan's hash when this cube was planned; it may grow elsewhere."""
    parent_log: str
    """Digest of what the parent's log said of all that is read of it: states, and hashes of shards."""
    resolution: float
    """Metres a pixel of the parent; also what the meaning says."""
    scale: int
    """How many times finer this cube is."""
    weights: str
    """Of the super-resolver, as the user named them. Where they lie decides nothing."""
    weights_name: str
    weights_sha256: str
    method: str
    """One of `model.diffusion.METHODS`, or `MEAN`."""
    steps: int
    seed: int
    sample: int
    """Which draw of noise it is, from 0 on: cubes that differ in this alone are samples of the same."""
    tile: tuple[int, int, int]
    """Core, halo and ring of the tiles, in the parent's cells."""
    consistent: bool = False
    """Whether every step is pulled towards what averages back to the parent's pixels."""

    def identity(self) -> dict[str, Any]:
        """What of it decides values: all but where things lie, and how far the parent has grown elsewhere."""
        left_out = ("parent", "parent_plan", "weights")
        return {key: value for key, value in self.to_dict().items() if key not in left_out}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form. What is not consistent does not say so: neither did version 0.1, whose plans' hashes hold."""
        data = {**asdict(self), "tile": list(self.tile)}
        if not self.consistent:
            del data["consistent"]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Derivation:
        """Inverse of `to_dict`. KeyError, TypeError or ValueError where it is none."""
        core, halo, ring = map(int, data["tile"])
        return cls(**{**data, "tile": (core, halo, ring)})
