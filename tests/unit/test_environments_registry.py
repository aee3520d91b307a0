"""Environments and rewards by name: what may be registered, what options they take, and what identifies them."""

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.digests import digest_file
from kitchen_resources.environments import registry, rewards
from kitchen_resources.environments.options import identity_of, wrong_options, wrong_reward_options
from kitchen_resources.environments.port import EnvironmentGroupBuilder, EnvironmentSpec, RewardSpec
from kitchen_resources.environments.references import reference_of, resolve
from kitchen_resources.environments.registry import (
    environment_names,
    find_environment,
    find_reward,
    register_environment,
    register_reward,
    reward_names,
)
from kitchen_resources.errors import ConfigError
from tests.unit import misbehaving_environments
from tests.unit.misbehaving_environments import Obedient, obeyed

IMPORTABLE = "define it with def or class at the top level of a module of its own, and import it from there"


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone when it is over."""
    monkeypatch.setattr(registry, "_environments", {})
    monkeypatch.setattr(registry, "_rewards", {})


def without_version() -> None: ...


class Outer:
    class Inner(Obedient): ...

    def method(self) -> None: ...


# Names.


def test_built_in_environments_are_builders_with_a_version() -> None:
    assert {"arithmetic", "math", "reasoning_gym"} <= set(environment_names())
    for name in environment_names():
        factory = find_environment(name)
        assert resolve(reference_of(factory, where=name)) is factory
        assert type(factory.version) is int  # type: ignore[attr-defined]
    assert isinstance(find_environment("arithmetic")(), EnvironmentGroupBuilder)


def test_built_in_rewards_are_found_by_name() -> None:
    assert reward_names() == ["contains", "ended", "exact_match", "format", "length_penalty"]
    assert find_reward("format") is rewards.matches_format
    assert find_reward("ended") is rewards.ended


def test_own_ones_are_registered_once() -> None:
    register_environment("mine", Obedient)
    register_environment("mine", Obedient)
    register_environment("inner", Outer.Inner)
    register_reward("mine", obeyed)
    register_reward("ended", rewards.ended)
    assert find_environment("mine") is Obedient
    assert find_environment("inner") is Outer.Inner
    assert find_reward("mine") is obeyed
    with pytest.raises(ConfigError, match="register_environment: the environment 'mine' exists already"):
        register_environment("mine", Outer.Inner)
    with pytest.raises(ConfigError, match="register_environment: the environment 'arithmetic' exists already"):
        register_environment("arithmetic", Obedient)
    with pytest.raises(ConfigError, match="register_reward: the reward 'ended' exists already"):
        register_reward("ended", obeyed)
    with pytest.raises(ConfigError, match="'environment' is what the environment's own reward is called"):
        register_reward("environment", obeyed)


def test_unknown_names_are_refused_with_the_likeliest() -> None:
    register_environment("mine", Obedient)
    with pytest.raises(ConfigError) as unknown:
        find_environment("arithmetics")
    assert str(unknown.value).startswith(
        "environment: there is no environment 'arithmetics'\n  fix: arithmetic? Known are arithmetic, "
    )
    assert "mine" in unknown.value.fix
    assert unknown.value.fix.endswith("; or register_environment(…) yours")
    with pytest.raises(ConfigError) as unknown:
        find_reward("bleu")
    assert unknown.value.fix == (
        "Known are contains, ended, exact_match, format, length_penalty; or register_reward(…) yours"
    )


# What a worker couldn't import.


def _local() -> Callable[..., float]:
    def local(problem: Any, turns: Any) -> float:
        return 0.0

    return local


def _of_the_program() -> Callable[..., float]:
    def started(problem: Any, turns: Any) -> float:
        return 0.0

    started.__module__, started.__qualname__ = "__main__", "started"
    return started


def _another_one() -> Callable[..., float]:
    def obeyed(problem: Any, turns: Any) -> float:
        return 0.0

    obeyed.__module__, obeyed.__qualname__ = misbehaving_environments.__name__, "obeyed"
    return obeyed


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (lambda problem, turns: 0.0, "a lambda can't be imported"),
        (_local(), "_local.<locals>.local is defined inside a function"),
        (_of_the_program(), "started is defined in the program that was started"),
        (_another_one(), "tests.unit.misbehaving_environments:obeyed is something else than <function"),
        (functools.partial(obeyed, factor=2.0), "functools.partial(<function obeyed at"),
        (Outer().method, "test_environments_registry:Outer.method is something else than <bound method"),
    ],
)
def test_what_cannot_be_imported_by_name_is_refused(target: Any, reason: str) -> None:
    for register in (register_environment, register_reward):
        with pytest.raises(ConfigError) as refused:
            register("mine", target)
        assert refused.value.where == f"{register.__name__}('mine')"
        assert reason in refused.value.what
        assert refused.value.what.endswith("run in worker processes that import them by name")
        assert refused.value.fix == IMPORTABLE


def test_an_environment_has_a_version() -> None:
    with pytest.raises(ConfigError) as refused:
        register_environment("mine", without_version)  # type: ignore[arg-type]
    assert refused.value.what == "without_version has no integer `version`"


# Options.


@pytest.mark.parametrize(
    ("name", "args", "wrong"),
    [
        ("arithmetic", {}, None),
        ("arithmetic", {"maximum": 9, "count": 100, "operations": ["+"]}, None),
        (
            "arithmetic",
            {"maximums": 9},
            "arithmetic has no option 'maximums'; it has operations, maximum, count, seed, format_coef",
        ),
        (
            "arithmetic",
            {"maximum": 9, "count": 201},
            "arithmetic can't take these options: 201 problems can't be had of the 200 there are up to 9; "
            "lower count, or raise maximum",
        ),
        ("reasoning_gym", {}, "reasoning_gym needs the option 'task'"),
        ("mine", {"count": 5}, None),
        ("mine", {"number": 5}, "mine has no option 'number'; it has count, problem"),
    ],
)
def test_options_of_environments(name: str, args: dict[str, Any], wrong: str | None) -> None:
    register_environment("mine", Obedient)
    assert wrong_options(name, args) == wrong


def test_values_of_your_own_are_tried_in_a_worker() -> None:
    register_environment("mine", Obedient)
    wrong = wrong_options("mine", {"count": -1})
    assert wrong is not None
    assert wrong.startswith("mine can't take these options: ValueError: less than none (misbehaving_environments.py")


@pytest.mark.parametrize(
    ("name", "args", "wrong"),
    [
        ("ended", {}, None),
        ("ended", {"x": 1}, "ended has no option 'x'; it has none"),
        ("format", {}, "format needs the option 'pattern'"),
        ("format", {"pattern": "<a>.*</a>"}, None),
        ("length_penalty", {"minimum": 5, "maximum": 5}, None),
        (
            "length_penalty",
            {"minimum": 5, "maximum": 4},
            "length_penalty can't take these options: minimum 5 and maximum 4 are no bounds of a length; "
            "write args: {minimum: 10, maximum: 100}",
        ),
        ("mine", {"factor": "not tried"}, None),
        ("mine", {"problem": 1}, "mine has no option 'problem'; it has factor"),
    ],
)
def test_options_of_rewards(name: str, args: dict[str, Any], wrong: str | None) -> None:
    register_reward("mine", obeyed)
    assert wrong_reward_options(name, args) == wrong


# Identity.


def test_identity_holds_names_versions_resolved_options_and_sources() -> None:
    register_environment("mine", Obedient)
    register_reward("mine", obeyed)
    spec = EnvironmentSpec("mine", {"count": 2}, [RewardSpec("mine"), RewardSpec("format", 2, {"pattern": "x"})])
    source = digest_file(Path(misbehaving_environments.__file__))
    assert identity_of(spec) == {
        "name": "mine",
        "version": 3,
        "args": {"count": 2, "problem": None},
        "source": source,
        "rewards": [
            {"name": "mine", "version": 1, "args": {"factor": 1.0}, "source": source, "weight": 1.0},
            {
                "name": "format",
                "version": 1,
                "args": {"pattern": "x"},
                "source": digest_file(Path(rewards.__file__)),
                "weight": 2.0,
            },
        ],
    }


def test_identity_is_json_and_the_same_with_a_default_written_out() -> None:
    bare, written = (
        identity_of(EnvironmentSpec("arithmetic")),
        EnvironmentSpec("arithmetic", {"operations": ["+", "-"]}),
    )
    assert bare["args"] == {"count": 1000, "format_coef": 0.1, "maximum": 99, "operations": ["+", "-"], "seed": 0}
    assert identity_of(written) == bare


def test_identity_moves_with_the_source_the_version_and_the_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "rewards_of_a_user.py"
    file.write_text("def bonus(problem, turns, *, factor=1.0):\n    return factor\n")
    monkeypatch.delitem(sys.modules, "rewards_of_a_user", raising=False)
    bonus: Any = importlib.import_module("rewards_of_a_user").bonus
    register_reward("bonus", bonus)

    def identity(args: dict[str, Any], *, weight: float = 1.0) -> Sequence[Any]:
        rewards: Sequence[Any] = identity_of(EnvironmentSpec("arithmetic", {}, [RewardSpec("bonus", weight, args)]))[
            "rewards"
        ]
        return rewards

    seen = [identity({}), identity({"factor": 2.0}), identity({}, weight=2.0)]
    bonus.version = 2
    seen.append(identity({}))
    file.write_text(file.read_text() + "# Twice as much.\n")
    seen.append(identity({}))
    assert all(seen.count(each) == 1 for each in seen)
    file.unlink()
    with pytest.raises(ConfigError, match="rewards_of_a_user has no source file"):
        identity({})
