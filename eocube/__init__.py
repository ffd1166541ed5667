"""eocube: a region of the Earth in, a cube of decodable latents out.

`import eocube` gives every xarray dataset an `eocube` accessor; torch and Ray are imported only by what needs them.
"""

from importlib.metadata import PackageNotFoundError, version

from eocube.cube.accessor import EocubeAccessor, open
from eocube.errors import EocubeError, InputError, RadiometryError, SourceError, StoreError

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
