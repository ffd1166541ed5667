"""Degrades an image as a coarser sensor of the same design would have seen it (Wald's protocol), and undoes the gap.

Wald, Ranchin and Mangolini (1997), "Fusion of satellite images of different spatial resolutions: assessing the quality
of resulting images": what is to be sharpened is made from a sharper image by a low-pass and decimation, so that the
sharper image is the truth. The low-pass has the sensor's own modulation transfer function (MTF) at the Nyquist
frequency of the LOW resolution (Aiazzi et al. 2006, "MTF-tailored multiscale fusion"): a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

MTF_NYQUIST: Mapping[str, float] = {
    "B01": 0.32, "B02": 0.26, "B03": 0.28, "B04": 0.24, "B05": 0.38, "B06": 0.34, "B07": 0.34, "B08": 0.26, "B8A": 0.33,
    "B09": 0.26, "B11": 0.22, "B12": 0.23,
}  # fmt: skip
"""MTF of each Sentinel-2 band at the Nyquist frequency of its own sampling.

Source: the list that the sharpening methods of Sentinel-2 share (SupReME, S2Sharp, MuSA), whose code takes it from a
reference of its papers. The mission's own data quality reports, which measure the MTF, could not be read here, so these
figures are second hand; those of the 10 m bands lie within the 0.15 to 0.30 that is quoted as the mission requirement.
There is none of B10 (cirrus), which those methods do not use.
"""
SHARPENED_MARGIN = 12
"""Coarse pixels around a cut image that `sharpened` should see."""
_REACH = 4.0  # spreads of the Gaussian on each side: what is beyond weighs under 1e-4


def mtf_of(bands: Sequence[str]) -> tuple[float, ...]:
    """`MTF_NYQUIST` of bands, in their order. ValueError names a band that has none."""
    if unknown := [band for band in bands if band not in MTF_NYQUIST]:
        raise ValueError(f"no MTF is known of {', '.join(unknown)}: there is one of {', '.join(MTF_NYQUIST)}")
    return tuple(MTF_NYQUIST[band] for band in bands)


@lru_cache(maxsize=256)
def gaussian_taps(mtf: float, factor: int) -> Tensor:
    """(K,) float64 weights, sum 1, of a Gaussian whose transfer function is `mtf` at the low resolution's Nyquist.

    With a spread of s fine pixels the transfer function at f cycles a fine pixel is exp(-2 pi^2 s^2 f^2); at the low
    Nyquist f = 1 / (2 factor), so s = factor / pi * sqrt(-2 ln mtf). K is even for an even factor and odd for an odd
    one, so that the taps lie about the centre of a coarse pixel: between fine pixels, or on one.

    Raises:
        ValueError: a factor below 1, or an MTF that is not between 0 and 1.
    """
    if factor < 1 or not 0 < mtf < 1:
        raise ValueError(f"factor {factor} and MTF {mtf:g}: need a factor of 1 or more and an MTF between 0 and 1")
    if factor == 1:
        return torch.ones(1, dtype=torch.float64)
    spread = factor / math.pi * math.sqrt(-2 * math.log(mtf))
    count = max(factor, math.ceil(2 * _REACH * spread))
    count += (count - factor) % 2
    place = torch.arange(count, dtype=torch.float64) - (count - 1) / 2
    taps = torch.exp(-0.5 * (place / spread) ** 2)
    return taps / taps.sum()


def reach(mtf: Sequence[float], factor: int) -> int:
    """Fine pixels beyond its own ground that a coarse pixel depends on, rounded up to whole coarse pixels."""
    beyond = max((len(gaussian_taps(m, factor)) - factor) // 2 for m in mtf)
    return -(-beyond // factor) * factor


def degrade(x: Tensor, mtf: Sequence[float], factor: int) -> Tensor:
    """(..., C, H, W) -> (..., C, H / factor, W / factor): low-pass by each band's MTF, then decimation.

    Half-pixel exact: a coarse pixel covers `factor` fine ones a side and is centred on them. Borders are repeated. NaN
    spreads to every coarse pixel that depends on it.

    Args:
        x: channels in the order of `mtf`.
        mtf: at the low resolution's Nyquist, a channel each (`mtf_of`).
        factor: fine pixels along a coarse one.

    Raises:
        ValueError: another number of channels, or sides that are no multiples of the factor.
    """
    _check(x, mtf, factor)
    whole = x.reshape(-1, *x.shape[-3:])
    taps = [gaussian_taps(m, factor) for m in mtf]
    longest = max(len(t) for t in taps)
    weight = torch.stack([F.pad(t, ((longest - len(t)) // 2,) * 2) for t in taps]).to(x.device, x.dtype)
    pad = (longest - factor) // 2
    for shape in ((-1, 1), (1, -1)):
        down = shape == (-1, 1)
        kernel = weight.reshape(len(mtf), 1, *shape)
        whole = F.pad(whole, (0, 0, pad, pad) if down else (pad, pad, 0, 0), mode="replicate")
        whole = F.conv2d(whole, kernel, stride=(factor, 1) if down else (1, factor), groups=len(mtf))
    return whole.reshape(*x.shape[:-2], *whole.shape[-2:])


def bicubic(x: Tensor, factor: int) -> Tensor:
    """(..., C, h, w) -> (..., C, h * factor, w * factor), bicubic (a = -0.75), half-pixel exact, no antialiasing."""
    whole = F.interpolate(x.reshape(-1, *x.shape[-3:]), scale_factor=factor, mode="bicubic", align_corners=False)
    return whole.reshape(*x.shape[:-2], *whole.shape[-2:])


def sharpened(lr: Tensor, mtf: Sequence[float], factor: int) -> Tensor:
    """(..., C, h, w) -> (..., C, h * factor, w * factor): bicubic, put right so that `degrade` makes `lr` of it again.

    No statistics are in it, only the sensor's MTF: what the low-pass took from frequencies that it let pass is given
    back. A cut image differs near its border from the same ground in a larger one: by less than 1e-4 `SHARPENED_MARGIN`
    coarse pixels from it, the step in which reflectance travels (6e-5 on white noise in 0..1, 7e-6 on real mountains).
    """
    return back_project(bicubic(lr, factor), lr, mtf, factor)


def back_project(y: Tensor, lr: Tensor, mtf: Sequence[float], factor: int, iterations: int = 1) -> Tensor:
    """The image nearest to `y` (least squares) that `degrade` makes `lr` of: y + D+ (lr - D y).

    D is the same along rows and columns, so its pseudo-inverse D+ = D^T (D D^T)^-1 is applied along each axis by a
    small matrix and the answer is exact in one step, where Irani and Peleg's (1991) iteration y += up(lr - D y) comes
    near to it in dozens. Further `iterations` only take off what rounding left.

    Args:
        y: (..., C, H, W).
        lr: (..., C, H / factor, W / factor), on the same device.
        mtf, factor: as for `degrade`.
        iterations: 1 or more.

    Raises:
        ValueError: sizes that do not go together.
    """
    _check(y, mtf, factor)
    if lr.shape[-2:] != (y.shape[-2] // factor, y.shape[-1] // factor) or lr.shape[-3] != y.shape[-3]:
        raise ValueError(f"images of {tuple(y.shape)} and {tuple(lr.shape)} do not go together at a factor of {factor}")
    rows, columns = (torch.stack([_undo(m, factor, n).to(y) for m in mtf]) for n in y.shape[-2:])
    for _ in range(iterations):
        y = y + rows @ (lr - degrade(y, mtf, factor)) @ columns.transpose(-1, -2)
    return y


def consistency_error(y: Tensor, lr: Tensor, mtf: Sequence[float], factor: int) -> Tensor:
    """(...,) mean over bands and pixels of |degrade(y) - lr|, in the unit of the images, of each image (C, H, W)."""
    return (degrade(y, mtf, factor) - lr).abs().mean(dim=(-3, -2, -1))


@lru_cache(maxsize=64)
def _undo(mtf: float, factor: int, size: int) -> Tensor:
    """(size, size / factor) float64: the pseudo-inverse of degrading along one axis."""
    with torch.inference_mode(False):  # what is kept must serve callers outside of that mode too
        lines = torch.eye(size, dtype=torch.float64)[:, None, :, None].expand(-1, 1, -1, factor)
        down = degrade(lines, (mtf,), factor)[:, 0, :, 0].T  # (size / factor, size)
        undo: Tensor = torch.linalg.solve(down @ down.T, down).T
        return undo.contiguous()


def _check(x: Tensor, mtf: Sequence[float], factor: int) -> None:
    if x.ndim < 3 or x.shape[-3] != len(mtf):
        raise ValueError(f"an image of {tuple(x.shape)} and {len(mtf)} MTFs: need (..., C, H, W) with one a channel")
    if factor < 1 or x.shape[-2] % factor or x.shape[-1] % factor:
        raise ValueError(f"an image of {tuple(x.shape[-2:])} pixels: its sides must be multiples of {factor}")
