"""What trainers that sample have in common: blocks of prompts in the kitchen's order, and what was sampled of them."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kitchen_resources.formulas.batches import block_plan
from kitchen_resources.recipes.recipe import Draws
from kitchen_resources.training.port import TRANSCRIPT
from kitchen_resources.training.trl.trainer import ROW_IDS, KitchenTrainerMixin

if TYPE_CHECKING:
    import torch


class BlockSampler:
    """The prompts of one block of rollouts, an epoch of the trainer: a pure function of seed and epoch.

    TRL's own sampler goes on from a random state that no checkpoint holds: each new process would draw the first epoch's
    prompts again (measured), and it leaves out what fills no whole batch.

    Args:
        rows: Prompts in the data set.
        draws: What a block is.
        seed: The recipe's seed.
        group: Samples of each prompt.
        passes: Forward passes of one optimiser step, each of which is handed the whole draw.
    """

    def __init__(self, rows: int, draws: Draws, *, seed: int, group: int, passes: int) -> None:
        self._rows = rows
        self._draws = draws
        self._seed = seed
        self._group = group
        self._passes = passes * draws.steps_per_draw
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the start of each epoch, from 0."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._draws.count * self._draws.prompts * self._group * self._passes

    def __iter__(self) -> Iterator[int]:
        drawn = block_plan(
            self._rows,
            seed=self._seed,
            block=self._epoch,
            prompts=self._draws.prompts,
            draws=self._draws.count,
        )
        for prompts in drawn:
            for _ in range(self._passes):
                for index in prompts:
                    yield from (index for _ in range(self._group))


class SamplingMixin(KitchenTrainerMixin):
    """Over a TRL trainer that samples. To be listed before it.

    Attributes:
        drawn: The rows whose samples are made now, each as often as it is sampled.
        group: Samples of each prompt.
    """

    train_dataset: Any
    group: int = 1

    def sample_blocks(self, *, group: int, row_column: str) -> None:
        """Draw prompts by the kitchen's plan.

        Args:
            group: Samples of each prompt.
            row_column: Column with the row's id.
        """
        self.group = group
        self.drawn: list[dict[str, Any]] = []
        self._row_column = row_column
        self._draw_tokens = 0
        self._sampled = 0
        self._trained = 0
        self._received: list[tuple[int, int]] = []
        self._transcript: list[dict[str, Any]] = []

    def wrap_collator(self, row_column: str) -> None:
        """Rows stay dicts in these trainers, with their ids in them."""

    def take_note(self, inputs: Any, num_items_in_batch: Any) -> None:
        """What a pass is handed are prompts; what it trains on is known in `compute_loss`."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of one pass; takes note of the samples that it really received."""
        self._received.extend(inputs[ROW_IDS])
        return super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]

    def rows_of_step(self) -> list[int]:
        """See `KitchenTrainerMixin.rows_of_step`; the step that first trains on the samples of a prompt received it."""
        received, self._received = self._received, []
        rows = rows_of_samples([sample for sample in received if sample[0] >= self._trained], self.group)
        self._trained = self._sampled
        return rows

    def tokens_of_step(self) -> int:
        """Sampled tokens that the optimiser step under way trains on."""
        return self._draw_tokens

    def transcribe(self, lines: list[dict[str, Any]]) -> None:
        """Keep some of what was sampled, for people."""
        self._transcript.extend(lines)

    def records(self) -> dict[str, bytes]:
        """See `KitchenTrainerMixin.records`."""
        lines = (json.dumps(line, ensure_ascii=False, sort_keys=True) for line in self._transcript)
        return {TRANSCRIPT: "".join(f"{line}\n" for line in lines).encode()}

    def _get_train_sampler(self, dataset: Any = None) -> "torch.utils.data.Sampler[int]":
        draws = self._recipe.draws(len(self.train_dataset))
        assert draws is not None
        return BlockSampler(  # type: ignore[return-value]  # what a DataLoader asks of a sampler is iterating and length
            len(self.train_dataset),
            draws,
            seed=self._recipe.seed,
            group=self.group,
            passes=self._recipe.gradient_accumulation_steps,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.drawn = inputs
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        mask = output["completion_mask"]
        self._draw_tokens = int((mask * output["tool_mask"] if "tool_mask" in output else mask).sum())
        # TRL mixes the samples of a draw and cuts them into passes: each has its number and its row with it.
        output[ROW_IDS] = [(self._sampled + place, row[self._row_column]) for place, row in enumerate(inputs)]
        self._sampled += len(inputs)
        return output


def rows_of_samples(samples: Sequence[tuple[int, int]], group: int) -> list[int]:
    """The rows of samples, in the order of the draw: a prompt with all of its samples counts once.

    Args:
        samples: Number of the sample, from 0 over all draws of an epoch, and its row.
        group: Samples of each prompt.

    Returns:
        No row for a prompt that lacks a sample, and one more for each time that a sample came up again.
    """
    times = Counter(samples)
    prompts: dict[tuple[int, int], list[int]] = {}
    for (number, row), count in sorted(times.items()):
        prompts.setdefault((number // group, row), []).append(count)
    rows = []
    for (_, row), counts in prompts.items():
        rows.extend([row] * (max(counts) if len(counts) == group else 0))
    return rows
