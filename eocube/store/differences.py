"""Says in words why an existing store is not the one a plan asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from eocube.store.layout import StorePlan
from eocube.store.root import eocube_document

_NAMED = 4

Steps = Callable[[], tuple[tuple[str, ...], tuple[str, ...]]]


def difference(document: Mapping[str, Any], plan: StorePlan, steps: Steps) -> str | None:
    """What of an existing store, by its `eocube` document, is not as the plan has it; None when it is the plan's own.

    `steps` gives the store's times and newline-joined scene ids; it is called only when it is needed.
    """
    wanted = eocube_document(plan)
    if document.get("plan_hash") == plan.hash:
        changes = list(_changes(document.get("quantisation"), wanted.get("quantisation"), ""))
        return f"another quantisation than its plan's: {_listed(changes)}" if changes else None
    if document.get("space_id") != plan.space_id:
        changes = list(_changes(document.get("space"), wanted.get("space"), ""))
        return f"another space ({document.get('space_id')}, asked {plan.space_id}): {_listed(changes)}"
    # What a cube was made from comes first: it names seeds, steps and weights.
    for part, what in (
        ("derived", "another way to make it"), ("grid", "another grid"), ("storage", "another storage"),
    ):  # fmt: skip
        changes = list(_changes(document.get(part), wanted.get(part), "" if part in ("grid", "derived") else part))
        if changes:
            return f"{what}: {_listed(changes)}"
    times, ids = steps()
    asked = [f"{step.time.rstrip('Z').split('.')[0]}Z" for step in plan.times]
    if list(times) != asked:
        more, fewer = sorted(set(asked) - set(times)), sorted(set(times) - set(asked))
        said = [f"{len(v)} {word}, first {v[0]}" for v, word in ((more, "not in it"), (fewer, "only in it")) if v]
        return f"other times ({len(times)}, asked {len(asked)}): {'; '.join(said) or 'in another order'}"
    for time, was, step in zip(times, ids, plan.times, strict=True):
        if was.splitlines() != list(step.scene_ids):
            new = sorted(set(step.scene_ids).symmetric_difference(was.splitlines()))
            return f"other scenes at {time}: {_listed(new) if new else 'in another order'}"
    return f"another plan ({document.get('plan_hash')}, asked {plan.hash}): the catalogue gives its scenes differently"


def named_changes(was: Any, asked: Any) -> str:
    """How two JSON documents differ, the first few places named; "" when they do not."""
    return _listed(list(_changes(was, asked, "")))


def _changes(was: Any, asked: Any, path: str) -> Iterator[str]:
    if isinstance(was, Mapping) and isinstance(asked, Mapping):
        for key in dict.fromkeys((*was, *asked)):
            yield from _changes(was.get(key), asked.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(was, Sequence) and isinstance(asked, Sequence) and not isinstance(was, str):
        if len(was) != len(asked) and path:
            yield f"{path} has {len(was)}, asked {len(asked)}"
        elif any(isinstance(v, Mapping) for v in (*was, *asked)):
            for i, (a, b) in enumerate(zip(was, asked, strict=True)):
                yield from _changes(a, b, f"{path}[{i}]")
        elif list(was) != list(asked):
            yield f"{path} {list(was)}, asked {list(asked)}"
    elif was != asked:
        yield f"{path} {was!r}, asked {asked!r}"


def _listed(changes: Sequence[str]) -> str:
    more = len(changes) - _NAMED
    return "; ".join(changes[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
