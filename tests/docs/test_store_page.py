"""The store's specification is enough to read a cube: by zarr-python and JSON alone, with nothing of eocube."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "store.md"


def digest(document: Any) -> str:
    """As the page says it."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def receipts(cube: Path) -> dict[tuple[int, int, int], dict[str, Any]]:
    """The receipts that count, by time and shard: the page's rules on checks, terms and order."""
    found: dict[tuple[int, int, int], dict[str, Any]] = {}
    begun = 0
    for segment in sorted((cube / "commits").glob("[0-9]*.jsonl")):
        for line in segment.read_text().splitlines():
            body, mark, check = line.rpartition(',"crc32":"')
            assert mark and check == f'{zlib.crc32((body + "}").encode()):08x}"}}', "a line's check"
            document = json.loads(line)
            if "begins" in document:
                begun = max(begun, document["begins"])
            elif document.get("term", begun) >= begun:
                found[(document["time"], *document["shard"])] = document
    return found


def values(root: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(time, channel, y, x) float32, NaN where there is none, by the page's table of storages."""
    about, stored = root.attrs["eocube"], root["latent"][...]
    if about["storage"] == "fp16":
        return np.asarray(stored, np.float32)
    scale, offset = (np.asarray(root[name][...], np.float32)[:, None, None] for name in ("scale", "offset"))
    assert about["quantisation"] == {name: root[name][...].tolist() for name in ("scale", "offset")}
    none = {"codes": -32768, "int8": -128}[about["storage"]]
    return np.where(stored == none, np.float32("nan"), stored.astype(np.float32) * scale + offset)


def check(cube: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Everything that the page promises of a whole cube; its values."""
    root: Any = zarr.open_group(str(cube), mode="r")
    about = root.attrs["eocube"]
    space, grid = about["space"], about["grid"]
    assert about["space_id"] == digest(space)
    signed = {k: v for k, v in about.items() if k not in ("digest", "moments", "histogram", "seams")}
    assert about["digest"] == digest(signed)

    read = values(root)
    core, status = grid["core"], root["status"][...]
    ok = np.repeat(np.repeat(status == 1, core, 1), core, 2)
    assert (np.isfinite(read).all(axis=1) == ok).all() and np.isnan(read).all(axis=1)[~ok].all()
    known = read.transpose(1, 0, 2, 3).reshape(read.shape[1], -1).astype(np.float64)
    known = known[:, np.isfinite(known).all(axis=0)]
    assert about["moments"]["count"] == known.shape[1]
    np.testing.assert_allclose(about["moments"]["mean"], known.mean(axis=1), atol=0.02)

    a, b, c, d, e, f = root.attrs["spatial:transform"]
    assert (b, d) == (0, 0) and a == -e == grid["resolution"] * grid["stride"]
    np.testing.assert_array_equal(root["x"][...], c + a * (np.arange(grid["shape"][1]) + 0.5))
    np.testing.assert_array_equal(root["y"][...], f + e * (np.arange(grid["shape"][0]) + 0.5))
    np.testing.assert_array_equal(root["wx"][...], c + a * core * (np.arange(status.shape[2]) + 0.5))
    row0, col0, row1, col1 = about["extent"]
    asked = np.zeros(status.shape[1:], np.uint8)
    asked[row0 // core : row1 // core, col0 // core : col1 // core] = 1
    np.testing.assert_array_equal(root["requested"][...], asked)

    valid, missing = root["valid"][...], root["missing"][...]
    bits = np.unpackbits(missing, axis=-1).sum(axis=-1)
    assert missing.shape[-1] == 8 and ((bits == 0) == (valid == 100))[ok].all() and (valid[~ok] == 0).all()
    assert all(name in root for name in root.attrs["coordinates"].split())

    counted = receipts(cube)
    made = np.zeros_like(status)
    for (time, row, col), receipt in counted.items():
        windows = receipt["windows"]
        made[time, windows["row"], windows["col"]] = windows["state"]
        for place, packed in windows.get("missing", {}).items():
            wy, wx = (int(windows[name][int(place)]) * core for name in ("row", "col"))
            held = np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.uint8).reshape(core, core, 8)
            np.testing.assert_array_equal(missing[time, wy : wy + core, wx : wx + core], held)
        shard = cube / "latent" / "c" / str(time) / "0" / str(row) / str(col)
        data = shard.read_bytes() if shard.exists() else None
        assert receipt["sha256"] == (None if data is None else hashlib.sha256(data).hexdigest())
    inside = root["requested"][...] == 1
    np.testing.assert_array_equal(made[:, inside], status[:, inside])
    assert (status[:, ~inside] == 4).all()

    layout = json.loads((cube / "commits" / "layout.json").read_text())
    for key, sha in layout["sha256"].items():
        assert hashlib.sha256((cube / key).read_bytes()).hexdigest() == sha, key
    sealed = json.loads((cube / "commits" / "segments.json").read_text())["segments"]
    assert sealed == {key: f"{zlib.crc32((cube / key).read_bytes()):08x}" for key in sealed}
    return read


def table(heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading of the page."""
    text = PAGE.read_text().split(f"\n{heading}\n", 1)[1]
    rows = text[text.index("|---") :].split("\n\n")[0].splitlines()[1:]
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows]


@pytest.fixture(scope="module")
def cubes(demo_catalog: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A cube a storage, over the edge of the demo's swath."""
    from eocube.cli import main

    folder = tmp_path_factory.mktemp("cubes")
    made = []
    for storage in ("codes", "fp16"):
        out = folder / f"{storage}.zarr"
        words = ["--bbox", "9.0924,48.6243,9.1444,48.6494", "--datetime", "2024-05-01/2024-08-31", "--quiet"]
        assert main(["encode", *words, "--catalog", str(demo_catalog), "--storage", storage, "--out", str(out)]) == 0
        made.append(out)
    return made


@pytest.mark.slow
def test_a_cube_reads_by_the_page_alone(cubes: list[Path]) -> None:
    import eocube

    for cube in cubes:
        np.testing.assert_array_equal(check(cube), eocube.open(str(cube)).eocube.latents().values)


@pytest.mark.slow
def test_the_page_names_every_array_with_its_form(cubes: list[Path]) -> None:
    root: Any = zarr.open_group(str(cubes[0]), mode="r")
    listed: dict[str, tuple[tuple[str, ...], str]] = {}
    for names, dims, form, _ in table("## Arrays"):
        for name in re.findall(r"`(\w+)`", names):
            here = () if dims == "none" else tuple(dims.replace(f"{name}, {name}", name).split(", "))
            listed[name] = (here, form)
    listed |= {name: ((name,), "float64") for name in ("y", "x", "wy", "wx")}
    assert listed.keys() == set(root.array_keys())
    for name, (dims, form) in listed.items():
        metadata = root[name].metadata
        assert (metadata.dimension_names or ()) == dims, name
        kind, _, fill = form.partition(", ")
        if name == "latent":
            kind, fill = "int16", "-32768"
        written = json.loads((cubes[0] / name / "zarr.json").read_text())
        assert written["data_type"] == kind, name
        assert not fill or str(written["fill_value"]) == fill, name


@pytest.mark.slow
def test_the_page_names_every_attribute(cubes: list[Path]) -> None:
    root: Any = zarr.open_group(str(cubes[0]), mode="r")
    for heading, found in (
        ("## The root", set(root.attrs)),
        ("## The attribute `eocube`", set(root.attrs["eocube"])),
        ("## The commit log", set()),
    ):
        named = {name for row in table(heading) for name in re.findall(r"`([\w:]+)`", row[0])}
        assert found <= named, heading
    text = PAGE.read_text()
    for receipt in receipts(cubes[0]).values():
        for key in (*receipt, *receipt["windows"]):
            assert f"`{key}`" in text, key
    for key in root.attrs["eocube"]["space"]:
        assert f"`{key}`" in text, key
    files = {path.relative_to(cubes[0]).parts[0] for path in cubes[0].rglob("*") if path.is_file()}
    assert files - set(root.array_keys()) == {"zarr.json", "stac.json", "commits"}
