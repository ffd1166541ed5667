"""Carries out an encode request: resume or create the stores, run the engine, finalise, report in a few lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from eocube.console import for_people, say
from eocube.errors import Exit, StoreError
from eocube.net.network import shared_network
from eocube.net.objects import Objects
from eocube.net.redaction import one_line
from eocube.net.storage_options import from_environment, scoped
from eocube.plan.plan import Plan, stored_extent
from eocube.products.registry import DEFAULT
from eocube.products.shelf import shelf
from eocube.products.spec import Product
from eocube.run.again import asked_again
from eocube.run.asked import Running, Selection, Showing, Target
from eocube.run.choice import check_engine
from eocube.run.driver import RunTally
from eocube.run.driver import run as run_engine
from eocube.run.ending import Outcome, report
from eocube.run.extend import grow_plans, join_zones
from eocube.run.options import Cube, EngineOptions, Limits
from eocube.run.overviews import OverviewsAlong, seen_from_afar
from eocube.run.repair import FAILED, damaged_places, mend_first
from eocube.run.request import (
    Request,
    default_gpus,
    demonstration,
    import_meanwhile,
    make_plans,
    new_run_id,
    product_of,
    settled,
    with_demo_catalog,
)
from eocube.run.resume import Remaining
from eocube.scenes.stac import PRESETS
from eocube.store.existing import root_over, zoned, zones_of
from eocube.store.fence import Fence
from eocube.store.lease import Lease
from eocube.store.lease_note import refuse_if_held
from eocube.store.receipts import State
from eocube.store.store import CubeStore, Summary, finalise_root

DEMO_FOLDER = "eocube-demo"
AS_USUAL, WITH_PROGRESS = Running(), Showing()


@dataclass(slots=True)
class Searched:
    """What a run has loaded and searched for its plans, so that neither is done twice."""

    products: dict[str, Product] = field(default_factory=dict)
    plans: dict[str, tuple[Plan, ...]] = field(default_factory=dict)
    """Both by request."""


@shelf()  # the weights that the plan needed, for a worker in this process
def encode_region(selection: Selection, running: Running = AS_USUAL, showing: Showing = WITH_PROGRESS) -> Outcome:
    """Encode a region as asked; the main job.

    Args:
        selection: what to encode, and where to.
        running: how to run it.
        showing: what to show, and whether to stop at a plan.

    Raises:
        InputError, StoreError: what was asked for cannot be done; nothing was written.
    """
    console = for_people(quiet=showing.quiet)
    gpus = default_gpus(running.gpus_per_actor)
    check_engine(running.engine, running.actors, gpus)
    if running.demo:
        with console.status("making the demonstration's scenes"):
            selection, showing = demonstration(selection, showing, Path(DEMO_FOLDER))
    else:
        selection = with_demo_catalog(selection, Path(DEMO_FOLDER))
    given, sources = running.storage_options, running.source_options
    storage_options = from_environment() if given is None else given
    if not running.demo:
        selection = asked_again(selection, running, storage_options)
    request = Request.parse(selection, running, on_gpu=gpus > 0, writes=not showing.plan)
    source_options = scoped(
        storage_options if sources is None else sources,
        PRESETS.get(request.catalog, request.catalog),
        trusted=running.allow_local_sources,
    )
    shared_network().configure(request.network)
    searched = Searched()
    if request.mend:
        request = mended(request, storage_options, source_options, console)
    plans = plans_of(request, storage_options, source_options, searched)
    if showing.plan:
        from eocube.run.plan_view import forecasts, show

        show(forecasts(plans, showing, request.device, source_options), as_json=showing.json)
        return Outcome(Exit.DONE, (), {})
    if showing.quicklook:
        import_meanwhile("eocube.cube.quicklook", "eocube.report.source_pixels")
    run_id = new_run_id()
    fraction = 1.0 if running.demo else request.verify_fraction
    limits = Limits(memory=request.memory, max_cloud=request.max_cloud, verify_fraction=fraction)
    engine = EngineOptions(
        engine=running.engine, actors=running.actors, gpus_per_actor=gpus, limits=limits,
        storage_options=storage_options, source_options=source_options, network=request.network,
        unit_timeout=request.unit_timeout, quiet=showing.quiet, log_dir=running.log_dir,
    )  # fmt: skip
    with holding(request.out, run_id, storage_options) as lease:
        # Again, now that nobody else can change the store: another run may have while this one searched.
        plans = plans_of(request, storage_options, source_options, searched)
        cubes = open_cubes(request, plans, storage_options, lease)
        engine = replace(engine, lease=lease.to_pass)
        along = OverviewsAlong(cubes, storage_options, lease) if running.overview else None
        with along or nullcontext():
            tally, summaries = carry_out(cubes, request, engine, run_id, lease)
        if along is not None and not tally.interrupted:
            seen_from_afar(cubes, storage_options, console, lease, along.shards)
    outcome = report(console, cubes, tally, summaries)
    product = cubes[0].plan.product
    if showing.quicklook and not product.decodes:
        say(console, f"no picture: {product.array} cubes ({product.kind}) are not decoded")
    elif showing.quicklook and outcome.counts.get(State.OK):
        try:
            outcome = replace(outcome, picture=draw(cubes, showing.quicklook, storage_options, source_options))
            say(console, f"picture: {outcome.picture}")
        except Exception as error:  # the cube is whole whatever becomes of its picture, and its status counts
            say(console, f"no picture ({one_line(error)}): the cube is whole; eocube quicklook draws it")
    return outcome


def mended(
    request: Request,
    storage_options: Mapping[str, Any] | None,
    source_options: Mapping[str, Any] | None,
    console: Console,
) -> Request:
    """Mend the store's metadata and log before anything is read from them; the request with what is to be done again.

    Where receipts are lost, what they told of windows that had failed before is not known: those are tried again.
    """

    def search(root: Mapping[str, Any] | None) -> tuple[Plan, ...]:
        asked = request if root is None else as_before(request, root)
        return make_plans(asked, product_of(asked), source_options)

    lost = mend_first(request.out, storage_options, search, lambda line: say(console, line))
    return replace(request, retry=tuple({*request.retry, *FAILED})) if lost else request


@contextmanager
def holding(url: str, run_id: str, storage_options: Mapping[str, Any] | None) -> Iterator[Lease]:
    """Hold the lease over a store: its own, or that of the root over several zones that it is one of.

    Raises:
        LeaseError: another run holds the store, its root, or a zone of it.
    """
    while True:
        root = root_over(url, storage_options)
        with Lease(Objects(root, storage_options), run_id) as lease:
            if root_over(url, storage_options) != root:
                continue  # the root was made just now: its lease is the one that counts
            for zone in zones_of(root, storage_options):
                refuse_if_held(Objects(f"{root}/{zone}", storage_options))
            yield lease
            return


def carry_out(
    cubes: Sequence[Cube], request: Target, engine: EngineOptions, run_id: str, lease: Lease
) -> tuple[RunTally, list[Summary]]:
    """Do what the stores do not hold yet and finalise them, while the lease is held.

    Raises:
        LeaseError: another run took the stores over; nothing was finalised then.
    """
    given = engine.storage_options
    stores = [CubeStore.open(cube.url, storage_options=given, fence=lease) for cube in cubes]
    left = []
    for cube, store in zip(cubes, stores, strict=True):
        damaged = damaged_places(store, cube.plan) if request.mend else frozenset()
        left.append(Remaining(cube.plan, store.log.latest(), request.retry, damaged))
    total = sum(r.windows for r in left)
    tally = RunTally()
    try:
        if total:
            todo = ((k, unit) for k, remaining in enumerate(left) for unit in remaining.units())
            tally = run_engine(
                cubes, engine, todo, run_id, total=total, check=lease.check, fence=lease, died=lease.took_over
            )
    finally:
        if lease.held:
            if lease.took_over and not lease.exact:
                for cube in cubes:
                    CubeStore.made_again(cube.url, cube.plan, storage_options=given, fence=lease)
            summaries = [store.finalise() for store in stores]
            for root in {request.out, lease.target.url} - {cube.url for cube in cubes}:
                finalise_root(root, storage_options=given, fence=lease)
    lease.check()
    return tally, summaries


def plans_of(
    request: Request,
    storage_options: Mapping[str, Any] | None,
    source_options: Mapping[str, Any] | None = None,
    searched: Searched | None = None,
) -> tuple[Plan, ...]:
    """The plans to carry out, one a zone.

    Asked twice in a run: before the lease is taken, because a search takes long and most errors come of it, and then
    under it, with the store's plans read anew. What `searched` has is not searched again.

    Those frozen in the store by the same request, without a search; where a request for more ground or more time
    finds a store, its plans made larger; else new ones.

    Raises:
        StoreError: the store there is another request's; the message names the difference. Or its plan mixes items up.
    """
    frozen = stored_plans(request.out, storage_options)
    if shared := sorted({name for plan in frozen for name in plan.doubled}):
        raise StoreError(
            f"{request.out} has several items called {shared[0]!r}, whose dates version 0.1 read from one of them: "
            "encode to another --out"
        )
    if made := next((plan.derived for plan in frozen if plan.derived is not None), None):
        raise StoreError(f"{request.out} was made from {made.parent}, not from scenes: encode to another --out")
    searched = searched or Searched()
    request = as_stored(request, frozen)
    asked = _key(request)
    if asked not in searched.products:
        searched.products[asked] = product_of(request)
    product = searched.products[asked]
    request = settled(replace(request, extent=request.extent or stored_extent(frozen)), product)
    if frozen and all(dict(p.request) == request.document() for p in frozen):
        changed = [p for p in frozen if p.product.weights_sha256 != product.weights_sha256]
        if changed:
            raise StoreError(
                f"{request.out} was made with other weights called {request.weights!r} "
                f"({changed[0].product.weights_sha256[:12]}, now {product.weights_sha256[:12]}): write to another --out"
            )
        return frozen
    asked = _key(request)
    if asked not in searched.plans:
        searched.plans[asked] = make_plans(request, product, source_options)
    plans = searched.plans[asked]
    return grow_plans(request.out, frozen, plans) if frozen else plans


def _key(request: Request) -> str:
    return json.dumps(request.document(), sort_keys=True)


def as_stored(request: Request, frozen: Sequence[Plan]) -> Request:
    """The request with the store's own of what was not asked for; as it is where there is no store."""
    return as_before(request, frozen[0].request, frozen[0].product) if frozen else request


