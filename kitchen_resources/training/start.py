"""Continuing a stored run: which checkpoint `continue_from` names, and whether the recipe can go on from it.

Which one it is, is part of the identity, and asked for by every stage; its files are wanted only by the first epoch.
"""

from collections.abc import Callable, Mapping
from typing import Any

from kitchen_resources.checkpoints.head import CheckpointEntry, Head
from kitchen_resources.checkpoints.manifest import Manifest
from kitchen_resources.errors import CheckpointError, ConfigError
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.identity import Identity, Start
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import CHECKPOINT_EXAMPLES, CONTINUE_FROM, NO_CHECKPOINT
from kitchen_resources.training.plan import TrainingPlan
from kitchen_resources.training.port import LocalCheckpoint


def find_start(launch: Launch, plan: TrainingPlan, identify: Callable[[Start | None], Identity]) -> Start | None:
    """The checkpoint that a recipe continues; None when it starts afresh. Its files are fetched by `fetch_start`.

    Args:
        launch: The launch.
        plan: Its steps.
        identify: The identity that the launch has with a given start.

    Raises:
        ConfigError: `continue_from` names no checkpoint, several, or one that can't be continued like this.
        CheckpointError: The checkpoint's manifest is damaged.
    """
    named = launch.recipe.continue_from
    if named is None:
        return None
    match = CONTINUE_FROM.match(named)
    if match is None:
        raise ConfigError(NO_CHECKPOINT.format(named), where="continue_from", fix=CHECKPOINT_EXAMPLES)
    if match["run"] == "latest":
        fingerprint, step = _latest(launch, plan, identify)
    else:
        fingerprint, step = _by_prefix(launch, match["run"]), None
    return _start(launch, plan, identify, fingerprint, int(match["step"]) if match["step"] else step)


def fetch_start(launch: Launch, start: Start) -> LocalCheckpoint:
    """The checkpoint that a run continues, with its files in a local folder.

    Raises:
        CheckpointError: It is damaged, or was pruned meanwhile.
    """
    entry = launch.checkpoints.head(start.fingerprint).at(start.checkpoint.global_step)
    if entry is None or entry.state_digest != start.checkpoint.state_digest:
        raise CheckpointError(
            "the checkpoint that is continued is not there any more",
            where=f"run {start.fingerprint[:12]}, step {start.checkpoint.global_step}",
            fix="name another one in continue_from",
        )
    launch.checkpoints.checkout_shared(start.fingerprint, entry, start.checkpoint.folder)
    return start.checkpoint


def _by_prefix(launch: Launch, prefix: str) -> str:
    found = launch.checkpoints.find(prefix)
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} runs start with {prefix}" if found else f"no run starts with {prefix}"
    shown = ", ".join(run[:16] for run in found[:5]) if found else "see the asset checkpoints for what there is"
    raise ConfigError(what, where="continue_from", fix=f"give more digits: {shown}" if found else shown)


def _latest(
    launch: Launch, plan: TrainingPlan, identify: Callable[[Start | None], Identity]
) -> tuple[str, int | None]:
    """The newest run of the recipe that has a whole checkpoint; or, when the newest run is already this very
    continuation, the one it continued.

    Otherwise a second launch of the same recipe would continue its own first one, and train on for ever.
    """
    runs = launch.known_runs()
    heads = {run["fingerprint"]: launch.checkpoints.head(run["fingerprint"]) for run in runs}
    started = runs[-1]["identity"].get("start") if runs else None
    if started is not None:
        for run in runs[:-1]:
            for entry in heads[run["fingerprint"]].entries():
                if entry.state_digest == started["state"]:
                    start = _carried(launch, plan, run["fingerprint"], entry)
                    if identify(start).fingerprint == runs[-1]["fingerprint"]:
                        return run["fingerprint"], entry.step
    newest = [fingerprint for fingerprint, head in heads.items() if _whole(head)]
    if not newest:
        raise ConfigError(
            f"recipe {launch.name} has no run with a whole checkpoint yet",
            where="continue_from: latest",
            fix="run it once without continue_from",
        )
    return newest[-1], None


