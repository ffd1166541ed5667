"""`eocube repair` and `--retry damaged` on the real job: the demo's cube damaged, mended, and equal to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from eocube.cli import encode_main, main
from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME
from eocube.run.request import Exit
from model.weights import load_weights, save_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped weights in a place of their own, so that others can be put there."""
    vae = load_weights("nano")
    assert vae.meta is not None
    path = tmp_path_factory.mktemp("weights") / "own.safetensors"
    save_weights(vae, path, vae.meta)
    return path


def words(catalog: Path, weights: Path, out: Path) -> list[str]:
    return [
        "--bbox", *map(str, DEMO_BBOX), "--datetime", DEMO_DATETIME, "--catalog", str(catalog), "--quiet",
        "--resolution", "20", "--bands", "B02,B03,B04,B08", "--weights", str(weights), "--verify-fraction", "0.3",
        "--out", str(out),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory, demo_catalog: Path, weights: Path) -> Path:
    out = tmp_path_factory.mktemp("calm") / "cube.zarr"
    assert encode_main(words(demo_catalog, weights, out)) == Exit.DONE
    return out


def content(store: Path, *, log: bool = False) -> dict[str, bytes]:
    files = {str(p.relative_to(store)): p for p in store.rglob("*") if p.is_file()}
    kept = ("commits/plan.json", "commits/layout.json")
    return {k: p.read_bytes() for k, p in sorted(files.items()) if not k.startswith("commits/") or k in kept}


def shard_of(store: Path) -> Path:
    return sorted(p for p in (store / "latent" / "c").rglob("*") if p.is_file())[0]


def damaged(calm: Path, folder: Path, gone: Sequence[str], *, shard: bool = True) -> Path:
    store = folder / "cube.zarr"
    shutil.copytree(calm, store)
    if shard:
        data = shard_of(store).read_bytes()
        shard_of(store).write_bytes(data[: len(data) // 2])
    for name in gone:
        (store / name).unlink()
    return store


@pytest.mark.slow
def test_the_command_mends_what_verify_names(calm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the command line that made it: plan, sample and weights are as the store says."""
    store = damaged(calm, tmp_path, ["stac.json", "x/zarr.json"])
    assert main(["verify", str(store)]) == Exit.RETRYABLE
    assert capsys.readouterr().out.strip().splitlines()[-1] == f"eocube repair {store} mends it"
    assert main(["repair", str(store), "--quiet"]) == Exit.DONE
    out = capsys.readouterr().out
    assert "stac.json is missing" in out and "windows encoded again" in out and "left" not in out
    assert content(store) == content(calm)
    assert main(["verify", str(store), "--json"]) == Exit.DONE
    assert "mend" not in json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_retry_damaged_mends_and_goes_on(calm: Path, tmp_path: Path, demo_catalog: Path, weights: Path) -> None:
    for gone in (["zarr.json"], ["commits/plan.json"], ["commits/layout.json", "commits/segments.json"]):
        store = damaged(calm, tmp_path / gone[0].replace("/", "-"), gone)
        assert encode_main([*words(demo_catalog, weights, store), "--retry", "damaged"]) == Exit.DONE
        assert content(store) == content(calm), gone
        assert main(["verify", str(store)]) == Exit.DONE


@pytest.mark.slow
def test_a_lost_plan_is_searched_for_as_the_root_says(calm: Path, tmp_path: Path) -> None:
    store = damaged(calm, tmp_path, ["commits/plan.json"], shard=False)
    assert main(["repair", str(store), "--json"]) == Exit.DONE
    assert content(store) == content(calm)


@pytest.mark.slow
def test_other_weights_are_refused_in_one_line(
    calm: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = damaged(calm, tmp_path, [])
    own = weights.read_bytes()
    vae = load_weights(weights)
    assert vae.meta is not None
    try:
        next(vae.parameters()).data.add_(1.0)
        save_weights(vae, weights, vae.meta)
        assert main(["repair", str(store)]) == Exit.BAD_INPUT
    finally:
        weights.write_bytes(own)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "put the right ones there" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zarr.json", "commits/plan.json", "commits/layout.json", "commits/00000000.jsonl"])
@pytest.mark.parametrize("how", ["cut", "empty", "gone"])
def test_verify_says_damage_of_any_metadata_in_lines(
    calm: Path, tmp_path: Path, name: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, the object named, and what mends it as the last line."""
    store = damaged(calm, tmp_path, [name] if how == "gone" else [], shard=False)
    if how != "gone":
        (store / name).write_bytes((store / name).read_bytes()[:300] if how == "cut" else b"")
    assert main(["verify", str(store)]) == Exit.RETRYABLE
    lines = capsys.readouterr().out.strip().splitlines()
    assert any(line.startswith(name) for line in lines) and lines[-1] == f"eocube repair {store} mends it"
