"""The tasks of reasoning-gym, each with its own generator and verifier."""

import dataclasses
import importlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from kitchen_resources.environments.port import Action, Problem, StepResult
from kitchen_resources.environments.registry import close_to
from kitchen_resources.environments.single_turn import SingleTurn
from kitchen_resources.errors import CapabilityError, ConfigError, DataError

_TAGS = "\n\nWrite your final answer between <answer> and </answer>."

# What verifiers raise at a text that they can't read, such as prime_factorization at one without numbers.
_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, SyntaxError, TypeError, ValueError)


class ReasoningGym:
    """Asks the questions of one task of reasoning-gym, and rewards by its verifier, in one turn.

    Its problems are its own. Some tasks work through sets of texts (word_ladder is one): what they ask then depends on
    the process, and is the same in every worker, but not in a `trusted` pool.

    Args:
        task: Name of the task, such as `basic_arithmetic`.
        count: Number of problems.
        seed: Other seeds give other problems.
        answer_tags: Ask for the answer between <answer> and </answer>, and read only what is there. Else the whole text
            is the answer, without white space around it.
        options: Of the task. `datasets` of `composite` are {"name", "weight", "config"}.

    Raises:
        CapabilityError: reasoning-gym isn't installed.
        ConfigError: There is no such task, or it refuses its options.
    """

    version = 1
    packages = ("reasoning_gym",)

    def __init__(self, task: str, count: int = 500, seed: int = 0, answer_tags: bool = False, **options: Any) -> None:
        gym = _imported("reasoning_gym")
        self._tagged: Any = _imported("reasoning_gym.utils").extract_answer if answer_tags else None
        self._dataset: Any = _made(gym, task, {"size": count, "seed": seed, **options})
        self._task = task

    def problems(self) -> Iterator[Problem]:
        """See `EnvironmentGroupBuilder.problems`."""
        for index in range(len(self._dataset)):
            entry = self._dataset[index]
            yield {"question": entry["question"], "answer": entry["answer"], "task": self._task, "index": index}

    def group(self, problem: Problem, seeds: Sequence[int]) -> Sequence[SingleTurn]:
        """See `EnvironmentGroupBuilder.group`."""
        # Made anew, because what a verifier reads of it (tuples, keys that are numbers) is more than JSON can hold.
        entry = self._dataset[problem["index"]]
        if entry["question"] != problem["question"]:
            raise DataError(
                f"problem {problem['index']} of {self._task} asks something else by now",
                where="problem",
                fix="use the problems of this environment, with the same options, version and kind of pool",
            )
        question = entry["question"] + (_TAGS if self._tagged else "")
        judge = partial(self._judge, entry)
        return [SingleTurn([{"role": "user", "content": question}], judge) for _ in seeds]

    def _judge(self, entry: Mapping[str, Any], action: Action) -> StepResult:
        answer = self._tagged(action.text) if self._tagged else action.text.strip()
        try:
            reward, readable = float(self._dataset.score_answer(answer, entry)), True
        except _UNREADABLE:
            reward, readable = 0.0, False
        return StepResult(reward=reward, done=True, metrics={"readable": float(readable and answer is not None)})


def _made(gym: ModuleType, task: str, options: dict[str, Any]) -> Any:
    tasks = _imported("reasoning_gym.factory").DATASETS
    if task not in tasks:
        raise ConfigError(f"there is no task {task!r}", where="environment.args.task", fix=close_to(task, tasks))
    known = [field.name for field in dataclasses.fields(tasks[task][1])]
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(
            f"{task} has no option {unknown[0]!r}",
            where=f"environment.args.{unknown[0]}",
            fix=close_to(unknown[0], known),
        )
    if task == "composite":
        part: Any = _imported("reasoning_gym.composite").DatasetSpec
        options = {**options, "datasets": [part(**each) for each in options.get("datasets", [])]}
    try:
        return gym.create_dataset(task, **options)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{task} refuses its options: {error}",
            where="environment.args",
            fix=f"its options are {', '.join(known)}",
        ) from error


def _imported(name: str) -> ModuleType:
    try:
        # A package that it uses compares with a literal by `is`, which warns when it is compiled.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            return importlib.import_module(name)
    except ImportError as error:
        raise CapabilityError(
            "the environment `reasoning_gym` needs the package reasoning-gym",
            where="environment.name",
            fix='pip install "crucible-kitchen[environments]"',
        ) from error
