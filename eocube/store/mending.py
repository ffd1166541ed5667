"""Writes anew what is damaged of a cube's metadata and log, from its plan and from what is whole of the rest.

Nothing here encodes. What is written is what was there where the layout's hashes (`commits/layout.json`) can say so;
an object that this version would write otherwise than the one that made the store is written as this version does, and
the layout with it. Each step leaves a store that the next call goes on with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eocube.errors import EocubeError, StoreError
from eocube.net.objects import Objects
from eocube.plan.plan import Plan
from eocube.products.documents import stored_form
from eocube.products.identity import DIGEST, FROM_LOG, signed
from eocube.store.commit_log import LAYOUT, PLAN, SEAL, CommitLog
from eocube.store.existing import refuse_half_moved
from eocube.store.layout import ROOT
from eocube.store.publish import ITEM, layout_objects
from eocube.store.receipts import checked
from eocube.store.root import eocube_document, root_attributes, root_metadata, versions
from eocube.store.store import CubeStore, begin_term
from eocube.store.verify import Finding, fits_layout, read_layout, seal

Search = Callable[[Mapping[str, Any] | None], Sequence[Plan]]
"""Makes the plans of a request anew, one a zone; it is given the request that the store's root holds, if any."""


@dataclass(slots=True)
class Mended:
    """A cube whose metadata and log are whole: its plan, and what was not."""

    plan: Plan
    findings: list[Finding] = field(default_factory=list)
    log_lost: bool = False
    """Receipts are gone: what an older one of the same unit says may have been tried again since."""


def mend(target: Objects, search: Search | None = None) -> Mended:
    """Mend what follows from the plan, and the log. The caller holds the store's lease.

    Args:
        target: one cube.
        search: for where the plan itself is lost.

    Raises:
        StoreError: the plan is lost, and a search does not give it again.
    """
    refuse_half_moved(target)
    layout, root = read_layout(target), _root(target)
    plan, findings = _plan(target, layout, root, search)
    found = Mended(plan, findings)
    begin_term(target)
    _mend_log(target, found)
    anchors = {document.get("plan_hash") for document in (layout, root and root["attributes"]["eocube"]) if document}
    if not anchors or anchors & set(plan.extends):
        # Half made, or half extended, and the run that did is dead: nothing of it is damaged, and this ends it.
        CubeStore.make(target, plan)
        found.findings.append(Finding(ROOT, "is that of an unfinished store"))
        return found
    text = target.get(PLAN) or b""
    objects = _mended_objects(target, plan, layout, root, found)
    data = _mended_root(target, plan, layout, root, objects, found)
    sealed = seal({PLAN: text, **objects}, json.loads(data))
    if layout is None:
        found.findings.append(Finding(LAYOUT, "is missing" if target.get(LAYOUT) is None else "is damaged"))
    if found.findings:
        target.put(LAYOUT, sealed)
        store = CubeStore(target, json.loads(data))
        target.put(ROOT, store.root_bytes(store.summary()))
    return found


# -- the plan


def _plan(
    target: Objects, layout: Mapping[str, Any] | None, root: Mapping[str, Any] | None, search: Search | None
) -> tuple[Plan, list[Finding]]:
    """The frozen plan, as it lies there or brought back."""
    data = target.get(PLAN)
    document = None if root is None else root["attributes"]["eocube"]
    sha256 = None if layout is None else layout["sha256"].get(PLAN)
    known = {d["plan_hash"] for d in (layout, document) if d is not None and d.get("plan_hash")}
    lies = _parsed(data)
    if lies is not None and lies.hash == json.loads(data or b"")["hash"]:
        as_sealed = sha256 is None or _sha256(data or b"") == sha256
        if as_sealed or not known or known & set(lies.extends):
            return lies, []
    finding = Finding(PLAN, "is missing" if data is None else "is damaged")
    # The hash of a plan leaves out what does not change a byte of the cube, such as which items were refused: one that
    # the layout knows to the byte comes first, wherever it is found.
    nearly: tuple[Plan, bytes] | None = None
    try:
        for plans in _candidates(lies, document, search):
            fitting = [(plan, plan.to_json().encode()) for plan in plans if plan.hash in known]
            exact = next((made for made in fitting if _sha256(made[1]) == sha256), None)
            if exact is not None:
                target.put(PLAN, exact[1])
                return exact[0], [finding]
            nearly = nearly or next(iter(fitting), None)
    except StoreError:  # no search can be had: what fits but for that must do
        if nearly is None:
            raise
    if nearly is not None:
        target.put(PLAN, nearly[1])
        return nearly[0], [finding]
    raise StoreError(
        f"{target.at(PLAN)} {finding.what}, and with it what the store was made of; a search of the catalogue does not "
        "give the same plan again: put that object back from a copy of the store, or encode to another --out"
    )


def _candidates(lies: Plan | None, document: Mapping[str, Any] | None, search: Search | None) -> Iterator[list[Plan]]:
    """Plans that may be the lost one, the cheapest first; what the root says of a plan is taken from there."""
    if lies is not None:
        yield [lies, _told(lies, document)]
    if search is None:
        return
    try:
        found = search(None if document is None else document.get("request"))
    except EocubeError as error:
        raise StoreError(f"the plan is lost ({PLAN}), and a search does not give it again: {error}") from error
    yield [made for plan in found for made in (plan, _told(plan, document))]


def _told(plan: Plan, document: Mapping[str, Any] | None) -> Plan:
    """A plan with what the root's document holds of it beside its hash."""
    if document is None:
        return plan
    return replace(
        plan,
        request=document.get("request", plan.request),
        refused=tuple((str(i), str(why)) for i, why in document.get("refused", plan.refused)),
        numerics=document.get("numerics", plan.numerics),
    )


