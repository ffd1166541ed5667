"""Reads a store's root: its zarr.json, what lies there instead, and the group over several zones."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from eocube.errors import StoreError
from eocube.net.objects import Objects
from eocube.net.storage_options import scheme_of
from eocube.plan.plan import Plan, several_zones
from eocube.products.documents import stored_form
from eocube.store.commit_log import FOLDER, MOVING, PLAN
from eocube.store.fence import Fence
from eocube.store.layout import ROOT
from eocube.store.lease_note import LOCK, is_lease

_LITTER = re.compile(
    r"\.DS_Store|\.localized|\._.*|Icon\r|Thumbs\.db|desktop\.ini|\.directory|\.nfs[0-9a-f]+|\.fuse_hidden.*",
    re.IGNORECASE,
)


def create_root(
    url: str | PathLike[str],
    zone_names: Sequence[str],
    document: Mapping[str, Any],
    *,
    storage_options: Mapping[str, Any] | None = None,
    fence: Fence | None = None,
) -> None:
    """Make, or find as it should be, the root group over one cube a zone (`url/utm32`, ...).

    Raises:
        StoreError: the target cannot be written or holds something else; nothing was touched.
    """
    target = Objects(url, storage_options, fence=fence)
    wanted = {**document, "zones": list(zone_names)}
    root = read_root(target, zones=True)
    if root is not None:
        found = root["attributes"]["eocube"]
        if "zones" not in found:
            raise StoreError(f"{target} is a store of one zone, asked {', '.join(zone_names)}: write to another target")
        if found["zones"] != wanted["zones"]:
            raise StoreError(
                f"{target} is a store of the zones {', '.join(found['zones'])}, not of {', '.join(zone_names)}: "
                "write to another target"
            )
        return
    if half_made(target) is not None:
        raise StoreError(f"{target} is a half-made store of one zone: remove it or write to another target")
    data = {"attributes": {"eocube": wanted}, "zarr_format": 3, "node_type": "group"}
    with target.undone_on_error():
        target.put(ROOT, json.dumps(data, indent=1, allow_nan=False).encode())


def finalise_root(
    url: str | PathLike[str], *, storage_options: Mapping[str, Any] | None = None, fence: Fence | None = None
) -> None:
    """Gather the zones' metadata at the root, so that it opens like one store; after the zones are finalised.

    Nothing is done where the store is one zone's own. StoreError when a zone is missing.
    """
    target = Objects(url, storage_options, fence=fence)
    root = read_root(target, zones=True)
    if root is None or "zones" not in root["attributes"]["eocube"]:
        return
    target.put(ROOT, gathered(target, root["attributes"]["eocube"]["zones"], root))


def gathered(target: Objects, zones: Sequence[str], root: Mapping[str, Any] | None = None) -> bytes:
    """The zarr.json over several zones, with their metadata as they are now; `root` gives what else it says.

    StoreError when a zone is missing.
    """
    members: dict[str, Any] = {}
    for zone in zones:
        data = target.get(f"{zone}/{ROOT}")
        if data is None:
            raise StoreError(f"{target.at(zone)} is missing: run the same command again")
        metadata = json.loads(data)
        inner = metadata.pop("consolidated_metadata")["metadata"]
        members[zone] = metadata
        members.update({f"{zone}/{name}": array for name, array in inner.items()})
    consolidated = {"kind": "inline", "must_understand": False, "metadata": members}
    root = root or {"attributes": {"eocube": {"zones": list(zones)}}, "zarr_format": 3, "node_type": "group"}
    return json.dumps({**root, "consolidated_metadata": consolidated}, indent=1, allow_nan=False).encode()


def root_over(url: str, storage_options: Mapping[str, Any] | None = None) -> str:
    """Where the lease of a store is: at the root over several zones where it is one of them, else at itself."""
    own = url.rstrip("/") or "/"
    parent, _, name = (os.path.realpath(own) if scheme_of(own) == "" and "://" not in own else own).rpartition("/")
    if not parent or not parent.partition("://")[2 if "://" in parent else 0]:
        return own
    try:
        data = Objects(parent, storage_options).get(ROOT)
        zones = json.loads(data or b"{}")["attributes"]["eocube"]["zones"]
    except (StoreError, ValueError, KeyError, TypeError):
        return own  # nothing above it that is a store of ours, or nothing that may be looked at
    return parent if isinstance(zones, list) and name in zones else own


def zones_of(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The zones that a root names; none where there is no root, or one of a single cube."""
    root = read_root(Objects(url, storage_options), zones=True)
    return () if root is None else tuple(root["attributes"]["eocube"].get("zones", ()))


def read_root(target: Objects, *, zones: bool = False) -> dict[str, Any] | None:
    """The root's metadata, None when there is none; StoreError when it is not that of an eocube store.

    The root of several zones is taken only when `zones` says so.
    """
    data = target.get(ROOT)
    if data is None:
        return None
    try:
        root: dict[str, Any] = json.loads(data)
        document = root["attributes"]["eocube"]
        names = document.get("zones")
        whole = names is not None or stored_form(document)[0] in root["consolidated_metadata"]["metadata"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole, names = False, None
    if not whole:
        raise StoreError(f"{target} holds Zarr metadata that are not those of an eocube store: write to another target")
    if names is not None and not zones:
        raise StoreError(f"{target} holds several zones: open one of {', '.join(f'{target}/{n}' for n in names)}")
    return root


def is_litter(key: str) -> bool:
    """Whether a file manager or a network file system left this file: nobody's data, wherever it lies."""
    return _LITTER.fullmatch(key.rsplit("/", 1)[-1]) is not None


def half_moved(target: Objects) -> str | None:
    """What to say of a store whose shards version 0.1 was moving when it was ended; None for any other.

    Some of its shards lie where others belong.
    """
    if target.get(MOVING) is None:
        return None
    return (
        f"{target} was left half-way by version 0.1, which moved shards to extend a store ({MOVING}): finish with "
        "eocube 0.1 by the command that extended it, or write to another target"
    )


def refuse_half_moved(target: Objects) -> None:
    """StoreError for a store that is `half_moved`."""
    if (moved := half_moved(target)) is not None:
        raise StoreError(moved)


def half_made(target: Objects) -> bytes | None:
    """The plan of a store without a root; None when nothing is there; StoreError when something else is."""
    names = [name for name in target.names() if not is_litter(name)]
    if not names:
        return None
    refuse_half_moved(target)
    made = target.get(PLAN)
    if made is None:
        if names == [FOLDER] and all(is_lease(k) or k == LOCK or is_litter(k) for k in target.keys(FOLDER)):
            return None  # a run that has just begun, or was killed before it wrote its plan
        raise StoreError(f"{target} exists and is no eocube store (it holds {names[0]}): write to another target")
    return made


def zoned(url: str, plans: Sequence[Plan], storage_options: Mapping[str, Any] | None) -> bool:
    """Whether the cubes at a URL lie in groups of their own: as the root there says, else as its plans reach."""
    if len(plans) > 1 or not several_zones(plans):
        return len(plans) > 1
    root = read_root(Objects(url, storage_options), zones=True)
    return root is None or "zones" in root["attributes"]["eocube"]
