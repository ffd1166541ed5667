"""Checks the main job's request, searches its scenes and freezes its plans, one a zone."""

from __future__ import annotations

import difflib
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from eocube.errors import InputError
from eocube.ground.boxes import boxes_said, covers
from eocube.ground.grid import grids_for
from eocube.net.network import NetworkLimits
from eocube.net.redaction import one_line
from eocube.plan.plan import Plan, build_plan
from eocube.products.documents import storages_of
from eocube.products.registry import DEFAULT, kinds
from eocube.products.spec import Product
from eocube.scenes.search import BBox, Interval, drop_cloudy, parse_bbox, parse_interval, search
from eocube.sensors import get_sensor
from eocube.sensors.sensor import Sensor
from eocube.store.receipts import State

SHARD_PX = 1920
"""Pixels along a shard, where whole cores make it up: 19.2 km at 10 m, whatever the product's cells."""

DAMAGED = "damaged"
"""What `--retry` takes beside states: windows whose objects are not what was written."""
PRECISIONS = ("auto", "fp16", "bf16", "fp32")


class Exit(IntEnum):
    """Exit status of the jobs and commands."""

    DONE = 0
    """Every window ended ok, nodata, cloudy or outside."""
    DEFECT = 1
    BAD_INPUT = 2
    RETRYABLE = 3
    """Some windows can be tried again: failed reads, an interrupted run."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What to encode, as the user says it. Values are checked by `Request.parse`, each with its own message."""

    bbox: tuple[str, ...] = ()
    """West south east north, in degrees."""
    datetime: str = ""
    """A date or A/B, UTC; dates without an hour count whole."""
    sensor: str = "S2L2A"
    """S2L2A, S2L1C, S1RTC, S1GRD, S2RGB, RGBN or the path of a sensor's YAML file."""
    out: str = ""
    """Where the cube goes: a path or any fsspec URL."""
    catalog: str = "earth-search"
    """earth-search, planetary-computer, cdse, a STAC API's URL, or the path or URL of a static catalogue."""
    bands: str | None = None
    """A subset of the sensor's bands, as B02,B03,B04,B08. None takes all."""
    extent: tuple[str, ...] = ()
    """West south east north: ground that the cube is to have room for, the bbox in it. It can grow anywhere inside by
    a larger --bbox later; without it, only south and east of the bbox. Reserved ground costs next to nothing."""
    offset: str | None = None
    """Reflectance = DN * scale + this, for items that leave it open: 0 or -0.1 for Sentinel-2. What an item's own
    metadata settle stays as they say; where its pixels clearly deny what is stated, the item is refused."""
    weights: str = "nano"
    """nano, a path, or hf://owner/name."""
    resolution: str = "10"
    """Ground sampling in metres that the encoder sees."""
    max_cloud: str | None = None
    """Windows (of scenes with no cloud mask: scenes) cloudier than this, in percent, are left out as cloudy."""
    precision: str | None = None
    """auto, fp16, bf16 or fp32. auto, the default: as the store that is there, else fp16 on a GPU and on a CPU what it
    is fastest in, bf16 where it multiplies that in hardware, else fp32."""
    storage: str | None = None
    """How values are stored, where the product leaves a choice: latents as fp16 (the default) or int8."""
    product: str = DEFAULT
    """What the cube holds: eo-vae (latents), or a kind that another package brings (docs/products.md)."""
    product_options: tuple[str, ...] = ()
    """Choices that a kind of product has of its own: name=value pairs."""
    retry: str | None = None
    """Do just the windows again that ended so: read_failed, encode_failed; lost ones are done again anyway. damaged:
    verify the store first, write its damaged metadata anew and do damaged shards again."""
    plan: bool = False
    """Search, print the plan and stop before a pixel is read."""
    demo: bool = False
    """No network, no data: encode the embedded landscape and draw its quicklook."""
    quicklook: str | None = None
    """Where to draw a picture of the cube at the end (PNG)."""
    actors: int | None = None
    """Encoding actors. None: one a GPU, or one a node without GPUs."""
    gpus_per_actor: float | None = None
    """Share of a GPU an actor takes. None: 1 where torch sees a GPU here, else 0."""
    log_dir: str | None = None
    """Where the run's structured log (JSON lines) goes: a local folder. None: into the cube, under commits/runs."""
    verify_fraction: str = "0.005"
    """Share of the windows decoded again as they are made, for psnr, sam and seams; at least one unless 0."""
    storage_options: tuple[str, ...] = field(default=(), repr=False)
    """fsspec options of the target, and of catalogue and sources where --source-options does not say otherwise: a JSON
    object, name=value pairs such as endpoint_url=... anon=true profile=... requester_pays=true, or @file.json."""
    source_options: tuple[str, ...] = field(default=(), repr=False)
    """fsspec options of catalogue and sources, where they differ; `{}` for none. Those for web servers go to the
    catalogue's own host; those of another host are named with it: {"hosts": {"data.example.org": {"headers": {...}}}}.
    A host that is named so, be it with {}, may lie in a private network too."""
    max_requests_per_second: str | None = None
    """To any one host, from the whole run: while it encodes, the driver keeps to a tenth and the actors share the rest
    evenly, as many as there are at the time. Sources are then read one range a request."""
    patience: str = "600"
    """Seconds that a host which stops answering is waited for, the run pausing, before what needs it fails."""
    unit_timeout: str = "3600"
    """Seconds that an actor may take over a shard, beside --patience; then it counts as hung, is ended, and the shard
    is done again. Three such ends (or deaths of the actor) and the shard is left for the next run."""
    allow_local_sources: bool = False
    """Let a catalogue from elsewhere lead to files of this machine, and to addresses of its own networks."""
    price: float | None = None
    """With --plan: dollars an hour of one device (a GPU, or one machine's CPUs)."""
    calibrate: int = 0
    """With --plan: read and encode so many windows here to learn the rate; else a recorded benchmark gives it."""
    benchmark: str | None = None
    """With --plan: the JSON of jobs/benchmark.py that gives the rate."""
    json: bool = False
    """With `eocube plan`: print JSON."""
    quiet: bool = False
    """Print only errors and the last line."""


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
    out: str
    retry: tuple[State, ...]
    verify_fraction: float
    network: NetworkLimits
    unit_timeout: float
    device: str
    """What the actors encode on: "cuda" or "cpu"."""
    options: EncodeOptions = field(repr=False)
    product: str = DEFAULT
    product_options: Mapping[str, str] = field(default_factory=dict)
    mend: bool = False
    """Whether what is damaged of the store is mended first, and damaged shards are done again."""

    @classmethod
    def parse(cls, options: EncodeOptions, *, on_gpu: bool) -> Request:
        """Check everything that can be told without a search. Raises InputError with the first thing that is wrong."""
        sensor = get_sensor(options.sensor)
        if options.bands is not None:
            sensor = sensor.subset([b.strip() for b in options.bands.split(",") if b.strip()])
        if options.offset is not None:
            sensor = sensor.with_offset(number(options.offset, "--offset"))
        boxes = box_of(options.bbox, "--bbox")
        extent = box_of(options.extent, "--extent") if options.extent else ()
        if extent and not covers(extent, boxes):
            raise InputError(
                f"--bbox {boxes_said(boxes)} is not inside --extent {boxes_said(extent)}: reserve ground that holds it"
            )
        if not options.datetime:
            raise InputError("--datetime is missing: give a date or A/B, such as 2024-06-01/2024-08-31")
        if not options.out and not options.plan:
            raise InputError("--out is missing: say where the cube goes, a path or URL ending in .zarr")
        if "://" in options.out and ".." in options.out.split("/"):
            raise InputError(f"--out {options.out}: a URL with '..' means different places to different servers")
        resolution = number(options.resolution, "--resolution")
        if resolution <= 0 or resolution != int(resolution):
            raise InputError(f"--resolution is in whole metres above 0, not {options.resolution}")
        cloud = None if options.max_cloud is None else number(options.max_cloud, "--max-cloud")
        if cloud is not None and not 0 <= cloud <= 100:
            raise InputError(f"--max-cloud is a percentage from 0 to 100, not {options.max_cloud}")
        share = number(options.verify_fraction, "--verify-fraction")
        if not 0 <= share <= 1:
            raise InputError(f"--verify-fraction is a share from 0 to 1, not {options.verify_fraction}")
        precision = one_of(options.precision or "auto", PRECISIONS, "--precision")
        if precision == "auto":
            precision = "fp16" if on_gpu else fastest_on_cpu()
        product = one_of(options.product, kinds(), "--product")
        storages = storages_of(product)
        storage = options.storage or (storages[0] if storages else None)
        if storages and storage is not None:
            one_of(storage, storages, "--storage")
        unit_timeout = number(options.unit_timeout, "--unit-timeout")
        if unit_timeout <= 0:
            raise InputError(f"--unit-timeout is a number of seconds above 0, not {options.unit_timeout}")
        again = [] if options.retry is None else [word.strip() for word in options.retry.split(",")]
        retry = tuple(retryable(word) for word in again if word != DAMAGED)
        return cls(
            sensor, boxes, extent, parse_interval(options.datetime), options.catalog,
            options.weights, int(resolution), cloud, precision, storage, absolute(options.out or "plan.zarr"),
            retry, share, network_limits(options), unit_timeout, "cuda" if on_gpu else "cpu", options,
            product, pairs(options.product_options, "--product-options"),
            mend=DAMAGED in again,
        )  # fmt: skip

    def document(self) -> dict[str, Any]:
        """What decides the plan, without secrets: the same document resumes a store without searching again."""
        reserved = {"extent": [list(b) for b in self.extent]} if self.extent else {}
        return {
            "bbox": [list(b) for b in self.boxes],
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
            **({} if self.product == DEFAULT else {"product": self.product}),
            **({"product_options": dict(self.product_options)} if self.product_options else {}),
            **({} if self.options.offset is None else {"offset": self.sensor.source_offset}),
        }


