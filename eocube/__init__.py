"""eocube: a region of the Earth in, a cube of decodable latents out.

`import eocube` gives every xarray dataset an `eocube` accessor; xarray, torch and Ray are imported only by what needs
them.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from eocube.cube.registering import register_with_xarray
from eocube.errors import EocubeError, InputError, RadiometryError, SourceError, StoreError

if TYPE_CHECKING:
    from eocube.cube.accessor import EocubeAccessor, open

register_with_xarray()

try:
    __version__ = version("eocube")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "EocubeAccessor",
    "EocubeError",
    "InputError",
    "RadiometryError",
    "SourceError",
    "StoreError",
    "__version__",
    "open",
]


def __getattr__(name: str) -> Any:
    if name not in ("EocubeAccessor", "open"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from eocube.cube import accessor

    return getattr(accessor, name)
