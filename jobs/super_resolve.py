"""Super-resolve a cube: latents at 10 m in, a cube at 2.5 m (or a GeoTIFF) out. `--help` lists the options."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from eocube.commands.help_page import Page
from eocube.commands.parsing import guarded, parse
from eocube.net.storage_options import parse_options
from eocube.run.arguments import box_of, number, retryable
from eocube.run.asked import Running, Showing


@dataclass(frozen=True, slots=True)
class Options:
    """Make a finer cube of a cube of EO-VAE latents: its parent's decoder decodes it.

    Exit 0 when every window of the parent that is ok has its finer ones, 3 when some can be tried again.
    """

    cube: Annotated[str, tyro.conf.Positional]
    """Path or URL of a cube of sensor RGBN, with latents of the encoder that the weights were trained for."""
    out: str
    """Where the result goes: .zarr a cube, .tif a GeoTIFF of decoded reflectance (one time)."""
    weights: str = "sr-nano"
    """The shipped ones (of `nano2`'s latents), or what `jobs/train_sr.py` wrote: a path, a URL or hf://owner/name."""
    steps: int = 8
    """Steps of the sampler."""
    method: str = "dpmpp"
    """ddim, heun or dpmpp; mean takes no sample but the regression's mean: nothing invented, less sharp."""
    seed: int = 0
    """Of the noise, which is a function of it and the ground alone."""
    samples: int = 1
    """With 2 or more, a GeoTIFF beside the result (NAME.samples.tif) has their mean and spread at each pixel."""
    consistent: bool = False
    """Pull every step towards pixels that, averaged back by the sensor's MTF, are the cube's own decoded ones; those of
    a GeoTIFF are so exactly. Ten times the work and more; it brings up what the codec got wrong at the finest scale."""
    bbox: tuple[str, ...] = ()
    """West south east north, in degrees: only windows of the cube that touch it."""
    time: str | None = None
    """An index, a date or A/B; all times without it."""
    retry: str | None = None
    """Do just the windows again that ended so: read_failed, encode_failed."""
    plan: bool = False
    """Print what will be made and stop."""
    engine: str = "auto"
    """auto, local or ray. local: one worker, on threads of this process. ray: actors in processes of their own, which
    are replaced where a file crashes or hangs one. auto, the default: local for up to 1000 windows on one machine,
    without RAY_ADDRESS, --actors or several GPUs, and where the run before did not die; else ray."""
    actors: int | None = None
    """Actors. Without it one a GPU, or one a node without GPUs."""
    gpus_per_actor: float | None = None
    """Share of a GPU an actor takes. Without it 1 where torch sees a GPU here, else 0."""
    unit_timeout: str = "3600"
    """Seconds that an actor may take over a shard; then it is ended, and the shard is done again."""
    log_dir: str | None = None
    """Where the run's structured log goes: a local folder. Without it into the cube."""
    storage_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the target, and of the cube where --source-options does not say otherwise."""
    source_options: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """fsspec options of the cube that is read, where they differ."""
    quiet: bool = False
    """Print only errors and the last line."""


PAGE = Page(
    (
        (
            "pixels at 2.5 m of one date, nothing invented",
            "python jobs/super_resolve.py cube.zarr --out fine.tif --time 0 --method mean",
        ),
        (
            "a cube at 2.5 m, with mean and spread of draws",
            "python jobs/super_resolve.py cube.zarr --out fine.zarr --samples 8",
        ),
    ),
    {
        "What": ("out", "time", "bbox", "method", "samples", "steps", "consistent", "weights"),
        "The run": ("plan", "retry"),
    },
    ("out", "time", "bbox", "method", "samples", "steps", "consistent", "weights", "plan", "retry"),
)


def main(argv: Sequence[str]) -> int:
    """Run it; exit status 2 and one line for bad input."""
    options = parse(Options, argv, "super_resolve.py", PAGE)

    def command() -> int:
        from eocube.run.super_resolve_job import Wanted, super_resolve

        wanted = Wanted(
            options.cube, options.out, options.weights, options.steps, options.method, options.seed, options.samples,
            options.consistent, box_of(options.bbox, "--bbox") if options.bbox else (), options.time,
        )  # fmt: skip
        again = () if options.retry is None else tuple(word.strip() for word in options.retry.split(","))
        running = Running(
            engine=options.engine, actors=options.actors, gpus_per_actor=options.gpus_per_actor,
            log_dir=options.log_dir, unit_timeout=number(options.unit_timeout, "--unit-timeout"),
            retry=tuple(retryable(word) for word in again),
            storage_options=parse_options(options.storage_options),
            source_options=parse_options(options.source_options, "--source-options"),
        )  # fmt: skip
        return super_resolve(wanted, running, Showing(plan=options.plan, quiet=options.quiet)).exit

    return guarded(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
