"""eocube: a region of the Earth in, a cube of decodable latents out.

`import eocube` gives every xarray dataset an `eocube` accessor; xarray, torch and Ray are imported only by what needs
them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from eocube.cube.registering import register_with_xarray
from eocube.errors import EocubeError, InputError, RadiometryError, SourceError, StoreError

if TYPE_CHECKING:
    from eocube.cube.accessor import EocubeAccessor
    from eocube.cube.opening import open

register_with_xarray()

try:
    __version__ = version("eocube")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr


def open_collection(
    path: str,
    bbox: Sequence[float] | None = None,
    datetime: str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> list[xr.Dataset]:
    """The cubes of a STAC collection (`eocube stac`) with the time steps that fit: see `eocube.report.catalogue`."""
    from eocube.report.catalogue import open_collection as found

    return found(path, bbox, datetime, storage_options)


__all__ = [
    "EocubeAccessor",
    "EocubeError",
    "InputError",
    "RadiometryError",
    "SourceError",
    "StoreError",
    "__version__",
    "open",
    "open_collection",
]


def __getattr__(name: str) -> Any:
    if name == "open":
        from eocube.cube import opening

        return opening.open
    if name == "EocubeAccessor":
        from eocube.cube import accessor

        return accessor.EocubeAccessor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
