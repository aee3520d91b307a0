"""Recipes on the registered models of others: which version it is, when it is refused, and when it is made first."""

from typing import Any

import pytest

from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.recipes.preference import PreferenceRecipe
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.preflight import preflight
from kitchen_resources.training.upstream import make_version, missing_upstreams, require_upstreams
from tests.engine import Told
from tests.rail import Rail


@pytest.fixture
def rail() -> Rail:
    """A supervised recipe, and a preference and a distillation recipe that build on it."""
    rail = Rail()
    rail.add("first", SupervisedRecipe)
    rail.add("second", PreferenceRecipe, {"model": ""}, base_from="first")
    rail.add("student", DistillationRecipe, {"teacher": ""}, teacher_from="first")
    return rail


def refusal(rail: Rail, name: str, **fields: Any) -> str:
    """What is said of a launch whose recipe builds on one without a model."""
    with pytest.raises(ConfigError) as refused:
        require_upstreams(rail.launch(name, **fields), rail.told)
    return str(refused.value)


def again(rail: Rail, name: str, **definition: Any) -> None:
    """Define a recipe otherwise."""
    known = rail.recipes[name]
    rail.add(name, known.method, known.values, **{**known.definition, **definition})


# Which version.


def test_the_candidate_is_the_base(rail: Rail) -> None:
    versions = [rail.register("first", seed=seed) for seed in (0, 1)]
    base = rail.launch("second").base
    assert [version.version for version in versions] == [1, 2]
    assert base.reference == "registry:first@2"
    assert base.digest == versions[1].model.digest != versions[0].model.digest
    assert base.files == {name: file.sha256 for name, file in versions[1].model.files.items()}
    assert base.parameters > 0
    rail.registry.move_alias("first", "candidate", 1, expected=2)
    assert rail.launch("second").base.reference == "registry:first@1"


def test_a_version_or_an_alias_that_is_named(rail: Rail) -> None:
    for seed in (0, 1, 2):
        rail.register("first", seed=seed)
    rail.registry.move_alias("first", "production", 2, expected=None)
    for named, version in (("first@1", 1), ("first@production", 2), ("first@candidate", 3), ("first", 3)):
        again(rail, "second", base_from=named)
        assert rail.launch("second").base.reference == f"registry:first@{version}"
        assert rail.launch("first", model=f"registry:{named}").base == rail.launch("second").base


def test_a_model_may_be_a_registered_one_of_any_recipe(rail: Rail) -> None:
    rail.register("first")
    launch = rail.launch("first", model="registry:first@1")
    assert launch.base.reference == "registry:first@1"
    assert launch.upstreams() == {}
    assert preflight(launch).backend == "pretending"
    with pytest.raises(ConfigError) as refused:
        _ = rail.launch("first", model="registry:first@7").base
    assert str(refused.value) == ("registry:first@7: recipe first has no version 7\n  fix: name one that it has: @1")
    with pytest.raises(ConfigError) as refused:
        _ = rail.launch("first", model="registry:other").base
    assert str(refused.value) == (
        "registry:other: recipe other has no registered model yet\n  fix: run the job other first"
    )


def test_the_teacher_is_one_too(rail: Rail) -> None:
    version = rail.register("first")
    launch = rail.launch("student")
    assert launch.models["teacher"].reference == "registry:first@1"
    assert launch.besides() == {"teacher": launch.models["teacher"].digest}
    assert set(launch.models["teacher"].files) == set(version.model.files)
    assert launch.base.reference == "embedded:tiny"
    assert launch.notes() == ["the teacher is registry:first@1 of recipe first"]


def test_what_the_own_run_has_registered_goes_before_the_candidate(rail: Rail) -> None:
    older = rail.register("first")
    make_version(rail.launch("first", run_id="both", seed=5), rail.told)
    # Somebody else makes another one the candidate meanwhile.
    rail.registry.move_alias("first", "candidate", older.version, expected=2)
    assert rail.launch("second", run_id="both").base.reference == "registry:first@2"
    assert rail.launch("student", run_id="both").models["teacher"].reference == "registry:first@2"
    assert rail.launch("second", run_id="other").base.reference == "registry:first@1"
    # A version that is named is that one, whatever the run has made.
    again(rail, "second", base_from="first@1")
    assert rail.launch("second", run_id="both").base.reference == "registry:first@1"


