"""What a model prefers, against a computation of one row at a time without padding."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.errors import EvaluationError
from kitchen_resources.evaluation import pairs
from kitchen_resources.evaluation.final import FinalEvaluation
from kitchen_resources.evaluation.local import LocalEvaluator
from kitchen_resources.evaluation.pairs import PairsTask
from kitchen_resources.evaluation.port import EvaluationResult
from kitchen_resources.formulas.losses import dpo_loss
from kitchen_resources.formulas.metrics import mean_interval, wilson_interval
from kitchen_resources.training.port import BaseModel
from tests.tiny_models import evaluated, load_plain, write_adapter, write_tiny_model

pytestmark = pytest.mark.heavy

Pair = tuple[list[int], list[int], list[int]]
"""Prompt, chosen, rejected."""

BETA = 0.3
BASE, TRAINED = "b" * 64, "c" * 64
METRICS = {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, another model as if it had been trained, and an adapter on the base."""
    folder = tmp_path_factory.mktemp("models")
    base = write_tiny_model(folder / "base", seed=0, scale=2.0)
    return {
        "base": base,
        "trained": write_tiny_model(folder / "trained", seed=1, scale=2.0),
        "adapter": write_adapter(folder / "adapter", base),
    }


@pytest.fixture
def content() -> ContentStore:
    return ContentStore(MemoryBlobs())


def drawn_pairs(count: int = 9, seed: int = 0) -> list[Pair]:
    """Pairs whose prompts have 1 to 12 tokens and whose answers 1 to 9; one has twice the same answer."""
    generator = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [generator.randrange(32, 127) for _ in range(generator.randrange(1, most + 1))]

    drawn = [(tokens(12), tokens(9), tokens(9)) for _ in range(count)]
    drawn[2] = (drawn[2][0], drawn[2][1], drawn[2][1])
    return drawn


def write_pairs(path: Path, rows: Sequence[Pair]) -> Path:
    import pyarrow
    import pyarrow.parquet

    ids = pyarrow.list_(pyarrow.int32())
    schema = pyarrow.schema(
        [("where", pyarrow.string()), ("prompt_ids", ids), ("chosen_ids", ids), ("rejected_ids", ids)]
    )
    values = [
        {"where": f"rows:{n}", "prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
        for n, (prompt, chosen, rejected) in enumerate(rows)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values, schema=schema), path)
    return path


def task(rows: Path, base: Path, content: ContentStore, **changes: Any) -> PairsTask:
    whole: dict[str, Any] = {
        "name": "held_out",
        "digest": "1" * 64,
        "rows": rows,
        "samples": None,
        "beta": BETA,
        "reference": BaseModel("base", base, BASE, {}),
        "batch_size": 4,
        "pad_token_id": 256,
        "content": content,
    }
    return PairsTask(**{**whole, **changes})


def measured(asked: PairsTask, folder: Path, digest: str = TRAINED, **model: Any) -> EvaluationResult:
    return LocalEvaluator().evaluate(evaluated(folder, digest=digest, **model), [asked])


