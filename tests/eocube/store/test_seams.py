"""Which windows are checked, and what the seams between them are measured from."""

from __future__ import annotations

import numpy as np
import pytest

from eocube.ground.grid import CubeGrid, grids_for
from eocube.run.sampling import Sample
from eocube.run.selfcheck import BorderBook, Checked, SelfCheck
from eocube.store.receipts import Receipt
from eocube.store.seams import Seams, Side, layer, measure

BBOX = (11.30, 48.00, 11.80, 48.30)


def grid(bbox: tuple[float, float, float, float] = BBOX) -> CubeGrid:
    return grids_for(bbox, 10)[0]


def test_the_sample_has_its_share_and_belongs_to_the_ground() -> None:
    whole, part = grid(), grid((11.45, 48.05, 11.75, 48.25))
    requested = int(whole.requested_mask.sum())
    a = Sample.of(whole, 0.05)
    assert 0.02 * requested < len(a.windows) < 0.09 * requested
    assert all(whole.requested(w) for w in a.windows)
    inside = {w for w in part.requested_windows()}
    # A box only adds the one window that every box has, and the neighbours of borders.
    drawn = {w for w in Sample.of(part, 0.05).windows}
    assert len((a.windows & inside) ^ drawn) <= 4
    assert Sample.of(whole, 0.05) == a and not Sample.of(whole, 0.0).windows
    assert set(Sample.of(whole, 1.0).windows) == set(whole.requested_windows())


def test_a_small_cube_is_checked_too_and_borders_stay_in_their_shard() -> None:
    small = grid((11.50, 48.10, 11.55, 48.12))
    sample = Sample.of(small, 0.0001)
    assert 1 <= len(sample.windows) <= 2 and len(sample.borders) == 2
    for window, borders in Sample.of(grid(), 1.0).borders.items():
        for border in borders:
            assert window in (border.first, border.second)
            assert grid().shard_of(border.first) == grid().shard_of(border.second)
            step = (border.second.row - border.first.row, border.second.col - border.first.col)
            assert step == ((0, 1) if border.axis == -1 else (1, 0))


def sides(axis: int, step: float) -> tuple[Side, Side]:
    """Two windows of one smooth field, the second lifted by `step`."""
    rng = np.random.default_rng(3)
    core, halo = 6, 2
    field = rng.normal(size=(4, core + 2 * halo, 2 * core + 2 * halo)).astype(np.float32)
    size = core + 2 * halo
    first, second = field[:, :, :size], field[:, :, core : core + size] + np.float32(step)
    if axis == -2:
        first, second = first.swapaxes(1, 2), second.swapaxes(1, 2)
    made = [layer(w, axis=axis, first=k == 0, halo=halo) for k, w in enumerate((first, second))]
    return Side(made[0], made[0]), Side(made[1], made[1])


@pytest.mark.parametrize("axis", [-1, -2])
def test_no_seam_where_both_windows_say_the_same(axis: int) -> None:
    seams = measure(*sides(axis, 0.0))
    assert seams.apart("latent") == 0.0
    ratio = seams.ratio("latent")
    assert ratio is not None and 0.7 < ratio < 1.4  # noise has the same steps everywhere


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_lifted_window_is_seen_and_blending_softens_it(axis: int) -> None:
    seams = measure(*sides(axis, 20.0))
    assert seams.apart("latent") == pytest.approx(20.0, rel=1e-5)
    latent, blended = seams.ratio("latent"), seams.ratio("blended")
    assert latent is not None and blended is not None
    assert latent > 10.0 and blended < latent


def test_seams_merge_and_survive_the_receipt() -> None:
    one, two = measure(*sides(-1, 1.0)), measure(*sides(-2, 3.0))
    both = Seams.merged([one, two])
    assert both.borders == 2
    across = [s.parts["latent across"] for s in (one, two) if s.parts is not None]
    assert both.parts is not None and both.parts["latent across"].total == sum(a.total for a in across)
    receipt = Receipt("t00000/r0000/c0000", 0, (0, 0), (), seams=both)
    assert Receipt.from_json(receipt.to_json()) == receipt
    assert "seams" not in Receipt("t00000/r0000/c0000", 0, (0, 0), ()).to_json()


def test_a_window_under_the_floor_says_so_and_borders_need_both_sides() -> None:
    import torch

    from eocube.read.reader import WindowPixels
    from eocube.sensors import get_sensor

    place, sensor = grid((11.50, 48.10, 11.55, 48.12)), get_sensor("S2L2A").subset(["B02", "B03", "B04", "B08"])
    lattice = place.lattice
    truth = torch.rand(1, 4, lattice.window_px, lattice.window_px)

    def checker(error: float, floor: float | None) -> SelfCheck:
        return SelfCheck(
            place, sensor, 1.0, decoder=lambda z: truth + error, truth=lambda groups: truth, device="cpu", floor=floor
        )  # fmt: skip

    pixels = WindowPixels({}, np.full((lattice.core,) * 2, 100, np.uint8), 100, 0, (), 0)
    latents = np.random.default_rng(0).normal(size=(8, 32, 32)).astype(np.float32)
    windows = sorted(Sample.of(place, 1.0).borders)
    good = checker(0.01, 30.0).check(windows[0], pixels, latents, {})
    assert good.scores.psnr == pytest.approx(40.0, abs=0.01) and good.scores.breach is None
    bad = checker(0.1, 30.0).check(windows[0], pixels, latents, {})
    assert bad.scores.breach is not None and "20.0 dB" in bad.scores.breach and "30.0 dB" in bad.scores.breach
    assert checker(0.1, None).check(windows[0], pixels, latents, {}).scores.breach is None
    book = BorderBook()
    book.add(windows[0], good)
    assert book.total() is None
    for window in windows[1:]:
        book.add(window, checker(0.01, None).check(window, pixels, latents, {}))
    total = book.total()
    assert total is not None and total.borders == len({b for bs in Sample.of(place, 1.0).borders.values() for b in bs})
    book.add(windows[0], Checked())


@pytest.mark.parametrize("weights", ["nano", "nano2"])
def test_weights_record_their_floor(weights: str) -> None:
    from dataclasses import replace

    from model.weights import load_weights

    meta = load_weights(weights).meta
    assert meta is not None
    held_out = [
        entry["nano"]["psnr_physical"]
        for place, entry in meta.metrics["held_out"].items()  # type: ignore[attr-defined]
        if "S1RTC" in place.split()
    ]
    assert meta.psnr_floor("S1RTC") == pytest.approx(min(held_out) - 6.0)
    assert meta.psnr_floor("S1GRD") is None
    said = replace(meta, sensors={**meta.sensors, "S1RTC": replace(meta.sensors["S1RTC"], psnr_floor=11.0)})
    assert said.psnr_floor("S1RTC") == 11.0
    assert replace(meta, metrics={}).psnr_floor("S2L2A") is None
