"""What an environment or a reward is asked to be: its options, and its part of a run's identity."""

import importlib.metadata
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from kitchen_resources.digests import canonical_json
from kitchen_resources.environments.port import EnvironmentSpec, RewardSpec
from kitchen_resources.environments.process import WorkerProcess
from kitchen_resources.environments.references import reference_of, source_digest
from kitchen_resources.environments.registry import (
    BUILT_IN_ENVIRONMENTS,
    BUILT_IN_REWARDS,
    find_environment,
    find_reward,
)
from kitchen_resources.errors import CapabilityError, KitchenError

_TIME_LIMIT_S = 30.0


def wrong_options(name: str, args: Mapping[str, Any]) -> str | None:
    """What is wrong with an environment's options, or None.

    Values are tried: a built-in environment is made here, and yours in a worker process.

    Raises:
        ConfigError: There is no such environment.
    """
    factory = find_environment(name)
    wrong = _wrong_names(name, _parameters(factory), args)
    if wrong is not None:
        return wrong
    try:
        if name in BUILT_IN_ENVIRONMENTS:
            factory(**args)
        else:
            setup = {
                "name": name,
                "environment": reference_of(factory, where=name),
                "args": dict(args),
                "rewards": [],
            }
            WorkerProcess(setup, _TIME_LIMIT_S).close()
    except (KitchenError, TypeError, ValueError) as error:
        return _refused(name, error)
    return None


def wrong_reward_options(name: str, args: Mapping[str, Any]) -> str | None:
    """What is wrong with a reward's options, or None. Values are tried on a built-in reward; yours is only read.

    Raises:
        ConfigError: There is no such reward.
    """
    function = find_reward(name)
    wrong = _wrong_names(name, _parameters(function)[2:], args)
    if wrong is None and name in BUILT_IN_REWARDS:
        try:
            function({"answer": "0"}, [{"text": "0", "ended": True, "observation": ""}], **args)
        except (KitchenError, TypeError, ValueError) as error:
            return _refused(name, error)
    return wrong


def identity_of(spec: EnvironmentSpec) -> dict[str, Any]:
    """What makes this environment, with its rewards, another one: a run with a changed one is another run.

    Returns:
        {"name", "version", "args", "source", "rewards": [{"name", "version", "args", "source", "weight"}, …]}, as JSON
        values. `args` holds the defaults of options that the spec leaves out. `source` is the sha256 of the file that
        defines it; what that file imports isn't in it. `packages` holds the versions of those that the environment or
        reward names as its `packages`, where it names any.

    Raises:
        ConfigError: There is no such environment or reward, or it has no source file.
    """
    environment = find_environment(spec.name)
    return {
        **_identity(spec.name, environment, spec.args, _parameters(environment)),
        "rewards": [_reward_identity(reward) for reward in spec.rewards],
    }


def _reward_identity(reward: RewardSpec) -> dict[str, Any]:
    function = find_reward(reward.name)
    named = _identity(reward.name, function, reward.args, _parameters(function)[2:])
    return {**named, "weight": float(reward.weight)}


def _identity(
    name: str, target: Callable[..., Any], args: Mapping[str, Any], parameters: list[inspect.Parameter]
) -> dict[str, Any]:
    defaults = {
        each.name: each.default for each in parameters if each.default is not each.empty and is_json(each.default)
    }
    packages = {package: _package_version(package) for package in getattr(target, "packages", ())}
    return {
        "name": name,
        "version": getattr(target, "version", 1),
        **({"packages": packages} if packages else {}),
        "args": json.loads(canonical_json({**defaults, **args})),
        "source": source_digest(target, name=name),
    }


def _package_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _parameters(target: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(target).parameters.values())


def _wrong_names(name: str, parameters: list[inspect.Parameter], args: Mapping[str, Any]) -> str | None:
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    known = [each.name for each in named]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    unknown = [option for option in args if option not in known and not takes_any]
    if unknown:
        return f"{name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}"
    missing = [each.name for each in named if each.default is each.empty and each.name not in args]
    return f"{name} needs the option {missing[0]!r}" if missing else None


def _refused(name: str, error: Exception) -> str:
    told = f"{error.what}; {error.fix}" if isinstance(error, KitchenError) else str(error)
    # A package that isn't installed is not the options' fault.
    return told if isinstance(error, CapabilityError) else f"{name} can't take these options: {told}"


def is_json(value: Any) -> bool:
    """Whether a value is one of JSON: texts, finite numbers, lists and objects."""
    try:
        canonical_json(value)
    except ValueError:
        return False
    return True