def test_of_two_that_the_own_run_has_registered_it_is_the_later(rail: Rail) -> None:
    for seed in (5, 6):
        make_version(rail.launch("first", run_id="both", seed=seed), rail.told)
    rail.registry.move_alias("first", "candidate", 1, expected=2)
    assert rail.launch("second", run_id="both").registered_here("first") == 2
    assert rail.launch("second", run_id="both").registered_here("second") is None
    assert rail.launch("second", run_id="both").base.reference == "registry:first@2"


def test_of_a_run_that_is_executed_again_it_is_what_the_second_time_has_brought(rail: Rail) -> None:
    make_version(rail.launch("first", run_id="both"), rail.told)
    again = rail.launch("second", run_id="again", root_id="both")
    # Its own part of the chain hasn't run yet; where that isn't run again, what the first time brought is what it builds on.
    assert again.registered_here("first", by_this_run=True) is None
    assert again.registered_here("first") == 1
    make_version(rail.launch("first", run_id="again", root_id="both", seed=5), rail.told)
    rail.registry.move_alias("first", "candidate", 1, expected=2)
    assert again.registered_here("first", by_this_run=True) == again.registered_here("first") == 2
    assert rail.launch("second", run_id="again", root_id="both").base.reference == "registry:first@2"


def test_the_base_stays_the_one_that_the_launch_started_with(rail: Rail) -> None:
    rail.register("first", seed=0)
    started = rail.launch("second", run_id="started")
    started.prepare()
    rail.register("first", seed=1)
    assert rail.launch("second", run_id="started").base == started.base
    assert rail.launch("second", run_id="started").base.reference == "registry:first@1"
    assert rail.launch("second", run_id="later").base.reference == "registry:first@2"
    # Another config of the same run is another launch.
    assert rail.launch("second", run_id="started", beta=0.2).base.reference == "registry:first@2"


def test_the_pin_is_of_what_was_asked(rail: Rail) -> None:
    rail.register("first")
    launch = rail.launch("student", run_id="one")
    launch.prepare()
    assert launch.read("teacher") == {
        "asked": "registry:first",
        "resolved": "registry:first@1",
        "digest": launch.models["teacher"].digest,
    }
    assert launch.read("base")["asked"] == launch.read("base")["resolved"] == "embedded:tiny"


def test_a_model_of_the_launch_wins_and_says_so(rail: Rail) -> None:
    launch = rail.launch("second", model="embedded:tiny")
    require_upstreams(launch, rail.told)
    assert launch.base.reference == "embedded:tiny"
    said = "model embedded:tiny is used, and not the registered model of recipe first"
    assert launch.notes() == [said]
    assert said in preflight(launch).lines()
    teacher = rail.launch("student", teacher="embedded:tiny")
    assert teacher.notes() == ["teacher embedded:tiny is used, and not the registered model of recipe first"]
    assert missing_upstreams(teacher) == {}
    rail.register("first")
    assert rail.launch("second").notes() == ["the base is registry:first@1 of recipe first"]


# Refused.


def test_without_a_version_it_is_refused_with_the_jobs_to_run(rail: Rail) -> None:
    assert refusal(rail, "second") == (
        "base_from: first: recipe first has no registered model yet\n"
        "  fix: run the job first first, or the job first_then_second"
    )
    assert refusal(rail, "student") == (
        "teacher_from: first: recipe first has no registered model yet\n"
        "  fix: run the job first first, or the job first_then_student"
    )
    assert list(rail.blobs.list("runs/")) == []


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("first@3", "recipe first has no version 3\n  fix: name one that it has: @1"),
        (
            "first@production",
            "no version of recipe first is called production\n"
            "  fix: move the alias production to one, or name one by its number: @1",
        ),
    ],
)
def test_a_version_that_no_training_could_bring_is_not_trained(rail: Rail, named: str, said: str) -> None:
    rail.register("first")
    again(rail, "second", base_from=named, upstream_missing="train")
    runs = list(rail.blobs.list("runs/"))
    assert refusal(rail, "second") == f"base_from: {named}: {said}"
    assert list(rail.blobs.list("runs/")) == runs


def test_a_simulated_version_is_no_base(rail: Rail) -> None:
    simulated = rail.with_(trainer=NoopTrainer)
    assert simulated.register("first").simulated
    # It is no candidate, so nothing is found by the recipe's name.
    assert refusal(rail, "second").startswith(
        "base_from: first: recipe first has no registered model yet, only simulated ones"
    )
    with pytest.raises(ConfigError) as refused:
        _ = rail.launch("second", model="registry:first@1").base
    assert str(refused.value) == (
        "registry:first@1: is simulated and has no weights\n  fix: train it with a real backend"
    )


