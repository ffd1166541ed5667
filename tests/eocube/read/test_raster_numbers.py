"""A raster's own numbers: float, complex, wide integers, palettes and masks are read right or refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from eocube.errors import SourceError
from eocube.read.reader import WindowReader
from eocube.scenes.scene import BandSource
from eocube.sensors import get_sensor
from eocube.sensors.radiometry import Radiometry
from tests.eocube.rasters import DN, LATTICE, SIDE, WINDOW, cut, digital, ground, over, read, s2, tif, together


def test_float_reflectance_under_a_rule_for_digital_numbers_is_refused(tmp_path: Path) -> None:
    path = tif(tmp_path / "f.tif", ground().astype(np.float32))
    for rule in (DN, replace(DN, offset=0.0)):
        with pytest.raises(
            SourceError, match=r"item item-1, asset b02: .*float32 up to 0\.4.*raster:bands say"
        ) as said:
            read(over(path, rule))
        assert "\n" not in str(said.value)
    assert not together(over(path))


def test_float_reflectance_with_its_own_scale_and_float_digital_numbers_are_right(tmp_path: Path) -> None:
    values = ground(1)
    declared = Radiometry(1.0, 0.0, np.nan, "dn", "float, declared scale 1")
    pixels = read(over(tif(tmp_path / "f.tif", values.astype(np.float32)), declared))
    np.testing.assert_allclose(pixels.groups[10][0], cut(values * 1e4 + 1000), atol=0.51)
    numbers = tif(tmp_path / "d.tif", digital(values).astype(np.float32))
    np.testing.assert_array_equal(read(over(numbers)).groups[10][0], cut(digital(values)))


def test_a_dark_window_of_float_digital_numbers_is_not_mistaken_for_reflectance(tmp_path: Path) -> None:
    """Deep water in the far SWIR: a few steps, yet elsewhere in the file there is land."""
    values = np.full((SIDE, SIDE), 3.0, np.float32)
    values[:16, :16] = 2000.0  # beyond the window
    pixels = read(over(tif(tmp_path / "w.tif", values), replace(DN, offset=0.0)))
    assert (pixels.groups[10] == 1003).all()


def test_complex_pixels_are_refused_and_are_no_defect(tmp_path: Path) -> None:
    for kind in ("complex64", "complex128", "complex_int16"):
        path = tif(tmp_path / f"{kind}.tif", (digital(ground()) + 5000j).astype("complex64"), dtype=kind)
        with pytest.raises(SourceError, match=r"item item-1, asset b02: .*complex"):
            read(over(path))
    with pytest.raises(SourceError, match=r"asset scl: .*complex"), WindowReader(s2(), LATTICE) as reader:
        reader.mask([over(path, mask=tmp_path / "complex64.tif")], WINDOW)


@pytest.mark.parametrize("as_one", [False, True])
def test_numbers_far_beyond_the_travelling_type_are_refused(tmp_path: Path, as_one: bool) -> None:
    cases = {
        "wide": (digital(ground()).astype(np.int32) + 200_000, DN),
        "unsaid-fill": (np.where(ground() < 0.1, -9999, digital(ground())).astype(np.int16), DN),
        "other-scale": (digital(ground()).astype(np.float32), Radiometry(1.0, 0.0, np.nan, "dn", "scale 1")),
    }
    for name, (values, rule) in cases.items():
        scene = over(tif(tmp_path / f"{name}.tif", values), rule)
        if as_one:
            assert not together(scene)
        else:
            with pytest.raises(SourceError, match=r"do not fit what S2L2A travels as.*raster:bands"):
                read(scene)


def test_wide_integers_that_fit_and_a_few_bright_pixels_stay_as_they_are(tmp_path: Path) -> None:
    values = digital(ground()).astype(np.int32)
    values[100:110, 100:110] = 90_000  # sun glint
    pixels = read(over(tif(tmp_path / "i.tif", values)))
    np.testing.assert_array_equal(pixels.groups[10][0], cut(np.minimum(values, 65535)))
    bright = np.full((SIDE, SIDE), 65535, np.uint16)
    assert (read(over(tif(tmp_path / "b.tif", bright), replace(DN, offset=0.0))).groups[10] == 65535).all()


def test_a_colour_table_is_refused_for_measurements_and_read_for_classes(tmp_path: Path) -> None:
    classes = np.where(ground() < 0.2, 4, 9).astype(np.uint8)
    path = tif(tmp_path / "p.tif", classes, photometric="palette")
    with rasterio.open(path, "r+") as target:
        target.write_colormap(1, {4: (0, 255, 0, 255), 9: (255, 255, 255, 255)})
    with pytest.raises(SourceError, match=r"colour table.*expand"):
        read(over(path))
    sensor = get_sensor("S2RGB")
    visual = tuple(BandSource(b.name, "visual", str(path), 1, Radiometry(1, 0, 0, "dn", "8 bit")) for b in sensor.bands)
    with pytest.raises(SourceError, match="colour table"):
        read(replace(over(path), sources=visual), sensor)
    band = tif(tmp_path / "b.tif", digital(ground()))
    core = classes[64:256, 64:256]
    with WindowReader(s2(), LATTICE) as reader:
        _, cloud, _ = reader.mask([over(band, mask=path)], WINDOW)
    assert abs(cloud - 100 * (core == 9).mean()) < 3


def test_a_band_that_the_file_does_not_have_is_named(tmp_path: Path) -> None:
    scene = over(tif(tmp_path / "b.tif", digital(ground())))
    for index in (3, 0, -1):
        with pytest.raises(SourceError, match=f"it has 1 bands, and band {index} of it"):
            read(replace(scene, sources=(replace(scene.sources[0], index=index),)))


@pytest.mark.parametrize("kind", ["internal", "beside", "alpha"])
def test_masks_and_alpha_bands_are_kept_to(tmp_path: Path, kind: str) -> None:
    values = digital(ground(4))
    for name, part in (("none", slice(0, SIDE)), ("half", slice(160, SIDE))):
        seen = np.full((SIDE, SIDE), 255, np.uint8)
        seen[:, part] = 0
        path = tmp_path / f"{name}.tif"
        if kind == "alpha":
            tif(path, np.stack([values, seen.astype(np.uint16)]), photometric="minisblack", alpha="yes")
            with rasterio.open(path) as source:
                assert source.colorinterp[1] == ColorInterp.alpha
        else:
            tif(path, values)
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == "internal"), rasterio.open(path, "r+") as target:
                target.write_mask(seen)
            assert Path(f"{path}.msk").exists() == (kind == "beside")
        pixels = read(over(path))
        if name == "none":
            assert pixels.valid_percent == 0 and not pixels.valid.any()
        else:
            assert (pixels.valid[:, :12] == 100).all() and (pixels.valid[:, 12:] == 0).all()
            np.testing.assert_array_equal(pixels.groups[10][0][:, :128], cut(values)[:, :128])
            assert (pixels.groups[10][0][:, 128:] > 1000).all()  # mirrored
        assert not together(over(path))


def test_classes_under_a_mask_are_no_classes(tmp_path: Path) -> None:
    classes, seen = np.full((SIDE, SIDE), 9, np.uint8), np.full((SIDE, SIDE), 255, np.uint8)
    seen[:, :160] = 0
    path = tif(tmp_path / "scl.tif", classes)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as target:
        target.write_mask(seen)
    band = tif(tmp_path / "b.tif", digital(ground()))
    with WindowReader(s2(), LATTICE) as reader:
        assert reader.mask([over(band, mask=path)], WINDOW)[:2] == (50, 100)


def test_integers_are_no_linear_power_and_floats_no_picture(tmp_path: Path) -> None:
    power = Radiometry(1.0, 0.0, None, "power", "said to be linear")
    amplitude = tif(tmp_path / "a.tif", digital(ground()))
    sensor = get_sensor("S1RTC")
    both = tuple(BandSource(b.name, b.name.lower(), str(amplitude), 1, power) for b in sensor.bands)
    with pytest.raises(SourceError, match="uint16, which linear power is not"):
        read(replace(over(amplitude), sources=both), sensor)
    picture = get_sensor("S2RGB")
    light = tif(tmp_path / "l.tif", ground().astype(np.float32))
    three = tuple(
        BandSource(b.name, "visual", str(light), 1, Radiometry(1, 0, 0, "dn", "8 bit")) for b in picture.bands
    )
    with pytest.raises(SourceError, match="float32, an 8-bit picture is needed"):
        read(replace(over(light), sources=three), picture)
