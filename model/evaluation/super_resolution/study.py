"""Runs the comparison: every method on every held-out pair, its figures place by place, its cost on one pair."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.diffusion import METHODS
from model.evaluation.super_resolution.cost import interleaved, peak, timed
from model.evaluation.super_resolution.lpips import Perceptual
from model.evaluation.super_resolution.measure import DATA_RANGE, Measured, measure, of_place, over_places
from model.evaluation.super_resolution.methods import (
    BICUBIC,
    CEILING,
    LATENT,
    MEAN,
    ONE_STEP,
    PIXEL,
    RIDGE,
    Method,
    Resolver,
)
from model.evaluation.super_resolution.pairs import Case
from model.evaluation.super_resolution.saved import save_result, save_truth
from model.sensors import Floats

TARGET_THROUGHPUT = 18.0
"""Latent over pixel diffusion at the same steps: the published 7097.9 ms over 389.7 ms."""
GOALS = {RIDGE: 0.0, BICUBIC: 1.5}
"""dB that a mean is to be above these on every place."""
CONSISTENCY_GOAL = 0.01
"""Reflectance that a single sample may differ from the input, averaged back."""
_EVERY = 15.0


@dataclass(frozen=True, slots=True)
class Costs:
    """How time is taken: `iterations` a method after warming up, or as many as `seconds` allow."""

    iterations: int = 50
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Curve:
    """Of how many steps, on how many pairs at most, of as many places as there are. No steps: no curve."""

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    pairs: int = 6


@dataclass(frozen=True, slots=True)
class Shown:
    """What a picture shows of one pair."""

    id: str
    place: str
    low: Floats
    truth: Floats
    results: Mapping[str, Floats]
    spread: Floats | None


@dataclass(slots=True)
class SuperResolutionStudy:
    """Pairs of one scale and set of bands, the methods, and the super-resolvers among them for the curve."""

    cases: Sequence[Case]
    methods: Sequence[Method]
    mtf: tuple[float, ...]
    device: torch.device
    resolver: Resolver | None = None
    costs: Costs = field(default_factory=Costs)
    curve: Curve = field(default_factory=Curve)
    save: Path | None = None
    perceptual: Perceptual | None = None
    log: Callable[[str], None] = print
    shown: dict[str, Shown] = field(init=False, default_factory=dict)
    """One pair of each place, after `run`."""

    def run(self) -> dict[str, Any]:
        """All figures as plain data; ValueError, in one line, where nothing can be measured."""
        rows: dict[str, dict[str, list[Measured]]] = {m.name: {} for m in self.methods}
        own: dict[str, list[Measured]] = {}
        seen: dict[str, dict[str, list[float]]] = {m.name: {} for m in self.methods}
        said = time.monotonic()
        for done, case in enumerate(self.cases):
            place = case.pair.place
            own.setdefault(place, []).append(measure(np.where(case.valid, case.hr, 0), case, self.mtf))
            if self.save is not None:
                save_truth(self.save, case)
            results = {}
            for method in self.methods:
                result = method.result(case)
                results[method.name] = result
                rows[method.name].setdefault(place, []).append(measure(result, case, self.mtf))
                if self.perceptual is not None:
                    seen[method.name].setdefault(place, []).append(self.perceptual(result, case))
                if self.save is not None:
                    save_result(self.save / method.name, case, result)
            if place not in self.shown:
                spread = None if self.resolver is None else self.resolver.drawn(case).std(0)
                self.shown[place] = Shown(case.pair.id, place, case.lr, case.hr, results, spread)
            if time.monotonic() - said > _EVERY:
                self.log(f"{done + 1} of {len(self.cases)} pairs")
                said = time.monotonic()
        places = {
            name: {
                place: of_place(found) | ({"lpips": float(np.mean(seen[name][place]))} if seen[name] else {})
                for place, found in of.items()
            }
            for name, of in rows.items()
        }
        costs = {method.name: self._cost(method) for method in self.methods}
        report: dict[str, Any] = {
            "methods": {
                m.name: over_places(places[m.name]) | costs[m.name] | {"places": places[m.name]} for m in self.methods
            },
            "pairs": len(self.cases),
            "places": self._places(),
            "bands": list(self.cases[0].pair.bands),
            "scale": self.cases[0].factor,
            "data_range": DATA_RANGE,
            "mtf": list(self.mtf),
            "truth_consistency": over_places({p: {"c": of_place(found)["consistency"]} for p, found in own.items()})[
                "c"
            ],
            "timed_on": self._timed_case().pair.id,
            "timed_pixels": self._timed_case().hr.shape[-1],
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }
        report["throughput"] = throughput(report["methods"], self._in_turn())
        report["goals"] = goals(report["methods"])
        report["curve"] = self._curve()
        return report

    def _places(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for case in self.cases:
            entry = found.setdefault(case.pair.place, {"pairs": 0, "split": case.pair.split, "sides": []})
            entry["pairs"] += 1
            entry["sides"] = sorted({*entry["sides"], case.hr.shape[-1]})
        return found

    def _timed_case(self) -> Case:
        """The first of the largest."""
        return max(self.cases, key=lambda case: case.hr.size)

    def _cost(self, method: Method) -> dict[str, Any]:
        """Seconds, images a second, memory and parameters, from pixels to pixels, batches of one."""
        case, how = self._timed_case(), self.costs
        self.log(f"timing {method.name}")
        took = timed(lambda: method.run(case), how.iterations, how.seconds, self.device)
        needs = peak(lambda: method.run(case), self.device)
        few = min(5, how.iterations)
        parts = {
            name: timed(lambda run=run: run(case), few, how.seconds / 4, self.device).seconds  # type: ignore[misc]
            for name, run in method.parts.items()
        }
        return {
            "seconds_per_image": took.seconds,
            "images_per_second": 1 / took.seconds if took.seconds > 0 else None,
            "timing": {"fastest": took.fastest, "slowest": took.slowest, "iterations": took.iterations,
                       "bound_by_time": took.limited, "parts": parts},
            "peak_memory": needs.bytes,
            "peak_memory_kind": needs.kind,
            "parameters": method.parameters,
            "parameters_diffusion": method.of_diffusion,
            "steps": method.steps,
            "samples": method.samples,
            "said": method.said,
        }  # fmt: skip

    def _in_turn(self) -> dict[str, float]:
        """Seconds of latent and pixel diffusion, one after the other again and again; nothing without both."""
        both = {m.name: m for m in self.methods if m.name in (LATENT, PIXEL)}
        if len(both) < 2:
            return {}
        case = self._timed_case()
        runs = {name: lambda m=m: m.run(case) for name, m in both.items()}
        return interleaved(runs, self.costs.iterations, self.costs.seconds, self.device)

    def _curve(self) -> dict[str, Any]:
        """Single draws of each sampler: method -> steps -> psnr, sharpness, consistency, seconds of drawing."""
        if self.resolver is None or not self.curve.steps or not self.curve.pairs:
            return {}
        cases = one_a_place(self.cases, self.curve.pairs)
        found: dict[str, Any] = {}
        for method in METHODS:
            found[method] = {}
            for steps in self.curve.steps:
                self.log(f"curve: {method}, {steps} steps")
                rows: dict[str, list[Measured]] = {}
                began = time.perf_counter()
                results = [self.resolver.curve(case, steps, method) for case in cases]
                seconds = (time.perf_counter() - began) / len(cases)
                for case, result in zip(cases, results, strict=True):
                    rows.setdefault(case.pair.place, []).append(measure(result, case, self.mtf))
                every = over_places({place: of_place(r) for place, r in rows.items()})
                found[method][str(steps)] = {
                    key: every[key] for key in ("psnr", "sam", "sharpness", "detail", "consistency")
                } | {"seconds": seconds}
        return {"pairs": [case.pair.id for case in cases], "samplers": found}


def one_a_place(cases: Sequence[Case], most: int) -> list[Case]:
    """The first of each place, then the second of each, and so on, up to `most`."""
    turns: dict[str, int] = {}
    order = []
    for k, case in enumerate(cases):
        order.append((turns.get(case.pair.place, 0), k))
        turns[case.pair.place] = turns.get(case.pair.place, 0) + 1
    return [cases[k] for _, k in sorted(order)[:most]]


def throughput(methods: Mapping[str, Mapping[str, Any]], in_turn: Mapping[str, float]) -> dict[str, Any]:
    """Images a second of latent over pixel diffusion, at the same steps, timed in turn, and the target; {} without."""
    if LATENT not in in_turn or PIXEL not in in_turn:
        return {}
    one, other = in_turn[LATENT], in_turn[PIXEL]
    parts = methods[LATENT]["timing"]["parts"]
    found = {
        "latent_against_pixel": other / one, "target": TARGET_THROUGHPUT, "reached": other / one >= TARGET_THROUGHPUT,
        "steps": {name: methods[name]["steps"] for name in (LATENT, PIXEL)}, "seconds": dict(in_turn),
    }  # fmt: skip
    if parts:
        found["denoising_alone"] = methods[PIXEL]["timing"]["parts"].get("diffuse", other) / parts["diffuse"]
        found["from_stored_latents"] = other / (parts["diffuse"] + parts["decode"])
    return found


def goals(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Where the better of the two means falls short of a yardstick, and where a sample is no sharper or inconsistent.

    {"means": {method: {yardstick: {place: dB above}}}, "short": [one line each]}
    """
    found: dict[str, Any] = {"means": {}, "short": []}
    for name in (f"{LATENT}_{ONE_STEP}", f"{LATENT}_{MEAN}"):
        if name not in methods:
            continue
        found["means"][name] = {}
        for yardstick, least in GOALS.items():
            if yardstick not in methods:
                continue
            gains = {}
            for place, figures in methods[name]["places"].items():
                other = methods[yardstick]["places"][place]
                gains[place] = figures["psnr"] - other["psnr"]
                if gains[place] < least:
                    found["short"].append(
                        f"{place}: {name} is {gains[place]:+.2f} dB against {yardstick}, {least:+.1f} is the goal"
                    )
                if yardstick == RIDGE and figures["sam"] > other["sam"]:
                    found["short"].append(
                        f"{place}: {name} has a spectral angle of {figures['sam']:.4f}, {yardstick} {other['sam']:.4f}"
                    )
            found["means"][name][yardstick] = gains
    for place, figures in methods[LATENT]["places"].items() if LATENT in methods else ():
        for yardstick in (y for y in (BICUBIC, RIDGE) if y in methods):
            other = methods[yardstick]["places"][place]
            if not figures["sharpness"] > other["sharpness"]:
                found["short"].append(
                    f"{place}: a sample is not sharper than {yardstick} "
                    f"({figures['sharpness']:.2f}, {other['sharpness']:.2f})"
                )
        if figures["consistency"] > CONSISTENCY_GOAL:
            found["short"].append(
                f"{place}: a sample differs from its input by {figures['consistency']:.4f} reflectance"
            )
    return found


__all__ = ["CEILING", "Costs", "Curve", "Shown", "SuperResolutionStudy", "goals", "one_a_place", "throughput"]
