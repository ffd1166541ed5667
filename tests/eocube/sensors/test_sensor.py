"""Sensors: band tables, subsets, sampling groups, what weights decide, and a user's own YAML file."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eocube.errors import InputError
from eocube.sensors import get_sensor
from eocube.sensors.builtin import SENSORS
from eocube.sensors.sensor import Sensor


@dataclass(frozen=True)
class Entry:
    bands: tuple[str, ...]
    wavelengths: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit: str
    subsets: bool
    source: str = "test"


@dataclass(frozen=True)
class Weights:
    sensors: Mapping[str, Entry]
    name: str = "nano"


def entry_of(sensor: Sensor, *, unit: str, subsets: bool, shift: float = 0.0) -> Entry:
    names = sensor.band_names
    return Entry(
        names,
        tuple(band.wavelength + shift for band in sensor.bands),
        tuple(band.mean + shift for band in sensor.bands),
        tuple(band.std + shift for band in sensor.bands),
        unit,
        subsets,
    )


def test_every_sensor_and_its_bands() -> None:
    order = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
    assert list(SENSORS) == ["S2L2A", "S2L1C", "S1RTC", "S1GRD", "S2RGB", "RGBN"]
    assert list(get_sensor("S2L2A").band_names) == order
    assert list(get_sensor("S2L1C").band_names) == [*order[:10], "B10", *order[10:]]
    assert get_sensor("S2RGB").band_names == ("B04", "B03", "B02")
    assert get_sensor("RGBN").band_names == ("B04", "B03", "B02", "B08")
    assert get_sensor("S1RTC").band_names == get_sensor("S1GRD").band_names == ("VV", "VH")
    assert [band.index for band in get_sensor("S2RGB").bands] == [1, 2, 3]


def test_true_wavelengths_and_published_statistics_sit_at_their_bands() -> None:
    l2a, l1c = get_sensor("S2L2A"), get_sensor("S2L1C")
    assert [band.wavelength for band in l2a.bands] == [
        0.443, 0.490, 0.560, 0.665, 0.705, 0.740, 0.783, 0.842, 0.865, 0.945, 1.610, 2.190,
    ]  # fmt: skip
    assert (l2a.band("B09").mean, l2a.band("B11").mean, l2a.band("B12").mean) == (3169.651, 2415.761, 1838.622)
    assert (l1c.band("B09").mean, l1c.band("B10").mean) == (1567.433, 561.076)
    assert l1c.band("B10").wavelength == 1.375
    assert (get_sensor("S1RTC").band("VH").mean, get_sensor("S1GRD").band("VV").std) == (-17.198, 5.179)


def test_the_stored_order_of_l1c_has_cirrus_before_swir(shared_dir: Path) -> None:
    """Physics settles the order: the cirrus band is by far the darkest of a clear scene, and it is number 11."""
    import rasterio

    with rasterio.open(shared_dir / "data" / "raw" / "terramesh" / "S2L1C" / "38D_378R_2_3.tif") as file:
        medians = np.median(file.read().reshape(file.count, -1), axis=1)
    assert get_sensor("S2L1C").band_names[int(np.argmin(medians))] == "B10"
    assert medians[10] < 0.1 * np.delete(medians, 10).min()


def test_sensors_survive_pickling_and_hashing() -> None:
    for sensor in SENSORS.values():
        again = pickle.loads(pickle.dumps(sensor))
        assert again.band_names == sensor.band_names and again.collections == sensor.collections
        assert isinstance(hash(sensor), int)


@given(st.sets(st.sampled_from(get_sensor("S2L2A").band_names), min_size=1), st.randoms())
def test_a_subset_keeps_the_sensors_order_whatever_order_is_named(names: set[str], random: object) -> None:
    sensor, listed = get_sensor("S2L2A"), list(names)
    random.shuffle(listed)  # type: ignore[attr-defined]
    part = sensor.subset(listed)
    assert part.band_names == tuple(name for name in sensor.band_names if name in names)
    assert sum(len(indices) for indices in part.groups(10).values()) == len(names)


@pytest.mark.parametrize(
    ("names", "says"),
    [(["B02", "B99"], "no band 'B99'.*B09"), (["b04"], "did you mean B04"), ([], "no bands"), (["B02"] * 2, "once")],
)
def test_a_wrong_subset_is_refused_with_the_way_out(names: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        get_sensor("S2L2A").subset(names)


def test_groups_by_native_sampling() -> None:
    groups = get_sensor("S2L2A").groups(10)
    assert list(groups) == [10, 20, 60]
    assert groups[60] == (0, 9) and groups[10] == (1, 2, 3, 7)
    assert get_sensor("S2L2A").groups(120) == {120: tuple(range(12))}
    assert get_sensor("S2L2A").groups(20)[20] == (1, 2, 3, 4, 5, 6, 7, 8, 10, 11)
    assert get_sensor("S2L2A").sampling("B01", 40) == 40, "60 is no multiple of 40"
    assert get_sensor("S1RTC").groups(10) == {10: (0, 1)}


def test_unknown_sensors_name_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean S2L"):
        get_sensor("S2L9A")
    with pytest.raises(InputError, match="cannot read sensor file"):
        get_sensor("/nowhere/mine.yaml")


def test_weights_decide_wavelengths_and_statistics() -> None:
    sensor = get_sensor("S2L2A")
    published = entry_of(sensor, unit="reflectance*1e4", subsets=True, shift=0.5)
    part = sensor.subset(["B12", "B02"]).with_weights(Weights({"S2L2A": published}))
    assert part.band_names == ("B02", "B12")
    assert [band.wavelength for band in part.bands] == [0.49 + 0.5, 2.19 + 0.5]
    assert part.bands[0].mean == 1489.6 + 0.5 and part.bands[1].std == 1284.165 + 0.5
    assert part.bands[0].assets == sensor.band("B02").assets


def test_weights_refuse_what_they_were_not_trained_for() -> None:
    sensor = get_sensor("S2L2A")
    whole = Weights({"S2L2A": entry_of(sensor, unit="reflectance*1e4", subsets=False)})
    assert sensor.with_weights(whole).band_names == sensor.band_names
    with pytest.raises(InputError, match=r"weights 'nano' were not trained for S1GRD; they know S2L2A"):
        get_sensor("S1GRD").with_weights(whole)
    with pytest.raises(InputError, match=r"need all bands of S2L2A; B01.*are missing"):
        sensor.subset(["B02"]).with_weights(whole)
    with pytest.raises(InputError, match="not trained for RGBN"):
        get_sensor("RGBN").with_weights(whole)
    other = Weights({"S2L2A": entry_of(sensor.subset(["B02"]), unit="reflectance*1e4", subsets=True)})
    with pytest.raises(InputError, match="not trained for B03 of S2L2A; they know B02"):
        sensor.subset(["B02", "B03"]).with_weights(other)
    wrong = Weights({"S2L2A": entry_of(sensor, unit="dB", subsets=True)})
    with pytest.raises(InputError, match=re.escape("expect S2L2A in dB, but S2L2A gives reflectance*1e4")):
        sensor.with_weights(wrong)


def test_rgbn_takes_the_weights_own_entry() -> None:
    rgbn = get_sensor("RGBN")
    weights = Weights({"RGBN": entry_of(rgbn, unit="reflectance*1e4", subsets=False, shift=0.25)})
    assert rgbn.with_weights(weights).bands[3].wavelength == 0.842 + 0.25


YAML = """
name: Dove4
unit: reflectance
trained_as: RGBN
scale: 1e-4
offset: 0
collections: {any: [planet-4band]}
bands:
  - {name: B04, wavelength: 0.665, gsd: 3, assets: [analytic], index: 3}
  - {name: B08, wavelength: 0.842, gsd: 3, assets: [analytic], index: 4, mean: 3000, std: 1800}
