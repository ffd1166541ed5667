"""Results of a benchmark: variants beside their reference, as JSON and as a table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OURS = "eocube"
"""What the names of our own variants begin with."""


class BadInputError(ValueError):
    """What is asked for cannot be measured or written: one line that names it and the way out. Exit status 2."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to do the work, measured. What does not apply, or cannot be told, is None."""

    name: str
    device: str
    dtype: str
    windows_per_s: float
    ratio: float | None
    """`windows_per_s` over the reference's, of the same run."""
    relative_error: float | None
    """L2 norm of the difference from the reference in exact fp32, over the reference's own norm."""
    tflops: float | None
    """Counted operations of the frozen network a second, whatever the variant really did, in 1e12."""
    peak_memory_gb: float | None
    """Weights in their precision and the greatest growth of memory during a call, 1e9 bytes."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Further figures of this kind of benchmark."""
    limit: float | None = None
    """Greatest `relative_error` it may have; None asks for none."""

    @property
    def breaches(self) -> bool:
        """Whether it is further from the reference than it may be."""
        if self.limit is None or self.relative_error is None:
            return False
        return not self.relative_error <= self.limit  # so that an error of NaN breaches

    def document(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        fields = asdict(self)
        del fields["limit"]
        more = fields.pop("more")
        return {key: rounded(value) for key, value in (fields | more).items()}


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one benchmark."""

    benchmark: str
    machine: Mapping[str, Any]
    model: str
    reference: str
    variants: tuple[Variant, ...]
    settings: Mapping[str, Any]
    not_run: Mapping[str, str]
    """Variant -> why it was not measured."""
    more: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "benchmark": self.benchmark,
            "machine": dict(self.machine),
            "model": self.model,
            "reference": self.reference,
            "variants": [variant.document() for variant in self.variants],
            **{k: rounded(v) for k, v in self.more.items()},
            "settings": dict(self.settings),
            "not_run": dict(self.not_run),
        }

    def write(self, path: Path) -> None:
        """Write the JSON. BadInputError where that cannot be done."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise BadInputError(f"cannot write {path}: {error.strerror}; give another --json") from error

    def told(self, json: Path | None) -> int:
        """Write it where asked, print it, and say what is too far from the reference: exit status 1 then, else 0."""
        if json is not None:
            self.write(json)
        self.show(print)
        far = [f"{v.name} {v.dtype} ({v.relative_error:.1e})" for v in self.variants if v.breaches]
        if far:
            print(f"error: too far from the reference: {', '.join(far)}", file=sys.stderr)
        return 1 if far else 0

    def show(self, say: Callable[[str], None]) -> None:
        """Say what was measured, on what, and what was left out."""
        machine = self.machine
        where = machine["gpu"] or f"{machine['cpu']} ({', '.join(machine['flags']) or 'flags unknown'})"
        say(f"{where}, {machine['threads']} of {machine['cores']} cores, torch {machine['torch']}, load before "
            f"{machine['load_before']}")  # fmt: skip
        rates = machine.get("matrix_tflops") or {}
        if rates:
            say("large matrix product, TFLOP/s: " + ", ".join(f"{dtype} {rate:.3g}" for dtype, rate in rates.items()))
        for key, value in self.more.items():
            say(f"{key}: {rounded(value)}")
        for name, why in self.not_run.items():
            say(f"not run: {name}: {why}")
        say(f"\n{self.benchmark}, {self.model}; 1x is {self.reference}")
        rows = self._rows(rates)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:  # names to the left, figures to the right
            cells = (c.ljust(w) if k < 2 else c.rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True)))
            say("  ".join(cells).rstrip())

    def _rows(self, rates: Mapping[str, float]) -> list[list[str]]:
        """The table, its head first; an error beyond its limit is marked."""
        extra = list(dict.fromkeys(key for v in self.variants for key in v.more))
        flops = any(v.tflops is not None for v in self.variants)
        rows = [["variant", "dtype", "windows/s", "ratio", *(("TFLOP/s", "of matrix") if flops else ()), "memory, GB",
                 "rel. error", *(key.replace("_", " ") for key in extra)]]  # fmt: skip
        for v in self.variants:
            rate = rates.get(v.dtype)
            share = None if v.tflops is None or not rate else f"{100 * v.tflops / rate:.0f} %"
            cells = [cell(v.windows_per_s, ".3g"), cell(v.ratio, ".2f", "x")]
            if flops:
                cells += [cell(v.tflops, ".3g"), share or "-"]
            cells += [cell(v.peak_memory_gb, ".2f"), cell(v.relative_error, ".1e", "!" if v.breaches else "")]
            rows.append([v.name, v.dtype, *cells, *(cell(v.more.get(key), ".4g") for key in extra)])
        return rows


def rounded(value: Any) -> Any:
    """Floats to five significant digits: more is noise. Others as they are."""
    return float(f"{value:.5g}") if isinstance(value, float) else value


def cell(value: Any, form: str, unit: str = "") -> str:
    """A figure as a table shows it; a dash for None."""
    if value is None:
        return "-"
    return f"{value:{form}}{unit}" if isinstance(value, int | float) else str(value)