def fastest_on_cpu() -> str:
    """The precision that this machine's CPU is fastest in, bf16 or fp32."""
    import torch

    from model.chip import fastest_cpu_dtype

    return "bf16" if fastest_cpu_dtype() == torch.bfloat16 else "fp32"


def network_limits(options: EncodeOptions) -> NetworkLimits:
    """The bounds of what the run asks of a host."""
    patience = number(options.patience, "--patience")
    if patience < 0:
        raise InputError(f"--patience is a number of seconds from 0, not {options.patience}")
    if options.max_requests_per_second is None:
        return NetworkLimits(patience=patience)
    rate = number(options.max_requests_per_second, "--max-requests-per-second")
    if rate <= 0:
        raise InputError(f"--max-requests-per-second is a number above 0, not {options.max_requests_per_second}")
    return NetworkLimits(patience=patience, requests_per_second=rate)


def absolute(url: str) -> str:
    """A local path made absolute, so that actors in another working directory mean the same place; URLs as they are."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


def box_of(values: Sequence[str], flag: str) -> tuple[BBox, ...]:
    """A box out of four arguments; two over the antimeridian."""
    if len(values) != 4:
        raise InputError(f"{flag} takes four numbers, west south east north; {len(values)} given")
    west, south, east, north = (number(v, flag) for v in values)
    return parse_bbox(west, south, east, north)


def pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    """name=value arguments; InputError for what is none."""
    found: dict[str, str] = {}
    for text in given:
        name, mark, value = text.partition("=")
        if not mark or not name.strip():
            raise InputError(f"{flag}: {text!r} is no name=value")
        found[name.strip()] = value
    return found


def number(text: str, flag: str) -> float:
    """A finite number out of an argument."""
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{flag}: {text!r} is not a number") from None
    if not math.isfinite(value):
        raise InputError(f"{flag}: {text!r} is not a finite number")
    return value


def one_of(value: str, known: Sequence[str], flag: str) -> str:
    """`value` when it is one of `known`; else InputError with the nearest ones."""
    if value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise InputError(f"{flag}: no {value!r}, there is {', '.join(known)}{hint}")


def retryable(name: str) -> State:
    """The state of that name, when it is one that another run may end otherwise."""
    if name.strip() == "lost":  # units that killed their actor every time; every run does those again
        return State.NOT_ATTEMPTED
    known = [s.label for s in State if s.retryable]
    return State.named(one_of(name.strip(), [*known, "lost", DAMAGED], "--retry"))


def demo_options(options: EncodeOptions, folder: Path) -> EncodeOptions:
    """The options of the demonstration: its own catalogue, box and dates, everything below one folder."""
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME, make_demo

    catalog = make_demo(folder / "catalog")
    given = asdict(options)
    given.update(
        bbox=tuple(str(v) for v in DEMO_BBOX),
        datetime=DEMO_DATETIME,
        catalog=str(catalog),
        out=options.out or str(folder / "cube.zarr"),
        quicklook=options.quicklook or str(folder / "quicklook.png"),
    )
    return EncodeOptions(**given)


def product_of(request: Request) -> Product:
    """The product that is asked for. InputError where it cannot be had, such as by weights not made for the sensor."""
    from eocube.products import registry
    from eocube.products.base import Ask

    product = registry.kind(request.product).plan(
        Ask(
            request.sensor, request.resolution, request.weights, request.precision, request.storage, request.device,
            request.product_options,
        )
    )  # fmt: skip
    if len(product.inputs) != 1:
        raise InputError(
            f"--product {request.product} reads {len(product.inputs)} sensors at once "
            f"({', '.join(sensor.name for sensor in product.inputs)}): a run searches the scenes of one"
        )
    return product


def make_plans(request: Request, product: Product, source_options: Mapping[str, Any] | None) -> tuple[Plan, ...]:
    """Search once and freeze one plan a zone. InputError where there are no scenes."""
    from eocube.products import registry

    windows = {"cell_px": product.cell_px, "core_px": product.core_px, "halo_px": product.halo_px}
    shard = SHARD_PX // product.core_px * product.core_px or product.core_px
    numerics = registry.kind(product.kind).numerics(product, request.device)
    plans, searched = [], ""
    for grid in grids_for(request.boxes, request.resolution, request.extent, **windows, shard_px=shard):
        found = search(
            request.catalog, product.sensor, grid.lonlat_bounds_with_halo(), request.interval,
            storage_options=source_options, check_pixels=True, allow_local=request.options.allow_local_sources,
        )  # fmt: skip
        searched = found.searched
        scenes, cloudy = drop_cloudy(found.scenes, request.max_cloud)
        plan = build_plan(product, grid, scenes, request.document(), (*found.refused, *cloudy), numerics)
        if plan.times:
            plans.append(plan)
    if not plans:
        raise InputError(f"no scenes found: {searched}")
    return tuple(plans)


def new_run_id() -> str:
    """A short random name for one run."""
    return secrets.token_hex(4)


def default_gpus(options: EncodeOptions) -> float:
    """The share of a GPU an actor takes: as asked, else 1 where torch sees a GPU on this machine.

    On a cluster whose driver has no GPU, `--gpus-per-actor 1` asks for those of the nodes.
    """
    if options.gpus_per_actor is not None:
        return options.gpus_per_actor
    import torch

    return 1.0 if torch.cuda.is_available() else 0.0
