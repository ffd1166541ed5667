"""Checks the main job's request, searches its scenes and freezes its plans, one a zone."""

from __future__ import annotations

import difflib
import importlib
import math
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eocube.errors import Exit as Exit  # told by runs; where most look for it
from eocube.errors import InputError
from eocube.ground.boxes import BBox, Interval, boxes_said, covers, parse_bbox, parse_interval
from eocube.ground.grid import grids_for
from eocube.ground.regions import Region
from eocube.net.network import NetworkLimits
from eocube.net.redaction import one_line
from eocube.plan.plan import Plan, build_plan
from eocube.products.documents import qualities_of, storages_of
from eocube.products.registry import DEFAULT, WEIGHTS, kinds
from eocube.products.spec import Actor, Product
from eocube.run.asked import Running, Selection, Showing
from eocube.run.numerics import numerics_of_actors
from eocube.scenes.search import drop_cloudy, search
from eocube.sensors import get_sensor
from eocube.sensors.sensor import Sensor
from eocube.store.receipts import State
from model.chip import may_have_gpu, multiplies_bf16

SHARD_PX = 1920
"""Pixels along a shard, where whole cores make it up: 19.2 km at 10 m, whatever the product's cells."""
PRECISIONS = ("auto", "fp16", "bf16", "fp32")


