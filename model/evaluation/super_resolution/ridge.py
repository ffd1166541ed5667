"""Fits the yardstick: a ridge regression from 5x5 low-resolution pixels of all bands to those above the middle one.

Fitted on what the network saw: the pairs of the training split, in all eight rotations and reflections if that does
better on training places left out. So are the ridge parameter and the weight of places chosen; no held-out place is
touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from model.evaluation.super_resolution.pairs import PairLike, scale_of
from model.sensors import Floats
from model.wald import bicubic

SIDE = 5
"""Low-resolution pixels a side that a prediction looks at."""
PARAMETERS = tuple(10.0**power for power in range(-8, 1))
"""Ridge parameters tried: shares of the mean variance of an input."""
BALANCES = (0.0, 0.5, 1.0)
FOLDS = 8
_FORMAT = "eocube-ridge-1"
SHIPPED = Path(__file__).with_name("wald4_rgbn.safetensors")
"""Of four times finer B04, B03, B02, B08, fitted on the training places of `nano`'s listing by Wald's protocol: for
pairs that have no training split of their own. `jobs/evaluate.py --task sr --pairs STORE --save-ridge` made it."""
Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Ridge:
    """`weight` (inputs, outputs) and `bias` (outputs,) on top of bicubic interpolation.

    Inputs are (SIDE, SIDE, bands) flattened, less the middle pixel's own values except in the last `bands` of them;
    outputs (factor, factor, bands). `parameter`, `turned` (all eight rotations and reflections), `balance` (0: places
    weigh by their pixels, 1: all the same) and `places` say how it was fitted.
    """

    weight: Doubles
    bias: Doubles
    factor: int
    bands: tuple[str, ...]
    parameter: float
    turned: bool
    balance: float
    places: tuple[str, ...]
    pixels: int

    @property
    def parameters(self) -> int:
        """Numbers that were fitted."""
        return self.weight.size + self.bias.size

    def __call__(self, lr: Floats) -> Floats:
        """(C, h, w) reflectance, finite -> (C, f h, f w)."""
        if len(lr) != len(self.bands):
            raise ValueError(f"the ridge is of {', '.join(self.bands)}: {len(lr)} bands were given")
        above = _above(lr, self.factor)
        height, width = lr.shape[1:]
        change = (_inputs(lr) @ self.weight.astype(np.float32) + self.bias.astype(np.float32)).reshape(
            height, width, self.factor, self.factor, len(lr)
        )
        pixels = change.transpose(4, 0, 2, 1, 3).reshape(above.shape)
        return np.asarray(above + pixels, np.float32)


@dataclass(slots=True)
class _Moments:
    """Sums of one place over its low-resolution pixels: enough to fit on it and to score on it."""

    inputs: int
    outputs: int
    count: float = 0
    xx: Doubles = field(init=False)
    xy: Doubles = field(init=False)
    yy: float = 0.0
    x: Doubles = field(init=False)
    y: Doubles = field(init=False)

    def __post_init__(self) -> None:
        self.xx, self.xy = np.zeros((self.inputs, self.inputs)), np.zeros((self.inputs, self.outputs))
        self.x, self.y = np.zeros(self.inputs), np.zeros(self.outputs)

    def add(self, x: Doubles, y: Doubles) -> None:
        """Rows of inputs and outputs."""
        self.count += len(x)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float((y**2).sum())
        self.x += x.sum(0)
        self.y += y.sum(0)

    def plus(self, other: _Moments, weight: float) -> None:
        """Take another's sums in, `weight` times."""
        self.count += weight * other.count
        self.yy += weight * other.yy
        for name in ("xx", "xy", "x", "y"):
            setattr(self, name, getattr(self, name) + weight * getattr(other, name))

    def fit(self, parameter: float) -> tuple[Doubles, Doubles]:
        """Weight and bias; the bias is not shrunk."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        cov = self.xx / self.count - np.outer(mean_x, mean_x)
        cross = self.xy / self.count - np.outer(mean_x, mean_y)
        shrink = parameter * max(float(np.trace(cov)) / len(cov), 1e-12)
        weight: Doubles = np.linalg.solve(cov + shrink * np.eye(len(cov)), cross).astype(np.float64)
        return weight, mean_y - mean_x @ weight

    def error(self, weight: Doubles, bias: Doubles) -> float:
        """Mean squared error of a fit on these rows."""
        square = (
            self.yy
            - 2 * (weight * self.xy).sum()
            - 2 * bias @ self.y
            + (weight * (self.xx @ weight)).sum()
            + 2 * self.x @ weight @ bias
            + self.count * bias @ bias
        )
        return float(max(square, 0.0) / max(self.count * self.outputs, 1))


def fit_ridge(pairs: Iterable[PairLike], parameters: Sequence[float] = PARAMETERS, folds: int = FOLDS) -> Ridge:
    """Fit on pairs, one after another, so that memory does not grow with them.

    Low-resolution pixels with anything invalid in their 5x5 or above the middle are left out. Places are left out in
    turn, `folds` groups of them, to choose the parameter and whether pairs are turned; a single place is split by its
    images. ValueError for no pair, or for pairs of several scales or sets of bands.
    """
    groups: dict[str, dict[bool, _Moments]] = {}
    known: tuple[int, tuple[str, ...]] | None = None
    places: dict[str, None] = {}
    images: list[str] = []
    for pair in pairs:
        kind = (scale_of(pair), tuple(pair.bands))
        if known is not None and kind != known:
            raise ValueError(f"pair {pair.id} is {kind[0]}x of {', '.join(kind[1])}, earlier ones {known[0]}x of "
                             f"{', '.join(known[1])}: fit one ridge for each")  # fmt: skip
        known = kind
        places.setdefault(pair.place)
        images.append(pair.id)
        # A place is one group; so that even one place leaves something out, its images are kept apart until the end.
        sums = groups.setdefault(f"{pair.place}\n{pair.id}", {})
        for turned in (False, True):
            _add(sums, turned, np.asarray(pair.lr, np.float32), np.asarray(pair.hr, np.float32), kind[0])
    if known is None:
        raise ValueError("no pair to fit the ridge on: it needs the training split's pixels")
    parts = _parts(groups, by_place=len(places) > 1)
    if not any(part[False].count for part in parts):
        raise ValueError("no pixel to fit the ridge on: every one of the training split's pairs has holes")
    parameter, turned, balance = _chosen(parts, parameters, folds)
    weight, bias = _merged([part[turned] for part in parts], balance).fit(parameter)
    factor, bands = known
    pixels = sum(int(part[False].count) for part in parts)
    return Ridge(weight, bias, factor, bands, parameter, turned, balance, tuple(places), pixels)


def _add(sums: dict[bool, _Moments], turned: bool, lr: Floats, hr: Floats, factor: int) -> None:
    for low, high in _turns(lr, hr) if turned else [(lr, hr)]:
        x, y = _rows(low, high, factor)
        if turned not in sums:
            sums[turned] = _Moments(x.shape[1], y.shape[1])
        sums[turned].add(x, y)


def _turns(lr: Floats, hr: Floats) -> Iterable[tuple[Floats, Floats]]:
    for quarter in range(4):
        a, b = (np.rot90(image, quarter, (1, 2)) for image in (lr, hr))
        yield a, b
        yield a[:, :, ::-1], b[:, :, ::-1]


def _parts(groups: Mapping[str, dict[bool, _Moments]], *, by_place: bool) -> list[dict[bool, _Moments]]:
    found: dict[str, list[dict[bool, _Moments]]] = {}
    for key, sums in groups.items():
        found.setdefault(key.split("\n")[0] if by_place else key, []).append(sums)
    return [{turned: _merged([s[turned] for s in sums]) for turned in (False, True)} for sums in found.values()]


def _merged(parts: Sequence[_Moments], balance: float = 0.0) -> _Moments:
    """All sums together; with a balance of 1 each part weighs the same, with 0 by its pixels."""
    out = _Moments(parts[0].inputs, parts[0].outputs)
    for part in parts:
        if part.count:
            out.plus(part, part.count**-balance)
    return out


def _chosen(
    parts: Sequence[dict[bool, _Moments]], parameters: Sequence[float], folds: int
) -> tuple[float, bool, float]:
    """Parameter, turning and balance of the least error on places left out: the mean of its logarithm, as PSNR is."""
    parts = [part for part in parts if part[False].count]
    count = min(folds, len(parts))
    if count < 2:
        return parameters[len(parameters) // 2], True, 0.0
    errors: dict[tuple[float, bool, float], float] = {}
    for turned in (False, True):
        for balance in BALANCES:
            for fold in range(count):
                kept = _merged([p[turned] for k, p in enumerate(parts) if k % count != fold], balance)
                for parameter in parameters:
                    fit, key = kept.fit(parameter), (parameter, turned, balance)
                    for part in parts[fold::count]:
                        errors[key] = errors.get(key, 0.0) + math.log(part[False].error(*fit) + 1e-12)
    return min(errors, key=lambda key: errors[key])


def _above(lr: Floats, factor: int) -> Floats:
    return np.asarray(bicubic(torch.from_numpy(np.ascontiguousarray(lr))[None], factor)[0].numpy())


def _inputs(lr: Floats) -> Floats:
    """(h * w, SIDE * SIDE * C): the neighbours less the middle pixel, then the middle itself; borders repeated."""
    reach = SIDE // 2
    padded = np.pad(lr, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (SIDE, SIDE), (1, 2))  # (C, h, w, SIDE, SIDE)
    pixels = windows.transpose(1, 2, 3, 4, 0).reshape(-1, SIDE * SIDE, len(lr))
    middle = pixels[:, SIDE * SIDE // 2]
    around = np.delete(pixels, SIDE * SIDE // 2, axis=1) - middle[:, None]
    return np.concatenate([around.reshape(len(pixels), -1), middle], axis=1)


def _rows(lr: Floats, hr: Floats, factor: int) -> tuple[Doubles, Doubles]:
    """Inputs and outputs (truth less bicubic) of the low-resolution pixels of which everything is valid."""
    x = _inputs(lr)
    difference = hr - _above(np.nan_to_num(lr), factor)
    height, width = lr.shape[1:]
    blocks = difference.reshape(len(hr), height, factor, width, factor).transpose(1, 3, 2, 4, 0)
    y = blocks.reshape(height * width, -1)
    kept = np.isfinite(x).all(1) & np.isfinite(y).all(1)
    return x[kept].astype(np.float64), y[kept].astype(np.float64)


def save_ridge(ridge: Ridge, path: Path) -> None:
    """As safetensors of float32, how it was fitted in the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {
        "format": _FORMAT,
        "factor": str(ridge.factor),
        "bands": ",".join(ridge.bands),
        "parameter": repr(ridge.parameter),
        "turned": str(int(ridge.turned)),
        "balance": repr(ridge.balance),
        "places": ",".join(ridge.places),
        "pixels": str(ridge.pixels),
    }
    tensors = {"weight": torch.from_numpy(ridge.weight).float(), "bias": torch.from_numpy(ridge.bias).float()}
    save_file(tensors, path, header)


def shipped_ridge(factor: int, bands: Sequence[str]) -> Ridge | None:
    """The ridge that comes with the package, None for another factor or other bands."""
    ridge = load_ridge(SHIPPED)
    return ridge if (ridge.factor, ridge.bands) == (factor, tuple(bands)) else None


def load_ridge(path: Path) -> Ridge:
    """What `save_ridge` wrote; ValueError, in one line, for any other file."""
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise ValueError(f"{path} is no ridge that jobs/evaluate.py --save-ridge wrote")
            weight, bias = (file.get_tensor(name).double().numpy() for name in ("weight", "bias"))
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{path} is no ridge that jobs/evaluate.py --save-ridge wrote: {error}") from None
    return Ridge(
        weight, bias, int(header["factor"]), tuple(header["bands"].split(",")), float(header["parameter"]),
        header["turned"] == "1", float(header["balance"]), tuple(header["places"].split(",")), int(header["pixels"]),
    )  # fmt: skip
