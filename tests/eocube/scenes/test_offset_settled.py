"""Items that do not say whose they are: metadata, pixels or the user settle the offset, or the item is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds

from eocube.cli import encode_main
from eocube.cube.patches import open_search
from eocube.errors import InputError, RadiometryError, StoreError
from eocube.ground.grid import grids_for
from eocube.plan.plan import Plan, build_plan
from eocube.products.eo_vae_document import Encoding, latents
from eocube.read.reader import WindowReader
from eocube.run.arguments import EncodeOptions
from eocube.run.extend import grow_plans
from eocube.run.request import Exit, Request
from eocube.scenes.offset import Contradiction, offset_rule
from eocube.scenes.search import SearchResult, parse_interval, search
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from eocube.sensors.sensor import Sensor
from tests.eocube.cubes import parsed

SENSOR = get_sensor("RGBN").subset(["B02", "B04"])
EAST, NORTH, SIDE = 600_000.0, 5_300_160.0, 96
BOX: tuple[float, float, float, float] = transform_bounds(
    "EPSG:32632", "EPSG:4326", EAST, NORTH - 10 * SIDE, EAST + 10 * SIDE, NORTH
)
EVER = parse_interval("2015-01-01/2025-12-31")
ENCODING = Encoding("nano", "nano", "0" * 64, 32, 8, "fp32", "fp16")

Pixels = np.ndarray[Any, Any]
Dark = Callable[[Pixels], Pixels]


def reflectance(darkest: float = 0.005) -> Pixels:
    """Ground whose darkest hundredth is just above `darkest`."""
    return darkest + np.random.default_rng(0).gamma(2.0, 0.04, (SIDE, SIDE))


def plain(values: Pixels) -> Pixels:
    return np.asarray(np.round(values * 1e4).astype("uint16"))


def raised(values: Pixels) -> Pixels:
    return np.asarray(np.round(values * 1e4 + 1000).astype("uint16"))


def catalogue(
    folder: Path,
    make: Dark = plain,
    *,
    day: str = "2020-07-01",
    properties: dict[str, Any] | None = None,
    band: dict[str, Any] | None = None,
    darkest: float = 0.005,
    name: str = "x1",
) -> str:
    """A catalogue of one item as pystac makes it: bands by key, and nothing of whose they are."""
    w, s, e, n = BOX
    assets = {}
    for key in SENSOR.band_names:
        path, pixels = folder / f"{name}-{key}.tif", make(reflectance(darkest))
        with rasterio.open(
            path, "w", driver="GTiff", width=SIDE, height=SIDE, count=1, dtype=pixels.dtype, crs="EPSG:32632",
            transform=from_origin(EAST, NORTH, 10, 10),
        ) as file:  # fmt: skip
            file.write(pixels, 1)
        assets[key] = {"href": str(path), **({} if band is None else {"raster:bands": [band]})}
    item = {
        "type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "mine", "bbox": list(BOX), "links": [],
        "geometry": {"type": "Polygon", "coordinates": [[[w, s], [e, s], [e, n], [w, n], [w, s]]]},
        "properties": {"datetime": f"{day}T10:00:00Z", **(properties or {})}, "assets": assets,
    }  # fmt: skip
    place = folder / f"{name}.json"
    place.write_text(json.dumps(item))
    return str(place)


def look(place: str, sensor: Sensor = SENSOR) -> SearchResult:
    return search(place, sensor, BOX, EVER)


def offset_read(place: str, sensor: Sensor = SENSOR) -> float:
    """By how much what is read lies off the ground's own reflectance: 0 where the offset is right."""
    (scene,) = look(place, sensor).scenes
    (grid,) = grids_for(BOX, 10, core_px=48, halo_px=16, shard_px=96)
    plan = build_plan(latents(sensor, ENCODING, grid.lattice), grid, [scene], {})
    windows = list(grid.requested_windows())
    window = windows[len(windows) // 2]
    with WindowReader(sensor, grid.lattice) as reader:
        pixels = reader.read(plan.scenes_of(0, window), window).groups[10]
    physical = pixels.astype(float) * sensor.scale + sensor.offset
    return float(np.median(physical[pixels > 0]) - np.median(reflectance()))


@pytest.mark.parametrize("day", ["2020-07-01", "2023-07-01"])
@pytest.mark.parametrize("make", [plain, raised])
def test_pixels_settle_an_item_that_says_nothing(day: str, make: Dark, tmp_path: Path) -> None:
    place = catalogue(tmp_path, make, day=day)
    assert abs(offset_read(place)) < 0.01, (
        "an old product, processed again, carries the +1000 too: the day alone is none"
    )
    why = look(place).scenes[0].sources[0].radiometry.why
    assert "dark tail B02" in why and "taken for Sentinel-2 by sensor RGBN" in why


@pytest.mark.parametrize(
    ("properties", "means"),
    [
        ({"s2:processing_baseline": "05.09"}, -0.1),
        ({"processing:version": "02.12"}, 0.0),
        ({"earthsearch:boa_offset_applied": True}, 0.0),
        ({}, None),
    ],
)
@pytest.mark.parametrize("sensor", ["S2L2A", "S2L1C", "RGBN", "bands", "yaml"])
def test_a_sensor_of_sentinel2_means_sentinel2(
    sensor: str, properties: dict[str, Any], means: float | None, tmp_path: Path
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("{name: Own, unit: reflectance, trained_as: RGBN, bands: [{name: B02, wavelength: 0.49, gsd: 10}]}")
    made = {"bands": get_sensor("S2L2A").subset(["B02"]), "yaml": get_sensor(own)}.get(sensor)
    rule = offset_rule({"datetime": "2023-01-01T00:00:00Z", **properties}, {"href": "x"}, made or get_sensor(sensor))
    assert means is None if isinstance(rule, Contradiction) else rule.offset == means


def test_nobody_settles_it_and_the_line_says_what_to_add(tmp_path: Path) -> None:
    desert = catalogue(tmp_path, darkest=0.16)
    ((name, why),) = look(desert).refused
    assert name == "x1" and "\n" not in why
    for said in ("taken for Sentinel-2 by sensor RGBN", "do not decide (B02 1", "s2:processing_baseline", "--offset 0"):
        assert said in why


@pytest.mark.parametrize("offset", [0.0, -0.1])
def test_what_is_stated_settles_what_pixels_leave_open(offset: float, tmp_path: Path) -> None:
    scenes = look(catalogue(tmp_path, raised if offset else plain, darkest=0.16), SENSOR.with_offset(offset)).scenes
    rule = scenes[0].sources[0].radiometry
    assert rule.offset == offset and rule.why.startswith(f"stated by hand, offset {offset:g}: metadata do not settle")


def test_what_is_stated_never_overrules_metadata_nor_clear_pixels(tmp_path: Path) -> None:
    new = {"s2:processing_baseline": "05.09"}
    (scene,) = look(catalogue(tmp_path, raised, properties=new), SENSOR.with_offset(0.0)).scenes
    assert scene.sources[0].radiometry.offset == -0.1
    ((_, why),) = look(catalogue(tmp_path), SENSOR.with_offset(-0.1)).refused
    assert "an offset of -0.1 is stated for it, but the pixels deny it: dark tail B02" in why
    ((_, why),) = look(catalogue(tmp_path, raised), SENSOR.with_offset(0.0)).refused
    assert "the pixels deny it" in why


@pytest.mark.parametrize("kind", ["float32", "complex64"])
def test_pixels_that_are_no_digital_numbers_are_refused(kind: str, tmp_path: Path) -> None:
    for sensor in (SENSOR, SENSOR.with_offset(0.0)):
        ((_, why),) = look(catalogue(tmp_path, lambda v: v.astype(kind)), sensor).refused
        assert f"B02 holds {kind} pixels" in why and "raster:bands" in why


def test_assets_of_one_item_that_declare_other_offsets_are_refused(tmp_path: Path) -> None:
    place = catalogue(tmp_path, raised)
    item = json.loads(Path(place).read_text())
    item["assets"]["B04"]["raster:bands"] = [{"scale": 1e-4, "offset": 0}]
    Path(place).write_text(json.dumps(item))
    ((_, why),) = look(place).refused
    assert "some of its assets declare another offset" in why


def test_l1c_is_judged_by_the_bands_of_l1c(tmp_path: Path) -> None:
    """The cirrus band is black in every scene of L1C; L2A has none, so only the sensor tells that it may be asked."""
    cirrus = tmp_path / "cirrus.tif"
    with rasterio.open(cirrus, "w", driver="GTiff", width=SIDE, height=SIDE, count=1, dtype="uint16") as file:
        file.write(np.full((SIDE, SIDE), 12, np.uint16), 1)
    place = catalogue(tmp_path, darkest=0.16)
    item = json.loads(Path(place).read_text())
    item["assets"]["B10"] = {"href": str(cirrus)}
    Path(place).write_text(json.dumps(item))
    (scene,) = look(place, get_sensor("S2L1C").subset(["B02"])).scenes
    assert scene.sources[0].radiometry.offset == 0.0 and "dark tail B10 12" in scene.sources[0].radiometry.why


HLS = {"datetime": "2023-01-01T00:00:00Z", "platform": "sentinel-2a"}


def rule_of(properties: dict[str, Any], sensor: Sensor, band: dict[str, Any] | None = None, **words: str) -> Radiometry:
    asset = {"href": "x"} if band is None else {"href": "x", "raster:bands": [band]}
    rule = offset_rule(properties, asset, sensor, **words)
    assert isinstance(rule, Radiometry)
    return rule


def test_harmonised_products_have_their_own_numbers() -> None:
    rule = rule_of(HLS, SENSOR, collection="HLSS30_2.0")
    assert (rule.scale, rule.offset, rule.nodata) == (1e-4, 0.0, -9999.0)
    declared = rule_of(HLS, SENSOR, {"scale": 1e-4, "offset": 0, "nodata": -9999}, collection="hls2-s30")
    assert (declared.offset, declared.why) == (0.0, "as the asset declares it")


def test_another_satellite_means_what_it_declares_and_is_not_guessed() -> None:
    landsat = {"platform": "landsat-8", "datetime": "2023-01-01T00:00:00Z"}
    assert rule_of(landsat, SENSOR, {"scale": 2.75e-5, "offset": -0.2}).offset == -0.2
    assert rule_of({}, SENSOR, {"scale": 2.75e-5, "offset": -0.2}).offset == -0.2, "without its name too"
    assert isinstance(offset_rule(landsat, {"href": "x"}, SENSOR), Contradiction)


def test_a_sensors_file_says_its_sources_offset_or_nobody_does(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"

    def own(more: str) -> Sensor:
        path.write_text(f"{{name: Own, unit: reflectance, {more} bands: [{{name: B02, wavelength: 0.49, gsd: 3}}]}}")
        return get_sensor(path)

    assert rule_of({}, own("offset: 0.05,")).offset == 0.05
    assert rule_of({}, own("scale: 0.001,")).offset == 0.0, "a scale without an offset describes numbers without one"
    assert rule_of({}, own("offset: 0, trained_as: RGBN,")).offset == 0.0
    assert rule_of({}, own("offset: 0.05,"), {"scale": 1e-4}).offset == 0.05, "the asset declares no offset"
    with pytest.raises(RadiometryError, match="Own states no offset of its sources: add scale and offset to the asset"):
        offset_rule({}, {"href": "x"}, own(""))
    assert rule_of({}, own("").with_offset(0.0)).offset == 0.0
    assert isinstance(offset_rule({}, {"href": "x"}, own("trained_as: RGBN,")), Contradiction)
    assert isinstance(offset_rule({}, {"href": "x"}, own("scale: 0.0001, trained_as: RGBN,")), Contradiction)


def options(place: str, out: Path, **more: str) -> EncodeOptions:
    w, s, e, n = (str(v) for v in BOX)
    return EncodeOptions(
        (w, s, e, n), "2015-01-01/2025-12-31", "RGBN", str(out), place, bands="B02,B04", precision="fp32", **more
    )


def request(place: str, out: Path, **more: str) -> Request:
    return parsed(options(place, out, **more))


def test_only_a_request_that_states_an_offset_says_so(tmp_path: Path) -> None:
    place = catalogue(tmp_path)
    assert "offset" not in request(place, tmp_path / "a.zarr").document()
    for text, value in (("0", 0.0), ("-0.1", -0.1)):
        document = request(place, tmp_path / "a.zarr", offset=text).document()
        assert document["offset"] == value and json.loads(json.dumps(document)) == document


@pytest.mark.parametrize(
    ("sensor", "offset", "says"),
    [
        ("RGBN", "0.2", "an offset of 0 or -0.1"),
        ("RGBN", "none", "not a number"),
        ("RGBN", "nan", "not a finite number"),
        ("S1RTC", "0", "S1RTC is in dB"),
        ("S2RGB", "0", "S2RGB is in dn8"),
    ],
)
def test_an_offset_that_cannot_be_is_refused(sensor: str, offset: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        parsed(replace(options("x", tmp_path), sensor=sensor, bands=None, offset=offset))


def test_a_store_may_be_told_the_offset_later_but_not_another(tmp_path: Path) -> None:
    (grid,) = grids_for(BOX, 10, core_px=48, halo_px=16, shard_px=96)

    def plan(place: str, **more: str) -> Plan:
        asked = request(place, tmp_path / "a.zarr", **more)
        return build_plan(
            latents(asked.sensor, ENCODING, grid.lattice), grid, look(place, asked.sensor).scenes, asked.document()
        )

    clear, open_ = catalogue(tmp_path), catalogue(tmp_path, darkest=0.16, day="2021-07-01", name="x2")
    both = tmp_path / "both.json"
    features = [json.loads(Path(p).read_text()) for p in (clear, open_)]
    both.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    stored = plan(str(both))
    assert [s.id for s in stored.scenes] == ["x1"]
    (more,) = grow_plans("a.zarr", [stored], [plan(str(both), offset="0")])
    assert [s.id for s in more.scenes] == ["x1", "x2"] and more.scenes_at(0) == stored.scenes
    assert more.space_id == stored.space_id
    for wanted in (plan(str(both)), replace(more, request={**more.request, "offset": -0.1}, scenes=stored.scenes)):
        with pytest.raises(StoreError, match="offset"):
            grow_plans("a.zarr", [more], [wanted])


def test_training_patches_take_an_offset_too(tmp_path: Path) -> None:
    asked = {
        "catalog": catalogue(tmp_path, darkest=0.16), "sensor": "RGBN", "bands": ["B02"], "bbox": list(BOX),
        "datetime": "2015-01-01/2025-12-31", "size": 24,
    }  # fmt: skip
    with pytest.raises(InputError, match="--offset 0"):
        open_search(asked)
    patch = next(p for k in range(100) if (p := open_search({**asked, "offset": 0}).read(k)) is not None)
    assert 1500 < np.nanmedian(patch.data) < 3500


@pytest.mark.slow
def test_the_job_takes_a_negative_offset_and_says_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = options(catalogue(tmp_path, darkest=0.16), tmp_path / "a.zarr")
    argv = ["--bbox", *given.bbox, "--datetime", given.datetime, "--sensor", "RGBN", "--bands", "B02,B04"]
    argv += ["--catalog", given.catalog, "--plan"]
    assert encode_main(argv) == Exit.BAD_INPUT
    assert "say which it is with --offset 0 or --offset -0.1" in capsys.readouterr().err
    assert encode_main([*argv, "--offset", "-0.1"]) == Exit.DONE
    (planned,) = json.loads(capsys.readouterr().out)
    assert planned["rules"]["x1"].startswith("-0.1 stated: stated by hand")
