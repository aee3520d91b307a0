"""How far a student is from its teacher on held-out rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kitchen_resources.errors import EvaluationError
from kitchen_resources.evaluation.likelihood import (
    Row,
    not_finite,
    padded,
    per_token,
    read_rows,
    rows_at_once,
    vocabulary,
)
from kitchen_resources.evaluation.local import load_model
from kitchen_resources.evaluation.port import EvaluationResult, LoadedModel
from kitchen_resources.training.port import BaseModel


@dataclass(frozen=True)
class TeacherTask:
    """`teacher_kl`: the mean over learned tokens of KL(teacher || student) at temperature 1, in nats.

    Attributes:
        name: Prefix of its metric.
        digest: Digest of its rows.
        rows: Parquet file with `input_ids` and `labels`.
        teacher: The teacher; its vocabulary is the student's.
        batch_size: Rows at a time.
        pad_token_id: Filler of short rows.
    """

    name: str
    digest: str
    rows: Path
    teacher: BaseModel
    batch_size: int
    pad_token_id: int

    def spec(self) -> dict[str, Any]:
        """See `Task.spec`."""
        return {"name": self.name, "measure": "teacher_kl", "rows": self.digest, "teacher": self.teacher.digest}

    def measure(self, model: LoadedModel) -> EvaluationResult:
        """See `Task.measure`. Both models are in memory at once: the logits of all rows would be too much to keep."""
        student, teacher = model.model, self._load_teacher(model)
        totals: list[tuple[float, float]] = []
        for rows in read_rows(self.rows, self.batch_size):
            for total, count in _divergences(teacher, student, rows, self.pad_token_id):
                if not math.isfinite(total):
                    raise not_finite(self.name, f"the divergence of row {len(totals)}", total)
                totals.append((total, count))
        mean = per_token(totals)
        return EvaluationResult({f"{self.name}/teacher_kl": mean} if mean else {}, [])

    def _load_teacher(self, model: LoadedModel) -> Any:
        assert self.teacher.folder is not None
        teacher = load_model(
            replace(model.source, folder=self.teacher.folder, adapter=None, digest=self.teacher.digest)
        )
        if vocabulary(teacher) != vocabulary(model.model):
            raise EvaluationError(
                f"the teacher has {vocabulary(teacher)} tokens and the student {vocabulary(model.model)}",
                where=f"evaluation {self.name}",
                fix="name a teacher of the student's vocabulary",
            )
        return teacher


def _divergences(teacher: Any, student: Any, rows: Sequence[Row], pad: int) -> Iterator[tuple[float, float]]:
    """Sum of the divergences at each row's learned tokens, and their number."""
    longest = max(len(ids) for ids, _ in rows)
    at_once = rows_at_once(longest, vocabulary(teacher) + vocabulary(student))
    for start in range(0, len(rows), at_once):
        yield from _forward(teacher, student, rows[start : start + at_once], pad)


def _forward(teacher: Any, student: Any, rows: Sequence[Row], pad: int) -> Iterator[tuple[float, float]]:
    import torch
    from torch.nn.functional import kl_div, log_softmax

    arguments, labels = padded(rows, pad, student.device)
    learned = labels[:, 1:] != -100
    # Only where something is learned: the softmaxes of all positions would double the memory.
    taught, said = (
        log_softmax(model(**arguments).logits[:, :-1][learned].float(), dim=-1) for model in (teacher, student)
    )
    # kl_div(input, target) is KL(target || input).
    each = kl_div(said, taught, reduction="none", log_target=True).double().sum(-1)
    sums = torch.zeros(learned.shape, dtype=torch.float64, device=each.device).masked_scatter(learned, each).sum(1)
    yield from zip(sums.tolist(), learned.sum(1).double().tolist(), strict=True)
