"""Continuing a stored run: which checkpoint `continue_from` names, and whether the recipe can go on from it."""

import re
from collections.abc import Callable
from dataclasses import replace

from kitchen_resources.checkpoints.head import CheckpointEntry
from kitchen_resources.checkpoints.manifest import Manifest
from kitchen_resources.errors import ConfigError
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.identity import Identity, Start
from kitchen_resources.training.plan import TrainingPlan

_REFERENCE = re.compile(r"(?P<run>latest|[0-9a-f]{4,64})(?:@(?P<step>\d+))?\Z")


def find_start(launch: Launch, plan: TrainingPlan, identify: Callable[[Start | None], Identity]) -> Start | None:
    """The checkpoint that a recipe continues, brought into a local folder; None when it starts afresh.

    Args:
        launch: The launch.
        plan: Its steps.
        identify: The identity that the launch has with a given start.

    Raises:
        ConfigError: `continue_from` names no checkpoint, several, or one that can't be continued like this.
        CheckpointError: The checkpoint is damaged.
    """
    named = launch.recipe.continue_from
    if named is None:
        return None
    match = _REFERENCE.match(named)
    if match is None:
        raise ConfigError(
            f"{named!r} is neither a fingerprint's first digits nor latest",
            where="continue_from",
            fix="continue_from: 3f2a91c04b77, 3f2a91c04b77@400, or latest",
        )
    if match["run"] == "latest":
        fingerprint, step = _latest(launch, identify)
    else:
        fingerprint, step = _by_prefix(launch, match["run"]), None
    return _start(launch, plan, fingerprint, int(match["step"]) if match["step"] else step)


def _by_prefix(launch: Launch, prefix: str) -> str:
    found = launch.checkpoints.find(prefix)
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} runs start with {prefix}" if found else f"no run starts with {prefix}"
    shown = ", ".join(run[:16] for run in found[:5]) if found else "see the asset checkpoints for what there is"
    raise ConfigError(what, where="continue_from", fix=f"give more digits: {shown}" if found else shown)


def _latest(launch: Launch, identify: Callable[[Start | None], Identity]) -> tuple[str, int | None]:
    """The newest run of the recipe; or, when that is already this very continuation, the one it continued.

    Otherwise a second launch of the same recipe would continue its own first one, and train on for ever.
    """
    runs = launch.known_runs()
    if not runs:
        raise ConfigError(
            f"recipe {launch.name} has no run yet",
            where="continue_from: latest",
            fix="run it once without continue_from",
        )
    newest = runs[-1]
    started = newest["identity"].get("start")
    if started is not None:
        for run in runs[:-1]:
            for entry in launch.checkpoints.head(run["fingerprint"]).entries():
                if entry.state_digest == started["state"] and entry.payload == "present":
                    start = _carried(launch, run["fingerprint"], entry)
                    if identify(start).fingerprint == newest["fingerprint"]:
                        return run["fingerprint"], entry.step
    return newest["fingerprint"], None


def _start(launch: Launch, plan: TrainingPlan, fingerprint: str, step: int | None) -> Start:
    where = f"continue_from: {launch.recipe.continue_from}"
    entries = [entry for entry in launch.checkpoints.head(fingerprint).entries() if entry.payload == "present"]
    if not entries:
        raise ConfigError(f"run {fingerprint[:12]} has no whole checkpoint", where=where, fix="train it again first")
    chosen = entries[-1] if step is None else next((entry for entry in entries if entry.step == step), None)
    if chosen is None:
        steps = ", ".join(str(entry.step) for entry in entries)
        raise ConfigError(
            f"run {fingerprint[:12]} has no whole checkpoint at step {step}", where=where, fix=f"one of {steps}"
        )
    _require_continuable(launch, plan, launch.checkpoints.manifest(chosen), where)
    return _carried(launch, fingerprint, chosen)


def _carried(launch: Launch, fingerprint: str, entry: CheckpointEntry) -> Start:
    folder = launch.cache / "starts" / f"{fingerprint}-{entry.step}"
    checkpoint = launch.checkpoints.checkout(fingerprint, entry, folder)
    return Start(fingerprint, replace(checkpoint, restart=launch.recipe.carry), launch.recipe.carry)


def _require_continuable(launch: Launch, plan: TrainingPlan, manifest: Manifest, where: str) -> None:
    """Refuse to continue what doesn't fit: another base, another shape of weights, another length of an epoch."""
    ours, theirs = launch.recipe, manifest.identity
    if manifest.simulated != launch.simulated:
        raise ConfigError(
            "a simulated run has nothing to go on from", where=where, fix="use the backend it was made with"
        )
    if theirs["base"] != launch.base.digest:
        raise ConfigError(
            "it was trained from another base model", where=where, fix=f"model: {manifest.base['reference']}"
        )
    lora = ours.lora.model_dump() if ours.lora else None
    if _adapter_shape(theirs["recipe"].get("lora")) != _adapter_shape(lora):
        raise ConfigError(
            "its LoRA is of another shape"
            if lora and theirs["recipe"].get("lora")
            else "one of the two trains a LoRA",
            where=where,
            fix="give lora the same rank and target_modules, or export it merged and name that folder as model",
        )
    if ours.carry == "weights":
        return
    if theirs["method"] != ours.method or theirs["numerics"]["optimizer"] != launch.resolution.values["optimizer"]:
        raise ConfigError("its optimiser's state doesn't fit this recipe", where=where, fix="carry: weights")
    if theirs["plan"]["steps_per_epoch"] != plan.steps_per_epoch:
        raise ConfigError(
            f"its epochs have {theirs['plan']['steps_per_epoch']} steps, and this recipe's {plan.steps_per_epoch}",
            where=where,
            fix="carry: weights, which counts epochs from 1 again",
        )
    if not manifest.epoch_complete and theirs["data"] != launch.prepared.trained.digest:
        raise ConfigError(
            "it lies inside an epoch over other rows", where=where, fix="name the end of an epoch, or carry: weights"
        )


def _adapter_shape(lora: dict[str, object] | None) -> object:
    return None if lora is None else (lora["rank"], sorted(map(str, lora["target_modules"])))  # type: ignore[call-overload]
