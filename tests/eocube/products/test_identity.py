"""A store that says other things of its latents than when it was written is refused at every open, old ones too."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import eocube
from eocube.cli import main
from eocube.errors import StoreError
from eocube.plan.plan import Plan
from eocube.products.identity import digest, refuse_edited, signed
from eocube.run.request import Exit
from eocube.store.document import read_info
from eocube.store.store import CubeStore
from tests.eocube.cubes import Made, make_plan, make_store, make_weights

STORES = Path(__file__).parents[2] / "data" / "stores"
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module", params=["fp16", "int8", "codes"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("identity")
    weights = make_weights(folder / "tiny.safetensors")
    return make_store(str(folder / "cube.zarr"), make_plan(weights, storage=request.param))


def std(document: dict[str, Any]) -> None:
    document["space"]["sensor"]["bands"][0]["std"] *= 2


def name(document: dict[str, Any]) -> None:
    document["space_id"] = "0123456789abcdef"


def extent(document: dict[str, Any]) -> None:
    document["extent"][0] += 1


def plan_hash(document: dict[str, Any]) -> None:
    document["plan_hash"] = "0123456789abcdef"


def weights(document: dict[str, Any]) -> None:
    document["weights"] = "another.safetensors"


def scale(document: dict[str, Any]) -> None:
    document["quantisation"] = {"scale": [0.1] * 4, "offset": [0.0] * 4}


def edited(url: str | Path, folder: Path, edit: Edit) -> Path:
    """A copy of a store with its attribute edited, as a person with an editor would."""
    shutil.copytree(url, folder)
    root = json.loads((folder / "zarr.json").read_text())
    edit(root["attributes"]["eocube"])
    (folder / "zarr.json").write_text(json.dumps(root))
    return folder


@pytest.mark.parametrize("edit", [std, name, extent, plan_hash, weights, scale])
def test_an_edited_store_is_refused_wherever_it_is_opened(made: Made, tmp_path: Path, edit: Edit) -> None:
    url = edited(made.url, tmp_path / "cube.zarr", edit)
    said = r"cube\.zarr: .* was edited or damaged; restore its zarr\.json"
    for opening in (
        lambda: eocube.open(str(url)),
        lambda: eocube.open(str(url), expect_space_id=made.plan.space_id),
        lambda: CubeStore.open(url),
        lambda: CubeStore.create(url, made.plan),
    ):
        with pytest.raises(StoreError, match=said) as refused:
            opening()
        assert "\n" not in str(refused.value)
    assert next(f.path for f in CubeStore.open(url, check=False).verify()) in ("zarr.json", "commits/layout.json")


def test_verify_names_the_edit(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = edited(made.url, tmp_path / "cube.zarr", std)
    assert main(["verify", str(url)]) == Exit.RETRYABLE
    assert "zarr.json: is damaged" in capsys.readouterr().out


def test_a_sound_store_opens_and_says_what_its_id_names(made: Made) -> None:
    ds = eocube.open(made.url, expect_space_id=made.plan.space_id)
    assert digest(ds.attrs["eocube"]["space"]) == ds.eocube.space_id == made.plan.space_id
    text = ds.assign_attrs(eocube=json.dumps(ds.attrs["eocube"]))  # as a netCDF file holds it
    assert text.eocube.info == ds.eocube.info
    document = {**ds.attrs["eocube"], "moments": None, "seams": {"borders": 9}}
    refuse_edited(document, "what follows from the log may change")
    std(document)
    with pytest.raises(StoreError, match="the dataset: what it says of its latent space"):
        read_info(ds.assign_attrs(eocube=document))


def test_a_damaged_document_is_one_line() -> None:
    for document in ({}, {"space": float("nan")}, {"space": {1, 2}}, {"space": {}, "space_id": None}):
        with pytest.raises(StoreError, match=r"restore its zarr\.json"):
            refuse_edited(document, "cube.zarr")
    with pytest.raises(StoreError, match="damaged"):
        refuse_edited(signed({"space": {}, "space_id": digest({}), "extent": [1]}) | {"extent": [2]}, "cube.zarr")


@pytest.mark.parametrize("name", ["s2l2a-fp16", "s1rtc-int8-shifted"])
def test_a_store_of_version_0_1_is_held_to_its_space_id(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(STORES / f"{name}.zip") as packed:
        packed.extractall(tmp_path / "old.zarr")
    assert eocube.open(str(tmp_path / "old.zarr")).eocube.space_id
    url = edited(tmp_path / "old.zarr", tmp_path / "edited.zarr", std)
    for opening in (lambda: eocube.open(str(url)), lambda: CubeStore.open(url)):
        with pytest.raises(StoreError, match="latent space has the digest"):
            opening()


def test_int8_codes_of_version_0_1_are_held_to_their_coordinates_and_plan(tmp_path: Path) -> None:
    with zipfile.ZipFile(STORES / "s1rtc-int8-shifted.zip") as packed:
        packed.extractall(tmp_path / "old.zarr")
    plan = Plan.from_json((tmp_path / "old.zarr" / "commits" / "plan.json").read_text())

    def rescaled(document: dict[str, Any]) -> None:
        document["quantisation"]["scale"][3] *= 2

    url = edited(tmp_path / "old.zarr", tmp_path / "edited.zarr", rescaled)
    with pytest.raises(StoreError, match="the scale of the int8 codes"):
        eocube.open(str(url))
    # The plan beside it is what the run goes by: the same command writes the root anew from it.
    store = CubeStore.create(url, plan)
    store.finalise()
    assert store.document["quantisation"] == plan.document()["quantisation"] and store.verify() == []
    assert eocube.open(str(url)).eocube.space_id == plan.space_id
    assert plan.hash == json.loads((url / "zarr.json").read_text())["attributes"]["eocube"]["plan_hash"]
