"""The built-in environments that need a package: mathematics by math-verify, and the tasks of reasoning-gym."""

import sys
from typing import Any

import pytest

from kitchen_resources.environments.boxed import BoxedMath, last_box
from kitchen_resources.environments.options import wrong_options
from kitchen_resources.environments.pool import EnvironmentPool
from kitchen_resources.environments.port import Action, EnvironmentFailure, EnvironmentSpec, StepResult
from kitchen_resources.environments.reasoning_gym import ReasoningGym
from kitchen_resources.errors import CapabilityError, ConfigError, DataError


@pytest.mark.parametrize(
    ("name", "args", "package"),
    [("math", {}, "math_verify"), ("reasoning_gym", {"task": "basic_arithmetic"}, "reasoning_gym")],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    name: str, args: dict[str, Any], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    pip = 'pip install "crucible-kitchen[environments]"'
    needed = f"the environment `{name}` needs the package {package.replace('_', '-')}"
    assert wrong_options(name, args) == f"{needed}; {pip}"
    with (
        EnvironmentPool(EnvironmentSpec(name, args), workers=1, time_limit_s=60.0, trusted=True) as pool,
        pytest.raises(CapabilityError) as missing,
    ):
        pool.start()
    assert str(missing.value) == f"environment.name: {needed}\n  fix: {pip}"


# Boxes.


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"It is \boxed{42}.", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\frac{\sqrt{\frac{a}{b}}}{2}}", r"\frac{\sqrt{\frac{a}{b}}}{2}"),
        (r"\boxed{1}, no: \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed { 7 }", "7"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),
        (r"\boxed{}", ""),
        (r"\boxed 7", None),
        (r"\boxed{1", None),
        ("boxed{1}", None),
        ("", None),
    ],
)
def test_the_last_closed_box_is_the_answer(text: str, box: str | None) -> None:
    assert last_box(text) == box


# Mathematics.


def judged(answer: str, text: str, *, ended: bool = True, **args: Any) -> StepResult:
    (episode,) = BoxedMath(**args).group({"question": "2+2", "answer": answer}, [0])
    return episode.step(Action(text, ended))


@pytest.mark.parametrize(
    ("text", "ended", "reward", "solved"),
    [
        (r"\boxed{4}", True, 1.0, True),
        (r"\boxed{4}", False, 0.9, True),
        (r"\boxed{5}", True, 0.0, False),
        ("4", True, -0.1, False),
        (r"\boxed{5}", False, -0.1, False),
        (r"\boxed{}", True, 0.0, False),
    ],
)
def test_rewards_of_mathematics(text: str, ended: bool, reward: float, solved: bool) -> None:
    told = judged("4", text, ended=ended)
    assert (told.reward, told.done, told.solved) == (reward, True, solved)


