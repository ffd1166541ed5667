"""jobs/benchmark.py: its JSON and table, ratios, bad input, and the README's table made from results."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from eocube.store.receipts import State

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"name", "device", "dtype", "windows_per_s", "ratio", "relative_error", "tflops", "peak_memory_gb"}


@pytest.fixture(scope="module")
def job() -> ModuleType:
    """The job's script as a module; loading it makes the repository's `benchmarks` importable."""
    spec = importlib.util.spec_from_file_location("benchmark_job", ROOT / "jobs" / "benchmark.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plain_machine(job: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, no bf16, small matrices: what is left takes seconds."""
    from benchmarks import forward

    monkeypatch.setattr(forward, "has_compiler", lambda: False)
    monkeypatch.setattr(forward, "has_native_bf16", lambda: False)
    monkeypatch.setattr(forward, "MATRIX_SIDE", {"cpu": 64, "cuda": 64})


def run(job: ModuleType, *argv: str) -> int:
    return int(job.main([*argv, "--device", "cpu", "--threads", "1"]))


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_forward_writes_json_and_a_table(
    job: ModuleType, plain_machine: None, half: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "result.json"
    assert run(job, half, "--model", "tiny", "--repeats", "1", "--json", str(path)) == 0
    found = json.loads(path.read_text())
    assert found["model"] == "tiny" and found["reference"] == "eocube's unfused EOVAE"
    assert found["machine"]["threads"] == 1 and found["machine"]["gpu"] is None
    first, ours = found["variants"]
    assert set(first) == set(ours) == KEYS
    assert (first["name"], first["ratio"], first["relative_error"]) == ("reference, eager", 1.0, 0.0)
    assert (ours["name"], ours["dtype"], ours["device"]) == ("eocube", "fp32", "cpu")
    assert ours["ratio"] == pytest.approx(ours["windows_per_s"] / first["windows_per_s"], rel=1e-3)
    assert 0 < ours["relative_error"] <= 1e-5
    gflop = found["settings"]["gflop_per_window"]
    assert first["tflops"] == pytest.approx(first["windows_per_s"] * gflop / 1e3, rel=1e-3)
    assert set(found["not_run"]) == {"fp16", "bf16", "reference, torch.compile"}
    shown = capsys.readouterr().out
    assert f"{half}, tiny" in shown and "reference, eager" in shown and str(tmp_path) not in json.dumps(found)


@pytest.mark.slow
def test_several_threads_are_also_measured_with_a_window_each(
    job: ModuleType, plain_machine: None, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    asked = ["encoder", "--model", "tiny", "--repeats", "1", "--device", "cpu", "--threads", "2", "--json", str(path)]
    before = torch.get_num_threads()
    assert job.main(asked) == 0
    assert torch.get_num_threads() == before
    found = {v["name"]: v for v in json.loads(path.read_text())["variants"]}
    assert list(found) == ["reference, eager", "eocube", "reference, eager, a window a thread",
                           "eocube, a window a thread"]  # fmt: skip
    assert found["reference, eager, a window a thread"]["relative_error"] <= 1e-5
    assert 0 < found["eocube, a window a thread"]["relative_error"] <= 1e-5
    assert all(v["windows_per_s"] > 0 and set(v) == KEYS for v in found.values())


TORCHS = (
    "functorch", "torchgen", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock",
    "fsspec",
)  # fmt: skip
"""What comes with torch: its own, and what it asks for."""


@pytest.mark.parametrize("half", ["encoder", pytest.param("decoder", marks=pytest.mark.slow)])
def test_forward_needs_torch_numpy_and_safetensors_alone(half: str, tmp_path: Path) -> None:
    """By an interpreter without site-packages, on whose path nothing else lies."""
    bare, path = tmp_path / "bare", tmp_path / "result.json"
    bare.mkdir()
    for name in ("torch", "numpy", "safetensors", *TORCHS):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            continue
        place = Path(spec.origin)
        place = place.parent if place.name == "__init__.py" else place
        for part in (place, *place.parent.glob(f"{name}.libs")):
            (bare / part.name).symlink_to(part)
    argv = [half, "--model", "tiny", "--repeats", "1", "--threads", "1", "--device", "cpu", "--no-compile"]
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "jobs" / "benchmark.py"), *argv, "--json", str(path)],
        env={**os.environ, "PYTHONPATH": str(bare)}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {(v["name"], v["dtype"]): v for v in json.loads(path.read_text())["variants"]}
    assert found["eocube", "fp32"]["relative_error"] <= 1e-5 and f"{half}, tiny" in done.stdout


