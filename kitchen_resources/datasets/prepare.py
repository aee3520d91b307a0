"""Preparing a data set: load, validate, split, render, pack; content-addressed, and the same for every backend."""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.workplace import workplace
from kitchen_resources.datasets.packing import pack
from kitchen_resources.datasets.port import (
    DatasetStore,
    Example,
    LocalDataset,
    PreparedDataset,
    PreparedSplit,
    RawDataset,
)
from kitchen_resources.datasets.problems import observed_examples, own_problems
from kitchen_resources.datasets.report import RowReport, report_from_json
from kitchen_resources.datasets.rows import Outcome, RowWriter, normalized_examples
from kitchen_resources.datasets.splitting import as_keys, choose_held_out, content_key, prompt_key, repeated
from kitchen_resources.digests import canonical_json, digest_json
from kitchen_resources.environments.options import identity_of
from kitchen_resources.errors import ConfigError, DataError
from kitchen_resources.recipes.fields import fields_with_facts
from kitchen_resources.recipes.recipe import Recipe
from kitchen_resources.recipes.reinforcement import OWN_PROBLEMS, ReinforcementRecipe

PREPARE_VERSION = 1
"""Raised by hand when the same rows would come out as other tokens."""


class TeacherAnswers(Protocol):
    """Gives the answers of a teacher to the questions of rows."""

    def identity(self) -> dict[str, Any]:
        """What decides the answers."""
        ...

    def rewrite(self, examples: Iterable[Example]) -> Iterator[Example | tuple[Example, str]]:
        """Each example with the teacher's answer in the place of its own; or with the reason why it has none."""
        ...


_BY_DIGEST = frozenset({"dataset", "held_out", "chat_template"})


@dataclass(frozen=True)
class RawSplits:
    """The raw data sets of a recipe: to train on, and to hold out when that is another one; else a share of the first."""

    train: RawDataset
    held_out: RawDataset | None
    share: float

    def describe(self) -> dict[str, Any]:
        """What is known of them without reading a row."""
        sets = {"train": self.train, **({"held_out": self.held_out} if self.held_out else {})}
        return {
            name: {
                "reference": raw.reference,
                "kind": raw.kind,
                "digest": raw.digest,
                "revision": raw.revision,
                "files": dict(raw.files),
            }
            for name, raw in sets.items()
        }

    @property
    def digest(self) -> str:
        """Digest of the raw data."""
        return digest_json([self.train.digest, self.held_out.digest if self.held_out else self.share])


def open_raw(recipe: Recipe, datasets: DatasetStore) -> RawSplits:
    """The raw data sets that a recipe names.

    Raises:
        DataError: One doesn't exist, is empty, or is of no known format.
        ConfigError: `held_out` is neither a share below 1 nor a data set.
    """
    if isinstance(recipe, ReinforcementRecipe) and recipe.dataset == OWN_PROBLEMS:
        train = own_problems(recipe)
    else:
        train = datasets.open(recipe.dataset, split=recipe.split)
    held_out = recipe.held_out.strip()
    try:
        share = float(held_out or "0")
    except ValueError:
        return RawSplits(train, _open_held_out(recipe, held_out, datasets), 0.0)
    if not 0 <= share < 1:
        raise ConfigError(
            f"must be a share from 0 to below 1, got {held_out}", where="held_out", fix='held_out: "0.1"'
        )
    return RawSplits(train, None, share)


def _open_held_out(recipe: Recipe, reference: str, datasets: DatasetStore) -> RawDataset:
    try:
        if reference.startswith("split:"):
            return datasets.open(recipe.dataset, split=reference.removeprefix("split:"))
        return datasets.open(reference)
    except DataError as error:
        raise DataError(
            error.what, where=f"held_out: {error.where}", fix=f'{error.fix}; or a share, held_out: "0.1"'
        ) from error


