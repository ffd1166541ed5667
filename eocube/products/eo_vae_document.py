"""Describes EO-VAE latents as a product, and writes and reads it as stores have it since version 0.1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from eocube.errors import InputError
from eocube.ground.lattice import Lattice
from eocube.products.spec import Product, pixels_meaning
from eocube.products.storage import Affine8, Affine16, Half, Storage
from eocube.sensors.sensor import Sensor

KIND = "eo-vae"
ARRAY = "latent"
LONG_NAME = "latent (posterior mean, not whitened)"
SCORES = ("psnr", "sam")
STORAGES = (Affine16.name, Half.name, Affine8.name)
"""How latents can be stored: unasked as codes, and as fp16 by weights without steps for the sensor's bands."""
QUALITIES = {"default": 1.0, "near-lossless": 0.25, "small": 2.0}
"""What the weights' code steps are multiplied by: noise grows with the square, bits fall by one a doubling."""

Quantisation = tuple[tuple[float, ...], tuple[float, ...]]
"""(scale, offset), a channel each."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoder of a run, as far as it decides what the latents mean."""

    weights: str
    """What `load_weights` takes: "nano2", a path or a URL."""
    weights_name: str
    sha256: str
    """Content hash of the weights' tensors and metadata."""
    channels: int
    stride: int
    precision: str
    """fp16, bf16 or fp32: the arithmetic of the encoder."""
    storage: str
    """fp16, codes or int8: how latents are stored."""
    quantisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """For codes and int8: per-channel (scale, offset), latent = code * scale + offset."""


class Windows(Protocol):
    """How windows lie; `eocube.ground.lattice.Lattice` is one."""

    @property
    def resolution(self) -> float: ...
    @property
    def core_px(self) -> int: ...
    @property
    def halo_px(self) -> int: ...


def latents(sensor: Sensor, encoding: Encoding, windows: Windows, resolution: float | None = None) -> Product:
    """The product of an encoder, of the pixels of a sensor, in such windows. InputError where no whole latents fit.

    `resolution` is what the encoder saw, where that is not the windows' own: in a cube made from another.
    """
    stride = encoding.stride
    if windows.core_px % stride or windows.halo_px % stride:
        raise InputError(f"cores of {windows.core_px} px with a halo of {windows.halo_px} px: latents have {stride} px")
    meaning = {
        "weights": {"name": encoding.weights_name, "sha256": encoding.sha256},
        **pixels_meaning(sensor, windows.resolution if resolution is None else resolution),
        "stride": stride,
        "core": windows.core_px // stride,
        "halo": windows.halo_px // stride,
        "channels": encoding.channels,
        "precision": encoding.precision,
    }
    return _product(sensor, meaning, storage_of(encoding.storage, encoding.quantisation), encoding.weights)


_QUANTISED: Mapping[str, type[Affine8] | type[Affine16]] = {Affine8.name: Affine8, Affine16.name: Affine16}


def storage_of(name: str, quantisation: tuple[tuple[float, ...], tuple[float, ...]] | None) -> Storage:
    """fp16, codes or int8 storage; the last two by per-channel (scale, offset)."""
    if name == Half.name:
        return Half()
    if name in _QUANTISED and quantisation is not None:
        return _QUANTISED[name](*quantisation)
    raise ValueError(f"storage {name!r}{'' if quantisation is not None else ' without scales'}")


def encoding_of(product: Product) -> Encoding:
    """Inverse of `latents`."""
    storage = product.storage
    return Encoding(
        product.weights, product.network, product.weights_sha256, product.channels, product.cell_px, product.precision,
        storage.name, (storage.scale, storage.offset) if isinstance(storage, Affine8 | Affine16) else None,
    )  # fmt: skip


def to_plan(product: Product) -> dict[str, Any]:
    """The first keys of a frozen plan."""
    return {"sensor": product.sensor.to_dict(), "encoding": asdict(encoding_of(product))}


def from_plan(document: Mapping[str, Any], lattice: Lattice) -> Product:
    """The product of a frozen plan. KeyError, TypeError or ValueError where it is none."""
    encoding = dict(document["encoding"])
    if encoding["quantisation"] is not None:
        scale, offset = encoding["quantisation"]
        encoding["quantisation"] = (tuple(scale), tuple(offset))
    # A cube made from another means what that one does (`eocube.products.super_resolved`).
    seen = document["derived"]["resolution"] if "derived" in document else None
    return latents(Sensor.from_dict(document["sensor"]), Encoding(**encoding), lattice, seen)


def to_attribute(product: Product) -> dict[str, Any]:
    """What the root of a store says beside the meaning."""
    storage = product.storage
    affine = None
    if isinstance(storage, Affine8 | Affine16):
        affine = {"scale": list(storage.scale), "offset": list(storage.offset)}
    return {"weights": product.weights, "storage": storage.name, "quantisation": affine}


def from_attribute(document: Mapping[str, Any], sensor: Sensor) -> Product:
    """The product that a store's root speaks of, its sensor as the meaning has it."""
    meaning = document["space"]
    weights = str(document.get("weights") or meaning["weights"]["source"])
    return _product(sensor, meaning, storage_in(document), weights)


def storage_in(document: Mapping[str, Any]) -> Storage:
    """How the root of a store says that its latents are stored."""
    given = document.get("quantisation")
    if given is None:
        return Half()
    # Another name beside them is an edit: it does not fit the array, and is told when the store is opened.
    affine = _QUANTISED.get(str(document.get("storage")), Affine8)
    return affine(tuple(map(float, given["scale"])), tuple(map(float, given["offset"])))


def _product(sensor: Sensor, meaning: Mapping[str, Any], storage: Storage, weights: str) -> Product:
    cell = int(meaning["stride"])
    return Product(
        kind=KIND, array=ARRAY, channels=int(meaning["channels"]), cell_px=cell, core_px=int(meaning["core"]) * cell,
        halo_px=int(meaning["halo"]) * cell, inputs=(sensor,), meaning=meaning, storage=storage, summary="moments",
        long_name=LONG_NAME, scores=SCORES, made_by={"weights": weights},
        channel_names=tuple(f"z{i:02d}" for i in range(int(meaning["channels"]))),
    )  # fmt: skip
