"""Environments and rewards by registered name: the built-in ones, and those that a code location adds."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from kitchen_resources.environments.port import EnvironmentGroupBuilder, Reward
from kitchen_resources.environments.references import reference_of, resolve
from kitchen_resources.errors import ConfigError

BuilderFactory = Callable[..., EnvironmentGroupBuilder]
"""(**options) -> builder: as a rule its class."""

_HERE = "kitchen_resources.environments"

# By reference and not by import: what one of them needs may be heavy, or not installed.
BUILT_IN_ENVIRONMENTS: Mapping[str, str] = {
    "compass": f"{_HERE}.compass:Compass",
    "tango": f"{_HERE}.game:Tango",
    "arithmetic": f"{_HERE}.arithmetic:Arithmetic",
    "math": f"{_HERE}.boxed:BoxedMath",
    "reasoning_gym": f"{_HERE}.reasoning_gym:ReasoningGym",
}
"""References of the built-in environments."""

BUILT_IN_REWARDS: Mapping[str, str] = {
    "format": f"{_HERE}.rewards:matches_format",
    "ended": f"{_HERE}.rewards:ended",
    "length_penalty": f"{_HERE}.rewards:length_penalty",
    "exact_match": f"{_HERE}.rewards:exact_match",
    "contains": f"{_HERE}.rewards:contains",
}
"""References of the built-in rewards."""

OWN_COMPONENT = "environment"
"""Name of the environment's own reward among the components of an episode's reward."""

_environments: dict[str, BuilderFactory] = {}
_rewards: dict[str, Reward] = {}


def register_environment(name: str, builder_factory: BuilderFactory) -> None:
    """Make an environment known in this code location, so that recipes can name it.

    Launch config only ever names environments; it can't import any.

    Args:
        name: What recipes call it.
        builder_factory: Makes an `EnvironmentGroupBuilder` of the recipe's `environment.args`; its class, as a rule. It
            has an integer `version`, and a worker process can import it.

    Raises:
        ConfigError: The name is taken by another one, or a worker couldn't import the factory, or it has no version.
    """
    reference_of(builder_factory, where=f"register_environment({name!r})")
    if type(getattr(builder_factory, "version", None)) is not int:
        raise ConfigError(
            f"{builder_factory.__qualname__} has no integer `version`",
            where=f"register_environment({name!r})",
            fix="write `version = 1` in its class; raise it when the same actions would be worth something else",
        )
    _register("environment", name, builder_factory, _environments, BUILT_IN_ENVIRONMENTS)


def register_reward(name: str, function: Reward) -> None:
    """Make a reward known in this code location, so that recipes can name it.

    Args:
        name: What recipes call it.
        function: (problem, turns, **options) -> number. A worker process can import it. Its version is its attribute
            `version`, 1 where it has none.

    Raises:
        ConfigError: The name is taken by another one, or a worker couldn't import the function.
    """
    reference_of(function, where=f"register_reward({name!r})")
    if name == OWN_COMPONENT:
        raise ConfigError(
            f"{name!r} is what the environment's own reward is called",
            where="register_reward",
            fix="choose another name",
        )
    _register("reward", name, function, _rewards, BUILT_IN_REWARDS)


def find_environment(name: str) -> BuilderFactory:
    """An environment's builder factory by name.

    Raises:
        ConfigError: There is none of that name.
    """
    return cast(BuilderFactory, _find("environment", name, _environments, BUILT_IN_ENVIRONMENTS))


def find_reward(name: str) -> Reward:
    """A reward by name.

    Raises:
        ConfigError: There is none of that name.
    """
    return cast(Reward, _find("reward", name, _rewards, BUILT_IN_REWARDS))


def environment_names() -> list[str]:
    """All names of environments, sorted."""
    return sorted({*BUILT_IN_ENVIRONMENTS, *_environments})


def reward_names() -> list[str]:
    """All names of rewards, sorted."""
    return sorted({*BUILT_IN_REWARDS, *_rewards})


def close_to(name: str, known: Iterable[str]) -> str:
    """The likeliest of the known names first, as a hint for a message: `arithmetic? Known are …`."""
    names = sorted(known)
    likely = difflib.get_close_matches(name, names, n=3)
    hint = f"{' or '.join(likely)}? " if likely else ""
    return f"{hint}Known are {', '.join(names)}"


def _register(kind: str, name: str, target: Any, registered: dict[str, Any], built_in: Mapping[str, str]) -> None:
    known = resolve(built_in[name]) if name in built_in else registered.get(name)
    if known is not None and known is not target:
        raise ConfigError(f"the {kind} {name!r} exists already", where=f"register_{kind}", fix="choose another name")
    if name not in built_in:
        registered[name] = target


def _find(kind: str, name: str, registered: Mapping[str, Any], built_in: Mapping[str, str]) -> Any:
    if name in built_in:
        return resolve(built_in[name])
    if name not in registered:
        raise ConfigError(
            f"there is no {kind} {name!r}",
            where=kind,
            fix=f"{close_to(name, [*built_in, *registered])}; or register_{kind}(…) yours",
        )
    return registered[name]
