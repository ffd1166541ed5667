"""Reads a store back and says what is not as the commit log and the layout have it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eocube.errors import StoreError
from eocube.plan.plan import Plan
from eocube.plan.rules import short
from eocube.products.identity import FROM_LOG
from eocube.store import overview
from eocube.store.commit_log import FOLDER, LAYOUT, SEAL, Latest
from eocube.store.existing import is_litter
from eocube.store.layout import ROOT, is_chunk
from eocube.store.receipts import Receipt, State, checked
from eocube.store.tables import Summary, Totals

if TYPE_CHECKING:
    from eocube.net.objects import Objects
    from eocube.store.store import CubeStore

_AT_ONCE = 8


STRAY = "belongs to no part of the store: remove it"
"""What is said of an object that is none of the store's: it is left where it is."""


class Finding(NamedTuple):
    """An object, by its place in the store, and what is wrong with it."""

    path: str
    what: str


def seal(objects: Mapping[str, bytes], root: Mapping[str, Any]) -> bytes:
    """What `commits/layout.json` holds: hashes of what never changes, and of the root but for `FROM_LOG`."""
    body = {
        "sha256": {k: hashlib.sha256(v).hexdigest() for k, v in objects.items()},
        "root": _root_hash(root),
        "plan_hash": root["attributes"]["eocube"]["plan_hash"],
    }
    return json.dumps({**body, "check": _hash(body)}, indent=1).encode()


def _root_hash(root: Mapping[str, Any]) -> str:
    attributes = root["attributes"]
    document = {k: v for k, v in attributes["eocube"].items() if k not in FROM_LOG}
    return _hash({**root, "attributes": {**attributes, "eocube": document}})