def prepare(
    recipe: Recipe,
    raw: RawSplits,
    renderer: Any,
    content: ContentStore,
    *,
    conversational: bool,
    rendering: Mapping[str, Any],
    simulated: bool,
    teacher: TeacherAnswers | None = None,
) -> tuple[PreparedDataset, RowReport]:
    """Prepare a recipe's data, or find it prepared.

    Args:
        recipe: What to train.
        raw: From `open_raw`.
        renderer: Tokens and loss weights of an example; see `rendering.Renderer`.
        content: Where to put it.
        conversational: Whether prompts and answers become conversations.
        rendering: What identifies the renderer: template, tokenizer files.
        simulated: Whether the tokenizer isn't the model's own.
        teacher: Answers the training rows anew; None where they are learned as they are.

    Returns:
        The prepared data and the row report, whether or not the report exceeds the recipe's limits.

    Raises:
        DataError: Rows can't be read, or none is left to train on.
    """
    fields = {
        name: getattr(recipe, name)
        for name, _, facts in fields_with_facts(type(recipe))
        if facts.moves == "data" and name not in _BY_DIGEST
    }
    key = digest_json(
        {
            "version": PREPARE_VERSION,
            "method": recipe.method,
            "raw": raw.digest,
            "fields": fields,
            "rendering": dict(rendering),
            "seed": recipe.seed if raw.held_out is None else None,
            **_of_method(recipe, teacher),
        }
    )
    found = content.blobs.get(f"prepared/{key}.json")
    if found is None:
        with workplace(content.blobs.scratch(), "prepare") as scratch:
            prepared = _prepare(
                recipe, raw, renderer, content, key, scratch, conversational, rendering, simulated, teacher
            )
        content.blobs.put_if_absent(f"prepared/{key}.json", canonical_json(asdict(prepared)))
    else:
        prepared = prepared_from_json(json.loads(found.data))
    return prepared, read_report(prepared, content)


def prepared_from_json(value: Mapping[str, Any]) -> PreparedDataset:
    """A prepared data set as stored."""
    splits = {name: PreparedSplit(**value[name]) if value[name] else None for name in ("train", "held_out", "packs")}
    return PreparedDataset(**{**value, **splits, "stop_token_ids": tuple(value["stop_token_ids"])})


def read_report(prepared: PreparedDataset, content: ContentStore) -> RowReport:
    """The row report of a prepared data set."""
    return report_from_json(json.loads(content.get(prepared.report)))


