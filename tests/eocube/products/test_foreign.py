"""Two kinds of product that are not EO-VAE go through plan, store, log, verification and reading like any other."""

from __future__ import annotations

import json
import tomllib
import tracemalloc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import eocube
from eocube.cli import main
from eocube.cube.windows import CubeWindows
from eocube.errors import InputError, StoreError
from eocube.ground.grid import Window
from eocube.plan.plan import Plan
from eocube.products import registry
from eocube.products.base import Ask, models_of
from eocube.products.spec import Product
from eocube.read.reader import WindowPixels, WindowReader
from eocube.report.fidelity import fidelity, truth_pixels
from eocube.report.info import info, status
from eocube.report.page import write_page
from eocube.report.source_pixels import read_source
from eocube.run.arguments import EncodeOptions
from eocube.run.memory import SHARD_COPIES
from eocube.run.options import Limits
from eocube.run.request import Exit, make_plans, product_of
from eocube.run.resume import Remaining
from eocube.run.unit import UnitRunner
from eocube.scenes.scene import Scene
from eocube.sensors import get_sensor
from eocube.store.receipts import Receipt, State
from eocube.store.store import CubeStore
from eocube.store.survey import survey
from tests.eocube.cubes import parsed
from tests.eocube.products.toys import BRIGHTNESS, CORE, LEVELS
from tests.faults.test_corrupt import DAMAGE, everything, kinds

BOX = ("9.06", "48.64", "9.09", "48.66")
KINDS = ("brightness-codes", "band-means")


def options(kind: str, catalog: Path, out: Path, **more: Any) -> EncodeOptions:
    return EncodeOptions(
        BOX, "2024-05-01/2024-05-31", catalog=str(catalog), out=str(out), product=kind, bands="B02,B03,B04,B08",
        precision="fp32", **more,
    )  # fmt: skip


def plan_for(kind: str, catalog: Path, out: Path, **more: Any) -> Plan:
    request = parsed(options(kind, catalog, out, **more))
    (plan,) = make_plans(request, product_of(request), None)
    return plan


def run(plan: Plan, url: str) -> CubeStore:
    """Carry out in this process what the store lacks of a plan, and finalise."""
    store = CubeStore.create(url, plan)
    runner = UnitRunner(
        plan, store, models_of(registry.open(plan.product), "cpu", plan.numerics), Limits(verify_fraction=1.0)
    )
    try:
        for unit in Remaining(plan, store.log.latest(), ()).units():
            store.commit([runner.run(unit)])
    finally:
        runner.close()
    store.finalise()
    return store


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, foreign: Path, demo_catalog: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Plan, str]:
    url = str(tmp_path_factory.mktemp("foreign") / "cube.zarr")
    plan = plan_for(request.param, demo_catalog, Path(url))
    run(plan, url)
    return plan, url


def test_the_plan_knows_its_product_again(made: tuple[Plan, str]) -> None:
    plan, url = made
    assert Plan.from_json(plan.to_json()) == plan
    (stored,) = (Plan.from_json(text) for text in CubeStore.stored_plans(url))
    assert stored.product == plan.product and stored.space_id == plan.space_id == plan.product.space_id


def test_every_window_is_made_and_nothing_is_wrong(made: tuple[Plan, str]) -> None:
    plan, url = made
    store = CubeStore.open(url)
    counts = store.status_counts()
    asked = sum(1 for _ in plan.grid.requested_windows()) * len(plan.times)
    assert counts[State.OK] == asked > 4 and survey(url) == []
    assert main(["verify", url]) == Exit.DONE


def test_values_are_what_the_pixels_give(made: tuple[Plan, str]) -> None:
    """Against the sources read again by the plan, another way than the run's."""
    plan, url = made
    values = eocube.open(url).eocube.values().isel(time=0).compute()
    truth = read_source(plan, truth_pixels(plan), 0)
    lattice = plan.grid.lattice
    for window in list(plan.grid.requested_windows())[:3]:
        left, bottom, right, top = lattice.core_bounds(window)
        pixels = truth.sel(x=slice(left, right), y=slice(top, bottom)).values
        found = values.sel(x=slice(left, right), y=slice(top, bottom)).values
        assert pixels.shape[1:] == (CORE, CORE)
        if plan.product.kind == "band-means":
            assert found.shape == (4, 1, 1) and found.dtype == np.float32
            np.testing.assert_allclose(found[:, 0, 0], pixels.mean(axis=(1, 2)), rtol=1e-5)
        else:
            assert found.shape == (1, 12, 12) and found.dtype == np.int32
            mean = pixels.mean(axis=0).reshape(12, 16, 12, 16).mean(axis=(1, 3))
            assert np.abs(found[0] - np.floor(np.clip(mean * LEVELS, 0, LEVELS - 1))).max() <= 1
            assert (found[0] == np.floor(np.clip(mean * LEVELS, 0, LEVELS - 1))).mean() > 0.98


