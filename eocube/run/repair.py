"""Repairs a store: metadata written anew, windows whose objects differ encoded again, until it verifies.

A store says itself what it was made of (its frozen plan: scenes, weights, sensor), so that nothing but its place and,
where they are needed, options of the storage are asked for. Damage is found by the hashes in the log and the layout; a
shard that is not the logged one is encoded again whole, which gives the same bytes on the same numerics. What belongs
to no part of the store is named and left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np

from eocube.errors import Exit, SourceError, StoreError
from eocube.net.objects import Objects
from eocube.net.storage_options import scoped
from eocube.net.trust import check_href
from eocube.plan.plan import Plan, WorkUnit
from eocube.products.registry import DEFAULT
from eocube.run.asked import Running, Selection
from eocube.run.driver import RunTally, windows_in
from eocube.run.driver import run as run_engine
from eocube.run.options import Cube, EngineOptions, Limits
from eocube.run.request import Request, default_gpus, make_plans, new_run_id, product_of
from eocube.run.resume import Remaining
from eocube.run.sampling import Sample
from eocube.store.commit_log import Latest, Place
from eocube.store.existing import gathered, root_over
from eocube.store.layout import ROOT
from eocube.store.lease import Lease
from eocube.store.lease_note import refuse_if_held
from eocube.store.mending import Search, mend
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from eocube.store.survey import damaged_units, places, survey, zones_in
from eocube.store.verify import Finding

Options = Mapping[str, Any] | None
Say = Callable[[str], None]
USUAL_FRACTION = Running().verify_fraction
FAILED = (State.READ_FAILED, State.ENCODE_FAILED)


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair came to: what was damaged, what is still wrong, and what was encoded for it."""

    url: str
    damaged: tuple[Finding, ...]
    left: tuple[Finding, ...]
    windows: int = 0
    failed: int = 0
    """Windows encoded again that could not be read or encoded."""
    interrupted: bool = False

    @property
    def exit(self) -> Exit:
        """0 where the store verifies, 3 where something is left."""
        return Exit.RETRYABLE if self.left or self.failed or self.interrupted else Exit.DONE

    def document(self) -> dict[str, Any]:
        """The same as JSON."""
        damaged, left = ([f"{path}: {what}" for path, what in found] for found in (self.damaged, self.left))
        return {
            "url": self.url, "damaged": damaged, "left": left, "windows": self.windows, "failed": self.failed,
            "interrupted": self.interrupted,
        }  # fmt: skip


def repair(
    url: str,
    *,
    storage_options: Options = None,
    source_options: Options = None,
    actors: int | None = None,
    trusted: bool = False,
    quiet: bool = False,
    search: Search | None = None,
    say: Say = print,
) -> Repaired:
    """Verify a store, mend what is damaged, and verify it again. Holds the store's lease; killed, it goes on.

    Args:
        url: of the store.
        storage_options: fsspec options of the store.
        source_options: those of catalogue and sources; None takes the store's.
        actors: encoding actors; None as for encoding.
        trusted: whether a store that lies elsewhere may lead to files of this machine, and to addresses near it.
        quiet: no progress.
        search: makes the store's plans anew, where a frozen plan is lost; None searches as the store's root says.
        say: takes lines for people.

    Raises:
        StoreError: no store there, a plan that is lost and not found again, weights that are not the plan's, or
            another run at work.
    """
    sources = scoped(storage_options if source_options is None else source_options, url, trusted=trusted)
    url = root_over(url, storage_options)
    run_id = new_run_id()
    before = survey(url, storage_options)  # before the lease: where no store is, none is to be left
    if not before:
        return Repaired(url, (), ())
    say(f"{len(before)} objects are not what was written:")
    for finding in before:
        say(f"  {finding.path} {finding.what}")
    with holding(url, run_id, storage_options) as lease:
        works = mend_metadata(url, storage_options, search or _searching(sources), lease, before)
        engine = EngineOptions(
            actors=actors, storage_options=storage_options, source_options=sources, quiet=quiet, lease=lease.to_pass,
        )  # fmt: skip
        tally = _encode_again(url, works, engine, run_id, lease, say, trusted)
    named = {path for path, _ in before}
    after = survey(url, storage_options)
    return Repaired(
        url,
        (*before, *(f for work in works for f in work.findings if f.path not in named)),
        tuple(after),
        tally.windows.total(),
        sum(tally.windows[state] for state in FAILED),
        tally.interrupted,
    )


@dataclass(frozen=True, slots=True)
class Work:
    """A cube whose metadata and log are whole, and which of its units are to be encoded again."""

    zone: str | None
    cube: Cube
    store: CubeStore
    findings: tuple[Finding, ...]
    """What its metadata and its log lacked; the zone is named in the paths."""
    damaged: frozenset[Place]
    """Units whose objects are not the logged ones."""
    log_lost: bool
    """A part of the log is lost: units without a receipt are to be done again, and failed windows."""