def _start(
    launch: Launch,
    plan: TrainingPlan,
    identify: Callable[[Start | None], Identity],
    fingerprint: str,
    step: int | None,
) -> Start:
    where = f"continue_from: {launch.recipe.continue_from}"
    head = launch.checkpoints.head(fingerprint)
    whole = _whole(head)
    chosen = head.at(step) if step is not None else next(reversed(whole or head.entries()), None)
    start = _carried(launch, plan, fingerprint, chosen) if chosen is not None else None
    if chosen is not None and start is not None and (chosen in whole or _is_under_way(launch, identify(start))):
        _require_continuable(launch, plan, launch.checkpoints.manifest(chosen), where)
        return start
    if not whole:
        raise ConfigError(f"run {fingerprint[:12]} has no whole checkpoint", where=where, fix="train it again first")
    raise ConfigError(
        f"run {fingerprint[:12]} has no whole checkpoint at step {step}",
        where=where,
        fix=f"one of {', '.join(str(entry.step) for entry in whole)}",
    )


def _whole(head: Head) -> list[CheckpointEntry]:
    """The checkpoints of a run that can be continued."""
    return [entry for entry in head.entries() if entry.payload == "present"]


def _is_under_way(launch: Launch, identity: Identity) -> bool:
    """Whether a run has checkpoints of its own. What it was started from may have been pruned since."""
    return bool(launch.checkpoints.head(identity.fingerprint).entries())


def _carried(launch: Launch, plan: TrainingPlan, fingerprint: str, entry: CheckpointEntry) -> Start:
    # An epoch that `max_steps` ended early is not over for a run that goes further.
    complete = entry.epoch_complete and entry.step >= plan.last_step(entry.epoch)
    checkpoint = LocalCheckpoint(
        folder=launch.cache / "starts" / f"{fingerprint}-{entry.step}-{entry.manifest[:16]}",
        epoch=entry.epoch,
        global_step=entry.step,
        steps_into_epoch=entry.step - (entry.epoch - 1) * plan.steps_per_epoch,
        epoch_complete=complete,
        state_digest=entry.state_digest,
        restart=launch.recipe.carry,
    )
    return Start(fingerprint, checkpoint, launch.recipe.carry)


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
    if ours.draws(plan.rows) is not None and manifest.global_step % plan.steps_per_epoch:
        raise ConfigError(
            "it lies inside a block of rollouts, and what was sampled isn't part of it",
            where=where,
            fix="name the end of an epoch, or carry: weights",
        )
    is_inside = manifest.global_step < plan.last_step(manifest.epoch)
    if is_inside and theirs["data"] != launch.prepared.trained.digest:
        raise ConfigError(
            "it lies inside an epoch over other rows", where=where, fix="name the end of an epoch, or carry: weights"
        )
    if is_inside and _row_order(theirs["recipe"]) != _row_order(vars(ours)):
        raise ConfigError(
            "it lies inside an epoch that takes its rows in another order, so that some would come twice and some never",
            where=where,
            fix="give seed, batch_size and gradient_accumulation_steps the values that it was made with, name the end "
            "of an epoch, or carry: weights",
        )


def _row_order(recipe: Mapping[str, Any]) -> tuple[Any, Any]:
    """What the order of an epoch's rows follows from, but for the rows: the seed, and how many a step has."""
    return recipe["seed"], recipe["batch_size"] * recipe["gradient_accumulation_steps"]


def _adapter_shape(lora: dict[str, object] | None) -> object:
    return None if lora is None else (lora["rank"], sorted(map(str, lora["target_modules"])))  # type: ignore[call-overload]


def require_something_to_do(start: Start | None, recipe: Recipe, plan: TrainingPlan) -> None:
    """Refuse to continue a run that has done already what is asked for.

    Raises:
        ConfigError: It has.
    """
    if start is None or start.carry == "weights":
        return
    done = start.checkpoint
    if done.global_step < plan.total_steps:
        return
    if recipe.max_steps is not None and done.global_step < recipe.epochs * plan.steps_per_epoch:
        raise ConfigError(
            f"is {recipe.max_steps}, and the run that is continued has done {done.global_step} steps already",
            where="max_steps",
            fix=f"max_steps: {done.global_step + recipe.max_steps}",
        )
    raise ConfigError(
        f"is {recipe.epochs}, and the run that is continued has {done.epoch} epochs already",
        where="epochs",
        fix=f"epochs: {done.epoch + recipe.epochs}",
    )
