"""Finds the kinds of product there are: those of this package, and those that others give by an entry point."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from eocube.errors import InputError

if TYPE_CHECKING:
    from eocube.products.base import Codec, Kind
    from eocube.products.spec import Product

GROUP = "eocube.products"
"""The entry point group: name = the kind, value = an object of `eocube.products.base.Kind`'s form."""
DEFAULT = "eo-vae"
WEIGHTS = "nano2"
"""The weights of a run that names none, as `model.weights.load_weights` takes them."""


def kinds() -> tuple[str, ...]:
    """The names of all kinds that can be found here."""
    return tuple(sorted(_found()))


def kind(name: str) -> Kind:
    """A kind by its name. InputError names those there are."""
    try:
        entry = _found()[name]
    except KeyError:
        raise InputError(
            f"product {name!r} is not known here: there are {', '.join(kinds())}; others come with the packages that "
            f"make them (entry point group {GROUP})"
        ) from None
    try:
        found: Kind = entry.load()
    except Exception as error:
        raise InputError(
            f"product {name!r} cannot be loaded from {entry.value}: {type(error).__name__}: {error}"
        ) from error
    if getattr(found, "name", None) != name:
        raise InputError(
            f"{entry.value} is the product {getattr(found, 'name', None)!r}, its entry point says {name!r}"
        )
    return found


def open(product: Product, device: str = "cpu") -> Codec:
    """The codec that makes a product's values, and gives pixels back where it can."""
    return kind(product.kind).open(product, device)


@cache
def _found() -> dict[str, EntryPoint]:
    own = EntryPoint(DEFAULT, "eocube.products.eo_vae_kind:KIND_OF_LATENTS", GROUP)
    return {**{entry.name: entry for entry in entry_points(group=GROUP)}, DEFAULT: own}