@pytest.mark.parametrize(
    ("answer", "given", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        ("1/2", r"\frac{2}{4}", True),
        ("1,000", "1000", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("(x+1)^2", "x^2 + 2x + 1", True),
        ("4", "x = 4", True),
        (r"\{1, 2\}", r"\{2, 1\}", True),
        (r"Thus \boxed{\frac{1}{2}}.", "0.5", True),
        ("3 + 5 = 8\n#### 1,008", "1008", True),
        ("Tuesday", "Tuesday", True),
        ("Tuesday", "Monday", False),
        ("2", "1, 2", False),
        ("4", "{", False),
    ],
)
def test_answers_are_the_same_by_what_they_mean(answer: str, given: str, same: bool) -> None:
    assert judged(answer, f"\\boxed{{{given}}}").solved is same


def test_the_question_says_where_the_answer_goes() -> None:
    (episode,) = BoxedMath().group({"problem": "2+2", "solution": "4"}, [0])
    content = r"2+2 Write your answer in \boxed{} format."
    assert episode.initial_observation() == [{"role": "user", "content": content}]


def test_own_problems_of_mathematics_are_solved_by_their_answers() -> None:
    builder = BoxedMath(count=40, seed=5)
    for problem in builder.problems():
        (episode,) = builder.group(problem, [0])
        assert episode.step(Action(f"\\boxed{{{problem['answer']}}}")).reward == 1.0


def test_answers_that_take_for_ever_fail_in_time() -> None:
    """In a worker's time, not by the signals of math-verify: it waits as long as it is let."""
    spec = EnvironmentSpec("math")
    endless = Action(r"\boxed{9^{9^{9^{9}}}}")
    with EnvironmentPool(spec, workers=1, time_limit_s=4.0) as pool:
        assert pool.open([("g", {"question": "2+2", "answer": "5"}, [1, 2])]) == {}
        told = pool.step({("g", 0): endless, ("g", 1): Action(r"\boxed{5.0}")})
    assert told["g", 1] == StepResult(1.0, True, "", True, {"correct": 1.0, "format": 1.0})
    first = told["g", 0]
    assert isinstance(first, EnvironmentFailure) or first.reward == 0.0


# reasoning-gym.


def test_a_task_is_asked_and_judged_by_its_own_verifier() -> None:
    spec = EnvironmentSpec("reasoning_gym", {"task": "basic_arithmetic", "count": 3, "seed": 1, "min_terms": 2})
    with EnvironmentPool(spec, workers=1, time_limit_s=60.0) as pool:
        problems = pool.problems(9)
        assert [(problem["task"], problem["index"]) for problem in problems] == [
            ("basic_arithmetic", i) for i in range(3)
        ]
        assert pool.observe(problems) == [[{"role": "user", "content": problem["question"]}] for problem in problems]
        pool.open([("g", problems[0], [1, 2, 3])])
        right = problems[0]["answer"]
        told = pool.step(
            {("g", 0): Action(f" {right}\n"), ("g", 1): Action("none"), ("g", 2): Action(f"it is {right}")}
        )
    assert told["g", 0] == StepResult(1.0, True, "", None, {"readable": 1.0})
    assert told["g", 1] == StepResult(0.0, True, "", None, {"readable": 1.0})
    third = told["g", 2]
    assert isinstance(third, StepResult)
    assert 0.0 < third.reward < 1.0


def test_answers_between_tags() -> None:
    builder = ReasoningGym("basic_arithmetic", count=1, answer_tags=True)
    (problem,) = builder.problems()
    (episode,) = builder.group(problem, [0])
    assert episode.initial_observation()[0]["content"] == (
        f"{problem['question']}\n\nWrite your final answer between <answer> and </answer>."
    )
    right = f"<answer>{problem['answer']}</answer>"
    assert episode.step(Action(f"<answer>0.5</answer> or rather {right}")).reward == 1.0
    untagged = episode.step(Action(problem["answer"]))
    assert (untagged.reward, untagged.metrics) == (0.0, {"readable": 0.0})


def test_a_text_that_a_verifier_cannot_read_is_a_wrong_answer() -> None:
    builder = ReasoningGym("prime_factorization", count=1)
    (episode,) = builder.group(next(iter(builder.problems())), [0])
    told = episode.step(Action("hello"))
    assert (told.reward, told.metrics) == (0.0, {"readable": 0.0})


def test_composite_tasks_take_their_parts_as_mappings() -> None:
    parts = [{"name": name, "weight": 1.0, "config": {}} for name in ("basic_arithmetic", "leg_counting")]
    builder = ReasoningGym("composite", count=4, datasets=parts)
    for problem in builder.problems():
        (episode,) = builder.group(problem, [0])
        assert episode.step(Action(problem["answer"])).reward == 1.0


@pytest.mark.parametrize(
    ("args", "what", "fix"),
    [
        ({"task": "basic_aritmetic"}, "there is no task 'basic_aritmetic'", "basic_arithmetic or "),
        ({"task": "leg_counting", "max_animal": 3}, "leg_counting has no option 'max_animal'", "max_animals"),
        ({"task": "leg_counting", "min_animals": -3}, "leg_counting refuses its options: ", "its options are "),
        ({"task": "composite"}, "composite refuses its options: Must specify at least one", "its options are "),
    ],
)
def test_what_reasoning_gym_does_not_know_is_refused(args: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ReasoningGym(**args)
    assert refused.value.what.startswith(what)
    assert refused.value.fix.startswith(fix)


def test_problems_of_other_options_are_refused() -> None:
    problem = next(iter(ReasoningGym("leg_counting", seed=1).problems()))
    with pytest.raises(DataError, match="problem 0 of leg_counting asks something else by now"):
        ReasoningGym("leg_counting", seed=2).group(problem, [0])