@dataclass(frozen=True, slots=True)
class Request:
    """A checked request: what decides which cube is made, and how."""

    sensor: Sensor
    boxes: tuple[BBox, ...]
    extent: tuple[BBox, ...]
    """The ground that arrays are laid out over; empty for that of `boxes`."""
    interval: Interval
    catalog: str
    weights: str
    resolution: int
    max_cloud: float | None
    precision: str
    storage: str | None
    """None where nobody said and no product has been planned, and of kinds that leave no choice."""
    out: str
    retry: tuple[State, ...]
    verify_fraction: float
    network: NetworkLimits
    unit_timeout: float
    memory: int | None
    """Bytes that each actor's units may take; None: a share of what there is."""
    device: str
    """What the actors encode on: "cuda" or "cpu"."""
    product: str = DEFAULT
    product_options: Mapping[str, str] = field(default_factory=dict)
    mend: bool = False
    """Whether what is damaged of the store is mended first, and damaged shards are done again."""
    offset: float | None = None
    """The sensor's offset, where the user states one."""
    quality: str | None = None
    """How fine codes are, where the user says it."""
    precision_stated: bool = False
    """Whether `precision` is the user's word, not the machine's choice."""
    weights_stated: bool = False
    """Whether `weights` is, not the default."""
    allow_local_sources: bool = False
    actor_gpu: float = 1.0
    """The share of a GPU that an actor has, where it has one."""
    only_plans: bool = False
    """Whether nothing is to be encoded: then no actor is asked what it has."""
    region: Region | None = None
    """What of `boxes`, which are those around it, is asked for; None for all of them."""

    @classmethod
    def parse(cls, selection: Selection, running: Running, *, on_gpu: bool, writes: bool = True) -> Request:
        """Check everything that can be told without a search. Raises InputError with the first thing that is wrong.

        Args:
            selection: what to encode.
            running: how to run it.
            on_gpu: whether the actors have GPUs.
            writes: whether there is to be a cube; a plan alone needs no place for one.
        """
        sensor = sensor_of(selection)
        boxes, extent = (tuple(_plain(given)) for given in (selection.boxes, selection.extent))
        if selection.region is not None:
            boxes = selection.region.boxes
        if not boxes:
            raise InputError("--bbox takes four numbers, west south east north; 0 given (or --region a file)")
        if extent and not covers(extent, boxes):
            raise InputError(
                f"--bbox {boxes_said(boxes)} is not inside --extent {boxes_said(extent)}: reserve ground that holds it"
            )
        if selection.interval is None:
            raise InputError("--datetime is missing: give a date or A/B, such as 2024-06-01/2024-08-31")
        if not selection.out and writes:
            raise InputError("--out is missing: say where the cube goes, a path or URL ending in .zarr")
        if "://" in selection.out and ".." in selection.out.split("/"):
            raise InputError(f"--out {selection.out}: a URL with '..' means different places to different servers")
        resolution = float(selection.resolution)
        if not (resolution > 0 and resolution.is_integer()):
            raise InputError(f"--resolution is in whole metres above 0, not {said(resolution)}")
        cloud = None if selection.max_cloud is None else float(selection.max_cloud)
        if cloud is not None and not 0 <= cloud <= 100:
            raise InputError(f"--max-cloud is a percentage from 0 to 100, not {said(cloud)}")
        share = float(running.verify_fraction)
        if not 0 <= share <= 1:
            raise InputError(f"--verify-fraction is a share from 0 to 1, not {said(share)}")
        precision = one_of(selection.precision or "auto", PRECISIONS, "--precision")
        stated = precision != "auto"
        if not stated:
            precision = "fp16" if on_gpu else fastest_on_cpu()
        product = one_of(selection.product, kinds(), "--product")
        storages = storages_of(product)
        storage = selection.storage
        if storages and storage is not None:
            one_of(storage, storages, "--storage")
        if selection.quality is not None:
            qualities = qualities_of(product, storage)
            if not qualities:
                stored = "" if storage is None else f" stored as {storage}"
                raise InputError(f"--quality is how fine codes are: {product}{stored} has none")
            one_of(selection.quality, qualities, "--quality")
        unit_timeout = float(running.unit_timeout)
        if not 0 < unit_timeout < math.inf:
            raise InputError(f"--unit-timeout is a number of seconds above 0, not {said(unit_timeout)}")
        memory = running.memory
        if memory is not None and not 0 < memory < math.inf:
            raise InputError(f"--memory is a number of GB above 0, not {said(memory)}")
        for state in running.retry:
            if not state.retryable:
                raise InputError(f"--retry: windows that ended {state.label} end so again")
        return cls(
            sensor, boxes, extent, selection.interval, selection.catalog,
            selection.weights or WEIGHTS, int(resolution), cloud, precision, storage,
            absolute(selection.out or "plan.zarr"), running.retry, share, network_limits(running), unit_timeout,
            None if memory is None else int(memory * 1e9), "cuda" if on_gpu else "cpu",
            product, dict(selection.product_options),
            mend=running.mend, offset=selection.offset, quality=selection.quality, precision_stated=stated,
            weights_stated=selection.weights is not None,
            allow_local_sources=running.allow_local_sources, actor_gpu=running.gpus_per_actor or 1.0,
            only_plans=not writes, region=selection.region,
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """What decides the plan, without secrets: the same document resumes a store without searching again."""
        reserved = {"extent": [list(b) for b in self.extent]} if self.extent else {}
        return {
            "bbox": [list(b) for b in self.boxes],
            **({} if self.region is None else {"region": self.region.digest}),
            **reserved,
            "datetime": [t.isoformat() for t in self.interval],
            "sensor": self.sensor.name,
            "bands": [b.name for b in self.sensor.bands],
            "catalog": one_line(self.catalog),
            "weights": self.weights,
            "resolution": self.resolution,
            "max_cloud": self.max_cloud,
            "precision": self.precision,
            "storage": self.storage,
            **({} if self.quality is None else {"quality": self.quality}),
            **({} if self.product == DEFAULT else {"product": self.product}),
            **({"product_options": dict(self.product_options)} if self.product_options else {}),
            **({} if self.offset is None else {"offset": self.sensor.source_offset}),
        }


def sensor_of(selection: Selection) -> Sensor:
    """The sensor with just the bands and the offset that are asked for."""
    sensor = get_sensor(selection.sensor)
    if selection.bands is not None:
        sensor = sensor.subset(selection.bands)
    if selection.offset is not None:
        if not math.isfinite(selection.offset):
            raise InputError(f"--offset: {said(selection.offset)} is not a finite number")
        sensor = sensor.with_offset(float(selection.offset))
    return sensor


def _plain(boxes: Sequence[BBox]) -> Iterator[BBox]:
    """Boxes checked one by one; one over the antimeridian as two."""
    for west, south, east, north in boxes:
        yield from parse_bbox(float(west), float(south), float(east), float(north))


def said(value: float) -> str:
    """A number as a user would write it."""
    return f"{value:.15g}"


def fastest_on_cpu() -> str:
    """The precision that this machine's CPU is fastest in, bf16 or fp32."""
    return "bf16" if multiplies_bf16() else "fp32"


def network_limits(running: Running) -> NetworkLimits:
    """The bounds of what the run asks of a host."""
    patience, rate = float(running.patience), running.max_requests_per_second
    if not 0 <= patience < math.inf:
        raise InputError(f"--patience is a number of seconds from 0, not {said(patience)}")
    if rate is None:
        return NetworkLimits(patience=patience)
    if not 0 < rate < math.inf:
        raise InputError(f"--max-requests-per-second is a number above 0, not {said(rate)}")
    return NetworkLimits(patience=patience, requests_per_second=float(rate))


def absolute(url: str) -> str:
    """A local path made absolute, so that actors in another working directory mean the same place; URLs as they are."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


def one_of(value: str, known: Sequence[str], flag: str) -> str:
    """`value` when it is one of `known`; else InputError with the nearest ones."""
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{flag}: no {value!r}, there is {', '.join(known)}{hint}")


def import_meanwhile(*modules: str) -> None:
    """Import modules on a thread, for whoever needs them soon; what cannot be imported is left for those to tell."""

    def load() -> None:
        with suppress(Exception):
            for module in modules:
                importlib.import_module(module)

    threading.Thread(target=load, name="imports", daemon=True).start()


def demonstration(selection: Selection, showing: Showing, folder: Path) -> tuple[Selection, Showing]:
    """What the demonstration encodes and shows: its own catalogue, box and dates, everything below one folder."""
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME, make_demo

    import_meanwhile("eocube.products.eo_vae")  # torch, a second or more of which the drawing does not wait
    catalog = make_demo(folder / "catalog")
    asked = replace(
        selection, boxes=parse_bbox(*DEMO_BBOX), interval=parse_interval(DEMO_DATETIME), catalog=str(catalog),
        out=selection.out or str(folder / "cube.zarr"),
    )  # fmt: skip
    return asked, replace(showing, quicklook=showing.quicklook or str(folder / "quicklook.png"))


def with_demo_catalog(selection: Selection, folder: Path) -> Selection:
    """`--catalog demo`: the demonstration's scenes, drawn below a folder where they are not there yet."""
    if selection.catalog != "demo" or Path("demo").exists():
        return selection
    from eocube.demo.catalogue import make_demo

    return replace(selection, catalog=str(make_demo(folder / "catalog")))


def product_of(request: Request) -> Product:
    """The product that is asked for. InputError where it cannot be had, such as by weights not made for the sensor."""
    from eocube.products import registry
    from eocube.products.base import Ask

    product = registry.kind(request.product).plan(
        Ask(
            request.sensor, request.resolution, request.weights, request.precision, request.storage, request.device,
            request.product_options, request.quality, request.only_plans,
        )
    )  # fmt: skip
    if len(product.inputs) != 1:
        raise InputError(
            f"--product {request.product} reads {len(product.inputs)} sensors at once "
            f"({', '.join(sensor.name for sensor in product.inputs)}): a run searches the scenes of one"
        )
    return product


def settled(request: Request, product: Product) -> Request:
    """The request with what the product chose where the user did not: how values are stored, where that is a choice."""
    if request.storage is None and storages_of(request.product):
        return replace(request, storage=product.storage.name)
    return request


def make_plans(request: Request, product: Product, source_options: Mapping[str, Any] | None) -> tuple[Plan, ...]:
    """Search once and freeze one plan a zone, of the settled request. InputError where there are no scenes."""
    from eocube.run.memory import card_bytes
    from eocube.run.options import Limits

    request = settled(request, product)
    windows = {"cell_px": product.cell_px, "core_px": product.core_px, "halo_px": product.halo_px}
    shard = SHARD_PX // product.core_px * product.core_px or product.core_px
    grids = grids_for(request.boxes, request.resolution, request.extent, request.region, **windows, shard_px=shard)
    lattice = grids[0].lattice
    held = card_bytes(product, lattice, Limits(), batch=0)
    actor = Actor(request.actor_gpu, lattice.cores_per_shard**2, held)
    # Nobody computes for a plan alone, and the libraries that would take a second and more to import.
    numerics = {} if request.only_plans else numerics_of_actors(product, request.device, actor)
    plans, searched = [], ""
    for grid in grids:
        found = search(
            request.catalog, product.sensor, grid.lonlat_bounds_with_halo(), request.interval,
            storage_options=source_options, check_pixels=True, allow_local=request.allow_local_sources,
        )  # fmt: skip
        searched = found.searched
        scenes, cloudy = drop_cloudy(found.scenes, request.max_cloud)
        plan = build_plan(product, grid, scenes, request.document(), (*found.refused, *cloudy), numerics)
        if plan.times:
            plans.append(plan)
    if not plans:
        raise InputError(f"no scenes found: {searched}{_turned(request)}")
    return tuple(plans)


def _turned(request: Request) -> str:
    """What to say of a box that might have its longitudes and latitudes swapped, where nothing was found in it."""
    if request.region is not None or len(request.boxes) != 1:
        return ""
    west, south, east, north = request.boxes[0]
    if max(abs(west), abs(east)) > 90 or (west, east) == (south, north):
        return ""
    return (
        f"; the box lies at latitudes {said(south)} to {said(north)}: the order is west south east north, did you mean "
        f"{boxes_said([(south, west, north, east)])}?"
    )


def new_run_id() -> str:
    """A short random name for one run."""
    return secrets.token_hex(4)


def default_gpus(asked: float | None) -> float:
    """The share of a GPU an actor takes: as asked, else 1 where torch sees a GPU on this machine.

    On a cluster whose driver has no GPU, `--gpus-per-actor 1` asks for those of the nodes.
    """
    if asked is not None:
        return asked
    if not may_have_gpu():
        return 0.0
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0
