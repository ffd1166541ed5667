"""The loop: it overfits, accumulates, scales, freezes and disturbs as it says, and goes on where it was left."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from model.eo_vae import EOVAE
from model.layouts import is_dynamic
from model.sensors import S1RTC
from model.training.checkpoint import Position, Store, read_snapshot
from model.training.distributed import Team
from model.training.eo_vae.objective import Disturbance, Reconstruction, Turn, code_bytes, draw_disturbance
from model.training.eo_vae.recipe import EOVAERecipe
from model.training.loop import Average
from model.training.sources.prefetch import Prefetch
from model.training.tracking import Tracker, read_history
from model.weights_meta import SensorMeta, WeightsMeta
from tests.model.training.batches import RGB, TINY, Fixed, Random, looped, recipe


def network(seed: int = 0) -> EOVAE:
    torch.manual_seed(seed)
    return EOVAE(TINY)


class Notes(Tracker):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, float]] = []

    def open(self, total: int) -> None:
        pass

    def scalars(self, step: int, stage: str, values: Mapping[str, float]) -> None:
        self.lines.append({"step": step, **values})

    def sync(self) -> None:
        pass


def run(how: EOVAERecipe, source: Random, **more: Any) -> tuple[EOVAE, list[dict[str, float]]]:
    notes = Notes()
    vae = network()
    looped(vae, how, source, tracker=notes, **more).run()
    return vae, notes.lines


def difference(a: EOVAE, b: EOVAE) -> float:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((x.double() - y.double()).abs().max()) for x, y in pairs)


@pytest.mark.slow
def test_it_overfits_one_batch() -> None:
    how = recipe({"steps": 150, "lr": 3e-3, "batch": 1, "warmup": 5}, clip=10.0)
    _, lines = run(how, Fixed(1, 32))
    assert len(lines) == 150 and lines[-1]["charbonnier"] < 0.2 * lines[0]["charbonnier"]


def test_accumulated_parts_equal_the_whole_batch() -> None:
    _, whole = run(recipe({"steps": 3}), Fixed(4, 32))
    _, parts = run(recipe({"steps": 3, "accumulate": 4}), Fixed(4, 32))
    # not parameter by parameter: Adam makes a whole step of a gradient that is nothing but rounding
    for a, b in zip(whole, parts, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4) and b["norm"] == pytest.approx(a["norm"], rel=1e-3)


def test_clipping_follows_unscaling() -> None:
    """In fp16 the norm noted is that of the true gradient, whatever the loss is scaled by."""
    _, exact = run(recipe({"steps": 2}, clip=1e-3), Fixed(4, 32))
    _, half = run(recipe({"steps": 2}, clip=1e-3, precision="fp16"), Fixed(4, 32))
    assert half[0]["loss_scale"] > 1000 and "loss_scale" not in exact[0]
    assert half[0]["norm"] == pytest.approx(exact[0]["norm"], rel=0.05)


def test_the_scaler_leaves_out_a_step_that_overflows() -> None:
    how = recipe({"steps": 1}, precision="fp16")
    source = Fixed(4, 32)
    source.whole = replace(source.whole, x=source.whole.x * 1e30)
    start, (vae, lines) = network(), run(how, source)
    assert not math.isfinite(lines[0]["norm"]) and lines[0]["loss_scale"] == 2.0**15
    assert difference(start, vae) == 0


def test_freezing_the_body_trains_the_generated_convolutions_alone() -> None:
    start, (vae, _) = network(), run(recipe({"freeze_body": True}), Fixed(4, 32))
    changed = {k for k, v in vae.state_dict().items() if not torch.equal(v, start.state_dict()[k])}
    assert changed and all(is_dynamic(key) for key in changed)


def test_the_average_lags_and_zero_decay_does_not() -> None:
    vae = network()
    loop = looped(vae, recipe(ema=0.9), Fixed(4, 32))
    averaged = loop.run()
    assert 0 < difference(averaged, vae) < 0.1
    live = network()
    assert difference(looped(live, recipe(), Fixed(4, 32)).run(), live) < 1e-7


def test_average_by_hand() -> None:
    live, average = network(0), Average(network(0), decay=0.5)
    name, p = next(iter(live.named_parameters()))
    first = p.detach().clone()
    with torch.no_grad():
        p.add_(1.0)
    average.update(live)  # the first decay is (1 + 1) / (10 + 1)
    assert torch.allclose(dict(average.network.named_parameters())[name], first + 9 / 11, atol=1e-6)


def test_ms_ssim_joins_at_its_step() -> None:
    stage = {"patch": 96, "batch": 1, "steps": 3, "loss": {"charbonnier": 1.0, "ms_ssim": 1.0}, "ms_ssim_step": 2}
    _, lines = run(recipe(stage), Fixed(1, 96))
    assert ["ms_ssim" in line for line in lines] == [False, False, True]
    assert lines[2]["loss"] == pytest.approx(lines[2]["charbonnier"] + lines[2]["ms_ssim"], rel=1e-6)


def test_posterior_sample_and_noise_are_what_they_say() -> None:
    vae = network().eval()
    module = Reconstruction(vae, "fp32")
    batch = Random(1).draw(2, 32)
    posterior = vae.encode(batch.x, batch.wavelengths)
    normal = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        sampled = module(batch.x, batch.wavelengths, Disturbance(normal=normal))
        z = posterior.mean + torch.exp(0.5 * posterior.logvar) * normal
        assert torch.allclose(sampled, vae.decode(z, batch.wavelengths), atol=1e-5)
        noisy = module(batch.x, batch.wavelengths, Disturbance(noise=0.1 * normal))
        spread = posterior.mean.flatten(1).std(1)[:, None, None, None]
        expected = vae.decode(posterior.mean + 0.1 * normal * spread, batch.wavelengths)
        assert torch.allclose(noisy, expected, atol=1e-5)


def test_published_batch_norm_normalises_by_the_batch_and_undoes_it_by_the_running_statistics() -> None:
    """By hand: momentum 0.1 and the unbiased variance for what runs, eps 1e-5 one way and 1e-4 the other."""
    vae = network().train()
    batch = Random(1).draw(2, 32)
    with torch.no_grad():
        packed = vae.pack(vae.encode(batch.x, batch.wavelengths).mode())
        mean, var = packed.mean((0, 2, 3)), packed.var((0, 2, 3), unbiased=False)
        count = packed.numel() // packed.shape[1]
        running = 0.1 * mean, 0.9 + 0.1 * var * count / (count - 1)  # from 0 and 1
        normed = (packed - mean[:, None, None]) / (var + 1e-5).sqrt()[:, None, None]
        back = normed * (running[1] + 1e-4).sqrt()[:, None, None] + running[0][:, None, None]
        expected = vae.decode(vae.unpack(back), batch.wavelengths)
        found = Reconstruction(vae, "fp32", through_norm=True)(batch.x, batch.wavelengths)
    assert torch.allclose(found, expected, atol=1e-4)
    assert vae.bn.running_mean is not None and torch.allclose(vae.bn.running_mean, running[0], atol=1e-6)
    without = Reconstruction(vae, "fp32")(batch.x, batch.wavelengths)
    assert not torch.allclose(found, without, atol=1e-2)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_average_keeps_the_statistics_that_ran(ema: float) -> None:
    values = recipe({"steps": 3, "batch": 2, "patch": 32, "margin": 0})
    vae = network()
    averaged = cast(EOVAE, looped(vae, replace(values, ema=ema, batch_norm="published"), Random(1)).run())
    kept = averaged.bn.running_mean
    assert (
        kept is not None
        and vae.bn.running_mean is not None
        and torch.equal(kept, vae.bn.running_mean)
        and kept.abs().max() > 0
    )
    assert averaged.bn.num_batches_tracked is not None and int(averaged.bn.num_batches_tracked) == 3
    with pytest.raises(ValueError, match="batch_norm 'none' is none of measured, published"):
        replace(values, batch_norm="none")


STEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def coded_network(seed: int = 0) -> EOVAE:
    """With code steps for the sensors of `Random`."""
    vae = network(seed)
    sensors = {
        s.name: SensorMeta(s.bands, s.wavelengths, s.mean, s.std, s.unit, True, "test", code_steps=STEPS)
        for s in (RGB, S1RTC)
    }
    vae.meta = WeightsMeta("tiny", TINY, sensors, "none", "CC0-1.0", "2026")
    return vae


def test_rounding_and_a_left_out_tail_are_what_they_say() -> None:
    vae = coded_network().eval()
    module, batch, steps = Reconstruction(vae, "fp32"), Random(1).draw(2, 32), torch.tensor(STEPS)
    mean = vae.encode(batch.x, batch.wavelengths).mean
    stage = recipe({"rounding": 1.0, "rate": 0.1, "tail": 0.5}).stages[0]
    generator = torch.Generator().manual_seed(0)
    drawn = [
        draw_disturbance(stage, (4, 8, 16, 16), slice(0, 2), generator, torch.device("cpu"), steps) for _ in range(200)
    ]
    kept = [d.kept for d in drawn if d.kept is not None]
    assert 70 < len(kept) < 130 and set(kept) == {2, 4}
    how = next(d for d in drawn if d.kept == 4)
    assert how.rounding is not None and how.rounding.shape == (2, 8, 16, 16)
    assert how.rounding.abs().max() <= 0.5 and abs(float(how.rounding.std()) - 12**-0.5) < 0.02
    with torch.no_grad():
        prediction, rate = module(batch.x, batch.wavelengths, how)
        z = mean + how.rounding * steps[:, None, None]
        z[:, 4:] = z.mean(dim=(0, 2, 3), keepdim=True)[:, 4:]
        assert torch.allclose(prediction, vae.decode(z, batch.wavelengths), atol=1e-5)
    assert float(rate) == pytest.approx(float(code_bytes(mean.detach(), steps).mean()), rel=1e-5)


def test_the_rate_is_the_entropy_of_laplacian_codes() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand((1, 2, 256, 256), generator=generator) - 0.5
    z = -torch.sign(uniform) * torch.log1p(-2 * uniform.abs()) * torch.tensor([3.0, 8.0])[:, None, None]
    steps = torch.tensor([0.25, 0.5])
    counted = 0.0
    for channel, step in zip(z[0], steps, strict=True):
        share = torch.unique((channel / step).round(), return_counts=True)[1] / channel.numel()
        counted -= float((share * share.log2()).sum()) / 8
    assert float(code_bytes(z, steps)) == pytest.approx(counted, rel=0.02)
    z.requires_grad_(True)
    code_bytes(z, steps).sum().backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None and float((z.grad * z.detach()).sum()) > 0  # smaller latents, fewer bytes


@pytest.mark.slow
def test_a_rate_in_the_loss_makes_codes_cheaper() -> None:
    def end(weight: float) -> float:
        how, source = recipe({"rounding": 1.0, "rate": weight, "steps": 30}), Fixed(2, 32)
        notes = Notes()
        looped(coded_network(), how, source, tracker=notes).run()
        lines = notes.lines
        assert lines[0]["loss"] == pytest.approx(lines[0]["charbonnier"] + weight * lines[0]["code_bytes"], rel=1e-4)
        return lines[-1]["code_bytes"]

    assert end(1.0) < 0.9 * end(0.0001)


def test_codes_need_weights_that_carry_steps() -> None:
    with pytest.raises(ValueError, match=r"no code steps for B04, B03, B02 of S2L2A: measure them"):
        looped(network(), recipe({"rate": 0.1}), Random()).run()
    with pytest.raises(ValueError, match="rounding -1"):
        recipe({"rounding": -1.0})


def test_code_steps_are_measured_when_a_stage_begins_and_kept_for_a_resumed_run(tmp_path: Path) -> None:
    (coded,) = recipe({"name": "codes", "rounding": 1.0, "rate": 0.1, "steps": 4}).stages
    how = recipe({"name": "plain", "steps": 2}, checkpoint_steps=4)
    how = replace(how, stages=(*how.stages, coded))
    asked: list[EOVAE] = []

    def measure(live: EOVAE) -> dict[str, tuple[float, ...]]:
        asked.append(live)
        return {RGB.name: STEPS if len(asked) == 1 else tuple(100 * s for s in STEPS)}

    vae, notes = network(), Notes()
    looped(vae, how, Random(), keeper=Store(str(tmp_path)), tracker=notes, measure_steps=measure).run()
    assert asked == [vae]  # not for the stage without codes
    assert ["code_bytes" in line for line in notes.lines] == [False] * 2 + [True] * 4

    other = network(1)
    resumed = looped(other, how, Random(), measure_steps=measure)
    resumed.resume(read_snapshot(tmp_path / "checkpoint_000000004", 0, sliced=True))
    resumed.run()
    assert len(asked) == 1 and difference(vae, other) == 0.0


def test_equivariance_turns_latents_and_target_alike() -> None:
    module = Reconstruction(network().eval(), "fp32")
    batch = Random(1).draw(2, 32)
    turn = Turn(quarters=1, side=8)
    with torch.no_grad():
        prediction = module(batch.x, batch.wavelengths, Disturbance(turn=turn))
    target = turn(batch.x, stride=2)
    assert prediction.shape == target.shape == (2, 3, 16, 16)
    assert torch.equal(Turn(1, 32)(batch.x), torch.rot90(batch.x, 1, (-2, -1)))
    stage = recipe({"equivariance": 0.5, "latent_noise": 0.2, "sample": True}).stages[0]
    generator = torch.Generator().manual_seed(0)
    drawn = [draw_disturbance(stage, (4, 8, 16, 16), slice(0, 2), generator, torch.device("cpu")) for _ in range(200)]
    turns = [d.turn for d in drawn if d.turn is not None]
    assert 70 < len(turns) < 130 and {t.quarters for t in turns} == {0, 1, 2, 3}
    assert all(4 <= t.side <= 16 for t in turns) and all(d.normal is not None and len(d.normal) == 2 for d in drawn)
    levels = [float(d.noise.std()) for d in drawn if d.noise is not None]
    assert 0.05 < sum(levels) / len(levels) < 0.15 and max(levels) < 0.25


@pytest.mark.parametrize(
    ("precision", "extra"),
    [
        ("fp32", {}),
        ("fp32", {"sample": True, "latent_noise": 0.1, "equivariance": 0.5}),
        ("fp32", {"rounding": 1.0, "rate": 0.01, "tail": 0.3}),
        pytest.param("fp16", {"sample": True}, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_left_goes_on_to_the_same_weights(tmp_path: Path, extra: dict[str, Any], precision: str) -> None:
    how = recipe({"steps": 7, **extra}, ema=0.9, precision=precision, checkpoint_steps=2)
    whole = looped(coded_network(), how, Random(5, mixed=True)).run()

    class KilledError(Exception):
        pass

    class Dying(Random):
        def draw(self, batch_size: int, patch: int) -> Any:
            if self.drawn == 5:
                raise KilledError
            return super().draw(batch_size, patch)

    url = str(tmp_path / "run")
    tracker = Tracker(url, "run")
    with pytest.raises(KilledError):
        looped(coded_network(), how, Dying(5, mixed=True), keeper=Store(url), tracker=tracker).run()
    tracker.close()
    torch.manual_seed(99)
    source, tracker = Random(5, mixed=True), Tracker(url, "run")
    again = looped(coded_network(1), how, source, keeper=Store(url), tracker=tracker)
    with Store(url).restore() as folder:
        assert folder is not None
        again.resume(read_snapshot(folder, 0, sliced=False))
    assert again.at.total == 4 and source.drawn == 4
    assert difference(again.run(), whole) == 0
    tracker.close()
    assert [line["step"] for line in read_history(url)] == [1, 2, 3, 4, 5, 6, 7]


def test_batches_made_ahead_change_neither_the_run_nor_where_it_goes_on(tmp_path: Path) -> None:
    """A checkpoint says which batches were trained on, not which lay ready."""
    how = recipe({"steps": 7}, ema=0.9, checkpoint_steps=2)
    whole = looped(network(), how, Random(5, mixed=True)).run()
    url, makers = str(tmp_path / "run"), set[str]()

    class KilledError(Exception):
        pass

    class Noting(Random):
        def draw(self, batch_size: int, patch: int) -> Any:
            makers.add(threading.current_thread().name)
            return super().draw(batch_size, patch)

    class Dying(Store):
        def save(self, write: Callable[[Path], None], total: int, metrics: Mapping[str, float]) -> None:
            if total == 4:
                until = time.monotonic() + 60
                while source.drawn < 7 and time.monotonic() < until:  # as many as are made ahead
                    time.sleep(0.01)
            super().save(write, total, metrics)
            if total == 4:
                raise KilledError

    source = Noting(5, mixed=True)
    ahead = Prefetch(source, depth=3)
    with pytest.raises(KilledError):
        looped(network(), how, ahead, keeper=Dying(url)).run()
    assert source.drawn == 7 and makers == {"prefetch"}
    ahead.close()
    torch.manual_seed(99)
    ahead = Prefetch(Random(5, mixed=True), depth=3)
    again = looped(network(1), how, ahead, keeper=Store(url))
    with Store(url).restore() as folder:
        assert folder is not None
        snapshot = read_snapshot(folder, 0, sliced=False)
    assert snapshot.own["source"]["drawn"] == 4
    again.resume(snapshot)
    assert again.at.total == 4 and difference(again.run(), whole) == 0
    ahead.close()


def test_two_stages_and_a_finished_run(tmp_path: Path) -> None:
    how = recipe()
    how = replace(how, stages=(replace(how.stages[0], steps=2), replace(how.stages[0], name="t", steps=3)))
    keeper = Store(str(tmp_path))
    first = looped(network(), how, Random(), keeper=keeper).run()
    again = looped(network(1), how, Random(), keeper=keeper)
    with keeper.restore() as folder:
        assert folder is not None
        again.resume(read_snapshot(folder, 0, sliced=False))
    assert again.at.stage == 2 and difference(again.run(), first) == 0


def test_best_is_the_lowest_score(tmp_path: Path) -> None:
    scores = iter([3.0, 1.0, 2.0])
    exported: list[int] = []
    how = recipe({"steps": 3}, evaluate_minutes=0.0)

    def export(vae: EOVAE, folder: Path) -> None:
        (folder / "best.txt").write_text(str(len(exported)))
        exported.append(1)

    judge: Callable[[EOVAE, int], float | None] = lambda vae, total: next(scores, 5.0)  # noqa: E731
    loop = looped(network(), how, Random(), keeper=Store(str(tmp_path)), judge=judge, export=export)
    loop.run()
    assert loop.at.best == 1.0 and len(exported) == 2 and (tmp_path / "best" / "best.txt").read_text() == "1"


def test_a_checkpoint_of_another_network_is_named() -> None:
    loop = looped(network(), recipe(), Random())
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    other = replace(TINY, z_channels=4)
    snapshot = looped(EOVAE(other), replace(recipe(), config=other), Random()).snapshot(None, scaler)
    with pytest.raises(ValueError, match="'z_channels': 4"):
        loop.resume(snapshot)


def test_what_workers_cannot_share_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 3"):
        looped(network(), recipe(division="slices"), Random(), Team(0, 3))
    with pytest.raises(ValueError, match="use ddp"):
        looped(network(), recipe({"optimiser": "muon"}), Random(), Team(strategy="fsdp"))
    with pytest.raises(ValueError, match="ddp, fsdp"):
        Team.here("pipeline")


def test_position_round_trip() -> None:
    at = Position(1, 2, 3, 4.5, 0.5, {"loss": 1.0})
    assert Position.from_dict(at.to_dict()) == at