def test_a_simulated_launch_needs_no_version(rail: Rail) -> None:
    simulated = rail.with_(trainer=NoopTrainer)
    launch = simulated.launch("second")
    require_upstreams(launch, simulated.told)
    assert missing_upstreams(launch) == {}
    assert (launch.base.reference, launch.base.simulated) == ("registry:first", True)


def test_an_adapter_without_its_base_is_no_base(rail: Rail) -> None:
    rail.register("first", lora={"rank": 4}, export="adapter")
    with pytest.raises(ConfigError) as refused:
        _ = rail.launch("second").base
    assert str(refused.value) == (
        "registry:first@1: is a LoRA adapter without its base\n  fix: export: merged in that recipe, and run it again"
    )
    rail.register("first", lora={"rank": 4}, export="merged")
    assert rail.launch("second").base.reference == "registry:first@2"


# Made first.


def test_what_is_missing_is_trained_once_and_found_from_then_on(rail: Rail) -> None:
    again(rail, "second", upstream_missing="train")
    launch = rail.launch("second", run_id="one")
    assert missing_upstreams(launch) == {"base": "first"}
    require_upstreams(launch, rail.told)
    first, said = rail.told.said[0], rail.told.said[-1]
    assert first == "recipe first, whose model is the base, has none yet: it is trained first"
    assert said.startswith("recipe first is trained and registered as version 1, in ")
    assert said.endswith(" s, which aren't part of this run's cost")
    assert launch.base.reference == "registry:first@1"
    version = rail.registry.get("first", 1)
    assert (version.name, version.launch, rail.registry.alias("first", "candidate")) == ("first", "one", 1)
    # As its own job would make it: the same fingerprint, so that its job has nothing left to do.
    runs = list(rail.blobs.list("runs/"))
    assert rail.register("first") == version
    assert list(rail.blobs.list("runs/")) == runs
    later = rail.launch("second", run_id="two")
    told = Told()
    require_upstreams(later, told)
    assert (told.said, missing_upstreams(later)) == ([], {})
    assert later.base == launch.base


def test_a_teacher_and_a_base_of_one_recipe_are_made_once(rail: Rail) -> None:
    rail.add(
        "both",
        DistillationRecipe,
        {"model": "", "teacher": ""},
        base_from="first",
        teacher_from="first",
        upstream_missing="train",
    )
    launch = rail.launch("both")
    require_upstreams(launch, rail.told)
    assert [version.version for version in rail.registry.versions("first")] == [1]
    assert rail.told.said[0] == "recipe first, whose model is the base and teacher, has none yet: it is trained first"
    assert sum("is trained and registered" in said for said in rail.told.said) == 1
    assert launch.base.digest == launch.models["teacher"].digest


def test_what_that_builds_on_is_made_before_it(rail: Rail) -> None:
    again(rail, "second", upstream_missing="train")
    rail.add("third", DistillationRecipe, {"teacher": ""}, teacher_from="second", upstream_missing="train")
    launch = rail.launch("third")
    require_upstreams(launch, rail.told)
    assert launch.models["teacher"].reference == "registry:second@1"
    assert rail.registry.get("second", 1).base["reference"] == "registry:first@1"
    trained = [said.split(" ")[1] for said in rail.told.said if "is trained and registered" in said]
    assert trained == ["first", "second"]


def test_what_that_builds_on_may_be_refused(rail: Rail) -> None:
    rail.add("third", DistillationRecipe, {"teacher": ""}, teacher_from="second", upstream_missing="train")
    # `second` itself doesn't say that `first` is to be trained.
    assert refusal(rail, "third").startswith("base_from: first: recipe first has no registered model yet")
    assert rail.registry.versions("second") == []


def test_a_failure_of_what_comes_first_is_told_as_it_is(rail: Rail) -> None:
    again(rail, "second", upstream_missing="train")
    rail.add("first", SupervisedRecipe, {"dataset": "embedded:nothing"})
    with pytest.raises(DataError, match="there is no embedded data set 'nothing'"):
        require_upstreams(rail.launch("second"), rail.told)
    assert rail.registry.versions("first") == []


def test_the_version_says_what_it_was_trained_from(rail: Rail) -> None:
    first = rail.register("first")
    second = rail.register("second")
    assert second.base["reference"] == "registry:first@1"
    assert second.base["digest"] == rail.launch("second").base.digest
    assert second.identity["base"] == second.base["digest"]
    # With another version of the first it is another run.
    rail.register("first", seed=3)
    other = rail.register("second")
    assert other.base["reference"] == "registry:first@2"
    assert other.fingerprint != second.fingerprint
    assert first.version == 1
