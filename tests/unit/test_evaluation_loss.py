"""The loss of an evaluation, against a computation of one row at a time without padding."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from kitchen_resources.embedded.tokenizer import PAD_ID
from kitchen_resources.errors import EvaluationError, OutOfMemory
from kitchen_resources.evaluation import likelihood, local
from kitchen_resources.evaluation.local import LocalEvaluator
from kitchen_resources.evaluation.port import Measure
from kitchen_resources.formulas.metrics import ratio_interval
from tests.tiny_models import (
    Row,
    evaluated,
    load_plain,
    question,
    task,
    write_adapter,
    write_rows,
    write_tiny_model,
)

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "base")


def drawn_rows(count: int = 11, seed: int = 0) -> list[Row]:
    """Rows of 3 to 40 tokens, of which about half are learned, some in the middle; one holds a pad token."""
    generator = random.Random(seed)
    rows = []
    for index in range(count):
        tokens = [generator.randrange(256) for _ in range(generator.randrange(3, 41))]
        if index == 1:
            tokens[1] = PAD_ID
        labels = [token if generator.random() < 0.5 else -100 for token in tokens]
        labels[-1] = tokens[-1]
        rows.append((tokens, labels))
    return rows


def plain_losses(model: Any, rows: list[Row]) -> tuple[list[float], list[int]]:
    """Sum of the losses and number of learned tokens of each row, in float64 and one row at a time."""
    sums, counts = [], []
    for tokens, labels in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokens])).logits[0].double()
        logprobs = logits - torch.logsumexp(logits, dim=-1, keepdim=True)
        learned = [(position - 1, label) for position, label in enumerate(labels) if label != -100 and position > 0]
        sums.append(-sum(logprobs[position, label].item() for position, label in learned))
        counts.append(len(learned))
    return sums, counts


def measured(model: Path, rows: list[Row], tmp_path: Path, **changes: Any) -> dict[str, Measure]:
    path = write_rows(tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet", rows)
    return dict(LocalEvaluator().evaluate(evaluated(model), [task(scored=path, **changes)]).measures)


def test_loss_is_the_mean_over_learned_tokens(model: Path, tmp_path: Path) -> None:
    rows = drawn_rows()
    found = measured(model, rows, tmp_path, name="held_out", batch_size=4)
    sums, counts = plain_losses(load_plain(model), rows)
    loss = sum(sums) / sum(counts)
    low, high = ratio_interval(sums, counts)
    assert set(found) == {"held_out/loss", "held_out/perplexity"}
    got = found["held_out/loss"]
    assert got.value == pytest.approx(loss, rel=1e-6)
    assert (got.n, got.low, got.high) == (11, pytest.approx(low, rel=1e-5), pytest.approx(high, rel=1e-5))
    assert low < loss < high
    got = found["held_out/perplexity"]
    assert got.value == pytest.approx(math.exp(loss), rel=1e-5)
    assert (got.n, got.low, got.high) == (
        11,
        pytest.approx(math.exp(low), rel=1e-4),
        pytest.approx(math.exp(high), rel=1e-4),
    )
    # The rows are told apart: another mean, that over rows, is far from it.
    assert abs(sum(s / c for s, c in zip(sums, counts, strict=True)) / 11 - loss) > 1e-3


@pytest.mark.parametrize("batch_size", [1, 2, 3, 11, 64])
def test_batch_size_doesnt_move_the_loss(model: Path, tmp_path: Path, batch_size: int) -> None:
    rows = drawn_rows()
    sums, counts = plain_losses(load_plain(model), rows)
    found = measured(model, rows, tmp_path, batch_size=batch_size)
    assert found["asked/loss"].value == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert found["asked/loss"].n == 11


@pytest.mark.parametrize(("logits", "forward_passes"), [(1, [1] * 7), (3 * 40 * 259, [3, 3, 1]), (1 << 28, [7])])
def test_logits_of_a_forward_pass_are_bounded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logits: int, forward_passes: list[int]
) -> None:
    rows = [([token % 256 for token in range(start, start + 40)], [7] * 40) for start in range(7)]
    passes: list[int] = []
    forward = likelihood._forward

    def counted(model: Any, rows: Any, pad: int) -> Any:
        passes.append(len(rows))
        return forward(model, rows, pad)

    monkeypatch.setattr(likelihood, "_forward", counted)
    monkeypatch.setattr(likelihood, "_LOGITS", logits)
    found = measured(model, rows, tmp_path, batch_size=64)
    assert passes == forward_passes
    sums, counts = plain_losses(load_plain(model), rows)
    assert found["asked/loss"].value == pytest.approx(sum(sums) / sum(counts), rel=1e-5)


def test_the_first_token_is_given_and_never_learned(model: Path, tmp_path: Path) -> None:
    tokens = [10, 20, 30, 40]
    whole = measured(model, [(tokens, tokens)], tmp_path)["asked/loss"]
    rest = measured(model, [(tokens, [-100, 20, 30, 40])], tmp_path)["asked/loss"]
    assert whole.value == rest.value
    sums, counts = plain_losses(load_plain(model), [(tokens, tokens)])
    assert counts == [3]
    assert whole.value == pytest.approx(sums[0] / 3, rel=1e-6)


def test_one_row_has_no_interval(model: Path, tmp_path: Path) -> None:
    found = measured(model, drawn_rows(1), tmp_path)
    for measure in found.values():
        assert measure.n == 1
        assert math.isnan(measure.low)
        assert math.isnan(measure.high)


def test_rows_without_a_learned_token_do_not_count(model: Path, tmp_path: Path) -> None:
    rows = drawn_rows(5)
    silent = ([1, 2, 3], [-100, -100, -100])
    # Its only learned token is the first, which nothing predicts.
    first_only = ([1], [1])
    found = measured(model, [silent, *rows, first_only, silent], tmp_path)
    alone = measured(model, rows, tmp_path)
    for name in ("asked/loss", "asked/perplexity"):
        assert found[name].n == alone[name].n == 5
        assert found[name].value == pytest.approx(alone[name].value, rel=1e-6)
        assert found[name].low == pytest.approx(alone[name].low, rel=1e-5)


@pytest.mark.parametrize("rows", [[], [([1], [1])], [([1, 2], [-100, -100])] * 3])
def test_where_nothing_is_learned_nothing_is_measured(model: Path, tmp_path: Path, rows: list[Row]) -> None:
    assert measured(model, rows, tmp_path) == {}


def test_type_of_the_weights(model: Path, tmp_path: Path) -> None:
    rows = drawn_rows(4)
    path = write_rows(tmp_path / "rows.parquet", rows)
    found = LocalEvaluator().evaluate(evaluated(model, dtype="bfloat16"), [task(scored=path, batch_size=1)])
    sums, counts = plain_losses(load_plain(model, torch.bfloat16), rows)
    assert found.measures["asked/loss"].value == pytest.approx(sum(sums) / sum(counts), rel=1e-6)
    exact, _ = plain_losses(load_plain(model), rows)
    assert abs(sum(exact) - sum(sums)) / sum(counts) > 1e-5


def test_an_adapter_is_laid_on_its_base(model: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", model, rank=4, alpha=8)
    rows = drawn_rows(6)
    path = write_rows(tmp_path / "rows.parquet", rows)
    adapted, base = (
        LocalEvaluator().evaluate(evaluated(model, adapter=on), [task(scored=path)]).measures["asked/loss"].value
        for on in (adapter, None)
    )
    merged = load_plain(model)
    _add_updates(merged, adapter, scale=8 / 4)
    sums, counts = plain_losses(merged, rows)
    # Its dropout of a half is off.
    assert adapted == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    sums, counts = plain_losses(load_plain(model), rows)
    assert base == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert abs(adapted - base) > 0.01


def _add_updates(model: Any, adapter: Path, scale: float) -> None:
    """Add an adapter's updates to the weights by hand: W + scale·B·A."""
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    changed = 0
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            b = tensors[name.replace("lora_A", "lora_B")]
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            with torch.no_grad():
                model.get_submodule(module).weight += scale * (b @ a)
            changed += 1
    assert changed == 14


