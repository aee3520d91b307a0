"""Preflight: refuse before any work what can't be trained, and say what it will take."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kitchen_resources.datasets.port import RawDataset, RawRow
from kitchen_resources.datasets.shapes import RowProblem, shape_of
from kitchen_resources.errors import CapabilityError, ConfigError, DataError
from kitchen_resources.formulas.hyperparameters import suggest_learning_rate
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.rules import HELD_OUT, Problem, check_values, refuse
from kitchen_resources.training.base_models import read_config
from kitchen_resources.training.port import BaseModel, Capabilities
from kitchen_resources.training.registered import REGISTERED


@dataclass(frozen=True)
class PreflightReport:
    """What a launch will take, and what a person should know before it starts.

    Attributes:
        backend: Name of the backend.
        device: Where it runs; "" where that isn't known yet, nor what it takes.
        memory_bytes: Estimated peak memory of training.
        state_bytes: Estimated size of a checkpoint.
        free_bytes: Free space in the store, or None.
        notes: Sentences for people.
    """

    backend: str
    device: str
    memory_bytes: int
    state_bytes: int
    free_bytes: int | None
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report as text."""
        if not self.device:
            return [f"backend {self.backend}", *self.notes]
        free = "unlimited" if self.free_bytes is None else f"{self.free_bytes / 2**30:,.1f} GiB"
        return [
            f"backend {self.backend} on {self.device}",
            f"memory about {self.memory_bytes / 2**30:,.2f} GiB at the peak (an estimate)",
            f"disk about {self.state_bytes / 2**20:,.1f} MiB a checkpoint; {free} free",
            *self.notes,
        ]


def preflight(launch: Launch) -> PreflightReport:
    """Check a launch, in the order of what is cheapest: values, backend, data, model, disk.

    Raises:
        ConfigError: A value is out of bounds or contradicts another; all of them are named.
        CapabilityError: The backend can't do what is asked.
        HubError: The model or data can't be fetched.
        DataError: The data can't be read, or are of no known shape.
        DiskFull: A checkpoint wouldn't fit.
    """
    check_recipe(launch)
    recipe, adapter = launch.recipe, launch.ports.trainer.adapter
    capabilities = adapter.capabilities()
    opened = list(_opened(launch))
    base = launch.base
    for role, model in launch.models.items():
        require_same_vocabulary(launch, role, model)
    for raw, columns, first, method in opened:
        if method == "reinforcement":
            # Refuses a template whose turns end by no token.
            launch.rendering.renderer.dialogue()
        else:
            _require_known_shape(launch, raw, columns, first, method)
    _require_room_to_write(launch)
    resolution = launch.resolution
    launch.checkpoints.require_space(resolution.state_bytes)
    return PreflightReport(
        backend=capabilities.backend,
        device=resolution.device,
        memory_bytes=resolution.memory_bytes,
        state_bytes=resolution.state_bytes,
        free_bytes=launch.ports.blobs.free_bytes(),
        notes=tuple(
            note for note in (base.note, launch.raw.train.note, _learning_rate_note(recipe), *launch.notes()) if note
        ),
    )


def check_recipe(launch: Launch) -> None:
    """Refuse what can be told from the recipe and the backend alone, without any model or row.

    Raises:
        ConfigError: As in `preflight`.
        CapabilityError: As in `preflight`.
    """
    recipe, name = launch.recipe, f"recipe {launch.name}"
    refuse([*check_values(recipe), *_scorer_problems(launch)], name)
    adapter = launch.ports.trainer.adapter
    require_capable(recipe, adapter.capabilities())
    refuse(adapter.check(recipe), name)
    _require_reachable(adapter.capabilities(), launch.ports.blobs.uri)


def _require_reachable(capabilities: Capabilities, uri: str) -> None:
    """Refuse a store that the backend's workers, on other machines, don't see.

    Raises:
        CapabilityError: It is no bucket.
    """
    if capabilities.by_store and not uri.startswith("s3://"):
        raise CapabilityError(
            f"its workers can't reach the store {uri}",
            where=f"backend {capabilities.backend}",
            fix="KITCHEN_STORE=s3://bucket/prefix, a bucket that both they and this machine may write",
        )


def require_same_vocabulary(launch: Launch, role: str, model: BaseModel) -> None:
    """Refuse a reference or teacher whose tokens aren't the student's, where their distributions are compared.

    Raises:
        ConfigError: The two vocabularies differ.
    """
    base = launch.base
    if base.folder is None or model.folder is None or getattr(launch.recipe, "mode", "") == "sequence":
        return
    from kitchen_resources.datasets.templating import load_tokenizer

    ours, theirs = load_tokenizer(base.folder).get_vocab(), load_tokenizer(model.folder).get_vocab()
    sizes = [_vocabulary_size(folder) for folder in (base.folder, model.folder)]
    if ours == theirs and (sizes[0] == sizes[1] or role != "teacher"):
        return
    different = sorted({word for word, _ in ours.items() ^ theirs.items()}, key=lambda word: (len(word), word))
    said = f"such as {different[0]!r}" if different else f"{sizes[1]} tokens against {sizes[0]}"
    raise ConfigError(
        f"the {role} {model.reference} has another vocabulary than {base.reference}, {said}",
        where=f"recipe {launch.name}, {role}",
        fix="mode: sequence, which trains on the teacher's text"
        if role == "teacher"
        else f"name a {role} of the same family",
    )