@pytest.mark.parametrize("model", ["nano", "tiny"])
def test_windows_are_as_the_lattice_has_them(job: ModuleType, model: str) -> None:
    from benchmarks.subjects import raw_windows, subject
    from eocube.ground.lattice import Lattice
    from eocube.sensors import get_sensor

    what = subject(model)
    sensor, stride = get_sensor("S2L2A").with_weights(what.vae.meta), what.vae.scale_factor  # type: ignore[arg-type]
    assert [(b.name, b.wavelength, b.gsd, b.mean, b.std) for b in what.sensor.bands] == [
        (b.name, b.wavelength, b.gsd, b.mean, b.std) for b in sensor.bands
    ]
    assert what.sensor.scale == sensor.scale and what.sensor.unit_factor == sensor.unit_factor
    lattice = Lattice(32632, 10, stride, what.window - 2 * what.halo * stride, what.halo * stride, 240 * stride)
    raw = raw_windows(what, 2)
    assert {gsd: tuple(block.shape) for gsd, block in raw.items()} == {
        gsd: (2, len(places), lattice.group_size(gsd), lattice.group_size(gsd))
        for gsd, places in sensor.groups(10).items()
    }
    assert all(block.float().std() > 100 for block in raw.values())


def test_flops_are_those_of_the_specification(job: ModuleType) -> None:
    from benchmarks.forward import count_flops
    from benchmarks.subjects import Subject
    from eocube.sensors import get_sensor
    from model.eo_vae import EOVAE

    with torch.device("meta"):
        vae = EOVAE()
    what = Subject("published", vae, get_sensor("S2L2A"), 256, 4)
    assert count_flops("encoder", what) == pytest.approx(274e9, rel=0.01)
    assert count_flops("decoder", what) == pytest.approx(623e9, rel=0.01)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["speed"], "no command 'speed', there is encoder, decoder, pipeline, race, store"),
        (["encoder", "--model", "nan0"], "no 'nan0', there is published and nano; did you mean nano?"),
        (["encoder", "--repeats", "0"], "--repeats is at least 1, not 0"),
        (["encoder", "--device", "tpu"], "no 'tpu', there is cpu and cuda"),
        (["encoder", "--reference", "."], "no eo_vae/models/model.py in ."),
        (["encoder", "--speed", "1"], "--speed"),
        (["encoder", "--json", "."], "--json: . is a folder; name a file"),
        (["pipeline", "--dates", "0"], "--dates is at least 1, not 0"),
        (["race", "--source", "ftp"], "--source is local or http, not ftp"),
        (["race", "--catalog", "catalog.json"], "--catalog needs --bbox W S E N and --datetime A/B"),
        (["store", "--model", "huge"], "no 'huge', there is published and nano"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    job: ModuleType, argv: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT / "docs")
    try:
        status = job.main(argv)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and words in said and said.count("\n") == 1


