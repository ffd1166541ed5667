"""Shows the demo landscape as a sensor sees it on a date: seasons, sun, haze, clouds, shadows, optics, speckle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from eocube.demo.ground import FINE, NO_CROP, Ground
from eocube.demo.noise import F32, block_mean, fractal, shifted, smoothstep, stream
from eocube.demo.spectra import (
    BACKSCATTER_DB,
    BANDS,
    CLOUD,
    CROPS,
    DIFFUSE,
    HAZE,
    NATIVE,
    REFLECTANCE,
    SNOW,
    Cover,
)

Season = Literal["spring", "summer"]
CLOUD_HEIGHT = 1100.0  # metres above the ground
U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Sky:
    """The sun and the air of one date."""

    sun_azimuth: float  # degrees clockwise from north
    sun_elevation: float  # degrees
    cloudiness: float  # 0 none .. 1 nearly all
    haze: float  # 0 clear .. 1 milky
    cloud_size: float = 2600.0  # metres, the largest


@dataclass(frozen=True, slots=True)
class Surface:
    """The ground on a date, (H, W) at 5 m: two endmembers a cell, how much the first hides, and a brightness."""

    plants: U8
    under: U8
    green: F32
    texture: F32
    moisture: F32
    snow: F32


@dataclass(frozen=True, slots=True)
class Air:
    """What stands between ground and sensor, (H, W) at 5 m."""

    cloud: F32  # opacity 0..1
    cloud_light: F32  # brightness of the cloud, about 1
    sun: F32  # fraction of direct sunlight that passes the clouds
    haze: F32  # opacity 0..1
    relief: F32  # direct light on the slope relative to flat ground


def dress(ground: Ground, season: Season, seed: int, snow: float = 0.0) -> Surface:
    """The ground's covers on a date. snow: 0..1, how much of the open land lies under snow."""
    shape = ground.crop.shape
    summer = season == "summer"
    in_field = ground.crop != NO_CROP
    stage = [crop.summer if summer else crop.spring for crop in CROPS]
    crop = np.where(in_field, ground.crop, 0)
    cover = np.array([int(s[0]) for s in stage], dtype=np.uint8)[crop]
    dense = np.array([s[1] for s in stage], dtype=np.float32)[crop]
    dense = dense + 0.10 * ground.vigour * (dense > 0.3) + 0.06 * ground.patchiness * (0.35 + 3 * dense * (1 - dense))
    meadow = np.uint8(Cover.GRASS)
    dense = np.where(ground.margin, 0.85, dense)
    cover = np.where(ground.margin, meadow, cover)
    fine = fractal(stream(seed, 20), shape, 60 / FINE, 1.0)
    crowns = fractal(stream(seed, 21), shape, 22 / FINE, 0.8)

    tree = np.isin(ground.cover, (Cover.CONIFER, Cover.BROADLEAF, Cover.ORCHARD))
    plants = np.where(in_field, cover, np.where(tree, ground.cover, meadow)).astype(np.uint8)
    under = np.where(in_field | tree, np.uint8(Cover.SOIL_DARK), ground.cover).astype(np.uint8)
    green = np.where(in_field, np.clip(dense, 0.0, 0.98), ground.green)
    garden = ground.built & (fine > 0.2)
    plants[garden] = Cover.BROADLEAF
    if summer:
        green = np.where(ground.built, 0.9 * green, green)
    rough = np.where(tree, 0.20, np.where(ground.built, 0.10, np.where(ground.water, 0.03, 0.035))).astype(np.float32)
    grain = np.where(tree, crowns, fine)
    texture = np.exp(rough * grain) * np.where(in_field, ground.rows * (1 + 0.07 * ground.vigour), 1)
    lying = snow * smoothstep(-1.4, 0.6, fine * 0.5 + ground.patchiness + 4 * (snow - 0.5))
    lying = lying * np.where(ground.water, 0, np.where(tree, 0.25, 1))
    return Surface(plants, under, green.astype(np.float32), texture.astype(np.float32), ground.moisture,
                   lying.astype(np.float32))  # fmt: skip


