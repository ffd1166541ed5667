"""Makes the table of interoperability in the docs from what really ran: `python -m tests.interop.matrix --out FILE`."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from tests.eocube.cubes import make_plan, make_store, make_weights
from tests.interop.readers import ARRAYS, READERS, AbsentError, Truth

KINDS = ("fp16", "codes", "int8")
BEGIN, END = "<!-- interop: made by tests/interop/matrix.py -->", "<!-- /interop -->"


@dataclass(frozen=True)
class Store:
    """A store and what is in it."""

    kind: str
    path: Path
    truth: Truth


def make(folder: Path, kind: str) -> Store:
    """A store of latents that are stored so, with what was written into it."""
    path = folder / f"{kind}.zarr"
    plan = make_plan(make_weights(folder / "tiny.safetensors"), storage=kind)
    made = make_store(str(path), plan)
    t = plan.grid.transform
    arrays = {name: np.asarray(zarr.open_array(str(path / name), mode="r")[...]) for name in ARRAYS}
    if kind == "fp16":  # what was written is known without reading it
        np.testing.assert_array_equal(arrays["latent"], made.latents.astype(np.float16))
    return Store(kind, path, Truth(arrays, plan.grid.lattice.epsg, (t.a, t.b, t.c, t.d, t.e, t.f)))


def table(stores: list[Store]) -> tuple[str, int]:
    """The table, and how many readers that are here do not read."""
    lines = ["| read by | version | " + " | ".join(f"latents as {store.kind}" for store in stores) + " |"]
    lines.append("|---|---|" + "---|" * len(stores))
    broken = 0
    for reader in READERS:
        try:
            number = reader.number()
        except AbsentError as absent:
            lines.append(f"| {reader.name} | not tried: {absent} |" + " |" * len(stores))
            continue
        cells = []
        for store in stores:
            try:
                cells.append(reader.read(store.path, store.truth))
            except AssertionError as error:
                broken += not reader.name.startswith("GDAL")
                cells.append(f"**no**: {' '.join(str(error).split())[:160]}")
        lines.append(f"| {reader.name} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines), broken


def main() -> int:
    """Exit status 1 where a reader that is here does not read (GDAL's alone is known not to)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="Markdown file whose table is written anew")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made, broken = table([make(Path(folder), kind) for kind in KINDS])
    said = f"{made}\n\nPython {platform.python_version()}, {platform.system()}."
    print(said)
    if options.out is not None:
        text = options.out.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        options.out.write_text(f"{head}{BEGIN}\n{said}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
