"""The head of a training run: the one mutable object per fingerprint, lease and index at once.

A checkpoint exists if and only if the head names it. Everything else in the store is immutable.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import CheckpointError, FormatError

FORMAT = 1

Payload = Literal["present", "pruned", "quarantined"]


@dataclass(frozen=True)
class Holder:
    """The process that holds the lease, told apart from any other, also from a later one of the same number."""

    id: str
    host: str
    boot: str
    pid: int
    started: float
    run: str = ""


@dataclass(frozen=True)
class RecordedEvaluation:
    """An evaluation of a checkpoint: the blob with its details, and its metrics by `<evaluation>/<metric>`."""

    blob: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CheckpointEntry:
    """A checkpoint as the head names it.

    Attributes:
        step: Optimiser steps since the start of the run.
        epoch: Epoch it belongs to, from 1.
        epoch_complete: Whether that epoch ends here.
        manifest: sha256 of its manifest, a blob.
        state_digest: Digest over weights, optimiser, schedule, random state, cursor and ledger.
        bytes: Size of its payload.
        payload: `present`; `pruned` by retention (the record stays, so a finished run stays finished); or
            `quarantined` because it was found damaged (it does not exist any more, and is made again).
        reason: Why it was pruned or quarantined.
        evaluations: By the key of what was asked.
    """

    step: int
    epoch: int
    epoch_complete: bool
    manifest: str
    state_digest: str
    bytes: int
    payload: Payload = "present"
    reason: str = ""
    evaluations: Mapping[str, RecordedEvaluation] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """Whether it counts as made: present, or made and pruned since."""
        return self.payload != "quarantined"


@dataclass(frozen=True)
class RunEnd:
    """Why a run is over: all planned steps done, or the rule for stopping early fired at `epoch`."""

    reason: Literal["completed", "early_stop"]
    epoch: int
    step: int


@dataclass(frozen=True)
class Head:
    """See the module.

    Attributes:
        fingerprint: Identity of the run.
        holder: Who trains it now, or None.
        token: Counts the holders; a checkpoint published under an older one is refused by the store.
        heartbeat: Counts the holder's signs of life.
        checkpoints: In order of publication.
        end: Set when the run is over.
    """

    fingerprint: str
    holder: Holder | None = None
    token: int = 0
    heartbeat: int = 0
    checkpoints: tuple[CheckpointEntry, ...] = ()
    end: RunEnd | None = None

    def entries(self) -> list[CheckpointEntry]:
        """The checkpoints that exist, by step; of two at one step the later published."""
        by_step = {entry.step: entry for entry in self.checkpoints if entry.exists}
        return [by_step[step] for step in sorted(by_step)]

    def at(self, step: int) -> CheckpointEntry | None:
        """The checkpoint that exists at a step."""
        return next((entry for entry in self.entries() if entry.step == step), None)

    def last_epoch(self) -> int:
        """The newest epoch that is complete; 0 when none is."""
        return max((entry.epoch for entry in self.entries() if entry.epoch_complete), default=0)

    def with_entry(self, step: int, **changes: Any) -> "Head":
        """The same head with the entry that exists at `step` changed.

        Raises:
            CheckpointError: There is none.
        """
        current = self.at(step)
        if current is None:
            raise CheckpointError(f"run {self.fingerprint[:12]} has no checkpoint at step {step}")
        changed = tuple(replace(entry, **changes) if entry is current else entry for entry in self.checkpoints)
        return replace(self, checkpoints=changed)


def head_key(fingerprint: str) -> str:
    """Key of a run's head."""
    return f"runs/{fingerprint}/head.json"


def encode_head(head: Head) -> bytes:
    """A head as stored."""
    return canonical_json({"format": FORMAT, **asdict(head)})


def decode_head(data: bytes, key: str) -> Head:
    """A stored head.

    Raises:
        CheckpointError: It isn't one, or another run's.
        FormatError: A newer version wrote it.
    """
    try:
        value = json.loads(data)
        version = value.pop("format")
        if version != FORMAT:
            raise FormatError(
                f"has format {version}, this version reads {FORMAT}",
                where=key,
                fix="upgrade crucible-kitchen",
            )
        if head_key(value["fingerprint"]) != key:
            raise CheckpointError(
                f"is the head of run {str(value['fingerprint'])[:12]}",
                where=key,
                fix="delete it, or restore the object from a backup of the store",
            )
        holder = value.pop("holder")
        end = value.pop("end")
        entries = tuple(_decode_entry(entry) for entry in value.pop("checkpoints"))
        return Head(
            holder=Holder(**holder) if holder else None,
            end=RunEnd(**end) if end else None,
            checkpoints=entries,
            **value,
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"is not a run's head: {error!r}", where=key, fix="restore the object from a backup of the store"
        ) from error


def _decode_entry(value: dict[str, Any]) -> CheckpointEntry:
    evaluations = {key: RecordedEvaluation(**item) for key, item in value.pop("evaluations").items()}
    return CheckpointEntry(evaluations=evaluations, **value)
