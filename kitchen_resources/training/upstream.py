"""Recipes that a recipe builds on: their registered models, made first where the recipe says so."""

import time
from collections.abc import Mapping

from kitchen_resources.evaluation.final import evaluate_final
from kitchen_resources.launch import Launch
from kitchen_resources.registry.port import ModelVersion
from kitchen_resources.registry.registering import register_model
from kitchen_resources.training.events import Observer
from kitchen_resources.training.exporting import export_checkpoint, note_model
from kitchen_resources.training.preflight import PreflightReport, check_recipe, preflight
from kitchen_resources.training.registered import find_version, no_version
from kitchen_resources.training.run import TrainingRun


def missing_upstreams(launch: Launch) -> dict[str, str]:
    """The recipes whose models a launch reads and that have no version yet, by role: `base`, `teacher`."""
    if launch.simulated:
        return {}
    registry = launch.ports.registry
    return {
        role: upstream
        for role, upstream in launch.upstreams().items()
        if launch.read(role) is None and find_version(upstream, registry, own=launch.registered_here) is None
    }


def require_upstreams(launch: Launch, observer: Observer) -> None:
    """Make sure that every recipe whose model a launch reads has one: train it, or refuse.

    What is trained here is the other recipe itself, as it stands: under its own fingerprint, evaluated and registered, so
    that it is made once and found by whoever needs it next. Its cost is its own version's.

    Raises:
        ConfigError: One has no version, and the recipe doesn't say that it is to be trained.
        KitchenError: Its training failed.
    """
    missing = missing_upstreams(launch)
    require_known(launch, missing)
    for name in dict.fromkeys(missing.values()):
        roles = " and ".join(role for role, needed in missing.items() if needed == name)
        observer.say(f"recipe {name}, whose model is the {roles}, has none yet: it is trained first")
        started = time.monotonic()
        version = make_version(launch.upstream(name), observer)
        observer.say(
            f"recipe {name} is trained and registered as version {version.version}, in "
            f"{time.monotonic() - started:.0f} s, which aren't part of this run's cost"
        )


def checked(launch: Launch) -> PreflightReport:
    """What `preflight` says of a launch, which trains nothing; as far as it can be told before another recipe is trained.

    Raises:
        KitchenError: As in `preflight`; or a recipe that this one builds on has no model, and isn't trained first.
    """
    missing = missing_upstreams(launch)
    if not missing:
        return preflight(launch)
    require_known(launch, missing)
    check_recipe(launch)
    return PreflightReport(
        backend=launch.ports.trainer.adapter.capabilities().backend,
        device="",
        memory_bytes=0,
        state_bytes=0,
        free_bytes=launch.ports.blobs.free_bytes(),
        notes=(f"to be trained first: {', '.join(sorted(set(missing.values())))}; the rest is checked after that",),
    )


def require_known(launch: Launch, missing: Mapping[str, str]) -> None:
    """Refuse a launch that builds on a recipe without a model, unless the recipe says that it is trained first.

    Raises:
        ConfigError: It doesn't say so; or a version or alias is named, which no training could bring.
    """
    for role, name in missing.items():
        recipe, _, which = name.partition("@")
        if launch.recipe.definition.upstream_missing != "train" or which:
            both = "" if which else f", or the job {recipe}_then_{launch.name}"
            raise no_version(name, launch.ports.registry, role=f"{role}_from", jobs=both)


def make_version(launch: Launch, observer: Observer) -> ModelVersion:
    """Run a recipe to its registered version, as its own job does; what is in the store isn't made again.

    Raises:
        KitchenError: Its data or its training is refused, or fails.
    """
    require_upstreams(launch, observer)
    preflight(launch)
    run = TrainingRun(launch, observer)
    run.planned()
    finished = run.finish()
    model = export_checkpoint(launch, run.job(), finished.selected, launch.recipe.export)
    note_model(launch, run.fingerprint, finished.selected, model)
    launch.write("evaluation", evaluate_final(launch).as_json())
    version = register_model(launch)
    launch.note_registered(version.version)
    launch.ports.trainer.discard()
    return version
