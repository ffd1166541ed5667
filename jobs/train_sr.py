"""Train super-resolution: `python jobs/train_sr.py --recipe sr_nano --pairs STORE --out sr-nano.safetensors`.

STORE is what `jobs/encode_pairs.py` wrote. Latents are read as they are stored: no pixel is touched but by `--space
pixel` and for the figures of held-out places, whose pixels the store may hold (`--pixels`).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from eocube.commands.help_page import Page
from eocube.commands.parsing import parse
from model.training.job_options import RunOptions, run_job

if TYPE_CHECKING:
    from torch import Tensor

    from eocube.net.redaction import SecretOptions
    from eocube.pairs.pair_windows import PairWindows
    from model.eo_vae import EOVAE
    from model.training.checkpoint import Keeper
    from model.training.distributed import Team
    from model.training.ldm.pairs import PairBatch
    from model.training.ldm.recipe import SRRecipe
    from model.training.ldm.train import SRData
    from model.training.ldm.validation import Judge
    from model.training.ray_train import Run

Arg = tyro.conf.arg
CONDITIONS = {"native": "lr", "upsampled": "lr_up", "sharpened": "lr_sharp"}
"""The store's array that a network's conditioning reads."""
MOST_HELD = 16
"""Held-out pairs of a place and side that are scored, where `--held` says no other number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(RunOptions):
    """Train a super-resolver from stored pairs, under Ray Train or in this process (`--workers 0`)."""

    pairs: Annotated[str, Arg(help="pair store of jobs/encode_pairs.py: a path or URL")]
    out: Annotated[str, Arg(help="safetensors file to write, a path or fsspec URL; figures and pictures beside it")]
    recipe: Annotated[str | None, Arg(help="sr_nano, sr_native, sr_pixel, sr_published, or a YAML file (default: "
                                          "sr_nano, with --space pixel sr_pixel)")] = None  # fmt: skip
    name: Annotated[str, Arg(help="of the run and in the weights (default: the file's)")] = field(default="")
    space: Annotated[Literal["latent", "pixel"] | None, Arg(help="what is diffused; must be the recipe's")] = None
    autoencoder: Annotated[Literal["flux2"] | None, Arg(help="encode the store's pixels (RGB) with diffusers' "
                                                        "AutoencoderKLFlux2 instead")] = None  # fmt: skip
    autoencoder_weights: Annotated[Path | None, Arg(help="of --autoencoder: a diffusers folder or its file")] = None
    steps: Annotated[int | None, Arg(help="steps in all, shared out over the recipe's stages")] = None
    minutes: Annotated[float | None, Arg(help="minutes in all, shared out likewise, in steps' stead")] = None
    memory: Annotated[float, Arg(help="GiB: a store's split that is smaller is kept in memory, a larger one streamed, "
                                     "each pair once an epoch")] = 4.0  # fmt: skip
    held: Annotated[int, Arg(help="held-out pairs of a place and side that are scored: the first so many (in pixel "
                                  "space a pair takes minutes of a core)")] = MOST_HELD  # fmt: skip
    storage_options: Annotated[tuple[str, ...], Arg(help="fsspec options of the store: JSON, name=value or "
                                                    "@file.json")] = ()  # fmt: skip


