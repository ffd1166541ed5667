"""Registers the `eocube` accessor when xarray is imported, and not before: what never opens a cube does without it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

ACCESSOR = "eocube.cube.accessor"


def register_with_xarray() -> None:
    """Have every dataset an accessor: at once where xarray is imported already, else as soon as it is."""
    if "xarray" in sys.modules:
        import_module(ACCESSOR)
    elif not any(isinstance(finder, _Xarray) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Xarray())


class _Xarray(MetaPathFinder):
    """Finds xarray as the others do, and imports the accessor behind it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "xarray":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((s for s in found if s is not None), None)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def and_the_accessor(module: ModuleType) -> None:
                load(module)
                import_module(ACCESSOR)

            spec.loader.exec_module = and_the_accessor  # type: ignore[method-assign]
        return spec
