"""`--json`: a command prints one JSON document on standard output and nothing else; people are told what is next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import rasterio
import xarray as xr

from eocube.cli import main
from eocube.errors import Exit
from tests.eocube.cubes import Made, make_plan, make_store, make_weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("json")
    return make_store(str(folder / "cube.zarr"), make_plan(make_weights(folder / "tiny.safetensors")))


@pytest.fixture(scope="module")
def points(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    west, south, east, north = made.plan.grid.lonlat_bounds_with_halo()
    path = tmp_path_factory.mktemp("points") / "points.csv"
    path.write_text(f"lon,lat\n{(west + east) / 2},{(south + north) / 2}\n")
    return path


def document(words: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    code = main([*words, "--json"])
    captured = capsys.readouterr()
    assert code in (Exit.DONE, Exit.RETRYABLE), captured.err
    assert "next" not in captured.err
    return json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_what_reads_a_cube_prints_a_document(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(["info", made.url], capsys)["sensor"] == "S2L2A"
    assert set(document(["status", made.url], capsys)["windows"]) >= {"ok"}
    assert "findings" in document(["verify", made.url], capsys)


def test_what_writes_prints_a_document_of_what_it_wrote(
    made: Made, points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tif = document(["decode", made.url, "--bands", "B04", "--out", str(tmp_path / "a.tif")], capsys)
    with rasterio.open(tif["out"]) as source:
        assert (source.height, source.width) == (tif["sizes"]["y"], tif["sizes"]["x"]) and tif["bands"] == ["B04"]
    files = document(["export", made.url, "--bands", "B04", "--out", str(tmp_path / "cogs")], capsys)["files"]
    assert files and all(Path(one["out"]).is_file() for one in files)
    table = document(["sample", made.url, str(points), "--out", str(tmp_path / "p.csv")], capsys)
    assert table["points"] == 1 and table["rows"] == sum(table["states"].values()) and Path(table["out"]).is_file()
    items = document(["stac", made.url, "--out", str(tmp_path / "catalogue")], capsys)
    assert items["cubes"] == 1 and Path(items["out"]).exists()
    picture = document(["quicklook", made.url, "--no-source", "--out", str(tmp_path / "q.png")], capsys)
    assert Path(picture["out"]).is_file()


def test_composites_by_the_command_line(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import eocube

    words = ["composite", made.url, "--bands", "B04", "--clear", "100"]
    cogs = document([*words, "--out", str(tmp_path / "months")], capsys)["files"]
    direct = eocube.open(made.url).eocube.composite("1MS", clear=None, bands=["B04"]).compute()
    assert len(cogs) == direct.sizes["time"]
    with rasterio.open(cogs[0]["out"]) as source:
        xr.testing.assert_equal(
            xr.DataArray(source.read(), dims=("band", "y", "x")),
            xr.DataArray(direct[0].values, dims=("band", "y", "x")),
        )
        assert source.descriptions == ("B04",)
    (one,) = document([*words, "--period", "season", "--out", str(tmp_path / "s.zarr")], capsys)["files"]
    stored = xr.open_zarr(one["out"], decode_coords="all")
    assert "observations" in stored.coords and stored.sizes["band"] == 1
    (latents,) = document(
        ["composite", made.url, "--what", "latents", "--period", "1YS", "--clear", "100", "--out", str(tmp_path / "l")],
        capsys,
    )["files"]
    with rasterio.open(latents["out"]) as source:
        assert source.count == made.plan.product.channels and source.descriptions[0] == "latent_00"
    for wrong, told in (
        (["--what", "latents", "--bands", "B04"], "--bands are of decoded pixels"),
        (["--datetime", "1990-01-01"], "no time steps"), (["--period", "fortnight"], "1MS"),
    ):  # fmt: skip
        assert main(["composite", made.url, "--out", str(tmp_path / "w"), *wrong]) == Exit.BAD_INPUT
        captured = capsys.readouterr()
        assert told in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_what_writes_says_what_to_type_next(
    made: Made, points: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["decode", made.url, "--bands", "B04", "--out", str(tmp_path / "a.tif")],
        ["export", made.url, "--bands", "B04", "--out", str(tmp_path / "cogs")],
        ["sample", made.url, str(points), "--out", str(tmp_path / "p.csv")],
        ["quicklook", made.url, "--no-source", "--out", str(tmp_path / "q.png")],
        ["composite", made.url, "--bands", "B04", "--clear", "100", "--out", str(tmp_path / "m")],
        ["stac", made.url, "--out", str(tmp_path / "catalogue")],
    ):
        capsys.readouterr()
        assert main(words) == Exit.DONE
        captured = capsys.readouterr()
        assert "next" in captured.err and captured.out.strip(), words
        assert "next" not in captured.out


@pytest.mark.slow
def test_a_run_and_a_repair_print_a_document(
    tmp_path: Path, demo_catalog: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eocube.demo.catalogue import DEMO_BBOX, DEMO_DATETIME

    out, weights = tmp_path / "cube.zarr", str(make_weights(tmp_path / "tiny.safetensors"))
    box = ",".join(str(v) for v in DEMO_BBOX)
    words = ["--catalog", str(demo_catalog), "--bbox", box, "--datetime", DEMO_DATETIME, "--weights", weights]
    words += ["--bands", "B02,B03,B04,B08"]
    (plan,) = document(["plan", *words], capsys)
    run = document(["encode", *words, "--out", str(out)], capsys)
    assert run["exit"] == 0 and run["cubes"] == [str(out)] and run["windows"]["ok"] == run["run"]["windows"]["ok"] > 0
    assert plan["windows"] >= run["windows"]["ok"]
    assert [scene["read_as"] for scene in plan["scene_list"]] and plan["scene_list"][0]["datetime"].endswith("Z")
    assert document(["repair", str(out)], capsys)
    page = document(["report", str(out), "--source", "--out", str(tmp_path / "r.html")], capsys)
    assert "error: PSNR" in Path(page["out"]).read_text()
    assert main(["encode", *words, "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert not captured.out and f"status {out}" in captured.err and "next:" in captured.err
