"""Checkpoints as lineage: each published one is at once a materialization of `<recipe>/checkpoints`."""

from typing import Any

import dagster as dg

from kitchen_assets.composition import CheckpointJob, ExternalStage
from kitchen_assets.context import StageContext
from kitchen_assets.tables import loss_plot, markdown_table
from kitchen_resources.checkpoints.head import CheckpointEntry, Head
from kitchen_resources.checkpoints.manifest import Manifest
from kitchen_resources.digests import digest_json
from kitchen_resources.errors import CheckpointError
from kitchen_resources.training.run import TrainingRun

checkpoints = ExternalStage(
    name="checkpoints",
    description="The checkpoints of every run of this recipe, by fingerprint and step. Training publishes them while it "
    "goes; the store says which exist, and this is its picture.",
    group="checkpoints",
    kinds=frozenset({"pytorch", "safetensors"}),
)


checkpoint_evaluation = ExternalStage(
    name="checkpoint_evaluation",
    description="What was measured of the checkpoints, by fingerprint and step: at the ends of epochs while training, and "
    "by the job `<recipe>_evaluate_checkpoint`.",
    group="evaluation",
    kinds=frozenset({"python"}),
)


_TRANSCRIBED = 12
"""Lines of a transcript that the UI shows."""

_OF_EVERY_METHOD = frozenset(
    {
        *("loss", "last_loss", "learning_rate", "grad_norm", "tokens", "seconds", "tokens_per_second"),
        *("peak_host_memory_bytes", "peak_device_memory_bytes", "entropy", "mean_token_accuracy"),
    }
)


def partition_key(fingerprint: str, step: int) -> str:
    """Key of a checkpoint's partition; padded, so that keys sort by step."""
    return f"{fingerprint[:12]}/{step:09d}"


def find_checkpoint(kitchen: StageContext, checkpoint: str) -> tuple[TrainingRun, CheckpointEntry]:
    """A checkpoint by the key of its partition, and the run that made it, which this launch's config is that of.

    Raises:
        CheckpointError: The config is another run's, or there is no such checkpoint.
    """
    run = TrainingRun(kitchen.launch, CheckpointEvents(kitchen))
    prefix, _, step = checkpoint.partition("/")
    where = f"checkpoint {checkpoint}"
    if not run.fingerprint.startswith(prefix) or len(prefix) < 8 or not step.isdecimal():
        raise CheckpointError(
            f"isn't one of run {run.fingerprint[:12]}, which this config is of",
            where=where,
            fix="give the config of the run that made it, and the key of its partition: 3f2a91c04b77/000000400",
        )
    entry = run.head().at(int(step))
    if entry is None:
        raise CheckpointError(
            "there is none at this step", where=where, fix=f"see the asset {kitchen.name}/checkpoints"
        )
    return run, entry


def _retain_checkpoints(kitchen: StageContext, checkpoint: str) -> dict[str, Any]:
    run, _ = find_checkpoint(kitchen, checkpoint)
    run.retain()
    whole = [entry.step for entry in run.head().entries() if entry.payload == "present"]
    return {"fingerprint": run.fingerprint, "kept": dg.MetadataValue.json(whole)}


retain_checkpoints = CheckpointJob(
    name="retain_checkpoints",
    execute=_retain_checkpoints,
    description="Delete the payload of a run's checkpoints that its recipe doesn't keep (`keep_last`, `keep_best`); "
    "`checkpoint` is the key of the partition of any of them. The config must be that of the run that made it.",
)


