"""Names the methods: bicubic, ridge, ceiling, and what a super-resolver gives of latents or of pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.evaluation.super_resolution.pairs import Case, filled
from model.evaluation.super_resolution.ridge import Ridge
from model.evaluation.super_resolution.space import Space
from model.sensors import Floats
from model.super_resolution import SuperResolver
from model.wald import back_project, bicubic, sharpened

BICUBIC, RIDGE, CEILING = "bicubic", "ridge", "ceiling"
LATENT, PIXEL, FLUX2 = "latent", "pixel", "flux2"
ONE_STEP, MEAN, CONSISTENT = "one_step", "mean", "consistent"
Run = Callable[[Case], Floats]


@dataclass(frozen=True, slots=True)
class Method:
    """One way from an input to a result (C, H, W) in reflectance.

    `run` does all of it, from pixels to pixels: what is timed. `result` may take from what another method of the same
    pair has made. `parts` are the steps of `run`, each alone. `parameters` are all that are used, `of_diffusion` those
    of the super-resolver among them; `steps` calls of its denoiser, 0 for a plain regression, None without one.
    `bands` are those that the result has.
    """

    name: str
    run: Run
    result: Run
    parameters: int
    of_diffusion: int = 0
    steps: int | None = None
    samples: int = 1
    parts: Mapping[str, Run] = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How samples are drawn. A pair's noise follows from the seed and the pair's number alone."""

    steps: int = 8
    samples: int = 8
    method: str = "dpmpp"
    seed: int = 0


def plain(name: str, run: Run, parameters: int = 0, said: str = "") -> Method:
    """A method of one piece."""
    return Method(name, run, run, parameters, said=said)


def smooth(case: Case) -> Floats:
    """Bicubic interpolation."""
    return np.asarray(bicubic(torch.from_numpy(case.lr)[None], case.factor)[0].numpy())


def sharp(case: Case, mtf: Sequence[float]) -> Floats:
    """Bicubic interpolation put right by the MTF: no statistics are in it."""
    return np.asarray(sharpened(torch.from_numpy(case.lr)[None], mtf, case.factor)[0].numpy())


def consistent(image: Floats, case: Case, mtf: Sequence[float]) -> Floats:
    """The nearest image that degrades to the input."""
    y, low = (torch.from_numpy(np.ascontiguousarray(x))[None] for x in (image, case.lr))
    return np.asarray(back_project(y, low, mtf, case.factor)[0].numpy())


def baselines(ridge: Ridge | None, space: Space | None, mtf: Sequence[float]) -> list[Method]:
    """What needs no super-resolver."""
    found = [plain(BICUBIC, smooth), plain(f"{BICUBIC}_{CONSISTENT}", lambda case: sharp(case, mtf))]
    if ridge is not None:
        found.append(plain(RIDGE, lambda case: ridge(case.lr), ridge.parameters))
        found.append(
            plain(f"{RIDGE}_{CONSISTENT}", lambda case: consistent(ridge(case.lr), case, mtf), ridge.parameters)
        )
    if space is not None:
        found.append(Method(
            CEILING, lambda case: _ceiling(space, case), lambda case: _ceiling(space, case, stored=True),
            space.parameters, said="the truth, encoded and decoded",
        ))  # fmt: skip
    return found


def _ceiling(space: Space, case: Case, *, stored: bool = False) -> Floats:
    """Of the truth, or if `stored` of the latents that a store has, rounded as it stores them."""
    kept = case.hr_latents if stored else None
    z = space.above(filled(case.hr)) if kept is None else torch.from_numpy(kept)[None]
    result: Floats = space.decode(z)[0]
    return result


