"""What comparing rows finds: planted defects of each kind, by their row ids; what is no defect; and that it is kept."""

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.datasets.inspection import evaluation_rows, inspect
from kitchen_resources.datasets.near_duplicates import ALIKE, SHINGLE, NearDuplicates
from kitchen_resources.datasets.renderers import make_renderer
from kitchen_resources.datasets.report import ALL_KINDS, COMPARED, KINDS, Finding, RowReport
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.formulas.similarity import runs, words
from kitchen_resources.recipes.binding import bind
from kitchen_resources.recipes.blocks import EvaluationConfig, RowLimits
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.recipe import RecipeDefinition
from kitchen_resources.recipes.reinforcement import ReinforcementRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from tests.unit.dataset_rows import chat, write_jsonl
from tests.unit.preparing import BASE, Pantry, recipe_of

VOCABULARY = [a + b + c for a, b, c in itertools.product("bdfgklmnprst", "aeiou", "bdfgklmnprst")]


def sentence(seed: int, count: int = 40) -> list[str]:
    """Words at random, always the same for a seed."""
    return random.Random(seed).choices(VOCABULARY, k=count)


def asked(text: list[str], answer: str = "yes", system: str = "") -> dict[str, Any]:
    """A conversation of one question."""
    row = chat(" ".join(text), answer)
    return {"messages": [{"role": "system", "content": system}, *row["messages"]]} if system else row


def conversation(*texts: str) -> dict[str, Any]:
    """Turns of user and assistant."""
    roles = itertools.cycle(("user", "assistant"))
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


@pytest.fixture
def pantry() -> Pantry:
    return Pantry()


Found = Callable[..., dict[str, Finding]]


@pytest.fixture
def found(pantry: Pantry, tmp_path: Path) -> Found:
    """Findings of rows, and of evaluations named by their rows."""

    def find(
        rows: list[Any],
        evaluations: dict[str, list[Any]] | None = None,
        held_out: list[Any] | None = None,
        share: str = "0",
        **fields: Any,
    ) -> dict[str, Finding]:
        fields["held_out"] = str(write_jsonl(tmp_path / "held.jsonl", held_out)) if held_out else share
        recipe = recipe_of(write_jsonl(tmp_path / "rows.jsonl", rows), **{"max_length": 4096, **fields})
        return inspected(pantry, recipe, evaluations or {}, tmp_path)

    return find


def inspected(
    pantry: Pantry, recipe: SupervisedRecipe, evaluations: dict[str, list[Any]], folder: Path
) -> dict[str, Finding]:
    prepared, _ = pantry.prepare(recipe)
    configured = [
        EvaluationConfig(name=name, dataset=str(write_jsonl(folder / f"{name}.jsonl", rows)))
        for name, rows in evaluations.items()
    ]
    rows = [evaluation_rows(each, SourceDatasets(), True) for each in configured]
    return inspect(prepared, rows, make_renderer(recipe, BASE).renderer, pantry.content)


def test_every_kind_is_looked_for(found: Found) -> None:
    findings = found([asked(sentence(1))])
    assert list(findings) == list(COMPARED)
    assert list(ALL_KINDS) == [*KINDS, *COMPARED]
    assert [(each.kind, each.count) for each in findings.values()] == [(kind, 0) for kind in COMPARED]


# Near duplicates


def test_rows_that_nearly_repeat_an_earlier_one_are_named(found: Found) -> None:
    rows = [asked(sentence(seed)) for seed in range(30)]
    one_word = sentence(4)
    one_word[-1] = "else"
    rows[11] = asked(one_word)
    rows[20] = asked([word.upper() + "," for word in sentence(7)])
    finding = found(rows)["near_duplicates"]
    assert finding.of == 30
    assert finding.examples == [
        (11, "rows.jsonl:12", "as row 4 (rows.jsonl:5) in 90% of both"),
        (20, "rows.jsonl:21", "as row 7 (rows.jsonl:8) in 100% of both"),
    ]


def test_exact_repeats_are_another_kind(found: Found) -> None:
    rows = [asked(sentence(1)), asked(sentence(2)), asked(sentence(1)), asked(sentence(1))]
    assert found(rows)["near_duplicates"].count == 0


def test_rows_that_share_instructions_are_no_repeats(found: Found) -> None:
    instructions = " ".join(sentence(99, 200))
    assert found([asked(sentence(seed), system=instructions) for seed in range(10)])["near_duplicates"].count == 0


