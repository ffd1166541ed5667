"""Parses the main job's arguments: texts in, what is asked for in values out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from eocube.errors import InputError
from eocube.ground.boxes import BBox, parse_bbox, parse_interval
from eocube.ground.regions import Region
from eocube.net.storage_options import parse_options
from eocube.products.registry import DEFAULT
from eocube.run.asked import Running, Selection, Showing
from eocube.run.request import one_of
from eocube.store.receipts import State

DAMAGED = "damaged"
"""What `--retry` takes beside states: windows whose objects are not what was written."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """Encode a region: scenes in, a Zarr cube of latents out that eocube decodes.

    Values are checked by `Request.parse`, each with its own message."""

    bbox: tuple[str, ...] = ()
    """West south east north, in degrees."""
    datetime: str = ""
    """A date, or A/B, in UTC. Dates without an hour count whole."""
    sensor: str = "S2L2A"
    """A sensor's name, or the YAML file of one. Names: S2L2A, S2L1C, S1RTC, S1GRD, S2RGB, RGBN."""
    out: str = ""
    """Where the cube goes: a path or any fsspec URL."""
    catalog: str = "earth-search"
    """A catalogue's name, URL or path. earth-search, planetary-computer, cdse, the URL of any STAC API, or the path or
    URL of a static catalogue."""
    bands: str | None = None
    """A subset of the sensor's bands; all without it."""
    region: str | None = None
    """A file of polygons in the place of --bbox. GeoJSON, Shapefile, GeoPackage, ... in any CRS; windows whose core has
    no ground in them are not encoded."""
    extent: tuple[str, ...] = ()
    """West south east north: ground that the cube is to have room for, the bbox in it. It can grow anywhere inside by
    a larger --bbox later; without it, only south and east of the bbox. Reserved ground costs next to nothing."""
    offset: str | None = None
    """Reflectance = DN * scale + this, for items that leave it open: 0 or -0.1 for Sentinel-2. What an item's own
    metadata settle stays as they say; where its pixels clearly deny what is stated, the item is refused."""
    weights: str | None = None
    """nano2, nano, a path, a URL or hf://owner/name. Without it those of the store that is there, else nano2."""
    resolution: str = "10"
    """Ground sampling in metres that the encoder sees."""
    max_cloud: str | None = None
    """Leave out windows that are cloudier than this. In percent; of scenes without a cloud mask the scene's own figure
    counts. Such windows end as cloudy."""
    precision: str | None = None
    """auto, fp16, bf16 or fp32. Without it, and by auto: as the store that is there, else fp16 on a GPU and on a CPU
    what it is fastest in, bf16 where it multiplies that in hardware, else fp32."""
    storage: str | None = None
    """How values are stored: codes, fp16 or int8. Where the product leaves a choice: latents as codes, as fp16 in four
    times the bytes, or as int8. Without it as in the store that is there, else as codes where the weights have steps
    for the bands, as the shipped ones have; else as fp16."""
    quality: str | None = None
    """How fine codes are: near-lossless, default or small."""
    product: str = DEFAULT
    """What the cube holds: eo-vae (latents), or a kind that another package brings (docs/howto/products.md)."""
    product_options: tuple[str, ...] = ()
    """Choices that a kind of product has of its own: name=value pairs."""
    retry: str | None = None
    """Only windows that ended read_failed, .. or damaged. Do just the windows again that ended so: read_failed,
    encode_failed; several with commas; lost ones are done again anyway. damaged: verify the store first, write its
    damaged metadata anew and do damaged shards again. Needs --out alone."""
    since: str | None = None
    """last: append what is new since the last run, up to this moment, to the store at --out. Nothing else has to be
    said then (for cron); with ground and dates the first run makes the store."""
    plan: bool = False
    """Search, print the plan and stop before a pixel is read."""
    demo: bool = False
    """No network, no data: encode the embedded landscape and draw its quicklook."""
    quicklook: str | None = None
    """Draw a picture of the cube here at the end."""
    overview: bool = False
    """Make the cube's overview as shards are made, or bring it up to date: each new shard is decoded once, for `eocube
    serve` to show the cube from afar, also while the run goes on."""
    engine: str = "auto"
    """auto, local or ray. local: one worker, on threads of this process. ray: actors in processes of their own, which
    are replaced where a file crashes or hangs one. auto, the default: local for up to 1000 windows on one machine,
    without RAY_ADDRESS, --actors or several GPUs, and where the run before did not die; else ray."""
    actors: int | None = None
    """Encoding actors. Without it one a GPU, or one a node without GPUs."""
    gpus_per_actor: float | None = None
    """Share of a GPU an actor takes. Without it 1 where torch sees a GPU here, else 0."""
    log_dir: str | None = None
    """Where the run's structured log (JSON lines) goes: a local folder. Without it into the cube, under
    commits/runs."""
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
    memory: str | None = None
    """GB that each actor's units may take beside the encoder: fewer rows of a shard are read at once, by fewer threads,
    where it is little. Without it half of what its node or container has."""
    patience: str = "600"
    """Seconds that a host which stops answering is waited for, the run pausing, before what needs it fails."""
    unit_timeout: str = "3600"
    """Seconds that an actor may take over a shard, beside --patience; then it counts as hung, is ended, and the shard
    is done again. Three such ends (or deaths of the actor) and the shard is left for the next run."""
    allow_local_sources: bool = False
    """Let a catalogue from elsewhere lead to files of this machine, and to addresses of its own networks."""
    price: float | None = None
    """Dollars an hour of one device, with a plan. A GPU, or one machine's CPUs."""
    calibrate: int = 0
    """Windows that a plan encodes here to learn the rate. Without it a recorded benchmark gives it."""
    benchmark: str | None = None
    """The JSON of jobs/benchmark.py that gives a plan its rate."""
    json: bool = False
    """Print a JSON document of the run, or of the plan."""
    quiet: bool = False
    """Print only errors and the last line."""


