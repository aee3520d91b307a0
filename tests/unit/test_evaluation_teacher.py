"""How far a student is from its teacher, against a computation of one row at a time without padding."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from kitchen_resources.errors import EvaluationError
from kitchen_resources.evaluation import likelihood, teacher
from kitchen_resources.evaluation.local import LocalEvaluator
from kitchen_resources.evaluation.port import EvaluationResult
from kitchen_resources.evaluation.teacher import TeacherTask
from kitchen_resources.formulas.metrics import ratio_interval
from kitchen_resources.formulas.selection import lower_is_better
from kitchen_resources.training.port import BaseModel
from tests.tiny_models import Row, evaluated, load_plain, write_adapter, write_rows, write_tiny_model

pytestmark = pytest.mark.heavy

KL = "held_out/teacher_kl"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    student = write_tiny_model(folder / "student", seed=0, scale=2.0)
    return {
        "student": student,
        "teacher": write_tiny_model(folder / "teacher", seed=1),
        "adapter": write_adapter(folder / "adapter", student),
    }


def drawn_rows(count: int = 7, seed: int = 0) -> list[Row]:
    """Rows of 3 to 30 tokens, of which about half are learned."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens = [generator.randrange(32, 127) for _ in range(generator.randrange(3, 31))]
        labels = [token if generator.random() < 0.5 else -100 for token in tokens]
        labels[-1] = tokens[-1]
        rows.append((tokens, labels))
    return rows


def task(rows: Path, folder: Path, **changes: Any) -> TeacherTask:
    whole: dict[str, Any] = {
        "name": "held_out",
        "digest": "1" * 64,
        "rows": rows,
        "teacher": BaseModel("teacher", folder, "7" * 64, {}),
        "batch_size": 3,
        "pad_token_id": 256,
    }
    return TeacherTask(**{**whole, **changes})


def measured(asked: TeacherTask, student: Path, **model: Any) -> EvaluationResult:
    return LocalEvaluator().evaluate(evaluated(student, **model), [asked])


def by_hand(taught: Any, said: Any, rows: list[Row]) -> tuple[list[float], list[int]]:
    """Sum of KL(teacher || student) over the learned tokens of each row, in float64, and their number."""
    sums, counts = [], []
    for tokens, labels in rows:
        with torch.no_grad():
            p, q = (
                model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1) for model in (taught, said)
            )
        places = [place - 1 for place, label in enumerate(labels) if label != -100 and place > 0]
        sums.append(sum((p[place].exp() * (p[place] - q[place])).sum().item() for place in places))
        counts.append(len(places))
    return sums, counts


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_the_divergence_is_the_mean_over_learned_tokens(
    models: dict[str, Path], tmp_path: Path, batch_size: int
) -> None:
    rows = drawn_rows()
    path = write_rows(tmp_path / "rows.parquet", rows)
    result = measured(task(path, models["teacher"], batch_size=batch_size), models["student"])
    sums, counts = by_hand(load_plain(models["teacher"]), load_plain(models["student"]), rows)
    got, (low, high) = result.measures[KL], ratio_interval(sums, counts)
    assert set(result.measures) == {KL}
    assert result.samples == []
    assert got.n == 7
    assert (got.value, got.low, got.high) == pytest.approx((sum(sums) / sum(counts), low, high), rel=1e-5)
    # It isn't the divergence the other way round.
    others, _ = by_hand(load_plain(models["student"]), load_plain(models["teacher"]), rows)
    assert abs(sum(others) - sum(sums)) / sum(counts) > 1e-3


def test_a_teacher_is_at_no_distance_from_itself(models: dict[str, Path], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", drawn_rows())
    got = measured(task(path, models["teacher"]), models["teacher"]).measures[KL]
    assert (got.value, got.n, got.low, got.high) == (0.0, 7, 0.0, 0.0)


def test_a_student_with_an_adapter(models: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel

    rows = drawn_rows()
    path = write_rows(tmp_path / "rows.parquet", rows)
    student = PeftModel.from_pretrained(load_plain(models["student"]), models["adapter"]).eval()
    sums, counts = by_hand(load_plain(models["teacher"]), student, rows)
    got = measured(task(path, models["teacher"]), models["student"], adapter=models["adapter"]).metrics()
    assert got == {KL: pytest.approx(sum(sums) / sum(counts), rel=1e-5)}


def test_logits_of_both_models_are_bounded(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.parquet", [([n] * 20, [n] * 20) for n in range(40, 47)])
    whole = measured(task(path, models["teacher"], batch_size=64), models["student"]).metrics()
    passes: list[int] = []
    forward = teacher._forward

    def counted(first: Any, second: Any, rows: Any, pad: int) -> Any:
        passes.append(len(rows))
        return forward(first, second, rows, pad)

    monkeypatch.setattr(teacher, "_forward", counted)
    monkeypatch.setattr(likelihood, "_LOGITS", 3 * 20 * 2 * 259)
    assert measured(task(path, models["teacher"], batch_size=64), models["student"]).metrics() == pytest.approx(whole)
    assert passes == [3, 3, 1]


def test_where_nothing_is_learned_nothing_is_measured(models: dict[str, Path], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.parquet", [([1, 2], [-100, -100]), ([1], [1])])
    assert measured(task(path, models["teacher"]), models["student"]).measures == {}


def test_a_teacher_of_another_vocabulary_is_refused(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.parquet", drawn_rows())
    sizes = iter([300, 259, 300, 259])
    monkeypatch.setattr(teacher, "vocabulary", lambda model: next(sizes))
    with pytest.raises(EvaluationError) as refused:
        measured(task(path, models["teacher"]), models["student"])
    assert str(refused.value) == (
        "evaluation held_out: the teacher has 300 tokens and the student 259\n"
        "  fix: name a teacher of the student's vocabulary"
    )


def test_a_divergence_that_is_not_finite_names_the_row(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_rows(tmp_path / "rows.parquet", drawn_rows())
    found = iter([0.5, 0.5, 0.5, math.nan])
    monkeypatch.setattr(teacher, "_forward", lambda first, second, rows, pad: [(next(found), 1.0) for _ in rows])
    with pytest.raises(EvaluationError, match="evaluation held_out: the divergence of row 3 is nan"):
        measured(task(path, models["teacher"], batch_size=2), models["student"])


def test_what_moves_the_number_moves_the_spec(tmp_path: Path) -> None:
    asked = task(tmp_path, tmp_path)
    other = BaseModel("teacher", tmp_path, "8" * 64, {})
    for changed in ({"digest": "2" * 64}, {"teacher": other}, {"name": "other"}):
        assert task(tmp_path, tmp_path, **changed).spec() != asked.spec()
    assert task(tmp_path / "elsewhere", tmp_path, batch_size=1).spec() == asked.spec()


def test_closer_to_the_teacher_is_better() -> None:
    assert lower_is_better(KL)