def test_a_held_out_row_that_nearly_repeats_a_training_row_is_named(found: Found) -> None:
    nearly = [*sentence(3)[1:], "else"]
    finding = found([asked(sentence(seed)) for seed in range(5)], held_out=[asked(sentence(50)), asked(nearly)])
    assert finding["near_duplicates"].of == 7
    said = "as row 3 (rows.jsonl:4) in 90% of both"
    assert finding["near_duplicates"].examples == [(1, "held_out held.jsonl:2", said)]


def test_all_are_counted_and_the_first_are_kept(found: Found) -> None:
    rows = [asked(sentence(seed), answer=f"answer {number}") for seed in range(20) for number in range(3)]
    finding = found(rows)["near_duplicates"]
    assert (finding.count, finding.of, len(finding.examples)) == (40, 60, 20)
    assert [row_id for row_id, *_ in finding.examples] == [row for row in range(30) if row % 3]


@pytest.mark.parametrize("count", [50, 1500])
def test_instructions_that_rows_share_say_nothing_of_them(found: Found, count: int) -> None:
    """Also where they are most of every row, and where there are more rows than the first ones, which tell."""
    instruction = sentence(99, 60)
    rows = [asked([*instruction, *sentence(seed, 15)]) for seed in range(count)]
    rows[40] = asked([*instruction, *sentence(7, 15)], answer="no")
    finding = found(rows)["near_duplicates"]
    assert finding.examples == [(40, "rows.jsonl:41", "as row 7 (rows.jsonl:8) in 88% of both")]


def test_problems_are_not_compared_with_one_another(pantry: Pantry) -> None:
    """A game begins with the same words whatever the problem is."""
    recipe = bind(
        ReinforcementRecipe,
        {"model": "embedded:tiny", "environment": {"name": "compass"}},
        RecipeDefinition(name="r"),
    )
    prepared, _ = pantry.prepare(recipe)  # type: ignore[arg-type]
    findings = inspect(prepared, [], make_renderer(recipe, BASE).renderer, pantry.content)
    assert [(each.count, each.of) for each in findings.values()] == [(0, 0), (0, 0), (0, 0)]


def test_rows_without_words_are_like_none(found: Found) -> None:
    assert found([chat("?", "!"), chat("!", "?"), chat("…", "🙂")])["near_duplicates"].count == 0


def exact(texts: list[list[str]]) -> list[int]:
    """Places of the texts that are alike to an earlier one, each compared with each."""
    sets = [set(runs(text, SHINGLE).tolist()) for text in texts]
    return [
        place
        for place, one in enumerate(sets)
        if any(len(one & other) / len(one | other) >= ALIKE for other in sets[:place])
    ]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_found_is_what_comparing_all_with_all_finds(tmp_path: Path, seed: int) -> None:
    """Of 400 rows in families of four: each changes some words of an earlier one, from none to half of them."""
    generator = random.Random(seed)
    texts: list[list[str]] = []
    for family in range(100):
        members = [sentence(1000 * seed + family, 60)]
        while len(members) < 4:
            text = list(generator.choice(members))
            for _ in range(generator.choice([0, 1, 1, 2, 3, 5, 10, 30])):
                text[generator.randrange(60)] = generator.choice(VOCABULARY)
            members.append(text)
        texts += members
    generator.shuffle(texts)
    with NearDuplicates(tmp_path) as near:
        for number, text in enumerate(texts):
            near.add(f"{number} {text}", words(" ".join(text)))
        found = [row for row, _, _ in near.find()]
    right = exact(texts)
    assert set(found) <= set(right)
    # A row is compared with two of those that share a band with it, which may be others than the one it is alike to.
    assert len(found) >= 0.97 * len(right) > 80


def test_one_row_and_none_are_like_no_other(tmp_path: Path) -> None:
    with NearDuplicates(tmp_path) as near:
        assert near.find() == []
    with NearDuplicates(tmp_path) as near:
        near.add("a", ["a"])
        assert near.find() == []


# Contamination


def test_text_of_an_evaluation_is_found_with_both_rows(found: Found) -> None:
    rows = [asked(sentence(seed)) for seed in range(6)]
    rows[2] = asked([*sentence(70, 9), *sentence(301, 40)[10:23], *sentence(71, 9)])
    rows[4] = chat("Write it down.", " ".join(["so:", *sentence(302, 40)[:13]]))
    evaluations = {"exam": [asked(sentence(seed)) for seed in (300, 301)], "quiz": [asked(sentence(302))]}
    finding = found(rows, evaluations)["contaminated"]
    assert (finding.count, finding.of) == (2, 6)
    first, second = (" ".join(words_) for words_ in (sentence(301, 40)[10:23], sentence(302, 40)[:13]))
    assert finding.examples == [
        (2, "rows.jsonl:3", f"holds {first!r}, 13 words of row 1 of evaluation exam (exam.jsonl:2)"),
        (4, "rows.jsonl:5", f"holds {second!r}, 13 words of row 0 of evaluation quiz (quiz.jsonl:1)"),
    ]


