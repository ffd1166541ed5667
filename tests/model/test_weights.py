"""Weights: every layout that is read, everything that is refused by name, the round trip and its hash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model import weights_source
from model.eo_vae import EOVAE, EOVAEConfig
from model.layouts import STATIC_ENDS, from_diffusers, is_dynamic
from model.weights import SensorMeta, WeightsError, WeightsMeta, load_weights, published_meta, save_weights
from tests.model.golden import layouts

State = dict[str, Tensor]


def meta_of(vae: EOVAE) -> WeightsMeta:
    radar = SensorMeta(("VV", "VH"), (5.4, 5.6), (-10.8, -17.2), (4.3, 4.3), "dB", True, "a test")
    return WeightsMeta("test", vae.config, {"S1RTC": radar}, "none", "Apache-2.0", "2026-11-21", {"psnr_floor": 30.5})


def flux_state(vae: EOVAE) -> State:
    """The network's body as FLUX.2's own file holds it: with a static first and last convolution."""
    ch = vae.config.ch
    state = {key: tensor.clone() for key, tensor in vae.state_dict().items() if not is_dynamic(key)}
    shapes = ((ch, 3, 3, 3), (ch,), (3, ch, 3, 3), (3,))
    return state | {key: torch.rand(shape) for key, shape in zip(STATIC_ENDS, shapes, strict=True)}


def to_diffusers(state: State, levels: int) -> State:
    """FLUX.2's original names to those of diffusers' AutoencoderKLFlux2, part by part."""
    parts = {
        "down": "down_blocks", "up": "up_blocks", "block": "resnets", "downsample": "downsamplers.0",
        "upsample": "upsamplers.0", "nin_shortcut": "conv_shortcut", "norm_out": "conv_norm_out", "mid": "mid_block",
        "block_1": "resnets.0", "block_2": "resnets.1", "attn_1": "attentions.0", "q": "to_q", "k": "to_k",
        "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm",
    }  # fmt: skip
    renamed: State = {}
    for key, tensor in state.items():
        names = key.split(".")
        if names[1] in ("quant_conv", "post_quant_conv"):
            names = names[1:]
        elif names[1] == "up":
            names[2] = str(levels - 1 - int(names[2]))
        linear = len(names) > 3 and names[3] in ("q", "k", "v", "proj_out") and tensor.ndim == 4
        renamed[".".join(parts.get(name, name) for name in names)] = tensor[:, :, 0, 0] if linear else tensor
    return renamed


def same(vae: EOVAE, state: State) -> bool:
    return all(torch.equal(vae.state_dict()[key], tensor) for key, tensor in state.items())


# -- our own files


def test_round_trip_keeps_tensors_and_metadata(small_vae: EOVAE, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    meta = meta_of(small_vae)
    save_weights(small_vae, path, meta)
    loaded = load_weights(path)
    assert same(loaded, small_vae.state_dict())
    assert loaded.meta == meta and loaded.config == small_vae.config and not loaded.training
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    with safe_open(path, "pt") as file:
        header = {key: json.loads(value) for key, value in file.metadata().items()}
    assert header["sensors"]["S1RTC"]["wavelengths"] == [5.4, 5.6]


def test_a_url_is_read_like_a_file_and_named_in_what_is_wrong_with_it(small_vae: EOVAE, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    save_weights(small_vae, tmp_path / "a.safetensors", meta_of(small_vae))
    fs.pipe("/w/a.safetensors", (tmp_path / "a.safetensors").read_bytes())
    fs.pipe("/w/short.safetensors", (tmp_path / "a.safetensors").read_bytes()[:1000])
    loaded = load_weights("memory://w/a.safetensors")
    assert same(loaded, small_vae.state_dict()) and loaded.meta is not None
    assert loaded.meta.sha256 == load_weights(tmp_path / "a.safetensors").meta.sha256  # type: ignore[union-attr]
    for url, said in (
        ("memory://w/short.safetensors", "^memory://w/short.safetensors: truncated"),
        ("memory://w/none.safetensors", "^no such weights file: memory://w/none.safetensors$"),
        ("memory://w", "memory://w"),
        ("nowhere://w/a", "^nowhere://w/a: cannot be fetched"),
        ("nowhere://b/w?X-Amz-Signature=secret", "^((?!secret).)*$"),
    ):
        with pytest.raises(WeightsError, match=said):
            load_weights(url)


def test_fp16_keeps_the_statistics_in_fp32_and_loads_as_fp32(small_vae: EOVAE, tmp_path: Path) -> None:
    assert small_vae.bn.running_var is not None
    small_vae.bn.running_var[0] = 1e6
    save_weights(small_vae, tmp_path / "a.safetensors", meta_of(small_vae), torch.float16)
    stored = load_file(tmp_path / "a.safetensors")
    assert stored["encoder.conv_out.weight"].dtype == torch.float16
    ends = {key: value.dtype for key, value in stored.items() if "conv_in." in key and key.startswith("encoder.")}
    assert ends and set(ends.values()) == {torch.float32}  # the generators do not stand rounding
    loaded = load_weights(tmp_path / "a.safetensors").state_dict()
    assert loaded["bn.running_var"][0] == 1e6
    assert {t.dtype for t in loaded.values() if t.is_floating_point()} == {torch.float32}
    for key, tensor in small_vae.state_dict().items():
        torch.testing.assert_close(loaded[key], tensor, rtol=1e-3, atol=1e-6)


def test_the_hash_follows_what_decides_a_latent_and_nothing_else(small_vae: EOVAE, tmp_path: Path) -> None:
    meta = meta_of(small_vae)

    def hash_of(vae: EOVAE, meta: WeightsMeta, dtype: torch.dtype = torch.float32) -> str:
        path = tmp_path / "h.safetensors"
        save_weights(vae, path, meta, dtype)
        loaded = load_weights(path)
        assert loaded.meta is not None and len(loaded.meta.sha256) == 64
        return loaded.meta.sha256

    base = hash_of(small_vae, meta)
    assert hash_of(small_vae, replace(meta, name="other", created="later", metrics={})) == base
    half = hash_of(small_vae, meta, torch.float16)
    assert half != base
    assert hash_of(load_weights(tmp_path / "h.safetensors"), meta, torch.float32) == half
    moved = {"S1RTC": replace(meta.sensors["S1RTC"], wavelengths=(5.5, 5.6))}
    assert hash_of(small_vae, replace(meta, sensors=moved)) != base
    with torch.no_grad():
        next(small_vae.parameters()).view(-1)[0] += 1e-3
    assert hash_of(small_vae, meta) != base


def test_saving_refuses_what_would_not_come_back(small_vae: EOVAE, tmp_path: Path) -> None:
    meta, path = meta_of(small_vae), tmp_path / "a.safetensors"
    with pytest.raises(WeightsError, match="bfloat16"):
        save_weights(small_vae, path, meta, torch.bfloat16)
    with pytest.raises(WeightsError, match="the network is"):
        save_weights(small_vae, path, replace(meta, config=EOVAEConfig()))
    with torch.no_grad():
        small_vae.encoder.conv_out.weight[0, 0, 0, 0] = 1e5
    with pytest.raises(WeightsError, match=r"encoder\.conv_out\.weight is not finite"):
        save_weights(small_vae, path, meta, torch.float16)
    assert not list(tmp_path.iterdir())


def test_damaged_metadata_names_the_file(small_vae: EOVAE, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = meta_of(small_vae).to_header() | {"config": '{"chh": 1}'}
    save_file(small_vae.state_dict(), path, metadata=header)
    with pytest.raises(WeightsError, match=r"a\.safetensors: damaged metadata .*chh"):
        load_weights(path)


def test_metadata_contradicting_the_asked_configuration_is_refused(small_vae: EOVAE, tmp_path: Path) -> None:
    save_weights(small_vae, tmp_path / "a.safetensors", meta_of(small_vae))
    with pytest.raises(WeightsError, match="leave `config` out"):
        load_weights(tmp_path / "a.safetensors", config=EOVAEConfig())


def test_sensor_entries_must_be_of_one_length() -> None:
    with pytest.raises(ValueError, match="mean has 1 entries for 2 bands"):
        SensorMeta(("VV", "VH"), (5.4, 5.6), (0.0,), (1.0, 1.0), "dB", True, "")


# -- foreign layouts


@pytest.mark.parametrize("prefix", ["", "model.", "vae.", "model.net.", "_orig_mod."])
def test_lightning_checkpoint_with_any_common_prefix(small_vae: EOVAE, tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "eo-vae.ckpt"
    state = {prefix + key: tensor for key, tensor in small_vae.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "optimizer_states": [{"lr": 1e-4}]}, path)
    loaded = load_weights(path, config=small_vae.config)
    assert same(loaded, small_vae.state_dict())
    assert loaded.meta == published_meta(small_vae.config) and loaded.meta.sha256


def test_published_metadata_keep_the_misordered_wavelengths() -> None:
    optical = published_meta().sensors["S2L2A"]
    assert dict(zip(optical.bands, optical.wavelengths, strict=True)) == {
        "B01": 0.443, "B02": 0.490, "B03": 0.560, "B04": 0.665, "B05": 0.705, "B06": 0.740, "B07": 0.783,
        "B08": 0.842, "B8A": 0.865, "B09": 1.610, "B11": 2.190, "B12": 0.945,
    }  # fmt: skip
    assert set(published_meta().sensors) == {"S2L2A", "S2L1C", "S1RTC", "S2RGB"}
    assert optical.mean[9] == 3169.651 and len(published_meta().sensors["S2L1C"].mean) == 13


def test_a_checkpoint_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return (Path(tmp_path / "sprung").write_text, ("",))

    torch.save({"state_dict": Trap()}, tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match="tensors only"):
        load_weights(tmp_path / "a.ckpt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_flux_gives_its_body_and_leaves_the_generated_convolutions(
    small_vae: EOVAE, tmp_path: Path, layout: str
) -> None:
    state = flux_state(small_vae)
    if layout == "diffusers":
        state = to_diffusers(state, len(small_vae.config.ch_mult))
        assert "decoder.up_blocks.0.resnets.1.conv1.weight" in state
        assert state["encoder.mid_block.attentions.0.to_out.0.weight"].ndim == 2
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "ae.safetensors")
    loaded = load_weights(tmp_path / "ae.safetensors", config=small_vae.config)
    body = {key: tensor for key, tensor in small_vae.state_dict().items() if not is_dynamic(key)}
    assert same(loaded, body) and loaded.meta is None
    tokens = loaded.encoder.conv_in.weight_generator.weight_tokens
    assert torch.isfinite(tokens).all() and not torch.equal(
        tokens, small_vae.encoder.conv_in.weight_generator.weight_tokens
    )


def test_full_size_flux_drops_four_keys_and_leaves_the_116_generated_ones() -> None:
    flux, ours = layouts()["flux2_ae"], layouts()["eo_vae"]
    dropped, missing = set(flux) - set(ours), set(ours) - set(flux)
    assert dropped == set(STATIC_ENDS)
    assert len(missing) == 116 and all(is_dynamic(key) for key in missing)
    assert all(flux[key] == ours[key] for key in set(flux) & set(ours))
    meta_tensors = {key: torch.empty(shape, device="meta") for key, shape in flux.items()}
    back = from_diffusers(to_diffusers(meta_tensors, 4), 4)
    assert {key: list(tensor.shape) for key, tensor in back.items()} == flux


def test_flux_without_one_of_its_four_ends_is_refused(small_vae: EOVAE, tmp_path: Path) -> None:
    state = flux_state(small_vae)
    del state["decoder.conv_out.bias"]
    save_file(state, tmp_path / "ae.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing: decoder\.conv_out\.bias"):
        load_weights(tmp_path / "ae.safetensors", config=small_vae.config)


# -- what does not fit


def drop(state: State) -> None:
    for key in [key for key in state if ".mid." in key][:6]:
        del state[key]


def reshape(state: State) -> None:
    state["bn.running_mean"] = torch.zeros(3)


def add(state: State) -> None:
    state["encoder.extra.weight"] = torch.zeros(1)


def poison(state: State) -> None:
    state["encoder.conv_out.bias"][0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"6 missing: encoder\.mid\.block_1\.norm1\.weight, .* and 2 more"),
        (reshape, r"1 of another shape: bn\.running_mean \(3,\) for \(16,\)"),
        (add, r"1 unexpected: encoder\.extra\.weight"),
        (poison, r"not finite in encoder\.conv_out\.bias"),
    ],
)
@pytest.mark.parametrize("flux", [False, True])
def test_keys_that_do_not_fit_are_named(
    small_vae: EOVAE, tmp_path: Path, change: Callable[[State], None], message: str, flux: bool
) -> None:
    state = flux_state(small_vae) if flux else {k: t.clone() for k, t in small_vae.state_dict().items()}
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=message) as caught:
        load_weights(tmp_path / "w.safetensors", config=small_vae.config)
    assert "\n" not in str(caught.value) and "w.safetensors" in str(caught.value)


def test_another_network_is_refused_whole(tmp_path: Path) -> None:
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match=r"no key of an EO-VAE .*fc\.weight"):
        load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.safetensors", "w.ckpt", "w"])
@pytest.mark.parametrize("content", [b"", b"a line of text\nand one more\n", b"\x00" * 64])
def test_files_that_are_no_weights_get_one_line(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_truncated_files_get_one_line(small_vae: EOVAE, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".ckpt":
        torch.save({"state_dict": small_vae.state_dict()}, path)
    else:
        save_weights(small_vae, path, meta_of(small_vae))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_without_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match="holds no state_dict"):
        load_weights(tmp_path / "a.ckpt")


# -- names


def test_unknown_names_get_the_nearest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(weights_source, "shipped_names", lambda: ("nano", "wide"))
    with pytest.raises(WeightsError, match="no weights named 'nanno': did you mean 'nano'"):
        load_weights("nanno")
    with pytest.raises(WeightsError, match="Shipped are nano, wide"):
        load_weights("something-else-entirely")
    with pytest.raises(WeightsError, match="no such weights file"):
        load_weights(tmp_path / "absent.safetensors")
    with pytest.raises(WeightsError, match="is a folder"):
        load_weights(tmp_path)


class FakeHub:
    """huggingface_hub's two calls over a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.revisions: list[str | None] = []

    def list_repo_files(self, repo: str, *, revision: str | None) -> list[str]:
        if repo != "owner/name":
            raise RuntimeError("404 Client Error\nwith more lines")
        return [path.name for path in self.folder.iterdir()]

    def hf_hub_download(self, repo: str, name: str, *, revision: str | None) -> str:
        self.revisions.append(revision)
        return str(self.folder / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path)
    module = SimpleNamespace(list_repo_files=fake.list_repo_files, hf_hub_download=fake.hf_hub_download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return fake


def test_hub_checkpoint_with_its_configuration_beside_it(small_vae: EOVAE, hub: FakeHub) -> None:
    torch.save({"state_dict": small_vae.state_dict()}, hub.folder / "eo-vae.ckpt")
    sizes = small_vae.config.to_dict() | {"dropout": 0.0}
    (hub.folder / "model_config.yaml").write_text(json.dumps({"model": {"params": [sizes]}}))
    assert same(load_weights("hf://owner/name@v1"), small_vae.state_dict())
    assert hub.revisions == ["v1", "v1"]


def test_hub_prefers_safetensors_and_wants_one_named_among_several(small_vae: EOVAE, hub: FakeHub) -> None:
    torch.save({}, hub.folder / "eo-vae.ckpt")
    save_weights(small_vae, hub.folder / "a.safetensors", meta_of(small_vae))
    loaded = load_weights("hf://owner/name")
    assert loaded.meta is not None and loaded.meta.name == "test"
    save_weights(small_vae, hub.folder / "b.safetensors", meta_of(small_vae))
    with pytest.raises(WeightsError, match=r"name one: hf://owner/name/a\.safetensors"):
        load_weights("hf://owner/name")
    assert same(load_weights("hf://owner/name/b.safetensors"), small_vae.state_dict())


def test_hub_errors_are_one_line(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"hf://owner/other: cannot be fetched \(404 Client Error\)"):
        load_weights("hf://owner/other")
    with pytest.raises(WeightsError, match=r"no \.safetensors or \.ckpt"):
        load_weights("hf://owner/name")
    with pytest.raises(WeightsError, match="write hf://owner/name"):
        load_weights("hf://name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r'pip install "eocube\[hf\]"'):
        load_weights("hf://owner/name")
