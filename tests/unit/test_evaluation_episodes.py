"""Episodes of held-out problems: what is measured of them, and what isn't."""

import functools
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.environments import registry
from kitchen_resources.environments.pool import EnvironmentPool
from kitchen_resources.environments.port import Action, EnvironmentSpec, Problem, StepResult
from kitchen_resources.environments.registry import register_environment
from kitchen_resources.errors import DataError, EvaluationError
from kitchen_resources.evaluation import episodes
from kitchen_resources.evaluation.episodes import EpisodesTask
from kitchen_resources.evaluation.local import LocalEvaluator
from kitchen_resources.evaluation.port import EvaluationResult
from kitchen_resources.evaluation.sampling import Sampler, Sampling
from kitchen_resources.formulas.metrics import mean_interval, pass_at_k
from tests.tiny_models import evaluated, load_plain, write_tiny_model

STOP = ord("e")


# The formula.


@pytest.mark.parametrize(
    ("n", "passed", "k", "expected"),
    [
        (10, 3, 1, 0.3),
        (10, 3, 5, 1 - 21 / 252),
        (5, 0, 3, 0.0),
        (5, 5, 1, 1.0),
        # Of 3 attempts at least one is among the 2 that passed.
        (4, 2, 3, 1.0),
        (4, 1, 4, 1.0),
        (1, 0, 1, 0.0),
    ],
)
def test_pass_at_k(n: int, passed: int, k: int, expected: float) -> None:
    assert pass_at_k(n, passed, k) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("n", "passed"), [(6, 2), (7, 0), (5, 4)])
def test_pass_at_k_is_the_share_of_all_choices_of_k(n: int, passed: int) -> None:
    for k in range(1, n + 1):
        choices = list(itertools.combinations(range(n), k))
        right = sum(min(choice) < passed for choice in choices)
        assert pass_at_k(n, passed, k) == pytest.approx(right / len(choices), rel=1e-12)


def test_pass_at_k_stays_finite_for_many_attempts() -> None:
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("n", "passed", "k", "where"), [(3, 4, 1, "passed"), (3, -1, 1, "passed"), (3, 1, 4, "k"), (3, 1, 0, "k")]
)
def test_pass_at_k_of_what_wasnt_tried(n: int, passed: int, k: int, where: str) -> None:
    with pytest.raises(EvaluationError) as refused:
        pass_at_k(n, passed, k)
    assert refused.value.where == where


# An environment.


class Parity:
    """Rewards the parity of the first letter, in one turn or more; episodes of a problem may be made to fail."""

    version = 1

    def problems(self) -> Iterator[Problem]:
        return iter(())

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence["ParityEpisode"]:
        return [ParityEpisode(problem, sample in problem.get("fails", ())) for sample in range(len(seeds))]


class ParityEpisode:
    def __init__(self, problem: Problem, fails: bool) -> None:
        self._turns = problem.get("turns", 1)
        self._fails = fails

    def initial_observation(self) -> Sequence[Mapping[str, str]]:
        return [{"role": "user", "content": "?"}]

    def step(self, action: Action) -> StepResult:
        if self._fails:
            raise ValueError("made to fail")
        self._turns -= 1
        return StepResult(parity(action.text), self._turns == 0, "go\non", solved=parity(action.text) == 1.0)


def parity(text: str) -> float:
    return float(ord(text[0]) % 2) if text else 0.0


class Bytes:
    """A dialogue in which a token is a byte, and the letter e ends a turn."""

    def decode(self, token_ids: Sequence[int]) -> Action:
        ended = bool(token_ids) and token_ids[-1] == STOP
        written = token_ids[:-1] if ended else token_ids
        return Action(bytes(token for token in written if token < 256).decode("latin-1"), ended)

    def follow_up(self, observation: str, *, ended: bool) -> list[int]:
        return [*observation.encode()]


@pytest.fixture(autouse=True)
def environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_environments", {})
    register_environment("parity", Parity)
    monkeypatch.setattr(episodes, "EnvironmentPool", functools.partial(EnvironmentPool, trusted=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "base", scale=2.5)


def problems(count: int = 6, **of: Any) -> list[dict[str, Any]]:
    return [{"prompt_ids": [*f"{n} {n}?".encode()], "problem": dict(of)} for n in range(count)]


def write_problems(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [("where", pyarrow.string()), ("prompt_ids", pyarrow.list_(pyarrow.int32())), ("problem", pyarrow.string())]
    )
    values = [
        {"where": f"rows:{n}", "prompt_ids": row["prompt_ids"], "problem": json.dumps(row["problem"])}
        for n, row in enumerate(rows)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values, schema=schema), path)
    return path


