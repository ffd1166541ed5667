"""Windows of local rasters equal the whole image's; statistics computed and said; a data file and what it refuses."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import yaml
from affine import Affine

from model.sensors import S2L2A, SENSORS, TrainedSensor
from model.training.sources.data_file import open_data
from model.training.sources.images import load_images, load_source, read_listing
from model.training.sources.indexed import IndexedFeed
from model.training.sources.patch import BandError, Patch
from model.training.sources.rasters import RasterPatches
from model.training.sources.statistics import Moments, measure, some, trained_sensor, with_statistics
from model.training.sources.stream import Worker
from tests.model.training import shards as make

FINE, COARSE = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12")
LOWEST = ("B01", "B09")


def write(path: Path, data: np.ndarray, gsd: float, *, crs: str | None = "EPSG:32632") -> None:
    profile = dict(driver="GTiff", count=len(data), height=data.shape[1], width=data.shape[2], dtype=data.dtype)
    if crs:
        profile |= dict(crs=crs, transform=Affine(gsd, 0, 600_000, 0, -gsd, 5_300_000), tiled=True, blockxsize=64,
                        blockysize=64)  # fmt: skip
    with rasterio.open(path, "w", **profile) as dataset:
        dataset.write(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 3 km with its bands at 10, 20 and 60 m, two pixels of nodata, and its listing."""
    root = tmp_path_factory.mktemp("rasters")
    rng = np.random.default_rng(0)
    for name, bands, gsd, side in (("f", FINE, 10, 300), ("c", COARSE, 20, 150), ("l", LOWEST, 60, 50)):
        data = rng.integers(1100, 5000, (len(bands), side, side)).astype(np.uint16)
        data[0, 7, 3] = 0
        write(root / f"{name}.tif", data, gsd)
    entry = dict(
        name="munich", place="munich", sensor="S2L2A", kind="rasters", path=".", gsd=10, offset=-1000, nodata=0,
        parts={"f.tif": list(FINE), "c.tif": list(COARSE), "l.tif": list(LOWEST)},
    )  # fmt: skip
    (root / "listing.yaml").write_text(yaml.safe_dump({"sources": [entry]}))
    return root


def change(folder: Path, target: Path, **changes: Any) -> Path:
    (entry,) = yaml.safe_load((folder / "listing.yaml").read_text())["sources"]
    target.write_text(yaml.safe_dump({"sources": [entry | changes]}))
    return target


@pytest.mark.parametrize(("size", "stride"), [(60, None), (64, 37), (101, 50)])
def test_windows_are_the_whole_images(folder: Path, size: int, stride: int | None) -> None:
    (source,) = read_listing(folder / "listing.yaml")
    (image,) = load_source(source, folder)
    patches = RasterPatches.open(folder / "listing.yaml", folder, "S2L2A", size, stride)
    step = stride or size
    starts = [(r, c) for r in range(0, 300 - size + 1, step) for c in range(0, 300 - size + 1, step)]
    assert len(patches.places) == len(starts) > 8
    for index, (row, column) in enumerate(starts):
        patch = patches.read(index)
        assert patch is not None and patch.bands == S2L2A.bands
        whole = image.data[:, row : row + size, column : column + size]
        # torch rounds the coordinates of a longer axis otherwise
        assert np.allclose(patch.data, whole, atol=0.02, equal_nan=True)


def test_places_are_the_patches_centres(folder: Path) -> None:
    patches = RasterPatches.open(folder / "listing.yaml", folder, "S2L2A", 100)
    from pyproj import Transformer

    lon, lat = Transformer.from_crs(32632, 4326, always_xy=True).transform(600_500, 5_300_000 - 1_500)
    first_of_second_row = patches.places[3]
    assert (first_of_second_row.lon, first_of_second_row.lat) == pytest.approx((lon, lat), abs=1e-9)
    assert first_of_second_row.half == 500


def test_a_square_without_a_pixel_is_none(folder: Path, tmp_path: Path) -> None:
    data = np.zeros((2, 64, 64), np.float32)
    data[:, 32:] = 0.1
    write(tmp_path / "s1.tif", data, 10)
    entry = dict(name="s1", place="p", sensor="S1RTC", kind="rasters", path=".", gsd=10, decibel=10,
                 parts={"s1.tif": ["VV", "VH"]})  # fmt: skip
    (tmp_path / "l.yaml").write_text(yaml.safe_dump({"sources": [entry]}))
    patches = RasterPatches.open(tmp_path / "l.yaml", tmp_path, "S1RTC", 32)
    assert [p is None for p in map(patches.read, range(4))] == [True, True, False, False]
    assert np.allclose(patches.read(2).data, -10)  # type: ignore[union-attr]


