"""The built-in environments that need no further package, and the built-in rewards, by exact numbers."""

from collections.abc import Sequence
from typing import Any

import pytest

from kitchen_resources.environments import rewards
from kitchen_resources.environments.arithmetic import Arithmetic
from kitchen_resources.environments.port import Action, Problem, StepResult, Turn
from kitchen_resources.environments.problems import answer_of, conversation_of
from kitchen_resources.environments.questions import latex, questions
from kitchen_resources.errors import ConfigError, DataError


def turns(*texts: str, ended: bool = True) -> Sequence[Turn]:
    return [{"text": text, "ended": ended, "observation": ""} for text in texts]


# Problems.


@pytest.mark.parametrize(
    ("problem", "answer"),
    [
        ({"answer": " 42 "}, "42"),
        ({"answer": 42}, "42"),
        ({"solution": 0.5}, "0.5"),
        ({"answer": "", "solution": "yes"}, "yes"),
        ({"answer": "He pays 1,200 + 34.\n#### 1,234 "}, "1234"),
        ({"answer": "#### 5\n#### 6"}, "5"),
        ({"answer": "1,234"}, "1,234"),
    ],
)
def test_answers(problem: Problem, answer: str) -> None:
    assert answer_of(problem) == answer


@pytest.mark.parametrize("problem", [{}, {"answer": None}, {"answer": True}, {"solution": ["x"]}])
def test_a_problem_without_an_answer_is_refused(problem: Problem) -> None:
    with pytest.raises(DataError, match="the problem has no answer\n  fix: give it as answer or solution"):
        answer_of(problem)


def test_questions_are_texts_or_conversations() -> None:
    for key in ("question", "problem", "prompt"):
        assert conversation_of({key: "2+2"}, suffix=" Go.") == [{"role": "user", "content": "2+2 Go."}]
    asked = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2"}]
    assert conversation_of({"prompt": asked}, suffix=" Go.") == [asked[0], {"role": "user", "content": "2+2 Go."}]
    assert conversation_of({"prompt": asked}) == asked
    for problem in ({}, {"question": ""}, {"prompt": []}, {"prompt": 7}):
        with pytest.raises(DataError, match="the problem has no question"):
            conversation_of(problem)


# Arithmetic.


def judged(answer: object, action: Action, **args: Any) -> StepResult:
    (episode,) = Arithmetic(**args).group({"question": "17 + 25", "answer": answer}, [0])
    assert episode.initial_observation() == [{"role": "user", "content": "17 + 25"}]
    return episode.step(action)


@pytest.mark.parametrize(
    ("text", "ended", "reward", "solved"),
    [
        ("42", True, 1.0, True),
        ("42", False, 0.9, True),
        ("17 + 25 = 42.", True, 1.0, True),
        (" 42.0\n", True, 1.0, True),
        ("-42", True, 0.0, False),
        ("42 is 17 + 25", True, 0.0, False),
        ("4200", True, 0.0, False),
        ("43", False, -0.1, False),
        ("forty-two", True, -0.1, False),
        ("", False, -0.1, False),
    ],
)
def test_rewards_of_arithmetic(text: str, ended: bool, reward: float, solved: bool) -> None:
    told = judged("42", Action(text, ended))
    assert (told.reward, told.done, told.solved) == (reward, True, solved)


def test_arithmetic_reads_numbers_as_people_write_them() -> None:
    assert judged("-1,234.50", Action("\N{MINUS SIGN}1234.5")).reward == 1.0
    assert judged(0.1, Action("0.1")).reward == 1.0
    assert judged("42", Action("none"), format_coef=0.5).reward == -0.5
    assert judged("42", Action("43", ended=False)).metrics == {"correct": 0.0, "format": 0.0}
    with pytest.raises(DataError, match="'many' is not a number"):
        judged("many", Action("42"))


def test_problems_of_arithmetic_are_distinct_right_and_the_same_at_every_call() -> None:
    small = Arithmetic(operations=["-", "*"], maximum=3, count=32)
    problems = list(small.problems())
    assert list(small.problems()) == problems
    assert len({problem["question"] for problem in problems}) == 32
    assert all(str(eval(problem["question"])) == problem["answer"] for problem in problems)
    assert list(Arithmetic(count=3).problems()) == FIRST
    assert list(Arithmetic(count=3, seed=1).problems()) != FIRST