def atmosphere(ground: Ground, sky: Sky, seed: int) -> Air:
    """Clouds, the shadows they and the slopes and the forest edges throw, and haze, all under one sun."""
    shape = ground.elevation.shape
    azimuth, height = np.deg2rad(sky.sun_azimuth), np.deg2rad(sky.sun_elevation)
    throw = CLOUD_HEIGHT / np.tan(height) / FINE  # cells; towards the side away from the sun
    down, right = round(float(np.cos(azimuth) * throw)), round(float(-np.sin(azimuth) * throw))
    pad = max(abs(down), abs(right)) + 1
    wide = (shape[0] + 2 * pad, shape[1] + 2 * pad)
    inner = (slice(pad, pad + shape[0]), slice(pad, pad + shape[1]))

    herd = fractal(stream(seed, 30), wide, sky.cloud_size / FINE, 2.4)
    puff = fractal(stream(seed, 31), wide, 800 / FINE, 1.85, smallest=20 / FINE)
    level = np.quantile(cloud_base := herd + 0.62 * puff, 1 - 0.92 * sky.cloudiness)
    depth = np.maximum(cloud_base - np.float32(level), 0) * (1.25 if sky.cloudiness else 0)
    opacity = ndimage.gaussian_filter(np.asarray(1 - np.exp(-1.7 * depth**1.5), dtype=np.float32), 1.5)
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(depth, 4.0))
    lit = slope_x * np.sin(azimuth) - slope_y * np.cos(azimuth)
    light = np.clip(0.84 + 0.26 * np.tanh(depth) - 4.0 * lit, 0.6, 1.4)
    passing = ndimage.gaussian_filter(1 - opacity, 2.0)
    sun = shifted(passing, down, right)[inner]

    grad_y, grad_x = np.gradient(ground.elevation, FINE)
    grad_y = -grad_y  # rows run south
    facing = np.sin(height) - np.cos(height) * (grad_x * np.sin(azimuth) + grad_y * np.cos(azimuth))
    facing = facing / np.sqrt(1 + grad_x**2 + grad_y**2) / np.sin(height)
    relief = np.clip(1 + 0.75 * (facing - 1), 0.35, 1.5)
    tall = 20.0 / np.tan(height) / FINE
    edge = np.zeros(shape, dtype=bool)
    for part in (0.5, 1.0):
        edge |= shifted(ground.forest, round(float(np.cos(azimuth) * tall * part)),
                        round(float(-np.sin(azimuth) * tall * part))).astype(bool)  # fmt: skip
    relief = np.where(edge & ~ground.forest, 0.45 * relief, relief)
    mist = fractal(stream(seed, 32), shape, 4000 / FINE, 2.0)
    haze = np.clip(sky.haze * (0.22 + 0.09 * mist), 0, 0.8)
    return Air(opacity[inner], light[inner].astype(np.float32), np.asarray(sun, dtype=np.float32),
               haze.astype(np.float32), relief.astype(np.float32))  # fmt: skip


def radiance(surface: Surface, air: Air, band: int) -> F32:
    """Reflectance of one band (index into BANDS), (H, W) at 5 m, as an atmospheric correction would leave it."""
    bright = REFLECTANCE[:, band].copy()
    soil = REFLECTANCE[Cover.SOIL_BRIGHT, band] + surface.moisture * (
        REFLECTANCE[Cover.SOIL_DARK, band] - REFLECTANCE[Cover.SOIL_BRIGHT, band]
    )
    under = np.where(surface.under == Cover.SOIL_DARK, soil, bright[surface.under])
    ground = surface.green * bright[surface.plants] + (1 - surface.green) * under
    ground = ground * surface.texture
    ground += surface.snow * (SNOW[band] * (0.9 + 0.1 * surface.texture) - ground)
    sky = DIFFUSE[band] * 0.55
    ground *= sky + (1 - sky) * air.relief * air.sun
    ground += air.haze * (HAZE[band] - 0.5 * ground)
    ground += air.cloud * (CLOUD[band] * air.cloud_light - ground)
    return np.asarray(ground, dtype=np.float32)


