"""Writes the comparison of super-resolution: JSON, Markdown with the published table beside ours, and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.evaluation.published import TABLE_2
from model.evaluation.super_resolution.pictures import curve, picture
from model.evaluation.super_resolution.study import Shown

PICTURE, CURVE = "sr.png", "sr_steps.png"


def json_text(report: Mapping[str, Any]) -> str:
    """The report as JSON; infinite and undefined figures are null."""
    return json.dumps(_finite(report), indent=1, allow_nan=False) + "\n"


def write(report: Mapping[str, Any], shown: Mapping[str, Shown], folder: Path) -> list[Path]:
    """report.json, report.md, sr.png and, where there is a curve, sr_steps.png; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "report.json", folder / "report.md", folder / PICTURE]
    paths[0].write_text(json_text(report), encoding="utf-8")
    paths[1].write_text(markdown(report), encoding="utf-8")
    picture(list(shown.values()), report["bands"], paths[2])
    if report["curve"]:
        paths.append(folder / CURVE)
        curve(report, paths[-1])
    return paths


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    methods, places = report["methods"], report["places"]
    lines = [
        f"# Super-resolution of {report['weights']}, {report['scale']}x, {', '.join(report['bands'])}",
        "",
        *_explained(report),
        "",
        "## All bands",
        "",
        *_table(methods, ("psnr", "ssim", "rmse", "sam", "consistency", "sharpness", "detail")),
    ]
    if any("rgb_psnr" in figures for figures in methods.values()):
        keys = ("rgb_psnr", "rgb_ssim", "rgb_rmse", "rgb_sam", "lpips")
        lines += ["", "## Red, green and blue clamped to 0..1, as published", "", *_table(methods, keys)]
    lines += [
        "", "## Time and memory", "",
        f"One image of {report['timed_pixels']} px a side after another, from pixels to pixels, on {report['device']}, "
        f"{report['threads']} threads ({report['machine']['cpu']}, load before {report['machine']['load_before']}). "
        f"Memory: {next(iter(methods.values()))['peak_memory_kind']}.",
        "", *_costs(methods),
    ]  # fmt: skip
    if through := report["throughput"]:
        lines += [
            "",
            f"Latent and pixel in turn, {through['steps']['latent']} and {through['steps']['pixel']} steps: "
            f"**{through['latent_against_pixel']:.1f} times** the images a second (goal: {through['target']:g}); the "
            f"denoising alone {through.get('denoising_alone', float('nan')):.1f} times.",
        ]
    lines += ["", "## Place by place", "", *_places(methods, places), "", *_short(report["goals"])]
    if report["curve"]:
        lines += ["", "## Steps", "", f"![PSNR and sharpness against steps]({CURVE})", "", *_steps(report["curve"])]
    lines += ["", f"![input, methods, spread, truth]({PICTURE})", "", "## The published table beside ours", ""]
    lines += _published(methods)
    return "\n".join(lines) + "\n"


def _explained(report: Mapping[str, Any]) -> list[str]:
    return [
        f"{report['pairs']} pairs of {len(report['places'])} places, split {report['split']}. Figures of a place are "
        "over all its pixels; rows are means over places, each of one weight. PSNR in dB and SSIM with a data range "
        f"of {report['data_range']:g}, RMSE and consistency (mean |result averaged back by the MTF - input|) in "
        "reflectance, SAM in radians. Sharpness is the share of spectral energy above the input's Nyquist frequency by "
        "the truth's; detail the correlation with the truth there: 1 where it is real, 0 where it is invented. Pixels "
        "that the truth lacks count nowhere.",
        "",
        f"The truth's own consistency is {_of(report['truth_consistency'], 4)}: pairs are cut from larger images, and "
        "the input has seen what lies beyond the cut.",
    ]


_HEADS = {
    "psnr": "PSNR", "ssim": "SSIM", "rmse": "RMSE", "sam": "SAM", "consistency": "consistency", "lpips": "LPIPS",
    "sharpness": "sharpness", "detail": "detail",
}  # fmt: skip
_DIGITS = {"psnr": 2, "sharpness": 2, "detail": 2}