def test_twelve_words_in_a_row_are_not_enough(found: Found) -> None:
    rows = [asked([*sentence(70, 9), *sentence(301, 40)[10:22], *sentence(71, 9)])]
    assert found(rows, {"exam": [asked(sentence(301))]})["contaminated"].count == 0


def test_a_short_question_that_an_evaluation_asks_is_found(found: Found) -> None:
    rows = [
        chat("What is 2 + 2?", "4"),
        chat("What is 2 + 2, and why?", "4"),
        chat("And 3 + 3?", "6"),
        chat("X?", "4"),
    ]
    rows += [chat("What is 2 - 2?", "0"), chat("X?", "Y"), chat("thanks", "4")]
    exam = [chat("what is  2 + 2", "4"), chat("and 5 + 5?", "10"), conversation("Who?", "Me.", "Thanks!", "Welcome.")]
    finding = found(rows, {"exam": exam})["contaminated"]
    assert finding.examples == [
        (0, "rows.jsonl:1", "asks 'what is 2 + 2', as row 0 of evaluation exam (exam.jsonl:1)")
    ]


def test_letters_without_spaces_are_no_words(found: Found) -> None:
    """An instruction of 14 letters is none of an evaluation; 30 letters in a row are."""
    instruction = "以下の文章を要約してください。"
    text = "吾輩は猫である名前はまだ無いどこで生れたかとんと見当がつかぬ何でも薄暗いじめじめした所で"
    rows = [chat(instruction + "雨が降る。", "雨。"), chat("続きは。", text[3:34]), chat("続きは。", text[3:32])]
    finding = found(rows, {"exam": [chat(instruction + text, "猫。")]})["contaminated"]
    assert [row_id for row_id, *_ in finding.examples] == [1]


def test_what_several_rows_of_an_evaluation_say_is_no_sign(found: Found) -> None:
    template = sentence(500, 20)
    rows = [asked([*template, *sentence(seed, 9)]) for seed in range(4)]
    exam = [asked([*template, *sentence(seed, 9)]) for seed in range(600, 604)]
    assert found(rows, {"exam": exam})["contaminated"].count == 0


def test_one_question_in_several_rows_and_evaluations_is_one(found: Found) -> None:
    rows = [asked(sentence(1)), asked(sentence(2)), asked(sentence(3))]
    twice = {"exact": [asked(sentence(1))], "judged": [asked(sentence(1))]}
    assert [found_[0] for found_ in found(rows, twice)["contaminated"].examples] == [0]
    answers = {"exam": [asked(sentence(2), answer="yes"), asked(sentence(2), answer="of course")]}
    assert [found_[0] for found_ in found(rows, answers)["contaminated"].examples] == [1]
    held = found(rows, {"exam": [asked(sentence(3))]}, held_out=[asked(sentence(3))])["contaminated"]
    assert [found_[0] for found_ in held.examples] == [2]


def test_only_rows_that_are_asked_count(pantry: Pantry, tmp_path: Path) -> None:
    recipe = recipe_of(
        write_jsonl(tmp_path / "rows.jsonl", [asked(sentence(seed)) for seed in (1, 2, 3)]), max_length=4096
    )
    unanswered = {"messages": [{"role": "user", "content": " ".join(sentence(1))}]}
    exam = write_jsonl(tmp_path / "exam.jsonl", [unanswered, asked(sentence(2)), asked(sentence(3))])
    prepared, _ = pantry.prepare(recipe)
    evaluation = EvaluationConfig(name="exam", dataset=str(exam), samples=1)
    rows = evaluation_rows(evaluation, SourceDatasets(), True)
    finding = inspect(prepared, [rows], make_renderer(recipe, BASE).renderer, pantry.content)["contaminated"]
    assert [found_[0] for found_ in finding.examples] == [1]


def test_without_evaluations_none_is_said_to_be_clean(found: Found) -> None:
    finding = found([asked(sentence(1))])["contaminated"]
    assert (finding.count, finding.of) == (0, 0)


def test_a_held_out_set_of_its_own_is_an_evaluation(found: Found) -> None:
    finding = found([asked(sentence(1)), asked(sentence(2))], held_out=[asked([*sentence(2)[:20], *sentence(3)])])
    (example,) = finding["contaminated"].examples
    assert example[:2] == (1, "rows.jsonl:2")
    assert "row 0 of evaluation held_out (held.jsonl:1)" in example[2]


