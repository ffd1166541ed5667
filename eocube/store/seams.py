"""Measures how visible core borders are: ground that two windows share is encoded by both, and both are compared.

Neighbouring windows overlap by twice the halo, so the latents of that strip are there twice without further work. The
**seam ratio** of a border is the root mean square step between the two values either side of it, each from its own
window, over the root mean square step between neighbours inside the two cores along the same axis, where one window
made both. 1 means that the border cannot be told from the inside. It is stated three ways:

- `latent`: steps of the stored latents;
- `decoded`: steps of the error (decoded minus source), each window decoded from its own latents, nothing blended;
- `blended`: the same with both windows cross-faded over the strip, as a reader of the cube decodes them.

`latent_apart` and `decoded_apart` are root mean square differences of the two versions over the whole strip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
KINDS = ("latent", "decoded", "blended")


@dataclass(frozen=True, slots=True)
class Squares:
    """A sum of squares and how many there were: merges without the data."""

    total: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, values: Floats) -> Squares:
        """Of the finite ones among the values."""
        squares = np.square(values[np.isfinite(values)].astype(np.float64))
        return cls(float(squares.sum()), int(squares.size))

    def __add__(self, other: Squares) -> Squares:
        return Squares(self.total + other.total, self.count + other.count)

    @property
    def root_mean(self) -> float | None:
        """Root mean square; None of nothing."""
        return sqrt(self.total / self.count) if self.count else None


@dataclass(frozen=True, slots=True)
class Seams:
    """What the borders looked at came to; `parts` holds squares by name: "latent across", "latent inside", ..."""

    borders: int = 0
    parts: Mapping[str, Squares] | None = None

    def ratio(self, kind: str) -> float | None:
        """The seam ratio of a kind in `KINDS`; None where it was not measured."""
        parts = self.parts or {}
        across, inside = (parts.get(f"{kind} {where}", Squares()).root_mean for where in ("across", "inside"))
        return across / inside if across is not None and inside else None

    def apart(self, kind: str) -> float | None:
        """Root mean square difference of what two windows say of the same ground: "latent" or "decoded"."""
        return (self.parts or {}).get(f"{kind} apart", Squares()).root_mean

    def figures(self) -> dict[str, float | int | None]:
        """Ratios and differences by name, as users see them."""
        ratios = {f"{kind}_seam_ratio": self.ratio(kind) for kind in KINDS}
        return {"borders": self.borders, **ratios, **{f"{k}_apart": self.apart(k) for k in ("latent", "decoded")}}

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"borders": self.borders, **{name: [s.total, s.count] for name, s in (self.parts or {}).items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Seams:
        """Inverse of `to_dict`."""
        parts = {name: Squares(float(v[0]), int(v[1])) for name, v in data.items() if name != "borders"}
        return cls(int(data["borders"]), parts)

    @classmethod
    def merged(cls, parts: Iterable[Seams]) -> Seams:
        """All together, in the order given."""
        borders, total = 0, dict[str, Squares]()
        for part in parts:
            borders += part.borders
            for name, squares in (part.parts or {}).items():
                total[name] = total.get(name, Squares()) + squares
        return cls(borders, total)


@dataclass(frozen=True, slots=True)
class Layer:
    """One window's side of a border: its version of the shared strip, and the steps inside its core.

    `strip` is (C, core, 2 * halo), the border in the middle of the last axis.
    """

    strip: Floats
    inside: Squares


@dataclass(frozen=True, slots=True)
class Side:
    """One window's side of a border, as latents and as the error of its decoding."""

    latent: Layer
    decoded: Layer


def layer(window: Floats, *, axis: int, first: bool, halo: int) -> Layer:
    """A window's side of a border along `axis` (-1: east to west, -2: north to south).

    Args:
        window: (C, w, w) with its halo; NaN does not count.
        axis: the axis that the border cuts.
        first: whether the window lies before the border, or behind it.
        halo: width of the halo in the array's pixels.
    """
    turned = np.moveaxis(window, axis, -1)
    size = turned.shape[-1]
    rows = slice(halo, size - halo)
    strip = turned[:, rows, size - 2 * halo :] if first else turned[:, rows, : 2 * halo]
    return Layer(np.array(strip, dtype=np.float32), Squares.of(np.diff(turned[:, rows, halo : size - halo], axis=-1)))


def measure(first: Side, second: Side) -> Seams:
    """The figures of one border from its two sides."""
    parts: dict[str, Squares] = {}
    for name, a, b in (("latent", first.latent, second.latent), ("decoded", first.decoded, second.decoded)):
        halo = a.strip.shape[-1] // 2
        parts[f"{name} across"] = Squares.of(b.strip[..., halo] - a.strip[..., halo - 1])
        parts[f"{name} inside"] = a.inside + b.inside
        parts[f"{name} apart"] = Squares.of(b.strip - a.strip)
    a, b = first.decoded, second.decoded
    width = a.strip.shape[-1]
    fade = 0.5 + 0.5 * np.cos(np.pi * (np.arange(width) + 0.5) / width)  # the raised cosine of `eocube.cube.decode`
    blend = fade * a.strip + (1.0 - fade) * b.strip
    parts["blended across"] = Squares.of(blend[..., width // 2] - blend[..., width // 2 - 1])
    parts["blended inside"] = parts["decoded inside"]
    return Seams(1, parts)


def seams_line(seams: Seams) -> str:
    """The seam ratios in one line for people."""
    ratios = ((kind, seams.ratio(kind)) for kind in KINDS)
    named = ", ".join(f"{kind} {ratio:.2f}" for kind, ratio in ratios if ratio is not None)
    return f"seam ratio over {seams.borders} border{'s' if seams.borders > 1 else ''}: {named or 'not known'}"