def typed(options: EncodeOptions) -> tuple[Selection, Running, Showing]:
    """The options in values. InputError with the first text that cannot be read; `Request.parse` checks the values."""
    again = () if options.retry is None else tuple(word.strip() for word in options.retry.split(","))
    selection = Selection(
        bands=None if options.bands is None else tuple(b.strip() for b in options.bands.split(",") if b.strip()),
        offset=perhaps(options.offset, "--offset"),
        # The demonstration has ground of its own, whatever is given.
        boxes=box_of(options.bbox, "--bbox") if options.bbox and not options.demo else (),
        region=None if options.region is None or options.demo else region_of(options),
        extent=box_of(options.extent, "--extent") if options.extent else (),
        resolution=number(options.resolution, "--resolution"),
        max_cloud=perhaps(options.max_cloud, "--max-cloud"),
        interval=parse_interval(options.datetime) if options.datetime and not options.demo else None,
        product_options=pairs(options.product_options, "--product-options"),
        sensor=options.sensor, out=options.out, catalog=options.catalog, weights=options.weights,
        precision=options.precision, storage=options.storage, quality=options.quality,
        product=options.product, since=None if options.since is None else one_of(options.since, ("last",), "--since"),
    )  # fmt: skip
    running = Running(
        verify_fraction=number(options.verify_fraction, "--verify-fraction"),
        unit_timeout=number(options.unit_timeout, "--unit-timeout"),
        retry=tuple(retryable(word) for word in again if word != DAMAGED), mend=DAMAGED in again,
        patience=number(options.patience, "--patience"), memory=perhaps(options.memory, "--memory"),
        max_requests_per_second=perhaps(options.max_requests_per_second, "--max-requests-per-second"),
        storage_options=parse_options(options.storage_options),
        source_options=parse_options(options.source_options, "--source-options"),
        engine=options.engine, actors=options.actors, gpus_per_actor=options.gpus_per_actor, log_dir=options.log_dir,
        allow_local_sources=options.allow_local_sources, demo=options.demo, overview=options.overview,
    )  # fmt: skip
    showing = Showing(
        options.plan, options.json, options.quiet, options.quicklook, options.price, options.calibrate,
        options.benchmark,
    )  # fmt: skip
    return selection, running, showing


def region_of(options: EncodeOptions) -> Region:
    """The outline in a file. InputError beside a bbox, which would say other ground."""
    if options.bbox:
        raise InputError("--bbox and --region both say the ground: give one of them")
    return Region.read(str(options.region), parse_options(options.source_options or options.storage_options))


def box_of(values: Sequence[str], flag: str) -> tuple[BBox, ...]:
    """A box out of four arguments; two over the antimeridian."""
    values = [value for word in values for value in word.split(",") if value.strip()]
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


def perhaps(text: str | None, flag: str) -> float | None:
    """A finite number, where an argument was given."""
    return None if text is None else number(text, flag)


def retryable(name: str) -> State:
    """The state of that name, when it is one that another run may end otherwise."""
    if name == "lost":  # units that killed their actor every time; every run does those again
        return State.NOT_ATTEMPTED
    known = [s.label for s in State if s.retryable]
    return State.named(one_of(name, [*known, "lost", DAMAGED], "--retry"))