def logprob(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Of an answer after its prompt: summed, in float64, alone in its batch."""
    ids = torch.tensor([prompt + answer])
    with torch.no_grad():
        logprobs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(logprobs[len(prompt) + n - 1, token].item() for n, token in enumerate(answer))


def by_hand(policy: Any, reference: Any, rows: Sequence[Pair]) -> dict[str, list[float]]:
    """Each number of each pair."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for prompt, chosen, rejected in rows:
        better = BETA * (logprob(policy, prompt, chosen) - logprob(reference, prompt, chosen))
        worse = BETA * (logprob(policy, prompt, rejected) - logprob(reference, prompt, rejected))
        found["chosen_reward"].append(better)
        found["rejected_reward"].append(worse)
        found["margin"].append(better - worse)
        found["accuracy"].append(float(chosen != rejected and better > worse))
        found["loss"].append(math.log(1 + math.exp(-(better - worse))))
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_measures_are_those_of_each_pair_alone(
    models: dict[str, Path], content: ContentStore, tmp_path: Path, batch_size: int
) -> None:
    rows = drawn_pairs()
    path = write_pairs(tmp_path / "rows.parquet", rows)
    found = measured(task(path, models["base"], content, batch_size=batch_size), models["trained"]).measures
    expected = by_hand(load_plain(models["trained"]), load_plain(models["base"]), rows)
    assert set(found) == {f"held_out/{name}" for name in METRICS}
    for name in METRICS - {"accuracy"}:
        got, (low, high) = found[f"held_out/{name}"], mean_interval(expected[name])
        assert got.n == 9
        assert (got.value, got.low, got.high) == pytest.approx((sum(expected[name]) / 9, low, high), rel=1e-4)
        assert low < got.value < high
    right = int(sum(expected["accuracy"]))
    assert 0 < right < 8
    assert vars(found["held_out/accuracy"]) == {
        **{"value": right / 9, "n": 9},
        **dict(zip(("low", "high"), wilson_interval(right, 9), strict=True)),
    }


def test_measures_are_those_of_the_formula(models: dict[str, Path], content: ContentStore, tmp_path: Path) -> None:
    rows = drawn_pairs(5)
    path = write_pairs(tmp_path / "rows.parquet", rows)
    found = measured(task(path, models["base"], content), models["trained"]).metrics()
    sides = [
        [logprob(load_plain(models[model]), row[0], row[side]) for row in rows]
        for model in ("trained", "base")
        for side in (1, 2)
    ]
    _, expected = dpo_loss(*sides, beta=BETA)
    assert found == pytest.approx({f"held_out/{name}": expected[name] for name in METRICS}, rel=1e-4)


@pytest.mark.parametrize("digest", [BASE, TRAINED], ids=["known as the reference", "the same weights"])
def test_the_reference_itself_prefers_nothing(
    models: dict[str, Path], content: ContentStore, tmp_path: Path, digest: str
) -> None:
    path = write_pairs(tmp_path / "rows.parquet", drawn_pairs())
    found = measured(task(path, models["base"], content), models["base"], digest).measures
    values = {name.removeprefix("held_out/"): measure.value for name, measure in found.items()}
    assert values.pop("loss") == pytest.approx(math.log(2), rel=1e-12)
    assert values == {"accuracy": 0.0, "margin": 0.0, "chosen_reward": 0.0, "rejected_reward": 0.0}
    assert (found["held_out/accuracy"].low, found["held_out/accuracy"].high) == wilson_interval(0, 9)


def test_equal_answers_are_not_told_apart(models: dict[str, Path], content: ContentStore, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "rows.parquet", [([65], [66, 67], [66, 67])] * 3)
    found = measured(task(path, models["base"], content), models["trained"]).metrics()
    assert (found["held_out/accuracy"], found["held_out/margin"]) == (0.0, 0.0)
    assert found["held_out/chosen_reward"] == found["held_out/rejected_reward"] != 0.0


def test_one_pair_has_no_interval_but_for_its_share(
    models: dict[str, Path], content: ContentStore, tmp_path: Path
) -> None:
    path = write_pairs(tmp_path / "rows.parquet", drawn_pairs(3)[:1])
    found = measured(task(path, models["base"], content), models["trained"]).measures
    assert all(math.isnan(found[f"held_out/{name}"].low) for name in METRICS - {"accuracy"})
    assert found["held_out/accuracy"].n == 1


def test_only_the_first_pairs_are_read(models: dict[str, Path], content: ContentStore, tmp_path: Path) -> None:
    rows = drawn_pairs()
    some = task(write_pairs(tmp_path / "all.parquet", rows), models["base"], content, samples=6)
    first = task(write_pairs(tmp_path / "first.parquet", rows[:6]), models["base"], content, digest="2" * 64)
    assert measured(some, models["trained"]) == measured(first, models["trained"])


def test_without_a_pair_nothing_is_measured(models: dict[str, Path], content: ContentStore, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "rows.parquet", [])
    assert measured(task(path, models["base"], content), models["trained"]) == EvaluationResult({}, [])


# The reference.


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that references are loaded from."""
    folders: list[Path] = []
    load = pairs.load_model

    def counted(model: Any) -> Any:
        folders.append(model.folder)
        return load(model)

    monkeypatch.setattr(pairs, "load_model", counted)
    return folders


def test_the_reference_is_asked_once(
    models: dict[str, Path], content: ContentStore, tmp_path: Path, loads: list[Path]
) -> None:
    asked = task(write_pairs(tmp_path / "rows.parquet", drawn_pairs()), models["base"], content)
    first = measured(asked, models["trained"])
    assert measured(asked, models["trained"]) == first
    again = task(asked.rows, models["base"], content, beta=2 * BETA)
    doubled = measured(again, models["trained"], "e" * 64).metrics()
    assert doubled["held_out/margin"] == pytest.approx(2 * first.metrics()["held_out/margin"])
    assert loads == [models["base"]]
    # Another type, other rows, and another reference are other numbers.
    measured(asked, models["trained"], dtype="bfloat16")
    measured(task(asked.rows, models["base"], content, digest="2" * 64), models["trained"])
    other = BaseModel("other", models["trained"], "f" * 64, {})
    found = measured(task(asked.rows, models["base"], content, reference=other), models["trained"]).metrics()
    assert found["held_out/margin"] == 0.0
    assert loads == [*[models["base"]] * 3, models["trained"]]


def test_an_adapter_is_switched_off_for_the_reference(
    models: dict[str, Path], content: ContentStore, tmp_path: Path, loads: list[Path]
) -> None:
    from peft import PeftModel

    rows = drawn_pairs()
    asked = task(write_pairs(tmp_path / "rows.parquet", rows), models["base"], content)
    found = measured(asked, models["base"], adapter=models["adapter"]).metrics()
    adapted = PeftModel.from_pretrained(load_plain(models["base"]), models["adapter"]).eval()
    expected = by_hand(adapted, load_plain(models["base"]), rows)
    assert found == pytest.approx({f"held_out/{name}": sum(expected[name]) / 9 for name in METRICS}, rel=1e-4)
    assert abs(found["held_out/margin"]) > 0.01
    assert loads == []
    # On another base than the reference it is of no use.
    measured(task(asked.rows, models["trained"], content), models["base"], adapter=models["adapter"])
    other = BaseModel("other", models["trained"], "f" * 64, {})
    asked = task(asked.rows, models["base"], content, reference=other)
    measured(asked, models["base"], adapter=models["adapter"])
    assert loads == [models["trained"]]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_logprob_that_is_not_finite_names_the_pair(
    models: dict[str, Path], content: ContentStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    def overflowing(model: Any, rows: Any, pad: int) -> Any:
        return [(math.inf if tokens[-1] == 127 else 1.0, 1.0) for tokens, _ in rows]

    monkeypatch.setattr(pairs, "row_losses", overflowing)
    rows = drawn_pairs()
    rows[5][1 if side == "chosen" else 2].append(127)
    with pytest.raises(EvaluationError) as broken:
        measured(task(write_pairs(tmp_path / "rows.parquet", rows), models["base"], content), models["trained"])
    assert str(broken.value) == (
        f"evaluation held_out: the {side} log-probability of row 5 is -inf\n"
        "  fix: precision: fp32, or look at the model's weights"
    )


# What is asked, and what is shown.


def test_what_moves_the_numbers_moves_the_spec(content: ContentStore, tmp_path: Path) -> None:
    asked = task(tmp_path, tmp_path, content)
    other = BaseModel("base", tmp_path, "f" * 64, {})
    moved = [{"beta": 0.1}, {"digest": "2" * 64}, {"samples": 3}, {"reference": other}, {"name": "other"}]
    specs = [task(tmp_path, tmp_path, content, **change).spec() for change in moved]
    assert all(spec != asked.spec() for spec in specs)
    assert task(tmp_path / "elsewhere", tmp_path, content, batch_size=1).spec() == asked.spec()


def test_pairs_are_shown_with_their_margins(models: dict[str, Path], content: ContentStore, tmp_path: Path) -> None:
    rows = [([*b"Q: "], [*b"good"], [*b"bad"])] * 10
    asked = task(write_pairs(tmp_path / "rows.parquet", rows), models["base"], content)
    trained, base = measured(asked, models["trained"]), measured(asked, models["base"], BASE)
    assert len(trained.samples) == 8
    margin = trained.metrics()["held_out/margin"]
    expected = {
        "evaluation": "held_out",
        "where": "rows:0",
        "prompt": "Q: ",
        "expected": "good",
        "rejected": "bad",
        "answer": f"margin {margin:+.4g}",
        "score": pytest.approx(margin, rel=1e-4),
    }
    assert trained.samples[0] == expected
    assert FinalEvaluation("f" * 64, base, trained).samples()[0] == {
        "evaluation": "held_out",
        "prompt": "Q: ",
        "expected": "good",
        "rejected": "bad",
        "base": "margin +0",
        "trained": f"margin {margin:+.4g}",
        "score": pytest.approx(margin, rel=1e-4),
    }
