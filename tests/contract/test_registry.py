"""The registry port's contract, run over every adapter."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from kitchen_resources.blobs.local import LocalBlobs
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.errors import RegistryError
from kitchen_resources.registry.port import ModelRegistry, Registration
from kitchen_resources.registry.store import NoopRegistry, StoreRegistry
from tests.registrations import RUN_B, measured, model_files, registration

ADAPTERS: dict[str, Callable[[Path], ModelRegistry]] = {
    "store, local": lambda folder: StoreRegistry(LocalBlobs(folder / "store")),
    "store, memory": lambda folder: StoreRegistry(MemoryBlobs()),
    "noop": lambda folder: NoopRegistry(),
}


@pytest.fixture(params=ADAPTERS)
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> ModelRegistry:
    return ADAPTERS[request.param](tmp_path)


def race(threads: int, work: Callable[[int], object]) -> list[object]:
    """Results of `work(0)`, `work(1)` …, each in a thread of its own, all let go at once."""
    gate = threading.Barrier(threads)

    def run(number: int) -> object:
        gate.wait()
        return work(number)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def step(number: int, name: str = "words") -> Registration:
    return registration(name=name, step=number, manifest=f"{number:064x}")


def test_it_is_a_registry(registry: ModelRegistry) -> None:
    assert isinstance(registry, ModelRegistry)


def test_nothing_is_registered_at_first(registry: ModelRegistry) -> None:
    assert list(registry.versions("words")) == []
    assert registry.alias("words", "candidate") is None
    assert registry.protected_manifests() == set()


def test_a_version_is_what_was_registered(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kitchen_resources.registry.store.time.time", lambda: 1234.5)
    registered = registration()
    version = registry.register(registered)
    assert (version.version, version.created) == (1, 1234.5)
    for one in (version, registry.get("words", 1), registry.versions("words")[0]):
        for field in fields(Registration):
            assert getattr(one, field.name) == getattr(registered, field.name), field.name
    assert registry.get("words", 1) == version
    assert list(registry.versions("words")) == [version]


def test_versions_are_numbered_from_one_for_each_model(registry: ModelRegistry) -> None:
    numbers = [registry.register(step(number)).version for number in range(1, 13)]
    assert numbers == list(range(1, 13))
    assert registry.register(step(1, "word")).version == 1
    assert registry.register(step(1, "words_too")).version == 1
    # By number, and not by name: 10 comes after 9.
    assert [version.step for version in registry.versions("words")] == list(range(1, 13))
    assert [version.name for version in registry.versions("word")] == ["word"]


def test_the_same_model_is_the_same_version(registry: ModelRegistry) -> None:
    first = registry.register(registration())
    second = registry.register(registration(step=68))
    again = registration(launch="another launch", metrics={"held_out/loss": measured(9.0)})
    assert registry.register(again) == first
    assert registry.register(registration(step=68)) == second
    assert [version.version for version in registry.versions("words")] == [1, 2]
    # What was measured later is not written into what was registered.
    assert registry.get("words", 1).metrics == {"held_out/loss": measured(0.5)}
    assert registry.get("words", 1).launch == "run-1"


@pytest.mark.parametrize(
    "other",
    [registration(fingerprint=RUN_B), registration(step=35), registration(model=model_files("n" * 64))],
    ids=["run", "step", "model"],
)
def test_another_run_step_or_model_is_another_version(registry: ModelRegistry, other: Registration) -> None:
    registry.register(registration())
    assert registry.register(other).version == 2


def test_a_version_cannot_be_changed(registry: ModelRegistry) -> None:
    metrics = {"held_out/loss": measured(0.5)}
    version = registry.register(registration(metrics=metrics))
    with pytest.raises(FrozenInstanceError):
        version.step = 1  # type: ignore[misc]
    metrics["held_out/loss"]["value"] = 0.0
    registry.get("words", 1).metrics["held_out/loss"]["value"] = 0.0
    registry.get("words", 1).model.files.clear()  # type: ignore[attr-defined]
    assert registry.get("words", 1).metrics == {"held_out/loss": measured(0.5)}
    assert registry.get("words", 1).model == model_files()


def test_racing_registrations_get_numbers_of_their_own(registry: ModelRegistry) -> None:
    versions = race(8, lambda number: [registry.register(step(10 * number + turn)).version for turn in range(5)])
    taken = [version for of_thread in versions for version in of_thread]  # type: ignore[attr-defined]
    assert sorted(taken) == list(range(1, 41))
    assert {version.version: version.step for version in registry.versions("words")} == {
        version: 10 * thread + turn
        for thread, of_thread in enumerate(versions)
        for turn, version in enumerate(of_thread)  # type: ignore[arg-type]
    }


def test_racing_registrations_of_one_model_are_one_version(registry: ModelRegistry) -> None:
    for number in range(5):
        assert len(set(race(8, lambda _, number=number: registry.register(step(number)).version))) == 1
    assert [version.step for version in registry.versions("words")] == list(range(5))


@pytest.mark.parametrize(("registered", "known"), [(0, "none"), (1, "1"), (3, "1, 2, 3")])
def test_an_unknown_version_is_refused_with_those_there_are(
    registry: ModelRegistry, registered: int, known: str
) -> None:
    for number in range(registered):
        registry.register(step(number))
    for version in (0, -1, registered + 1):
        with pytest.raises(RegistryError) as unknown:
            registry.get("words", version)
        assert str(unknown.value) == f"model words: has no version {version}\n  fix: registered versions: {known}"


# Aliases.


@pytest.fixture
def with_versions(registry: ModelRegistry) -> ModelRegistry:
    for number in range(3):
        registry.register(step(number))
        registry.register(step(number, "others"))
    return registry


def test_an_alias_points_where_it_was_moved(with_versions: ModelRegistry) -> None:
    registry = with_versions
    registry.move_alias("words", "candidate", 2, expected=None)
    registry.move_alias("words", "production", 1, expected=None)
    registry.move_alias("others", "candidate", 3, expected=None)
    assert registry.alias("words", "candidate") == 2
    registry.move_alias("words", "candidate", 3, expected=2)
    registry.move_alias("words", "candidate", 1, expected=3)
    assert registry.alias("words", "candidate") == 1
    assert registry.alias("words", "production") == 1
    assert registry.alias("others", "candidate") == 3
    assert registry.alias("others", "production") is None
    assert registry.alias("words", "other") is None


@pytest.mark.parametrize(("expected", "now"), [(None, 1), (3, 1), (1, None)])
def test_an_alias_that_somebody_else_moved_stays(
    with_versions: ModelRegistry, expected: int | None, now: int | None
) -> None:
    if now is not None:
        with_versions.move_alias("words", "candidate", now, expected=None)
    with pytest.raises(RegistryError) as refused:
        with_versions.move_alias("words", "candidate", 2, expected=expected)
    assert str(refused.value) == (
        f"model words: alias 'candidate' points to version {now}, and {expected} was expected\n"
        "  fix: somebody else moved it; look at both versions and run again"
    )
    assert with_versions.alias("words", "candidate") == now


def test_moving_an_alias_where_it_is_changes_nothing(with_versions: ModelRegistry) -> None:
    with_versions.move_alias("words", "candidate", 2, expected=None)
    # A stage that is executed again: it moved the alias before, whatever it expected then.
    with_versions.move_alias("words", "candidate", 2, expected=None)
    with_versions.move_alias("words", "candidate", 2, expected=1)
    assert with_versions.alias("words", "candidate") == 2


def test_an_alias_never_points_to_a_version_that_is_not_there(with_versions: ModelRegistry) -> None:
    for version in (0, 4):
        with pytest.raises(RegistryError, match=rf"has no version {version}\n  fix: registered versions: 1, 2, 3"):
            with_versions.move_alias("words", "candidate", version, expected=None)
    with pytest.raises(RegistryError, match="registered versions: none"):
        with_versions.move_alias("nothing", "candidate", 1, expected=None)
    assert with_versions.alias("words", "candidate") is None


def test_one_of_racing_moves_wins(with_versions: ModelRegistry) -> None:
    at: int | None = None
    for _ in range(10):
        others = [number for number in (1, 2, 3) if number != at]

        def move(thread: int, at: int | None = at, others: list[int] = others) -> int | None:
            version = others[thread % len(others)]
            try:
                with_versions.move_alias("words", "candidate", version, expected=at)
            except RegistryError:
                return None
            return version

        won = {version for version in race(6, move) if version is not None}
        assert len(won) == 1
        at = with_versions.alias("words", "candidate")
        assert won == {at}


def test_racing_moves_of_two_aliases_lose_neither(with_versions: ModelRegistry) -> None:
    def move(thread: int) -> None:
        alias, at = f"alias-{thread}", None
        for version in (1, 2, 3, 1, 2):
            with_versions.move_alias("words", alias, version, expected=at)
            at = version

    race(6, move)
    assert [with_versions.alias("words", f"alias-{thread}") for thread in range(6)] == [2] * 6


def test_manifests_of_every_version_are_protected(with_versions: ModelRegistry) -> None:
    with_versions.register(registration(name="third", manifest="f" * 64))
    with_versions.move_alias("words", "candidate", 1, expected=None)
    assert with_versions.protected_manifests() == {*(f"{number:064x}" for number in range(3)), "f" * 64}


def test_a_version_is_json(registry: ModelRegistry) -> None:
    # Nothing that a store could not keep gets a number.
    for odd in ({"held_out/loss": {"value": float("nan")}}, {1: "a"}):
        with pytest.raises(ValueError, match="JSON"):
            registry.register(registration(metrics=odd))
    assert list(registry.versions("words")) == []
    version = registry.register(registration(identity={"ü": [1, 2.5, None, True]}))
    assert json.loads(json.dumps(version.identity)) == registry.get("words", 1).identity