class CheckpointEvents:
    """Tells Dagster of the run's checkpoints and sentences; the `Observer` of a training run."""

    def __init__(self, kitchen: StageContext) -> None:
        self._kitchen = kitchen

    def say(self, message: str) -> None:
        """See `Observer.say`."""
        self._kitchen.say(message)

    def published(self, entry: CheckpointEntry) -> None:
        """See `Observer.published`."""
        self._report(self._kitchen.launch.checkpoints.manifest(entry), entry)

    def reconcile(self, fingerprint: str, head: Head) -> None:
        """Report the checkpoints that the event log lacks: of a killed process, or of another Dagster instance."""
        key = dg.AssetKey([self._kitchen.name, "checkpoints"])
        known = self._kitchen.instance.get_materialized_partitions(key)
        for entry in head.entries():
            if partition_key(fingerprint, entry.step) not in known:
                self._report(self._kitchen.launch.checkpoints.manifest(entry), entry)

    def report_evaluations(self, fingerprint: str, head: Head) -> None:
        """Report what was measured of the run's checkpoints and the event log doesn't have yet."""
        kitchen = self._kitchen
        key = dg.AssetKey([kitchen.name, "checkpoint_evaluation"])
        evaluated = {partition_key(fingerprint, entry.step): entry for entry in head.entries() if entry.evaluations}
        if not evaluated:
            return
        known = kitchen.instance.get_materialized_partitions(key)
        for partition, entry in evaluated.items():
            if partition not in known:
                kitchen.instance.add_dynamic_partitions(kitchen.partitions(), [partition])
                kitchen.log_event(_evaluated(key, partition, fingerprint, entry))

    def _report(self, manifest: Manifest, entry: CheckpointEntry) -> None:
        kitchen = self._kitchen
        partition = partition_key(manifest.fingerprint, entry.step)
        partitions = kitchen.partitions()
        kitchen.instance.add_dynamic_partitions(partitions, [partition])
        kitchen.log_event(
            dg.AssetMaterialization(
                asset_key=[kitchen.name, "checkpoints"],
                partition=partition,
                metadata=self._metadata(manifest, entry),
                tags={"dagster/data_version": entry.state_digest},
            )
        )

    def _metadata(self, manifest: Manifest, entry: CheckpointEntry) -> dict[str, Any]:
        store = self._kitchen.launch.checkpoints
        metrics = manifest.metrics
        steps = [(step.global_step, step.loss) for step in store.steps(manifest)]
        return {
            "epoch": manifest.epoch,
            "step": manifest.global_step,
            "epoch_complete": manifest.epoch_complete,
            # A service that trains on its own tells no losses.
            **{name: metrics[name] for name in ("loss", "learning_rate", "tokens_per_second") if name in metrics},
            "tokens": int(metrics["tokens"]),
            "seconds": metrics["seconds"],
            "peak_host_memory_bytes": int(metrics.get("peak_host_memory_bytes", 0)),
            "peak_device_memory_bytes": int(metrics.get("peak_device_memory_bytes", 0)),
            "bytes": entry.bytes,
            "state_digest": entry.state_digest,
            "parent": manifest.parent,
            "fingerprint": manifest.fingerprint,
            "uri": f"{store.blobs.uri}/blobs/sha256/{entry.manifest}",
            "simulated": manifest.simulated,
            **({"plot": dg.MetadataValue.md(loss_plot(steps))} if steps else {}),
            **self._of_method(manifest),
        }

    def _of_method(self, manifest: Manifest) -> dict[str, Any]:
        """What only the method measures in training, and some of what it sampled."""
        measured = {name: value for name, value in manifest.metrics.items() if name not in _OF_EVERY_METHOD}
        found: dict[str, Any] = {"metrics": dg.MetadataValue.json(measured)} if measured else {}
        lines = self._kitchen.launch.checkpoints.transcript(manifest)
        if lines:
            found["transcript"] = dg.MetadataValue.md(
                markdown_table([_spoken(line) for line in lines[:_TRANSCRIBED]])
            )
        return found


def _evaluated(key: dg.AssetKey, partition: str, fingerprint: str, entry: CheckpointEntry) -> dg.AssetMaterialization:
    """What was measured of a checkpoint, by all evaluations that were asked for so far."""
    metrics = {name: value for recorded in entry.evaluations.values() for name, value in recorded.metrics.items()}
    return dg.AssetMaterialization(
        asset_key=key,
        partition=partition,
        metadata={"fingerprint": fingerprint, "step": entry.step, "epoch": entry.epoch, **metrics},
        tags={"dagster/data_version": digest_json([entry.state_digest, sorted(entry.evaluations)])},
    )


def _spoken(line: dict[str, Any]) -> dict[str, Any]:
    """A line of a transcript as a row of a table: the turns of an episode as one text."""
    turns = line.get("turns")
    if turns is None:
        return {name: line.get(name) for name in ("prompt", "answer")}
    said = " ⏎ ".join(
        f"{turn['text']} → {turn['observation']}" if turn["observation"] else turn["text"] for turn in turns
    )
    return {name: line.get(name) for name in ("group", "sample", "prompt")} | {
        "turns": said,
        "reward": line.get("reward"),
        "solved": line.get("solved"),
        "failure": line.get("failure"),
    }