FIRST = [
    {"question": "97 - 53", "answer": "44"},
    {"question": "33 + 65", "answer": "98"},
    {"question": "51 - 38", "answer": "13"},
]


@pytest.mark.parametrize(
    ("args", "where"),
    [
        ({"operations": ["+", "/"]}, "environment.args.operations"),
        ({"operations": []}, "environment.args.operations"),
        ({"count": 0}, "environment.args.count"),
        ({"maximum": 1, "count": 9}, "environment.args.count"),
        ({"maximum": -1, "count": 1}, "environment.args.count"),
    ],
)
def test_arithmetic_refuses_what_it_cannot_ask(args: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Arithmetic(**args)
    assert refused.value.where == where


# Questions of mathematics.


def test_questions_are_distinct_and_the_same_at_every_call() -> None:
    drawn = list(questions(2000, seed=3))
    assert list(questions(2000, seed=3)) == drawn
    assert len({each["question"] for each in drawn}) == 2000
    assert drawn[:1] != list(questions(1, seed=4))
    assert list(questions(5, seed=0)) == DRAWN
    for count in (0, 100_001):
        with pytest.raises(ConfigError, match=f"{count} is not from 1 to 100000"):
            questions(count, seed=0)


DRAWN = [
    {"question": "What is 98% of 540?", "answer": "\\frac{2646}{5}"},
    {"question": "What is 1/2 + 8/7?", "answer": "\\frac{23}{14}"},
    {"question": "What is 46% of 750?", "answer": "345"},
    {"question": "Solve 18x + 9 = 37 for x.", "answer": "\\frac{14}{9}"},
    {"question": "Solve 5x + 40 = 33 for x.", "answer": "-\\frac{7}{5}"},
]


def test_fractions_in_latex() -> None:
    from fractions import Fraction

    assert [latex(Fraction(*each)) for each in ((6, 2), (-1, 2), (0, 5))] == ["3", "-\\frac{1}{2}", "0"]


# Rewards.


@pytest.mark.parametrize(
    ("text", "reward"),
    [("<a>x</a>", 1.0), ("<a>x\ny</a>", 1.0), ("<a>x</a> ", 0.0), ("see <a>x</a>", 0.0), ("", 0.0)],
)
def test_format_is_of_the_whole_last_turn(text: str, reward: float) -> None:
    assert rewards.matches_format({}, turns("anything", text), pattern="<a>.*</a>") == reward


def test_ended_is_of_every_turn() -> None:
    assert rewards.ended({}, turns("a", "b")) == 1.0
    assert rewards.ended({}, [*turns("a"), *turns("b", ended=False)]) == 0.0
    assert rewards.ended({}, []) == 0.0


@pytest.mark.parametrize(
    ("length", "reward"), [(50, 0.0), (10, 0.0), (100, 0.0), (5, -0.05), (150, -0.05), (0, -0.1), (200, -0.1)]
)
def test_length_penalty_outside_its_bounds(length: int, reward: float) -> None:
    assert rewards.length_penalty({}, turns("x" * length), minimum=10, maximum=100) == pytest.approx(
        reward, abs=1e-12
    )


def test_length_penalty_is_of_all_turns_and_either_bound_may_miss() -> None:
    assert rewards.length_penalty({}, turns("xx", "xxx"), minimum=10, penalty=1.0) == -0.5
    assert rewards.length_penalty({}, turns("x" * 1000)) == 0.0
    assert rewards.length_penalty({}, turns("x" * 6), maximum=4, penalty=2.0) == -1.0
    assert rewards.length_penalty({}, []) == 0.0


@pytest.mark.parametrize(
    ("text", "exact", "inside"),
    [("42", 1.0, 1.0), (" 42\n", 1.0, 1.0), ("The answer is 42.", 0.0, 1.0), ("43", 0.0, 0.0), ("", 0.0, 0.0)],
)
def test_matches_with_the_answer(text: str, exact: float, inside: float) -> None:
    problem = {"question": "6 * 7", "answer": 42}
    assert rewards.exact_match(problem, turns("first", text)) == exact
    assert rewards.contains(problem, turns("42", text)) == inside


def test_contains_passes_over_case_and_exact_match_does_not() -> None:
    assert rewards.contains({"answer": "Paris"}, turns("it is PARIS")) == 1.0
    assert rewards.exact_match({"answer": "Paris"}, turns("paris")) == 0.0
    with pytest.raises(DataError, match="the problem has no answer"):
        rewards.contains({}, turns("x"))
