"""Reads what a lease's object says, and tells whether the process that wrote it is still there."""

from __future__ import annotations

import getpass
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from eocube.errors import LeaseError
from eocube.net.objects import Objects
from eocube.store.commit_log import FOLDER

LOCK = f"{FOLDER}/fence.lock"
"""A file of no bytes that writers on one machine lock around the moment at which a write takes effect."""
FAR = timedelta(hours=1)
"""How far ahead a lease may end before its date, or a clock, is taken to be wrong."""
_KEY = re.compile(rf"{FOLDER}/lease-(\d{{8,}})\.json")
_DATES = ("acquired", "expires")


@dataclass(frozen=True, slots=True)
class LeaseNote:
    """What a lease's object says."""

    owner: str
    """User name of the driver's process."""
    host: str
    process: str
    """Names the process on this earth: boot, process namespace, number and start."""
    run: str
    token: str
    """Random: tells one's own note from another's after a lost reply."""
    acquired: str
    expires: str
    """ISO 8601 UTC by the owner's clock."""
    released: bool = False

    def to_json(self) -> bytes:
        """The object's bytes."""
        return json.dumps(asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> LeaseNote:
        """Inverse of `to_json`, unknown fields ignored; ValueError for anything else."""
        try:
            given = json.loads(data)
            note = cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given})
            texts = {k: v for k, v in asdict(note).items() if k != "released"}
            if not all(isinstance(v, str) for v in texts.values()) or not isinstance(note.released, bool):
                raise TypeError("a field is of another type")
            if datetime.fromisoformat(note.expires).tzinfo is None:
                raise ValueError(f"expires {note.expires[:40]} is without its zone")
        except (TypeError, KeyError, AttributeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"not a lease: {type(error).__name__}") from error
        return note

    @property
    def left(self) -> timedelta:
        """Time until it ends, by this machine's clock; negative once it has."""
        return datetime.fromisoformat(self.expires) - datetime.now(UTC)

    def __str__(self) -> str:
        return f"run {self.run} of {self.owner} on {self.host}"


def lease_key(term: int) -> str:
    """Key of a term's object."""
    return f"{FOLDER}/lease-{term:08d}.json"


def is_lease(key: str) -> bool:
    """Whether an object of a store is a lease."""
    return _KEY.fullmatch(key) is not None


def terms_of(target: Objects) -> list[int]:
    """The terms of which a store has objects, in order."""
    return sorted(int(m[1]) for key in target.keys(FOLDER) if (m := _KEY.fullmatch(key)))


def read_note(target: Objects, term: int) -> LeaseNote | None:
    """What a term's object says, None where there is none; LeaseError, with the file, where it cannot be read."""
    data = target.get(lease_key(term))
    try:
        return None if data is None else LeaseNote.from_json(data)
    except ValueError as error:
        raise LeaseError(
            f"{target.at(lease_key(term))} is damaged ({error}): make sure that no other run writes the store, then "
            "remove that object"
        ) from error


def refuse_while_held(target: Objects, term: int, note: LeaseNote, margin: float) -> None:
    """LeaseError where a term's owner may still be at work: who it is, and until when.

    An owner is not at work once it has said so, is known to be dead, or its lease ended `margin` seconds ago.
    """
    if note.released or is_dead(note) or note.left < -timedelta(seconds=margin):
        return
    if note.left > FAR:
        raise LeaseError(
            f"{target.at(lease_key(term))} says that {note} holds the store until {note.expires}, which no run asks "
            "for: a clock is wrong, or the file; make sure that no other run writes the store, then remove that object"
        )
    raise LeaseError(
        f"{target} is being written by {note}, whose lease runs until {note.expires}: wait for it to end; a run that "
        "died is taken over then"
    )


def refuse_if_held(target: Objects, margin: float = 0.0) -> None:
    """LeaseError where a run holds a store by a lease of its own."""
    terms = terms_of(target)
    note = read_note(target, terms[-1]) if terms else None
    if note is not None:
        refuse_while_held(target, terms[-1], note, margin)


def user_name() -> str:
    """The user of this process, by number in a container that has no name for it."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def process_name(pid: int | None = None) -> str:
    """Names a process so that no other on any machine has the name; "" where the system does not say (not Linux).

    Raises OSError for another process than this one that cannot be looked at.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
        number = os.getpid() if pid is None else pid
        state, start = _state_and_start(number)
    except OSError:
        if pid is not None:
            raise
        return ""
    return f"{boot}/{space}/{number}/{start}" if state not in "ZX" else ""


def _state_and_start(pid: int) -> tuple[str, str]:
    # The start is the 22nd field; the second is the command in brackets and may hold anything.
    fields_: list[Any] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields_[0], fields_[19]


def is_dead(note: LeaseNote) -> bool:
    """Whether a lease's owner was a process of this machine, as it sees processes, that is there no more.

    Only what is certain counts: on machines whose users do not see each other's processes (`hidepid`, usual where
    many share one) a process that cannot be looked at is one that lives, and its lease is waited for.
    """
    here, where = process_name().split("/"), note.process.split("/")
    if len(here) != 4 or len(where) != 4 or here[:2] != where[:2] or not where[2].isdecimal():
        return False
    pid = int(where[2])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # somebody else's
        pass
    try:
        return process_name(pid) != note.process
    except OSError:
        return False
