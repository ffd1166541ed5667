"""What docs and weights' tables say of shipped weights is what the file gives, read back and scored again."""

from __future__ import annotations

from pathlib import Path

import pytest

from eocube.products.registry import WEIGHTS
from model.training.eo_vae.evaluate import LINEAR, MODEL, held_out_places, reconstruct, score
from model.training.sources.images import load_source, read_listing
from model.weights import load_weights

ROOT = Path(__file__).parents[4]
LISTING = ROOT / "model" / "training" / "recipes" / "nano_data.yaml"
ROWS = {
    "bigearthnet_29UPU_4_55 S2L2A 12": ("bigearthnet_29UPU_4_55", "| 29UPU 4 55 | S2L2A, 12 |"),
    "eolearn@2 S2L1C 13": ("eolearn", "| Slovenia, date 2 | S2L1C, 13 |"),
}
# Weights -> where their rows stand, and the columns of their own RMSE, SAM and PSNR after place and bands.
STATED = {
    "nano": [("docs/figures/nano.md", "| held-out place |", (2, 6, 10))],
    "nano2": [
        ("docs/figures/fidelity.md", "| held-out place |", (0, 1, 2)),
        ("docs/figures/nano.md", "## nano2", (1, 4, 7)),
    ],
}


@pytest.mark.real
@pytest.mark.parametrize("weights", STATED)
@pytest.mark.parametrize("row", ROWS)
def test_a_held_out_row_is_what_the_file_gives(row: str, weights: str, shared_dir: Path) -> None:
    source, start = ROWS[row]
    listed = next(s for s in read_listing(LISTING) if s.name == source)
    assert not listed.test
    (place,) = (p for p in held_out_places(list(load_source(listed, shared_dir / "data"))) if p.name == row)
    vae = load_weights(weights)
    found = score(place.tiles, [reconstruct(vae, tile, place.sensor) for tile in place.tiles], place.sensor)
    assert vae.meta is not None
    stated = vae.meta.metrics["held_out"]
    assert isinstance(stated, dict)
    for metric in ("rmse", "sam", "psnr_physical", "ssim_physical", "ndvi_mae"):
        assert found[metric] == pytest.approx(stated[row][MODEL][metric], rel=2e-3), metric
    assert stated[row][LINEAR]["rmse"] > found["rmse"]
    for document, section, columns in STATED[weights]:
        lines = (ROOT / document).read_text().split(section, 1)[1].splitlines()
        line = next(text for text in lines if text.startswith(start))
        cells = [cell.split("/")[0].strip(" *") for cell in line.removeprefix(start).split("|")]
        rmse, sam, psnr = (cells[k] for k in columns)
        assert rmse == f"{stated[row][MODEL]['rmse']:.4f}" and sam == f"{stated[row][MODEL]['sam']:.4f}", document
        assert psnr == f"{stated[row][MODEL]['psnr_physical']:.1f}", document


@pytest.mark.parametrize(
    ("table", "document", "heading", "count", "weights", "column"),
    [
        ("held_out", "docs/figures/fidelity.md", "| held-out place |", 18, "nano2", 3),
        ("test", "docs/figures/fidelity.md", "| test place |", 10, "nano2", 3),
        ("held_out", "docs/figures/nano.md", "| held-out place |", 23, "nano", 5),
    ],
)
def test_every_row_of_a_table_is_in_the_weights_table(
    table: str, document: str, heading: str, count: int, weights: str, column: int
) -> None:
    vae = load_weights(weights)
    assert vae.meta is not None
    stated = vae.meta.metrics[table]
    assert isinstance(stated, dict)
    cells = {f"{row[MODEL]['rmse']:.4f}" for row in stated.values()}
    rows = (ROOT / document).read_text().split(heading)[1].split("\n\n")[0].splitlines()[2:]
    assert len(rows) == len(stated) == count
    for text in rows:
        assert text.split("|")[column].split("/")[0].strip(" *") in cells, text


def test_the_readme_speaks_of_the_default_weights() -> None:
    assert WEIGHTS == "nano2"
    assert "`nano2` ships with the package and is the default" in (ROOT / "README.md").read_text()


def test_every_row_of_the_docs_is_in_the_weights_tables() -> None:
    meta = load_weights("nano2").meta
    assert meta is not None and meta.name == "nano2"
    for table, heading, count in (("held_out", "**Validation places**", 18), ("test", "**Test places**", 10)):
        stated = meta.metrics[table]
        assert isinstance(stated, dict)
        cells = {(f"{r[MODEL]['rmse']:.4f}", f"{r[LINEAR]['rmse']:.4f}") for r in stated.values()}
        text = (ROOT / "docs" / "figures" / "nano.md").read_text().split("## nano2")[1].split(heading)[1]
        rows = text[text.index("|---") :].split("\n\n")[0].splitlines()[1:]
        assert len(rows) == len(stated) == count
        for row in rows:
            assert tuple(row.split("|")[k].strip() for k in (4, 5)) in cells, row
