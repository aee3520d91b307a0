"""The data set port: where rows come from, and what they are once prepared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Shape = Literal["messages", "prompt_completion", "text", "preference", "problem"]

Answer = str | tuple[Mapping[str, Any], ...]
"""Raw text after raw text, or a message after messages."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it was read: its number from 0, its place for messages, and its columns."""

    row_id: int
    where: str
    value: Mapping[str, Any]


@dataclass(frozen=True)
class RawDataset:
    """A data set before any change.

    Attributes:
        reference: As the recipe names it.
        kind: Where it comes from: file, folder, hub, embedded, environment, simulated.
        digest: sha256 over the bytes of its files, or over its rows where there are no files.
        files: sha256 of each file that is read.
        revision: Commit of a hub data set, else "".
        note: What a person should know, such as that a cached copy is used.
        rows: Reads the rows from the start, each time it is called; flat in memory.
    """

    reference: str
    kind: Literal["file", "folder", "hub", "embedded", "environment", "simulated"]
    digest: str
    files: Mapping[str, str]
    revision: str
    note: str
    read: "RowReader"

    def rows(self) -> Iterator[RawRow]:
        """The rows, from the first. Raises `DataError` with file and line where one can't be read."""
        return self.read()


class RowReader(Protocol):
    """Reads rows from the start."""

    def __call__(self) -> Iterator[RawRow]:
        """The rows, from the first."""
        ...


@runtime_checkable
class DatasetStore(Protocol):
    """Where data sets are."""

    def open(self, reference: str, *, split: str = "train") -> RawDataset:
        """A data set by reference; its rows are read later, by `rows`.

        Raises:
            DataError: It doesn't exist, is empty, has no such split, or is of no known format.
            HubError: A hub can't deliver it.
        """
        ...

    def look(self, reference: str, *, split: str = "train") -> str:
        """What changes when a data set does, told without reading it: names, sizes and times of its files; a commit.

        Raises:
            DataError: It doesn't exist, or has no such split.
            HubError: A hub can't be asked.
        """
        ...


@dataclass(frozen=True, slots=True)
class Example:
    """A row brought to one of the shapes.

    Attributes:
        row_id: Number of the raw row.
        where: Its place, for messages.
        shape: Which of the fields below are set.
        messages: Chat messages: dicts with role, content, and what else the template reads; of a pair, its prompt.
        tools: Tool definitions that the template shows the model.
        prompt: Raw text before the completion, or before both answers of a pair.
        completion: Raw text to learn.
        text: Raw text, learned whole.
        chosen: The better answer of a pair: one message after `messages`, or raw text after `prompt`.
        rejected: The worse one, likewise.
        problem: What an environment asks, as a JSON object; `messages` are the conversation that it starts with.
    """

    row_id: int
    where: str
    shape: Shape
    messages: tuple[Mapping[str, Any], ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    prompt: str = ""
    completion: str = ""
    text: str = ""
    chosen: Answer = ""
    rejected: Answer = ""
    problem: str = ""


@dataclass(frozen=True)
class PreparedSplit:
    """Prepared rows in the store.

    Attributes:
        blob: sha256 of the Parquet file.
        rows: Number of rows.
        tokens: Number of tokens; of a pair, its prompt once and both answers.
        trained_tokens: Number of tokens with a loss.
        digest: sha256 over the tokens and loss weights of all rows, in order; of pairs, over the tokens of prompt and
            answers. Independent of the file format.
    """

    blob: str
    rows: int
    tokens: int
    trained_tokens: int
    digest: str


@dataclass(frozen=True)
class PreparedDataset:
    """A data set ready to train on: content-addressed, and the same for every backend.

    Attributes:
        key: What was asked for: raw digests, data fields of the recipe, tokenizer, template.
        train: The training rows, in the order that `formulas.batches` permutes.
        held_out: The rows kept from training; None when there are none.
        packs: The training rows put together into sequences, when the recipe packs.
        raw: Reference, kind, digest, revision of the raw data sets.
        rendering: Template, trained roles, tokenizer, pad token.
        pad_token_id: Token that fills short rows of a batch.
        stop_token_ids: Tokens at which an answer ends.
        report: Blob of the row report.
        simulated: Made without the model's own tokenizer.
        fractional: Row and place of the first row with a weight other than 0 and 1, or "".
    """

    key: str
    train: PreparedSplit
    held_out: PreparedSplit | None
    packs: PreparedSplit | None
    raw: Mapping[str, Any]
    rendering: Mapping[str, Any]
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    report: str
    simulated: bool = False
    fractional: str = ""

    @property
    def trained(self) -> PreparedSplit:
        """What the trainer reads: packs where rows are packed, else rows."""
        return self.packs or self.train


@dataclass(frozen=True)
class LocalDataset:
    """Prepared rows in a local Parquet file.

    Columns: `input_ids` and `labels` (lists of int, -100 where nothing is learned), and `row_id` (int), or for
    packs `row_ids` and `seq_lengths` (lists of int). Of pairs `prompt_ids`, `chosen_ids`, `rejected_ids` (lists of
    int) and `row_id`.

    Attributes:
        path: The file, read-only.
        rows: Number of rows (or packs).
        packed: Whether a row is a pack.
        pad_token_id: See PreparedDataset.
        stop_token_ids: See PreparedDataset.
        digest: Of the rows' tokens.
    """

    path: Path
    rows: int
    packed: bool
    pad_token_id: int
    stop_token_ids: tuple[int, ...] = ()
    digest: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