def test_what_cannot_serve_is_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    fewer = change(folder, tmp_path / "a.yaml", parts={"f.tif": list(FINE)})
    with pytest.raises(BandError, match=r"^munich has no band B01, .*B12 of S2L2A: fewer than the sensor$"):
        RasterPatches.open(fewer, folder, "S2L2A", 60)
    gone = change(folder, tmp_path / "b.yaml", parts={"gone.tif": list(FINE)})
    with pytest.raises(FileNotFoundError, match=r"^munich: gone\.tif under .* matches 0 files"):
        RasterPatches.open(gone, folder, "S2L2A", 60)
    with pytest.raises(ValueError, match="no source of S1RTC of kind rasters"):
        RasterPatches.open(folder / "listing.yaml", folder, "S1RTC", 60)
    with pytest.raises(ValueError, match="is 301 px wide and high: use a smaller size"):
        RasterPatches.open(folder / "listing.yaml", folder, "S2L2A", 301)
    write(tmp_path / "bare.tif", np.ones((12, 8, 8), np.uint16), 10, crs=None)
    bare = change(folder, tmp_path / "c.yaml", parts={"bare.tif": list(S2L2A.bands)})
    with pytest.raises(ValueError, match="does not say where it lies"):
        RasterPatches.open(bare, tmp_path, "S2L2A", 8)


def test_a_listing_without_data_or_with_a_missing_file_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("sources: []\n")
    with pytest.raises(ValueError, match=r"^empty\.yaml lists no data: it needs a list `sources`"):
        load_images(tmp_path / "empty.yaml", tmp_path)
    entry = dict(name="cube", place="p", sensor="S2L2A", kind="numpy", path="gone.npy", gsd=10, parts={"all": ["B02"]})
    (tmp_path / "l.yaml").write_text(yaml.safe_dump({"sources": [entry]}))
    with pytest.raises(FileNotFoundError, match=r"^cube: there is no .*gone\.npy$"):
        load_images(tmp_path / "l.yaml", tmp_path)


def test_streamed_moments_are_numpys_whatever_the_pieces() -> None:
    rng = np.random.default_rng(2)
    data = (rng.normal(5000, 3, (3, 40, 60)) * np.array([1, 1e-3, 100])[:, None, None]).astype(np.float32)
    data[1, 3:9] = np.nan
    total = Moments.of(data[:, :1])
    for a, b in ((1, 2), (2, 17), (17, 40)):
        total = total.merged(Moments.of(data[:, a:b]))
    exact = data.astype(np.float64).reshape(3, -1)
    assert np.allclose(total.mean, np.nanmean(exact, 1), rtol=1e-12)
    assert np.allclose(total.std, np.nanstd(exact, 1), rtol=1e-9)
    assert total.count.tolist() == [2400, 2400 - 360, 2400]


