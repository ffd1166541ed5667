"""Brings foreign checkpoints' keys to EO-VAE's own names: Lightning prefixes, FLUX.2 original, diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

OWN_ROOTS = frozenset({"encoder", "decoder", "bn"})
STATIC_ENDS = (
    "encoder.conv_in.weight", "encoder.conv_in.bias", "decoder.conv_out.weight", "decoder.conv_out.bias",
)  # fmt: skip
"""FLUX.2's own first and last convolution, which EO-VAE generates instead."""

_DIFFUSERS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^quant_conv\.", "encoder.quant_conv."),
        (r"^post_quant_conv\.", "decoder.post_quant_conv."),
        (r"\.down_blocks\.(\d+)\.", r".down.\1."),
        (r"\.resnets\.(\d+)\.", r".block.\1."),
        (r"\.downsamplers\.0\.", ".downsample."),
        (r"\.upsamplers\.0\.", ".upsample."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.mid_block\.block\.0\.", ".mid.block_1."),
        (r"\.mid_block\.block\.1\.", ".mid.block_2."),
        (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
        (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
        (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."),
        (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
        (r"\.conv_norm_out\.", ".norm_out."),
    )
)
_UP_BLOCK = re.compile(r"\.up_blocks\.(\d+)\.")
_ATTENTION_WEIGHT = re.compile(r"\.attn_1\.(q|k|v|proj_out)\.weight$")


def strip_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop leading name parts that all keys share (`model.`, `vae.`, `_orig_mod.`), never one of the network's own."""
    stripped = dict(state)
    while (roots := {key.partition(".")[0] for key in stripped}) and not roots & OWN_ROOTS:
        if len(roots) > 1 or any("." not in key for key in stripped):
            return dict(state)  # another network: its keys are reported as they are
        stripped = {key.partition(".")[2]: tensor for key, tensor in stripped.items()}
    return stripped


def is_diffusers(keys: Iterable[str]) -> bool:
    """Whether these are keys of diffusers' AutoencoderKLFlux2."""
    return any(".down_blocks." in key or ".up_blocks." in key for key in keys)


def is_flux(keys: Iterable[str]) -> bool:
    """Whether these are FLUX.2's keys in original names: static first or last convolution, no generated ones."""
    present = set(keys)
    return any(key in present for key in STATIC_ENDS) and not any("weight_generator" in key for key in present)


def from_diffusers(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """diffusers' names to the original ones; attention's Linear weights become 1x1 convolutions.

    diffusers counts the decoder's blocks from the coarsest, the original from the finest.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _UP_BLOCK.sub(lambda found: f".up.{levels - 1 - int(found[1])}.", key)
        for pattern, replacement in _DIFFUSERS:
            name = pattern.sub(replacement, name)
        if _ATTENTION_WEIGHT.search(name) and tensor.ndim == 2:
            tensor = tensor[:, :, None, None]
        renamed[name] = tensor
    return renamed


def flux_body(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The FLUX.2 state without its first and last convolution, and which of those four keys are missing."""
    absent = [key for key in STATIC_ENDS if key not in state]
    return {key: tensor for key, tensor in state.items() if key not in STATIC_ENDS}, absent


def is_dynamic(key: str) -> bool:
    """Whether a key belongs to the generated convolutions (116 of the 363)."""
    return key.startswith(("encoder.conv_in.", "decoder.conv_out."))
