"""Schedules and numbers of optimiser steps, against values worked out by hand."""

from __future__ import annotations

import math

import pytest

from model.training.distributed import Team
from model.training.eo_vae.recipe import EOVAERecipe, EOVAEStage
from model.training.schedule import Clock, cosine, epoch_steps, warmed_cosine, warmup_cosine
from tests.model.training.batches import Random


class Length(Random):
    """A source of a known number of patches, or of one without an end."""

    def __init__(self, patches: int | None) -> None:
        super().__init__()
        self.patches = patches

    def steps_per_epoch(self, batch_size: int) -> int | None:
        return None if self.patches is None else self.patches // batch_size


def clock(stage: EOVAEStage, patches: int | None, share: int) -> Clock:
    return Clock.of(stage, Length(patches), share, Team())


def test_cosine_by_hand() -> None:
    assert [cosine(p) for p in (0, 0.5, 1, 2)] == pytest.approx([1, 0.5, 0, 0])
    assert cosine(1 / 3, final=0.2) == pytest.approx(0.2 + 0.8 * 0.75)


def test_published_schedule_by_hand() -> None:
    """1e-4 -> 2e-5, warm-up from 0 over 2000 of 200 000 steps."""
    rates = [1e-4 * warmup_cosine(s, warmup=2000, total=200_000, final=0.2) for s in (0, 1000, 2000, 101_000, 200_000)]
    assert rates == pytest.approx([0, 5e-5, 1e-4, 6e-5, 2e-5])


def test_nano_schedule_by_hand() -> None:
    assert warmed_cosine(0, 0.0, warmup=4) == pytest.approx(0.25)
    assert warmed_cosine(3, 0.5, warmup=4) == pytest.approx(0.5)


def test_optimiser_steps_by_hand() -> None:
    """100 patches: 6 whole batches of 16; in two parts 12 draws of 8, so 6 again; 7 draws of 14 give 3 pairs."""
    per_epoch = Length(100).steps_per_epoch
    assert epoch_steps(per_epoch, 16) == 6 and epoch_steps(per_epoch, 16, accumulate=2) == 6
    assert epoch_steps(per_epoch, 28, accumulate=2) == 3
    assert epoch_steps(per_epoch, 400) == 1 and epoch_steps(lambda _: None, 16) is None


def test_the_datas_real_length_decides() -> None:
    (stage,) = EOVAERecipe.load("published").stages
    short = clock(stage, 1000, 16)
    assert short.steps == 6200 and short.warmup == 62
    shared = clock(stage, 500, 8)  # each of two workers has half the data and draws half a batch
    assert shared.steps == 6200


def test_endless_data_need_steps() -> None:
    stage = EOVAEStage("s", batch=4, patch=32, epochs=2)
    with pytest.raises(ValueError, match="give steps"):
        clock(stage, None, 4)


def test_the_published_limit_is_the_epoch_of_shards_that_do_not_say_their_sizes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (stage,) = EOVAERecipe.load("published").stages
    assert (clock(stage, None, 16).steps, clock(stage, None, 16).warmup) == (200_000, 2000)
    assert "data of unknown length, an epoch is 2000 steps" in caplog.text


def test_a_clock_bounded_stage_counts_the_time_spent_before() -> None:
    stage = EOVAEStage("s", batch=4, patch=32, minutes=1.0)
    resumed = Clock.of(stage, Length(None), 4, Team(), spent=45.0)
    assert resumed.progress(0, resumed.began + 45.0) == pytest.approx(0.75)
    both = Clock.of(EOVAEStage("s", batch=4, patch=32, minutes=1.0, steps=10), Length(None), 4, Team())
    assert both.progress(9, both.began + 6.0) == pytest.approx(0.9)
    assert math.isclose(both.elapsed(both.began + 6.0), 6.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "never ends"),
        ({"schedule": "linear"}, "warmup_cosine"),
        ({"optimiser": "sgd"}, "adam"),
        ({"loss": {"l1": 1.0}}, "l1"),
        ({"loss": {"ms_ssim": 1.0}, "patch": 96}, "needs 96 px"),
        ({"accumulate": 3}, "equal parts"),
        ({"steps": None, "minutes": 1.0, "schedule": "warmup_cosine"}, "counts steps"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"name": "s", "batch": 4, "patch": 128, "steps": 10} | changes
    with pytest.raises(ValueError, match=message):
        EOVAEStage(**values)  # type: ignore[arg-type]
