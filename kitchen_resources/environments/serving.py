"""Runs environments and rewards for requests: user code, and what it may return.

It takes and gives JSON objects, in a worker process or inline, so that both ways see the same values.
"""

import itertools
import json
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any

from kitchen_resources import errors
from kitchen_resources.environments.port import Action, Environment, StepResult
from kitchen_resources.environments.references import resolve
from kitchen_resources.errors import ConfigError, KitchenError

Wire = dict[str, Any]
"""A JSON object as requests and answers are."""

_LONGEST_MESSAGE = 2000


class Host:
    """The environment and the rewards of a spec, and the episodes that were opened.

    Args:
        setup: {"name": …, "environment": reference, "args": …, "rewards": [{"function": reference, "args": …}]}.

    Raises:
        Exception: Whatever the user's module, builder or options raise.
    """

    def __init__(self, setup: Wire) -> None:
        self._builder = resolve(setup["environment"])(**setup["args"])
        self._rewards = [(resolve(reward["function"]), reward["args"]) for reward in setup["rewards"]]
        self._groups: dict[int, list[Environment]] = {}
        self._operations: dict[str, Callable[[Wire], Iterator[Wire]]] = {
            "problems": self._problems,
            "observe": self._observe,
            "open": self._open,
            "step": self._step,
            "score": self._score,
            "release": self._release,
        }

    def answers(self, request: Wire) -> Iterator[Wire]:
        """The answers to a request, one for each of its parts, each worked out when it is asked for."""
        return self._operations[request["op"]](request)

    def _problems(self, request: Wire) -> Iterator[Wire]:
        own = itertools.islice(self._own_problems(), request["limit"])
        while "problem" in (answer := contained(next, own, {"end": True})):
            yield answer
        yield answer

    def _own_problems(self) -> Iterator[Wire]:
        for problem in self._builder.problems():
            yield {"problem": _problem(problem)}

    def _observe(self, request: Wire) -> Iterator[Wire]:
        for problem in request["parts"]:
            yield contained(self._first_observation, problem)

    def _first_observation(self, problem: Wire) -> Wire:
        return _observed(self._group(problem, [0])[0])

    def _open(self, request: Wire) -> Iterator[Wire]:
        built = contained(self._build, request)
        yield built
        for sample in request["samples"]:
            yield built if "failure" in built else contained(_observed, self._groups[request["group"]][sample])

    def _build(self, request: Wire) -> Wire:
        self._groups[request["group"]] = self._group(request["problem"], request["seeds"])
        return {}

    def _group(self, problem: Wire, seeds: Sequence[int]) -> list[Environment]:
        episodes = list(self._builder.group(problem, seeds))
        if len(episodes) != len(seeds):
            raise ValueError(f"group() returned {len(episodes)} episodes for {len(seeds)} seeds; return one a seed")
        return episodes

    def _step(self, request: Wire) -> Iterator[Wire]:
        episodes = self._groups[request["group"]]
        for part in request["parts"]:
            yield contained(_stepped, episodes[part["sample"]], Action(part["text"], part["ended"]))

    def _score(self, request: Wire) -> Iterator[Wire]:
        for part in request["parts"]:
            reward, args = self._rewards[part["reward"]]
            yield contained(_scored, reward, part["problem"], part["turns"], args)

    def _release(self, request: Wire) -> Iterator[Wire]:
        for group in request["groups"]:
            self._groups.pop(group, None)
        yield {}


class Containment:
    """Keeps what user code raises, instead of letting it through.

    Attributes:
        error: What was raised, or None.
    """

    error: Exception | SystemExit | None = None

    def __enter__(self) -> "Containment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, (Exception, SystemExit)):
            self.error = error
        return self.error is not None


def contained(call: Callable[..., Wire], *args: Any) -> Wire:
    """What the call returns, or {"failure": {"kind", "message"}} when it raises."""
    with Containment() as containment:
        return call(*args)
    error = containment.error
    if isinstance(error, _NotFinite):
        return {"failure": {"kind": "not_finite", "message": str(error)}}
    return {"failure": {"kind": "error", "message": description(error)}}


def description(error: BaseException | None) -> str:
    """An exception's type, message, and the line that raised it."""
    frames = list(traceback.walk_tb(error.__traceback__)) if error is not None else []
    place = ""
    if frames and frames[-1][0].f_code.co_filename != __file__:
        code, line = frames[-1][0].f_code, frames[-1][1]
        place = f" ({Path(code.co_filename).name}, line {line}, in {code.co_name})"
    text = str(error).strip()
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return named[:_LONGEST_MESSAGE] + place


def refusal(error: BaseException) -> Wire:
    """Why a host can't be made, as {"refused": …} for the process that asked for it."""
    if isinstance(error, KitchenError):
        told = {"kind": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
    else:
        told = {"kind": "ConfigError", "what": description(error), "where": "", "fix": ""}
    return {"refused": told}


def refused(answer: Wire, *, where: str) -> KitchenError:
    """A refusal as the error that it was."""
    told = answer["refused"]
    kind: type[KitchenError] = getattr(errors, told["kind"], ConfigError)
    fix = told["fix"] or "correct its options, or the module that defines it"
    return kind(told["what"], where=told["where"] or where, fix=fix)


class _NotFinite(ValueError):
    """A number is NaN or infinite."""


def _problem(problem: Any) -> Wire:
    if not isinstance(problem, Mapping):
        raise TypeError(f"problems() gave a {type(problem).__name__}; give JSON objects")
    text = json.dumps(dict(problem), allow_nan=False)
    return json.loads(text)  # type: ignore[no-any-return]


def _observed(episode: Environment) -> Wire:
    messages = [dict(message) for message in episode.initial_observation()]
    for message in messages:
        if not (isinstance(message.get("role"), str) and isinstance(message.get("content"), str)):
            raise TypeError(f"initial_observation() gave {message!r}; give messages with the texts role and content")
    if not messages:
        raise ValueError("initial_observation() gave no message")
    return {"messages": [{"role": message["role"], "content": message["content"]} for message in messages]}


def _stepped(episode: Environment, action: Action) -> Wire:
    result: Any = episode.step(action)
    if not isinstance(result, StepResult):
        raise TypeError(f"step() returned a {type(result).__name__}; return StepResult(reward=…, done=…)")
    if not isinstance(result.done, bool) or not (result.solved is None or isinstance(result.solved, bool)):
        raise TypeError("StepResult.done is True or False, and solved is True, False or None")
    if not isinstance(result.observation, str):
        raise TypeError(f"StepResult.observation is a {type(result.observation).__name__}; give a text")
    if not isinstance(result.metrics, Mapping):
        raise TypeError(f"StepResult.metrics is a {type(result.metrics).__name__}; give numbers by name")
    return {
        "reward": _finite(result.reward, "StepResult.reward"),
        "done": result.done,
        "observation": "" if result.done else result.observation,
        "solved": result.solved,
        "metrics": {str(name): _finite(value, f"the metric {name}") for name, value in result.metrics.items()},
    }


def _scored(reward: Callable[..., Any], problem: Wire, turns: list[Wire], args: Wire) -> Wire:
    return {"value": _finite(reward(problem, turns, **args), "the reward")}


def _finite(value: Any, name: str) -> float:
    if not isinstance(value, Real):
        raise TypeError(f"{name} is a {type(value).__name__}; give a number")
    if not math.isfinite(value):
        raise _NotFinite(f"{name} is {float(value)}")
    return float(value)
