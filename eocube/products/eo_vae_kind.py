"""Plans EO-VAE latents: the kind of product, and what of weights and choices decides their meaning. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from eocube.errors import InputError, StoreError
from eocube.ground.lattice import Lattice
from eocube.products.eo_vae_document import KIND, QUALITIES, STORAGES, Encoding, Quantisation, latents
from eocube.products.shelf import put
from eocube.products.spec import Actor, Product
from eocube.products.storage import Affine8, Affine16, Half
from eocube.sensors.sensor import Sensor
from model.weights_facts import weights_facts
from model.weights_meta import CODE_OF_MEAN, WeightsError, WeightsMeta

if TYPE_CHECKING:
    from eocube.products.base import Ask
    from eocube.products.eo_vae import EoVae

_ANY_ZONE = 32601  # windows are alike in all of them


class Said(Protocol):
    """What has to be known of weights: `model.weights_facts.WeightsFacts`, or loaded ones."""

    @property
    def source(self) -> str: ...
    @property
    def meta(self) -> WeightsMeta: ...
    @property
    def means(self) -> tuple[float, ...] | None: ...


def encoding_of(
    weights: Said, precision: str, storage: str, sensor: Sensor | None = None, quality: str = "default"
) -> Encoding:
    """What of the weights and choices decides the latents' meaning, and how they are stored.

    Args:
        weights: loaded, or what is known of them.
        precision: fp16, bf16 or fp32.
        storage: one of `STORAGES`.
        sensor: whose steps codes take; only they need it.
        quality: a key of `QUALITIES`, of codes.

    Raises:
        InputError: the weights carry no statistics, or no steps for the sensor's bands.
    """
    quantisation, config = None, weights.meta.config
    if storage == Affine8.name:
        quantisation = _int8(weights)
    elif storage == Affine16.name and sensor is not None:
        quantisation = code_steps(weights, sensor, quality)
    return Encoding(
        weights.source, weights.meta.name, weights.meta.sha256, config.z_channels, config.scale_factor, precision,
        storage, quantisation,
    )  # fmt: skip


def code_steps(weights: Said, sensor: Sensor, quality: str) -> Quantisation:
    """Per-channel (step, offset) of codes: the weights' own steps for the sensor's bands, by the quality's factor."""
    code_steps = _coded(weights, sensor)
    if code_steps is None:
        raise InputError(
            f"--storage codes: weights {weights.source!r} carry no steps for {', '.join(sensor.band_names)} of "
            f"{sensor.name}; take --storage fp16, or measure them with python -m model.training.eo_vae.measured"
        )
    if weights.means is None:
        raise InputError(
            f"weights {weights.source!r} keep no latent statistics: only --storage fp16 can do without them"
        )
    steps = tuple(QUALITIES[quality] * step for step in code_steps)
    return steps, tuple(mean - CODE_OF_MEAN * step for mean, step in zip(weights.means, steps, strict=True))


def _coded(weights: Said, sensor: Sensor) -> tuple[float, ...] | None:
    entry = weights.meta.coded(sensor.trained_as or sensor.name, sensor.band_names)
    return None if entry is None else entry.code_steps


def _int8(weights: Said) -> Quantisation:
    """For int8 latents: with torch, whose square root these steps have always come of."""
    from eocube.products.eo_vae import LoadedWeights, int8_quantisation, load

    return int8_quantisation((weights if isinstance(weights, LoadedWeights) else load(weights.source)).vae)


def fit_sensor(sensor: Sensor, weights: Said) -> Sensor:
    """The sensor with wavelengths and statistics as the weights were trained with them."""
    return sensor.with_weights(weights.meta)


def _storage(ask: Ask, weights: Said, sensor: Sensor) -> str:
    """As asked; else codes where the weights carry steps for the sensor's bands or a quality was given, else fp16."""
    if ask.storage is not None:
        if ask.storage in STORAGES:
            return ask.storage
        raise InputError(f"--storage: no {ask.storage!r}, latents are stored as {', '.join(STORAGES)}")
    return Affine16.name if ask.quality is not None or _coded(weights, sensor) is not None else Half.name


def _known(ask: Ask) -> Said:
    """What an ask's weights say of themselves; loaded, and kept for who encodes with them, where that is to be done."""
    try:
        facts = weights_facts(ask.weights) if ask.only_plans else None
    except (WeightsError, OSError) as error:
        raise InputError(f"weights {ask.weights!r}: {error}") from error
    if facts is not None:
        return facts
    from eocube.products.eo_vae import load

    weights = load(ask.weights)
    put((KIND, ask.weights), weights)
    return weights


class EoVaeKind:
    """EO-VAE latents as a kind of product: the first one, and the default."""

    name = KIND

    def plan(self, ask: Ask) -> Product:
        """The latents of a sensor's pixels by weights that were trained for it."""
        weights = _known(ask)
        if ask.quality not in (None, *QUALITIES):
            raise InputError(f"--quality: no {ask.quality!r}, codes come as {', '.join(QUALITIES)}")
        sensor = fit_sensor(ask.sensor, weights)
        storage = _storage(ask, weights, sensor)
        encoding = encoding_of(weights, ask.precision, storage, sensor, ask.quality or "default")
        windows = Lattice(_ANY_ZONE, ask.resolution, encoding.stride)
        return latents(sensor, encoding, windows)

    def open(self, product: Product, device: str = "cpu") -> EoVae:
        """Its codec. StoreError where the weights cannot be loaded, or are others than the product was made with."""
        from eocube.products.eo_vae import EoVae, load

        try:
            weights = load(product.weights, device)
        except InputError as error:
            raise StoreError(
                f"the store's weights {product.weights!r} cannot be loaded, say where they are with "
                f"decode(weights=...): {error}"
            ) from error
        found = weights.meta.sha256
        if found != product.weights_sha256:
            raise StoreError(
                f"weights {product.weights!r} are not those the store was encoded with: sha256 {found[:16]} here, "
                f"{product.weights_sha256[:16]} in the store; put the right ones there, or say where they "
                "are with decode(weights=...)"
            )
        return EoVae(product, weights)

    def numerics(self, product: Product, device: str, like: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Device kind, batch, kernels and library versions: same numerics, same bytes (DESIGN 3.12)."""
        from eocube.products.eo_vae import numerics

        batch = None if like is None else like.get("batch")
        return self.numerics_for(product, device, Actor()) if batch is None else numerics(device, batch)

    def numerics_for(self, product: Product, device: str, actor: Actor) -> dict[str, Any]:
        """The same for such actors: their batch is measured on this machine's GPU."""
        from eocube.products.eo_vae import gpu_batch, load, numerics

        if device != "cuda":
            return numerics(device)
        resolution = int(product.meaning["resolution"])
        weights = load(product.weights)
        put((KIND, product.weights), weights)
        batch = gpu_batch(weights, product.sensor, resolution, product.window_px, product.precision, actor)
        return numerics(device, batch)


KIND_OF_LATENTS = EoVaeKind()