"""


def test_a_users_sensor(tmp_path: Path) -> None:
    path = tmp_path / "dove.yaml"
    path.write_text(YAML)
    sensor = get_sensor(path)
    assert (sensor.name, sensor.dtype, sensor.scale, sensor.offset, sensor.nodata) == ("Dove4", "uint16", 1e-4, 0, 0)
    assert sensor.bands[0].index == 3 and sensor.bands[1].mean == 3000 and sensor.unit_factor == 1e4
    assert sensor.collections == {"any": ("planet-4band",)}
    weights = Weights({"RGBN": entry_of(get_sensor("RGBN"), unit="reflectance*1e4", subsets=True)})
    assert sensor.with_weights(weights).bands[0].mean == 1831.752
    alone = path.read_text().replace("trained_as: RGBN\n", "")
    path.write_text(alone)
    with pytest.raises(InputError, match="not trained for Dove4"):
        get_sensor(path).with_weights(weights)


def test_a_users_decibel_sensor_has_nan_nodata(tmp_path: Path) -> None:
    path = tmp_path / "sar.yml"
    path.write_text("{name: Mine, unit: dB, bands: [{name: VV, wavelength: 5.4, gsd: 10}]}")
    sensor = get_sensor(path)
    assert sensor.dtype == "float32" and math.isnan(sensor.nodata) and sensor.bands[0].assets == ("VV",)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("unit: reflectance", "unit: radiance"), "unit 'radiance'"),
        (("name: Dove4", "name: S2L2A"), "built-in"),
        (("name: Dove4\n", ""), "'name' is missing"),
        (("trained_as", "trained_ass"), "unknown key 'trained_ass'.*trained_as"),
        (("wavelength: 0.665, ", ""), "'wavelength' is missing"),
        (("gsd: 3, assets: [analytic], index: 4", "gsd: 3, index: 0"), "B08 needs"),
        (("name: B08", "name: B04"), "same name"),
        (("scale: 1e-4", "scale: many"), "scale must be a number"),
        (("scale: 1e-4", "scale: -1"), "above 0"),
        (("offset: 0", "nodata: 7"), "nodata of uint16"),
        (("bands:", "bands: ["), "is not YAML"),
        (("scale: 1e-4", "scale: .nan"), "scale must be a finite number"),
        (("offset: 0", "offset: .inf"), "offset must be a finite number"),
        (("mean: 3000", "mean: .nan"), "mean of B08 must be a finite number"),
        (("gsd: 3, assets: [analytic], index: 4", "gsd: .inf"), "gsd of B08 must be a finite number"),
        (("name: Dove4", "name: [a]"), "name must be text"),
        (("[planet-4band]", "[2020-01-01, {a: b}]"), "collections of any must be text"),
        (("name: Dove4", "name: 2020-99-99"), "is not YAML"),
    ],
)
def test_a_wrong_sensor_file_names_the_key(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    path = tmp_path / "wrong.yaml"
    assert change[0] in YAML
    path.write_text(YAML.replace(*change))
    with pytest.raises(InputError, match=says) as caught:
        get_sensor(path)
    assert "\n" not in str(caught.value)


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS + YAML.replace("name: Dove4", "name: *a11"), "aliases .* are not taken"),
        ("[" * 2_000, "nested too deep"),
        ("# " + "x" * 1_000_001, "more than 1000000 bytes"),
        ("\x00", "is not YAML"),
    ],
    ids=["bomb", "deep", "large", "binary"],
)
def test_a_file_that_means_harm_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        get_sensor(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))
