"""Scores a super-resolver on held-out pairs, in reflectance, place by place, and draws what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model import metrics
from model.eo_vae import EOVAE
from model.sensors import COLOURS, TrainedSensor
from model.spectrum import above_nyquist
from model.super_resolution import SuperResolver
from model.wald import back_project, bicubic, consistency_error

Decode = Callable[[Tensor], Tensor]
"""Raw latents (B, C, h, w) -> reflectance (B, bands, 8h, 8w)."""
MARGIN = 4
"""Mirrored cells around what is decoded: a decoder sees zeros beyond its input, which costs up to 9 dB at the edge."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pairs of one place and one side: `condition` and `target` as a network sees them, `low` (B, bands, h, w) and
    `high` in reflectance."""

    place: str
    condition: Tensor
    target: Tensor
    low: Tensor
    high: Tensor


def with_margin(decode: Decode) -> Decode:
    """The decoder behind mirrored borders, which are cut off again."""

    def decoded(z: Tensor) -> Tensor:
        n = min(MARGIN, min(z.shape[-2:]) - 1)
        y = decode(F.pad(z.float(), (n,) * 4, mode="reflect"))
        px = n * (y.shape[-1] // (z.shape[-1] + 2 * n))
        return y[..., px : y.shape[-2] - px, px : y.shape[-1] - px]

    return decoded


def reflectance_of(vae: EOVAE, sensor: TrainedSensor) -> Decode:
    """The decoder with mirrored borders, giving the sensor's physical unit."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (sensor.mean, sensor.std))
    unit = 1e-4 if sensor.unit == "reflectance*1e4" else 1.0

    @torch.no_grad()
    def decode(z: Tensor) -> Tensor:
        return torch.cat([(vae.decode(one[None], sensor.wavelengths) * std + mean) * unit for one in z])

    return with_margin(decode)


@dataclass(frozen=True, slots=True)
class Judge:
    """Scores networks on held-out pairs.

    `decode` makes reflectance of results; None in pixel space. `bands` name the channels, `mtf` is theirs at
    the low resolution's Nyquist. `steps` and `samples` are of the samplers' figures.
    """

    held: Sequence[HeldOut]
    decode: Decode | None
    bands: tuple[str, ...]
    mtf: tuple[float, ...]
    scale: int = 4
    steps: int = 8
    samples: int = 4
    seed: int = 0

    def score(self, net: SuperResolver) -> float:
        """Mean over places of the mean's error in dB below 1 (minus its PSNR): the lower the better."""
        found = []
        for place in self.places:
            of = [h for h in self.held if h.place == place]
            found.append(-_psnr([self._decoded(net.mean(h.condition)) for h in of], [h.high for h in of]))
        return float(np.mean(found))

    def _decoded(self, values: Tensor) -> Tensor:
        return values if self.decode is None else self.decode(values)

    @property
    def places(self) -> list[str]:
        """Names, in order."""
        return list(dict.fromkeys(h.place for h in self.held))

    def figures(self, net: SuperResolver) -> dict[str, dict[str, dict[str, float]]]:
        """Place -> method -> PSNR (dB, range 1, all pixels of the place together), SAM (radians), consistency (mean
        absolute reflectance) and sharpness (share of energy above the low resolution's Nyquist over the truth's)."""
        table: dict[str, dict[str, dict[str, float]]] = {}
        for place in self.places:
            of = [h for h in self.held if h.place == place]
            made: dict[str, list[Tensor]] = {}
            for h in of:
                for name, image in self.results(net, h).items():
                    made.setdefault(name, []).append(image)
            truth, low = [h.high for h in of], [h.low for h in of]
            table[place] = {name: self._measure(images, truth, low) for name, images in made.items()}
        return table

    def results(self, net: SuperResolver, h: HeldOut) -> dict[str, Tensor]:
        """Reflectance by method: bicubic, the autoencoder's ceiling, the one-step mean, one sample, the mean of
        `samples`, and "+" the same with the low resolution put right (`back_project`)."""
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.stack(
            [self._decoded(net.sample(h.condition, steps=self.steps, generator=generator)) for _ in range(self.samples)]
        )
        found = {
            "bicubic": bicubic(h.low, self.scale),
            "ceiling": self._decoded(h.target.float()),
            "one_step": self._decoded(net.mean(h.condition)),
            "sample": draws[0],
            "mean": draws.mean(0),
        }
        for name in ("one_step", "sample", "mean"):
            found[f"{name}+"] = back_project(found[name], h.low, self.mtf, self.scale)
        return found | {"spread": draws.std(0)}

    def picture(self, net: SuperResolver, h: HeldOut, row: int = 0) -> NDArray[np.uint8]:
        """(H, 6 W, 3): input, bicubic, one-step mean, one sample, the samples' spread times four, truth."""
        made = self.results(net, h)
        shown = [self.bands.index(b) for b in COLOURS] if set(COLOURS) <= set(self.bands) else [0, 0, 0]
        low, high = (np.percentile(h.high[row, shown].numpy(), q, axis=(1, 2), keepdims=True) for q in (1, 99))
        span = np.maximum(high - low, 1e-4)
        nearest = F.interpolate(h.low, scale_factor=self.scale, mode="nearest")
        panels = [(x[row, shown].numpy() - low) / span for x in (
            nearest, made["bicubic"], made["one_step"], made["sample"])]  # fmt: skip
        panels += [4 * made["spread"][row, shown].numpy() / span, (h.high[row, shown].numpy() - low) / span]
        whole = np.clip(np.concatenate(panels, axis=2), 0, 1)
        drawn: NDArray[np.uint8] = np.round(255 * whole.transpose(1, 2, 0)).astype(np.uint8)
        return drawn

    def _measure(self, images: Sequence[Tensor], truth: Sequence[Tensor], low: Sequence[Tensor]) -> dict[str, float]:
        """By the functions that `model.evaluation.super_resolution` measures with."""
        errors = torch.cat([consistency_error(a, b, self.mtf, self.scale) for a, b in zip(images, low, strict=True)])
        pairs = [
            (a.numpy(), b.numpy())
            for result, true in zip(images, truth, strict=True)
            for a, b in zip(result, true, strict=True)
        ]
        shares = np.array([above_nyquist(a, b, self.scale)[:2] for a, b in pairs])
        return {
            "psnr": _psnr(images, truth),
            "sam": float(np.average([metrics.sam(a, b) for a, b in pairs], weights=[b[0].size for _, b in pairs])),
            "consistency": float(errors.mean()),
            "sharpness": float(shares[:, 0].mean() / max(1e-30, shares[:, 1].mean())),
        }


def _psnr(images: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Of all pixels of a place together, however many images of which sides they lie in."""
    flat = [np.concatenate([x.numpy().ravel() for x in of]) for of in (images, truth)]
    return metrics.psnr(flat[0], flat[1], 1.0)


def table_text(table: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """The figures as lines: place, then method: PSNR / SAM / consistency / sharpness."""
    lines = []
    for place, methods in table.items():
        for name, f in methods.items():
            if name != "spread":
                lines.append(
                    f"{place:24s} {name:10s} {f['psnr']:6.2f} dB  {f['sam']:.4f} rad  {f['consistency']:.4f}  "
                    f"{f['sharpness']:.2f}"
                )
    return "\n".join(lines)
