"""What the failure of a read means, by what GDAL and fsspec say, and how it is told: the item, the asset, no secret."""

from __future__ import annotations

import re
from collections.abc import Sequence

from eocube.errors import RadiometryError, RefusedError, SourceError
from eocube.net.addresses import AddressError
from eocube.net.failures import Failure, judge
from eocube.net.redaction import one_line, safe_url
from eocube.scenes.scene import BandSource, Scene

_ABSENT = re.compile(r"\b404\b|no such file|nosuchkey|does not exist")
_DOWN = re.compile(r"response code: (?:429|5\d\d)|curl error|timed out|could not resolve|failed to connect")


DEFECTS = (TypeError, AttributeError, AssertionError, NameError)
"""What no source can be the reason of: a defect of this program, which ends the run and is never taken for a failed
read. Drivers and filesystems raise whatever else they like."""


def judge_read(error: Exception) -> Failure:
    """What a failed read means: GDAL says most in its messages alone; what they do not tell is asked again."""
    if isinstance(error, (RefusedError, RadiometryError, AddressError, *DEFECTS)):
        return Failure.FINAL
    reason = error.__cause__ or error  # fsspec says "not found" because of a 503
    words = str(reason).lower()
    if isinstance(reason, FileNotFoundError) or _ABSENT.search(words) is not None:
        return Failure.FINAL
    if _DOWN.search(words) is not None or judge(error) is Failure.DOWN:
        return Failure.DOWN
    return Failure.AGAIN


def failure(scene: Scene, source: BandSource, error: Exception, secrets: Sequence[str] = ()) -> SourceError:
    """The error that ends a window `read_failed`."""
    why = one_line(error.__cause__ or error, secrets) or type(error).__name__
    return SourceError(
        f"item {scene.id}, asset {source.key}: cannot read {safe_url(source.href)}: {why}",
        item=scene.id,
        asset=source.key,
    )