# What can go wrong.


def test_a_loss_that_is_not_finite_names_the_row(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = likelihood._forward

    def overflowing(model: Any, rows: Any, pad: int) -> Any:
        return [
            (math.nan if tokens[0] == 77 else total, count)
            for (tokens, _), (total, count) in zip(rows, forward(model, rows, pad), strict=True)
        ]

    monkeypatch.setattr(likelihood, "_forward", overflowing)
    rows = drawn_rows(6)
    rows[4] = ([77, 1, 2], [77, 1, 2])
    with pytest.raises(EvaluationError) as broken:
        measured(model, rows, tmp_path, name="held_out", batch_size=2)
    assert str(broken.value) == (
        "evaluation held_out: the loss of row 4 is nan\n  fix: precision: fp32, or look at the model's weights"
    )


def test_a_perplexity_beyond_all_numbers_is_left_out(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likelihood, "_forward", lambda model, rows, pad: [(800.0, 1.0) for _ in rows])
    assert measured(model, drawn_rows(3), tmp_path) == {"asked/loss": Measure(800.0, 3, 800.0, 800.0)}
    # One whose interval alone is beyond them is kept.
    losses = iter([1.0, 900.0])
    monkeypatch.setattr(likelihood, "_forward", lambda model, rows, pad: [(next(losses), 1.0) for _ in rows])
    found = measured(model, drawn_rows(2), tmp_path)["asked/perplexity"]
    assert found.value == pytest.approx(math.exp(450.5))
    assert found.high == math.inf
    assert 0.0 <= found.low < 1e-300


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_names_what_to_lower(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any) -> Any:
        raise error

    monkeypatch.setattr(likelihood, "_forward", fail)
    with pytest.raises(OutOfMemory) as refused:
        measured(model, drawn_rows(2), tmp_path, name="held_out")
    assert str(refused.value) == ("evaluation held_out: ran out of memory\n  fix: lower its batch_size or max_tokens")
    assert refused.value.__cause__ is error
    monkeypatch.setattr(local, "_generate", fail)
    with pytest.raises(OutOfMemory):
        LocalEvaluator().evaluate(evaluated(model), [task([question([1])])])


def test_other_failures_of_torch_stay_what_they_are(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError("shapes don't match")

    monkeypatch.setattr(likelihood, "_forward", fail)
    with pytest.raises(RuntimeError, match="shapes don't match"):
        measured(model, drawn_rows(2), tmp_path)
