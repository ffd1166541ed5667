"""Test places are scored when a release asks for them, and at no other time."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from model.evaluation.study import Settings, Study
from model.training.eo_vae.evaluate import Evaluator, held_out_places
from model.training.eo_vae.measured import measure
from model.training.eo_vae.sampler import Sampler
from model.training.sources.images import Image, load_images, read_listing
from model.weights import load_weights

ROOT = Path(__file__).parents[4]
LISTING = ROOT / "model" / "training" / "recipes" / "nano_data.yaml"


@pytest.fixture
def images(world: tuple[Path, Path], tmp_path: Path) -> list[Image]:
    """One place of each kind: p1 trained on, p2 for validation, p4 for test."""
    listing, root = world
    entries = yaml.safe_load(listing.read_text())["sources"]
    again = next(e for e in entries if e["name"] == "s2_2") | {"name": "s2_4", "place": "p4", "test": True}
    (tmp_path / "l.yaml").write_text(yaml.safe_dump({"sources": [*entries, again]}))
    return load_images(tmp_path / "l.yaml", root)


def test_neither_training_nor_choosing_sees_a_test_place(images: list[Image]) -> None:
    assert "p4" in {i.place for i in images}
    assert "p4" not in {i.place for i in Sampler(images).images}
    assert {p.ground for p in held_out_places(images)} == {"p2"}
    assert {p.ground for p in held_out_places(images, test=True)} == {"p4"}


def test_a_study_is_of_one_kind_of_places(images: list[Image]) -> None:
    vae = load_weights("nano")
    for test, place in ((False, "p2"), (True, "p4")):
        groups = Study("nano", vae, images, Settings(test=test)).groups()
        assert groups and {ground for group in groups for ground in group.grounds} == {place}
    left = [i for i in images if not i.test]
    with pytest.raises(ValueError, match=r"no place is a test place .* test: true as well as held_out: true"):
        Study("nano", vae, left, Settings(test=True)).run()


@pytest.mark.slow
@pytest.mark.timeout(900)  # it scores three times: 300 s are not enough for a machine that is busy otherwise
def test_weights_carry_test_figures_once_they_are_asked_for(images: list[Image], tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    validation, test = (Evaluator.build(images, test=kind) for kind in (False, True))
    assert "test" not in measure("nano", out, validation, images)
    found = measure(out, out, validation, images, test=test)
    assert set(found["test"]) == {"s2_4 S2L2A 12", "s2_4 RGBN 4", "s2_4 S2RGB 3"}
    assert set(found["held_out"]) == {"s2_2 S2L2A 12", "s2_2 RGBN 4", "s2_2 S2RGB 3"}
    meta = load_weights(str(out)).meta
    assert meta is not None and set(meta.metrics["test"]) == set(found["test"])  # type: ignore[call-overload]
    # Measured again without them, the weights say nothing of an older opening.
    assert "test" not in measure(out, out, validation, images)


def test_the_listing_of_nano_keeps_a_test_place_for_each_kind_of_sensor() -> None:
    sources = read_listing(LISTING)
    kinds = {
        "training": {s.place for s in sources if not s.held_out},
        "validation": {s.place for s in sources if s.held_out and not s.test},
        "test": {s.place for s in sources if s.test},
    }
    assert kinds["test"] == {"terramesh_38D_", "29SND_56_35", "32TQM"}
    assert not kinds["training"] & (kinds["validation"] | kinds["test"]) and not kinds["validation"] & kinds["test"]
    assert {s.sensor for s in sources if s.test} == {"S2L2A", "S2L1C", "S1RTC"}
