"""Evaluate super-resolution: `python jobs/evaluate.py --task sr --pairs STORE --weights W --out FOLDER`.

The pairs are a store of jobs/encode_pairs.py with pixels, a folder in Sen2NAIP's layout (one folder an area with
metadata.json, lr.tif, hr.tif), or a folder of rasters that pairs are made of by Wald's protocol.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eocube.commands.help_page import Page
from eocube.commands.parsing import parse
from model.training.job_options import run_job

if TYPE_CHECKING:
    import torch

    from eocube.pairs.given import GivenPairs
    from eocube.pairs.pixel_pairs import PixelPair
    from model.evaluation.super_resolution.methods import Method, Resolver
    from model.evaluation.super_resolution.pairs import Case
    from model.evaluation.super_resolution.ridge import Ridge
    from model.evaluation.super_resolution.space import EoVaeSpace
    from model.super_resolution import SuperResolver

Arg = tyro.conf.arg


@dataclass(frozen=True, slots=True)
class Options:
    """Super-resolution beside bicubic, a ridge regression and the autoencoder's own ceiling, on held-out pairs."""

    pairs: Annotated[str, Arg(help="pair store with pixels, folder in Sen2NAIP's layout, or folder of 10 m rasters")]
    weights: Annotated[str, Arg(help="of the latent super-resolver: a shipped name, or a path or URL of what "
                                     "`jobs/train_sr.py` wrote; none for baselines alone")] = "sr-nano"  # fmt: skip
    pixel_weights: Annotated[str | None, Arg(help="of the pixel-space diffusion, `jobs/train_sr.py --space pixel`")] = (
        None
    )
    flux2: Annotated[Path | None, Arg(help="diffusers' AutoencoderKLFlux2, a folder or a file: its ceiling on RGB")] = (
        None
    )
    split: Annotated[Literal["val", "test"], Arg(help="of a store: test for a release's figures, once")] = "val"
    out: Annotated[Path | None, Arg(help="folder for report.json, report.md and pictures")] = None
    save: Annotated[Path | None, Arg(help="folder for every method's results as GeoTIFFs: METHOD/ID.tif")] = None
    json: Annotated[Path | None, Arg(help="file for the figures as JSON")] = None
    steps: Annotated[int, Arg(help="of sampling, latent and pixel alike")] = 8
    samples: Annotated[int, Arg(help="draws that the mean and the spread are of")] = 8
    method: Annotated[Literal["dpmpp", "heun", "ddim"], Arg(help="sampler")] = "dpmpp"
    seed: Annotated[int, Arg(help="of the draws")] = 0
    methods: Annotated[tuple[str, ...], Arg(help="only these, by the names of the report, such as ridge latent pixel "
                                            "(a draw in pixel space takes a core seconds a step)")] = ()  # fmt: skip
    ridge: Annotated[Path | None, Arg(help="a ridge that --save-ridge wrote (default: fitted on the store's training "
                                           "split; for a folder the shipped one)")] = None  # fmt: skip
    save_ridge: Annotated[Path | None, Arg(help="file to write the ridge to that was fitted")] = None
    encoder: Annotated[str | None, Arg(help="weights of the autoencoder, for --weights none on a folder")] = None
    limit: Annotated[int | None, Arg(help="the first so many pairs of each place")] = None
    side: Annotated[int, Arg(help="of a folder of rasters: pixels a side of a pair")] = 224
    timing_iterations: Annotated[int, Arg(help="images that time is averaged over, after warming up")] = 50
    timing_seconds: Annotated[float, Arg(help="fewer of them where they would take longer, a method")] = 60.0
    curve_steps: Annotated[tuple[int, ...], Arg(help="steps of the curve of PSNR and sharpness")] = (1, 2, 4, 8, 16, 32)
    curve_pairs: Annotated[int, Arg(help="pairs of the curve, of as many places as there are; 0: no curve")] = 6
    lpips: Annotated[bool, Arg(help="LPIPS of RGB too: needs torchvision")] = False
    device: Annotated[Literal["auto", "cpu", "cuda"], Arg(help="where networks run")] = "auto"
    threads: Annotated[int | None, Arg(help="threads (default: torch's own)")] = None


