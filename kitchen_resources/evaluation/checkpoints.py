"""Evaluating the checkpoints of a run, and its base, each once."""

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from kitchen_resources.blobs.workplace import workplace
from kitchen_resources.checkpoints.head import CheckpointEntry, Head
from kitchen_resources.checkpoints.lease import Lease
from kitchen_resources.digests import canonical_json
from kitchen_resources.evaluation.port import EvaluatedModel, EvaluationResult, Task, result_from_json
from kitchen_resources.evaluation.tasks import evaluation_key, make_tasks
from kitchen_resources.launch import Launch
from kitchen_resources.training.port import Resolution
from kitchen_resources.training.pytorch.machine import to_run_here

ADAPTER_WEIGHTS = "adapter_model.safetensors"


class CheckpointEvaluations:
    """What a launch measures of its checkpoints. The result stays with the checkpoint, under the key of what was asked."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    @property
    def asked(self) -> bool:
        """Whether anything is measured at all."""
        return not self._launch.simulated and bool(self.tasks)

    @cached_property
    def tasks(self) -> list[Task]:
        """What the method measures of held-out rows, and the recipe's evaluations."""
        return make_tasks(self._launch, self._launch.cache / "rows")

    @cached_property
    def key(self) -> str:
        """Key of what is asked."""
        return evaluation_key(self.tasks, self._launch.ports.evaluator.name)

    def values(self, head: Head, metric: str) -> Mapping[int, float]:
        """A metric by epoch, where it was measured at the epoch's end."""
        if not self.asked:
            return {}
        found = {}
        for entry in head.entries():
            recorded = entry.evaluations.get(self.key)
            if entry.epoch_complete and recorded is not None and metric in recorded.metrics:
                found[entry.epoch] = recorded.metrics[metric]
        return found

    def evaluate(
        self, lease: Lease, entry: CheckpointEntry, resolution: Resolution, on_damage: Callable[[str], None]
    ) -> None:
        """Evaluate a checkpoint of the run and record it with the checkpoint; quarantine it when it is damaged."""
        launch = self._launch
        with workplace(launch.ports.blobs.scratch(), "evaluate") as place:
            folder = place / "checkpoint"
            if launch.checkpoints.checkout_if_sound(lease, entry, folder, on_damage) is None:
                return
            result = launch.ports.evaluator.evaluate(self._model(folder, entry.state_digest, resolution), self.tasks)
        lease.check()
        launch.checkpoints.record_evaluation(lease, entry.step, self.key, result.as_json(), result.metrics())
        launch.ports.telemetry.emit(
            "training.eval",
            result.metrics(),
            {"recipe": launch.name, "fingerprint": lease.head.fingerprint, "epoch": entry.epoch, "step": entry.step},
        )

    def recorded(self, entry: CheckpointEntry) -> EvaluationResult | None:
        """What was measured of a checkpoint; None when it wasn't evaluated on this."""
        found = entry.evaluations.get(self.key)
        return result_from_json(json.loads(self._launch.content.get(found.blob))) if found else None

    def of_base(self, resolution: Resolution) -> EvaluationResult:
        """What is measured of the base model; measured once for all runs that ask the same of it in one precision."""
        launch, base = self._launch, self._launch.base
        assert base.folder is not None
        model = self._model(base.folder, base.digest, resolution)
        key = f"evaluations/{base.digest}/{model.dtype}/{self.key}.json"
        stored = launch.ports.blobs.get(key)
        if stored is not None:
            return result_from_json(json.loads(stored.data))
        result = launch.ports.evaluator.evaluate(model, self.tasks)
        launch.ports.blobs.put_if_absent(key, canonical_json(result.as_json()))
        return result

    def _model(self, folder: Path, digest: str, resolution: Resolution) -> EvaluatedModel:
        base = self._launch.base
        assert base.folder is not None
        device, attention = to_run_here(resolution)
        is_adapter = (folder / ADAPTER_WEIGHTS).exists()
        return EvaluatedModel(
            folder=base.folder if is_adapter else folder,
            adapter=folder if is_adapter else None,
            tokenizer=base.folder,
            digest=digest,
            dtype="bfloat16" if resolution.values["precision"] == "bf16" else "float32",
            attention=attention,
            device=device,
            threads=resolution.threads,
        )
