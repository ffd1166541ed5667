"""The probe: a linear head learns from stored values alone which NDVI class the decoded pixels are of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from eocube.cube.cell_classes import NONE, ClassifiedBatches, NdviClasses
from eocube.cube.window_stream import WindowStream
from eocube.cube.windows import CubeWindows
from eocube.demo.catalogue import DEMO_BBOX
from eocube.errors import InputError
from eocube.ground.boxes import parse_bbox, parse_interval
from eocube.products import registry
from eocube.products.base import models_of
from eocube.run.asked import Running, Selection
from eocube.run.options import Limits
from eocube.run.request import Request, make_plans, product_of
from eocube.run.unit import UnitRunner
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from jobs import train_probe
from model.training.probe import ProbeFigures
from model.training.recipe import RECIPES
from tests.eocube.cubes import CORE, make_plan, make_store, make_weights

SIDE = 6
Pair = tuple[torch.Tensor, torch.Tensor]


def encode(catalog: Path, bbox: Sequence[float], interval: str, out: Path) -> str:
    """A cube by the shipped weights, in this process."""
    asked = Selection(
        boxes=parse_bbox(*bbox), interval=parse_interval(interval), catalog=str(catalog), sensor="S2L2A",
        weights="nano", out=str(out), max_cloud=100,
    )  # fmt: skip
    request = Request.parse(asked, Running(), on_gpu=False)
    (plan,) = make_plans(request, product_of(request), None)
    store = CubeStore.create(asked.out, plan)
    models = models_of(registry.open(plan.product, "cpu"), "cpu", plan.numerics)
    runner = UnitRunner(plan, store, models, Limits(encode_threads=1))
    store.commit([runner.run(unit) for unit in plan.units() if not unit.empty])
    runner.close()
    store.finalise()
    return asked.out


def tensors(values: np.ndarray, classes: np.ndarray) -> Pair:
    return torch.from_numpy(values), torch.from_numpy(classes)


def probed(
    urls: list[str], folder: Path, thresholds: tuple[float, ...], block: float, workers: int = 0
) -> ProbeFigures:
    """The figures that the job leaves on held-out ground."""
    asked = train_probe.Options(
        name="probe", cubes=tuple(urls), out=folder / "probe", storage=str(folder / "runs"), workers=workers,
        thresholds=thresholds, block=block, margin=0.0, held_out=0.4, steps=150, recipe=str(recipe(folder)), threads=1,
    )  # fmt: skip
    assert train_probe.main(asked) == 0
    return ProbeFigures(**json.loads((folder / "probe" / "probe.json").read_text())["held_out"])


def recipe(folder: Path) -> Path:
    """The shipped one, for patches small enough for the ground at hand."""
    path = folder / "probe.yaml"
    path.write_text((RECIPES / "probe.yaml").read_text().replace("patch: 24", f"patch: {SIDE}"))
    return path


@pytest.fixture(scope="module")
def demo(demo_catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    first = min(json.loads(p.read_text())["properties"]["datetime"] for p in demo_catalog.parent.rglob("*.json")
                if "datetime" in json.loads(p.read_text()).get("properties", {}))  # fmt: skip
    return encode(demo_catalog, DEMO_BBOX, first[:10], tmp_path_factory.mktemp("demo") / "demo.zarr")


@pytest.mark.slow
def test_a_linear_head_tells_vegetation_of_the_demo_on_held_out_ground(demo: str, tmp_path: Path) -> None:
    figures = probed([demo], tmp_path, (0.3,), 2000.0)
    assert figures.accuracy > figures.chance + 0.05, figures


@pytest.mark.slow
def test_two_workers_of_ray_train_share_the_shards(tmp_path: Path, ray_local: object) -> None:
    made = make_store(str(tmp_path / "c.zarr"), make_plan(make_weights(tmp_path / "w.safetensors")))
    figures = probed([made.url], tmp_path, (0.0,), 900.0, workers=2)
    assert figures.places > 0 and 0 < figures.accuracy <= 1
    assert {p.name for p in (tmp_path / "runs").rglob("rank-*.pt")} == {"rank-0000.pt", "rank-0001.pt"}


def test_more_workers_than_shards_are_refused_before_a_cluster_starts(
    demo: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = train_probe.Options(
        name="probe", cubes=(demo,), out=tmp_path / "out", storage=str(tmp_path / "runs"), workers=2, block=2000.0,
        margin=0.0, held_out=0.4, recipe=str(recipe(tmp_path)),
    )  # fmt: skip
    assert train_probe.main(asked) == 2
    assert "1 shards for 2 workers" in capsys.readouterr().err and not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.real
def test_a_linear_head_tells_vegetation_of_real_samples_on_held_out_places(catalog_json: Path, tmp_path: Path) -> None:
    urls = []
    for k, path in enumerate(sorted((catalog_json.parent / "sentinel-2-l2a").glob("*/*.json"))):
        item = json.loads(path.read_text())
        urls.append(encode(catalog_json, item["bbox"], item["properties"]["datetime"][:10], tmp_path / f"{k}.zarr"))
    figures = probed(urls, tmp_path, (0.2, 0.5), 1000.0)
    assert figures.accuracy > figures.chance + 0.05, figures


def test_classes_are_those_of_the_decoded_pixels(tmp_path: Path) -> None:
    made = make_store(str(tmp_path / "c.zarr"), make_plan(make_weights(tmp_path / "w.safetensors")))
    windows = CubeWindows(made.url, side=CORE)
    classes = NdviClasses(windows, (-0.2, 0.0, 0.3))
    ds = classes._cubes[0]
    pixels = ds.eocube.decode(bands=["B04", "B08"], crop=False).isel(time=1).values
    index = next(i for i in range(len(windows)) if windows.index.units[windows.index.unit_of(np.array([i]))[0]].time)
    row, col = int(windows.index.rows[index]), int(windows.index.cols[index])
    found = classes.of(index)
    for y, x in ((0, 0), (CORE - 1, 2)):
        red, infrared = pixels[:, (row + y) * 8 : (row + y + 1) * 8, (col + x) * 8 : (col + x + 1) * 8]
        ndvi = ((infrared - red) / (infrared + red)).mean()
        assert found[y, x] == sum(ndvi >= t for t in (-0.2, 0.0, 0.3))
    assert classes.count == 4
    with pytest.raises(InputError, match="rising"):
        NdviClasses(windows, (0.5, 0.2))


def test_a_window_that_is_not_ok_has_no_class_and_a_source_goes_on_where_it_was(tmp_path: Path) -> None:
    plan = make_plan(make_weights(tmp_path / "w.safetensors"))
    made = make_store(str(tmp_path / "c.zarr"), plan, {(0, 1, 2): State.CLOUDY})
    windows = CubeWindows(made.url, side=2 * CORE, states=("ok", "cloudy", "outside"))
    classes = NdviClasses(windows)
    assert any((classes.of(i) == NONE).any() for i in range(len(windows)))
    first = ClassifiedBatches(WindowStream(windows), classes, tensors)
    first.draw(3, 2 * CORE)
    state = first.state_dict()
    want = [first.draw(2, 0) for _ in range(4)]
    again = ClassifiedBatches(WindowStream(windows), classes, tensors)
    again.load_state_dict(state)
    for z, labels in want:
        got = again.draw(2, 0)
        assert torch.equal(got[0].nan_to_num(9e9), z.nan_to_num(9e9)) and torch.equal(got[1], labels)
    first.close()
    again.close()
