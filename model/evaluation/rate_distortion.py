"""Draws rate against distortion: bits a pixel and band against PSNR in physical units of a fixed range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.eo_vae import EOVAE
from model.evaluation import plot
from model.evaluation.codecs import Codec, at_bytes
from model.evaluation.storage import BITS, Channels, bits_per_pixel, ranked
from model.sensors import Floats, TrainedSensor
from model.training.eo_vae.evaluate import RANGES, decoded, encoded
from model.training.eo_vae.klt import BLOCK, Klt

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Point:
    """One storage: `bits` a pixel and band, `psnr` in dB over all tiles, and what was kept."""

    bits: float
    psnr: float
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Curves:
    """The curves of one sensor and the order in which its channels are kept."""

    sensor: str
    range: float
    tiles: int
    order: tuple[int, ...]
    curves: Mapping[str, tuple[Point, ...]]


def curves(
    vae: EOVAE, name: str, sensor: TrainedSensor, tiles: Sequence[Floats], calibration: Sequence[Floats],
    linear: Callable[[int], Klt | None], codecs: Sequence[Codec],
) -> Curves:  # fmt: skip
    """fp16, int8 and top-k of both, the KLT with as many fp16 coefficients, and each codec at the same bytes.

    Args:
        vae: the weights.
        name: what they are called in the plot.
        sensor: whose bands the tiles have.
        tiles: (C, H, W) z-scores to measure on.
        calibration: tiles that rank the channels; training ones, lest the order be fitted to what is measured.
        linear: number of coefficients of an 8x8 block -> a KLT, or None without training images.
        codecs: image codecs at hand.
    """
    statistics, span = Channels.of(vae), RANGES[sensor.unit]
    bands, count = len(sensor.bands), vae.config.z_channels
    order = ranked(vae, calibration, sensor)
    kept = sorted({max(1, round(share * count)) for share in SHARES})
    latents = [encoded(vae, t, sensor) for t in tiles]
    found: dict[str, list[Point]] = {}
    for kind in BITS:
        for k in kept:
            back = [decoded(vae, statistics.stored(z, kind, order[:k]), sensor) for z in latents]
            point = Point(bits_per_pixel(vae, kind, k, bands), pooled_psnr(back, tiles, sensor, span), k)
            found.setdefault(f"{name} {kind}, top-k channels", []).append(point)
    for k in kept:
        klt = linear(k * BLOCK**2 // vae.scale_factor**2)
        if klt is not None:
            bits = bits_per_pixel(vae, "fp16", k, bands)
            psnr = pooled_psnr([klt.reconstruct(t) for t in tiles], tiles, sensor, span)
            found.setdefault("KLT 8x8, fp16", []).append(Point(bits, psnr, k))
    pixels = sum(t.size for t in tiles)
    rates = sorted({p.bits for p in found[f"{name} fp16, top-k channels"]})
    for codec in codecs:
        for bits in rates:
            coded = [at_bytes(codec, t, round(bits * t.size / 8)) for t in tiles]
            done = [c for c in coded if c is not None]
            if len(done) == len(tiles):
                rate = 8 * sum(c.size for c in done) / pixels
                found.setdefault(codec.name, []).append(
                    Point(rate, pooled_psnr([c.z for c in done], tiles, sensor, span))
                )
    return Curves(sensor.name, span, len(tiles), tuple(order), {key: tuple(line) for key, line in found.items()})


def pooled_psnr(back: Sequence[Floats], tiles: Sequence[Floats], sensor: TrainedSensor, span: float) -> float:
    """Of all tiles together, in physical units."""
    square = sum(
        float(((sensor.physical(b).astype(np.float64) - sensor.physical(t)) ** 2).sum())
        for b, t in zip(back, tiles, strict=True)
    )
    mse = square / sum(t.size for t in tiles)
    return float(10 * np.log10(span**2 / mse)) if mse else float("inf")


def draw(sets: Mapping[str, Curves], path: Path) -> None:
    """One panel a sensor, written as PNG: bits a pixel and band (logarithmic) against PSNR."""
    panels = {
        title: plot.Panel(
            {name: [(p.bits, p.psnr) for p in points] for name, points in item.curves.items()},
            "bits per pixel and band",
            f"PSNR in dB, range {item.range:g}",
        )
        for title, item in sets.items()
    }
    plot.draw(panels, path)
