"""Measures written weights: held-out figures of what is read back from the file, and steps for storing codes.

`python -m model.training.eo_vae.measured WEIGHTS --data FOLDER --out FILE` writes weights with what was measured in
their metadata, and a JSON of the figures beside them. The tensors and their hash stay as they are. With `--test`
the test places are scored too: once a release, after everything is chosen.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from model.eo_vae import EOVAE
from model.sensors import SENSORS, Floats, TrainedSensor
from model.training.eo_vae.code_steps import MOST_TILES, CodeSteps, code_steps, training_tiles
from model.training.eo_vae.evaluate import Evaluator, ratios
from model.training.sources.images import Image, load_images
from model.weights import load_weights, save_weights
from model.weights_meta import SensorMeta

log = logging.getLogger(__name__)


def measure(
    source: str | Path, out: Path, evaluator: Evaluator, images: Sequence[Image], *, seed: int = 0,
    test: Evaluator | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Score weights as they are in their file, give them steps, and write them to `out`.

    Args:
        source: what `load_weights` takes.
        out: safetensors file; may be the source.
        evaluator: of the validation places.
        images: of which the training ones give the steps.
        seed: of the noise that tells the decoder's gains.
        test: of the test places; None leaves them unopened, and no figures of them in the metadata.

    Returns:
        The metrics among their metadata, `held_out` and `test` new.

    Raises:
        ValueError: weights without metadata.
    """
    vae = load_weights(source)
    if vae.meta is None:
        raise ValueError(f"weights {str(source)!r} carry no metadata: save them with model.weights.save_weights first")
    table = evaluator.table(vae)
    kept = {name: value for name, value in vae.meta.metrics.items() if name != "test"}
    metrics = {**kept, "held_out": table} | ({} if test is None else {"test": test.table(vae)})
    meta = replace(vae.meta, metrics=metrics, sensors=stepped(vae, images, seed=seed))
    halves = all(torch.equal(v, v.half().float()) for v in vae.decoder.up.state_dict().values())
    save_weights(vae, out, meta, torch.float16 if halves else torch.float32)
    out.with_suffix(".json").write_text(json.dumps(metrics, indent=1) + "\n")
    log.info("read back, RMSE and SAM over the KLT's: %s", ratios(table))
    return metrics


def stepped(vae: EOVAE, images: Sequence[Image], *, seed: int = 0) -> dict[str, SensorMeta]:
    """The weights' sensors, with code steps where a training image has their bands."""
    sensors = {} if vae.meta is None else dict(vae.meta.sensors)
    known = [SENSORS[name] for name in sensors if name in SENSORS]
    steps = steps_by_sensor(vae, known, images, seed=seed)
    for name in sensors:
        if name not in steps:
            log.warning("%s: no training image has its bands: no steps, latents of it cannot be stored as codes", name)
            continue
        found = steps[name]
        sensors[name] = replace(sensors[name], code_steps=found.steps, code_error=found.error)
        log.info("%s: RMS error of codes by band %s", name, ", ".join(f"{e:.3g}" for e in found.error))
    return sensors


def steps_by_sensor(
    vae: EOVAE, sensors: Sequence[TrainedSensor], images: Sequence[Image], *, seed: int = 0, most: int = MOST_TILES
) -> dict[str, CodeSteps]:
    """Sensor -> code steps, of one level for all sensors of a unit; those without a training image are left out.

    `vae` is in eval mode, its batch norm calibrated; up to `most` training places of each sensor are looked at.
    """
    units: dict[str, list[tuple[TrainedSensor, list[Floats]]]] = {}
    for sensor in sensors:
        tiles = training_tiles(images, sensor, most)
        if tiles:
            units.setdefault(sensor.unit, []).append((sensor, tiles))
    found: dict[str, CodeSteps] = {}
    for sets in units.values():
        for (sensor, tiles), steps in zip(sets, code_steps(vae, sets, seed=seed), strict=True):
            found[sensor.name] = steps
            log.info(
                "%s: %d places, code steps %.3g to %.3g", sensor.name, len(tiles), min(steps.steps), max(steps.steps)
            )
    return found


@dataclass(frozen=True, slots=True)
class Options:
    """Score weights as they are read back, and give them the steps in which their latents are stored as codes."""

    weights: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="nano, a path, a URL or hf://owner/name")]
    data: Annotated[Path, tyro.conf.arg(help="folder that the listing's paths are relative to")]
    out: Annotated[Path, tyro.conf.arg(help="safetensors file to write; may be the weights' own")]
    listing: Annotated[Path | None, tyro.conf.arg(help="YAML listing of rasters (default: the recipe nano's)")] = None
    seed: int = 0
    test: Annotated[bool, tyro.conf.arg(help="score the test places too: for a release, once")] = False


def main(options: Options) -> None:
    """Measure and write."""
    listing = options.listing or Path(__file__).parents[1] / "recipes" / "nano_data.yaml"
    images = load_images(listing, options.data)
    test = Evaluator.build(images, test=True) if options.test else None
    if test is not None and not test.places:
        raise ValueError(f"{listing.name} lists no test place: mark some of it held_out: true and test: true")
    measure(options.weights, options.out, Evaluator.build(images), images, seed=options.seed, test=test)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main(tyro.cli(Options))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
