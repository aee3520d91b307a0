"""The checkpoint store: publish, read back verified, quarantine, retention. Built only on the blob port.

Layout (all keys relative to the store):
    runs/<fingerprint>/head.json                  lease and index; the only mutable object of a run
    runs/<fingerprint>/payload/<token>/<sha256>   weights, optimiser, schedule, random state; what retention deletes
    blobs/sha256/<sha256>                         manifests, ledgers, step metrics, evaluations, models; never changed

The payload is content-addressed within its run and its holder, and not across. So deleting it needs no knowledge of
other runs: the lease of this one is enough, and nothing that another run refers to can be lost. Nor can what a later
holder publishes be lost to an earlier one that was stopped in the middle of deleting and doesn't know of it yet.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore, StoredFile, put_sound_file
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.checkpoints.head import (
    CheckpointEntry,
    Head,
    RecordedEvaluation,
    decode_head,
    head_key,
)
from kitchen_resources.checkpoints.lease import Lease
from kitchen_resources.checkpoints.manifest import (
    LEDGER_FILE,
    STEPS_FILE,
    Manifest,
    decode_manifest,
    encode_manifest,
    state_digest,
)
from kitchen_resources.digests import canonical_json, digest_file
from kitchen_resources.errors import CheckpointError, DiskFull, FormatError
from kitchen_resources.training.port import TRANSCRIPT, CheckpointDraft, LocalCheckpoint, StepMetrics


@dataclass(frozen=True)
class RunRecord:
    """What every checkpoint of a run has in common."""

    fingerprint: str
    recipe: str
    identity: Mapping[str, Any]
    environment: Mapping[str, Any]
    base: Mapping[str, Any]
    serving: Mapping[str, Any]
    simulated: bool


class CheckpointStore:
    """Checkpoints of all runs in a blob store."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs
        self.content = ContentStore(blobs)

    # Reading.

    def head(self, fingerprint: str) -> Head:
        """The head of a run; an empty one when the run has never been started."""
        stored = self.blobs.get(head_key(fingerprint))
        return decode_head(stored.data, head_key(fingerprint)) if stored else Head(fingerprint)

    def find(self, prefix: str) -> list[str]:
        """The fingerprints of all runs that start with a prefix of hexadecimal digits, sorted."""
        found = {key.split("/")[1] for key in self.blobs.list(f"runs/{prefix}") if key.endswith("/head.json")}
        return sorted(found)

    def manifest(self, entry: CheckpointEntry) -> Manifest:
        """The manifest of a checkpoint.

        Raises:
            CheckpointError: It is missing or damaged.
        """
        return decode_manifest(self.content.get(entry.manifest), f"manifest {entry.manifest[:12]}")

    def ledger(self, manifest: Manifest) -> list[list[int]]:
        """The prepared rows that each optimiser step of the epoch so far received, in order."""
        rows: list[list[int]] = json.loads(self.content.get(manifest.records[LEDGER_FILE].sha256))
        return rows

    def steps(self, manifest: Manifest) -> list[StepMetrics]:
        """The step metrics of the epoch so far."""
        text = self.content.get(manifest.records[STEPS_FILE].sha256).decode()
        return [StepMetrics(**json.loads(line)) for line in text.splitlines()]

    def transcript(self, manifest: Manifest) -> list[dict[str, Any]]:
        """Some of what was sampled in the epoch; empty where the method samples nothing."""
        stored = manifest.records.get(TRANSCRIPT)
        text = self.content.get(stored.sha256).decode() if stored else ""
        return [json.loads(line) for line in text.splitlines()]

    def checkout(self, fingerprint: str, entry: CheckpointEntry, target: Path) -> LocalCheckpoint:
        """Bring a checkpoint's payload into a local folder, every byte verified.

        Args:
            fingerprint: The run.
            entry: Which of its checkpoints.
            target: Folder to make; replaced when it exists.

        Raises:
            CheckpointError: A file is missing or damaged, or the payload was pruned.
        """
        where = f"run {fingerprint[:12]}, step {entry.step}"
        manifest = self._manifest_of(fingerprint, entry)
        for record in manifest.records.values():
            # The epoch goes on with the rows and steps that it has.
            self.content.get(record.sha256)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name, file in manifest.files.items():
            path = target / name
            key = payload_key(fingerprint, manifest.token, file.sha256)
            if self.blobs.size(key) != file.size:
                raise CheckpointError(f"{name} is missing or has another size", where=where)
            # Once more, because bytes may also be damaged on their way here, for which nothing stored is to blame.
            if not any(self._fetched(key, path, file.sha256) for _ in range(2)):
                raise CheckpointError(f"the bytes of {name} don't match its digest", where=where)
        return _local(target, manifest)

    def _fetched(self, key: str, path: Path, sha256: str) -> bool:
        """Bring an object into a file, and tell whether its bytes are those of a digest."""
        path.unlink(missing_ok=True)
        self.blobs.get_file(key, path)
        return digest_file(path) == sha256

    def _manifest_of(self, fingerprint: str, entry: CheckpointEntry) -> Manifest:
        """The manifest of a checkpoint whose payload is wanted."""
        where = f"run {fingerprint[:12]}, step {entry.step}"
        if entry.payload != "present":
            raise CheckpointError(f"its payload was {entry.payload} ({entry.reason})", where=where)
        manifest = self.manifest(entry)
        if manifest.fingerprint != fingerprint:
            raise CheckpointError(f"its manifest belongs to run {manifest.fingerprint[:12]}", where=where)
        if (manifest.global_step, manifest.state_digest) != (entry.step, entry.state_digest):
            raise CheckpointError(f"its manifest is that of step {manifest.global_step}", where=where)
        for name in manifest.files:
            _require_plain(name, where)
        return manifest

    def checkout_shared(self, fingerprint: str, entry: CheckpointEntry, target: Path) -> LocalCheckpoint:
        """As `checkout`, into a folder that other processes may be making or reading at the same time.

        It is never replaced while it is sound, and whole as soon as it has its name.
        """
        manifest = self._manifest_of(fingerprint, entry)
        if not _is_whole(target, manifest):
            draft = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
            try:
                self.checkout(fingerprint, entry, draft / "sound")
                with suppress(OSError):
                    target.rename(draft / "damaged")
                with suppress(OSError):
                    # It is there when another process has made it meanwhile.
                    (draft / "sound").rename(target)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return _local(target, manifest)

    def resume_point(self, lease: Lease, target: Path, on_damage: Callable[[str], None]) -> LocalCheckpoint | None:
        """The newest checkpoint whose payload is present and verifies; damaged ones are quarantined on the way.

        Args:
            lease: The run's lease.
            target: Folder to bring it into.
            on_damage: Told what was quarantined and why.

        Returns:
            None when there is no usable checkpoint.
        """
        present = [entry for entry in lease.head.entries() if entry.payload == "present"]
        found = (self.checkout_if_sound(lease, entry, target, on_damage) for entry in reversed(present))
        return next((checkpoint for checkpoint in found if checkpoint is not None), None)

    def checkout_if_sound(
        self, lease: Lease, entry: CheckpointEntry, target: Path, on_damage: Callable[[str], None]
    ) -> LocalCheckpoint | None:
        """Bring a checkpoint's payload into a local folder, as `checkout`; quarantine it when it is damaged.

        Args:
            lease: The run's lease.
            entry: Which of its checkpoints; its payload is present.
            target: Folder to make.
            on_damage: Told what was quarantined and why.

        Returns:
            None when it is damaged.
        """
        try:
            return self.checkout(lease.head.fingerprint, entry, target)
        except FormatError:
            raise
        except CheckpointError as error:
            self.quarantine(lease, entry.step, str(error))
            on_damage(f"the checkpoint at step {entry.step} is damaged and was quarantined: {error}")
            return None

    def quarantine(self, lease: Lease, step: int, reason: str) -> None:
        """Take a damaged checkpoint out of use: it doesn't exist any more, and is made again."""

        def change(head: Head) -> Head:
            head = head.with_entry(step, payload="quarantined", reason=reason)
            # Of one that was pruned and made again, the pruned one is no replacement.
            return change(head) if head.at(step) is not None else head

        lease.update(change)

    # Writing.

    def publish(self, lease: Lease, draft: CheckpointDraft, record: RunRecord, parent: str) -> CheckpointEntry:
        """Publish a checkpoint: files, then manifest, then its name in the head, which is the moment it exists.

        Args:
            lease: The run's lease; a holder that lost it publishes nothing.
            draft: Files and what they are.
            record: What the run's checkpoints have in common.
            parent: State digest of the checkpoint this one was trained from, or "".

        Raises:
            LeaseLost: Another process took the run over.
            DiskFull: There is no room.
        """
        lease.check()
        files = {
            name: self._put_payload(lease, draft.folder / name, state=name in draft.state_files)
            for name in [*draft.state_files, *draft.other_files]
        }
        ledger = self._put_record(canonical_json([list(step) for step in draft.row_ids]))
        lines = b"".join(canonical_json(asdict(step)) + b"\n" for step in draft.steps)
        cursor = (draft.epoch, draft.global_step, draft.steps_into_epoch)
        manifest = Manifest(
            fingerprint=record.fingerprint,
            recipe=record.recipe,
            identity=record.identity,
            environment=record.environment,
            base=record.base,
            serving=record.serving,
            token=lease.token,
            epoch=draft.epoch,
            global_step=draft.global_step,
            steps_into_epoch=draft.steps_into_epoch,
            epoch_complete=draft.epoch_complete,
            parent=parent,
            files=files,
            records={
                **{name: self._put_record(data) for name, data in draft.records.items()},
                LEDGER_FILE: ledger,
                STEPS_FILE: self._put_record(lines),
            },
            metrics=dict(draft.metrics),
            state_digest=state_digest(files, ledger.sha256, cursor),
            simulated=record.simulated,
            external=tuple(draft.external),
        )
        entry = CheckpointEntry(
            step=draft.global_step,
            epoch=draft.epoch,
            epoch_complete=draft.epoch_complete,
            manifest=self.content.put(encode_manifest(manifest)),
            state_digest=manifest.state_digest,
            bytes=sum(file.size for file in files.values()),
        )
        lease.update(lambda head: replace(head, checkpoints=(*head.checkpoints, entry)))
        return entry

    def record_evaluation(
        self, lease: Lease, step: int, key: str, details: Any, metrics: Mapping[str, float]
    ) -> None:
        """Keep an evaluation with its checkpoint, under the key of what was asked."""
        blob = self.content.put_json(details)
        recorded = RecordedEvaluation(blob=blob, metrics=dict(metrics))

        def change(head: Head) -> Head:
            entry = head.at(step)
            known = entry.evaluations if entry else {}
            return head.with_entry(step, evaluations={**known, key: recorded})

        lease.update(change)

    def prune(self, lease: Lease, keep: set[int], reason: str) -> list[int]:
        """Delete the payload of the run's checkpoints but for the steps in `keep`; their records stay.

        Payload goes only after the head says so: a kill in between leaves bytes too many, never a name too many,
        and the next prune deletes such bytes. So it does those of attempts that died before they published, and of
        what was quarantined. A checkpoint whose manifest is damaged is quarantined.

        Returns:
            The steps pruned by this call.

        Raises:
            LeaseLost: Another process took the run over.
        """
        fingerprint = lease.head.fingerprint
        pruned = [e.step for e in lease.head.entries() if e.payload == "present" and e.step not in keep]

        def change(head: Head) -> Head:
            for step in pruned:
                head = head.with_entry(step, payload="pruned", reason=reason)
            return head

        lease.update(change)
        needed = self._needed(lease)
        prefix = payload_key(fingerprint)
        for key in list(self.blobs.list(prefix)):
            # What a later holder makes is never touched: this one may have been taken over since it last looked.
            token = key.removeprefix(prefix).partition("/")[0]
            if token.isdecimal() and int(token) <= lease.token and key not in needed:
                lease.check()
                self.blobs.delete(key)
        return pruned

    def _needed(self, lease: Lease) -> set[str]:
        """Keys of the payload that the run's checkpoints need."""
        needed: set[str] = set()
        for entry in lease.head.entries():
            if entry.payload != "present":
                continue
            try:
                manifest = self.manifest(entry)
            except FormatError:
                raise
            except CheckpointError as error:
                self.quarantine(lease, entry.step, str(error))
                continue
            for file in manifest.files.values():
                needed.add(payload_key(lease.head.fingerprint, manifest.token, file.sha256))
        return needed

    def require_space(self, state_bytes: int) -> None:
        """Refuse an epoch whose checkpoint would not fit: scratch, store, and the copy to resume from.

        Raises:
            DiskFull: With both numbers.
        """
        free = self.blobs.free_bytes()
        needed = 3 * state_bytes
        if free is not None and free < needed:
            raise DiskFull(
                f"{_mib(free)} MiB are free, and the next checkpoint needs {_mib(needed)} MiB "
                f"(3 x {_mib(state_bytes)}: scratch, store, and the copy to resume from)",
                where=self.blobs.uri,
                fix="free disk space, delete old checkpoints by kitchen_assets.prune(), "
                "or point KITCHEN_STORE to a larger disk",
            )

    def _put_payload(self, lease: Lease, path: Path, *, state: bool) -> StoredFile:
        size = path.stat().st_size
        sha256 = digest_file(path)
        put_sound_file(self.blobs, payload_key(lease.head.fingerprint, lease.token, sha256), path, sha256)
        return StoredFile(sha256, size, state)

    def _put_record(self, data: bytes) -> StoredFile:
        return StoredFile(self.content.put(data), len(data), state=False)