def test_statistics_of_a_sensor_that_has_none_are_computed_and_said(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = TrainedSensor("S2L2A", "reflectance*1e4", FINE, (0.49, 0.56, 0.665, 0.842), (0,) * 4, (1,) * 4, (10,) * 4)
    feed = IndexedFeed(RasterPatches.open(folder / "listing.yaml", folder, "S2L2A", 60), shuffle=False)
    before = feed.state_dict()
    with caplog.at_level(logging.INFO):
        known = with_statistics(own, some(feed, "S2L2A", 25))
    assert feed.state_dict() == before
    (image,) = load_images(folder / "listing.yaml", folder)
    values = image.select(FINE).reshape(4, -1)
    assert np.allclose(known.mean, np.nanmean(values, 1, dtype=np.float64), rtol=1e-6)
    assert np.allclose(known.std, np.nanstd(values, 1, dtype=np.float64), rtol=1e-6)
    (said,) = [r.message for r in caplog.records if "no statistics" in r.message]
    assert all(band in said for band in FINE) and "reflectance*1e4" in said


def test_statistics_of_nothing_of_a_flat_band_or_of_too_few_bands_are_refused() -> None:
    with pytest.raises(ValueError, match="no data to compute statistics from"):
        measure([], ("a",))
    with pytest.raises(ValueError, match="band b never varies"):
        measure([Patch("p", ("a", "b"), np.stack([np.eye(4), np.ones((4, 4))]).astype(np.float32))], ("a", "b"))
    with pytest.raises(BandError, match="p has no band b: fewer than the sensor"):
        measure([Patch("p", ("a",), np.eye(4, dtype=np.float32)[None])], ("a", "b"))


def test_an_encoding_sensor_becomes_one_to_train() -> None:
    from eocube.sensors import get_sensor

    made = trained_sensor(get_sensor("RGBN"), "reflectance*1e4")
    assert (made.name, made.bands, made.gsd) == ("RGBN", ("B04", "B03", "B02", "B08"), (10,) * 4)


def data_file(folder: Path, target: Path, **changes: Any) -> Path:
    document = {
        "sources": [
            {"kind": "rasters", "listing": str(folder / "listing.yaml"), "root": str(folder), "sensor": "S2L2A",
             "size": 60, "share": 1, "mix": {"S2L2A": 1, "subset": 1}},
        ]
    } | changes  # fmt: skip
    target.write_text(yaml.safe_dump(document))
    return target


@pytest.mark.slow
def test_a_data_file_opens_its_sources_and_their_mixture_resumes(folder: Path, tmp_path: Path) -> None:
    pattern = make.make_shards(tmp_path / "tm", ("S1RTC",), (4, 3), tmp_path / "scratch")
    (rasters,) = yaml.safe_load(data_file(folder, tmp_path / "d.yaml").read_text())["sources"]
    shards = {"kind": "terramesh", "url": pattern, "modalities": ["S1RTC"], "share": 2, "buffer": 3}
    path = data_file(folder, tmp_path / "d.yaml", sources=[rasters, shards])
    first, second = open_data(path, seed=1), open_data(path, seed=1)
    names = {first.draw(2, 32).sensor.name for _ in range(20)}
    assert names == {"S2L2A", "S1RTC"}
    second.load_state_dict(first.state_dict())
    for _ in range(6):
        assert np.array_equal(first.draw(2, 32).x, second.draw(2, 32).x)
    halves = [open_data(path, seed=1, worker=Worker(i, 2)) for i in range(2)]
    drawn = [[h.draw(2, 32) for _ in range(8)] for h in halves]
    assert [b.sensor for b in drawn[0]] == [b.sensor for b in drawn[1]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sources": []}, "lists no data"),
        ({"sauces": 1}, "unknown key 'sauces'"),
        ({"sources": [{"kind": "magic"}]}, "source 1: no kind 'magic': there are terramesh, rasters"),
        ({"sources": [{"kind": "terramesh", "url": "x"}]}, "source 1: modalities is missing"),
        ({"sources": [{"kind": "rasters", "listing": "l", "root": ".", "sensor": "S3", "size": 8}]}, "no sensor 'S3'"),
        ({"split": {"block": 1000}}, "split: margin is missing"),
        ({"split": {"block": 5e4, "margin": 5e3, "shares": {"train": 1}}}, "say which of train is wanted"),
        (
            {"split": {"block": "wide", "margin": 1, "shares": {"train": 1}}},
            r"d\.yaml: split: block must be a valid number",
        ),
        (
            {"sources": [{"kind": "terramesh", "url": "x", "modalities": "S2L2A"}]},
            "source 1: modalities must be a valid",
        ),
        ({"fit": "stretch"}, "fit 'stretch' must be one of"),
        ({"sources": [{"kind": "terramesh", "url": "nowhere/*.tar", "modalities": ["S2L2A"]}]}, "no shards at"),
    ],
)
def test_a_data_file_that_cannot_serve_is_refused_in_one_line(
    folder: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        open_data(data_file(folder, tmp_path / "d.yaml", **changes))
    assert "\n" not in str(caught.value)


def test_a_split_asked_of_a_file_without_one_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"d\.yaml has no split, so there is no 'train'"):
        open_data(data_file(folder, tmp_path / "d.yaml"), split="train")


def test_further_kinds_are_opened_by_the_job(folder: Path, tmp_path: Path) -> None:
    seen = {}

    def opener(options: Any) -> RasterPatches:
        seen.update(options)
        return RasterPatches.open(folder / "listing.yaml", folder, "S2L2A", 60)

    path = data_file(folder, tmp_path / "d.yaml", sources=[{"kind": "stac", "catalog": "c", "share": 2}])
    assert open_data(path, kinds={"stac": opener}).draw(1, 32).sensor == SENSORS["S2L2A"]
    assert seen == {"catalog": "c"}