def _require_room_to_write(launch: Launch) -> None:
    """Refuse to sample more tokens than the model takes.

    Raises:
        ConfigError: `max_tokens` leaves no room for a prompt.
    """
    most, folder = getattr(launch.recipe, "max_tokens", 0), launch.base.folder
    # What a teacher writes is its own model's matter, and cut by max_length afterwards.
    if folder is None or launch.recipe.draws(1) is None:
        return
    config = read_config(folder)
    length = config.get("max_position_embeddings", config.get("text_config", {}).get("max_position_embeddings"))
    if isinstance(length, int) and most >= length:
        raise ConfigError(
            f"is {most}, and the model takes {length} tokens, prompt included",
            where=f"recipe {launch.name}, max_tokens",
            fix=f"max_tokens: {length // 2}",
        )


def _vocabulary_size(folder: Path) -> int | None:
    config = read_config(folder)
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    return size if isinstance(size, int) else None


def _scorer_problems(launch: Launch) -> list[Problem]:
    problems: list[Problem] = []
    for index, evaluation in enumerate(launch.recipe.evaluations):
        wrong = launch.ports.evaluator.check(evaluation.scorer, evaluation.scorer_args)
        if wrong is not None:
            problems.append((f"evaluations.{index}.scorer", wrong, "a registered scorer, and its own scorer_args"))
    return problems


def require_capable(recipe: Recipe, capabilities: Capabilities) -> None:
    """Refuse what a backend says that it doesn't do.

    Raises:
        CapabilityError: The first such thing.
    """
    backend = f"backend {capabilities.backend}"
    if recipe.method not in capabilities.methods:
        methods = ", ".join(sorted(capabilities.methods))
        raise CapabilityError(
            f"doesn't train {recipe.method}", where=backend, fix=f"it trains {methods}; choose another backend"
        )
    steps = recipe.checkpoint_steps is not None or recipe.checkpoint_minutes is not None
    if steps and not capabilities.is_exact_inside(recipe):
        sampled = recipe.draws(1) is not None
        raise CapabilityError(
            f"can't resume {recipe.method} exactly from inside an epoch"
            + (": what it has sampled for a block isn't part of a checkpoint" if sampled else ""),
            where=backend,
            fix="remove checkpoint_steps and checkpoint_minutes"
            + ("; shorter epochs are saved as often" if sampled else ""),
        )
    if recipe.definition.loss and not capabilities.own_code:
        raise CapabilityError(
            f"can't train by a loss of one's own, as loss: {recipe.definition.loss} asks",
            where=backend,
            fix="choose backend local or tinker, or remove loss",
        )
    if recipe.definition.batch_stages and not capabilities.own_code:
        raise CapabilityError(
            f"runs no stages of one's own in a step, as batch_stages asks: {', '.join(recipe.definition.batch_stages)}",
            where=backend,
            fix="choose backend local or tinker, or remove batch_stages",
        )
    if recipe.lora is not None and not capabilities.lora:
        raise CapabilityError("doesn't train a LoRA", where=backend, fix="lora: null")
    if recipe.lora is None and not capabilities.full:
        raise CapabilityError("doesn't train the whole model", where=backend, fix="lora: {rank: 16}")
    if recipe.quantization not in capabilities.quantization:
        raise CapabilityError(f"has no {recipe.quantization} base", where=backend, fix="quantization: none")


def _opened(launch: Launch) -> Iterator[tuple[RawDataset, Mapping[str, str], RawRow, str]]:
    """Every data set that the launch will read, with the recipe's names of its columns, its first row, and what reads it.

    A missing or empty file is told now, and not after the model was fetched or, for an evaluation, an epoch trained.
    """
    recipe, splits = launch.recipe, launch.raw
    own = [raw for raw in (splits.train, splits.held_out) if raw is not None]
    named = [(raw, recipe.columns, recipe.method) for raw in own]
    for evaluation in recipe.evaluations:
        if evaluation.dataset != HELD_OUT:
            opened = launch.ports.datasets.open(evaluation.dataset, split=evaluation.split)
            named.append((opened, evaluation.columns, "supervised"))
    for raw, columns, method in named:
        first = next(iter(raw.rows()), None)
        if first is None:
            raise DataError("holds no rows", where=f"dataset {raw.reference}", fix="write at least one row to it")
        yield raw, columns, first, method


def _require_known_shape(
    launch: Launch, raw: RawDataset, columns: Mapping[str, str], first: RawRow, method: str
) -> None:
    """Refuse columns of no known shape, and conversations for a model that has no template for them.

    What else is wrong with the first row is a finding of the row report, as with any other.
    """
    normalize = shape_of(
        first.value,
        columns,
        reference=f"dataset {raw.reference}",
        conversational=launch.rendering.conversational,
        method=method,
    )
    with suppress(RowProblem, DataError):
        example = normalize(first)
        if example.messages:
            launch.rendering.renderer.prompt_text(list(example.messages))


def _learning_rate_note(recipe: Recipe) -> str:
    """A word where the learning rate is far from what models of this kind are trained with."""
    if not recipe.model.strip() or recipe.model.startswith(("embedded:", REGISTERED)):
        return ""
    suggested = suggest_learning_rate(recipe.model, lora=recipe.lora is not None)
    if recipe.learning_rate > 10 * suggested:
        return f"learning_rate {recipe.learning_rate:g} is over ten times what is usual for such a model ({suggested:.1e})"
    return ""
