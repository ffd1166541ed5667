"""Evaluate weights beside their baselines, on a listing's held-out places or on TerraMesh's shards.

`python jobs/evaluate.py --weights nano --data DATA --out FOLDER`, or `--terramesh s3://bucket/TerraMesh/val`; of
super-resolution `--task sr --pairs STORE --weights W` (jobs/evaluate_sr.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from eocube.commands.help_page import Page
from eocube.commands.parsing import parse
from model.training.job_options import run_job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.eo_vae import EOVAE
    from model.evaluation.study import Study
    from model.evaluation.terramesh_study import TerraMeshStudy
    from model.terramind import TerraMind


@dataclass(frozen=True, slots=True)
class Options:
    """Figures of weights and baselines on held-out places (--data) or TerraMesh (--terramesh): JSON and Markdown, of
    held-out places plots of rate and distortion too."""

    out: Annotated[Path, tyro.conf.arg(help="folder for report.json, report.md and the plots")]
    data: Annotated[Path | None, tyro.conf.arg(help="folder that the listing's paths are relative to")] = None
    terramesh: Annotated[
        str | None,
        tyro.conf.arg(
            help="instead of --data: TerraMesh's shards, a folder or URL with one folder a modality, or a "
            "pattern such as val/[S2L2A,S1RTC]/majortom_shard_{000001..000008}.tar"
        ),
    ] = None
    modalities: Annotated[
        tuple[str, ...], tyro.conf.arg(help="of TerraMesh: what is measured (default: as published)")
    ] = ("S2L2A", "S1RTC")
    limit: Annotated[int | None, tyro.conf.arg(help="of TerraMesh: the first so many samples of each modality")] = None
    side: Annotated[int, tyro.conf.arg(help="of TerraMesh: pixels that patches are resized to (published: 256)")] = 256
    device: Annotated[str, tyro.conf.arg(help="of TerraMesh: auto, cpu or cuda")] = "auto"
    corrected: Annotated[bool, tyro.conf.arg(help="of TerraMesh: correct the data as for the published EO-VAE*")] = (
        False
    )
    sensor: Annotated[Path | None, tyro.conf.arg(help="YAML of a sensor of your own. --data is then the folder of "
                                                 "its GeoTIFFs, and the blocks of ground that finetune.py holds out "
                                                 "are measured")] = None  # fmt: skip
    recipe: Annotated[str | None, tyro.conf.arg(help="of --sensor: the recipe that it was finetuned by, which says "
                                                "what is held out (default: finetune.py's own)")] = None  # fmt: skip
    weights: Annotated[str, tyro.conf.arg(help="a shipped name, a path, a URL or hf://owner/name")] = "nano2"
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


PAGE = Page(
    (
        (
            "beside baselines, on a listing's held-out places",
            "python jobs/evaluate.py --weights nano2 --data DATA --out report",
        ),
        (
            "weights of a sensor of your own, on the ground that finetune.py held out",
            "python jobs/evaluate.py --weights my.safetensors --sensor my.yaml --data my_tiffs --out report",
        ),
        (
            "super-resolution (options of its own: --task sr --help)",
            "python jobs/evaluate.py --task sr --pairs pairs.zarr --out report",
        ),
    ),
    {"What": ("weights", "data", "sensor", "listing", "terramesh", "modalities", "sensors", "test", "out")},
    ("out", "data", "sensor", "terramesh", "weights", "listing", "sensors", "test", "limit", "threads"),
)


def evaluate(options: Options) -> None:
    """Do it; ValueError or FileNotFoundError, in one line, for bad input."""
    import torch

    from model.evaluation.report import markdown, write
    from model.weights import load_weights

    if (options.data is None) == (options.terramesh is None):
        raise ValueError("give one of --data (a listing's folder) and --terramesh (shards)")
    least_of = {
        "batch": 1,
        "resamples": 1,
        "rate_tiles": 0,
        "terramind_steps": 1,
        "threads": 1,
        "limit": 1,
        "side": 11,
        "draws": 0,
    }
    for key, least in least_of.items():
        value = getattr(options, key)
        if value is not None and value < least:
            raise ValueError(f"--{key.replace('_', '-')} {value} must be at least {least}")
    if options.terramind_steps > 1000:
        raise ValueError(f"--terramind-steps {options.terramind_steps}: its schedule has 1000")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out {options.out} is a file: give a folder")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.sensor is not None:
        _own_sensor(options)
        return
    run = _terramesh if options.data is None else _held_out
    report = run(options, load_weights(options.weights)).run()
    paths = write(report, options.out)
    print(markdown(report))
    print("written: " + ", ".join(str(path) for path in paths))


def _name(options: Options, vae: EOVAE) -> str:
    return vae.meta.name if vae.meta is not None else Path(options.weights).stem


def _tokenizers(options: Options) -> dict[str, TerraMind]:
    from model.terramind import TerraMind, load_tokenizer

    return {
        name: TerraMind(load_tokenizer(path, name), name, options.terramind_steps)
        for name, path in options.terramind.items()
    }


def _held_out(options: Options, vae: EOVAE) -> Study:
    """Of a listing's places."""
    from model.evaluation.study import Settings, Study, cover_labels
    from model.sensors import SENSORS
    from model.training.recipe import RECIPES
    from model.training.sources.images import load_images

    assert options.data is not None
    for key in ("limit", "corrected"):
        if getattr(options, key):
            raise ValueError(f"--{key} goes with --terramesh: leave it out, or give shards")
    if not options.data.is_dir():
        raise FileNotFoundError(f"no folder {options.data}: give the one that the data lie in")
    listing = options.listing or RECIPES / "nano_data.yaml"
    if not listing.is_file():
        raise FileNotFoundError(f"no listing {listing}: give a YAML listing of rasters")
    if 8 % vae.scale_factor:
        raise ValueError(f"{options.weights}: latents of {vae.scale_factor} pixels; the 8x8 baselines need 8 or fewer")
    if unknown := sorted(set(options.sensors) - set(SENSORS)):
        raise ValueError(f"--sensors {unknown[0]}: no such sensor; there are {', '.join(SENSORS)}")
    settings = Settings(
        options.batch, options.resamples, options.seed, options.rate_tiles, test=options.test,
        sensors=options.sensors, draws=options.draws,
    )  # fmt: skip
    baselines = _tokenizers(options)
    images, labels = load_images(listing, options.data), cover_labels(listing, options.data)
    pack = packed if options.equal_bits else None
    return Study(_name(options, vae), vae, images, settings, baselines, labels, pack=pack)


