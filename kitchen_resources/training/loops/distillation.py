"""Distillation: on a teacher's answers, or on the student's own ones by the reverse KL to the teacher."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future

from kitchen_resources.formulas.seeds import derived_seed
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.training.loops import supervised
from kitchen_resources.training.loops.data import completion, per_token
from kitchen_resources.training.loops.frame import Batch, Epoch, StepDone, optim_step, step_done
from kitchen_resources.training.loops.sampling import Sampler
from kitchen_resources.training.loops.stages import batch_stages
from kitchen_resources.training.port import Datum, ForwardBackwardResult, ModelInput, SampledSequence, TrainingClient

ALGORITHM_VERSION = 2
"""Raised by hand when this loop's arithmetic changes."""

_TRANSCRIBED = 64
"""Answers of an epoch that are kept beside its checkpoint."""


def train(epoch: Epoch) -> Iterator[StepDone]:
    """Train an epoch, one optimiser step at a time."""
    recipe = epoch.recipe
    assert isinstance(recipe, DistillationRecipe)
    # The teacher's answers are the rows already.
    return _on_policy(epoch, recipe) if recipe.mode == "on_policy" else supervised.train(epoch)


def _on_policy(epoch: Epoch, recipe: DistillationRecipe) -> Iterator[StepDone]:
    """Every token that the student wrote has as its advantage how much likelier the teacher finds it than others."""
    from kitchen_resources.datasets.renderers import renderer_of

    gradients_of, move = batch_stages(recipe.definition.batch_stages, forward_backward, optim_step)
    teacher = _teacher(epoch)
    decode = renderer_of(epoch.job.base, epoch.job.data.extra.get("template")).tokenizer.decode
    room = max(1, _TRANSCRIBED // epoch.plan.steps_per_epoch)
    for batch in epoch.batches:
        sampler = Sampler(
            epoch.client,
            max_tokens=recipe.max_tokens,
            temperature=recipe.temperature,
            stop=epoch.job.data.stop_token_ids,
            seed=derived_seed(recipe.seed, batch.step),
        )
        prompts = [list(row["prompt_ids"]) for row in batch.rows]
        answers = sampler.sequences(prompts)
        asked = [
            teacher.compute_logprobs(ModelInput([*prompt, *answer.tokens]))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        likelier = [
            [
                (wanted or 0.0) - ours
                for wanted, ours in zip(future.result()[len(prompt) :], answer.logprobs, strict=True)
            ]
            for prompt, answer, future in zip(prompts, answers, asked, strict=True)
        ]
        tokens = sum(map(len, likelier))
        divergence = -sum(map(sum, likelier))
        # Less their mean: that moves no gradient in expectation, and takes away most of its noise.
        mean = -divergence / max(1, tokens)
        data = [
            _datum(prompt, answer, [value - mean for value in values])
            for prompt, answer, values in zip(prompts, answers, likelier, strict=True)
        ]
        gradients = gradients_of(epoch, batch, data)
        moved = move(epoch, batch)
        lines = [
            {"epoch": epoch.number, "row": row["row_id"], "prompt": decode(prompt), "answer": decode(answer.tokens)}
            for row, prompt, answer in list(zip(batch.rows, prompts, answers, strict=True))[:room]
        ]
        extra = {"reverse_kl": divergence / max(1, tokens)}
        yield step_done(batch, gradients.result(), moved.result(), tokens=tokens, extra=extra, lines=lines)


def forward_backward(epoch: Epoch, batch: Batch, data: Sequence[Datum]) -> "Future[ForwardBackwardResult]":
    """Submit the gradients of the student's answers, each token by its advantage."""
    return epoch.client.forward_backward(per_token(data, "advantages"), "importance_sampling")


def _datum(prompt: Sequence[int], answer: SampledSequence, advantages: Sequence[float]) -> Datum:
    """An answer of the student's, each token with its advantage."""
    before = [0.0] * (len(prompt) - 1)
    datum = completion(prompt, answer.tokens)
    given = {"logprobs": [*before, *answer.logprobs], "advantages": [*before, *advantages]}
    return Datum(datum.model_input, {**datum.loss_fn_inputs, **given})


def _teacher(epoch: Epoch) -> TrainingClient:
    if "teacher" not in epoch.lives:
        epoch.lives["teacher"] = epoch.clients.frozen("teacher")
    client: TrainingClient = epoch.lives["teacher"]
    return client
