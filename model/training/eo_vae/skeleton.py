"""Runs the network without its residual branches: what is left is nearly linear and holds the closed-form start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from model.blocks import AttnBlock, ResBlock
from model.eo_vae import EOVAE


@contextmanager
def skeleton_only(vae: nn.Module) -> Iterator[None]:
    """Within it, residual branches and attention are not computed: only the skips. Parameters stay what they are."""
    changed: list[nn.Module] = []
    for module in vae.modules():
        if isinstance(module, ResBlock):
            shortcut = module.nin_shortcut
            # a function, not a module: that would be registered as a child and found after the class's own forward
            skip = (lambda x: x) if shortcut is None else shortcut.forward
            module.forward = skip  # type: ignore[assignment,method-assign]
            changed.append(module)
        elif isinstance(module, AttnBlock):
            module.forward = lambda x: x  # type: ignore[method-assign]
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def silence_branches(vae: EOVAE) -> None:
    """Zero the last convolution of every residual block and the attention's projections."""
    for module in vae.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)  # type: ignore[arg-type]
        elif isinstance(module, AttnBlock):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)  # type: ignore[arg-type]