def _table(methods: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    kept = [key for key in keys if any(key in figures for figures in methods.values())]
    heads = [_HEADS[key.removeprefix("rgb_")] for key in kept]
    rows = [
        [name, *(_of(figures.get(key), _DIGITS.get(key.removeprefix("rgb_"), 4)) for key in kept)]
        for name, figures in methods.items()
    ]
    return _rows([["method", *heads], *rows])


def _costs(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [["method", "ms", "images/s", "MB", "M parameters (diffusion)", "steps", "draws", "timed", "of which ms"]]
    for name, figures in methods.items():
        timing = figures["timing"]
        memory = figures["peak_memory"]
        parts = ", ".join(f"{part} {1000 * seconds:.1f}" for part, seconds in timing["parts"].items())
        rows.append([
            name, f"{1000 * figures['seconds_per_image']:.1f}", _of(figures["images_per_second"], 2),
            "-" if memory is None else f"{memory / 2**20:.0f}",
            f"{figures['parameters'] / 1e6:.2f} ({figures['parameters_diffusion'] / 1e6:.2f})",
            "-" if figures["steps"] is None else str(figures["steps"]), str(figures["samples"]),
            f"{timing['iterations']}x{' (bound by time)' if timing['bound_by_time'] else ''}", parts or "-",
        ])  # fmt: skip
    return _rows(rows)


def _places(methods: Mapping[str, Mapping[str, Any]], places: Mapping[str, Any]) -> list[str]:
    rows = [["place", "pairs", *(f"{name}" for name in methods)]]
    for place, entry in places.items():
        cells = []
        for figures in methods.values():
            of = figures["places"][place]
            cells.append(f"{_of(of['psnr'], 2)} / {_of(of['sam'], 4)}")
        rows.append([place, str(entry["pairs"]), *cells])
    return ["PSNR in dB / SAM in radians:", "", *_rows(rows)]


def _short(goals: Mapping[str, Any]) -> list[str]:
    if not goals["means"]:
        return []
    if not goals["short"]:
        return ["Every place reaches the goals: the means are no worse than the ridge and 1.5 dB above bicubic, "
                "samples are sharper than both and within 0.01 of their input."]  # fmt: skip
    return ["Where it falls short:", "", *(f"- {line}" for line in goals["short"])]


def _steps(found: Mapping[str, Any]) -> list[str]:
    rows = [["sampler", "steps", "PSNR", "SAM", "sharpness", "detail", "consistency", "ms"]]
    for sampler, points in found["samplers"].items():
        for steps in sorted(points, key=int):
            p = points[steps]
            rows.append([
                sampler, steps, _of(p["psnr"], 2), _of(p["sam"], 4), _of(p["sharpness"], 2), _of(p["detail"], 2),
                _of(p["consistency"], 4), f"{1000 * p['seconds']:.0f}",
            ])  # fmt: skip
    return [f"Single draws, one after another, of {len(found['pairs'])} pairs:", "", *_rows(rows)]


def _published(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = [["model", "measured on", "PSNR", "SSIM", "RMSE", "SAM", "ms", "images/s", "GB", "M (diffusion)"]]
    for name, (bands, *figures) in TABLE_2.items():
        psnr, ssim, rmse, sam, ms, rate, gigabytes, whole, part = figures
        rows.append([
            name, f"Sen2NAIP, {bands}, published", f"{psnr:.2f}", f"{ssim:.4f}", f"{rmse:.4f}", f"{sam:.4f}",
            f"{ms:.1f}", f"{rate:.2f}", f"{gigabytes:.2f}", f"{whole:.1f} ({part:.1f})",
        ])  # fmt: skip
    for name, found in methods.items():
        memory = found["peak_memory"]
        rows.append([
            name, "here", *(_of(found.get(f"rgb_{key}"), 2 if key == "psnr" else 4) for key in
                            ("psnr", "ssim", "rmse", "sam")),
            f"{1000 * found['seconds_per_image']:.1f}", _of(found["images_per_second"], 2),
            "-" if memory is None else f"{memory / 2**30:.2f}",
            f"{found['parameters'] / 1e6:.1f} ({found['parameters_diffusion'] / 1e6:.1f})",
        ])  # fmt: skip
    return [*_rows(rows), "", "All of red, green and blue. Ground, sensor and machine differ: read rows of one origin. "
            "The published pixel row mixes spaces (its RMSE and SAM are not those of its PSNR)."]  # fmt: skip


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = rows
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in body)]


def _of(value: float | None, digits: int) -> str:
    if value is None or math.isnan(value):
        return "-"
    return "equal" if math.isinf(value) else f"{value:.{digits}f}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
