"""Keeps a cube in Zarr: creates or resumes it, writes shards whole, logs commits, finalises, verifies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from eocube.errors import StoreError
from eocube.net.objects import Objects, storing
from eocube.products.documents import stored_form, summary_kind
from eocube.products.identity import refuse_edited
from eocube.products.storage import Storage, plain_storage
from eocube.read.coverage import ON_LATENTS
from eocube.store.commit_log import LAYOUT, PLAN, SEAL, CommitLog, Latest
from eocube.store.differences import difference
from eocube.store.existing import create_root, finalise_root, half_made, read_root, refuse_half_moved
from eocube.store.fence import Fence
from eocube.store.layout import ROOT, ArraySpec, StorePlan, array_specs, is_chunk
from eocube.store.publish import from_log, layout_objects, publish
from eocube.store.receipts import Receipt, State
from eocube.store.root import eocube_document, root_attributes, root_metadata
from eocube.store.shard_codec import Block
from eocube.store.tables import Scores, Summary, Totals, derived_objects, summarise
from eocube.store.verify import Finding, seal, verify_store

__all__ = ["CubeStore", "Finding", "Scores", "Summary", "create_root", "finalise_root"]


Options = Mapping[str, Any] | None
Url = str | PathLike[str]


class CubeStore:
    """One cube's store. `create` makes or resumes it (the driver), `open` is one request (every actor).

    Shards may be written from several threads and processes at once, each shard by one of them; commits and
    `finalise` are the one driver's.
    """

    def __init__(self, target: Objects, root: Mapping[str, Any]) -> None:
        self.target = target
        self.log = CommitLog(target)
        self.root = root
        members = root["consolidated_metadata"]["metadata"]
        self.specs: dict[str, ArraySpec] = {name: ArraySpec.parse(name, m) for name, m in members.items()}
        self.array, self.storage = self._stored()
        self._codec = self.values.codec

    def _stored(self) -> tuple[str, Storage]:
        """The array of values and how they are stored. KeyError, ValueError, ... where the root is damaged."""
        array, storage = stored_form(self.document)
        held = self.specs[array].dtype
        if held == storage.dtype:
            return array, storage
        plain = plain_storage(held)  # what was edited is named by verification, for which it has to be opened
        if plain is None:
            raise StoreError(f"{self.target} holds {array}s as {held} and does not say what they mean: it is damaged")
        return array, plain

    @classmethod
    def create(
        cls, url: Url, plan: StorePlan, *, storage_options: Options = None, fence: Fence | None = None
    ) -> CubeStore:
        """Make the store of a plan, or open the one that an earlier run of the same plan made.

        The plan is written first and the root's zarr.json last: a store that was killed in the making has no root,
        and the same plan makes it again. `fence` is the driver's lease: whatever is written asks it.

        Raises:
            StoreError: the target cannot be written, holds something else, or a store of another plan; nothing there
                was touched. The message says the difference.
        """
        target = Objects(url, storage_options, fence=fence)
        found = read_root(target)
        if found is not None:
            refuse_edited(found["attributes"]["eocube"], str(target))
            store = cls(target, found)
            if store.document.get("plan_hash") in getattr(plan, "extends", ()):
                target.tidy(everything=True)
                return cls._grow(target, plan, store)
            different = difference(store.document, plan, store._steps)
            if different and _is_of(target, plan):  # its root is what another run, or an editor, wrote over it
                return cls.make(target, plan)
            if different:
                raise StoreError(f"{target} is a store of {different}; write to another target")
            target.tidy(everything=True)
            begin_term(target)
            return store
        made = half_made(target)
        if made is not None and json.loads(made).get("hash") != plan.hash:
            raise StoreError(f"{target} is a store half made for another plan: remove it or write to another target")
        target.tidy(everything=True)
        with target.undone_on_error():
            return cls.make(target, plan)

    @classmethod
    def _grow(cls, target: Objects, plan: StorePlan, store: CubeStore) -> CubeStore:
        """Make the store that of a plan which grew from its own.

        The plan is replaced first, so that the same command goes on after a kill. Objects keep their keys and cuts,
        and those with more in them than before still serve who has the old metadata; the root's zarr.json, written
        last, makes the new extent seen at once. No object is ever renamed (`eocube.run.extend`).

        Raises:
            StoreError: the plan's arrays have another north-western corner, or are smaller; nothing was touched.
        """
        was, corner, shape = store.document["grid"], plan.grid.transform, store.values.shape[2:]
        if [was["transform"][2], was["transform"][5]] != [corner.c, corner.f]:
            refuse_half_moved(target)
            raise StoreError(f"{target}: the north-western corner of a store never moves: write to another target")
        if any(new < old for new, old in zip(plan.grid.shape, shape, strict=True)):
            raise StoreError(f"{target}: the arrays of a store never shrink: write to another target")
        return cls.make(target, plan)

    @classmethod
    def make(cls, target: Objects, plan: StorePlan) -> CubeStore:
        """Write everything that follows from a plan and the log, the root's zarr.json last; shards stay as they are."""
        text = plan.to_json().encode()
        target.put(PLAN, text)
        begin_term(target)
        objects = layout_objects(target, plan)
        requested = np.asarray(plan.grid.requested_mask, dtype=np.bool_)
        latest, totals = CommitLog(target).latest(), Totals(requested)
        document = eocube_document(plan)
        # The seal of the layout leaves out what follows from the log, which is known only when all of it was read.
        root = root_metadata(root_attributes(plan, document), objects)
        objects[LAYOUT] = seal({PLAN: text, **objects}, json.loads(root))
        derived = derived_objects(array_specs(plan), latest, requested, valid=False, seen=totals.add)
        # The arrays' own metadata after all that they cover, for readers that pass the root's over.
        metadata = {key: objects.pop(key) for key in list(objects) if key.endswith(f"/{ROOT}")}
        publish(target, chain([(SEAL, latest.seal()), *objects.items()], derived))
        publish(target, metadata.items())
        attributes = root_attributes(
            plan, {**document, **from_log(totals.summary(len(plan.times)), plan.product.summary)}
        )
        root = root_metadata(attributes, metadata)
        target.put(ROOT, root)
        return cls(target, json.loads(root))

    @classmethod
    def made_again(cls, url: Url, plan: StorePlan, *, storage_options: Options, fence: Fence) -> CubeStore:
        """Write what differs of all but the shards and the log, of a store that was made or opened in this run.

        For the end of a run that took a store over where writes of the old owner may have come in late.
        """
        return cls.make(Objects(url, storage_options, fence=fence), plan)

    @classmethod
    def open(
        cls, url: Url, *, storage_options: Options = None, check: bool = True, fence: Fence | None = None
    ) -> CubeStore:
        """Open a store that is there, in one request.

        StoreError when there is none, one of several zones, or one that says other things of its latents than when it
        was written; the last only with `check`, which who names or mends the damage leaves out. `fence` is asked by
        what writes to it: the driver's lease, or an actor's part of it.
        """
        target = Objects(url, storage_options, fence=fence)
        root = read_root(target)
        if root is None:
            refuse_half_moved(target)
            raise StoreError(f"no eocube store at {target}")
        if check:
            refuse_edited(root["attributes"]["eocube"], str(target))
        try:
            return cls(target, root)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise StoreError(f"{target}: its zarr.json is damaged ({error!r}): eocube repair mends it") from error

    @staticmethod
    def stored_plans(url: Url, *, storage_options: Options = None) -> tuple[str, ...]:
        """The frozen plans of the store, one a zone, as their JSON; empty when nothing is there.

        StoreError when the target holds something that is no eocube store.
        """
        target = Objects(url, storage_options)
        root = read_root(target, zones=True)
        if root is None:
            made = half_made(target)
            return () if made is None else (made.decode(),)
        zones = root["attributes"]["eocube"].get("zones")
        keys = [PLAN] if zones is None else [f"{zone}/{PLAN}" for zone in zones]
        texts = [target.get(key) for key in keys]
        return () if None in texts else tuple(text.decode() for text in texts if text is not None)

    # -- what it is

    @property
    def document(self) -> dict[str, Any]:
        """The `eocube` attribute."""
        return dict(self.root["attributes"]["eocube"])

    @property
    def term(self) -> int | None:
        """The term of the lease that it is written under; None for a reader."""
        return None if self.target.fence is None else self.target.fence.term

    @property
    def values(self) -> ArraySpec:
        """The array of values: (time, channel, y, x)."""
        return self.specs[self.array]

    @property
    def core(self) -> int:
        """Side of a core in latent pixels."""
        return self.values.shape[2] // self.specs["status"].shape[1]

    @cached_property
    def requested(self) -> npt.NDArray[np.bool_]:
        """(wy, wx): which cores were asked for."""
        return np.asarray(self._array("requested")).astype(np.bool_)

    @cached_property
    def times(self) -> npt.NDArray[np.datetime64]:
        """(time,): starts of the acquisitions, UTC, to the second, in the order of the time axis."""
        return self._array("time").astype("datetime64[s]")

    def _array(self, name: str) -> Block:
        """A small array whole. Its objects come by the target's own requests: counted, limited, made again."""
        import zarr
        from zarr.abc.buffer import Buffer
        from zarr.buffer.cpu import Buffer as CpuBuffer
        from zarr.storage import MemoryStore

        keys = [key for key in self.target.keys(name) if key == f"{name}/{ROOT}" or is_chunk(key, name)]
        objects: dict[str, Buffer] = {
            key: CpuBuffer.from_bytes(data) for key, data in zip(keys, self.target.get_many(keys), strict=True)
        }
        with storing("read", self.target.at(name)):
            return np.asarray(zarr.open_array(MemoryStore(objects, read_only=True), path=name, mode="r")[...])

    def _steps(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Times (ISO UTC, to the second) and scene ids of the time axis."""
        return tuple(f"{t}Z" for t in self.times), tuple(str(ids) for ids in self._array("scene_ids"))

    # -- shards

    def shard_key(self, time_index: int, srow: int, scol: int) -> str:
        """Key of a shard's object."""
        return self.values.key(time_index, 0, srow, scol)

    def write_shard(
        self, time_index: int, srow: int, scol: int, stored: Block, *, fresh: bool = True
    ) -> tuple[int, str | None]:
        """Write one whole shard (C, S, S) in the store's dtype, in exactly one request and without reading.

        All fill leaves no object: one that an interrupted run left is removed, by one request too. On S3 and behind a
        fence it is one request where `fresh` is true and right; a shard that is there is read first, by one or two
        requests more, and left where it has these bytes.

        Returns:
            Bytes written and the object's SHA-256; (0, None) when all is fill.

        Raises:
            ValueError: values of another shape or dtype, or a shard outside the array.
            StoreError: the target refuses.
        """
        spec = self.values
        assert spec.shards is not None
        if stored.shape != spec.shards[1:] or stored.dtype != np.dtype(spec.dtype):
            raise ValueError(
                f"shard of {stored.dtype} {stored.shape} where the store has {spec.dtype} {spec.shards[1:]}"
            )
        index = (time_index, 0, srow, scol)
        if not all(0 <= i < -(-n // s) for i, n, s in zip(index, spec.shape, spec.shards, strict=True)):
            raise ValueError(f"shard {(time_index, srow, scol)} is outside the store's {spec.shape}")
        data = self._codec.encode(stored[None])
        key = self.shard_key(time_index, srow, scol)
        if data is None:
            self.target.delete(key)
            return 0, None
        self.target.put(key, data, fresh=fresh)
        return len(data), hashlib.sha256(data).hexdigest()

    def read_shard(self, time_index: int, srow: int, scol: int) -> Block:
        """A whole shard (C, S, S) in the store's dtype, in one request; all fill where there is no object."""
        spec = self.values
        assert spec.shards is not None
        key = self.shard_key(time_index, srow, scol)
        data = self.target.get(key)
        if data is None:
            return np.full(spec.shards[1:], spec.fill, spec.dtype)
        with storing("decode", self.target.at(key)):
            block: Block = self._codec.decode(data)[0]
            return block

    # -- the commit log

    def commit(self, receipts: Iterable[Receipt]) -> None:
        """Log finished units as one segment. Only after their shards are safely written."""
        self.log.append(receipts)

    def receipts(self) -> Iterator[Receipt]:
        """The receipts that count, the last of each (time, shard), in that order. `log.receipts()` has the history."""
        return iter(self.log.latest())

    def summary(self) -> Summary:
        """Counts, scores, bytes, failures and moments, from the log."""
        return self.summarise(self.log.latest())

    def summarise(self, latest: Latest) -> Summary:
        """The summary of receipts already read."""
        return summarise(latest, self.requested, self.values.shape[0])

    def status_counts(self) -> dict[State, int]:
        """Windows by state over all times, every state named."""
        return dict(self.summary().counts)

    def scores(self) -> Scores:
        """Mean PSNR and SAM of the windows measured as they were made."""
        return self.summary().scores

    # -- finalising

    def finalise(self) -> Summary:
        """Write what follows from the log: the arrays beside the latents, status and its companions, moments, the root.

        The same receipts always give the same bytes, in whatever order they came; may be called at any time.
        """
        latest, totals = self.log.latest(), Totals(self.requested)
        present = {key for name in ON_LATENTS if name in self.specs for key in self.target.keys(f"{name}/c")}
        publish(self.target, self.derived(latest, totals), present)
        summary = totals.summary(self.values.shape[0])
        data = self.root_bytes(summary)
        self.target.put(SEAL, latest.seal())
        self.target.put(ROOT, data)
        self.root = json.loads(data)
        self.target.tidy()
        return summary

    def derived(self, latest: Latest, totals: Totals | None = None) -> Iterator[tuple[str, bytes | None]]:
        """The objects that follow from the log, (key, bytes); None for one that is not to be there.

        Every receipt is read once, and counted into `totals` on the way.
        """
        seen = None if totals is None else totals.add
        return derived_objects(self.specs, latest, self.requested, seen=seen)

    def root_bytes(self, summary: Summary) -> bytes:
        """The root's zarr.json with the moments and seams of a summary."""
        attributes = {
            **self.root["attributes"],
            "eocube": {**self.document, **from_log(summary, summary_kind(self.document))},
        }
        return json.dumps({**self.root, "attributes": attributes}, indent=1, allow_nan=False).encode()

    def verify(self, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
        """Read back every object: those the log names, those that follow from it, and those of the layout.

        Each is compared with its hash, shards are decoded and checked against their windows' states as well.
        `progress` is called with shards done and all. An empty list means that all is well.
        """
        return verify_store(self, progress)


def begin_term(target: Objects) -> None:
    """Tell the log that this run took the store over, before it reads it."""
    if target.fence is not None and target.fence.is_to_tell(target.url):
        CommitLog(target).begin(target.fence.term)


def _is_of(target: Objects, plan: StorePlan) -> bool:
    """Whether a store is a plan's by its plan and by its layout, whatever its root says."""
    try:
        layout = json.loads(target.get(LAYOUT) or b"{}")
    except ValueError:
        return False
    return layout.get("plan_hash") == plan.hash and target.get(PLAN) == plan.to_json().encode()
