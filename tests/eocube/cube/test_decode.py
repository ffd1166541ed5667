"""The lazy decoding of latents as arrays: which windows are decoded, from what, and how they are merged."""

from __future__ import annotations

import threading

import dask.array as da
import numpy as np
import pytest

from eocube.cube.decode import Ground, Span, Tiling, decode_array, mirror_fill

STRIDE, CORE, HALO = 4, 6, 2


class Recorder:
    """A decoder without a network: repeats the first two channels, and keeps what it was given."""

    def __init__(self, vary: bool = False) -> None:
        self.windows: list[np.ndarray] = []
        self.vary = vary
        self._lock = threading.Lock()

    def __call__(self, window: np.ndarray) -> np.ndarray:
        with self._lock:
            self.windows.append(window)
        pixels = window[:2].repeat(STRIDE, 1).repeat(STRIDE, 2)
        # Level of its own for every window, as a network with group normalisation gives: this makes seams.
        return pixels + np.float32(window.mean() if self.vary else 0)

    def __dask_tokenize__(self) -> str:
        return f"recorder-{self.vary}"


def tiling(shape: tuple[int, int], start: tuple[int, int] = (0, 0), blend: int = HALO * STRIDE) -> Tiling:
    return Tiling(Span(start[0], shape[0], CORE), Span(start[1], shape[1], CORE), HALO, STRIDE, blend)


