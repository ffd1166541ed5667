"""Evaluate weights on held-out places beside their baselines: `python jobs/evaluate.py --weights nano --data ...`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Options:
    """Figures of weights and baselines on held-out places: JSON, Markdown and plots of rate and distortion."""

    data: Annotated[Path, tyro.conf.arg(help="folder that the listing's paths are relative to")]
    out: Annotated[Path, tyro.conf.arg(help="folder for report.json, report.md and the plots")]
    weights: Annotated[str, tyro.conf.arg(help="a shipped name, a path, a URL or hf://owner/name")] = "nano"
    listing: Annotated[Path | None, tyro.conf.arg(help="YAML listing of the rasters, some with held_out: true "
                                                  "(default: nano's)")] = None  # fmt: skip
    test: Annotated[bool, tyro.conf.arg(help="measure on the listing's test places (test: true) rather than on those "
                                             "of validation: for a release's figures, once")] = False  # fmt: skip
    terramind: Annotated[
        dict[str, Path],
        tyro.conf.arg(help="sensor and published weights of TerraMind's tokenizer, for example "
                           "S2L2A TerraMind_Tokenizer_S2L2A.pt"),
    ] = field(default_factory=dict)  # fmt: skip
    terramind_steps: Annotated[int, tyro.conf.arg(help="its diffusion steps (published evaluation: 20)")] = 20
    batch: Annotated[int, tyro.conf.arg(help="tiles that share a data range in z-scores (published: 16)")] = 16
    resamples: Annotated[int, tyro.conf.arg(help="bootstrap resamples of the places")] = 2000
    seed: Annotated[int, tyro.conf.arg(help="of the bootstrap")] = 0
    rate_tiles: Annotated[int, tyro.conf.arg(help="tiles a sensor for the rate-distortion curves; 0: no curves")] = 4
    sensors: Annotated[tuple[str, ...], tyro.conf.arg(help="measure these alone, for example S2L2A S1RTC "
                                                           "(default: all)")] = ()  # fmt: skip
    equal_bits: Annotated[bool, tyro.conf.arg(help="compare codecs at the bytes that codes take, 2 to 64 a block: "
                                                   "the longest part")] = True  # fmt: skip
    draws: Annotated[int, tyro.conf.arg(help="patches of the training sampler a sensor that the second KLT at equal "
                                             "bits is fitted on; 0: no second KLT")] = 256  # fmt: skip
    threads: Annotated[int | None, tyro.conf.arg(help="threads (default: torch's own)")] = None


def evaluate(options: Options) -> None:
    """Do it; ValueError or FileNotFoundError, in one line, for bad input."""
    import torch

    from model.evaluation.report import markdown, write
    from model.evaluation.study import Settings, Study, cover_labels
    from model.sensors import SENSORS
    from model.terramind import TerraMind, load_tokenizer
    from model.training.recipe import RECIPES
    from model.training.sources.images import load_images
    from model.weights import load_weights

    for key, least in (("batch", 1), ("resamples", 1), ("rate_tiles", 0), ("terramind_steps", 1), ("threads", 1)):
        value = getattr(options, key)
        if value is not None and value < least:
            raise ValueError(f"--{key.replace('_', '-')} {value} must be at least {least}")
    if options.terramind_steps > 1000:
        raise ValueError(f"--terramind-steps {options.terramind_steps}: its schedule has 1000")
    if options.draws < 0:
        raise ValueError(f"--draws {options.draws} must be at least 0")
    if unknown := sorted(set(options.sensors) - set(SENSORS)):
        raise ValueError(f"--sensors {unknown[0]}: no such sensor; there are {', '.join(SENSORS)}")
    if not options.data.is_dir():
        raise FileNotFoundError(f"no folder {options.data}: give the one that the data lie in")
    listing = options.listing or RECIPES / "nano_data.yaml"
    if not listing.is_file():
        raise FileNotFoundError(f"no listing {listing}: give a YAML listing of rasters")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file: give a folder")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    vae = load_weights(options.weights)
    if 8 % vae.scale_factor:
        raise ValueError(f"{options.weights}: latents of {vae.scale_factor} pixels; the 8x8 baselines need 8 or fewer")
    tokenizers = {
        name: TerraMind(load_tokenizer(path, name), SENSORS[name], options.terramind_steps)
        for name, path in options.terramind.items()
    }
    settings = Settings(
        options.batch, options.resamples, options.seed, options.rate_tiles, test=options.test,
        sensors=options.sensors, draws=options.draws,
    )  # fmt: skip
    name = vae.meta.name if vae.meta is not None else Path(options.weights).stem
    images = load_images(listing, options.data)
    pack = packed if options.equal_bits else None
    report = Study(name, vae, images, settings, tokenizers, cover_labels(listing, options.data), pack=pack).run()
    paths = write(report, options.out)
    print(markdown(report))
    print("written: " + ", ".join(str(path) for path in paths))


def packed(codes: NDArray[np.int16]) -> int:
    """Bytes of codes (channels, h, w) as a chunk of a cube."""
    from eocube.store.shard_codec import ShardCodec

    shape = (1, *codes.shape)
    data = ShardCodec(shape, shape, "int16", -32768, keep_empty=True, packing="byte planes").encode(codes[None])
    return 0 if data is None else len(data)


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad input."""
    try:
        evaluate(options)
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
