"""Writes the evaluation as Markdown, one table a space, and its files: JSON, Markdown and the rate-distortion plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.evaluation import equal_bits_shown
from model.evaluation.equal_bits import Compared
from model.evaluation.equal_bits_shown import counted
from model.evaluation.published import METRICS, NDVI_MAE, TABLE_1
from model.evaluation.rate_distortion import Curves, Point, draw

_NAMED = 10
NAMES = {"rmse": "RMSE", "psnr": "PSNR", "ssim": "SSIM", "sam": "SAM", "ndvi_mae": "NDVI MAE"}
TABLE_SENSORS = ("S1RTC", "S2L2A")
"""Of the published table."""


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """report.json, report.md and, where there are curves, rate_distortion.png and equal_bits.png; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "report.json", folder / "report.md"]
    paths[0].write_text(json.dumps(_finite(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(report), encoding="utf-8")
    if report["rate_distortion"]:
        paths.append(folder / "rate_distortion.png")
        draw({title: _curves(item) for title, item in report["rate_distortion"].items()}, paths[-1])
    if report["equal_bits"]:
        paths.append(folder / equal_bits_shown.PICTURE)
        equal_bits_shown.draw(_compared(report), _kind(report), paths[-1])
    return paths


def _curves(item: Mapping[str, Any]) -> Curves:
    lines = {name: tuple(Point(**point) for point in points) for name, points in item["curves"].items()}
    return Curves(item["sensor"], item["range"], item["tiles"], tuple(item["order"]), lines)


def _compared(report: Mapping[str, Any]) -> dict[str, Compared]:
    return {title: Compared.read(item) for title, item in report["equal_bits"].items()}


def _finite(value: Any) -> Any:
    """Infinite and undefined figures as null: JSON has neither."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    batch = report["settings"]["batch"]
    lines = [
        f"# Evaluation of {report['weights']}",
        "",
        "Value [95 % bootstrap interval over places]; no interval where there is one place. Intervals of a handful of "
        "places are narrower than the truth. SSIM in z-scores counts mirrored borders, as published; in physical units "
        "it leaves them out.",
    ]
    if "terramesh" in report:
        lines += ["", *_terramesh(report)]
    else:
        lines.append("Codecs and latents are compared at equal bytes before any entropy coding of the latents.")
    if report["codecs_absent"]:
        lines.append(f"This GDAL has no {' and no '.join(report['codecs_absent'])}: not measured.")
    lines += ["", "## Published table beside ours: z-scores", "", *published(report)]
    for title, item in report["sensors"].items():
        lines += [
            "", f"## {title}", "", _tiles(item, report), "",
            f"### {title} in z-scores (PSNR and SSIM by the range of batches of {batch}, as published)", "",
            *_table(item["methods"], "z", METRICS),
            "", f"### {title} in {item['unit']} (range {item['physical_range']:g})", "",
            *_table(item["methods"], "physical", (*METRICS, "ndvi_mae")),
            "", f"### {title}, bands, {report['weights']} in {item['unit']}", "",
            *_bands(item["methods"][report["weights"]]["physical"]["bands"]),
        ]  # fmt: skip
        if item["cover_tiles"]:
            lines += ["", f"### {title}, land cover, PSNR in {item['unit']}", "", *_cover(item)]
        if item.get("cover_pixels"):
            lines += ["", f"### {title}, land cover of each pixel, in {item['unit']}", "", *_pixel_cover(item)]
    if report["rate_distortion"]:
        lines += ["", "## Rate and distortion", "", "![rate and distortion](rate_distortion.png)", ""]
        lines += _rates(report["rate_distortion"])
    if report["equal_bits"]:
        lines += ["", "## At equal bits", "", *equal_bits_shown.section(_compared(report), _kind(report))]
    return "\n".join(lines) + "\n"


def published(report: Mapping[str, Any]) -> list[str]:
    """Table 1 of the paper and the same rows of this run; other ground, so only the order of magnitude compares."""
    sensors = TABLE_SENSORS
    head = [f"{sensor} {NAMES[key]}" for sensor in sensors for key in METRICS]
    rows = [["model", "measured on", *head, "NDVI MAE"]]
    for model, values in TABLE_1.items():
        cells = [_number(key, v) for sensor in sensors for key, v in zip(METRICS, values[sensor], strict=True)]
        rows.append([model, "TerraMesh test, published", *cells, _number("ndvi_mae", NDVI_MAE.get(model))])
    ours = [report["sensors"].get(sensor, {"methods": {}})["methods"] for sensor in sensors]
    for method in dict.fromkeys(name for methods in ours for name in methods):
        cells, ndvi = [], None
        for methods in ours:
            figures = methods.get(method)
            cells += [_number(key, None if figures is None else figures["z"][key]["value"]) for key in METRICS]
            if figures is not None and "ndvi_mae" in figures["physical"]:
                ndvi = figures["physical"]["ndvi_mae"]["value"]
        rows.append([method, f"here, {_where(report)}", *cells, _number("ndvi_mae", ndvi)])
    ground = "The ground differs: read rows of one origin."
    if "terramesh" in report:
        ground = (
            "The published rows are of the test shards, numbers 6 to 8 of val: only rows of the same shards compare."
        )
    return [*_rows(rows), "", f"SAM in radians. NDVI MAE is of reflectances in either case. {ground}"]


def _kind(report: Mapping[str, Any]) -> str:
    return "test" if report["settings"].get("test") else "validation"


def _where(report: Mapping[str, Any]) -> str:
    """What the figures of the published table's sensors are of."""
    if "terramesh" in report:
        return "TerraMesh"
    counts = [f"{s} {len(report['sensors'][s]['places'])}" for s in TABLE_SENSORS if s in report["sensors"]]
    return f"{_kind(report)} places: {', '.join(counts)}"


def _terramesh(report: Mapping[str, Any]) -> list[str]:
    """What was read, and how."""
    how = report["settings"]
    data = "corrected (EO-VAE*)" if how["corrected"] else "as stored"
    much = "all samples" if how["limit"] is None else f"the first {how['limit']} samples"
    lines = [
        f"TerraMesh at {report['terramesh']['url']}, {much} of each modality, data {data}, brought to {how['side']} "
        f"pixels (bilinear, no mirrored margin), on {how['device']} in float32. Z-scores by the weights' own "
        "statistics; TerraMind is fed by its own, and compared in the same z-scores as the weights."
    ]
    return [*lines, *(f"Warning: {warning}." for warning in report["terramesh"]["warnings"])]


def _tiles(item: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    if "terramesh" not in report:
        places = counted(len(item["places"]), f"independent {_kind(report)} place")
        return f"{counted(item['tiles'], 'tile')} of {places}: {', '.join(item['places'])}."
    entries = item["left_out"]["entries"]
    counts = ", ".join(f"{count} {kind}" for kind, count in item["left_out"]["counts"].items())
    names = "; ".join(f"{name} ({why})" for _, name, why in entries[:_NAMED])
    left = f"Left out: {counts}: {names}{'; and more in report.json' if len(entries) > _NAMED else ''}."
    return (
        f"{item['tiles']} of {item['samples']} samples measured in {item['seconds']:.0f} s "
        f"({item['samples_per_second']:.1f} a second). {left if counts else 'Nothing was left out.'}"
    )


def _table(methods: Mapping[str, Any], space: str, keys: Sequence[str]) -> list[str]:
    used = [key for key in keys if any(key in figures[space] for figures in methods.values())]
    rows = [["method", *(NAMES[key] for key in used)]]
    for name, figures in methods.items():
        rows.append([name, *(_interval(key, figures[space].get(key)) for key in used)])
    return _rows(rows)


def _bands(bands: Mapping[str, Mapping[str, float]]) -> list[str]:
    keys = ("rmse", "psnr", "ssim")
    return _rows(
        [["band", *(NAMES[k] for k in keys)], *([b, *(_number(k, v[k]) for k in keys)] for b, v in bands.items())]
    )


def _cover(item: Mapping[str, Any]) -> list[str]:
    methods = list(item["cover"])
    rows = [["label of the whole patch", "tiles", *methods]]
    for label, tiles in item["cover_tiles"].items():
        rows.append([label, str(tiles), *(_interval("psnr", item["cover"][m][label]["psnr"]) for m in methods)])
    return _rows(rows)


def _pixel_cover(item: Mapping[str, Any]) -> list[str]:
    methods, whole = list(item["cover"]), sum(item["cover_pixels"].values())
    rows = [["class of the pixel", "share", *(f"{m}: {NAMES[key]}" for m in methods for key in ("rmse", "psnr"))]]
    for label, pixels in item["cover_pixels"].items():
        cells = [_number(key, item["cover"][m][label][key]["value"]) for m in methods for key in ("rmse", "psnr")]
        rows.append([label, f"{pixels / whole:.2%}", *cells])
    return _rows(rows)


def _rates(sets: Mapping[str, Any]) -> list[str]:
    rows = [["sensor", "storage", "channels or coefficients", "bits per pixel and band", "PSNR physical"]]
    for title, item in sets.items():
        for name, points in item["curves"].items():
            for p in points:
                kept = "-" if p["kept"] is None else str(p["kept"])
                rows.append([title, name, kept, f"{p['bits']:.3f}", _number("psnr", p["psnr"])])
    return _rows(rows)


def _rows(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _number(key: str, value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.2f}" if key == "psnr" else f"{value:.4f}"


def _interval(key: str, figure: Mapping[str, float | None] | None) -> str:
    if figure is None:
        return "-"
    text = _number(key, figure["value"])
    if figure["low"] is None or text == "-":
        return text
    return f"{text} [{_number(key, figure['low'])}, {_number(key, figure['high'])}]"
