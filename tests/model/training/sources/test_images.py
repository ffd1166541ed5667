"""Reading sources, completing bands, drawing batches, augmenting."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from model.sensors import S1RTC, S2L2A, SENSORS, true_colour
from model.training.eo_vae.sampler import Sampler
from model.training.sources.augment import Augmentation, dihedral, optical, radar
from model.training.sources.images import complete, favoured, load_images, upsample

World = tuple[Path, Path]


def test_listing_gives_units_order_and_split(world: World) -> None:
    images = {i.name: i for i in load_images(*world)}
    assert set(images) == {"s2_1", "s2_2", "l1c", "s1"}
    assert images["s2_2"].held_out and not images["s2_1"].held_out
    assert images["s2_1"].bands == S2L2A.bands
    assert 300 < images["s2_1"].data[0].mean() < 1500  # the +1000 of the file is taken off
    assert -30 < images["s1"].data.mean() < 0


def test_unknown_kind_is_named(tmp_path: Path) -> None:
    entry = dict(name="x", place="p", sensor="S2L2A", kind="shapefile", path=".", gsd=10, parts={})
    (tmp_path / "l.yaml").write_text(yaml.safe_dump({"sources": [entry]}))
    with pytest.raises(ValueError, match="shapefile"):
        load_images(tmp_path / "l.yaml", tmp_path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    entry = dict(name="x", place="p", sensor="S1RTC", kind="rasters", path=".", gsd=10, parts={"gone.tif": ["VV"]})
    (tmp_path / "l.yaml").write_text(yaml.safe_dump({"sources": [entry]}))
    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        load_images(tmp_path / "l.yaml", tmp_path)


def test_upsampling_keeps_a_ramp_in_place() -> None:
    coarse = np.arange(8, dtype=np.float32)[None, None].repeat(8, axis=1)
    fine = upsample(coarse, 16, 16)[0, 8]
    assert np.allclose(fine[2:-2], (np.arange(16)[2:-2] + 0.5) / 2 - 0.5, atol=1e-5)


def test_completion_keeps_real_bands_and_is_close(world: World) -> None:
    from dataclasses import replace

    images = load_images(*world)
    whole = next(i for i in images if i.name == "s2_1")
    kept = tuple(b for b in S2L2A.bands if b != "B07")
    partial = replace(whole, name="partial", bands=kept, data=whole.select(kept))
    (filled,) = [i for i in complete([*images, partial]) if i.name == "partial+"]
    assert np.allclose(filled.select(kept), partial.data, rtol=1e-4, atol=0.5)
    error = np.abs(filled.select(["B07"]) - whole.select(["B07"])).mean()
    assert error < 0.5 * whole.select(["B07"]).std()


def test_favour_multiplies_the_weights_of_a_place_and_names_one_that_is_not_there(world: World) -> None:
    images = load_images(*world)
    weights = {i.name: i.weight for i in favoured(images, {"p1": 3})}
    assert weights == {i.name: i.weight * (3 if i.place == "p1" else 1) for i in images}
    assert sum(i.place == "p1" for i in images) == 2
    with pytest.raises(ValueError, match="favour names p9"):
        favoured(images, {"p9": 2})


def test_an_image_is_seen_in_another_sensors_bands_and_as_a_picture(world: World) -> None:
    image = next(i for i in load_images(*world) if i.name == "s2_1")
    sensor = SENSORS["RGBN"]
    rgbn = image.seen_by(sensor)
    assert rgbn is not None and np.allclose(sensor.physical(rgbn), image.select(sensor.bands) / 1e4, atol=1e-5)
    picture = image.seen_by(SENSORS["S2RGB"])
    assert picture is not None
    assert np.allclose(SENSORS["S2RGB"].physical(picture), true_colour(image.select(["B04", "B03", "B02"])), atol=1e-3)
    assert image.seen_by(S1RTC) is None


def test_a_place_is_of_one_kind(world: World, tmp_path: Path) -> None:
    listing, root = world
    entries = yaml.safe_load(listing.read_text())["sources"]
    listed = tmp_path / "l.yaml"

    def written(changes: dict[str, dict[str, object]]) -> Path:
        listed.write_text(yaml.safe_dump({"sources": [e | changes.get(e["name"], {}) for e in entries]}))
        return listed

    images = {i.name: i for i in load_images(written({"s2_2": {"test": True}}), root)}
    assert images["s2_2"].held_out and images["s2_2"].test and not images["s2_1"].test
    with pytest.raises(ValueError, match="source 's2_1' is test and not held out"):
        load_images(written({"s2_1": {"test": True}, "s1": {"test": True}}), root)
    with pytest.raises(ValueError, match="place 'p1' is trained on, held out or test: one of them"):
        load_images(written({"s2_1": {"held_out": True}}), root)


def test_sampler_never_draws_held_out_places_and_repeats_by_seed(world: World) -> None:
    images = load_images(*world)
    first, second = (Sampler(images, seed=3) for _ in range(2))
    assert all(not i.held_out for i in first.images)
    for _ in range(6):
        a, b = first.draw(2, 48), second.draw(2, 48)
        assert a.sensor == b.sensor and np.array_equal(a.x.numpy(), b.x.numpy())
        assert a.x.shape == (2, len(a.sensor.bands), 48, 48) and np.isfinite(a.x.numpy()).all()


def test_sampler_without_any_usable_image_says_so() -> None:
    with pytest.raises(ValueError, match="no training image"):
        Sampler([], seed=0)


def test_augmentation_stays_in_range_and_keeps_shape() -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 9000, (12, 32, 32)).astype(np.float32)
    for _ in range(30):
        y = optical(x, np.array(S2L2A.wavelengths, np.float32), Augmentation(1, (0.3, 3.5), 1, 0.25, 1), rng)
        assert y.shape == x.shape and np.isfinite(y).all() and y.max() <= 28000
    assert np.isfinite(radar(x[:2], Augmentation(), rng)).all()
    assert np.allclose(np.sort(dihedral(x, rng).ravel()), np.sort(x.ravel()))


def test_sensor_statistics_round_trip_and_true_colour() -> None:
    x = np.random.default_rng(1).uniform(0, 9000, (12, 4, 4)).astype(np.float32)
    assert np.allclose(S2L2A.physical(S2L2A.zscore(x)), x * 1e-4, atol=1e-5)
    assert true_colour(np.array([0.0, 3558.0, 9000.0], np.float32)).tolist() == [1, 255, 255]
    assert S1RTC.unit == "dB" and SENSORS["RGBN"].bands == ("B04", "B03", "B02", "B08")
    with pytest.raises(ValueError, match="B99"):
        S2L2A.subset(["B99"])
