"""Keeps pairs in Zarr: whole shards, a receipt each, statistics of the training split; resumes to the same bytes."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.buffer import Buffer
from zarr.buffer.cpu import Buffer as CpuBuffer
from zarr.storage import MemoryStore

from eocube.errors import InputError, StoreError
from eocube.net.objects import Objects, storing
from eocube.pairs.encoding import Made, Maker
from eocube.pairs.pair_plan import FORMAT, PairPlan, difference, metadata
from eocube.products.identity import DIGEST, signed
from eocube.store.moments import Moments
from eocube.store.receipts import STATES, State, checked, with_check
from eocube.store.shard_codec import ShardCodec

__all__ = ["PairPlan", "PairReceipt", "PairStore", "PairWriter"]

Values = NDArray[Any]
ROOT = "zarr.json"
PLAN = "commits/plan.json"
STATISTICS = "statistics"
_MOMENTS: tuple[str, ...] = ("lr", "hr", "lr_up", "lr_sharp")


@dataclass(frozen=True, slots=True)
class PairReceipt:
    """What a finished unit did: SHA-256 of each object it wrote, how each row ended, moments of its training rows.

    It holds nothing that differs from run to run, so that a store that was resumed has the bytes of one that was not.
    """

    unit: int
    objects: Mapping[str, str]
    states: tuple[int, ...]
    moments: Mapping[str, Moments]

    def to_json(self) -> str:
        """One line with a checksum."""
        moments = {name: m.to_dict() for name, m in sorted(self.moments.items())}
        return with_check(
            {"unit": self.unit, "objects": dict(sorted(self.objects.items())), "states": list(self.states),
             "moments": moments}
        )  # fmt: skip

    @classmethod
    def from_json(cls, line: bytes) -> PairReceipt:
        """Inverse of `to_json`; ValueError for what is not whole."""
        found = checked(line)
        moments = {name: Moments.from_dict(m) for name, m in found["moments"].items()}
        return cls(int(found["unit"]), dict(found["objects"]), tuple(map(int, found["states"])), moments)


def _receipt_key(unit: int) -> str:
    return f"commits/{unit:08d}.json"


class PairWriter:
    """A store in the making: its plan is there, its root not yet. One driver at a time (hand in a fenced target).

    Raises:
        InputError: something else is there: a store of another space, of other pairs, or no pair store. Nothing there
            was touched.
    """

    def __init__(self, target: Objects, plan: PairPlan) -> None:
        self.target, self.plan = target, plan
        if not self.refuse(target, plan):
            target.put(PLAN, plan.to_json().encode())
        self.done = {unit: receipt for unit in range(plan.units) if (receipt := self._receipt(unit)) is not None}

    @staticmethod
    def refuse(target: Objects, plan: PairPlan) -> bool:
        """InputError where the target holds something else than the plan's store; whether it holds that. Only reads."""
        found = target.get(PLAN)
        if found is None:
            others = [name for name in target.names() if name != "commits"]
            if others:
                raise InputError(f"{target} holds {others[0]} and is no pair store: write to another target")
            return False
        if found != plan.to_json().encode():
            raise InputError(
                f"{target} is a pair store of {difference(json.loads(found), plan)}; write to another target"
            )
        return True

    @property
    def pending(self) -> list[int]:
        """Units that are still to do."""
        return [unit for unit in range(self.plan.units) if unit not in self.done]

    def write(self, unit: int, made: Sequence[Made | None]) -> PairReceipt:
        """Write a unit's objects and then its receipt. StoreError where the target refuses."""
        rows = self.plan.of_unit(unit)
        objects: dict[str, str] = {}
        for name, form in self.plan.forms.items():
            block = np.full((len(rows), *form.shape), form.fill, form.dtype)
            for k, one in enumerate(made):
                value = None if one is None else getattr(one, name)
                if value is not None:
                    with np.errstate(over="ignore"):
                        block[k][tuple(slice(0, n) for n in value.shape)] = value
            key = f"{name}/c/{unit}" + "/0" * len(form.shape)
            data = self.plan.codec(name).encode(block)
            if data is None:
                self.target.delete(key)
                continue
            self.target.put(key, data, fresh=True)
            objects[key] = hashlib.sha256(data).hexdigest()
        states = tuple(int(State.NODATA if one is None else State.OK) for one in made)
        receipt = PairReceipt(unit, objects, states, self._moments(rows, made))
        self.target.put(_receipt_key(unit), receipt.to_json().encode(), fresh=True)
        self.done[unit] = receipt
        return receipt

    def _moments(self, rows: range, made: Sequence[Made | None]) -> dict[str, Moments]:
        """Of what is stored of the training rows, in the order of the rows."""
        found = {}
        for name in _MOMENTS:
            if name not in self.plan.forms:
                continue
            dtype = self.plan.forms[name].dtype
            parts = (
                Moments.of(getattr(one, name).astype(dtype))
                for row, one in zip(rows, made, strict=True)
                if one is not None and self.plan.rows[row].note.split == "train"
            )
            found[name] = Moments.merged(parts)
        return found

    def finalise(self, maker: Maker) -> PairStore:
        """Write tables and metadata, the root last: only then there is a store to open."""
        if self.pending:
            raise StoreError(
                f"{self.target}: {len(self.pending)} of {self.plan.units} units are not done: run it again"
            )
        receipts = [self.done[unit] for unit in range(self.plan.units)]
        statistics = {}
        for name in _MOMENTS:
            total = Moments.merged(r.moments[name] for r in receipts if name in r.moments)
            if total.count:
                statistics[name] = {"count": total.count, "mean": list(total.mean), "std": list(total.std)}
        states = [s for receipt in receipts for s in receipt.states]
        document = signed(
            {**self.plan.document, STATISTICS: statistics, "rows": dict(Counter(STATES[s] for s in states))}
        )
        objects = metadata(self.plan, document, states, maker)
        root = objects.pop(ROOT)
        for key, data in sorted(objects.items()):
            self.target.put(key, data)
        self.target.put(ROOT, root)
        return PairStore(self.target, json.loads(root))

    def _receipt(self, unit: int) -> PairReceipt | None:
        """A unit's receipt where there is one, whole, of objects that are there."""
        line = self.target.get(_receipt_key(unit))
        if line is None:
            return None
        try:
            return PairReceipt.from_json(line)
        except (ValueError, KeyError, TypeError):
            return None


