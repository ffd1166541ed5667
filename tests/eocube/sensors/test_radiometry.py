"""Radiometry: the offset rule over every recorded item, dB, the travelling form, and the dark tail of the pixels."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from eocube.errors import RadiometryError
from eocube.scenes.dark_pixels import dark_tail_check, decide_by_pixels, overview_reader
from eocube.scenes.items import find_asset
from eocube.scenes.offset import Contradiction, baseline_of, is_suspect, offset_rule
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry, to_sensor_dn

S2, S1, RGB = get_sensor("S2L2A"), get_sensor("S1RTC"), get_sensor("S2RGB")

# Every recorded item, by id, and what its numbers mean: an offset, "pixels" (metadata contradict each other), "power"
# (linear power to dB) or "refused". The first row that matches counts.
TABLE: tuple[tuple[str, str, float | str], ...] = (
    # Earth Search sentinel-2-l2a: the flag true means offset 0 though -0.1 is declared.
    ("sentinel-2-l2a", "S2[AB]_33TW[LM]_202308??_0_L2A", 0.0),
    ("sentinel-2-l2a", "S2B_33TWN_20220130_0_L2A", 0.0),
    ("sentinel-2-l2a", "S2A_32TMS_20221207_0_L2A", 0.0),
    ("sentinel-2-l2a", "S2A_12RWT_20240106_0_L2A", 0.0),
    ("sentinel-2-l2a", "S2B_*_20250731_0_L2A", 0.0),
    ("sentinel-2-l2a", "S2A_13TDE_20231008_0_L2A", 0.0),
    # The flag false and baseline 04.00: the offset is there.
    ("sentinel-2-l2a", "S2B_33TWN_20220226_0_L2A", -0.1),
    # Baselines 00.01 to 03.01 have none, whatever the date of processing.
    ("sentinel-2-l2a", "S2[AB]_33TWN_20*_L2A", 0.0),
    ("sentinel-2-l2a", "S2A_29RKH_20200219_0_L2A", 0.0),
    # Neither flag nor baseline, and -0.1 declared: the very class of items where -0.1 is often wrong.
    ("sentinel-2-l2a", "S2[AB]_36[MN]X[EF]_202401??_0_L2A", "pixels"),
    # Collection-1: unshifted, no flag.
    ("sentinel-2-c1-l2a", "S2?_T*_L2A", -0.1),
    # L1C and the JP2 originals of L2A, baseline 05.
    ("sentinel-2-l1c", "S2B_*_20250731_0_L1C", -0.1),
    ("sentinel-s2-l2a", "S2[AB]_OPER_MSI_L2A_TL_*", -0.1),
    # Earth Search v0: the baseline only in the product's name (N0212, N0214).
    ("sentinel-s2-l2a-cogs", "S2A_*_L2A", 0.0),
    # Planetary Computer: nothing declared, the baseline decides.
    ("sentinel-2-l2a", "S2[AB]_MSIL2A_2019*_R???_T*", 0.0),
    ("sentinel-2-l2a", "S2[AB]_MSIL2A_20200[678]*_R???_T*", 0.0),
    ("sentinel-2-l2a", "S2B_MSIL2A_20220612T182919_R027_T24XWR_20220613T123251", -0.1),
    ("sentinel-2-l2a", "S2B_MSIL2A_20240419T095549_R122_T*", -0.1),
    ("sentinel-2-l2a", "S2B_MSIL2A_20250312T014549_R074_T53NKG_20250312T041213", -0.1),
    # CDSE: raster:offset on the asset; a scene of 2020 reprocessed as Collection-1 carries the offset.
    ("sentinel-2-l2a", "S2B_MSIL2A_20200322T074609_N0500_R135_T36NYH_20230612T214223", -0.1),
    ("sentinel-2-l2a", "S2C_MSIL2A_20260527T014651_N0512_R017_T55WFR_20260527T042005", -0.1),
    ("sentinel-2-global-mosaics", "Sentinel-2_mosaic_*", "pixels"),
    # stactools' examples.
    ("sentinel2-l1c-example", "S2A_T01LAC_20200717T221944_L1C", 0.0),
    ("sentinel2-l2a-example", "S2A_T07HFE_20190212T192646_L2A", 0.0),
    # The static catalogue of real samples.
    ("sentinel-2-l2a", "S2L2A_433D_629L_3_1", -0.1),
    ("sentinel-2-l2a", "S2L2A_282D_485L_3_3", 0.0),
    ("sentinel-2-l2a", "S2L2A_38D_378R_2_3", 0.0),
    # Another satellite says itself what its numbers mean.
    ("landsat-c2-l2", "LC08_*", -0.2),
    # Sentinel-1: RTC is linear power; GRD and SLC are neither calibrated nor on a map.
    ("sentinel-1-rtc", "S1*", "power"),
    ("sentinel1-rtc-aws", "S1?_*_ASC", "power"),
    ("sentinel*1-grd", "S1A_??_GRD*", "refused"),
    ("sentinel1-slc", "S1A_IW_SL1*", "refused"),
)


def features(document: Any) -> Iterator[dict[str, Any]]:
    if isinstance(document, list):
        for part in document:
            yield from features(part)
    elif isinstance(document, dict):
        if document.get("type") == "Feature":
            yield document
        else:
            for part in document.values():
                if isinstance(part, (dict, list)):
                    yield from features(part)


@pytest.fixture(scope="module")
def recorded(shared_dir: Path) -> list[dict[str, Any]]:
    """Every STAC item with assets under the sample folders and in the recorded API responses."""
    data, found = shared_dir / "data", []
    for folder in ("stac_json", "catalog", "raw/mapchete_eo", "raw/rio_tiler_pds"):
        for path in sorted((data / folder).rglob("*")):
            if not path.is_file() or path.suffix in (".tif", ".xml", ".tiff"):
                continue
            text = path.read_text(errors="replace")
            if path.suffix == ".yaml":
                loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
                for exchange in yaml.load(text, Loader=loader)["interactions"]:
                    found += list(features(json.loads(exchange["response"]["body"]["string"])))
            elif text.lstrip()[:1] in ("{", "["):
                found += list(features(json.loads(text)))
    return [item for item in found if item.get("assets")]


def verdict(item: Mapping[str, Any]) -> float | str:
    collection, name = str(item.get("collection")), str(item["id"])
    radar = name.startswith("S1")
    sensor = S1 if radar else S2
    keys = ("vv", "VV", "gamma0_vv", "hh", "HH") if radar else ("blue", "B02", "B02_10m", "visual", "overview")
    key, asset = find_asset(item, keys) or next(iter(item["assets"].items()))
    try:
        rule = offset_rule(item["properties"], asset, sensor, collection=collection, item_id=name, key=key)
    except RadiometryError:
        return "refused"
    if isinstance(rule, Contradiction):
        return "pixels"
    return "power" if rule.kind == "power" else rule.offset


def test_the_rule_over_every_recorded_item(recorded: list[dict[str, Any]]) -> None:
    used, wrong = set(), []
    for item in recorded:
        row = next(
            (
                number
                for number, (collection, pattern, _) in enumerate(TABLE)
                if fnmatch.fnmatch(str(item.get("collection")), collection) and fnmatch.fnmatch(item["id"], pattern)
            ),
            None,
        )
        assert row is not None, f"no row of the table for {item.get('collection')} {item['id']}"
        used.add(row)
        if verdict(item) != TABLE[row][2]:
            wrong.append(f"{item['id']}: {verdict(item)}, not {TABLE[row][2]}")
    assert not wrong, "\n".join(wrong)
    assert used == set(range(len(TABLE))), f"rows without an item: {[TABLE[n] for n in set(range(len(TABLE))) - used]}"
    assert len(recorded) >= 190


def test_items_with_the_flag_true_really_declare_the_offset_again(recorded: list[dict[str, Any]]) -> None:
    """The trap is in the samples: applying the declared -0.1 to these would darken them by 0.1."""
    trapped = [
        item
        for item in recorded
        if item["properties"].get("earthsearch:boa_offset_applied") is True
        and item["assets"]["blue"]["raster:bands"][0].get("offset") == -0.1
    ]
    assert len(trapped) >= 15
    assert {verdict(item) for item in trapped} == {0.0}


def s2_item(flag: bool | None, baseline: str | None, offset: float | None, date: str = "2023-05-01") -> Any:
    properties: dict[str, Any] = {"constellation": "sentinel-2", "datetime": f"{date}T10:00:00Z"}
    if flag is not None:
        properties["earthsearch:boa_offset_applied"] = flag
    if baseline is not None:
        properties["s2:processing_baseline"] = baseline
    band: dict[str, Any] = {"data_type": "uint16", "scale": 1e-4, "nodata": 0}
    if offset is not None:
        band["offset"] = offset
    return offset_rule(properties, {"href": "B02.tif", "raster:bands": [band]}, S2)


@pytest.mark.parametrize(
    ("flag", "baseline", "declared", "date", "means"),
    [
        (True, "05.09", -0.1, "2023-05-01", 0.0),
        (True, "05.09", 0, "2023-05-01", 0.0),
        (True, None, -0.1, "2023-05-01", 0.0),
        (True, "02.14", 0, "2020-05-01", 0.0),
        (True, "02.14", -0.1, "2020-05-01", "pixels"),
        (False, "05.09", -0.1, "2023-05-01", -0.1),
        (False, "05.00", None, "2019-05-01", -0.1),
        (False, "05.09", 0, "2023-05-01", "pixels"),
        (False, "03.01", -0.1, "2021-05-01", "pixels"),
        (False, "03.01", 0, "2021-05-01", 0.0),
        (None, "04.00", -0.1, "2022-05-01", -0.1),
        (None, "04.00", None, "2022-05-01", -0.1),
        (None, "04.00", 0, "2022-05-01", "pixels"),
        (None, "02.12", None, "2019-05-01", 0.0),
        (None, None, 0, "2019-05-01", 0.0),
        (None, None, 0, "2023-05-01", "pixels"),
        (None, None, -0.1, "2019-05-01", "pixels"),
        (None, None, None, "2019-05-01", "pixels"),
        (False, None, -0.1, "2023-05-01", "pixels"),
    ],
)
def test_every_line_of_the_rule(
    flag: bool | None, baseline: str | None, declared: float | None, date: str, means: float | str
) -> None:
    rule = s2_item(flag, baseline, declared, date)
    assert ("pixels" if isinstance(rule, Contradiction) else rule.offset) == means


def test_an_earth_search_cog_without_its_flag_is_not_trusted() -> None:
    properties = {"s2:processing_baseline": "05.09", "datetime": "2023-05-01T10:00:00Z"}
    asset = {
        "href": "https://sentinel-cogs.s3.us-west-2.amazonaws.com/sentinel-s2-l2a-cogs/33/T/WM/2023/B02.tif",
        "raster:bands": [{"offset": -0.1, "scale": 1e-4}],
    }
    assert isinstance(offset_rule(properties, asset, S2, collection="sentinel-2-l2a"), Contradiction)


def test_offsets_that_sentinel2_does_not_know_and_float_without_scale_are_refused() -> None:
    with pytest.raises(RadiometryError, match="offset of -1000"):
        s2_item(False, "05.09", -1000)
    floats = {"href": "B02.tif", "raster:bands": [{"data_type": "float32"}]}
    properties = {"s2:processing_baseline": "05.11"}
    with pytest.raises(RadiometryError, match="without a declared scale"):
        offset_rule(properties, floats, S2)
    floats["raster:bands"][0]["scale"] = 1  # type: ignore[index]
    rule = offset_rule(properties, floats, S2)
    assert isinstance(rule, Radiometry) and (rule.scale, rule.offset) == (1.0, 0.0) and math.isnan(rule.nodata or 0)


def test_baselines_from_wherever_they_stand() -> None:
    assert baseline_of({"processing:version": "05.12"}) == "05.12"
    assert (
        baseline_of({"s2:product_uri": "S2A_MSIL2A_20220122T095321_N0301_R079_T33TWN_20220122T125701.SAFE"}) == "03.01"
    )
    assert baseline_of({"s2:datatake_id": "GS2A_20220122T095321_034396_N03.01"}) == "03.01"
    assert baseline_of({}, "S2B_MSIL2A_20200322T074609_N0500_R135_T36NYH_20230612T214223") == "05.00"
    assert baseline_of({}, "x", "sentinel-2-c1-l2a") == "05.00"
    assert baseline_of({}) is None
    assert is_suspect({"earthsearch:boa_offset_applied": False, "s2:processing_baseline": "04.00"})
    assert not is_suspect({"earthsearch:boa_offset_applied": True, "s2:processing_baseline": "04.00"})


def test_backscatter_units() -> None:
    grid = {"proj:epsg": 32633, "constellation": "sentinel-1"}
    asset: dict[str, Any] = {"raster:bands": [{"data_type": "float32", "nodata": -32768}]}
    linear = offset_rule(grid, asset, S1, collection="sentinel-1-rtc", key="vv")
    assert isinstance(linear, Radiometry) and linear.kind == "power" and linear.nodata == -32768
    asset["raster:bands"][0]["unit"] = "dB"
    decibel = offset_rule(grid, asset, S1, collection="mine", key="vv")
    assert isinstance(decibel, Radiometry) and (decibel.kind, decibel.scale) == ("dn", 1.0)
    with pytest.raises(RadiometryError, match="no CRS"):
        offset_rule({}, asset, S1, collection="mine", key="vv")
    raw = {"raster:bands": [{"data_type": "uint16"}]}
    with pytest.raises(RadiometryError, match=r"calibration \(schema-calibration-vh\).*schema-noise-vh.*terrain"):
        offset_rule(grid, raw, get_sensor("S1GRD"), collection="sentinel-1-grd", key="vh")
    with pytest.raises(RadiometryError, match="S1RTC"):
        offset_rule(grid, asset, get_sensor("S1GRD"), collection="sentinel-1-rtc", key="vv")
    with pytest.raises(RadiometryError, match="needed"):
        offset_rule(grid, raw, RGB, key="visual")


RAISED = Radiometry(1e-4, -0.1, 0.0, "dn", "")
REMOVED = Radiometry(1e-4, 0.0, 0.0, "dn", "")


@given(hnp.arrays(np.uint16, hnp.array_shapes(max_dims=3, max_side=8)))
def test_travelling_integers_are_exact(raw: np.ndarray[Any, np.dtype[np.uint16]]) -> None:
    assert np.array_equal(to_sensor_dn(raw, RAISED, S2), raw), "the travelling form is the baseline-04.00 convention"
    moved = to_sensor_dn(raw, REMOVED, S2)
    expected = np.where(raw == 0, 0, np.minimum(raw.astype(int) + 1000, 65535))
    assert moved.dtype == np.uint16 and np.array_equal(moved, expected)
    valid = raw > 0
    assert np.array_equal(moved == S2.nodata, ~valid)
    low = valid & (raw <= 64535)
    assert np.allclose(moved[low] * S2.scale + S2.offset, raw[low] * 1e-4, atol=1e-6)


def test_travelling_at_the_edges() -> None:
    nodata = Radiometry(1e-4, -0.2, 65535.0, "dn", "")
    raw = np.array([65535, 0, 500, 1001, 65534], np.uint16)
    assert to_sensor_dn(raw, nodata, S2).tolist() == [0, 1, 1, 1, 64534], "below 0 becomes 1, never nodata"
    floats = Radiometry(1.0, 0.0, math.nan, "dn", "")
    reflectance = np.array([0.0, 0.00004, 0.00006, 0.5, -0.3, np.nan, np.inf, 9.0], np.float32)
    assert to_sensor_dn(reflectance, floats, S2).tolist() == [1000, 1000, 1001, 6000, 1, 0, 0, 65535]
    signed = np.array([-9999, -50, 300], np.int16)
    assert to_sensor_dn(signed, Radiometry(1e-4, 0.0, -9999.0, "dn", ""), S2).tolist() == [0, 950, 1300]
    picture = Radiometry(1.0, 0.0, 0.0, "dn", "")
    assert to_sensor_dn(np.array([0, 1, 255], np.uint8), picture, RGB).tolist() == [0, 1, 255]


@pytest.mark.parametrize("offset", [-6.5, -2.0, -0.1001, -0.1, -0.0999, 0.0, 0.3, 6.5])
def test_every_stored_number_travels_as_whole_number_arithmetic_says(offset: float) -> None:
    raw = np.arange(2**16, dtype=np.uint16)
    shift = round((offset - S2.offset) / S2.scale)
    expected = np.clip(raw.astype(np.int64) + shift, 1, 2**16 - 1)
    for nodata in (0.0, 65535.0, None):
        moved = to_sensor_dn(raw, Radiometry(1e-4, offset, nodata, "dn", ""), S2)
        as_stored = shift == 0 and nodata == 0.0
        told = np.where(raw == (-1 if nodata is None else nodata), 0, raw if as_stored else expected)
        assert moved.dtype == np.uint16 and np.array_equal(moved, told)


def test_power_becomes_decibel_and_back() -> None:
    rule = Radiometry(1.0, 0.0, -32768.0, "power", "")
    raw = np.array([[1.0, 0.1, 0.0], [-32768.0, np.nan, 2.0]], np.float32)
    decibel = to_sensor_dn(raw, rule, S1)
    assert decibel.dtype == np.float32
    assert np.allclose(decibel, [[0.0, -10.0, np.nan], [np.nan, np.nan, 3.0103]], atol=1e-4, equal_nan=True)
    assert (S1.scale, S1.offset) == (1.0, 0.0)
    with pytest.raises(RadiometryError, match="look like dB"):
        to_sensor_dn(np.array([-12.0, -11.0, 0.4], np.float32), rule, S1)


DOUBT = Contradiction("flag against baseline", RAISED, REMOVED)
BANDS = ("B02", "B12", "B04")


def test_the_dark_tail_of_real_pixels_decides(shared_dir: Path) -> None:
    data, read = shared_dir / "data", overview_reader()
    places = {
        "catalog/sentinel-2-l2a/S2L2A_433D_629L_3_1": "raised",
        "catalog/sentinel-2-l2a/S2L2A_282D_485L_3_3": "removed",
        "catalog/sentinel-2-l2a/S2L2A_38D_378R_2_3": "removed",
        "raw/mapchete_eo/full_products/sentinel-2-l2a/S2B_33TWM_20230810_0_L2A": "removed",
    }
    for place, expected in places.items():
        hrefs = {band: str(data / place / f"{band}.tif") for band in BANDS if (data / place / f"{band}.tif").exists()}
        found, why = decide_by_pixels(DOUBT, hrefs, read)
        assert found == expected and "dark tail B02" in why, place
    sahara = data / "raw/rio_tiler_pds/sentinel-cogs/sentinel-s2-l2a-cogs/29/R/KH/2020/2/S2A_29RKH_20200219_0_L2A"
    with pytest.raises(RadiometryError, match=r"flag against baseline.*dark tails do not decide.*B12 2"):
        decide_by_pixels(DOUBT, {band: str(sahara / f"{band}.tif") for band in BANDS}, read)
    blue = "B02.tif"
    assert dark_tail_check(str(data / "catalog/sentinel-2-l2a/S2L2A_433D_629L_3_1" / blue), read) is None
    assert "already removed" in (
        dark_tail_check(str(data / "catalog/sentinel-2-l2a/S2L2A_38D_378R_2_3" / blue), read) or ""
    )


@given(st.integers(1000, 1150), st.integers(0, 1))
def test_the_dark_tail_of_a_scene_with_water(floor: int, offset_removed: int) -> None:
    random = np.random.default_rng(floor)
    scene = (floor + random.gamma(2.0, 400.0, 20_000)).astype(np.uint16) - offset_removed * 1000 + 1
    verdict, _ = decide_by_pixels(DOUBT, {"B02": "a", "B12": "b"}, lambda href: scene)
    assert verdict == ("removed" if offset_removed else "raised")


def test_pixels_that_cannot_be_read_never_decide() -> None:
    def broken(href: str) -> Any:
        raise OSError("no route to host")

    with pytest.raises(RadiometryError, match="B02 cannot be read to decide"):
        decide_by_pixels(DOUBT, {"B02": "x"}, broken)
    assert dark_tail_check("x", broken) is None
    empty = np.zeros((64, 64), np.uint16)
    with pytest.raises(RadiometryError, match="B02 unknown"):
        decide_by_pixels(DOUBT, {"B02": "x"}, lambda href: empty)
    with pytest.raises(RadiometryError, match="no dark band"):
        decide_by_pixels(DOUBT, {}, lambda href: empty)
