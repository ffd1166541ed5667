"""Counts and names what could not be used: corrupt shards, samples that lack a modality, patches without data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger(__name__)
NAMED = 200


@dataclass(slots=True)
class Ledger:
    """Counts by kind, and the first `NAMED` names with their reasons; every entry is also logged once, as a warning."""

    counts: dict[str, int] = field(default_factory=dict)
    entries: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, kind: str, name: str, why: str) -> None:
        """Note one thing that was left out: `kind` is "shard", "sample" or "patch"."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if (kind, name, why) in self.entries:
            return  # met again in another epoch
        if len(self.entries) < NAMED:
            self.entries.append((kind, name, why))
            log.warning("%s %s left out: %s", kind, name, why)

    def excuse(self) -> str:
        """What was left out, in words for a message: the counts and the first name."""
        if not self.counts:
            return "nothing was damaged"
        counted = ", ".join(f"{count} {kind}s" for kind, count in self.counts.items())
        named = f", such as {self.entries[0][1]} ({self.entries[0][2]})" if self.entries else ""
        return f"{counted} left out{named}"

    def state_dict(self) -> dict[str, Any]:
        """A plain copy."""
        return {"counts": dict(self.counts), "entries": [list(entry) for entry in self.entries]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the counts of `state` for one's own."""
        self.counts = {str(kind): int(count) for kind, count in state["counts"].items()}
        self.entries = [(kind, name, why) for kind, name, why in state["entries"]]
