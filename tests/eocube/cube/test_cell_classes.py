"""The probe: a linear head learns from stored values alone which NDVI class the decoded pixels are of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from eocube.cube.cell_classes import NONE, ClassifiedBatches, NdviClasses
from eocube.cube.window_stream import WindowStream
from eocube.cube.windows import CubeWindows
from eocube.demo.catalogue import DEMO_BBOX
from eocube.errors import InputError
from eocube.products.eo_vae import load, models_for
from eocube.run.options import Limits
from eocube.run.request import EncodeOptions, Request, make_plans
from eocube.run.unit import UnitRunner
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from model.training.sources.splits import BlockSplit
from tests.eocube.cubes import CORE, make_plan, make_store, make_weights

SIDE = 6
Pair = tuple[torch.Tensor, torch.Tensor]


def encode(catalog: Path, bbox: Sequence[float], interval: str, out: Path) -> str:
    """A cube by the shipped weights, in this process."""
    asked = EncodeOptions(
        bbox=tuple(map(str, bbox)), datetime=interval, catalog=str(catalog), sensor="S2L2A", weights="nano",
        out=str(out), max_cloud=100,
    )  # fmt: skip
    loaded = load("nano")
    (plan,) = make_plans(Request.parse(asked, on_gpu=False), loaded, None)
    store = CubeStore.create(asked.out, plan)
    runner = UnitRunner(plan, store, models_for(plan, loaded, "cpu"), Limits(encode_threads=1))
    store.commit([runner.run(unit) for unit in plan.units() if not unit.empty])
    runner.close()
    store.finalise()
    return asked.out


def tensors(values: np.ndarray, classes: np.ndarray) -> Pair:
    return torch.from_numpy(values), torch.from_numpy(classes)


def source(urls: list[str], rule: BlockSplit, split: str, thresholds: Sequence[float]) -> ClassifiedBatches[Pair]:
    windows = CubeWindows(urls, side=SIDE, split=(rule, split), normalise="moments")
    return ClassifiedBatches(WindowStream(windows), NdviClasses(windows, thresholds), tensors)


def probed(urls: list[str], rule: BlockSplit, thresholds: Sequence[float], steps: int = 150) -> tuple[float, float]:
    """Accuracy of a linear head on held-out ground, and that of always naming what is most frequent there."""
    torch.manual_seed(0)
    train, test = (source(urls, rule, name, thresholds) for name in ("train", "test"))
    z, _ = train.draw(1, SIDE)
    head = torch.nn.Conv2d(z.shape[1], len(thresholds) + 1, 1)
    optimiser = torch.optim.AdamW(head.parameters(), lr=0.03)
    for _ in range(steps):
        z, classes = train.draw(16, SIDE)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(head(z), classes, ignore_index=NONE).backward()
        optimiser.step()
    z, classes = test.draw(test.steps_per_epoch(1), SIDE)
    train.close()
    test.close()
    known = classes != NONE
    right = (head(z).argmax(1) == classes)[known].float().mean()
    most = classes[known].bincount().max() / known.sum()
    return float(right), float(most)


def test_a_linear_head_tells_vegetation_of_the_demo_on_held_out_ground(demo_catalog: Path, tmp_path: Path) -> None:
    first = sorted(json.loads(p.read_text())["properties"]["datetime"] for p in demo_catalog.parent.rglob("*.json")
                   if "datetime" in json.loads(p.read_text()).get("properties", {}))[0]  # fmt: skip
    url = encode(demo_catalog, DEMO_BBOX, first[:10], tmp_path / "demo.zarr")
    rule = BlockSplit(2000.0, 40.0, {"train": 0.6, "test": 0.4}, seed=1)
    every = source([url], replace(rule, shares={"train": 1.0}), "train", (0.3,))
    _, classes = every.draw(every.steps_per_epoch(1), SIDE)
    every.close()
    assert len(set(classes[classes != NONE].tolist())) == 2
    right, most = probed([url], rule, (0.3,))
    assert right > most + 0.05, (right, most)


@pytest.mark.slow
@pytest.mark.real
def test_a_linear_head_tells_vegetation_of_real_samples_on_held_out_places(catalog_json: Path, tmp_path: Path) -> None:
    urls = []
    for k, path in enumerate(sorted((catalog_json.parent / "sentinel-2-l2a").glob("*/*.json"))):
        item = json.loads(path.read_text())
        urls.append(encode(catalog_json, item["bbox"], item["properties"]["datetime"][:10], tmp_path / f"{k}.zarr"))
    rule = BlockSplit(1000.0, 0.0, {"train": 0.6, "test": 0.4}, seed=1)
    right, most = probed(urls, rule, (0.2, 0.5))
    assert right > most + 0.05, (right, most)


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
    with pytest.raises(InputError, match="side="):
        again.draw(2, 5)
    first.close()
    again.close()
