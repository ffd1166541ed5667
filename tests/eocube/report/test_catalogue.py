"""A STAC collection of cubes: valid by the schemas, found again by place and time."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pystac
import pytest
import rasterio
from pystac.validation.local_validator import get_local_schema_cache
from rasterio.transform import from_origin
from referencing import Registry, Resource

import eocube
from eocube.cli import main
from eocube.errors import InputError
from eocube.report.catalogue import write_catalogue
from eocube.store.receipts import State
from tests.eocube.cubes import BBOX, TIMES, Made, make_plan, make_store, make_weights

SCHEMAS = Path(__file__).parents[2] / "data" / "stac"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Three times, no window of the last of which was read."""
    folder = tmp_path_factory.mktemp("catalogue")
    plan = make_plan(make_weights(folder / "tiny.safetensors"), times=(*TIMES, "2023-09-01T09:57:57Z"))
    rows, cols = plan.grid.windows_shape
    bad = {(2, r, c): State.READ_FAILED for r in range(rows) for c in range(cols)}
    return make_store(str(folder / "munich.zarr"), plan, bad)


def valid_by_every_schema(document: dict[str, Any]) -> None:
    """jsonschema's own error where a document is not what STAC and its extensions, kept in tests/data/stac, want."""
    kept = [json.loads(path.read_text()) for path in SCHEMAS.glob("*.json")]
    ours = {schema["$id"].rstrip("#"): schema for schema in kept}
    known = {
        **get_local_schema_cache(),
        **ours,
        "https://proj.org/schemas/v0.7/projjson.schema.json": {"type": "object"},
    }
    registry: Any = Registry().with_resources(
        (uri, Resource.from_contents(schema, default_specification=referencing_draft7()))
        for uri, schema in known.items()
    )
    kind = "collection" if document["type"] == "Collection" else "item"
    core = next(uri for uri in known if uri.endswith(f"v1.1.0/{kind}-spec/json-schema/{kind}.json"))
    for uri in (core, *document.get("stac_extensions", ())):
        jsonschema.Draft7Validator(known[uri], registry=registry).validate(document)


def referencing_draft7() -> Any:
    from referencing.jsonschema import DRAFT7

    return DRAFT7


def test_a_collection_is_valid_and_its_cubes_are_found(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stac", made.url, "--out", str(tmp_path / "c"), "--id", "test"]) == 0
    assert "2 Items of 1 cubes" in capsys.readouterr().out
    collection = pystac.Collection.from_file(str(tmp_path / "c" / "collection.json"))
    valid_by_every_schema(collection.to_dict())
    assert collection.summaries.to_dict()["eocube:weights"] == ["tiny"]
    items = sorted(collection.get_items(), key=lambda item: item.id)
    assert [item.id for item in items] == ["munich_20230815T095757Z", "munich_20230820T095757Z"]
    for item in items:
        valid_by_every_schema(item.to_dict())
        west, south, east, north = item.bbox
        assert west <= BBOX[0] and south <= BBOX[1] and east >= BBOX[2] and north >= BBOX[3]
        assert not item.assets["cube"].href.startswith("/")
    broken = items[0].to_dict()
    broken["properties"]["proj:shape"] = "wide"
    with pytest.raises(jsonschema.ValidationError):
        valid_by_every_schema(broken)
    both = eocube.open_collection(str(tmp_path / "c"))
    assert len(both) == 1 and both[0].sizes["time"] == 2
    (one,) = eocube.open_collection(str(tmp_path / "c"), bbox=BBOX, datetime="2023-08-20")
    assert one.sizes["time"] == 1 and one.eocube.space_id == made.plan.space_id
    for missed in ({"bbox": (0, 0, 1, 1)}, {"datetime": "2020"}):
        with pytest.raises(InputError, match="none of its Items fits"):
            eocube.open_collection(str(tmp_path / "c"), **missed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no STAC collection"):
        eocube.open_collection(str(tmp_path / "nothing"))


def test_what_cannot_be_catalogued_is_said(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, said in (
        ([made.url, made.url, "--out", str(tmp_path / "c")], "two cubes have the Item munich_"),
        ([made.url, "--out", "s3://bucket/c"], "a folder of this machine"),
    ):
        assert main(["stac", *argv]) == 2
        assert said in capsys.readouterr().err


def test_the_pystac_example_of_the_docs_makes_an_item_that_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[3] / "docs" / "howto" / "catalogues.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "import datetime" in block]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    for name in ("B02", "B03", "B04", "B08", "SCL"):
        pixels = np.full((256, 256), 4 if name == "SCL" else 1500, "uint8" if name == "SCL" else "uint16")
        profile = {"driver": "GTiff", "width": 256, "height": 256, "count": 1, "dtype": pixels.dtype, "nodata": 0,
                   "crs": "EPSG:32633", "transform": from_origin(520000, 5130000, 10, 10), "tiled": True}  # fmt: skip
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as file:
            file.write(pixels, 1)
    words = ["--bbox", "15.27,46.29,15.28,46.30", "--datetime", "2023-08-15", "--catalog", "item.json"]
    assert main(["plan", *words, "--bands", "B02,B03,B04,B08", "--json"]) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert plan["scenes"] == 1 and plan["windows"] >= 1


def test_items_as_rows_of_geoparquet(made: Made, tmp_path: Path) -> None:
    pytest.importorskip("stac_geoparquet", reason="stac-geoparquet is not installed: pip install eocube[stac]")
    import pyarrow.parquet as pq
    from stac_geoparquet.arrow import stac_table_to_items

    write_catalogue([made.url], str(tmp_path / "catalogue"), geoparquet=True)
    table = pq.read_table(tmp_path / "catalogue" / "items.parquet")
    collection = pystac.Collection.from_file(str(tmp_path / "catalogue" / "collection.json"))
    items = {item.id: item for item in collection.get_items()}
    assert set(table["id"].to_pylist()) == set(items) and b"geo" in table.schema.metadata
    for found in stac_table_to_items(table):
        valid_by_every_schema(found)
        ours = items[found["id"]]
        assert found["properties"]["eocube:space_id"] == ours.properties["eocube:space_id"]
        assert found["assets"]["cube"]["href"] == made.url


def test_geoparquet_without_its_library_is_said(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "stac_geoparquet", None)
    monkeypatch.setitem(sys.modules, "stac_geoparquet.arrow", None)
    with pytest.raises(InputError, match=r"eocube\[stac\]"):
        write_catalogue([made.url], str(tmp_path / "catalogue"), geoparquet=True)
