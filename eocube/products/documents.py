"""Writes products into plans and stores and reads them back: of every kind, EO-VAE's in its older form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eocube.ground.lattice import Lattice
from eocube.products import eo_vae_document
from eocube.products.spec import Product
from eocube.products.storage import Affine16, Storage, storage_of
from eocube.sensors.sensor import Band, Sensor

PRODUCT = "product"
"""The key of a product in a plan and in a store's `eocube` attribute; EO-VAE's, older than it, has keys of its own."""


def to_plan(product: Product) -> dict[str, Any]:
    """The first keys of a frozen plan: all that `from_plan` needs."""
    if product.kind == eo_vae_document.KIND:
        return eo_vae_document.to_plan(product)
    return {PRODUCT: _document(product, [sensor.to_dict() for sensor in product.inputs])}


def from_plan(document: Mapping[str, Any], lattice: Lattice) -> Product:
    """The product of a frozen plan. KeyError, TypeError or ValueError where it is none."""
    if PRODUCT not in document:
        return eo_vae_document.from_plan(document, lattice)
    return _product(document[PRODUCT], tuple(Sensor.from_dict(sensor) for sensor in document[PRODUCT]["inputs"]))


def to_attribute(product: Product) -> dict[str, Any]:
    """What the root of a store says of its product, beside the meaning (`space`)."""
    if product.kind == eo_vae_document.KIND:
        return eo_vae_document.to_attribute(product)
    names = [sensor.name for sensor in product.inputs]
    return {"storage": product.storage.name, PRODUCT: _document(product, names)}


def from_attribute(document: Mapping[Any, Any]) -> Product:
    """The product of a store, by its `eocube` attribute; its sensor is as the meaning has it, without collections.

    KeyError, TypeError or ValueError where it is none.
    """
    sensor = sensor_of(document["space"]["sensor"])
    if PRODUCT not in document:
        return eo_vae_document.from_attribute(document, sensor)
    return _product({**document[PRODUCT], "meaning": document["space"]}, (sensor,))


def stored_form(document: Mapping[str, Any]) -> tuple[str, Storage]:
    """The name of a store's array of values and how they are stored, by its `eocube` attribute, whatever its meaning.

    KeyError, TypeError or ValueError where it does not say so.
    """
    if PRODUCT not in document:
        return eo_vae_document.ARRAY, eo_vae_document.storage_in(document)
    return str(document[PRODUCT]["array"]), storage_of(document[PRODUCT]["storage"])


def storages_of(kind: str) -> tuple[str, ...]:
    """The storages that a user may choose from; empty where the kind itself knows."""
    return eo_vae_document.STORAGES if kind == eo_vae_document.KIND else ()


def qualities_of(kind: str, storage: str | None) -> tuple[str, ...]:
    """How fine values can be stored, where a kind's storage leaves that to the user; empty where it does not.

    Without a storage: how fine they can be in the one that leaves it to the user.
    """
    coded = kind == eo_vae_document.KIND and storage in (Affine16.name, None)
    return tuple(eo_vae_document.QUALITIES) if coded else ()


def summary_kind(document: Mapping[str, Any]) -> str:
    """What a store's log counts of its values, by its `eocube` attribute."""
    return "moments" if PRODUCT not in document else str(document[PRODUCT]["summary"])


def sensor_of(document: Mapping[str, Any]) -> Sensor:
    """The sensor as far as values know it: without the catalogues' side, which decoding does not need."""
    nodata = document["nodata"]
    return Sensor(
        name=str(document["name"]),
        bands=tuple(
            Band(str(b["name"]), float(b["wavelength"]), int(b["gsd"]), float(b["mean"]), float(b["std"]), ())
            for b in document["bands"]
        ),
        unit=str(document["unit"]),
        dtype=str(document["dtype"]),
        scale=float(document["scale"]),
        offset=float(document["offset"]),
        nodata=float("nan") if nodata is None else float(nodata),
        unit_factor=float(document["unit_factor"]),
        collections={},
    )


def _document(product: Product, inputs: list[Any]) -> dict[str, Any]:
    return {
        "kind": product.kind,
        "array": product.array,
        "channels": product.channels,
        "cell_px": product.cell_px,
        "core_px": product.core_px,
        "halo_px": product.halo_px,
        "inputs": inputs,
        "meaning": dict(product.meaning),
        "storage": product.storage.document(),
        "summary": product.summary,
        "long_name": product.long_name,
        "channel_names": list(product.channel_names),
        "scores": list(product.scores),
        "made_by": dict(product.made_by),
    }


def _product(document: Mapping[str, Any], inputs: tuple[Sensor, ...]) -> Product:
    summary = document["summary"]
    if summary not in ("moments", "histogram", "none"):
        raise ValueError(f"summary {summary!r}")
    return Product(
        kind=str(document["kind"]),
        array=str(document["array"]),
        channels=int(document["channels"]),
        cell_px=int(document["cell_px"]),
        core_px=int(document["core_px"]),
        halo_px=int(document["halo_px"]),
        inputs=inputs,
        meaning=document["meaning"],
        storage=storage_of(document["storage"]),
        summary=summary,
        long_name=str(document["long_name"]),
        channel_names=tuple(map(str, document["channel_names"])),
        scores=tuple(map(str, document["scores"])),
        made_by=document["made_by"],
    )
