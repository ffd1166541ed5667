"""What is imported, and what is loaded, when: the accessor whenever xarray is there, weights once a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from eocube.demo.catalogue import DEMO_BBOX, DEMO_BOUNDS, make_demo
from eocube.products import eo_vae, registry, shelf
from eocube.products.base import Ask
from eocube.sensors import get_sensor
from tests.eocube.cubes import make_weights

ACCESSOR = {
    "eocube first": "import eocube, xarray as xr",
    "xarray first": "import xarray as xr, eocube",
    "by a module of its own": "import eocube.cube.windows, xarray as xr",
    "by name": "import eocube; eocube.open; import xarray as xr",
}


def done(code: str, *words: str) -> None:
    ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("how", ACCESSOR)
def test_every_dataset_has_the_accessor(how: str) -> None:
    done(f"{ACCESSOR[how]}\nfrom eocube import EocubeAccessor\nassert xr.Dataset.eocube is EocubeAccessor")


def test_weights_that_a_plan_needed_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(make_weights(tmp_path / "w.safetensors"))
    loaded: list[str] = []
    load = eo_vae.load_weights

    def counted(source: str, *, device: str) -> object:
        loaded.append(source)
        return load(source, device=device)

    monkeypatch.setattr(eo_vae, "load_weights", counted)
    ask = Ask(get_sensor("S2L2A").subset(["B02", "B03", "B04", "B08"]), 10, path, "fp32", "fp16", "cpu")
    with shelf.shelf():
        product = registry.kind("eo-vae").plan(ask)
        registry.open(product)
        assert loaded == [path]
        registry.open(product)
        assert loaded == [path, path], "taken by the first: each codec has weights of its own"
        registry.kind("eo-vae").plan(ask)
        shelf.clear()
        registry.open(product)
        assert len(loaded) == 4
    registry.kind("eo-vae").plan(ask)
    registry.open(product)
    assert len(loaded) == 6, "and nothing is kept outside of a run"


def test_a_plan_takes_neither_torch_nor_ray(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalog"
    left, bottom = DEMO_BOUNDS[:2]
    make_demo(catalogue, bounds=(left, bottom, left + 1920, bottom + 1920))
    code = (
        "import sys; from eocube.commands.encode import encode_main\n"
        "assert encode_main(sys.argv[1:], plan=True) == 0\n"
        "late = {'torch', 'ray', 'dask', 'xarray', 'matplotlib'} & set(sys.modules); assert not late, late"
    )
    asked = ("--bbox", *map(str, DEMO_BBOX), "--datetime", "2024", "--sensor", "S2L2A")
    done(code, *asked, "--catalog", str(catalogue / "catalog.json"), "--out", str(tmp_path / "cube.zarr"))