def sampling(**changes: Any) -> Sampling:
    whole: dict[str, Any] = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 40,
        "max_tokens": 5,
        "stop_token_ids": (STOP,),
        "pad_token_id": 256,
        "batch_size": 64,
        "seed": "seed",
    }
    return Sampling(**{**whole, **changes})


def task(rows: Path, **changes: Any) -> EpisodesTask:
    whole: dict[str, Any] = {
        "name": "held_out",
        "digest": "1" * 64,
        "rows": rows,
        "samples": None,
        "environment": EnvironmentSpec("parity"),
        "workers": 1,
        "time_limit_s": 30.0,
        "max_turns": 3,
        "max_failed": 0.1,
        "episodes": 4,
        "seed": 3,
        "sampling": sampling(),
        "dialogue": Bytes(),
    }
    return EpisodesTask(**{**whole, **changes})


def measured(asked: EpisodesTask, model: Path) -> EvaluationResult:
    return LocalEvaluator().evaluate(evaluated(model), [asked])


def solved(model: Path, rows: Sequence[Mapping[str, Any]], each: int = 4) -> list[list[bool]]:
    """Whether each episode of one turn is solved, by the completions that a sampler makes of the prompts."""
    sampler = Sampler(load_plain(model), sampling(batch_size=1))
    contexts = [row["prompt_ids"] for row in rows for _ in range(each)]
    passed = [parity(Bytes().decode(tokens).text) == 1.0 for tokens in sampler(contexts)]
    return [passed[start : start + each] for start in range(0, len(passed), each)]


# What is measured.


@pytest.mark.heavy
@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_reward_and_passes_are_means_over_problems(model: Path, tmp_path: Path, batch_size: int) -> None:
    rows = problems()
    asked = task(write_problems(tmp_path / "rows.parquet", rows), sampling=sampling(batch_size=batch_size))
    found = measured(asked, model).measures
    passed = [sum(group) for group in solved(model, rows)]
    assert len(set(passed)) >= 3
    expected = {
        "held_out/reward": [count / 4 for count in passed],
        "held_out/pass@1": [count / 4 for count in passed],
        "held_out/pass@4": [float(count > 0) for count in passed],
    }
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].n == 6
        assert found[name].value == pytest.approx(sum(values) / 6)
        assert (found[name].low, found[name].high) == pytest.approx(mean_interval(values))


@pytest.mark.heavy
def test_the_same_model_gets_the_same_done(model: Path, tmp_path: Path) -> None:
    path = write_problems(tmp_path / "rows.parquet", problems(turns=2))
    asked, in_small_batches = task(path), task(path, sampling=sampling(batch_size=3))
    first = measured(asked, model)
    assert measured(asked, model) == first == measured(in_small_batches, model)
    assert measured(task(path, sampling=sampling(seed="other")), model).samples != first.samples


@pytest.mark.heavy
def test_one_episode_of_a_problem_gives_pass_at_1_alone(model: Path, tmp_path: Path) -> None:
    found = measured(task(write_problems(tmp_path / "rows.parquet", problems()), episodes=1), model).measures
    assert set(found) == {"held_out/reward", "held_out/pass@1"}


@pytest.mark.heavy
def test_only_the_first_problems_are_asked(model: Path, tmp_path: Path) -> None:
    found = measured(task(write_problems(tmp_path / "rows.parquet", problems()), samples=2), model)
    assert {measure.n for measure in found.measures.values()} == {2}
    assert [sample["where"] for sample in found.samples] == ["rows:0", "rows:1"]


@pytest.mark.heavy
def test_turns_are_played_and_shown(model: Path, tmp_path: Path) -> None:
    rows = [*problems(2, turns=2), *problems(1, turns=9), *problems(9)]
    result = measured(task(write_problems(tmp_path / "rows.parquet", rows), sampling=sampling(max_tokens=2)), model)
    # Eight are shown, one episode each.
    assert [sample["where"] for sample in result.samples] == [f"rows:{n}" for n in range(8)]
    assert [sample["answer"].count("> go\n> on") for sample in result.samples] == [1, 1, 3, 0, 0, 0, 0, 0]
    first = result.samples[0]
    one, two = first["answer"].split("\n> go\n> on\n")
    assert first == {
        "evaluation": "held_out",
        "where": "rows:0",
        "prompt": "0 0?",
        "expected": "",
        "answer": f"{one}\n> go\n> on\n{two}",
        "score": parity(one) + parity(two),
    }


