"""Writes a store's root: what it says of itself, and the metadata of its arrays in one object."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from eocube.products.identity import signed
from eocube.store.layout import CONVENTIONS, COORDINATES, ROOT, StorePlan, spatial


def versions() -> dict[str, str]:
    """Versions of what decides a store's bytes, as installed here."""
    found = {}
    for name in ("eocube", "zarr", "numcodecs", "numpy", "torch", "rasterio"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def eocube_document(plan: StorePlan) -> dict[str, Any]:
    """The `eocube` attribute of a new store, without moments: the plan's own document, the grid and versions."""
    grid = plan.grid
    t = grid.transform
    derived = {
        "space_id": plan.space_id,
        "plan_hash": plan.hash,
        "extent": list(grid.extent),
        "storage": plan.product.storage.name,
        "grid": {
            "crs": f"EPSG:{grid.lattice.epsg}",
            "resolution": grid.lattice.resolution,
            **{k: v for k, v in grid.lattice.to_dict().items() if k not in ("epsg", "resolution")},
            "shape": list(grid.shape),
            "transform": [float(v) for v in (t.a, t.b, t.c, t.d, t.e, t.f)],
            "requested": list(grid.cores),
        },
        "versions": versions(),
    }
    return signed({**derived, **plan.document()})


def root_attributes(plan: StorePlan, document: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the store's root group."""
    extra = tuple(plan.product.storage.coordinates())
    t = plan.grid.transform
    return {
        "Conventions": "CF-1.11",
        "title": f"{plan.product.array.capitalize()}s of {len(plan.times)} acquisitions, {plan.grid.name}",
        "coordinates": " ".join((*COORDINATES, *extra)),
        "zarr_conventions": CONVENTIONS,
        **spatial(
            ["y", "x"], plan.grid.shape, [float(v) for v in (t.a, t.b, t.c, t.d, t.e, t.f)], plan.grid.lattice.epsg
        ),
        "eocube": dict(document),
    }


def root_metadata(attributes: Mapping[str, Any], members: Mapping[str, bytes]) -> bytes:
    """The root's zarr.json, with the members' metadata consolidated in it: opening a store is one request."""
    arrays = {
        key.removesuffix(f"/{ROOT}"): json.loads(data) for key, data in members.items() if key.endswith(f"/{ROOT}")
    }
    document = {
        "attributes": dict(attributes),
        "zarr_format": 3,
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": arrays},
        "node_type": "group",
    }
    return json.dumps(document, indent=1, allow_nan=False).encode()
