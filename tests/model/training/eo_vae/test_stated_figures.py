"""What the README and the weights' table say of `nano` is what the shipped file gives, read back and scored again."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.training.eo_vae.evaluate import LINEAR, MODEL, held_out_places, reconstruct, score
from model.training.sources.images import load_source, read_listing
from model.weights import load_weights

ROOT = Path(__file__).parents[4]
LISTING = ROOT / "model" / "training" / "recipes" / "nano_data.yaml"
ROWS = {
    "bigearthnet_29UPU_4_55 S2L2A 12": ("bigearthnet_29UPU_4_55", "| 29UPU 4 55 | S2L2A, 12 |"),
    "eolearn@2 S2L1C 13": ("eolearn", "| Slovenia, date 2 | S2L1C, 13 |"),
}


@pytest.mark.real
@pytest.mark.parametrize("row", ROWS)
def test_a_held_out_row_is_what_the_file_gives(row: str, shared_dir: Path) -> None:
    source, in_readme = ROWS[row]
    listed = next(s for s in read_listing(LISTING) if s.name == source)
    assert not listed.test
    (place,) = (p for p in held_out_places(list(load_source(listed, shared_dir / "data"))) if p.name == row)
    vae = load_weights("nano")
    found = score(place.tiles, [reconstruct(vae, tile, place.sensor) for tile in place.tiles], place.sensor)
    assert vae.meta is not None
    stated = vae.meta.metrics["held_out"]
    assert isinstance(stated, dict)
    for metric in ("rmse", "sam", "psnr_physical", "ssim_physical", "ndvi_mae"):
        assert found[metric] == pytest.approx(stated[row][MODEL][metric], rel=2e-3), metric
    assert stated[row][LINEAR]["rmse"] > found["rmse"]
    (line,) = (text for text in (ROOT / "README.md").read_text().splitlines() if text.startswith(in_readme))
    rmse, sam, psnr, *_ = (cell.split("/")[0].strip(" *") for cell in line.removeprefix(in_readme).split("|"))
    assert rmse == f"{stated[row][MODEL]['rmse']:.4f}" and sam == f"{stated[row][MODEL]['sam']:.4f}"
    assert psnr == f"{stated[row][MODEL]['psnr_physical']:.1f}"


def test_every_row_of_the_readme_is_in_the_weights_table() -> None:
    vae = load_weights("nano")
    assert vae.meta is not None
    stated = vae.meta.metrics["held_out"]
    assert isinstance(stated, dict)
    cells = {f"{row[MODEL]['rmse']:.4f}" for row in stated.values()}
    lines = (ROOT / "README.md").read_text().split("| held-out place |")[1].splitlines()[2:]
    rows = [text for text in lines if any(f"| {name}, " in text for name in vae.meta.sensors)]
    assert len(rows) == len(stated) == 23
    for text in rows:
        assert text.split("|")[3].split("/")[0].strip(" *") in cells, text
