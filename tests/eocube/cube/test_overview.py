"""An overview is the mean of what is decoded, follows what is encoded again, and changes nothing of the store."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import eocube
from eocube.cli import main
from eocube.cube.overview import make_overviews, overview_of
from eocube.errors import StoreError
from eocube.serve.cube import open_cubes
from eocube.store.existing import create_root, finalise_root
from eocube.store.overview import Overview, halved, made_of
from eocube.store.receipts import State
from eocube.store.store import CubeStore
from tests.eocube.cubes import SHARD, Made, make_plan, make_store, make_weights
from tests.eocube.serve.running import running, tile_at

BAD = {(0, 1, 1): State.CLOUDY}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("overview") / "tiny.safetensors")


@pytest.fixture
def made(weights: Path, tmp_path: Path) -> Made:
    return make_store(str(tmp_path / "a.zarr"), make_plan(weights), BAD)


def hashes(url: str) -> dict[str, str]:
    """Of every file of a store but its overview."""
    root = Path(url)
    files = [p for p in sorted(root.rglob("*")) if p.is_file() and "overview" not in p.relative_to(root).parts]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def levels(url: str) -> list[xr.Dataset]:
    """The levels of an overview by plain xarray."""
    count = len(json.loads((Path(url) / "overview" / "zarr.json").read_text())["attributes"]["multiscales"]["layout"])
    return [xr.open_zarr(url, group=f"overview/{k}", consolidated=False) for k in range(count)]


def test_each_level_is_the_mean_of_the_one_before_and_the_first_of_what_is_decoded(made: Made) -> None:
    (found,) = make_overviews(made.url)
    assert found.shards == len(list(made.plan.grid.shards())) * 2 and found.kept == 0 and found.bytes > 0
    first, *others = levels(made.url)
    assert list(first.band.values) == ["B04", "B03", "B02"]
    ds, bands, got = eocube.open(made.url), ["B04", "B03", "B02"], first.picture.values
    for row, col in made.plan.grid.shards():
        own = ds.isel(y=slice(row * SHARD, (row + 1) * SHARD), x=slice(col * SHARD, (col + 1) * SHARD))
        want = np.stack([halved(one, 16) for one in own.eocube.decode(bands, crop=False).values])
        side = SHARD // 2
        part = got[:, :, row * side : (row + 1) * side, col * side : (col + 1) * side]
        np.testing.assert_allclose(part, want, atol=0.51e-4)
    # Shards are decoded without their neighbours: the whole cube hardly differs, and random weights are the worst case.
    whole = np.stack([halved(one, 16) for one in ds.eocube.decode(bands, crop=False).values])
    assert (np.isfinite(got) == np.isfinite(whole)).all()
    assert np.sqrt(np.nanmean((got - whole) ** 2)) < 0.3 * np.nanstd(whole)
    transform = made.plan.grid.transform
    assert float(first.x[0]) == transform.c + 80 and float(first.y[0]) == transform.f - 80
    for before, level in zip((first, *others), others, strict=False):
        down, across = (min(level.sizes[d], before.sizes[d] // 2) for d in ("y", "x"))
        part = before.picture.values[:, :, : 2 * down, : 2 * across]
        mean = np.stack([halved(one, 2) for one in part])
        np.testing.assert_allclose(level.picture.values[:, :, :down, :across], mean, atol=1.1e-4)
        assert float(level.x[1] - level.x[0]) == 2 * float(before.x[1] - before.x[0])
    assert max(others[-1].sizes[d] for d in ("y", "x")) == SHARD // 2 if others else True


def test_a_store_with_an_overview_is_the_same_store(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before, opened = hashes(made.url), xr.open_zarr(made.url)
    assert main(["overview", made.url, "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert said["levels"] == 3 and said["shards"] > 0
    assert hashes(made.url) == before
    assert xr.open_zarr(made.url).identical(opened)
    assert CubeStore.open(made.url).verify() == []
    assert eocube.open(made.url).eocube.space_id == made.plan.space_id


def test_only_what_was_encoded_again_is_made_again(made: Made) -> None:
    list(make_overviews(made.url))
    (again,) = make_overviews(made.url)
    assert again.shards == 0 and again.bytes == 0
    store = CubeStore.open(made.url)
    receipt = next(r for r in store.receipts() if r.time == 1)
    block = store.read_shard(1, *receipt.shard)
    there = store.storage.there(block)
    changed = np.where(there, np.float16(0.25), block)
    _, sha256 = store.write_shard(1, *receipt.shard, changed)
    store.commit([replace(receipt, sha256=sha256)])
    store.finalise()
    old = [level.picture.values for level in levels(made.url)]
    (third,) = make_overviews(made.url)
    assert third.shards == 1
    for was, level in zip(old, levels(made.url), strict=True):
        now = level.picture.values
        assert (np.nan_to_num(now[0]) == np.nan_to_num(was[0])).all()
        assert (np.nan_to_num(now[1]) != np.nan_to_num(was[1])).any()
    assert made_of(store.target, 1)[receipt.shard.row, receipt.shard.col] == sha256
    (all_of_it,) = make_overviews(made.url, again=True)
    assert all_of_it.shards > 1


def test_what_a_killed_run_left_is_gone_on_with(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eocube.cube.overview.TOGETHER", 1)

    def killed(done: int, every: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(make_overviews(made.url, progress=killed))
    (rest,) = make_overviews(made.url)
    assert rest.kept >= 2 and rest.kept + rest.shards == len(list(made.plan.grid.shards())) * 2
    one = [level.picture.values for level in levels(made.url)]
    list(make_overviews(made.url, again=True))
    for a, level in zip(one, levels(made.url), strict=True):
        np.testing.assert_array_equal(a, level.picture.values)


def test_it_grows_with_its_store(weights: Path, tmp_path: Path) -> None:
    plan = make_plan(weights)
    shorter = replace(plan, times=plan.times[:1])
    made = make_store(str(tmp_path / "a.zarr"), shorter)
    (first,) = make_overviews(made.url)
    longer = overview_of(eocube.open(made.url), CubeStore.open(made.url))
    grown = replace(longer, times=2, shards=(longer.shards[0] + 3, longer.shards[1] + 3))
    assert grown.levels > longer.levels
    assert {longer.key(0, 0, r, c) for r in range(longer.shards[0]) for c in range(longer.shards[1])} <= {
        grown.key(0, 0, r, c) for r in range(grown.shards[0]) for c in range(grown.shards[1])
    }
    assert first.levels == longer.levels


def test_zones_each_have_theirs_and_what_is_not_decoded_is_refused(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "both.zarr"
    create_root(str(root), ["utm32", "utm33"], {})
    for zone in ("utm32", "utm33"):
        make_store(str(root / zone), make_plan(weights))
    finalise_root(str(root))
    assert main(["overview", str(root)]) == 0
    assert capsys.readouterr().out.count("shards decoded") == 2
    assert (root / "utm33" / "overview" / "0" / "picture" / "zarr.json").is_file()
    assert main(["overview", str(tmp_path / "nothing.zarr")]) == 2
    assert "nothing.zarr" in capsys.readouterr().err


def test_radar_has_its_two_bands_in_decibels(weights: Path, tmp_path: Path) -> None:
    made = make_store(str(tmp_path / "radar.zarr"), make_plan(weights, "S1RTC"))
    list(make_overviews(made.url))
    (first, *_) = levels(made.url)
    assert list(first.band.values) == ["VV", "VH"] and first.picture.attrs["units"] == "dB"


def test_numbers_come_back_to_half_a_step_and_nothing_stays_nothing() -> None:
    plan = Overview(("B04", "B03", "B02"), "reflectance", 1, (3, 5), 12, (80.0, 0.0, 1e5, 0.0, -80.0, 5e6), 32632)
    rng = np.random.default_rng(3)
    pixels = rng.uniform(-0.05, 1.2, (3, plan.block, plan.block)).astype(np.float32)
    pixels[:, 0, 0] = np.nan
    data = plan.encode(pixels)
    assert data is not None
    np.testing.assert_allclose(plan.decode(data), pixels, atol=0.51e-4)
    assert plan.encode(np.full_like(pixels, np.nan)) is None
    assert plan.levels == 4 and plan.blocks(3) == (1, 1) and plan.pixel(0) == 160


def test_far_out_tiles_are_drawn_from_it(made: Made) -> None:
    with running(open_cubes([made.url])) as server:
        assert not server.get("/api/cubes").json()["cubes"][0]["has_overview"]
    list(make_overviews(made.url))
    with running(open_cubes([made.url])) as server:
        (cube,) = server.get("/api/cubes").json()["cubes"]
        west, south, east, north = cube["bounds"]
        assert cube["has_overview"]
        x, y = tile_at((west + east) / 2, (south + north) / 2, 9)
        from eocube.serve.raster import TilePlace

        shown, place = server.service.of("0"), TilePlace(9, x, y)
        assert shown.far.serves(1, ("B04", "B03", "B02"), place.ground_pixel)
        assert not shown.far.serves(1, ("B08",), place.ground_pixel)
        got = server.get(f"/tiles/0/true-colour/1/9/{x}/{y}.png").pixels()
        assert got[3].any()
        preview = server.get(f"/tiles/0/infrared/1/9/{x}/{y}.png").pixels()
        assert (got[3] > 0).sum() == pytest.approx((preview[3] > 0).sum(), rel=0.3)


def test_a_damaged_object_is_said_and_made_again(made: Made) -> None:
    list(make_overviews(made.url))
    store = CubeStore.open(made.url)
    plan = overview_of(eocube.open(made.url), store)
    row, col = next(iter(made_of(store.target, 1)))
    path = Path(made.url) / plan.key(0, 1, row, col)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(StoreError, match=f"overview/0/picture/c/1/0/{row}/{col}"):
        plan.read(store.target, 0, 1, row, col)
    list(make_overviews(made.url, again=True))
    assert plan.read(store.target, 0, 1, row, col) is not None


@pytest.mark.slow
def test_a_run_makes_it_of_what_is_new(weights: Path, tmp_path: Path) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, make_demo

    catalog = make_demo(tmp_path / "scenes")
    words = ["encode", "--catalog", str(catalog), "--out", str(tmp_path / "a.zarr"), "--weights", str(weights)]
    words += ["--bands", "B02,B03,B04,B08", "--resolution", "40", "--quiet", "--overview", "--bbox"]
    words += [str(v) for v in DEMO_BBOX]
    assert main([*words, "--datetime", "2024-05-14"]) == 0
    (first, *_) = levels(str(tmp_path / "a.zarr"))
    assert np.isfinite(first.picture.values).any() and first.sizes["time"] == 1
    assert main([*words, "--datetime", "2024-05-01/2024-12-31"]) == 0
    (longer, *_) = levels(str(tmp_path / "a.zarr"))
    assert longer.sizes["time"] == 2 and np.isfinite(longer.picture.values[1]).any()
    np.testing.assert_array_equal(longer.picture.values[0], first.picture.values[0])
    assert CubeStore.open(str(tmp_path / "a.zarr")).verify() == []