def test_a_reference_needs_the_published_size(
    job: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eo_vae" / "models").mkdir(parents=True)
    (tmp_path / "eo_vae" / "models" / "model.py").touch()
    assert run(job, "encoder", "--model", "nano", "--reference", str(tmp_path)) == 2
    assert "use --model published" in capsys.readouterr().err


def test_a_reference_is_imported_from_a_checkout_without_its_packages_own_imports(
    job: ModuleType, tmp_path: Path
) -> None:
    from dataclasses import replace

    from benchmarks.subjects import TINY, reference, subject
    from model.eo_vae import EOVAE

    models = tmp_path / "eo_vae" / "models"
    (models / "modules").mkdir(parents=True)
    for package in (models.parent, models, models / "modules"):
        (package / "__init__.py").write_text("raise RuntimeError('training code')\n")
    (models / "modules" / "distributions.py").write_text(
        "class DiagonalGaussianDistribution:\n"
        "    def __init__(self, moments): self.moments = moments\n"
        "    def mode(self): return self.moments.chunk(2, dim=1)[0]\n"
    )
    (models / "model.py").write_text(
        "from model.eo_vae import Decoder as D, Encoder as E, EOVAEConfig\n"
        "from .modules.distributions import DiagonalGaussianDistribution\n"
        "def cfg(k):\n"
        "    return EOVAEConfig(ch=k['ch'], ch_mult=k['ch_mult'], num_res_blocks=k['num_res_blocks'],\n"
        "        hypernet_layers=k['dynamic_conv_kwargs']['num_layers'],\n"
        "        wavelength_dim=k['dynamic_conv_kwargs']['wv_planes'])\n"
        "def Encoder(in_channels, **k): return E(cfg(k))\n"
        "def Decoder(out_ch, **k): return D(cfg(k))\n"
    )
    small = replace(TINY, ch=32, norm_groups=32, hypernet_ff=2048, hypernet_heads=4)
    what = replace(subject("tiny"), vae=EOVAE(small).eval())
    found = reference(what, torch.device("cpu"), tmp_path)
    assert found.name == "nilsleh/eo-vae"
    x, wavelengths = torch.randn(1, 12, 16, 16), torch.tensor(what.wavelengths)
    with torch.inference_mode():
        z = what.vae.encode(x, wavelengths).mode()
        assert torch.equal(found.encode(x, wavelengths), z)
        assert torch.equal(found.decode(z, wavelengths), what.vae.decode(z, wavelengths))


def test_a_variant_breaches_its_own_limit_only(job: ModuleType) -> None:
    from benchmarks.results import Variant

    def variant(error: float | None, limit: float | None) -> Variant:
        return Variant("eocube", "cpu", "fp32", 1.0, 1.0, error, None, None, limit=limit)

    assert not variant(1e-5, 1e-5).breaches and variant(2e-5, 1e-5).breaches
    assert variant(float("nan"), 1e-5).breaches and not variant(1.0, None).breaches and not variant(None, 1e-5).breaches


def test_too_far_from_the_reference_ends_with_status_1(
    job: ModuleType, plain_machine: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import forward

    monkeypatch.setattr(forward, "LIMITS", {"fp32": 0.0})
    assert run(job, "encoder", "--model", "tiny", "--repeats", "1") == 1
    assert "too far from the reference: eocube fp32" in capsys.readouterr().err


def test_timing_keeps_rounds_and_budget(job: ModuleType) -> None:
    from benchmarks.timing import Timed, interleave, peak_memory

    order: list[str] = []
    ways = [Timed(name, lambda name=name: order.append(name)) for name in "abc"]  # type: ignore[misc]
    interleave(ways, 2, torch.device("cpu"))
    assert order == list("abcbca") and all(len(way.seconds) == 2 for way in ways)
    interleave(ways, 5, torch.device("cpu"), budget=0.0)
    assert all(len(way.seconds) == 3 for way in ways)
    with peak_memory(torch.device("cpu")) as peak:
        held = torch.ones(50_000_000)
        assert float(held.sum()) > 0
    assert peak.gigabytes == pytest.approx(0.2, abs=0.1)


def test_scenes_of_any_number_of_dates(job: ModuleType, demo_catalog: Path, tmp_path: Path) -> None:
    from benchmarks.scenes import scenes
    from eocube.demo.catalogue import DEMO_BBOX
    from eocube.scenes.search import parse_bbox, parse_interval, search
    from eocube.sensors import get_sensor

    folder = Path(shutil.copytree(demo_catalog.parent, tmp_path / "scenes"))
    index, interval = scenes(folder, 5)
    found = search(str(index), get_sensor("S2L2A"), parse_bbox(*DEMO_BBOX)[0], parse_interval(interval))
    assert len({scene.group for scene in found.scenes}) == 5 and len(found.scenes) == 10


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_pipeline_and_store(tmp_path: Path) -> None:
    """Whole runs of the tiny network in processes of their own: they start a Ray and a server."""
    for name in ("pipeline", "store"):
        path = tmp_path / f"{name}.json"
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "benchmark.py"), name, "--model", "tiny", "--quick", "--device", "cpu",
             "--repeats", "1", "--threads", "1", "--json", str(path)],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(path.read_text())
        assert found["benchmark"] == name and all(set(v) >= KEYS for v in found["variants"])
        rates = {(v["name"], v["dtype"]): v for v in found["variants"]}
        if name == "pipeline":
            alone, units, whole = found["variants"]
            assert found["share_of_encoder"] == pytest.approx(units["windows_per_s"] / alone["windows_per_s"], rel=1e-3)
            assert 0 <= found["device_idle_share"] < 1 and found["settings"]["windows"] > 0
            assert whole["windows_per_s"] < units["windows_per_s"]
            if shutil.which("cc") or shutil.which("gcc"):
                assert found["lock_ms_per_window"]["whole"] >= 0
        else:
            assert rates["eocube, write, S3 wire", "float16"]["requests_per_unit"] == 1
            assert rates["eocube, decode", "fp32"]["relative_error"] <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(280)