# Episodes that fail.


@pytest.mark.heavy
def test_failed_episodes_are_left_out(model: Path, tmp_path: Path) -> None:
    rows = problems()
    rows[1]["problem"] = {"fails": [0, 1, 2, 3]}
    rows[4]["problem"] = {"fails": [1]}
    result = measured(task(write_problems(tmp_path / "rows.parquet", rows), max_failed=0.25), model)
    episodes_of = solved(model, rows)
    scored = [
        [passed for sample, passed in enumerate(group) if sample not in row["problem"].get("fails", ())]
        for row, group in zip(rows, episodes_of, strict=True)
    ]
    assert [len(group) for group in scored] == [4, 0, 4, 4, 3, 4]
    shares = [sum(group) / len(group) for group in scored if group]
    whole = [pass_at_k(4, sum(group), 4) for group in scored if len(group) == 4]
    for name, values in {"reward": shares, "pass@1": shares, "pass@4": whole}.items():
        got = result.measures[f"held_out/{name}"]
        assert (got.value, got.n) == (pytest.approx(sum(values) / len(values)), len(values))
    assert [sample["where"] for sample in result.samples] == [f"rows:{n}" for n in (0, 2, 3, 4, 5)]


@pytest.mark.heavy
def test_more_failures_than_allowed_are_refused(model: Path, tmp_path: Path) -> None:
    rows = problems()
    rows[4]["problem"] = {"fails": [1, 3]}
    path = write_problems(tmp_path / "rows.parquet", rows)
    assert measured(task(path, max_failed=2 / 24), model).measures
    with pytest.raises(EvaluationError) as refused:
        measured(task(path, max_failed=0.08), model)
    what, fix = str(refused.value).split("\n  fix: ")
    assert what.startswith(
        "evaluation held_out, environment parity: 2 of 24 episodes failed, and max_failed is 0.08: 2 error; "
        "the first with error: ValueError: made to fail"
    )
    assert fix == "correct the environment, or raise its time_limit_s"


@pytest.mark.heavy
def test_where_all_failed_nothing_is_measured(model: Path, tmp_path: Path) -> None:
    path = write_problems(tmp_path / "rows.parquet", problems(2, fails=[0, 1, 2, 3]))
    assert measured(task(path, max_failed=1.0), model) == EvaluationResult({}, [])


@pytest.mark.heavy
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(model: Path, tmp_path: Path) -> None:
    positions = load_plain(model).config.max_position_embeddings
    path = write_problems(tmp_path / "rows.parquet", problems(1))
    # The prompt has four tokens.
    assert measured(task(path, sampling=sampling(max_tokens=positions - 4), max_turns=1, episodes=1), model).measures
    with pytest.raises(DataError):
        measured(task(path, sampling=sampling(max_tokens=positions - 3)), model)


@pytest.mark.heavy
def test_in_worker_processes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "EnvironmentPool", EnvironmentPool)
    rows = [{"prompt_ids": [*b"1+1="], "problem": {"question": "1+1=", "answer": "2"}}] * 2
    asked = task(write_problems(tmp_path / "rows.parquet", rows), environment=EnvironmentSpec("arithmetic"))
    found = measured(asked, model).measures
    assert {name: measure.n for name, measure in found.items()} == {
        "held_out/reward": 2,
        "held_out/pass@1": 2,
        "held_out/pass@4": 2,
    }
    assert all(math.isfinite(measure.value) for measure in found.values())


# What is asked.


def test_what_moves_the_numbers_moves_the_spec(tmp_path: Path) -> None:
    asked = task(tmp_path)
    moved: list[dict[str, Any]] = [
        {"name": "other"},
        {"digest": "2" * 64},
        {"samples": 3},
        {"environment": EnvironmentSpec("arithmetic")},
        {"max_turns": 4},
        {"episodes": 2},
        {"seed": 4},
        {"sampling": sampling(temperature=0.5)},
    ]
    assert all(task(tmp_path, **change).spec() != asked.spec() for change in moved)
    same = task(tmp_path / "elsewhere", workers=9, time_limit_s=1.0, max_failed=1.0, sampling=sampling(batch_size=1))
    assert same.spec() == asked.spec()
