"""The manifest of a checkpoint: the immutable record of what it is, where it came from, and its files."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from kitchen_resources.blobs.content import StoredFile
from kitchen_resources.digests import canonical_json, digest_json
from kitchen_resources.errors import CheckpointError, FormatError
from kitchen_resources.training.port import ExternalState

FORMAT = 2
"""The newest format that is read and written. 2 has `external`; what has none is still written as 1."""

LEDGER_FILE = "ledger.json"
STEPS_FILE = "steps.jsonl"

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


@dataclass(frozen=True)
class Manifest:
    """See the module.

    Attributes:
        fingerprint: Identity of the run.
        recipe: Name of the recipe.
        identity: What the fingerprint is the digest of.
        environment: Library versions, CPU capability, device, threads when it was made.
        base: The base model: reference, digest, revision.
        serving: What an export needs besides: weight type, chat template, pad and stop tokens.
        token: Token of the holder that published it, under which its payload lies.
        epoch: From 1.
        global_step: Optimiser steps since the start of the run.
        steps_into_epoch: Optimiser steps in this epoch.
        epoch_complete: Whether the epoch ends here.
        parent: State digest of the checkpoint it was trained from, or "".
        files: The payload: what a resume needs. Retention deletes it.
        records: What stays: the ledger of rows and the step metrics of the epoch so far.
        metrics: Numbers over the epoch so far.
        state_digest: See `state_digest`.
        simulated: Nothing was learned.
        external: What of the state a remote service keeps.
    """

    fingerprint: str
    recipe: str
    identity: Mapping[str, Any]
    environment: Mapping[str, Any]
    base: Mapping[str, Any]
    serving: Mapping[str, Any]
    token: int
    epoch: int
    global_step: int
    steps_into_epoch: int
    epoch_complete: bool
    parent: str
    files: Mapping[str, StoredFile]
    records: Mapping[str, StoredFile]
    metrics: Mapping[str, float]
    state_digest: str
    simulated: bool = False
    external: Sequence[ExternalState] = ()


def state_digest(files: Mapping[str, StoredFile], ledger: str, cursor: Sequence[int]) -> str:
    """Digest of a training state: two states are the same if and only if these are.

    Args:
        files: The checkpoint's files; those marked as state count.
        ledger: sha256 of the ledger of the epoch so far.
        cursor: Epoch, global step, steps into the epoch.
    """
    state = {name: file.sha256 for name, file in files.items() if file.state}
    return digest_json({"files": state, "ledger": ledger, "cursor": list(cursor)})


def encode_manifest(manifest: Manifest) -> bytes:
    """A manifest as stored: canonical JSON, so that its digest is its identity."""
    value = asdict(manifest)
    if not manifest.external:
        del value["external"]
    return canonical_json({"format": 2 if manifest.external else 1, **value})


def decode_manifest(data: bytes, key: str) -> Manifest:
    """A stored manifest.

    Raises:
        CheckpointError: It isn't one, or its state digest doesn't follow from its contents.
        FormatError: A newer version wrote it.
    """
    try:
        value = json.loads(data)
        version = value.pop("format")
        if version not in range(1, FORMAT + 1):
            raise FormatError(
                f"has format {version}, this version reads up to {FORMAT}",
                where=key,
                fix="upgrade crucible-kitchen",
            )
        files = {name: _decode_file(file) for name, file in value.pop("files").items()}
        records = {name: _decode_file(file) for name, file in value.pop("records").items()}
        external = tuple(ExternalState(**state) for state in value.pop("external", ()))
        manifest = Manifest(files=files, records=records, external=external, **value)
        if not isinstance(manifest.token, int):
            raise ValueError(f"token {manifest.token!r}")
        cursor = (manifest.epoch, manifest.global_step, manifest.steps_into_epoch)
        if manifest.state_digest != state_digest(files, records[LEDGER_FILE].sha256, cursor):
            raise CheckpointError("its state digest doesn't follow from its files", where=key)
        return manifest
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"is not a checkpoint's manifest: {error!r}", where=key) from error


def _decode_file(value: dict[str, Any]) -> StoredFile:
    file = StoredFile(**value)
    # The digest is part of a key.
    if not _SHA256.match(file.sha256) or not isinstance(file.size, int) or file.size < 0:
        raise ValueError(f"file {value}")
    return file