def _hash(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def verify_store(store: CubeStore, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """All findings, in the order layout, root, results, shards; see `CubeStore.verify`."""
    try:
        latest = store.log.latest()
    except StoreError as error:
        key = re.search(rf"{FOLDER}/\d+\.jsonl", str(error))
        return [Finding(key[0] if key else FOLDER, str(error))]
    findings = _layout(store)
    if findings:  # what is read through damaged metadata would only repeat it
        return findings
    findings += _log(store, latest)
    totals, keys = Totals(store.requested), set[str]()
    derived = _derived(store, store.derived(latest, totals), keys)
    findings += _root(store, totals.summary(store.values.shape[0]))
    findings += derived
    findings += _shards(store, latest, progress)
    findings += _strays(store, keys)
    return findings


def _strays(store: CubeStore, derived: Collection[str]) -> list[Finding]:
    """Objects that nobody wrote, or that a write left unfinished; under `commits` runs keep leases, logs and notes.

    An overview can be made again at any time, and says itself of what it was made.
    """
    layout = read_layout(store.target) or {"sha256": {}}
    known = {ROOT, LAYOUT, *layout["sha256"], *derived}
    return [
        Finding(key, STRAY)
        for key in store.target.keys("")
        if key not in known
        and not is_chunk(key, store.array)
        and (is_litter(key) or not key.startswith((f"{FOLDER}/", f"{overview.FOLDER}/")))
    ]


def read_layout(target: Objects) -> dict[str, Any] | None:
    """What `seal` wrote; None when it is not there or not as it was written."""
    try:
        layout: dict[str, Any] = json.loads(target.get(LAYOUT) or b"")
        return layout if layout.pop("check") == _hash(layout) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def fits_layout(layout: Mapping[str, Any], root: bytes | None) -> bool:
    """Whether the root's zarr.json is the one that the layout was sealed with, but for `FROM_LOG`."""
    try:
        return bool(_root_hash(json.loads(root or b"")) == layout["root"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return False


def _layout(store: CubeStore) -> list[Finding]:
    layout = read_layout(store.target)
    if layout is None:
        return [Finding(LAYOUT, "is missing" if store.target.get(LAYOUT) is None else "is damaged")]
    hashes: dict[str, str] = layout["sha256"]
    findings = []
    if layout["plan_hash"] != store.document.get("plan_hash"):
        findings.append(Finding(LAYOUT, f"is that of plan {layout['plan_hash']}, or {ROOT} is of an earlier one"))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for (key, expected), found in zip(hashes.items(), pool.map(store.target.get, hashes), strict=True):
            findings += _compare(key, found, expected)
    sound = fits_layout(layout, store.target.get(ROOT))
    return findings if sound else [*findings, Finding(ROOT, "is damaged")]


def _compare(key: str, found: bytes | None, sha256: str) -> list[Finding]:
    if found is None:
        return [Finding(key, "is missing")]
    if hashlib.sha256(found).hexdigest() != sha256:
        return [Finding(key, f"is not what was written: other SHA-256, {len(found)} bytes")]
    return []


def _log(store: CubeStore, latest: Latest) -> list[Finding]:
    """Segments that are not what they were when the store was last finalised."""
    data = store.target.get(SEAL)
    if data is None:
        return [Finding(SEAL, "is missing: finalise the store again")]
    try:
        known: dict[str, str] = checked(data)["segments"]
    except (ValueError, KeyError) as error:
        return [Finding(SEAL, f"is damaged ({error}): finalise the store again")]
    findings = [Finding(key, "is missing") for key in known if key not in latest.segments]
    findings += [
        Finding(key, "is not what was written: other CRC-32")
        for key, found in latest.segments.items()
        if known.get(key, found) != found
    ]
    if newer := len(latest.segments.keys() - known.keys()):
        findings.append(Finding(SEAL, f"knows {newer} segments of the log too few: finalise the store again"))
    return findings


def _root(store: CubeStore, summary: Summary) -> list[Finding]:
    found, expected = (
        [json.loads(data)["attributes"]["eocube"].get(name) for name in FROM_LOG]
        for data in (store.target.get(ROOT) or b"", store.root_bytes(summary))
    )
    if found == expected:
        return []
    return [Finding(ROOT, "its moments, histogram or seams are not those of the commit log: finalise the store again")]


def _derived(store: CubeStore, objects: Iterable[tuple[str, bytes | None]], keys: set[str]) -> list[Finding]:
    """What differs from the objects that follow from the log; `keys` takes in theirs."""
    findings = []
    for key, expected in objects:
        keys.add(key)
        found = store.target.get(key)
        if found == expected:
            continue
        if found is None:
            findings.append(Finding(key, "is missing: finalise the store again"))
        else:
            findings.append(Finding(key, "is not what the commit log gives: finalise the store again"))
    return findings


def _shards(store: CubeStore, latest: Latest, progress: Callable[[int, int], None] | None) -> list[Finding]:
    findings: list[Finding] = []
    logged: set[str] = set()
    done = 0
    receipts = iter(latest)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        while batch := list(islice(receipts, 4 * _AT_ONCE)):
            logged.update(store.shard_key(r.time, *r.shard) for r in batch if r.sha256 is not None)
            for found in pool.map(lambda receipt: _shard(store, receipt), batch):
                findings += found
                done += 1
                if progress is not None:
                    progress(done, len(latest))
    named = {finding.path for finding in findings}
    for key in store.target.keys(f"{store.array}/c"):
        if is_chunk(key, store.array) and key not in logged and key not in named:
            findings.append(Finding(key, "is not in the commit log: the same command writes it again"))
    return findings


def _shard(store: CubeStore, receipt: Receipt) -> Iterable[Finding]:
    key = store.shard_key(receipt.time, *receipt.shard)
    data = store.target.get(key)
    if receipt.sha256 is None:
        wrong = [Finding(key, "should not be there: its unit wrote nothing")] if data is not None else []
        if any(w.state is State.OK for w in receipt.windows):
            wrong.append(Finding(key, "has ok windows in the log and no object"))
        return wrong
    findings = _compare(key, data, receipt.sha256)
    if data is None:
        return findings
    if findings:
        where = store.values.codec.damage(data)
        return [Finding(key, f"{findings[0].what}; {where or 'every chunk is whole: it is another version'}")]
    try:
        block = store.values.codec.decode(data)[0]
    except Exception as error:  # whatever the codecs raise on damage
        return [Finding(key, f"cannot be decoded: {type(error).__name__} {error}")]
    core = store.core
    present = store.storage.there(block)
    every, some = (
        f(present, axis=0).reshape(block.shape[1] // core, core, block.shape[2] // core, core) for f in (np.all, np.any)
    )
    full, any_there = every.all(axis=(1, 3)), some.any(axis=(1, 3))
    ok = np.zeros(full.shape, dtype=np.bool_)
    for window in receipt.windows:
        row, col = window.row - receipt.shard.row * ok.shape[0], window.col - receipt.shard.col * ok.shape[1]
        ok[row, col] = window.state is State.OK
    lacking, extra = int((ok & ~full).sum()), int((~ok & any_there).sum())
    if lacking:
        findings.append(Finding(key, f"{lacking} ok windows lack values"))
    if extra:
        findings.append(Finding(key, f"{extra} windows that are not ok hold values"))
    return findings


def told_otherwise(plan: Plan, receipts: Iterable[Receipt]) -> list[tuple[str, str]]:
    """Units that were read by another rule than the plan has: (unit, what differs)."""
    rules = {scene.id: short(scene) for scene in plan.scenes}
    found: list[tuple[str, str]] = []
    for receipt in receipts:
        for scene, said in receipt.rules.items():
            if rules.get(scene) != said:
                found.append(
                    (receipt.unit, f"read {scene} as {said}, the plan says {rules.get(scene, 'no such scene')}")
                )
    return found