def local_checkpoint(folder: Path, draft: CheckpointDraft, entry: CheckpointEntry) -> LocalCheckpoint:
    """The local folder of a checkpoint that this process has just published, as a parent for what comes next."""
    return LocalCheckpoint(
        folder=folder,
        epoch=draft.epoch,
        global_step=draft.global_step,
        steps_into_epoch=draft.steps_into_epoch,
        epoch_complete=draft.epoch_complete,
        state_digest=entry.state_digest,
    )


def _local(folder: Path, manifest: Manifest) -> LocalCheckpoint:
    return LocalCheckpoint(
        folder=folder,
        epoch=manifest.epoch,
        global_step=manifest.global_step,
        steps_into_epoch=manifest.steps_into_epoch,
        epoch_complete=manifest.epoch_complete,
        state_digest=manifest.state_digest,
    )


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """Whether a local folder holds a checkpoint's files, every byte verified."""
    paths = {folder / name: file.sha256 for name, file in manifest.files.items()}
    return all(path.is_file() and digest_file(path) == sha256 for path, sha256 in paths.items())


def _require_plain(name: str, where: str) -> None:
    """Refuse a file name of a manifest that could lead out of the folder it is written to."""
    if not name or name != Path(name).name or name in (".", "..") or "\\" in name or "\0" in name:
        raise CheckpointError(f"its manifest names the file {name!r}", where=where)


def payload_key(fingerprint: str, token: int | None = None, sha256: str = "") -> str:
    """Key of a file, or what the keys of all files of a run start with."""
    prefix = f"runs/{fingerprint}/payload/"
    return prefix if token is None else f"{prefix}{token}/{sha256}"


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f}"