def test_race_and_pipeline_over_http(tmp_path: Path) -> None:
    """Both sides encode the same: the tiny network's latents agree, as far as whole numbers in between let them."""
    pytest.importorskip("odc.stac", reason="the race runs against odc-stac")
    for name, more in (("race", []), ("pipeline", ["--device", "cpu", "--block", "512"])):
        path = tmp_path / f"{name}.json"
        done = subprocess.run(
            [sys.executable, str(ROOT / "jobs" / "benchmark.py"), name, "--model", "tiny", "--quick", "--repeats", "1",
             "--dates", "1", "--source", "http", "--delay", "2", "--json", str(path), *more],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = json.loads(path.read_text())
        assert found["settings"]["windows"] == 25
        if name == "race":
            usual, ours = found["variants"]
            assert usual["ratio"] == 1 and 0 < ours["relative_error"] <= found["settings"]["tolerance"]
            assert all(v["MB"] > 1 and v["requests"] > 13 and v["peak_memory_gb"] > 0.1 for v in (usual, ours))
        else:
            stages = found["processor_ms_per_window"]
            whole = stages.pop("whole")
            assert sum(stages.values()) == pytest.approx(whole, abs=0.1) and stages["rest"] >= 0
            assert found["requests_per_window"] > 0 and found["kB_per_window"] > 0


def test_a_race_tells_whether_both_made_the_same() -> None:
    race = pytest.importorskip("benchmarks.race", reason="the race runs against odc-stac")
    plan = SimpleNamespace(grid=SimpleNamespace(lattice=SimpleNamespace(core=2, cell=80)))
    rng = np.random.default_rng(0)
    days = np.array(["2024-05-01T10:00", "2024-05-08T10:00"], dtype="datetime64[ns]")
    whole = rng.standard_normal((2, 3, 6, 8)).astype(np.float32)  # our arrays reach a core beyond, north and west
    status = np.full((2, 3, 4), int(State.OUTSIDE), np.uint8)
    status[:, 1:, 1:] = State.OK
    status[0, 2, 2] = State.NODATA
    valid = np.full(status.shape, 100, np.uint8)
    valid[1, 1, 1] = 99

    def cube(values: np.ndarray, moments: np.ndarray, y0: float, x0: float, **more: Any) -> xr.Dataset:
        y, x = y0 - 80.0 * np.arange(values.shape[2]), x0 + 80.0 * np.arange(values.shape[3])
        return xr.Dataset(
            {"latent": (("time", "channel", "y", "x"), values), **more}, {"time": moments, "y": y, "x": x}
        )

    grid = {"status": (("time", "wy", "wx"), status), "valid_percent": (("time", "wy", "wx"), valid)}
    ours = cube(whole, days, 5000.0, 1000.0, **grid)
    usual = cube(whole[::-1, :, 2:, 2:], days[::-1] + np.timedelta64(1, "s"), 4840.0, 1160.0)
    assert race.compared(usual, ours, plan) == (11, 0.0)
    off = usual.copy(deep=True)
    off.latent[:, :, 2:4, 4:6] += 1.0  # of the second day: the first has no data there
    assert race.compared(off, ours, plan)[1] > 0.1
    off = usual.copy(deep=True)
    off.latent[0, :, 0:2, 0:2] += 1.0  # where a pixel lacks: not compared
    assert race.compared(off, ours, plan) == (11, 0.0)
    from benchmarks.results import BadInputError

    with pytest.raises(BadInputError, match="dates"):
        race.compared(usual.isel(time=[0]), ours, plan)


def test_readme_section_is_made_from_results(
    job: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import readme_table

    cpu = {"cpu": "Some CPU", "flags": ["avx2", "avx512_bf16"], "threads": 2, "gpu": None, "torch": "2.9",
           "load_before": 7.2,
           "matrix_tflops": {"fp32": 0.2}}  # fmt: skip

    def variant(name: str, rate: float, **more: object) -> dict[str, object]:
        return {"name": name, "device": "cpu", "dtype": "fp32", "windows_per_s": rate, "ratio": rate / 2,
                "relative_error": 1e-6, "tflops": 0.1, "peak_memory_gb": 0.5, **more}  # fmt: skip

    shared = {"machine": cpu, "reference": "r", "settings": {}}
    encoder = {"benchmark": "encoder", "model": "nano", **shared,
               "variants": [variant("reference, eager", 2.0), variant("eocube", 1234.0)]}  # fmt: skip
    pipeline = {"benchmark": "pipeline", "model": "nano", **shared, "share_of_encoder": 0.914,
                "device_idle_share": 0.05, "variants": [variant("encoder alone", 2.0)]}  # fmt: skip
    for document in (encoder, pipeline):
        (tmp_path / f"{document['benchmark']}.json").write_text(json.dumps(document))
    (tmp_path / "other.json").write_text("{}")
    readme, page = tmp_path / "README.md", tmp_path / readme_table.PAGE
    page.parent.mkdir(parents=True)
    for document in (readme, page):
        document.write_text(f"before\n{readme_table.BEGIN}\nold\n{readme_table.END}\nafter\n")
    assert readme_table.main(["--check"], tmp_path, readme) == 1
    assert readme_table.main(["--write"], tmp_path, readme) == 0
    assert readme_table.main(["--check"], tmp_path, readme) == 0
    assert "| encoder, nano | 2 | 2 (fp32) | 1234 | 617.0x | 617.0x |" in readme.read_text()
    made = page.read_text()
    assert made.startswith("before\n") and made.endswith("\nafter\n") and "old" not in made
    assert "Some CPU with AVX512-BF16, 2 threads, torch 2.9" in made
    assert "|  | eocube | fp32 | 1234 | 617.00x | 0.1 (50 %) | 0.50 | 1e-06 |" in made
    assert made.count("as runs began was up to 7.2,") == 2
    assert "91 % of what the encoder alone" in made
    readme.write_text("no markers")
    assert readme_table.main(["--check"], tmp_path, readme) == 2
    (tmp_path / "encoder.json").write_text(json.dumps({"benchmark": "encoder"}))
    assert readme_table.main(["--check"], tmp_path, readme) == 2
    assert "encoder.json lacks machine" in capsys.readouterr().err


def test_the_readme_is_up_to_date(job: ModuleType) -> None:
    from benchmarks import readme_table

    assert readme_table.main(["--check"]) == 0, "python benchmarks/readme_table.py --write"
