"""Tells documents apart by a digest, and refuses a store whose document is not what its own digests were taken of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from eocube.errors import StoreError

FROM_LOG = ("moments", "histogram", "seams")
"""Entries of the `eocube` attribute that follow from the commit log and change with it."""
DIGEST = "digest"
"""The entry that holds the digest of the others, but for `FROM_LOG`; stores of version 0.1 have none."""


def canonical(document: Any) -> str:
    """JSON with sorted keys and no spaces: the same document always gives the same text."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(document: Any, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of a document's canonical JSON."""
    return hashlib.sha256(canonical(document).encode()).hexdigest()[:length]


def signed(document: Mapping[str, Any]) -> dict[str, Any]:
    """An `eocube` attribute with its digest."""
    return {**document, DIGEST: _whole(document)}


def refuse_edited(document: Mapping[str, Any], where: str) -> None:
    """StoreError where a store's `eocube` attribute is not what was written: its latents would be read as other ones.

    Its space id is the digest of its `space` in every store. Quantisation, extent, plan and the rest are under a digest
    of their own since version 0.2. This finds edits and damage, not somebody who makes the digests anew.
    """
    try:
        found = digest(document.get("space"))
        whole = _whole(document)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{where}: its `eocube` attribute is damaged ({error}): restore its zarr.json") from error
    if found != document.get("space_id"):
        raise StoreError(
            f"{where}: what it says of its latent space has the digest {found}, not its space id "
            f"{document.get('space_id')}: it was edited or damaged; restore its zarr.json, or encode again"
        )
    if document.get(DIGEST, whole) != whole:
        raise StoreError(
            f"{where}: its `eocube` attribute (quantisation, extent, plan, ...) has the digest {whole}, not "
            f"{document[DIGEST]} as it was written: it was edited or damaged; restore its zarr.json, or encode again"
        )


def _whole(document: Mapping[str, Any]) -> str:
    return digest({k: v for k, v in document.items() if k not in (*FROM_LOG, DIGEST)})