def as_before(request: Request, was: Mapping[str, Any], product: Product | None = None) -> Request:
    """The request with the weights, precision, storage and quality of an earlier one where none were asked for.

    Another machine may be fastest in another precision, defaults change from version to version, and what was chosen
    once is not to be said again. A quality that is asked for is one of codes, whatever the storage was.

    Not float16 on a CPU, which would take ten times as long: then the difference is an error that names it.

    Args:
        request: checked.
        was: the earlier one, as a store has it.
        product: what came of it, for what it does not say.
    """
    # As it was asked for: what a product's own precision is, is the product's to say.
    precision = str(was.get("precision", request.precision if product is None else product.precision))
    if not request.precision_stated and not (precision == "fp16" and request.device == "cpu"):
        request = replace(request, precision=precision)
    if request.product != was.get("product", DEFAULT if product is None else product.kind):
        return request
    if not request.weights_stated:
        request = replace(request, weights=str(was.get("weights", request.weights)))
    if request.storage is None and request.quality is None:
        request = replace(request, storage=was.get("storage", None if product is None else product.storage.name))
    if request.quality is None and request.storage == was.get("storage"):
        request = replace(request, quality=was.get("quality"))
    return request


def stored_plans(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Plan, ...]:
    """The plans of a store, one a zone; empty when there is no store."""
    texts = CubeStore.stored_plans(url, storage_options=storage_options)
    return tuple(Plan.from_json(t) for t in texts)