def test_what_is_not_there_is_not_a_value(made: tuple[Plan, str]) -> None:
    plan, url = made
    ds = eocube.open(url)
    values, stored = ds.eocube.values().isel(time=0).values, ds[plan.product.array].isel(time=0).values
    outside = np.repeat(np.repeat(ds["status"].isel(time=0).values != State.OK, values.shape[1] // ds.sizes["wy"], 0),
                        values.shape[2] // ds.sizes["wx"], 1)  # fmt: skip
    assert outside.any() and not outside.all()
    if plan.product.kind == "band-means":
        assert np.isnan(values[:, outside]).all() and np.isfinite(values[:, ~outside]).all()
    else:
        assert stored.dtype == np.uint16 and (stored[:, outside] == 65535).all()
        assert (values[:, outside] == -1).all() and (values[:, ~outside] >= 0).all()


def test_plain_xarray_opens_it(made: tuple[Plan, str]) -> None:
    plan, url = made
    ds = xr.open_zarr(url)
    assert ds[plan.product.array].dims == ("time", "channel", "y", "x")
    assert ds[plan.product.array].attrs["long_name"] == plan.product.long_name
    assert ("psnr" in ds) == plan.product.decodes


def test_decoding_is_for_those_that_have_a_decoder(made: tuple[Plan, str], tmp_path: Path) -> None:
    plan, url = made
    ds = eocube.open(url)
    if not plan.product.decodes:
        with pytest.raises(InputError, match="embedding cubes"):
            ds.eocube.decode()
        with pytest.raises(InputError, match="nothing to compare"):
            fidelity(plan, url)
        assert ds.eocube.latents().dtype == np.float32
        return
    decoded = ds.eocube.decode(bands=["B04"]).isel(time=0).compute()
    assert decoded.dims == ("band", "y", "x") and np.isfinite(decoded.values).any()
    (scores,) = fidelity(plan, url).values()
    assert 10 < scores.psnr < 40
    with pytest.raises(InputError, match="hold codes"):
        ds.eocube.latents()
    picture = tmp_path / "quicklook.png"
    assert ds.eocube.quicklook(picture) and picture.stat().st_size > 10_000


def test_info_status_and_the_page_say_what_it_is(made: tuple[Plan, str], tmp_path: Path) -> None:
    plan, url = made
    said, now = info(url), status(url)
    assert said.product == plan.product.kind and said.space_id == plan.space_id
    assert now.percent_done == 100.0
    page = Path(write_page(url, str(tmp_path / "page.html"))).read_text()
    assert plan.space_id in page
    if plan.product.summary == "histogram":
        counted = sum(r.histogram.count for r in CubeStore.open(url).receipts() if r.histogram is not None)
        assert said.histogram["count"] == counted == 144 * now.windows["ok"]
        assert 1 < said.histogram["codes"][0] <= LEVELS and 0 < said.histogram["entropy"][0] < 6
    else:
        values = eocube.open(url).eocube.values().values
        moments = eocube.open(url).eocube.info.moments
        assert moments is not None
        np.testing.assert_allclose(moments.mean, np.nanmean(values, axis=(0, 2, 3)), rtol=1e-5)


def test_receipts_hold_what_was_counted(made: tuple[Plan, str]) -> None:
    _, url = made
    for receipt in CubeStore.open(url).receipts():
        assert Receipt.from_json(receipt.to_json()) == receipt


@pytest.mark.parametrize("how", DAMAGE)
def test_any_damage_to_any_kind_of_object_is_named(made: tuple[Plan, str], how: str, tmp_path: Path) -> None:
    _, url = made
    objects = everything(url)
    for keys in kinds(objects).values():
        key, root = keys[-1], Path(url)
        damaged = DAMAGE[how](objects[key])
        try:
            (root / key).unlink() if damaged is None else (root / key).write_bytes(damaged)
            found = [(finding.path, finding.what) for finding in survey(url)]
            assert any(path == key or key in what for path, what in found), key
        finally:
            (root / key).write_bytes(objects[key])
    assert survey(url) == []


def test_a_killed_run_is_gone_on_with(made: tuple[Plan, str], tmp_path: Path) -> None:
    """A shard that was written and not logged, a window that failed: the same bytes in the end."""
    plan, url = made
    other = str(tmp_path / "cube.zarr")
    store = CubeStore.create(other, plan)
    runner = UnitRunner(plan, store, models_of(registry.open(plan.product), "cpu", plan.numerics), Limits())
    first = next(iter(plan.units()))
    receipt = runner.run(first)
    runner.close()
    failed = replace(receipt.windows[0], state=State.READ_FAILED, reason="cut off")
    assert receipt.windows[0].state is State.OK
    store.commit([replace(receipt, windows=(failed, *receipt.windows[1:]))])
    remaining = Remaining(plan, store.log.latest(), (State.READ_FAILED,))
    again = UnitRunner(plan, store, models_of(registry.open(plan.product), "cpu", plan.numerics), Limits())
    done = [again.run(unit) for unit in remaining.units()]
    again.close()
    store.commit(done)
    store.finalise()
    assert [r.sha256 for r in store.receipts()] == [r.sha256 for r in CubeStore.open(url).receipts()]
    assert survey(other) == []


class Counting:
    """A source of pixels of one's own: here a plan's scenes, counted."""

    def __init__(self, plan: Plan) -> None:
        self._reader = WindowReader(plan.sensor, plan.grid.lattice)
        self.read_alone: list[Window] = []

    def read(self, scenes: Sequence[Scene], window: Window, /) -> WindowPixels:
        self.read_alone.append(window)
        return self._reader.read(scenes, window)

    def read_shard(self, wanted: object, max_cloud: float | None, submit: object, /) -> dict[Window, Any]:
        return {}

    def mask(self, scenes: Sequence[Scene], window: Window, /) -> tuple[int, int, int]:
        return self._reader.mask(scenes, window)

    def close(self) -> None:
        self._reader.close()


def test_a_unit_reads_by_whatever_it_is_given(made: tuple[Plan, str], tmp_path: Path) -> None:
    plan, url = made
    inputs = Counting(plan)
    models = models_of(registry.open(plan.product), "cpu", plan.numerics)
    store = CubeStore.create(str(tmp_path / "cube.zarr"), plan)
    runner = UnitRunner(plan, store, models, Limits(), inputs=inputs)
    unit = next(iter(plan.units()))
    receipt = runner.run(unit)
    runner.close()
    assert sorted(inputs.read_alone) == sorted(w for w in plan.grid.requested_windows())
    assert receipt.sha256 == next(r.sha256 for r in CubeStore.open(url).receipts() if r.unit == unit.key)


def test_writing_a_shard_takes_no_more_copies_than_planned_with(made: tuple[Plan, str], tmp_path: Path) -> None:
    plan, _ = made
    store = CubeStore.create(str(tmp_path / "cube.zarr"), plan)
    lattice, storage = plan.grid.lattice, store.storage
    noise = np.random.default_rng(0).integers(0, LEVELS, (plan.product.channels, lattice.shard, lattice.shard))
    stored = storage.pack(noise if plan.product.summary == "histogram" else noise.astype(np.float32))
    unit = next(iter(plan.units()))
    tracemalloc.start()
    store.write_shard(unit.time, unit.row, unit.col, stored)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Small shards are mostly what a write takes whatever the size: half a MB.
    assert peak + stored.nbytes <= SHARD_COPIES * stored.nbytes + 2**19


def test_training_reads_its_values(made: tuple[Plan, str]) -> None:
    plan, url = made
    windows = CubeWindows(url, side=2 * plan.product.core_px // plan.product.cell_px)
    patches = [patch for patch in map(windows.read, range(len(windows))) if patch is not None]
    cube = eocube.open(url).eocube.values().isel(time=0).values
    assert patches and windows.channels == plan.product.channels
    for patch in patches:
        row, col = int(windows.index.rows[patch.index]), int(windows.index.cols[patch.index])
        part = cube[:, row : row + windows.side, col : col + windows.side]
        # At the array's edge a shard goes on, with nothing in it.
        here = patch.values[:, : part.shape[1], : part.shape[2]]
        assert here.dtype == part.dtype
        np.testing.assert_array_equal(here, part)
        absent = patch.values == -1 if patch.values.dtype == np.int32 else np.isnan(patch.values)
        assert absent.any(axis=0)[patch.valid == 0].all() and not absent.any(axis=0)[patch.valid > 0].any()
    if plan.product.summary == "histogram":
        with pytest.raises(InputError, match="no moments to normalise by"):
            CubeWindows(url, side=2, normalise="moments")


def test_a_product_of_two_sensors_is_refused(
    foreign: Path, demo_catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = BRIGHTNESS.plan

    def two(self: object, ask: Ask) -> Product:
        product = one(ask)
        return replace(product, inputs=(*product.inputs, get_sensor("S1RTC")))

    monkeypatch.setattr(type(BRIGHTNESS), "plan", two)
    request = parsed(options("brightness-codes", demo_catalog, tmp_path / "a.zarr"))
    with pytest.raises(InputError, match=r"brightness-codes reads 2 sensors at once \(S2L2A.*, S1RTC\)"):
        product_of(request)


def test_other_products_never_mix(made: tuple[Plan, str], demo_catalog: Path) -> None:
    plan, url = made
    other = plan_for(next(kind for kind in KINDS if kind != plan.product.kind), demo_catalog, Path(url))
    with pytest.raises(StoreError, match="write to another target"):
        CubeStore.create(url, other)


def test_an_unknown_kind_is_one_line(foreign: Path, demo_catalog: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--product: no 'band-mean'.*did you mean band-means"):
        parsed(options("band-mean", demo_catalog, tmp_path / "a.zarr"))
    document: Mapping[str, Any] = json.loads(plan_for("band-means", demo_catalog, tmp_path / "a.zarr").to_json())
    gone = Plan.from_json(json.dumps({**document, "product": {**document["product"], "kind": "not-here"}}))
    with pytest.raises(InputError, match="product 'not-here' is not known here: there are band-means"):
        registry.open(gone.product)


def test_the_products_page_is_true(demo_catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/howto/products.md as a package of its own: planned, run, read; under 60 lines."""
    page = (Path(__file__).parents[3] / "docs" / "howto" / "products.md").read_text()
    code, entry = (page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "toml"))
    assert len(code.splitlines()) < 60
    site = tmp_path / "site"
    (site / "band_means-1.dist-info").mkdir(parents=True)
    (site / "band_means-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: band_means\nVersion: 1\n")
    (name, value) = tomllib.loads(entry)["project"]["entry-points"]["eocube.products"].popitem()
    (site / "band_means-1.dist-info" / "entry_points.txt").write_text(f"[eocube.products]\n{name} = {value}\n")
    (site / "band_means.py").write_text(code)
    monkeypatch.syspath_prepend(str(site))
    registry._found.cache_clear()
    try:
        url = str(tmp_path / "cube.zarr")
        store = run(plan_for(name, demo_catalog, Path(url)), url)
        values = eocube.open(url).eocube.values().compute()
        assert store.verify() == [] and np.isfinite(values.values).any() and 0 < float(values.mean()) < 1
    finally:
        registry._found.cache_clear()


@pytest.mark.parametrize("array", ["status", "../commits", "Token", "", "time", "a" * 65])
def test_a_products_array_has_a_name_of_its_own(made: tuple[Plan, str], array: str) -> None:
    plan, _ = made
    with pytest.raises(InputError, match="cannot be the name of its array"):
        replace(plan.product, array=array)


def test_a_plan_whose_product_and_lattice_differ_is_damaged(made: tuple[Plan, str]) -> None:
    document = json.loads(made[0].to_json())
    document["product"]["halo_px"] += 16
    with pytest.raises(StoreError, match=r"plan .* is damaged .*other windows than its lattice"):
        Plan.from_json(json.dumps(document))


def test_a_kinds_own_options_are_part_of_the_request(foreign: Path, demo_catalog: Path, tmp_path: Path) -> None:
    plain = options("band-means", demo_catalog, tmp_path / "a.zarr")
    chosen = replace(plain, product_options=("levels=8", "bbox=3"))
    asked = parsed(chosen).document()
    assert asked["product_options"] == {"levels": "8", "bbox": "3"} and len(asked["bbox"]) == 1
    assert "product_options" not in parsed(plain).document()
    with pytest.raises(InputError, match=r"--product-options: 'levels' is no name=value"):
        parsed(replace(plain, product_options=("levels",)))
