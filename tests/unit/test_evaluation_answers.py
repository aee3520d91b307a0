"""The answers of an evaluation, against plain `generate` of one row at a time."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from kitchen_resources.embedded.tokenizer import PAD_ID, TURN_END_ID
from kitchen_resources.evaluation import scorers
from kitchen_resources.evaluation.local import LocalEvaluator
from kitchen_resources.evaluation.port import EvaluationTask, Question
from kitchen_resources.formulas.scoring import Score
from tests.tiny_models import (
    evaluated,
    load_plain,
    load_plain_tokenizer,
    question,
    task,
    write_adapter,
    write_tiny_model,
)

pytestmark = pytest.mark.heavy

given: list[tuple[str, str]] = []
"""What the scorer `remember` was given: prediction and expected answer."""

during: dict[str, Any] = {}
"""What the process was like while it scored."""


def remember(prediction: str, expected: str) -> Score:
    given.append((prediction, expected))
    during["threads"] = torch.get_num_threads()
    during["gradients"] = torch.is_grad_enabled()
    torch.manual_seed(99)
    random.seed(99)
    numpy.random.seed(99)
    return Score(1.0, True)


@pytest.fixture(autouse=True)
def own_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "_registered", {"remember": remember})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "base")


def drawn_questions(count: int = 9, seed: int = 0) -> list[Question]:
    """Questions of 1 to 29 tokens; one of them holds a pad token that is no filler."""
    generator = random.Random(seed)
    prompts = [[generator.randrange(32, 127) for _ in range(generator.randrange(1, 30))] for _ in range(count)]
    prompts[-1][-1:] = [PAD_ID, 65]
    return [question(prompt, f"expected {index}") for index, prompt in enumerate(prompts)]


def answers(folder: Path, asked: EvaluationTask, **model: Any) -> list[str]:
    """What a model answers, as the samples show it."""
    return [sample["answer"] for sample in LocalEvaluator().evaluate(evaluated(folder, **model), [asked]).samples]


def continued(model: Any, prompt: list[int], tokens: int, **options: Any) -> list[int]:
    """Tokens after a prompt by plain transformers, alone in its batch."""
    from transformers import GenerationConfig

    config = GenerationConfig(do_sample=False, max_new_tokens=tokens, pad_token_id=PAD_ID, **options)
    ids = torch.tensor([prompt])
    made: list[int] = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[0].tolist()
    return made[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_answers_are_those_of_each_row_alone(model: Path, batch_size: int) -> None:
    asked = drawn_questions(8)
    plain, tokenizer = load_plain(model), load_plain_tokenizer(model)
    expected = [tokenizer.decode(continued(plain, list(row.prompt_ids), 24)) for row in asked]
    assert len(set(expected)) == 8
    assert all(text.isprintable() for text in expected)
    assert answers(model, task(asked, max_tokens=24, batch_size=batch_size)) == expected


def test_an_adapter_answers_otherwise(model: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = write_adapter(tmp_path / "adapter", model)
    asked = drawn_questions(5)
    plain = PeftModel.from_pretrained(load_plain(model), adapter).eval()
    tokenizer = load_plain_tokenizer(model)
    expected = [tokenizer.decode(continued(plain, list(row.prompt_ids), 12)) for row in asked]
    of_adapter = answers(model, task(asked, max_tokens=12), adapter=adapter)
    assert of_adapter == expected
    assert of_adapter != answers(model, task(asked, max_tokens=12))


HABITS = {
    "do_sample": True,
    "temperature": 5.0,
    "num_beams": 3,
    "no_repeat_ngram_size": 1,
    "min_new_tokens": 12,
    "repetition_penalty": 3.0,
    "suppress_tokens": list(range(32, 80)),
    "eos_token_id": list(range(32, 80)),
    "forced_eos_token_id": 65,
    "max_new_tokens": 2,
}


@pytest.mark.parametrize("habit", HABITS)
def test_the_models_own_settings_do_not_matter(model: Path, tmp_path: Path, habit: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    asked = task(drawn_questions(4), max_tokens=16, stop_token_ids=[TURN_END_ID])
    expected = answers(model, asked)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, habit: HABITS[habit]}))
    assert answers(folder, asked) == expected


# Where an answer ends.


def test_an_answer_ends_before_its_stop_token(model: Path) -> None:
    asked = drawn_questions(6)
    plain, tokenizer = load_plain(model), load_plain_tokenizer(model)
    free = [continued(plain, list(row.prompt_ids), 16) for row in asked]
    # Tokens of which one turns up in most answers, at different places.
    stops = [free[0][3], free[1][7]]
    cut = [next((index for index, token in enumerate(ids) if token in stops), None) for ids in free]
    assert len(set(cut)) >= 3, "some end early, some late, some never"
    expected = [tokenizer.decode(ids[:end]) for ids, end in zip(free, cut, strict=True)]
    for batch_size in (1, 6):
        assert answers(model, task(asked, max_tokens=16, stop_token_ids=stops, batch_size=batch_size)) == expected


def test_an_answer_ends_before_its_stop_string(model: Path) -> None:
    asked = drawn_questions(6)
    free = answers(model, task(asked, max_tokens=16))
    stops = [free[0][3:5], free[1][7:9]]
    expected = [min((text.split(stop, 1)[0] for stop in stops), key=len) for text in free]
    assert len({len(text) for text in expected}) >= 3
    for batch_size in (1, 6):
        asked_so = task(asked, max_tokens=16, stop_strings=stops, batch_size=batch_size)
        assert answers(model, asked_so) == expected
    both = task(asked, max_tokens=16, stop_strings=stops, stop_token_ids=[ord(free[2][1])])
    assert answers(model, both) == [text.split(free[2][1], 1)[0] for text in expected]


def test_the_filler_may_be_a_stop_token(model: Path) -> None:
    asked = drawn_questions(6)
    plain, tokenizer = load_plain(model), load_plain_tokenizer(model)
    free = [continued(plain, list(row.prompt_ids), 16) for row in asked]
    ends = [ids.index(free[0][3]) if free[0][3] in ids else 16 for ids in free]
    assert min(ends) < 16 == max(ends)
    # A row that ended early is filled up with pad tokens, which end nothing then.
    asked_so = task(asked, max_tokens=16, stop_token_ids=[PAD_ID, free[0][3]], batch_size=6)
    assert answers(model, asked_so) == [tokenizer.decode(ids[:end]) for ids, end in zip(free, ends, strict=True)]


@pytest.mark.parametrize("by", ["token", "string"])
def test_generation_stops_where_the_answer_ends(model: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    (free,) = answers(model, task(drawn_questions(1), max_tokens=16))
    assert free[4] not in free[:4]
    stop = {"stop_token_ids": [ord(free[4])]} if by == "token" else {"stop_strings": [free[4:6]]}
    lengths = []
    generate = type(load_plain(model)).generate

    def counted(self: Any, **options: Any) -> Any:
        output = generate(self, **options)
        lengths.append(output.shape[1] - options["input_ids"].shape[1])
        return output

    monkeypatch.setattr(type(load_plain(model)), "generate", counted)
    assert answers(model, task(drawn_questions(1), max_tokens=400, **stop)) == [free[:4]]
    assert lengths == [5 if by == "token" else 6]


def test_an_answer_has_at_most_so_many_tokens(model: Path) -> None:
    whole = answers(model, task(drawn_questions(3), max_tokens=16))
    for limit in (1, 5):
        assert answers(model, task(drawn_questions(3), max_tokens=limit)) == [text[:limit] for text in whole]


def test_special_tokens_are_no_part_of_an_answer(model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    free = answers(model, task(drawn_questions(1), max_tokens=4))[0]
    # A turn's end that the model likes a little better than its own first byte.
    weights["lm_head.weight"][TURN_END_ID] = 1.01 * weights["lm_head.weight"][ord(free[0])]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    asked = task(drawn_questions(1), max_tokens=4)
    plain = load_plain(folder)
    plain.generation_config.eos_token_id = None
    tokens = continued(plain, list(asked.questions[0].prompt_ids), 4)
    assert (tokens[0], len(tokens)) == (TURN_END_ID, 4)
    (answer,) = answers(folder, asked)
    assert answer == "".join(chr(token) for token in tokens if token < 256)
    assert 1 <= len(answer) <= 3
    stopped = task(drawn_questions(1), max_tokens=4, stop_token_ids=[TURN_END_ID])
    assert answers(folder, stopped) == [""]


# What is scored, and what is shown.


def test_answers_are_scored_in_the_order_of_the_questions_without_white_space_around(model: Path) -> None:
    rows = drawn_questions(9)
    asked = [question(row.prompt_ids, f"  {row.expected}\n", where=f"rows:{n}") for n, row in enumerate(rows)]
    asked[4] = question(rows[4].prompt_ids, None, where="rows:4")
    plain, tokenizer = load_plain(model), load_plain_tokenizer(model)
    said = [tokenizer.decode(continued(plain, list(row.prompt_ids), 8)) for row in rows]
    given.clear()
    result = LocalEvaluator().evaluate(evaluated(model), [task(asked, scorer="remember")])
    assert given == [(said[n].strip(), "" if n == 4 else f"expected {n}") for n in range(9)]
    assert result.measures["asked/remember"].n == 9
    # Eight rows are shown, as they are.
    assert result.samples == [
        {
            "evaluation": "asked",
            "where": f"rows:{n}",
            "prompt": f"prompt of {len(rows[n].prompt_ids)}",
            "expected": asked[n].expected,
            "answer": said[n],
            "score": 1.0,
        }
        for n in range(8)
    ]


def test_the_process_is_left_as_it_was(model: Path) -> None:
    torch.manual_seed(3)
    random.seed(3)
    numpy.random.seed(3)
    threads = torch.get_num_threads()
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    asked = task(drawn_questions(2), scorer="remember")
    LocalEvaluator().evaluate(evaluated(model, threads=threads + 2), [asked])
    assert during == {"threads": threads + 2, "gradients": False}
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert (random.getstate(), numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == states


def test_several_tasks_of_one_model(model: Path) -> None:
    rows = drawn_questions(3)
    tasks = [task(rows[:2], name="first"), task(rows, name="second", max_tokens=2), task(name="third")]
    result = LocalEvaluator().evaluate(evaluated(model), tasks)
    assert {name: measure.n for name, measure in result.measures.items()} == {
        "first/exact_match": 2,
        "second/exact_match": 3,
    }
    assert [(sample["evaluation"], len(sample["answer"])) for sample in result.samples] == [
        *[("first", 8)] * 2,
        *[("second", 2)] * 3,
    ]
    assert result.note == ""
