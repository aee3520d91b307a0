"""The rule for promotion, what a registered version says of its run, and a registry that was damaged."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.errors import RegistryError
from kitchen_resources.evaluation.final import evaluate_final
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.blocks import PromotionRule
from kitchen_resources.registry.port import CANDIDATE, ModelVersion
from kitchen_resources.registry.promotion import Verdict, judge
from kitchen_resources.registry.registering import register_model
from kitchen_resources.registry.resource import InProcess, RegistryResource
from kitchen_resources.registry.store import NoopRegistry, StoreRegistry
from kitchen_resources.training.exporting import export_checkpoint
from kitchen_resources.training.model_files import files_as_json
from kitchen_resources.training.noop import NoopTrainer
from kitchen_resources.training.run import TrainingRun
from tests.pretending import LOSS, Pretence, ScriptedEvaluator, Silent, write_sums
from tests.registrations import measured, model_files, registration

MATCH = "held_out/exact_match"


def version(
    number: int, metrics: dict[str, float] | None = None, base: dict[str, float] | None = None, **changes: Any
) -> ModelVersion:
    found = {name: measured(value) for name, value in (metrics or {}).items()}
    of_base = {name: measured(value) for name, value in (base or {}).items()}
    whole = registration(metrics=found, base_metrics=of_base, **changes)
    return ModelVersion(**vars(whole), version=number, created=1.0)


# The rule for promotion.


@pytest.mark.parametrize(
    ("rule", "metric", "metrics", "base", "passed", "reason"),
    [
        # Better than the base, which is the rule's default.
        ({}, MATCH, {MATCH: 0.9}, {MATCH: 0.1}, True, f"{MATCH} is 0.9, better than 0.1 of the base"),
        ({}, MATCH, {MATCH: 0.1}, {MATCH: 0.9}, False, f"{MATCH} is 0.1, no better than 0.9 of the base"),
        ({}, MATCH, {MATCH: 0.5}, {MATCH: 0.5}, False, f"{MATCH} is 0.5, no better than 0.5 of the base"),
        # A loss is better when it is lower.
        ({}, LOSS, {LOSS: 0.5}, {LOSS: 5.0}, True, f"{LOSS} is 0.5, better than 5 of the base"),
        ({}, LOSS, {LOSS: 5.0}, {LOSS: 0.5}, False, f"{LOSS} is 5, no better than 0.5 of the base"),
        ({}, LOSS, {LOSS: 0.5}, {LOSS: 0.5}, False, f"{LOSS} is 0.5, no better than 0.5 of the base"),
        # Zero is a number that was measured.
        ({}, MATCH, {MATCH: 0.1}, {MATCH: 0.0}, True, f"{MATCH} is 0.1, better than 0 of the base"),
        ({}, MATCH, {MATCH: 0.0}, {MATCH: 0.0}, False, f"{MATCH} is 0, no better than 0 of the base"),
        # Not measured is no number.
        ({}, MATCH, {}, {MATCH: 0.1}, False, f"{MATCH} was not measured; measured was nothing"),
        (
            {},
            MATCH,
            {LOSS: 0.1, "a/b": 1.0},
            {},
            False,
            f"{MATCH} was not measured; measured was a/b, {LOSS}",
        ),
        ({}, MATCH, {MATCH: 0.9}, {}, False, f"{MATCH} of the base was not measured"),
        ({"better_than": "nothing"}, MATCH, {}, {}, False, f"{MATCH} was not measured; measured was nothing"),
        ({"better_than": "nothing"}, MATCH, {MATCH: 0.0}, {}, True, f"{MATCH} is 0"),
        # A bound, which counts as reached.
        ({"minimum": 0.8}, MATCH, {MATCH: 0.79}, {MATCH: 0.1}, False, f"{MATCH} is 0.79, the bound is 0.8"),
        ({"minimum": 0.8}, MATCH, {MATCH: 0.8}, {MATCH: 0.1}, True, f"{MATCH} is 0.8, better than 0.1 of the base"),
        (
            {"minimum": 0.8},
            MATCH,
            {MATCH: 0.9},
            {MATCH: 0.95},
            False,
            f"{MATCH} is 0.9, no better than 0.95 of the base",
        ),
        ({"minimum": 0.0}, MATCH, {MATCH: -1.0}, {MATCH: -2.0}, False, f"{MATCH} is -1, the bound is 0"),
        ({"minimum": 0.8, "better_than": "nothing"}, MATCH, {MATCH: 0.8}, {}, True, f"{MATCH} is 0.8"),
        ({"minimum": 2.0}, LOSS, {LOSS: 2.5}, {LOSS: 5.0}, False, f"{LOSS} is 2.5, the bound is 2"),
        ({"minimum": 2.0}, LOSS, {LOSS: 2.0}, {LOSS: 5.0}, True, f"{LOSS} is 2, better than 5 of the base"),
    ],
)
def test_against_the_base(
    rule: dict[str, Any],
    metric: str,
    metrics: dict[str, float],
    base: dict[str, float],
    passed: bool,
    reason: str,
) -> None:
    verdict = judge(PromotionRule(metric=metric, **rule), version(2, metrics, base), None)
    assert (verdict.passed, verdict.reason) == (passed, reason)
    # What is in production plays no part in it.
    production = version(1, {MATCH: 1.0, LOSS: 0.0})
    assert judge(PromotionRule(metric=metric, **rule), version(2, metrics, base), production) == verdict


@pytest.mark.parametrize(
    ("metrics", "number", "in_production", "passed", "reason"),
    [
        ({MATCH: 0.9}, 3, {MATCH: 0.8}, True, f"{MATCH} is 0.9, better than 0.8 of version 2 in production"),
        ({MATCH: 0.8}, 3, {MATCH: 0.8}, False, f"{MATCH} is 0.8, no better than 0.8 of version 2 in production"),
        ({MATCH: 0.9}, 3, {}, False, f"{MATCH} of version 2 in production was not measured"),
        # The first one has nobody to beat, and the one that is there is not asked to beat itself.
        ({MATCH: 0.9}, 3, None, True, f"{MATCH} is 0.9"),
        ({MATCH: 0.9}, 2, {MATCH: 0.9}, True, f"{MATCH} is 0.9"),
    ],
)
def test_against_production(
    metrics: dict[str, float], number: int, in_production: dict[str, float] | None, passed: bool, reason: str
) -> None:
    rule = PromotionRule(metric=MATCH, better_than="production")
    production = None if in_production is None else version(2, in_production)
    # What the base reached plays no part in it.
    verdict = judge(rule, version(number, metrics, {MATCH: 1.0}), production)
    assert (verdict.passed, verdict.reason) == (passed, reason)


def test_the_numbers_of_a_verdict_are_on_record() -> None:
    candidate = version(7, {MATCH: 0.9}, {MATCH: 0.1})
    assert judge(PromotionRule(metric=MATCH, minimum=0.8), candidate, None).numbers == {
        "metric": MATCH,
        "version": 7,
        "measured": measured(0.9),
        "bound": 0.8,
        "the base": measured(0.1),
    }
    assert judge(PromotionRule(metric=LOSS), candidate, None).numbers == {
        "metric": LOSS,
        "version": 7,
        "measured": None,
    }


@pytest.mark.parametrize("better_than", ["base", "production", "nothing"])
def test_a_simulated_version_is_never_promoted(better_than: Any) -> None:
    simulated = version(1, {MATCH: 1.0}, {MATCH: 0.0}, simulated=True)
    verdict = judge(PromotionRule(metric=MATCH, better_than=better_than), simulated, None)
    assert verdict == Verdict(False, "the version is simulated", {"version": 1})


# From a run to a version.


@pytest.fixture
def pretence(tmp_path: Path) -> Pretence:
    return Pretence(write_sums(tmp_path / "rows.jsonl"), evaluator=ScriptedEvaluator([3.0, 2.0, 7.0, 6.0, 5.0]))


def made(pretence: Pretence, *, evaluated: bool = True, **fields: Any) -> Launch:
    """A launch whose model is made, and evaluated, as the stages before registration leave it."""
    launch = pretence.launch(**fields)
    run = TrainingRun(launch, Silent())
    run.planned()
    finished = run.finish()
    entry = finished.selected
    model = export_checkpoint(launch, run.job(), entry, "merged")
    noted = {"fingerprint": run.fingerprint, "step": entry.step, "epoch": entry.epoch, "manifest": entry.manifest}
    launch.write("model", {**noted, "files": files_as_json(model)})
    if evaluated:
        launch.write("evaluation", evaluate_final(launch).as_json())
    launch.ports.trainer.discard()
    return launch


def test_a_version_says_what_it_was_made_of(pretence: Pretence) -> None:
    launch = made(pretence)
    registered = register_model(launch)
    (entry,) = [e for e in launch.checkpoints.head(registered.fingerprint).entries() if e.step == 4]
    manifests = [launch.checkpoints.manifest(e) for e in launch.checkpoints.head(registered.fingerprint).entries()]
    prepared = launch.prepared
    assert prepared.held_out is not None
    assert registered == ModelVersion(
        name="sums",
        fingerprint=TrainingRun(launch, Silent()).fingerprint,
        step=4,
        epoch=2,
        state_digest=entry.state_digest,
        manifest=entry.manifest,
        model=registered.model,
        base={"reference": "embedded:tiny", "digest": launch.base.digest, "revision": ""},
        dataset={
            "digest": prepared.train.digest,
            "held_out_digest": prepared.held_out.digest,
            "key": prepared.key,
            "raw": dict(prepared.raw),
        },
        metrics={LOSS: {"value": 2.0, "n": 2, "low": None, "high": 9.0}},
        base_metrics={LOSS: {"value": 7.0, "n": 2, "low": None, "high": 9.0}},
        cost={
            "optimizer_steps": 4.0,
            # Over both epochs, and not only the last.
            "tokens": 2.0 * prepared.train.trained_tokens,
            "seconds": sum(manifest.metrics["seconds"] for manifest in manifests),
        },
        identity=manifests[-1].identity,
        environment=manifests[-1].environment,
        launch=launch.run_id,
        simulated=False,
        version=1,
        created=registered.created,
    )
    assert list(registered.model.files) == ["simulated.json"]
    assert launch.ports.registry.alias("sums", CANDIDATE) == 1
    assert launch.ports.registry.protected_manifests() == {entry.manifest}


def test_the_cost_of_a_continued_run_is_its_own(pretence: Pretence) -> None:
    first = register_model(made(pretence, keep_last=5))
    continued = register_model(made(pretence, keep_last=5, epochs=3, continue_from=first.fingerprint[:12]))
    assert (continued.step, continued.epoch) == (6, 3)
    assert continued.cost["optimizer_steps"] == 2.0
    assert continued.cost["tokens"] == first.cost["tokens"] / 2
    assert continued.cost["seconds"] == pytest.approx(first.cost["seconds"] / 2)


def test_a_run_that_is_registered_again_is_the_same_version(pretence: Pretence) -> None:
    first = register_model(made(pretence))
    assert register_model(made(pretence)) == first
    second = register_model(made(pretence, learning_rate=1.0))
    registry = StoreRegistry(pretence.blobs)
    assert (second.version, registry.alias("sums", CANDIDATE)) == (2, 2)
    # The candidate is what was launched last, whether or not it is new.
    register_model(made(pretence))
    assert registry.alias("sums", CANDIDATE) == 1


def test_a_simulated_model_is_registered_and_no_candidate(pretence: Pretence) -> None:
    registered = register_model(made(replace(pretence, trainer=NoopTrainer)))
    assert registered.simulated
    assert (registered.metrics, registered.base_metrics) == ({}, {})
    assert StoreRegistry(pretence.blobs).alias("sums", CANDIDATE) is None


def test_two_launches_at_once_both_register(pretence: Pretence) -> None:
    class Raced(StoreRegistry):
        """A registry in which somebody else moves the alias just before each of the first moves."""

        others = [1, 2]

        def move_alias(self, name: str, alias: str, version: int, *, expected: int | None) -> None:
            if self.others:
                StoreRegistry.move_alias(self, name, alias, self.others.pop(0), expected=expected)
            super().move_alias(name, alias, version, expected=expected)

    registry = Raced(pretence.blobs)
    for step in (1, 2):
        registry.register(registration(name="sums", step=step))
    registered = register_model(made(replace(pretence, registry=registry)))
    assert (registered.version, registry.alias("sums", CANDIDATE)) == (3, 3)
    assert registry.others == []


def test_an_alias_that_cannot_be_moved_is_told(pretence: Pretence) -> None:
    class Locked(StoreRegistry):
        def move_alias(self, name: str, alias: str, version: int, *, expected: int | None) -> None:
            raise RegistryError("is read-only", where=f"model {name}")

    with pytest.raises(RegistryError, match="is read-only"):
        register_model(made(replace(pretence, registry=Locked(pretence.blobs))))


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (
            lambda pretence: pretence.launch(),
            "this launch has no model and no evaluation\n  fix: materialize sums/model and sums/evaluation with it",
        ),
        (
            lambda pretence: made(pretence, evaluated=False),
            "this launch has no evaluation\n  fix: materialize sums/evaluation with it",
        ),
    ],
)
def test_what_a_launch_lacks(pretence: Pretence, prepare: Callable[[Pretence], Launch], said: str) -> None:
    with pytest.raises(RegistryError) as refused:
        register_model(prepare(pretence))
    rest = ", or run the job sums; what is in the store isn't made again"
    assert str(refused.value) == f"recipe sums: {said}{rest}"
    assert list(StoreRegistry(pretence.blobs).versions("sums")) == []


def test_an_evaluation_of_another_run_is_refused(pretence: Pretence) -> None:
    launch = made(pretence)
    noted = launch.read("evaluation")
    launch.write("evaluation", {**noted, "fingerprint": "0" * 64})
    with pytest.raises(RegistryError, match="model and evaluation are of two runs\n  fix: run the job sums"):
        register_model(launch)


def test_a_checkpoint_that_is_gone_is_refused(pretence: Pretence) -> None:
    launch = made(pretence)
    noted = launch.read("model")
    launch.write("model", {**noted, "step": 3})
    with pytest.raises(RegistryError, match="the checkpoint of the model is gone\n  fix: run the job sums again"):
        register_model(launch)


# A damaged registry.


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"null", b"3", b"[]", b"{}", b'{"format": 1}', b'{"format": 1, "model": 1}']
)
def test_a_damaged_version_is_named(damage: bytes) -> None:
    blobs = MemoryBlobs()
    blobs.put_if_absent("registry/words/versions/000001.json", damage)
    for ask in (lambda r: r.get("words", 1), lambda r: r.versions("words"), lambda r: r.register(registration())):
        with pytest.raises(RegistryError) as refused:
            ask(StoreRegistry(blobs))
        assert str(refused.value).startswith("registry/words/versions/000001.json: is not a model version: ")
        assert refused.value.fix == "restore it from a backup"


def test_a_version_of_another_format_is_not_read() -> None:
    blobs = MemoryBlobs()
    StoreRegistry(blobs).register(registration())
    key = "registry/words/versions/000001.json"
    stored = blobs.get(key)
    assert stored is not None
    blobs.compare_and_swap(key, stored.version, stored.data.replace(b'"format":1', b'"format":2'))
    with pytest.raises(RegistryError) as refused:
        StoreRegistry(blobs).get("words", 1)
    assert str(refused.value) == f"{key}: is of another format\n  fix: upgrade crucible-kitchen"


@pytest.mark.parametrize("damage", [b"", b"{", b"null", b"[1]", b'{"candidate": "one"}', b'{"candidate": null}'])
def test_damaged_aliases_are_named(damage: bytes) -> None:
    blobs = MemoryBlobs()
    StoreRegistry(blobs).register(registration())
    blobs.put_if_absent("registry/words/aliases.json", damage)
    for ask in (
        lambda r: r.alias("words", "candidate"),
        lambda r: r.move_alias("words", "candidate", 1, expected=None),
    ):
        with pytest.raises(RegistryError) as refused:
            ask(StoreRegistry(blobs))
        assert str(refused.value).startswith("registry/words/aliases.json: is not a table of aliases: ")


def test_a_gap_in_the_numbers_is_not_filled() -> None:
    blobs = MemoryBlobs()
    registry = StoreRegistry(blobs)
    for step in (1, 2, 3):
        registry.register(registration(step=step))
    blobs.delete("registry/words/versions/000002.json")
    assert registry.register(registration(step=4)).version == 4
    with pytest.raises(RegistryError, match="registered versions: 1, 3, 4"):
        registry.get("words", 2)


def test_files_of_a_model_are_kept_by_name() -> None:
    registry = StoreRegistry(MemoryBlobs())
    files = model_files(**{"config.json": 10, "adapter/adapter_model.safetensors": 20})
    registry.register(registration(model=files))
    assert registry.get("words", 1).model == files


# The resource.


def test_the_registry_lies_in_the_store_unless_it_is_said_otherwise() -> None:
    blobs = MemoryBlobs()
    resource = RegistryResource()
    assert type(resource.adapter(blobs)) is StoreRegistry
    assert resource.adapter(blobs) is resource.adapter(blobs)
    resource.adapter(blobs).register(registration())
    assert list(blobs.list("registry/")) == ["registry/words/versions/000001.json"]


def test_the_noop_registry_leaves_the_store_alone() -> None:
    blobs = MemoryBlobs()
    registry = RegistryResource(registry=InProcess()).adapter(blobs)
    assert isinstance(registry, NoopRegistry)
    assert registry.register(registration()).version == 1
    assert list(blobs.list("")) == []
    assert list(NoopRegistry().versions("words")) == []