PAGE = Page(
    (
        (
            "beside bicubic, a ridge regression and the ceiling",
            "python jobs/evaluate.py --task sr --pairs pairs.zarr --out report",
        ),
        ("a figure a result, kept", "python jobs/evaluate.py --task sr --pairs FOLDER --json sr.json --save results"),
    ),
    {"What": ("pairs", "weights", "out", "split", "samples", "method", "steps")},
    ("pairs", "weights", "out", "split", "samples", "method", "steps", "limit", "device", "json"),
)


def evaluate(options: Options) -> dict[str, Any]:
    """Do it; the report. ValueError, FileNotFoundError or an EocubeError, in one line, for bad input."""
    import torch

    from benchmarks.machine import describe
    from eocube.pairs.given import given_pairs
    from model.evaluation.super_resolution.lpips import Perceptual
    from model.evaluation.super_resolution.pairs import Case
    from model.evaluation.super_resolution.report import json_text, markdown, write
    from model.evaluation.super_resolution.study import Costs, Curve, SuperResolutionStudy
    from model.evaluation.terramesh_study import device_named
    from model.super_resolution import load_sr

    _check(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = device_named(options.device)
    perceptual = Perceptual(device) if options.lpips else None
    net = None if options.weights == "none" else load_sr(options.weights, device=device)
    other = None if options.pixel_weights is None else load_sr(options.pixel_weights, device=device)
    for one, space, key in ((net, "latent", "weights"), (other, "pixel", "pixel-weights")):
        if one is not None and one.config.space != space:
            raise ValueError(f"--{key}: {_name(one)} is of {one.config.space} space, give one of {space} space")
    found = given_pairs(options.pairs, options.split, options.limit, options.side)
    cases = [Case.of(pair, index, latents) for index, (pair, latents) in enumerate(found.pairs)]
    _fits(found, net, other)
    ridge = _ridge(options, found)
    methods, resolver = _methods(options, found, net, other, ridge, device)
    methods = _chosen(methods, options.methods)
    study = SuperResolutionStudy(
        cases, methods, found.mtf, device, resolver, Costs(options.timing_iterations, options.timing_seconds),
        Curve(tuple(options.curve_steps), options.curve_pairs), options.save, perceptual,
    )  # fmt: skip
    about = {
        "weights": "baselines" if net is None else _name(net), "split": found.split,
        "weights_sha256": None if net is None or net.meta is None else net.meta.sha256,
        "pixel_weights": None if other is None else _name(other), "encoder": found.encoder,
        "sampling": {
            "steps": options.steps, "samples": options.samples, "method": options.method, "seed": options.seed,
        },
        "ridge": None if ridge is None else {
            "parameter": ridge.parameter, "turned": ridge.turned, "balance": ridge.balance, "pixels": ridge.pixels,
            "places": list(ridge.places),
        },
        "machine": describe(device),
    }  # fmt: skip
    report = study.run() | about
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json_text(report), encoding="utf-8")
    print(markdown(report))
    if options.out is not None:
        print("written: " + ", ".join(str(path) for path in write(report, study.shown, options.out)))
    return report


def _check(options: Options) -> None:
    least_of = {"steps": 1, "samples": 1, "timing_iterations": 1, "curve_pairs": 0, "threads": 1, "limit": 1}
    for key, least in least_of.items():
        value = getattr(options, key)
        if value is not None and value < least:
            raise ValueError(f"--{key.replace('_', '-')} {value} must be at least {least}")
    if options.curve_steps and min(options.curve_steps) < 1:
        raise ValueError("--curve-steps must be 1 or more each")
    if options.save_ridge is not None and options.ridge is not None:
        raise ValueError("--save-ridge writes what is fitted: leave --ridge out")
    for key in ("out", "save"):
        if (folder := getattr(options, key)) is not None and folder.exists() and not folder.is_dir():
            raise ValueError(f"--{key} {folder} is a file: give a folder")


def _name(net: SuperResolver) -> str:
    return "super-resolver" if net.meta is None else net.meta.name


def _fits(found: GivenPairs, net: SuperResolver | None, other: SuperResolver | None) -> None:
    """ValueError where weights are of other bands, another scale or another encoder than the pairs."""
    bands, factor = found.bands, found.factor
    for one in (net, other):
        if one is None:
            continue
        if one.config.scale != factor:
            raise ValueError(f"{_name(one)} makes {one.config.scale} times finer images, the pairs are {factor} times")
        if one.meta is not None and one.meta.bands != bands:
            raise ValueError(f"{_name(one)} is of {' '.join(one.meta.bands)}, the pairs of {' '.join(bands)}")
        if one.config.space == "latent" and found.encoder is not None:
            one.check_encoder(found.encoder["sha256"], bands)


