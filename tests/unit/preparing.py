"""Recipes' data prepared on the embedded tokenizer, in a store in memory, for the tests of data sets."""

import io
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.memory import MemoryBlobs
from kitchen_resources.datasets.port import PreparedDataset, PreparedSplit
from kitchen_resources.datasets.prepare import open_raw, prepare
from kitchen_resources.datasets.renderers import RecipeRenderer, make_renderer
from kitchen_resources.datasets.report import RowReport
from kitchen_resources.datasets.sources import SourceDatasets
from kitchen_resources.recipes.supervised import SupervisedRecipe
from kitchen_resources.training.base_models import simulated_base

BASE = simulated_base("embedded:tiny")
START, END, PAD, NEWLINE = 257, 258, 256, 10
"""Ids of the embedded tokenizer, whose others are bytes."""


def recipe_of(dataset: Path | str, **fields: Any) -> SupervisedRecipe:
    """A recipe that holds nothing out unless it says so."""
    return SupervisedRecipe(**{"model": "embedded:tiny", "dataset": str(dataset), "held_out": "0", **fields})


class Pantry:
    """A store, and what is prepared into it."""

    def __init__(self) -> None:
        self.blobs = MemoryBlobs()
        self.content = ContentStore(self.blobs)

    def prepare(
        self, recipe: SupervisedRecipe, rendering: RecipeRenderer | None = None
    ) -> tuple[PreparedDataset, RowReport]:
        """Prepare a recipe's data as a launch does."""
        rendering = rendering or make_renderer(recipe, BASE)
        return prepare(
            recipe,
            open_raw(recipe, SourceDatasets()),
            rendering.renderer,
            self.content,
            conversational=rendering.conversational,
            rendering=rendering.rendering,
            simulated=rendering.simulated,
        )

    def rows(self, split: PreparedSplit | None) -> list[dict[str, Any]]:
        """The rows of a prepared split."""
        import pyarrow.parquet

        assert split is not None
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(self.content.get(split.blob))).to_pylist()
        return rows


def chat_ids(question: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of one question and answer in the embedded template, and their labels for the last answer."""
    asked = [START, *f"user\n{question}".encode(), END, NEWLINE, START, *b"assistant\n"]
    learned = [*answer.encode(), END]
    return [*asked, *learned, NEWLINE], [*([-100] * len(asked)), *learned, -100]
