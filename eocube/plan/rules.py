"""Says by which rule each scene's numbers are read, and why: in full for people, in a few letters for receipts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from eocube.plan.plan import Plan
from eocube.scenes.dark_pixels import STATED
from eocube.scenes.scene import Scene
from eocube.sensors.radiometry import Radiometry

NOT_RECORDED = "not recorded"
"""What is said of scenes and units that version 0.1 did not say it of."""
ASSUMED = "assumed"
"""Version 0.1 took a Sentinel-2 sensor's own form for what an item says that says nothing: it may be 0.1 off."""

# How a rule's reason begins -> what settled it. Reasons are part of a plan's hash, so their words stay.
_BY = (
    ("+1000 in the pixels", "metadata"),
    ("no offset in the pixels", "metadata"),
    ("dark tail", "pixels"),
    (STATED, "stated"),
    ("as the asset declares", "declared"),
    ("scale as the asset declares", "declared"),
    ("float, declared", "declared"),
    ("harmonised", "product"),
    ("8-bit picture", "picture"),
    ("declared unit dB", "dB"),
)


def short(scene: Scene) -> str:
    """What a receipt says of a scene: its offset and what settled it ("-0.1 metadata"), or its unit ("power")."""
    bands: dict[str, list[str]] = {}
    for source in scene.sources:
        bands.setdefault(_short(source.radiometry), []).append(source.band)
    if len(bands) == 1:
        return next(iter(bands))
    return ", ".join(f"{'+'.join(names)} {rule}" for rule, names in bands.items())


def _short(rule: Radiometry) -> str:
    if not rule.why:
        return NOT_RECORDED
    by = settled_by(rule)
    return by if by in ("picture", "dB", "power") else f"{rule.offset:g} {by}"


def settled_by(rule: Radiometry) -> str:
    """What settled a rule: metadata, pixels, stated (by hand), declared (by the asset), file (the sensor's), ..."""
    if rule.kind == "power":
        return "power"
    found = next((by for start, by in _BY if rule.why.startswith(start)), None)
    return found or ("file" if rule.why.endswith("describes it") else "other")


def reason(scene: Scene) -> str:
    """Why a scene's numbers are read as they are, in the words of its items' metadata."""
    return "; ".join(dict.fromkeys(source.radiometry.why or NOT_RECORDED for source in scene.sources))


def _assumed(plan: Plan, scene: Scene) -> bool:
    if plan.sensor.source_offset is not None or not plan.sensor.means_sentinel2:
        return False
    return any(source.radiometry.why == f"as {plan.sensor.name} describes it" for source in scene.sources)


def in_words(plan: Plan, scene: Scene) -> str:
    """The rule of a scene and its reason: "-0.1 metadata: +1000 in the pixels: baseline 05.09, ..."."""
    said = short(scene)
    if said == NOT_RECORDED:
        return said
    if _assumed(plan, scene):
        return f"{scene.sources[0].radiometry.offset:g} {ASSUMED}: the item does not say, and nobody asked its pixels"
    return f"{said}: {reason(scene)}"


def rules_of(plan: Plan) -> dict[str, str]:
    """Scene id -> its rule and the reason."""
    return {scene.id: in_words(plan, scene) for scene in plan.scenes}


def counted(rules: Mapping[str, str]) -> dict[str, int]:
    """Rule without its reason -> how many scenes are read by it, the most frequent first."""
    return dict(Counter(text.partition(":")[0] for text in rules.values()).most_common())


def read_by(scenes: Iterable[Scene]) -> dict[str, str]:
    """What a unit's receipt keeps: the scenes that it read, each with its rule in a few letters."""
    return {scene.id: short(scene) for scene in sorted(scenes, key=lambda scene: scene.id)}