def _parsed(data: bytes | None) -> Plan | None:
    try:
        return Plan.from_json((data or b"").decode())
    except (StoreError, ValueError):
        return None


# -- the log


def _mend_log(target: Objects, found: Mended) -> None:
    """Take out what of the log is damaged; the units that lose their receipts are to be done again."""
    try:
        known: Mapping[str, str] | None = checked(target.get(SEAL) or b"")["segments"]
    except (ValueError, KeyError):
        known = None  # nobody knows how much of the log there was
    times, shards = len(found.plan.times), frozenset(found.plan.grid.shards())
    mended = CommitLog(target).mend(known or {}, lambda r: 0 <= r.time < times and tuple(r.shard) in shards)
    found.findings += [Finding(key, "is not what was written") for key in mended.damaged]
    found.findings += [Finding(key, "is missing") for key in mended.gone]
    found.log_lost = known is None or bool(mended.damaged or mended.gone)


# -- what follows from the plan


def _root(target: Objects) -> dict[str, Any] | None:
    """The root's metadata where they can be read at all, whether or not they are what was written."""
    try:
        root: dict[str, Any] = json.loads(target.get(ROOT) or b"")
        members = root["consolidated_metadata"]["metadata"]
        return root if stored_form(root["attributes"]["eocube"])[0] in members else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _mended_objects(
    target: Objects,
    plan: Plan,
    layout: Mapping[str, Any] | None,
    root: Mapping[str, Any] | None,
    found: Mended,
) -> dict[str, bytes]:
    """The objects of the layout but for plan and root, as they lie there now: whole, by key."""
    made = layout_objects(target, plan)
    told = {} if root is None else _array_metadata(root)
    if layout is None:  # of a store by another version, the arrays that it has
        names = {key.split("/")[0] for key in told or made} | {ITEM}
        keys = [key for key in made if key.split("/")[0] in names]
    else:
        keys = [key for key in layout["sha256"] if key != PLAN]
    objects: dict[str, bytes] = {}
    for key in keys:
        data = target.get(key)
        if _is_sound(key, data, made, told, layout):
            objects[key] = data or b""
            continue
        found.findings.append(Finding(key, "is missing" if data is None else "is not what was written"))
        for candidate in (made.get(key), told.get(key)):
            if candidate is None:
                continue
            if key not in objects or (layout is not None and _sha256(candidate) == layout["sha256"][key]):
                objects[key] = candidate
        if key not in objects:
            raise StoreError(f"{target.at(key)} is damaged, and this version of eocube does not make it: use the older")
        target.put(key, objects[key])
    return objects


def _is_sound(
    key: str,
    data: bytes | None,
    made: Mapping[str, bytes],
    told: Mapping[str, bytes],
    layout: Mapping[str, Any] | None,
) -> bool:
    if data is None:
        return False
    if layout is not None:
        return bool(_sha256(data) == layout["sha256"][key])
    if data == made[key]:
        return True
    # No hash says what was written. An array that another version made otherwise is as the root has it; its
    # coordinates are then not compared with those of this one.
    metadata = f"{key.split('/c/')[0].removesuffix('/c')}/{ROOT}"
    older = metadata in told and told[metadata] != made.get(metadata)
    return told.get(key) == data if key.endswith(f"/{ROOT}") else older


def _array_metadata(root: Mapping[str, Any]) -> dict[str, bytes]:
    """The arrays' own zarr.json, as zarr writes them, out of the root's."""
    members = root["consolidated_metadata"]["metadata"]
    return {f"{name}/{ROOT}": json.dumps(metadata, indent=2).encode() for name, metadata in members.items()}


def _mended_root(
    target: Objects,
    plan: Plan,
    layout: Mapping[str, Any] | None,
    root: Mapping[str, Any] | None,
    objects: Mapping[str, bytes],
    found: Mended,
) -> bytes:
    """The root's zarr.json, as it lies there or made from plan and objects, without what follows from the log."""
    data = target.get(ROOT)
    if data is not None and layout is not None and fits_layout(layout, data):
        return data
    document = {} if root is None else root["attributes"]["eocube"]
    # What was installed when the store was made is said nowhere else.
    said = [v for v in (document.get("versions"), versions()) if isinstance(v, dict)]
    made = [data for v in said for data in _roots(plan, v, objects)]
    if layout is None and root is not None and data is not None:
        bare = {k: v for k, v in document.items() if k not in FROM_LOG}
        lies = {**root, "attributes": {**root["attributes"], "eocube": bare}}
        another = said[0].get("eocube") != versions().get("eocube")
        if lies in [json.loads(m) for m in made] or (another and document.get("plan_hash") == plan.hash):
            return data
    found.findings.append(Finding(ROOT, "is missing" if data is None else "is damaged"))
    fitting = [m for m in made if layout is not None and fits_layout(layout, m)]
    return (fitting or made)[0]


def _roots(plan: Plan, installed: Mapping[str, str], objects: Mapping[str, bytes]) -> Iterator[bytes]:
    """The root's zarr.json as it is made today, and as version 0.1 made it, which had no digest in it."""
    plain = {k: v for k, v in eocube_document(plan).items() if k != DIGEST} | {"versions": dict(installed)}
    for document in (signed(plain), plain):
        attributes = root_attributes(plan, document)
        there = [name for name in attributes["coordinates"].split() if f"{name}/{ROOT}" in objects]
        yield root_metadata({**attributes, "coordinates": " ".join(there)}, objects)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