def mend_metadata(
    url: str,
    storage_options: Options,
    search: Search | None,
    lease: Lease,
    known: Sequence[Finding] | None = None,
) -> tuple[Work, ...]:
    """Mend plans, logs and metadata of all cubes of a store, and the root over them; under its lease.

    Args:
        url: of the store.
        storage_options: fsspec options of it.
        search: for where a plan is lost.
        lease: whatever is written asks it.
        known: what `survey` found: where metadata and log are whole, shards need not be read once more.
    """
    works = []
    for zone, place in places(url, storage_options):
        mended = mend(Objects(place, storage_options, fence=lease), search)
        store = CubeStore.open(place, storage_options=storage_options, fence=lease)
        before = "" if zone is None else f"{zone}/"
        if known is None or mended.findings:
            findings: Sequence[Finding] = store.verify()
        else:
            findings = [Finding(f.path.removeprefix(before), f.what) for f in known if f.path.startswith(before)]
        plan, damaged = mended.plan, damaged_units(findings, store.array, places_of(mended.plan))
        named = tuple(Finding(before + f.path, f.what) for f in mended.findings)
        works.append(Work(zone, Cube(plan, place), store, named, damaged, mended.log_lost))
    gather(Objects(url, storage_options, fence=lease), works)
    return tuple(works)


@contextmanager
def holding(url: str, run_id: str, storage_options: Options) -> Iterator[Lease]:
    """Hold the lease over a store whose root may be damaged: that of the root, and no zone held by another."""
    with Lease(Objects(url, storage_options), run_id) as lease:
        for zone in zones_in(Objects(url, storage_options)):
            refuse_if_held(Objects(f"{url.rstrip('/')}/{zone}", storage_options))
        yield lease


def mend_first(url: str, storage_options: Options, search: Search, say: Say) -> bool:
    """Mend the metadata and logs of a store, if one is there, so that a run can go on with it.

    Returns:
        Whether a part of a log is lost.
    """
    if not Objects(url, storage_options).names():
        return False
    url = root_over(url, storage_options)
    with holding(url, new_run_id(), storage_options) as lease:
        works = mend_metadata(url, storage_options, search, lease, ())
    for work in works:
        for finding in work.findings:
            say(f"mended: {finding.path} {finding.what}")
    return any(work.log_lost for work in works)


def places_of(plan: Plan) -> list[Place]:
    """Every (time, shard row, shard column) of a plan."""
    return [(t, row, col) for t in range(len(plan.times)) for row, col in plan.grid.shards()]


def damaged_places(store: CubeStore, plan: Plan) -> frozenset[Place]:
    """The units of a cube, whose metadata are whole, whose objects are not the logged ones.

    Where no scene is, there is nothing to encode again: an object that lies there is removed.
    """
    damaged = damaged_units(store.verify(), store.array, places_of(plan))
    if damaged:
        remove_empty(store, plan, damaged)
    return damaged


def remove_empty(store: CubeStore, plan: Plan, damaged: Collection[Place]) -> None:
    """Remove the damaged objects of units that no scene touches."""
    for unit in plan.units():
        if unit.empty and (unit.time, unit.row, unit.col) in damaged:
            store.target.delete(store.shard_key(unit.time, unit.row, unit.col))


def gather(target: Objects, works: Sequence[Work]) -> None:
    """Write the root over several zones where it is not what they say of themselves."""
    zones = [work.zone for work in works if work.zone is not None]
    if zones and target.get(ROOT) != (data := gathered(target, zones)):
        target.put(ROOT, data)


def units_of(work: Work) -> Iterator[WorkUnit]:
    """The units of a cube to encode again."""
    left = Remaining(work.cube.plan, work.store.log.latest(), FAILED if work.log_lost else (), work.damaged)
    for unit in left.units():
        if work.log_lost or (unit.time, unit.row, unit.col) in work.damaged:
            yield unit


def _encode_again(
    url: str,
    works: Sequence[Work],
    engine: EngineOptions,
    run_id: str,
    lease: Lease,
    say: Say,
    trusted: bool,
) -> RunTally:
    """Encode what is damaged or has lost its receipt, and write anew what follows from the log."""
    todo = [(k, unit) for k, work in enumerate(works) for unit in units_of(work)]
    cubes = [work.cube for work in works]
    windows = sum(windows_in(cubes[k].plan, unit) for k, unit in todo)
    tally = RunTally()
    try:
        for work in works:
            if work.damaged:
                remove_empty(work.store, work.cube.plan, work.damaged)
        if any(not unit.empty for _, unit in todo):
            gpus = default_gpus(None)
            for cube in cubes:
                _check_models(cube, "cuda" if gpus > 0 else "cpu", say)
                _check_sources(cube, trusted)
            limits = Limits(
                max_cloud=cubes[0].plan.request.get("max_cloud"),
                verify_fraction=max(sampled_fraction(w.cube.plan, w.store.log.latest()) for w in works),
            )
            engine = replace(engine, gpus_per_actor=gpus, limits=limits)
            say(f"{windows} windows of {len(todo)} shards are encoded again")
        if todo:
            tally = run_engine(
                cubes, engine, todo, run_id, total=windows, check=lease.check, fence=lease, died=lease.took_over
            )
    finally:
        if lease.held:
            for work in works:
                work.store.finalise()
            gather(Objects(url, engine.storage_options, fence=lease), works)
    lease.check()
    return tally


