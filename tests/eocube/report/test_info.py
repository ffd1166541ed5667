"""Plan, status and verification: figures by hand, and every kind of damage named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from eocube.cli import main
from eocube.errors import InputError
from eocube.ground.boxes import parse_bbox, parse_interval
from eocube.plan.cost import asset_sizes, cost, work
from eocube.plan.packed import UNPACKED
from eocube.plan.plan import Plan
from eocube.plan.rates import RECORDED, Rate, machine_name, recorded
from eocube.report.history import History
from eocube.report.info import status, verify
from eocube.run.asked import Running, Selection, Showing
from eocube.run.plan_view import forecasts, lines
from eocube.run.request import Exit, Request, make_plans, product_of
from eocube.store.receipts import Receipt, State
from model.weights import load_weights
from tests.eocube.cubes import Made, make_plan, make_store, make_weights


@pytest.fixture(scope="module")
def plans(demo_catalog: Path) -> tuple[Plan, ...]:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    selection = Selection(parse_bbox(*DEMO_BBOX), parse_interval(DEMO_DATETIME), catalog=str(demo_catalog))
    request = Request.parse(selection, Running(), on_gpu=False, writes=False)
    return make_plans(request, product_of(request), None)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    plan = make_plan(make_weights(tmp_path / "tiny.safetensors"))
    row, col = (int(k[0]) for k in plan.grid.requested_mask.nonzero())
    return make_store(str(tmp_path / "cube.zarr"), plan, {(0, row, col): State.READ_FAILED})


def test_the_plan_counts_bytes_hours_and_dollars(plans: tuple[Plan, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    (plan,) = plans
    sizes = asset_sizes(plan)
    assets = {s.href for scene in plan.scenes for s in (*scene.sources, *([scene.mask] if scene.mask else []))}
    assert sum(sizes.bytes.values()) == sum(Path(a).stat().st_size for a in assets)
    assert sizes.source == {"asked": len(sizes.bytes)}
    found = cost(plan, sizes, Rate(2.0, "by hand"), "cpu", 3.0)
    windows = int(plan.grid.requested_mask.sum()) * len(plan.times)
    assert found.windows_with_scenes == windows
    assert 8 < found.bytes_out / (windows * 24 * 24) < 20 and "on seven stores of real scenes" in found.bytes_out_from
    (shown,) = forecasts(plans, Showing(), "cpu", None)
    assert f"stored as codes ({found.bytes_out_from})" in lines([shown]) and shown.document()["storage"] == "codes"
    other = replace(plan, product=replace(plan.product, meaning={**plan.product.meaning, "weights": {"name": "mine"}}))
    raw = cost(other, sizes, None, "cpu", None)
    assert raw.bytes_out == work(plan).bytes_out == windows * 24 * 24 * 32 * 2 and raw.bytes_out_from == UNPACKED
    assert found.device_hours == pytest.approx(windows / 2.0 / 3600.0, abs=1e-4)
    assert found.dollars == pytest.approx(found.device_hours * 3.0, abs=0.01)
    assert 0 < found.bytes_in <= sum(sizes.bytes.values())
    monkeypatch.setattr("eocube.plan.cost._ask", lambda *asked: None)  # a server that does not say
    unasked = asset_sizes(plan)
    assert set(unasked.source) == {"uncompressed"} and sum(unasked.bytes.values()) > sum(sizes.bytes.values())


def test_a_recorded_benchmark_gives_the_rate(plans: tuple[Plan, ...], tmp_path: Path) -> None:
    (plan,) = plans
    record = tmp_path / "encoder.json"
    variant = {"name": "ours", "device": "cpu", "dtype": plan.product.precision, "windows_per_s": 5.0}
    slow = {**variant, "name": "published eager", "windows_per_s": 50.0}
    document = {"machine": {"cpu": machine_name("cpu")}, "model": "nano", "reference": "x", "variants": [variant, slow]}
    record.write_text(json.dumps(document))
    rate = recorded(plan, "cpu", str(record))
    assert rate is not None and rate.windows_per_s == 5.0 and "not this machine" not in rate.source
    record.write_text(json.dumps({**document, "machine": {"cpu": "another"}}))
    other = recorded(plan, "cpu", str(record))
    assert other is not None and "not this machine" in other.source
    far = {**document, "benchmark": "pipeline", "share_of_encoder": 0.9, "settings": {"source": "http"}}
    record.write_text(json.dumps(far))
    near = recorded(plan, "cpu", str(record))
    assert near is not None and near.source.endswith("whole job, its sources far away")
    scenes = tuple(
        replace(s, sources=tuple(replace(b, href=f"https://cogs.example.org/{b.band}.tif") for b in s.sources))
        for s in plan.scenes
    )
    alike = recorded(replace(plan, scenes=scenes), "cpu", str(record))
    assert alike is not None and alike.source.endswith("whole job")
    with pytest.raises(InputError, match="--calibrate"):
        recorded(plan, "cuda", str(record))
    (found,) = forecasts(plans, Showing(benchmark=str(record), price=1.0), "cpu", None)
    assert found.cost.windows_per_s == 5.0 and "5 windows/s" in lines([found]) and "dollars" in lines([found])
    with pytest.raises(InputError, match="price"):
        forecasts(plans, Showing(price=-1.0), "cpu", None)


@pytest.mark.parametrize("weights", ["nano", "nano2", "eo-vae"])
def test_a_plan_without_more_names_the_machine_that_was_recorded(plans: tuple[Plan, ...], weights: str) -> None:
    (plan,) = plans
    named = {"weights": {"name": weights, "sha256": "00"}, "precision": "bf16"}
    product = replace(plan.product, meaning={**plan.product.meaning, **named})
    (found,) = forecasts([replace(plan, product=product)], Showing(), "cpu", None)
    assert found.cost.device_hours > 0 and found.cost.rate_from.startswith("recorded on ")
    assert "whole job" in found.cost.rate_from and found.cost.rate_from in lines([found])
    shipped = [json.loads(path.read_text()) for path in sorted(RECORDED.glob("*.json"))]
    jobs = [v for d in shipped for v in d["variants"] if v["name"] == "eocube, first pixel read to last shard written"]
    assert round(found.cost.windows_per_s, 3) in {round(v["windows_per_s"], 3) for v in jobs}


def test_weights_that_share_recorded_rates_have_the_same_sizes() -> None:
    nano, nano2 = (load_weights(name).meta for name in ("nano", "nano2"))
    assert nano is not None and nano2 is not None and nano.config == nano2.config


def test_file_size_of_the_catalogue_counts_first(plans: tuple[Plan, ...]) -> None:
    (plan,) = plans
    scenes = tuple(replace(s, sources=tuple(replace(b, size=1000) for b in s.sources), mask=None) for s in plan.scenes)
    sizes = asset_sizes(replace(plan, scenes=scenes))
    assert set(sizes.source) == {"catalogue"} and set(sizes.bytes.values()) == {1000.0}
    again = Plan.from_json(replace(plan, scenes=scenes).to_json())
    assert again.scenes[0].sources[0].size == 1000


def test_history_spreads_windows_over_working_time() -> None:
    windows = tuple(Receipt.from_json(Receipt("u", 0, (0, 0), ()).to_json()).windows)
    assert windows == ()
    base = "2026-11-21T05:{:02d}:{:02d}Z"
    from eocube.store.receipts import WindowResult

    def receipt(minute: int, second: int, run: str) -> Receipt:
        results = tuple(WindowResult(0, k, State.OK) for k in range(10))
        return Receipt("u", 0, (0, 0), results, seconds=10.0, created=base.format(minute, second), run=run)

    history = History.of([receipt(0, 10, "a"), receipt(0, 20, "a"), receipt(50, 10, "b")])
    assert [r.id for r in history.runs] == ["a", "b"]
    assert history.runs[0].rate == pytest.approx(1.0) and history.last is history.runs[1]
    edges, rates = history.throughput(6)
    assert edges[-1] == 30.0 and rates.sum() * 5.0 == pytest.approx(30.0)


def test_status_says_what_can_be_tried_again(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    found = status(made.url)
    assert found.windows["read_failed"] == 1 and found.retryable
    assert found.to_do == ("--retry read_failed",)
    assert main(["status", made.url, "--json"]) == Exit.RETRYABLE
    assert json.loads(capsys.readouterr().out)["windows"] == found.windows


def test_verify_names_a_flipped_bit_its_chunk_and_strays(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(made.url).findings == ()
    shard = sorted((Path(made.url) / "latent" / "c").rglob("*"))[-1]
    data = bytearray(shard.read_bytes())
    data[40] ^= 4
    shard.write_bytes(bytes(data))
    (Path(made.url) / "latent" / "stray").write_bytes(b"x")
    findings = verify(made.url).findings
    key = shard.relative_to(made.url).as_posix()
    assert any(f.startswith(f"{key}: ") and "SHA-256" in f and "damaged" in f for f in findings), findings
    assert any(f.startswith("latent/stray: ") for f in findings)
    assert main(["verify", made.url]) == Exit.RETRYABLE
    said = capsys.readouterr().out
    assert key in said and "latent/stray" in said


def test_every_byte_of_a_shard_counts(made: Made) -> None:
    shard = sorted((Path(made.url) / "latent" / "c").rglob("*"))[-1]
    whole = shard.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 23)):
        data = bytearray(whole)
        data[place] ^= 1 << (place % 8)
        shard.write_bytes(bytes(data))
        assert any(f.startswith(shard.relative_to(made.url).as_posix()) for f in verify(made.url).findings), place
    shard.write_bytes(whole)
    assert verify(made.url).findings == ()