def _ridge(options: Options, found: GivenPairs) -> Ridge | None:
    from model.evaluation.super_resolution.ridge import fit_ridge, load_ridge, save_ridge, shipped_ridge

    if options.ridge is not None:
        return load_ridge(options.ridge)
    first = next(found.training, None)
    if first is None:
        # An aerial picture is no linear function of what Wald's pairs are.
        shipped = None if found.counts else shipped_ridge(found.factor, found.bands)
        if shipped is None:
            print("no ridge: there are no training pairs with pixels here; give one with --ridge", file=sys.stderr)
        return shipped

    def every() -> Iterator[PixelPair]:
        yield first
        yield from found.training

    ridge = fit_ridge(every())
    if options.save_ridge is not None:
        save_ridge(ridge, options.save_ridge)
    return ridge


def _space(options: Options, found: GivenPairs, net: SuperResolver | None, device: torch.device) -> EoVaeSpace | None:
    """The autoencoder of the weights, else of the store."""
    from eocube.pairs.sen2naip import HR_STATISTICS
    from model.evaluation.super_resolution.space import EoVaeSpace, Scaled
    from model.weights import load_weights

    encoder = found.encoder if net is None or net.meta is None else net.meta.encoder
    source = options.encoder or (None if encoder is None else encoder["weights"])
    if source is None:
        return None
    vae = load_weights(source)
    if encoder is not None and vae.meta is not None and vae.meta.sha256 != encoder["sha256"]:
        raise ValueError(
            f"{source} is not the encoder that the latents were made with ({encoder['sha256'][:12]}): give it with "
            "--encoder"
        )
    high = None
    if found.counts:
        mean, std = (tuple(value / 255 for value in values) for values in HR_STATISTICS)
        high = Scaled(mean, std)
    bands = found.bands
    return EoVaeSpace(vae, bands, None if encoder is None else encoder["sensor"], device, None, high)


def _methods(
    options: Options, found: GivenPairs, net: SuperResolver | None, other: SuperResolver | None, ridge: Ridge | None,
    device: torch.device,
) -> tuple[list[Method], Resolver | None]:  # fmt: skip
    from model.evaluation.super_resolution.methods import LATENT, PIXEL, Resolver, Sampling, baselines

    sampling = Sampling(options.steps, options.samples, options.method, options.seed)
    space = _space(options, found, net, device)
    methods = baselines(ridge, space, found.mtf)
    resolver = None
    if net is not None:
        resolver = Resolver(net, space, sampling, found.mtf, device)
        methods += resolver.methods(LATENT)
    if other is not None:
        methods += Resolver(other, None, sampling, found.mtf, device).methods(PIXEL)
    if options.flux2 is not None:
        methods.append(_flux2(options.flux2, found))
    return methods, resolver


def _chosen(methods: list[Method], names: Sequence[str]) -> list[Method]:
    """Those that are asked for, in the report's order; all where none is named. ValueError for an unknown one."""
    known = [method.name for method in methods]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"--methods {unknown[0]}: there is {', '.join(known)}")
    return [method for method in methods if not names or method.name in names]


def _flux2(path: Path, found: GivenPairs) -> Method:
    """FLUX.2's own ceiling on red, green and blue; near infrared, which it has not, is the truth's mean."""
    import numpy as np
    import torch

    from model.evaluation.super_resolution.methods import FLUX2, plain
    from model.evaluation.super_resolution.pairs import filled
    from model.training.ldm.flux2 import COLOURS_KEPT, Flux2

    flux = Flux2.load(path)
    bands = found.bands
    picks = [bands.index(band) for band in COLOURS_KEPT]
    encode = flux.encoder(picks)

    def run(case: Case) -> Any:
        truth = filled(case.hr)
        result = np.broadcast_to(truth.mean((1, 2), keepdims=True), truth.shape).copy()
        result[picks] = flux.decode(encode(torch.from_numpy(truth)[None]))[0].cpu().numpy()
        return result

    parameters = sum(p.numel() for p in flux.network.parameters())
    return plain(f"{FLUX2}_ceiling", run, parameters, "RGB alone: its figures of all bands mean nothing")


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad input."""
    from eocube.errors import EocubeError

    return run_job(lambda: evaluate(options), (EocubeError,))


if __name__ == "__main__":
    sys.exit(main(parse(Options, sys.argv[1:], "evaluate_sr.py", PAGE)))