PAGE = Page(
    (
        (
            "on latents of stored pairs",
            "python jobs/train_sr.py --recipe sr_nano --pairs pairs.zarr --out sr-nano.safetensors --workers 0",
        ),
        ("go on with a run that was ended", "python jobs/train_sr.py ... --resume"),
    ),
    {"What": ("pairs", "out", "recipe", "space", "name"), "How long": ("steps", "minutes", "resume")},
    ("pairs", "out", "recipe", "space", "name", "steps", "minutes", "resume", "workers", "threads"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What every worker is told."""

    recipe: SRRecipe
    pairs: str
    out: str
    name: str
    threads: int | None
    memory: float
    flux2: Path | None
    options: SecretOptions | None
    held: int = MOST_HELD


def planned(options: Options) -> Plan:
    """The options as a plan. ValueError for what contradicts itself."""
    from eocube.net.storage_options import parse_options
    from model.training.checkpoint import absolute, check_out
    from model.training.ldm.recipe import SRRecipe

    recipe = SRRecipe.load(options.recipe or ("sr_pixel" if options.space == "pixel" else "sr_nano"))
    if options.space is not None and options.space != recipe.network.space:
        raise ValueError(f"--space {options.space}: recipe {options.recipe} is of {recipe.network.space} space")
    if (options.autoencoder is None) != (options.autoencoder_weights is None):
        raise ValueError("--autoencoder flux2 and --autoencoder-weights PATH go together")
    for key in ("steps", "minutes", "threads", "held"):
        if (value := getattr(options, key)) is not None and value <= 0:
            raise ValueError(f"--{key} {value} must be above 0")
    return Plan(
        recipe.limited(options.steps, options.minutes), absolute(options.pairs), check_out(options.out),
        options.name or Path(options.out).stem, options.threads, options.memory, options.autoencoder_weights,
        parse_options(options.storage_options), options.held,
    )  # fmt: skip


class StoreRows:
    """The rows of one split as `model.training.ldm.pairs.Rows`: of latents, pixels, or what another encoder makes."""

    def __init__(
        self, windows: PairWindows, arrays: tuple[str, str], encode: Callable[[Tensor], Tensor] | None
    ) -> None:
        tables, rows = windows.store.tables, windows.rows
        self.windows, self.arrays, self._encode = windows, arrays, encode
        self.places = [f"{p} {lev}" for p, lev in zip(tables["place"][rows], tables["level"][rows], strict=True)]
        self.resolutions = [float(metres) for metres in tables["resolution"][rows]]
        self.sides = [int(side) for side in tables["side"][rows]]

    def __len__(self) -> int:
        return len(self.windows)

    def read(self, rows: Sequence[int]) -> PairBatch:
        """Those rows."""
        return self.batch([self.windows.read(k) for k in rows])

    def batch(self, pairs: Sequence[Mapping[str, Any]]) -> PairBatch:
        """Pairs as `PairWindows` gives them."""
        import numpy as np
        import torch

        from model.training.ldm.pairs import PairBatch

        low, high = (torch.from_numpy(np.stack([pair[name] for pair in pairs])) for name in self.arrays)
        if self._encode is not None:
            low, high = self._encode(low), self._encode(high)
        return PairBatch(low, high)


class StoreStream:
    """A store larger than memory as the loop's source: shard by shard, each pair once an epoch, resumable."""

    def __init__(self, rows: StoreRows) -> None:
        self._rows = rows

    def draw(self, batch_size: int, patch: int) -> PairBatch:
        """The next batch of the store's own order."""
        drawn = self._rows.windows.draw(batch_size)
        return self._rows.batch([{n: drawn[n][k] for n in self._rows.arrays} for k in range(batch_size)])

    def steps_per_epoch(self, batch_size: int) -> int | None:
        """Batches of this worker's share."""
        return self._rows.windows.batches_per_epoch(batch_size)

    def state_dict(self) -> dict[str, Any]:
        """The windows' own."""
        return self._rows.windows.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        self._rows.windows.load_state_dict(state)


def opened(plan: Plan, rank: int = 0, world: int = 1, *, check: bool = False) -> SRData:
    """The store's pairs as the recipe needs them; with `check` nothing but tables is read. ValueError in one line where
    they do not fit."""
    from eocube.errors import EocubeError

    try:
        return _opened(plan, rank, world, check)
    except EocubeError as error:
        raise ValueError(str(error)) from None


def _opened(plan: Plan, rank: int, world: int, check: bool) -> SRData:
    from eocube.pairs.pair_windows import PairWindows
    from model.sensors import SENSORS
    from model.super_resolution import SRMeta
    from model.training.ldm.flux2 import COLOURS_KEPT, Flux2
    from model.training.ldm.pairs import HeldRows, PairSource
    from model.training.ldm.train import SRData
    from model.weights import load_weights

    sizes, recipe = plan.recipe.network, plan.recipe
    flux = None if plan.flux2 is None else Flux2.load(plan.flux2)
    pixels = sizes.space == "pixel" or flux is not None
    low = "lr_image" if pixels else CONDITIONS[sizes.conditioning]
    arrays = (low, "hr_image" if pixels else "hr")
    windows = PairWindows(
        plan.pairs, "train", recipe.seed, arrays=_there(plan.pairs, arrays, plan.options), rank=rank, world=world,
        storage_options=plan.options,
    )  # fmt: skip
    about = windows.store.document
    if windows.store.scale != sizes.scale:
        raise ValueError(f"{plan.pairs} holds pairs of scale {windows.store.scale}, the recipe's are of {sizes.scale}")
    encoder = about["encoder"]
    if encoder is None and not pixels:
        raise ValueError(f"{plan.pairs} was made of cubes and names no encoder of its own: train on encoded pairs")
    bands = tuple(encoder["bands"])
    encode = None if flux is None else flux.encoder([bands.index(b) for b in COLOURS_KEPT])
    rows = StoreRows(windows, arrays, encode)
    if not check:
        _same_channels(rows, sizes.channels, plan.pairs)
    vae: EOVAE | None = None
    wavelengths: tuple[float, ...] = ()
    if not pixels:
        vae = load_weights(encoder["weights"])
        if vae.meta is None or vae.meta.sha256 != encoder["sha256"]:
            raise ValueError(
                f"{plan.pairs} was encoded by {encoder['name']} {encoder['sha256'][:12]}, {encoder['weights']} "
                "here are others: encode the pairs again with jobs/encode_pairs.py"
            )
        wavelengths = vae.meta.sensors[encoder["sensor"]].wavelengths
    mtf = tuple(float(v) for v in about["source"].get("mtf", {}).values())
    meta = SRMeta(
        plan.name, bands, None if pixels else {k: encoder[k] for k in ("weights", "sha256", "bands", "sensor")},
        tuple(zip(about["resolutions"]["lr"], about["resolutions"]["hr"], strict=True)), mtf,
        split={"pairs": about["splits"], "train": sorted({place.split()[0] for place in rows.places})},
    )  # fmt: skip
    if check:
        return SRData(rows, None, meta)
    size = len(rows) * windows.store.unit_bytes(arrays) // windows.store.per_unit
    held: Any = rows
    if size <= plan.memory * 2**30 or flux is not None:
        held = HeldRows.of(rows)
        windows.close()
        source: Any = PairSource(held, recipe.seed, recipe.balance, (rank, world))
    else:
        source = StoreStream(rows)
    judge = None if flux is not None else _judge(plan, vae, bands, mtf, arrays, SENSORS)
    return SRData(held, judge, meta, vae, wavelengths, source)


def _there(pairs: str, arrays: tuple[str, str], options: SecretOptions | None) -> tuple[str, str]:
    """The arrays, once the store is known to have them."""
    from eocube.pairs.pair_store import PairStore

    known = PairStore.open(pairs, storage_options=options).arrays
    for name in arrays:
        if name not in known:
            how = {"lr_up": "--upsampled", "lr_sharp": "--sharpened"}.get(name, "--pixels")
            raise ValueError(
                f"{pairs} has no {name}, which the recipe needs: encode it with jobs/encode_pairs.py {how}"
            )
    return arrays


def _same_channels(rows: StoreRows, channels: int, pairs: str) -> None:
    found = rows.read([0]).target.shape[1]
    if found != channels:
        raise ValueError(f"{pairs} holds {found} channels, the recipe's network is of {channels}: another recipe")


def _judge(
    plan: Plan, vae: EOVAE | None, bands: tuple[str, ...], mtf: tuple[float, ...], arrays: tuple[str, str],
    sensors: Mapping[str, Any],
) -> Judge | None:  # fmt: skip
    """Who scores the places held out; None where the store has none, or not their pixels."""
    import torch

    from eocube.errors import InputError
    from eocube.pairs.pair_windows import PairWindows
    from model.training.ldm.validation import HeldOut, Judge, reflectance_of

    wanted = tuple(dict.fromkeys((*arrays, "lr_image", "hr_image")))
    try:
        windows = PairWindows(plan.pairs, "val", arrays=wanted, storage_options=plan.options)
    except InputError:
        return None
    groups: dict[tuple[str, int], list[Any]] = {}
    for pair in windows:
        of = groups.setdefault((f"{pair['place']}_{pair['level']}", int(pair["side"])), [])
        if len(of) < plan.held:
            of.append(pair)
    windows.close()
    held = [
        HeldOut(
            place, *(torch.from_numpy(np_stack([p[name] for p in of])) for name in (*arrays, "lr_image", "hr_image"))
        )
        for (place, _), of in groups.items()
    ]
    decode = reflectance_of(vae, sensors["RGBN"].subset(bands)) if vae is not None else None
    return Judge(held, decode, bands, mtf, plan.recipe.network.scale)


def np_stack(parts: Sequence[Any]) -> Any:
    """Arrays stacked, contiguous."""
    import numpy as np

    return np.stack(parts)


def work(plan: Plan, url: str, keeper: Keeper, team: Team) -> None:
    """What one worker does, whether Ray started it or not."""
    import torch

    from model.training.checkpoint import delivered, upload
    from model.training.ldm.train import train_sr
    from model.training.tracking import Tracker

    if plan.threads is not None:
        torch.set_num_threads(plan.threads)
    share = (0, 1) if plan.recipe.division == "slices" else (team.rank, team.world)
    data = opened(plan, *share)
    tracker = Tracker(url, plan.name, {"recipe": "sr"}) if team.leads else None
    try:
        with delivered(plan.out, leads=team.leads) as out:
            train_sr(plan.recipe, data, out, team=team, keeper=keeper, tracker=tracker)
            if team.leads:  # `out` may be on a worker's own disk: the storage has it as well
                upload(url, "final", lambda folder: _copy(out, folder))
    finally:
        data.close()
        if tracker is not None:
            tracker.close()


def _copy(out: Path, folder: Path) -> None:
    for path in (out, out.with_suffix(".json")):
        shutil.copyfile(path, folder / path.name)


def _ray_worker(options: Mapping[str, Any], keeper: Keeper) -> None:
    from model.training.ray_train import team_of_ray

    work(options["plan"], options["url"], keeper, team_of_ray("ddp"))


def run(options: Options) -> None:
    """Check what can be checked, claim the run's name and do it."""
    from model.training.ray_train import fit

    plan = planned(options)
    where: Run = replace(options, name=plan.name).where()
    opened(plan, check=True).close()  # what cannot be is said now
    where.claim({"config": plan.recipe.network.to_dict(), "pairs": plan.pairs, "seed": plan.recipe.seed})
    if where.workers == 0:
        work(plan, where.url, where.store(), where.team())
    else:
        fit(_ray_worker, {"plan": plan, "url": where.url}, where)


def main(options: Options) -> int:
    """Run it; exit status 2 and one line for bad input."""
    from eocube.errors import EocubeError

    return run_job(lambda: run(options), (EocubeError,))


if __name__ == "__main__":
    sys.exit(main(parse(Options, sys.argv[1:], "train_sr.py", PAGE)))
