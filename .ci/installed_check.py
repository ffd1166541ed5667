"""Encodes and decodes the demo with an installed eocube, in a folder that is no checkout: `python -P THIS_FILE`."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import rasterio

import eocube
from model.super_resolution import load_sr
from model.weights import load_weights


def seconds(code: str) -> float:
    """How long a Python takes to start and run this, at best of three."""
    taken = []
    for _ in range(3):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        taken.append(time.perf_counter() - begun)
    return min(taken)


took = seconds("import eocube") - seconds("pass")
print(f"eocube {eocube.__version__}; import eocube: {took:.2f} s (should be under 1)")
assert "site-packages" in eocube.__file__, f"not the installed package: {eocube.__file__}"
extras = [name for name in ("h5py", "pytest", "rioxarray", "planetary_computer", "huggingface_hub") if find_spec(name)]
assert not extras, f"what only extras bring is here: {extras}"


def command(*words: str) -> str:
    """The installed command `eocube`, to its end."""
    line = [str(Path(sys.executable).parent / "eocube"), *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (
        f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
    )
    return done.stdout


assert command("--version").split() == ["eocube", eocube.__version__]
begun = time.perf_counter()
command("encode", "--demo", "--quiet")
(cube,) = Path("eocube-demo").glob("*.zarr")
print(f"encode --demo: {time.perf_counter() - begun:.0f} s")
assert "nothing wrong found" in command("verify", str(cube))
command("decode", str(cube), "--bands", "B04,B03,B02", "--time", "0", "--out", "decoded.tif")

with rasterio.open("decoded.tif") as file:
    red = file.read(1)
assert red.ndim == 2 and np.isfinite(red).any() and 0 < float(np.nanmean(red)) < 1

dataset = eocube.open(str(cube))
decoded = dataset.eocube.decode(bands=["B08"], dtype="fp32").isel(time=0, band=0).values
assert np.isfinite(decoded).any()

for name in ("nano", "nano2"):
    assert sum(p.numel() for p in load_weights(name).parameters()) > 1e6
load_sr("sr-nano")
print("the demo was encoded, verified and decoded; nano, nano2 and sr-nano load")