def _check_models(cube: Cube, device: str, say: Say) -> None:
    """StoreError where the plan's weights are others here; a line where the numerics are."""
    from eocube.products import registry

    product, was = cube.plan.product, cube.plan.numerics
    kind = registry.kind(product.kind)
    try:
        kind.open(product)
    except StoreError as error:
        raise StoreError(f"{cube.url}: {error}; nothing was encoded") from error
    here = kind.numerics(product, device, was)
    other = [f"{name} {was[name]}, here {here[name]}" for name in here if name in was and was[name] != here[name]]
    if other:
        say(f"made on other numerics ({'; '.join(other)}): what is encoded again is equal within the tolerance only")


def _check_sources(cube: Cube, trusted: bool) -> None:
    """StoreError where a plan leads to what a store at its place may not name."""
    if (derived := cube.plan.derived) is not None:
        try:
            check_href(derived.parent, cube.url, allow_local=trusted)
        except SourceError as error:
            raise StoreError(f"{cube.url}, made from {derived.parent}: {error}") from error
        return
    for scene in cube.plan.scenes:
        for source in scene.sources:
            try:
                check_href(source.href, cube.url, allow_local=trusted)
            except SourceError as error:
                raise StoreError(f"{cube.url}, scene {scene.id}: {error}") from error


def sampled_fraction(plan: Plan, latest: Latest) -> float:
    """The share of its windows that a cube's runs decoded again: told by the windows that have a score.

    The usual share where it fits or nothing tells; the sample is drawn by place, so that the same share draws the same
    windows. Of cubes whose runs had different shares, one that draws all of those with a score.
    """
    ok, scored = (np.zeros(plan.grid.windows_shape, np.bool_) for _ in range(2))
    for receipt in latest:
        for w in receipt.windows:
            if w.state is State.OK:
                ok[w.row, w.col] = True
                scored[w.row, w.col] |= w.psnr is not None or w.sam is not None

    def drawn(fraction: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
        mask = np.zeros_like(ok)
        for window in Sample.of(plan.grid, fraction).windows:
            mask[plan.grid.place_in_status(window)] = True
        return mask & ok

    for fraction in (USUAL_FRACTION, 1.0, 0.0):
        if (drawn(fraction) == scored).all():
            return fraction
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if (scored <= drawn(middle)).all() else (middle, high)
    return high


def _searching(source_options: Options) -> Search:
    """A search for the plans that a store's root describes."""

    def search(request: Mapping[str, Any] | None) -> Sequence[Plan]:
        if request is None:
            raise StoreError("the store's root is damaged too: run the command that made it with --retry damaged")
        if "region" in request:
            raise StoreError(
                "the store was made by a --region, whose outline its damaged plan held: run the command "
                "that made it with --retry damaged"
            )
        gpus = default_gpus(None)
        try:
            said: dict[str, Any] = {name: str(request[name]) for name in ("catalog", "weights", "precision", "sensor")}
            first, last = (datetime.fromisoformat(moment) for moment in request["datetime"])
            boxes, extent = (
                tuple((float(w), float(s), float(e), float(n)) for w, s, e, n in given)
                for given in (request["bbox"], request.get("extent", ()))
            )
            asked = Selection(
                **said, boxes=boxes, interval=(first, last), bands=tuple(map(str, request["bands"])),
                resolution=float(request["resolution"]), storage=request.get("storage"),
                quality=request.get("quality"),
                product=request.get("product", DEFAULT),
                product_options={k: str(v) for k, v in request.get("product_options", {}).items()},
                max_cloud=None if request["max_cloud"] is None else float(request["max_cloud"]),
                offset=None if request.get("offset") is None else float(request["offset"]),
            )  # fmt: skip
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise StoreError(f"the store's root does not say what was asked for ({error!r})") from error
        parsed = replace(Request.parse(asked, Running(), on_gpu=gpus > 0, writes=False), extent=extent)
        return make_plans(parsed, product_of(parsed), source_options)

    return search


def lines(found: Repaired) -> Iterator[str]:
    """What a repair came to, for people."""
    if not found.damaged:
        yield "nothing wrong found"
        return
    gone = Counter(path for path, _ in found.damaged) - Counter(path for path, _ in found.left)
    yield f"{len(gone)} of {len(found.damaged)} mended, {found.windows} windows encoded again"
    for path, what in found.left:
        yield f"  left: {path} {what}"
    if found.failed:
        yield f"  {found.failed} windows could not be read or encoded: eocube status says why"
    if found.interrupted:
        yield "interrupted: the same command goes on where it stopped"
