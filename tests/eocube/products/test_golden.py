"""EO-VAE as a product is what it was before there were products: the same ids, hashes and bytes, recorded then."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eocube.plan.plan import Plan
from eocube.products.documents import from_attribute, from_plan, to_plan
from eocube.products.eo_vae_document import latents
from eocube.store.layout import template
from eocube.store.root import eocube_document, root_attributes
from tests.faults.killing import ENCODING, SENSOR, plan_of, scene

BOX = (11.500, 48.100, 11.512, 48.108)
FACTS: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parents[2] / "data" / "golden" / "eo_vae_plans.json").read_text()
)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def plans() -> dict[str, Plan]:
    half = plan_of(BOX, [scene(10), scene(15)], (10, 15))
    affine = replace(ENCODING, storage="int8", quantisation=((0.1, 0.2, 0.05), (0.0, 1.0, -2.0)))
    return {"fp16": half, "int8": replace(half, product=latents(SENSOR, affine, half.grid.lattice))}


@pytest.mark.parametrize("storage", FACTS)
def test_ids_hashes_and_objects_are_those_from_before(storage: str) -> None:
    plan, facts = plans()[storage], FACTS[storage]
    assert (plan.space_id, plan.hash) == (facts["space_id"], facts["hash"])
    assert sha(plan.to_json().encode()) == facts["plan.json"]
    document = {k: v for k, v in eocube_document(plan).items() if k not in ("versions", "digest")}
    assert sha(json.dumps(document).encode()) == facts["attribute"]
    assert sha(json.dumps(root_attributes(plan, {})).encode()) == facts["root"]
    found = {k: sha(data) for k, data in template(plan).items() if not k.startswith("spatial_ref/")}
    assert found == facts["objects"]


@pytest.mark.parametrize("storage", FACTS)
def test_documents_give_the_product_back(storage: str) -> None:
    plan = plans()[storage]
    assert Plan.from_json(plan.to_json()) == plan
    assert from_plan(json.loads(json.dumps(to_plan(plan.product))), plan.grid.lattice) == plan.product
    read = from_attribute(json.loads(json.dumps(eocube_document(plan))))
    assert read.space_id == plan.space_id and read.storage == plan.product.storage
    assert (read.array, read.channels, read.core_px, read.halo_px) == ("latent", 3, 48, 16)
