"""Tells from the darkest pixels whether the +1000 of baseline 04.00 is in them, where metadata leave it open."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from eocube.errors import RadiometryError
from eocube.net.network import shared_network
from eocube.net.storage_options import host_of
from eocube.scenes.offset import Contradiction
from eocube.sensors.radiometry import Radiometry
from eocube.sensors.sensor import SENTINEL2_OFFSETS

# Takes an asset's href and gives a coarse view of its first band, in raw DN (0 is nodata).
OverviewReader = Callable[[str], NDArray[Any]]
Verdict = Literal["raised", "removed"]

# The bands with the darkest pixels: water, shadow and dense vegetation in L2A; in L1C the cirrus band, which is nearly
# black everywhere, and the far SWIR, which scattered light leaves alone.
DARK_BANDS: Mapping[str, tuple[str, ...]] = {"L2A": ("B02", "B12", "B04"), "L1C": ("B10", "B12")}

# The darkest hundredth of a scene, measured: 10 to 430 in at least one dark band of vegetated or wet scenes without
# +1000, 1010 to 1200 in all of them with it; a scene of bare desert has 1010 (B02) to 2700 (B12) without it.
TAIL_PERCENT = 1.0
REMOVED_BELOW = 700.0
RAISED_WITHIN = (900.0, 1250.0)
ENOUGH_PIXELS = 1000
OVERVIEW_SIDE = 512
TRIES = 4
STATED = "stated by hand, offset "
"""How the reason of a rule begins that the user stated."""


def dark_tail(raw: NDArray[Any]) -> float | None:
    """The `TAIL_PERCENT` percentile of the valid DN (above 0, below 65535); None where too few are, or none whole."""
    if raw.dtype.kind not in "ui":
        return None
    valid = raw[(raw > 0) & (raw < 65535)]
    return float(np.percentile(valid, TAIL_PERCENT)) if valid.size >= ENOUGH_PIXELS else None


def judge(tails: Mapping[str, float | None]) -> Verdict | None:
    """The verdict of the dark bands' tails: band -> DN, None where it could not be measured.

    "removed" as soon as one tail lies far below 1000: with +1000 in the pixels that would be a reflectance of -0.03.
    "raised" where at least two were measured and every one ends just above 1000: without +1000 the scene would have to
    have no pixel darker than a reflectance of 0.09 in blue, red and far SWIR alike. Else None: not decisive.
    """
    known = [tail for tail in tails.values() if tail is not None]
    if any(tail < REMOVED_BELOW for tail in known):
        return "removed"
    low, high = RAISED_WITHIN
    return "raised" if len(known) >= 2 and all(low <= tail <= high for tail in known) else None


class UndecidedError(RadiometryError):
    """The pixels do not say whether the +1000 is in them, or cannot be read."""


def decide(
    contradiction: Contradiction, hrefs: Mapping[str, str], read: OverviewReader | None, stated: float | None
) -> tuple[Verdict, str]:
    """What settles an item whose metadata do not: its pixels, else the offset that the user states.

    What is stated never overrules pixels that speak clearly: such an item is refused, as one is that nobody settles.
    `RadiometryError` says what to do.
    """
    if stated is not None and not any(math.isclose(stated, known, abs_tol=1e-9) for known in SENTINEL2_OFFSETS):
        raise RadiometryError(f"an offset of {stated:g} is stated for it; Sentinel-2 knows 0 and -0.1 only")
    try:
        if read is None:
            raise UndecidedError(f"metadata do not settle the offset ({contradiction.why}) and no pixels were read")
        verdict, why = decide_by_pixels(contradiction, hrefs, read)
    except UndecidedError as undecided:
        if stated is None:
            raise RadiometryError(
                f"{undecided}: add s2:processing_baseline to the item, or say which it is with --offset 0 or "
                "--offset -0.1 (offset: in a sensor's file)"
            ) from undecided
        return ("raised" if stated else "removed"), f"{STATED}{stated:g}: {undecided}"
    if stated is not None and (verdict == "raised") != (stated != 0):
        raise RadiometryError(f"an offset of {stated:g} is stated for it, but the pixels deny it: {why}")
    return verdict, why


def decide_by_pixels(
    contradiction: Contradiction, hrefs: Mapping[str, str], read: OverviewReader
) -> tuple[Verdict, str]:
    """What the pixels say where the metadata contradict each other: the verdict and the reason for the record.

    `hrefs` are the item's dark bands, band -> href, asked in that order until the verdict stands. Raises
    `UndecidedError` with the reason where they are not decisive or cannot be read, `RadiometryError` where they are no
    whole numbers.
    """
    from rasterio.errors import RasterioError  # here: a search that settles all by metadata never needs GDAL

    tails: dict[str, float | None] = {}
    for band, href in hrefs.items():
        try:
            pixels = read(href)
        except (OSError, RasterioError) as error:
            raise UndecidedError(
                f"metadata do not settle the offset ({contradiction.why}) and {band} cannot be read to decide: "
                f"{type(error).__name__}"
            ) from error
        if pixels.dtype.kind not in "ui":
            raise RadiometryError(
                f"{band} holds {pixels.dtype} pixels, no digital numbers, and declares no scale: say data_type, scale "
                "and offset in its raster:bands"
            )
        tails[band] = dark_tail(pixels)
        if judge(tails) == "removed":
            break
    seen = ", ".join(f"{band} {'unknown' if tail is None else f'{tail:.0f}'}" for band, tail in tails.items())
    verdict = judge(tails)
    if verdict is None:
        raise UndecidedError(
            f"metadata do not settle the offset ({contradiction.why}) and the dark tails do not decide "
            f"({seen or 'no dark band'})"
        )
    return verdict, f"dark tail {seen}: +1000 {verdict}; metadata contradict: {contradiction.why}"


def dark_tail_check(href: str, read: OverviewReader) -> str | None:
    """The pixels' veto on a consistent item that says the +1000 is in them: the reason, or None for no objection.

    For the items of `eocube.scenes.offset.is_suspect`; one overview of one dark band (B02) is read. A failed read is no
    veto.
    """
    from rasterio.errors import RasterioError

    try:
        tail = dark_tail(read(href))
    except (OSError, RasterioError):
        return None
    if tail is None or judge({"B02": tail}) != "removed":
        return None
    return f"dark tail B02 {tail:.0f}: the +1000 that the metadata declare was already removed"


def settled(rule: Radiometry | Contradiction, verdict: Verdict, why: str) -> Radiometry:
    """The rule of one asset after the pixels' verdict on its item."""
    if isinstance(rule, Radiometry):
        offset = rule.offset if verdict == "raised" else 0.0
        return Radiometry(rule.scale, offset, rule.nodata, rule.kind, why)
    chosen = rule.raised if verdict == "raised" else rule.removed
    return Radiometry(chosen.scale, chosen.offset, chosen.nodata, chosen.kind, why)


def overview_reader(storage_options: Mapping[str, Any] | None = None) -> OverviewReader:
    """A reader of coarse views, nearest neighbour, of at most `OVERVIEW_SIDE` a side; any URL that the reader takes."""
    from eocube.raster.checks import judge_read
    from eocube.raster.opening import gdal_environment, open_raster

    options = dict(storage_options or {})

    def once(href: str) -> NDArray[Any]:
        with gdal_environment(options):
            raster = open_raster(href, options)
            try:
                shape = (min(raster.height, OVERVIEW_SIDE), min(raster.width, OVERVIEW_SIDE))
                band: NDArray[Any] = raster.dataset.read(1, out_shape=shape)
                return band
            finally:
                raster.close()

    def read(href: str) -> NDArray[Any]:
        host = host_of(href, options)
        if not host:
            return once(href)
        return shared_network().call(
            host, lambda: once(href), tries=TRIES, judge=judge_read, request=False, patient=False
        )

    return read