def _own_sensor(options: Options) -> None:
    """Of the rasters of a sensor of one's own: figures on the ground that finetuning holds out."""
    # The jobs are part of the repository, not of the installed package.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from jobs.finetune import Options as Training
    from jobs.finetune import opened, planned
    from model.evaluation import own_sensor
    from model.training.eo_vae.adapt import known_sensors
    from model.weights import load_weights

    assert options.sensor is not None
    if options.data is None or options.test:
        raise ValueError("--sensor goes with --data, the folder of its rasters, and without --terramesh and --test")
    vae = load_weights(options.weights)
    # The same ground is held out as by a finetuning of the same rasters: its split has a seed of its own.
    asked = Training(
        data=str(options.data), out=str(options.out / "unused.safetensors"), sensor=options.sensor,
        listing=options.listing, init=options.weights, name="evaluation", recipe=options.recipe,
    )  # fmt: skip
    plan = planned(asked)
    assert plan.sensor is not None
    known = known_sensors(vae.meta)
    if plan.sensor.name in known:  # as it was trained: its statistics then, which the YAML may not have
        trained = known[plan.sensor.name]
        if trained.bands != plan.sensor.bands:
            raise ValueError(
                f"{options.weights} know {plan.sensor.name} with bands {', '.join(trained.bands)}, not "
                f"{', '.join(plan.sensor.bands)}"
            )
        plan = replace(plan, sensor=replace(trained, gsd=plan.sensor.gsd), measure=False)
    study = own_sensor.measure(vae, opened(plan, vae), _name(options, vae))
    paths = own_sensor.write(study, options.out)
    print(own_sensor.markdown(study))
    print("written: " + ", ".join(str(path) for path in paths))


def _terramesh(options: Options, vae: EOVAE) -> TerraMeshStudy:
    """Of TerraMesh's shards."""
    from model.evaluation.terramesh_study import MeshSettings, TerraMeshStudy, device_named

    assert options.terramesh is not None
    if options.listing is not None or options.test:
        raise ValueError(f"--{'test' if options.test else 'listing'} goes with --data: leave it out")
    settings = MeshSettings(
        options.batch, options.resamples, options.seed, options.side, options.limit, options.corrected,
        device_named(options.device).type,
    )  # fmt: skip
    return TerraMeshStudy(
        _name(options, vae), vae, options.terramesh, options.modalities, settings, _tokenizers(options)
    )


def packed(codes: NDArray[np.int16]) -> int:
    """Bytes of codes (channels, h, w) as a chunk of a cube."""
    from eocube.store.shard_codec import ShardCodec

    shape = (1, *codes.shape)
    data = ShardCodec(shape, shape, "int16", -32768, keep_empty=True, packing="byte planes").encode(codes[None])
    return 0 if data is None else len(data)


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad input."""
    return run_job(lambda: evaluate(options))


def command(arguments: Sequence[str]) -> int:
    """The command line: `--task sr` has options of its own, `--task reconstruction` and no task are `Options`."""
    given = list(arguments)
    task = "reconstruction"
    for place, word in enumerate(given):
        if word == "--task" or word.startswith("--task="):
            task = word.partition("=")[2] or (given[place + 1] if place + 1 < len(given) else "")
            del given[place : place + (1 if "=" in word else 2)]
            break
    if task == "sr":
        # The jobs are part of the repository, not of the installed package.
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from jobs import evaluate_sr

        return evaluate_sr.main(parse(evaluate_sr.Options, given, "evaluate.py --task sr", evaluate_sr.PAGE))
    if task != "reconstruction":
        print(f"error: --task {task}: choose sr or reconstruction", file=sys.stderr)
        return 2
    return main(parse(Options, given, "evaluate.py", PAGE))


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]))