@dataclass(slots=True)
class Resolver:
    """A super-resolver beside what makes its conditions and shows its results; `space` is None in pixel space.

    The draws of the last pair are kept: a sample, the mean and the spread are of the same ones.
    """

    net: SuperResolver
    space: Space | None
    sampling: Sampling
    mtf: tuple[float, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _drawn: tuple[int, Floats] | None = field(init=False, default=None)

    @property
    def parameters(self) -> int:
        """Of the super-resolver alone."""
        return sum(p.numel() for p in self.net.parameters())

    @property
    def with_space(self) -> int:
        """With the autoencoder's."""
        return self.parameters + (0 if self.space is None else self.space.parameters)

    def condition(self, case: Case, *, stored: bool = False) -> Tensor:
        """What the network is given of the input, (1, C, h, w), made from pixels or, if `stored`, as a store has it."""
        how = self.net.config.conditioning
        if self.space is None:
            low = smooth(case) if how == "upsampled" else case.lr
            return torch.from_numpy(np.ascontiguousarray(low))[None].to(self.device)
        stores = {"native": case.lr_latents, "upsampled": case.lr_up_latents, "sharpened": case.lr_sharp_latents}
        if stored and (kept := stores[how]) is not None:
            return torch.from_numpy(kept)[None].to(self.device)
        if how == "native":
            return self.space.below(case.lr)
        return self.space.upsampled(case.lr, case.factor, self.mtf if how == "sharpened" else None)

    def pixels(self, values: Tensor) -> Floats:
        """(B, C, H, W) reflectance of raw results."""
        return values.float().cpu().numpy() if self.space is None else self.space.decode(values)

    def noise(self, case: Case, condition: Tensor, count: int) -> Tensor:
        """(count, C, H, W) standard normal: the first of many is the one of a single draw."""
        shape = self.net.shape(condition)[1:]
        generator = torch.Generator().manual_seed(1_000_003 * self.sampling.seed + case.number)
        return torch.stack([torch.randn(shape, generator=generator) for _ in range(count)]).to(self.device)

    def draw(self, case: Case, condition: Tensor, count: int, steps: int, method: str) -> Tensor:
        """Raw results of `count` draws, one after another: memory does not grow with them."""
        noise = self.noise(case, condition, count)
        return torch.cat([self.net.sample(condition, steps=steps, method=method, noise=n[None]) for n in noise])

    def drawn(self, case: Case) -> Floats:
        """(samples, C, H, W) reflectance, made once a pair."""
        if self._drawn is None or self._drawn[0] != case.number:
            how = self.sampling
            values = self.draw(case, self.condition(case, stored=True), how.samples, how.steps, how.method)
            self._drawn = (case.number, self.pixels(values))
        return self._drawn[1]

    def one_step(self, case: Case, *, stored: bool = False) -> Floats:
        """The conditional mean."""
        result: Floats = self.pixels(self.net.mean(self.condition(case, stored=stored)))[0]
        return result

    def several(self, case: Case, count: int) -> Floats:
        """The mean of `count` draws, all of it anew."""
        how = self.sampling
        return np.asarray(
            self.pixels(self.draw(case, self.condition(case), count, how.steps, how.method)).mean(0), np.float32
        )

    def curve(self, case: Case, steps: int, method: str) -> Floats:
        """One draw of so many steps."""
        result: Floats = self.pixels(self.draw(case, self.condition(case, stored=True), 1, steps, method))[0]
        return result

    def methods(self, name: str) -> list[Method]:
        """A draw, the one-step mean, the mean of draws, and the last two and the first put right."""
        how, kept = self.sampling, self.drawn
        calls = 2 * how.steps - 1 if how.method == "heun" else how.steps

        def right(run: Run) -> Run:
            return lambda case: consistent(run(case), case, self.mtf)

        def once(case: Case) -> Floats:
            return self.several(case, 1)

        def first(case: Case) -> Floats:
            result: Floats = kept(case)[0]
            return result

        def mean(case: Case) -> Floats:
            return np.asarray(kept(case).mean(0), np.float32)

        def stored_mean(case: Case) -> Floats:
            return self.one_step(case, stored=True)

        def several(case: Case) -> Floats:
            return self.several(case, how.samples)

        def method(key: str, run: Run, result: Run, steps: int, samples: int = 1, timed: bool = False) -> Method:
            parts = self._parts() if timed else {}
            return Method(key, run, result, self.with_space, self.parameters, steps, samples, parts)

        one, many = f"{name}_{ONE_STEP}", f"{name}_{MEAN}"
        regression = 1 if self.net.trunk is None else 0
        return [
            method(one, self.one_step, stored_mean, regression),
            method(f"{one}_{CONSISTENT}", right(self.one_step), right(stored_mean), regression),
            method(name, once, first, calls, timed=True),
            method(f"{name}_{CONSISTENT}", right(once), right(first), calls),
            method(many, several, mean, calls, how.samples),
            method(f"{many}_{CONSISTENT}", right(several), right(mean), calls, how.samples),
        ]

    def _parts(self) -> dict[str, Run]:
        """Encoding the condition, drawing, decoding; drawing and decoding on what was made before."""
        how = self.sampling
        made: dict[int, tuple[Tensor, Tensor]] = {}

        def before(case: Case) -> tuple[Tensor, Tensor]:
            if case.number not in made:
                condition = self.condition(case)
                made[case.number] = condition, self.draw(case, condition, 1, 1, how.method)
            return made[case.number]

        def draw(case: Case) -> Floats:
            return self.draw(case, before(case)[0], 1, how.steps, how.method).cpu().numpy()

        found: dict[str, Run] = {"diffuse": draw}
        if self.space is not None:
            found = {
                "encode": lambda case: self.condition(case).cpu().numpy(), **found,
                "decode": lambda case: self.pixels(before(case)[1]),
            }  # fmt: skip
        return found