class PairStore:
    """A finished pair store, read only. It pickles without its connection.

    `open` raises StoreError where there is none, or one that is unfinished or was edited.
    """

    def __init__(self, target: Objects, root: Mapping[str, Any]) -> None:
        self.target = target
        self.document: dict[str, Any] = dict(root["attributes"]["eocube"])
        members = root["consolidated_metadata"]["metadata"]
        self.shapes: dict[str, tuple[int, ...]] = {name: tuple(m["shape"]) for name, m in members.items()}
        self._members = members
        self._codecs: dict[str, ShardCodec] = {}
        for name in ("lr", "hr", "lr_up", "lr_sharp", "lr_image", "hr_image"):
            if name in members:
                self._codecs[name] = _codec_of(members[name])

    @classmethod
    def open(cls, url: str | PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> PairStore:
        """Open a store in one request."""
        target = Objects(url, storage_options)
        data = target.get(ROOT)
        if data is None:
            begun = target.get(PLAN) is not None
            raise StoreError(
                f"{target} is not finished: run the command that began it again"
                if begun
                else f"no pair store at {target}"
            )
        try:
            root = json.loads(data)
            document = root["attributes"]["eocube"]
            if document["format"] != FORMAT:
                raise KeyError("format")
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{target} is no pair store of this version ({error!r})") from None
        if signed({key: value for key, value in document.items() if key != DIGEST}) != document:
            raise StoreError(f"{target}: its `eocube` attribute is not what was written: restore its zarr.json")
        return cls(target, root)

    def __len__(self) -> int:
        return self.shapes["lr"][0]

    def __getstate__(self) -> dict[str, Any]:
        where = self.target.url, self.target.options
        return {key: value for key, value in self.__dict__.items() if key != "target"} | {"where": where}

    def __setstate__(self, state: dict[str, Any]) -> None:
        url, options = state.pop("where")
        self.__dict__.update(state)
        self.target = Objects(url, options)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays of values and pixels."""
        return tuple(self._codecs)

    @property
    def per_unit(self) -> int:
        """Rows of a shard."""
        return self._codecs["lr"].shape[0]

    @property
    def scale(self) -> int:
        """High-resolution pixels along a low-resolution one."""
        return int(self.document["scale"])

    @property
    def statistics(self) -> Mapping[str, Mapping[str, Any]]:
        """{"lr" | "hr" | "lr_up" | "lr_sharp": {"count", "mean", "std"}} of the training rows."""
        found: Mapping[str, Mapping[str, Any]] = self.document[STATISTICS]
        return found

    @cached_property
    def tables(self) -> dict[str, Values]:
        """What is known of each row: id, place, level, split, lr_space, hr_space, resolution, side, flip, epsg, bounds,
        transform, status."""
        return {name: self._table(name) for name in self.shapes if name not in self._codecs}

    def shard(self, name: str, unit: int) -> Values:
        """The rows of a unit as stored, (rows, ...), in one request; fill where nothing was written."""
        codec = self._codecs[name]
        key = f"{name}/c/{unit}" + "/0" * (len(codec.shape) - 1)
        data = self.target.get(key)
        count = min(len(self), (unit + 1) * self.per_unit) - unit * self.per_unit
        if data is None:
            return np.full((count, *codec.shape[1:]), codec.fill, codec.dtype)
        with storing("decode", self.target.at(key)):
            return codec.decode(data)[:count]

    def unit_bytes(self, names: Sequence[str]) -> int:
        """Bytes in memory of the shards of a unit."""
        codecs = [self._codecs[name] for name in names]
        return sum(math.prod(codec.shape) * np.dtype(codec.dtype).itemsize for codec in codecs)

    def physical(self, name: str, stored: Values) -> Values:
        """Pixels as stored -> float32 in the sensor's unit, NaN where there is none."""
        attributes = self._members[name]["attributes"]
        fill = self._codecs[name].fill
        values = stored.astype(np.float32) * np.float32(attributes["scale_factor"]) + np.float32(
            attributes["add_offset"]
        )
        return np.where(stored == fill, np.float32(np.nan), values) if fill == fill else values

    def verify(self) -> list[str]:
        """Keys of objects that are missing or not as their receipts have them."""
        bad = []
        for unit in range(-(-len(self) // self.per_unit)):
            line = self.target.get(_receipt_key(unit))
            if line is None:
                bad.append(_receipt_key(unit))
                continue
            for key, sha in PairReceipt.from_json(line).objects.items():
                data = self.target.get(key)
                if data is None or hashlib.sha256(data).hexdigest() != sha:
                    bad.append(key)
        return bad

    def _table(self, name: str) -> Values:
        keys = [f"{name}/{ROOT}", *(k for k in self.target.keys(name) if k.startswith(f"{name}/c"))]
        objects: dict[str, Buffer] = {
            key: CpuBuffer.from_bytes(data) for key, data in zip(keys, self.target.get_many(keys), strict=True)
        }
        with storing("read", self.target.at(name)):
            return np.asarray(zarr.open_array(MemoryStore(objects, read_only=True), path=name, mode="r")[...])


def _codec_of(member: Mapping[str, Any]) -> ShardCodec:
    shards = tuple(member["chunk_grid"]["configuration"]["chunk_shape"])
    chunks = tuple(member["codecs"][0]["configuration"]["chunk_shape"])
    fill = member["fill_value"]
    return ShardCodec(shards, chunks, member["data_type"], math.nan if fill == "NaN" else fill, keep_empty=False)