def latents_of(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype("float32")


def up(latents: np.ndarray) -> np.ndarray:
    return latents.repeat(STRIDE, -2).repeat(STRIDE, -1)


def test_span_cuts_at_the_borders_of_cores() -> None:
    assert Span(0, 12, 6).chunks == (6, 6)
    assert Span(-9, 14, 6).chunks == (3, 6, 5)
    assert list(Span(-9, 14, 6).cores) == [-2, -1, 0]
    assert Span(4, 1, 6).chunks == (1,)
    assert Span(-9, 14, 6).first(-2) == -9 and Span(-9, 14, 6).first(0) == 0


@pytest.mark.parametrize("start", [(0, 0), (-30, 12), (-8, 3), (5, -1)])
@pytest.mark.parametrize("blend", [0, 5, HALO * STRIDE])
def test_a_decoder_that_agrees_with_itself_gives_every_pixel_its_own_latent(start: tuple[int, int], blend: int) -> None:
    z = latents_of((2, 3, 20, 17))
    decoded = decode_array(da.from_array(z, chunks=(1, 3, 7, 9)), None, tiling((20, 17), start, blend), Recorder(), 2)
    assert decoded.shape == (2, 2, 80, 68) and decoded.dtype == np.float32
    assert decoded.chunks[2] == tuple(n * STRIDE for n in Span(start[0], 20, CORE).chunks)
    np.testing.assert_allclose(decoded.compute(), up(z[:, :2]), atol=1e-6)


def test_every_window_is_decoded_once_from_its_neighbours_latents() -> None:
    z = latents_of((1, 3, 18, 18))
    recorder = Recorder()
    decode_array(da.from_array(z, chunks=(1, 3, 18, 18)), None, tiling((18, 18)), recorder, 2).compute()
    assert len(recorder.windows) == 9
    middle = z[0, :, 6 - HALO : 12 + HALO, 6 - HALO : 12 + HALO]
    assert sum(np.array_equal(w, middle) for w in recorder.windows) == 1


def test_only_what_is_asked_for_is_decoded() -> None:
    z = da.from_array(latents_of((3, 3, 30, 30)), chunks=(1, 3, 30, 30))
    blended, cut = Recorder(), Recorder()
    decode_array(z, None, tiling((30, 30)), blended, 2)[1, :, 50:60, 50:60].compute()
    assert len(blended.windows) == 9, "the core and those whose halos reach over it"
    decode_array(z, None, tiling((30, 30), blend=0), cut, 2)[1, :, 50:60, 50:60].compute()
    assert len(cut.windows) == 1


def test_missing_neighbours_are_mirrored_and_missing_cores_stay_nan() -> None:
    z = latents_of((1, 3, 18, 18))
    z[:, :, 6:12, 6:12] = np.nan
    recorder = Recorder()
    decoded = decode_array(da.from_array(z), None, tiling((18, 18)), recorder, 2).compute()
    assert len(recorder.windows) == 8 and all(np.isfinite(w).all() for w in recorder.windows)
    assert np.isnan(decoded[0, :, 24:48, 24:48]).all()
    decoded[0, :, 24:48, 24:48], z[0, :, 6:12, 6:12] = 0, 0
    np.testing.assert_allclose(decoded, up(z[:, :2]), atol=1e-6)


def test_unseen_latents_and_latents_blanked_by_hand_are_nan() -> None:
    z, valid = latents_of((1, 3, 12, 12)), np.full((1, 12, 12), 100, "uint8")
    valid[0, 3, 4] = 0
    valid[0, 9, 9] = 1
    z[0, 1, 7, 2] = np.nan
    ground = Ground(da.from_array(valid))
    decoded = decode_array(da.from_array(z), ground, tiling((12, 12)), Recorder(), 2).compute()
    expected = np.zeros((12, 12), bool)
    expected[3, 4] = expected[7, 2] = True
    np.testing.assert_array_equal(np.isnan(decoded[0, 0]), up(expected))


def test_no_latents_at_all_decode_to_nothing() -> None:
    recorder = Recorder()
    z = da.full((1, 3, 12, 12), np.nan, dtype="float32")
    assert np.isnan(decode_array(z, None, tiling((12, 12)), recorder, 2).compute()).all()
    assert recorder.windows == []


def test_blending_fades_over_the_border_and_changes_nothing_farther_away() -> None:
    z = da.from_array(latents_of((1, 3, 6, 18)))
    cut = decode_array(z, None, tiling((6, 18), blend=0), Recorder(vary=True), 2).compute()
    faded = decode_array(z, None, tiling((6, 18), blend=3), Recorder(vary=True), 2).compute()
    changed = np.abs(cut - faded).max(axis=(0, 1, 2)) > 1e-6
    assert changed[[23, 24, 47, 48]].all(), "on either side of both borders"
    near = np.zeros(72, bool)
    near[21:27] = near[45:51] = True
    assert not changed[~near].any()
    step = np.abs(np.diff(faded - up(np.asarray(z[:, :2])), axis=-1))
    assert step.max() < 0.6 * np.abs(np.diff(cut - up(np.asarray(z[:, :2])), axis=-1)).max()


def test_a_window_alone_is_not_faded() -> None:
    z = da.from_array(latents_of((1, 3, 6, 6)))
    one = decode_array(z, None, tiling((6, 6)), Recorder(vary=True), 2).compute()
    np.testing.assert_array_equal(one, decode_array(z, None, tiling((6, 6), blend=0), Recorder(vary=True), 2).compute())


def test_the_same_decoding_has_the_same_name_and_bits() -> None:
    z = da.from_array(latents_of((1, 3, 18, 18)), name="z")
    a, b = (decode_array(z, None, tiling((18, 18)), Recorder(vary=True), 2) for _ in range(2))
    assert a.name == b.name != decode_array(z, None, tiling((18, 18), blend=2), Recorder(vary=True), 2).name
    np.testing.assert_array_equal(a.compute(num_workers=4), b.compute(scheduler="synchronous"))


def test_mirror_fill_mirrors_at_a_straight_edge_and_takes_the_nearest_beyond() -> None:
    window = np.arange(8, dtype="float32").reshape(1, 1, 8).repeat(3, 1)
    there = np.zeros((3, 8), bool)
    there[:, 3:6] = True
    np.testing.assert_array_equal(mirror_fill(window, there)[0, 1], [3, 5, 4, 3, 4, 5, 4, 3])
    assert mirror_fill(window, np.ones((3, 8), bool)) is window


def test_halos_wider_than_a_core_reach_beyond_the_next_one() -> None:
    z, recorder = latents_of((1, 2, 10, 2)), Recorder()
    wide = Tiling(Span(0, 10, 2), Span(0, 2, 2), 3, STRIDE, 0)
    decode_array(da.from_array(z), None, wide, recorder, 2).compute()
    assert any(np.array_equal(w[:, :, 3:5], z[0, :, 1:9]) for w in recorder.windows)