def test_a_held_out_share_is_none(found: Found) -> None:
    rows = [asked([*sentence(1), *sentence(seed, 30)]) for seed in range(10, 20)]
    assert found(rows, share="0.2")["contaminated"].of == 0


# Drift

THINKING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
PICKY = (
    "{% if add_generation_prompt and messages[0]['content'] == 'rude' %}{{ raise_exception('no') }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if 'odd' in message['content'] and add_generation_prompt %}Well: {% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("name", ["chatml", "role_colon"])
def test_built_in_templates_do_not_drift(found: Found, name: str) -> None:
    finding = found([asked(sentence(1)), asked(sentence(2))], chat_template=name)["template_drift"]
    assert (finding.count, finding.of) == (0, 2)


def test_a_template_that_asks_otherwise_than_it_teaches_is_found(found: Found, tmp_path: Path) -> None:
    template = tmp_path / "picky.jinja"
    template.write_text(PICKY)
    rows = [chat("kind", "A"), chat("odd", "B"), chat("rude", "C"), chat("kind too", "D")]
    finding = found(rows, chat_template=str(template), train_on="all_tokens")["template_drift"]
    assert (finding.count, finding.of) == (2, 4)
    first, second = finding.examples
    assert first == (
        1,
        "rows.jsonl:2",
        "token 6 differs: a server gives the model …'<|im_start|>user\\nWell: odd<|im_end|>\\n<|im_start|>', and it learns "
        "after …'<|im_start|>user\\nodd<|im_end|>\\n<|im_start|>assist'",
    )
    assert second[:2] == (2, "rows.jsonl:3")
    assert second[2].startswith("serving can't ask it: the chat template refuses the conversation: no")


def test_a_prompt_that_begins_the_answer_is_drift(found: Found, tmp_path: Path) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    finding = found([chat("Q", "A"), chat("R", "<think>\nB")], chat_template=str(template), train_on="all_tokens")
    assert [row_id for row_id, *_ in finding["template_drift"].examples] == [0]


def test_raw_text_and_pairs_are_asked_as_they_are_learned(found: Found, pantry: Pantry, tmp_path: Path) -> None:
    finding = found([{"prompt": "Q", "completion": "A"}], chat_template="none")["template_drift"]
    assert (finding.count, finding.of) == (0, 0)
    path = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "Q", "chosen": "A", "rejected": "B"}] * 2)
    recipe = bind(
        PreferenceRecipe,
        {"model": "embedded:tiny", "dataset": str(path), "held_out": "0"},
        RecipeDefinition(name="p"),
    )
    prepared, _ = pantry.prepare(recipe)  # type: ignore[arg-type]
    findings = inspect(prepared, [], make_renderer(recipe, BASE).renderer, pantry.content)
    assert [(each.count, each.of) for each in findings.values()] == [(0, 2), (0, 0), (0, 0)]


def test_what_is_not_learned_does_not_drift(found: Found, tmp_path: Path) -> None:
    template = tmp_path / "thinking.jinja"
    template.write_text(THINKING)
    fields = {"chat_template": str(template), "train_on": "all_user_and_system_messages"}
    assert found([chat("Q", "A")], **fields)["template_drift"].of == 0


# As a whole


def test_what_was_found_is_kept_beside_the_prepared_rows(pantry: Pantry, tmp_path: Path) -> None:
    recipe = recipe_of(
        write_jsonl(tmp_path / "rows.jsonl", [asked(sentence(1)), asked(sentence(2))]), max_length=4096
    )
    first = inspected(pantry, recipe, {"exam": [asked(sentence(2))]}, tmp_path)
    (key,) = pantry.blobs.list("inspected/")
    assert inspected(pantry, recipe, {"exam": [asked(sentence(2))]}, tmp_path) == first
    assert list(pantry.blobs.list("inspected/")) == [key]
    other = inspected(pantry, recipe, {"exam": [asked(sentence(3))]}, tmp_path)
    assert (first["contaminated"].count, other["contaminated"].count) == (1, 0)
    assert len(list(pantry.blobs.list("inspected/"))) == 2
    assert len(list(pantry.blobs.list("prepared/"))) == 1


def test_limits_are_the_recipes(found: Found) -> None:
    report = RowReport()
    report.findings |= found([asked(sentence(seed)) for seed in (1, 2)], {"exam": [asked(sentence(2))]})
    assert list(report.exceeded(RowLimits())) == ["contaminated"]
    assert report.exceeded(RowLimits(contaminated=0.5)) == {}
    assert "1 of 2 rows (50.00%, limit 0.00%)" in report.exceeded(RowLimits())["contaminated"]