def open_cubes(
    request: Target, plans: Sequence[Plan], storage_options: Mapping[str, Any] | None, fence: Fence | None = None
) -> tuple[Cube, ...]:
    """Create the stores, or open or extend those of an earlier run. One zone: the cube is the root itself."""
    if not zoned(request.out, plans, storage_options):
        cubes: tuple[Cube, ...] = (Cube(plans[0], request.out),)
    else:
        cubes = tuple(Cube(p, f"{request.out.rstrip('/')}/{p.grid.name}") for p in plans)
        join_zones(request.out, plans, storage_options, fence)
    for cube in cubes:
        CubeStore.create(cube.url, cube.plan, storage_options=storage_options, fence=fence)
    if cubes[0].url != request.out:
        finalise_root(request.out, storage_options=storage_options, fence=fence)
    return cubes


def draw(
    cubes: Sequence[Cube],
    path: str,
    storage_options: Mapping[str, Any] | None,
    source_options: Mapping[str, Any] | None,
    time: int = 0,
) -> str:
    """The quicklook of the cube with the most data, its source read again for comparison."""
    from eocube.cube.opening import open as open_cube
    from eocube.report.info import truth_pixels
    from eocube.report.source_pixels import read_source

    cube = max(cubes, key=lambda c: sum(1 for _ in c.plan.grid.requested_windows()))
    source = read_source(cube.plan, truth_pixels(cube.plan), time, storage_options=source_options)
    ds = open_cube(cube.url, storage_options=None if storage_options is None else dict(storage_options))
    return str(ds.eocube.quicklook(path, time=time, source=source))