def observe(image: F32, factor: int, rng: np.random.Generator) -> F32:
    """A 5 m image as the instrument samples it at factor x 5 m: its optics' blur, area mean, noise; not below -0.01."""
    blurred = ndimage.gaussian_filter(image, 0.28 * factor, truncate=3.0)
    mean = block_mean(blurred, factor)
    noise = rng.standard_normal(mean.shape, dtype=np.float32) * (0.0007 + 0.004 * np.abs(mean))
    return np.maximum(mean + noise, np.float32(-0.01))


def sense_s2(surface: Surface, air: Air, seed: int, threads: int = 1) -> dict[str, F32]:
    """Every band at its native sampling: name -> reflectance (H, W); so many of them drawn at once."""

    def seen(k: int) -> F32:
        return observe(radiance(surface, air, k), int(NATIVE[k] / FINE), stream(seed, 40, k))

    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(BANDS, pool.map(seen, range(len(BANDS))), strict=True))


def classify(ground: Ground, surface: Surface, air: Air, season: Season) -> U8:
    """The scene classification (SCL codes of Sen2Cor) at 20 m, from what is known rather than from the pixels."""
    factor = int(20 / FINE)
    alive = surface.green * np.isin(surface.plants, _LIVING[season])
    water, green = block_mean(ground.water, factor), block_mean(alive, factor)
    cloud, shadow = block_mean(air.cloud, factor), block_mean(1 - air.sun, factor)
    scl = np.where(green > 0.35, 4, 5).astype(np.uint8)
    scl[block_mean(surface.snow, factor) > 0.5] = 11
    scl[water > 0.5] = 6
    scl[(block_mean(air.relief, factor) < 0.5) & (water < 0.5)] = 2
    scl[shadow > 0.35] = 3
    scl[cloud > 0.12] = 7
    scl[cloud > 0.30] = 8
    scl[cloud > 0.65] = 9
    return scl


_LIVING: dict[Season, list[int]] = {
    season: [c for c in Cover if c not in (Cover.RIPE, Cover.STUBBLE) or season == "spring"]
    for season in ("spring", "summer")
}


def sense_s1(ground: Ground, surface: Surface, seed: int, shift: int = 0, looks: int = 5) -> F32:
    """gamma0 in linear power, (2, H, W) at 10 m: VV and VH with correlated speckle of `looks` looks.

    shift: whole 5 m cells by which the grid is moved south and east (the last row and column drop out), as RTC
    products do not follow the optical grid. The radar looks west; slopes towards it stay a little bright.
    """
    grad_x = np.gradient(ground.elevation, FINE, axis=1)
    slope = np.clip(1 - 1.6 * grad_x, 0.4, 2.2)
    slope = np.where(np.isin(surface.plants, (Cover.CONIFER, Cover.BROADLEAF)), slope**1.4, slope)
    houses = np.isin(surface.under, (Cover.TILE_ROOF, Cover.SLATE_ROOF, Cover.METAL_ROOF)) & ground.built
    glint = np.where(houses, np.exp(0.9 * fractal(stream(seed, 50), houses.shape, 8.0, 0.3)), 1).astype(np.float32)
    swell = np.exp(0.25 * fractal(stream(seed, 51), houses.shape, 40.0, 1.2))
    out = []
    for pol in range(2):
        power = (10 ** (BACKSCATTER_DB[:, pol] / 10)).astype(np.float32)
        image = surface.green * power[surface.plants] + (1 - surface.green) * power[surface.under]
        image = image * glint * slope * np.where(ground.water, swell, swell**0.5)
        image = ndimage.gaussian_filter(image.astype(np.float32), 1.6)
        if shift:
            image = np.pad(image[shift:, shift:], ((0, 2 - shift % 2),) * 2, mode="edge")
        coarse = block_mean(image, 2)
        rng = stream(seed, 52, pol)
        speckle = np.zeros(coarse.shape, dtype=np.float32)
        for _ in range(2 * looks):
            speckle += ndimage.gaussian_filter(rng.standard_normal(coarse.shape, dtype=np.float32), 0.55) ** 2
        out.append(np.maximum(coarse * speckle / speckle.mean(), np.float32(1e-4)))
    return np.stack(out)
