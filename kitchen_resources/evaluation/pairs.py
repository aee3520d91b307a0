"""What a model prefers: held-out pairs of answers, by its log-probabilities against those of a reference."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.derived import DerivedStore
from kitchen_resources.blobs.workplace import workplace
from kitchen_resources.digests import canonical_json
from kitchen_resources.evaluation.likelihood import not_finite, row_losses
from kitchen_resources.evaluation.local import SAMPLES, load_model
from kitchen_resources.evaluation.port import EvaluationResult, LoadedModel, Measure
from kitchen_resources.formulas.losses import dpo_loss
from kitchen_resources.formulas.metrics import mean_interval, wilson_interval
from kitchen_resources.training.port import BaseModel

_LOGPROBS_VERSION = 1
"""Raised by hand when the same reference and rows would have other log-probabilities."""

Logprobs = tuple[float, float]
"""Log-probability of the chosen and of the rejected answer given the prompt, in nats, summed over their tokens."""


@dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it, in tokens.

    Attributes:
        where: Its place, for people.
        prompt_ids: The prompt.
        chosen_ids: The better answer, with the token that ends it.
        rejected_ids: The other one.
    """

    where: str
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]


@dataclass(frozen=True)
class PairsTask:
    """`loss`, `accuracy`, `margin`, `chosen_reward` and `rejected_reward` on pairs (Rafailov et al. 2023).

    An answer's reward is beta times the log-ratio of model to reference. `loss` is the sigmoid loss of DPO, whichever loss
    is trained, so that recipes of one beta compare; `accuracy` is the share of pairs whose chosen reward is above the
    rejected one, where equal is wrong. The reference itself has the loss ln 2 and the accuracy 0.

    Attributes:
        name: Prefix of its metrics.
        digest: Digest of its rows.
        rows: Parquet file with `where`, `prompt_ids`, `chosen_ids` and `rejected_ids`.
        samples: The most pairs to read, the first ones; None for all.
        beta: Scale of the rewards.
        reference: What the log-ratio is to.
        batch_size: Pairs at a time.
        pad_token_id: Filler of short rows.
        content: Where the reference's log-probabilities are kept, which are the same after every epoch.
    """

    name: str
    digest: str
    rows: Path
    samples: int | None
    beta: float
    reference: BaseModel
    batch_size: int
    pad_token_id: int
    content: ContentStore = field(repr=False, compare=False)

    def spec(self) -> dict[str, Any]:
        """See `Task.spec`."""
        return {
            "name": self.name,
            "measure": "pairs",
            "rows": self.digest,
            "samples": self.samples,
            "beta": self.beta,
            "reference": self.reference.digest,
        }

    def measure(self, model: LoadedModel) -> EvaluationResult:
        """See `Task.measure`."""
        pairs = self._read()
        if not pairs:
            return EvaluationResult({}, [])
        policy = self._logprobs(model.model, pairs)
        reference = self._reference_logprobs(model, pairs, policy)
        found = [
            dpo_loss([chosen], [rejected], [chosen_before], [rejected_before], beta=self.beta)[1]
            for (chosen, rejected), (chosen_before, rejected_before) in zip(policy, reference, strict=True)
        ]
        return EvaluationResult(self._measures(found), self._shown(model, pairs, found))

    def _read(self) -> list[Pair]:
        import pyarrow.parquet

        columns = ["where", "prompt_ids", "chosen_ids", "rejected_ids"]
        with pyarrow.parquet.ParquetFile(self.rows) as file:
            batches = file.iter_batches(self.batch_size, columns=columns)
            rows = (row for batch in batches for row in batch.to_pylist())
            return [Pair(**row) for row in islice(rows, self.samples)]

    def _reference_logprobs(
        self, model: LoadedModel, pairs: Sequence[Pair], policy: list[Logprobs]
    ) -> Sequence[Logprobs]:
        """The reference's own: worked out once for all checkpoints, and kept."""
        source, reference = model.source, self.reference
        if source.digest == reference.digest:
            return policy
        key = {
            "what": "reference log-probabilities of held-out pairs",
            "version": _LOGPROBS_VERSION,
            "reference": reference.digest,
            "rows": self.digest,
            "samples": self.samples,
            "dtype": source.dtype,
            "attention": source.attention,
        }

        def make(target: Path) -> None:
            target.write_bytes(canonical_json(self._measured_logprobs(model, pairs)))

        with workplace(self.content.blobs.scratch(), "logprobs") as place:
            path = DerivedStore(self.content)(key, make, place / "logprobs.json")
            return [(chosen, rejected) for chosen, rejected in json.loads(path.read_bytes())]

    def _measured_logprobs(self, model: LoadedModel, pairs: Sequence[Pair]) -> list[Logprobs]:
        source, reference = model.source, self.reference
        if source.adapter is not None and source.folder == reference.folder:
            # The model that is evaluated lies on the reference: no second one needs room.
            with model.model.disable_adapter():
                return self._logprobs(model.model, pairs)
        assert reference.folder is not None
        loaded = load_model(replace(source, folder=reference.folder, adapter=None, digest=reference.digest))
        return self._logprobs(loaded, pairs)

    def _logprobs(self, model: Any, pairs: Sequence[Pair]) -> list[Logprobs]:
        found: list[Logprobs] = []
        for start in range(0, len(pairs), self.batch_size):
            rows = [row for pair in pairs[start : start + self.batch_size] for row in _rows(pair)]
            sums = [-total for total, _ in row_losses(model, rows, self.pad_token_id)]
            for chosen, rejected in zip(sums[::2], sums[1::2], strict=True):
                for side, value in (("chosen", chosen), ("rejected", rejected)):
                    if not math.isfinite(value):
                        raise not_finite(self.name, f"the {side} log-probability of row {len(found)}", value)
                found.append((chosen, rejected))
        return found

    def _measures(self, found: Sequence[Mapping[str, float]]) -> dict[str, Measure]:
        """Over what the formula gives for each pair."""
        right, n = sum(pair["accuracy"] > 0 for pair in found), len(found)
        measures = {f"{self.name}/accuracy": Measure(right / n, n, *wilson_interval(right, n))}
        for metric in ("loss", "margin", "chosen_reward", "rejected_reward"):
            values = [pair[metric] for pair in found]
            measures[f"{self.name}/{metric}"] = Measure(math.fsum(values) / n, n, *mean_interval(values))
        return measures

    def _shown(
        self, model: LoadedModel, pairs: Sequence[Pair], found: Sequence[Mapping[str, float]]
    ) -> list[dict[str, Any]]:
        """A few pairs: the chosen answer is what is expected, and what the model makes of the pair is its margin."""
        decode = model.tokenizer.decode
        return [
            {
                "evaluation": self.name,
                "where": pair.where,
                "prompt": decode(pair.prompt_ids),
                "expected": decode(pair.chosen_ids),
                "rejected": decode(pair.rejected_ids),
                "answer": f"margin {of_pair['margin']:+.4g}",
                "score": of_pair["margin"],
            }
            for pair, of_pair in zip(pairs[:SAMPLES], found[:SAMPLES], strict=True)
        ]


def _rows(pair: Pair) -> Iterator[tuple[list[int], list[int]]]:
    """Both answers after the prompt, as rows of which the answer is learned."""
    for answer in (pair.chosen_ids, pair.rejected_ids):
        yield pair.prompt_ids + answer, [-100] * len(pair.prompt_ids) + answer