def fetch_split(content: ContentStore, split: PreparedSplit, path: Path) -> Path:
    """A prepared split as a local Parquet file; whole and verified as soon as it has its name."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        content.get_file(split.blob, draft)
        draft.replace(path)
    return path


def fetch_training_rows(content: ContentStore, prepared: PreparedDataset, path: Path) -> LocalDataset:
    """What the trainer reads, as a local Parquet file."""
    return LocalDataset(
        path=fetch_split(content, prepared.trained, path),
        rows=prepared.trained.rows,
        packed=prepared.packs is not None,
        pad_token_id=prepared.pad_token_id,
        stop_token_ids=prepared.stop_token_ids,
        digest=prepared.trained.digest,
    )


def _prepare(
    recipe: Recipe,
    raw: RawSplits,
    renderer: Any,
    content: ContentStore,
    key: str,
    scratch: Path,
    conversational: bool,
    rendering: Mapping[str, Any],
    simulated: bool,
    teacher: TeacherAnswers | None,
) -> PreparedDataset:
    report = RowReport()
    named = "held_out " if raw.held_out else ""
    train_file, train_keys = _normalize(recipe, raw.train, report, scratch / "train.jsonl", conversational)
    prompts, contents = train_keys
    if raw.held_out is None:
        is_held_out = choose_held_out(prompts, contents, share=raw.share, seed=recipe.seed)
        others: tuple[Path, Any] | None = None
    else:
        is_held_out = None
        held_file, (held_prompts, _) = _normalize(
            recipe, raw.held_out, report, scratch / "held_out.jsonl", conversational, named
        )
        others = held_file, held_prompts
    _find_duplicates(report, train_file, contents)
    train = RowWriter(scratch / "train.parquet", recipe, renderer, report, trained=True)
    held_out = RowWriter(scratch / "held_out.parquet", recipe, renderer, report, trained=False, named=named)
    with train, held_out:
        trained = (example for index, example in enumerate(read_examples(train_file)) if not _at(is_held_out, index))
        for outcome in trained if teacher is None else teacher.rewrite(trained):
            if isinstance(outcome, Example):
                train.add(outcome)
            else:
                report.findings["untrained"].add(outcome[0].row_id, outcome[0].where, outcome[1])
        for index, example in enumerate(read_examples(train_file)):
            if _at(is_held_out, index):
                held_out.add(example)
        if others is not None:
            _add_other_held_out(held_out, report, others, set(prompts.tolist()))
    for finding in report.findings.values():
        finding.of = report.rows_read
    report.findings["overlap"].of = held_out.rows if others is None else len(others[1])
    if train.rows == 0:
        report.require(recipe.row_limits, f"dataset {raw.train.reference}")
        raise DataError(
            f"no training rows are left of {report.rows_read}",
            where=f"dataset {raw.train.reference}",
            fix="correct the rows that are invalid or train nothing, or lower held_out",
        )
    report.rows_trained, report.rows_held_out = train.rows, held_out.rows
    report.tokens, report.trained_tokens = train.tokens, train.trained_tokens
    train_split = train.store(content)
    packs = None
    if getattr(recipe, "packing", False):
        packs = pack(train.path, scratch / "packs.parquet", content, train_split, recipe.max_length)
    return PreparedDataset(
        key=key,
        train=train_split,
        held_out=held_out.store(content) if held_out.rows else None,
        packs=packs,
        raw=raw.describe(),
        rendering=dict(rendering),
        pad_token_id=renderer.pad_token_id,
        stop_token_ids=tuple(sorted(renderer.stop_token_ids)),
        report=content.put_json(report.as_json()),
        simulated=simulated,
        fractional="row {} ({})".format(*train.fractional) if train.fractional else "",
    )


def _of_method(recipe: Recipe, teacher: TeacherAnswers | None) -> dict[str, Any]:
    """What else decides how the rows of a method come out, beside the fields that all have."""
    if isinstance(recipe, ReinforcementRecipe):
        return {"environment": identity_of(replace(recipe.environment_spec(), rewards=()))}
    mode = getattr(recipe, "mode", None)
    return {**({"mode": mode} if mode else {}), **({"teacher": teacher.identity()} if teacher else {})}


def _outcomes(recipe: Recipe, raw: RawDataset, max_rows: int | None, conversational: bool) -> Iterator[Outcome]:
    if isinstance(recipe, ReinforcementRecipe):
        return observed_examples(raw, recipe, max_rows)
    return normalized_examples(raw, recipe.columns, max_rows, conversational, recipe.method)


def _at(flags: Any, index: int) -> bool:
    return flags is not None and bool(flags[index])


def _normalize(
    recipe: Recipe, raw: RawDataset, report: RowReport, path: Path, conversational: bool, named: str = ""
) -> tuple[Path, tuple[Any, Any]]:
    """Write a data set's valid examples to a file, one a line, and return their prompt and content keys."""
    prompts, contents = bytearray(), bytearray()
    rows = 0
    with path.open("w", encoding="utf-8") as stream:
        for outcome in _outcomes(recipe, raw, recipe.max_rows if not named else None, conversational):
            rows += 1
            if isinstance(outcome, Example):
                report.shape = report.shape or outcome.shape
                prompts += prompt_key(outcome)
                contents += content_key(outcome)
                stream.write(json.dumps(asdict(outcome), ensure_ascii=True) + "\n")
            else:
                row, reason = outcome
                report.findings["invalid"].add(row.row_id, f"{named}{row.where}", reason)
    if rows == 0:
        raise DataError("holds no rows", where=f"dataset {raw.reference}", fix="write at least one row to it")
    report.rows_read += rows
    return path, (as_keys(prompts), as_keys(contents))


def read_examples(path: Path) -> Iterator[Example]:
    """Examples that `_normalize` wrote."""
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            # JSON has no tuples; no other field of an example is a list.
            value: dict[str, Any] = json.loads(line)
            value.update({name: tuple(item) for name, item in value.items() if isinstance(item, list)})
            yield Example(**value)


def _find_duplicates(report: RowReport, path: Path, contents: Any) -> None:
    repeats = repeated(contents)
    if not repeats.any():
        return
    first: dict[bytes, int] = {}
    for index, example in enumerate(read_examples(path)):
        key = contents[index].tobytes()
        if repeats[index]:
            report.findings["duplicates"].add(example.row_id, example.where, f"the same as row {first.get(key, '?')}")
        else:
            first[key] = example.row_id


def _add_other_held_out(writer: RowWriter, report: RowReport, others: tuple[Path, Any], trained: set[bytes]) -> None:
    path, prompts = others
    for index, example in enumerate(read_examples(path)):
        if prompts[index].tobytes() in trained:
            report.findings["overlap"].add(
                example.row_id, f"held_out {example.where}", "its prompt is also in the training rows"
            )
        writer.add(example)
