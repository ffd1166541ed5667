"""Defines the package's few errors, each one line that names the thing and the way out, and the exit statuses."""

from enum import IntEnum


class Exit(IntEnum):
    """Exit status of the jobs and commands (docs/reference/exit_codes.md)."""

    DONE = 0
    """What was asked for is done; of a run: every window ended ok, nodata, cloudy or outside."""
    DEFECT = 1
    BAD_INPUT = 2
    RETRYABLE = 3
    """Some windows can be tried again: failed reads, an interrupted run."""


class EocubeError(Exception):
    """Base of everything eocube raises on purpose."""


class InputError(EocubeError, ValueError):
    """What the user asked for cannot be done as asked; nothing was written. Exit status 2."""


class SourceError(EocubeError, OSError):
    """A source could not be read; the window ends `read_failed` and can be retried.

    Args:
        message: one line, with the reason and never a query string.
        item: id of the STAC item.
        asset: key of its asset.
    """

    def __init__(self, message: str, *, item: str | None = None, asset: str | None = None) -> None:
        super().__init__(message)
        self.item, self.asset = item, asset


class RefusedError(SourceError):
    """A source that can be opened and must not be used as it is; asking again changes nothing."""


class RadiometryError(EocubeError, ValueError):
    """An item's metadata do not settle what its numbers mean; the item is refused, never guessed."""


class StoreError(EocubeError, OSError):
    """The store cannot be created, opened, or does not fit what is to be written into it."""


class LeaseError(StoreError):
    """Another run holds the store's lease, or took it over: this run may not write."""


class ClusterError(EocubeError, RuntimeError):
    """Ray cannot be started or reached; what is in the store stays, and the same command goes on. Exit status 2."""
