"""Receipts, plans, metadata and weights that claim absurd things: one line each, and no memory for it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from eocube.errors import StoreError
from eocube.net.objects import MAX_OBJECT, Objects
from eocube.plan.plan import Plan
from eocube.store.commit_log import CommitLog, segment_key
from eocube.store.existing import read_root
from eocube.store.receipts import MAX_WINDOWS, Receipt, State, WindowResult, with_check
from model.eo_vae import EOVAE, EOVAEConfig
from model.weights import SensorMeta, WeightsError, WeightsMeta, load_weights, save_weights
from model.weights_source import config_from_yaml

TINY = EOVAEConfig(
    ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, norm_groups=8, hypernet_layers=1, wavelength_dim=32,
    hypernet_ff=32, hypernet_heads=2,
)  # fmt: skip


def document() -> dict[str, Any]:
    window = WindowResult(0, 0, State.OK, valid_percent=100)
    found: dict[str, Any] = json.loads(Receipt("t00000/r0000/c0000", 0, (0, 0), (window,)).to_json())
    found.pop("crc32")
    return found


@pytest.mark.parametrize(
    "change",
    [{"time": 10**12}, {"time": -1}, {"shard": [2**31, 0]}, {"shard": [0, 10**400]}, {"bytes_in": math.inf},
     {"seconds": 10**400}, {"windows": {k: [0] * (MAX_WINDOWS + 1) for k in document()["windows"]}}],
    ids=str,
)  # fmt: skip
def test_a_receipt_of_absurd_numbers_is_none(change: dict[str, Any], tmp_path: Path) -> None:
    body = json.dumps({**document(), **change}, separators=(",", ":"))
    from zlib import crc32

    line = f'{body[:-1]},"crc32":"{crc32(body.encode()):08x}"}}'
    with pytest.raises(ValueError, match="not a receipt"):
        Receipt.from_json(line)
    target = Objects(tmp_path / "cube.zarr")
    target.put(segment_key(0), f"{line}\n{with_check(document())}\n".encode())
    if "time" in change or "shard" in change:  # what finding the last receipts looks at
        with pytest.raises(StoreError, match="line 1 is damaged") as caught:
            CommitLog(target).latest()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "5", "[]", "{}", '{"encoding": 5}', "[" * 100_000, '{"sensor": ' + "9" * 5000 + "}",
     '{"encoding": {"quantisation": 5}}', '{"encoding": {"quantisation": null}, "sensor": null}'],
)  # fmt: skip
def test_a_plan_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(StoreError, match=r"plan \(commits/plan.json\) is damaged") as caught:
        Plan.from_json(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_metadata_nested_without_end_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"attributes": ' + '{"a": ' * 100_000)
    with pytest.raises(StoreError, match="not those of an eocube store"):
        read_root(Objects(tmp_path))


@pytest.mark.parametrize("key", ["zarr.json", "commits/plan.json", "commits/00000000.jsonl"])
def test_an_object_of_absurd_size_is_not_read(key: str, tmp_path: Path) -> None:
    path = tmp_path / key
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(MAX_OBJECT + 1)  # sparse: it takes no room
    with pytest.raises(StoreError, match="more than any object of a store") as caught:
        Objects(tmp_path).get(key)
    assert "\n" not in str(caught.value)


SENSOR = SensorMeta(("B04",), (0.665,), (0.1,), (0.2,), "reflectance*1e4", True, "test")


def header(**changes: Any) -> dict[str, str]:
    meta = WeightsMeta("tiny", TINY, {"S2": SENSOR}, "none", "none", "today").to_header()
    return {**meta, **{key: value if isinstance(value, str) else json.dumps(value) for key, value in changes.items()}}


@pytest.mark.parametrize(
    ("name", "value"),
    [("std", math.nan), ("std", 0.0), ("std", math.inf), ("std", -1.0), ("std", 1e-320), ("std", 10**400),
     ("mean", math.nan), ("mean", -math.inf), ("wavelengths", 0.0), ("wavelengths", math.nan), ("std", None)],
)  # fmt: skip
def test_statistics_that_are_no_numbers_are_one_line(name: str, value: Any) -> None:
    sensors = json.loads(header()["sensors"])
    sensors["S2"][name] = [value]
    with pytest.raises(WeightsError, match="damaged metadata") as caught:
        WeightsMeta.from_header(header(sensors=sensors))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "change",
    [{"ch": 10**9}, {"num_res_blocks": 10**9}, {"ch_mult": [1] * 1000}, {"ch_mult": [10**9]}, {"hypernet_ff": 10**12},
     {"hypernet_layers": 10**6}, {"z_channels": 10**15}],
    ids=str,
)  # fmt: skip
def test_a_network_of_absurd_size_is_not_made(change: dict[str, Any]) -> None:
    with pytest.raises(WeightsError, match=r"damaged metadata \(.*more than any network has"):
        WeightsMeta.from_header(header(config={**TINY.to_dict(), **change}))
    with pytest.raises(ValueError, match="more than any network has"):
        EOVAEConfig.from_dict({**TINY.to_dict(), **change})


def test_metadata_of_weights_nested_without_end_are_one_line() -> None:
    with pytest.raises(WeightsError, match="damaged metadata"):
        WeightsMeta.from_header(header(metrics="[" * 100_000))


def test_ordinary_weights_still_load(tmp_path: Path) -> None:
    meta = WeightsMeta("tiny", TINY, {"S2": SENSOR}, "none", "none", "today")
    save_weights(EOVAE(TINY), tmp_path / "tiny.safetensors", meta)
    assert load_weights(tmp_path / "tiny.safetensors").meta == meta


def test_a_weights_file_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(20 * 2**30)
    with pytest.raises(WeightsError, match="has 20 GiB, more than the 16"):
        load_weights(path)


def test_a_checkpoint_whose_members_are_packed_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", b"\0" * 10_000_000)
    with pytest.raises(WeightsError, match="its members are packed"):
        load_weights(path)
    whole = tmp_path / "whole.ckpt"
    torch.save({"state_dict": {"x": torch.zeros(3)}}, whole)
    with pytest.raises(WeightsError, match="no key of an EO-VAE"):
        load_weights(whole)


def test_a_configuration_whose_aliases_multiply_is_looked_through_once(tmp_path: Path) -> None:
    path = tmp_path / "model_config.yaml"
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    path.write_text("\n".join(lines))
    assert config_from_yaml(path) is None
    for text in ("[" * 100_000, "a: 2020-99-99", "x: " + "9" * 5000, "a" * (2**20 + 1)):
        path.write_text(text)
        with pytest.raises(WeightsError, match="no configuration of a network") as caught:
            config_from_yaml(path)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_absurd_header_of_safetensors_takes_no_memory(tmp_path: Path) -> None:
    """A header that claims a tensor of 4 TB, and one of 80 GB of itself, read with 2 GB of memory allowed."""
    claims = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "tensor.safetensors").write_bytes(len(claims).to_bytes(8, "little") + claims)
    (tmp_path / "header.safetensors").write_bytes((80 * 2**30).to_bytes(8, "little") + b"{}")
    code = (
        "import resource, sys; from model.weights import WeightsError, load_weights\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30,) * 2)\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_weights(path)\n"
        "    except WeightsError as error: print('one line:', error)\n"
    )
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("tensor", "header")]
    said = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True).stdout
    assert said.count("one line:") == 2 and said.count("\n") == 2
