"""Sequence-level distillation: the answers of a teacher, in the place of those that the rows hold."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.questions import question_of
from kitchen_resources.numerics import preserved_numerics
from kitchen_resources.recipes.distillation import DistillationRecipe
from kitchen_resources.training.port import BaseModel, Resolution
from kitchen_resources.training.pytorch.machine import to_run_here

ANSWERS_VERSION = 1
"""Raised by hand when a teacher would answer the same questions otherwise."""

_CHUNK = 512
"""Questions at a time; their answers are made in batches of the recipe's `batch_size`."""


class ModelAnswers:
    """The answers of a model, by its own tokenizer and chat template; see `datasets.prepare.TeacherAnswers`.

    A row whose answer isn't over after `max_tokens`, or is empty, is left out with the reason: a student would learn to
    stop in the middle.

    Args:
        recipe: How it is sampled.
        teacher: The model.
        resolution: Where it runs, and in what precision.
    """

    def __init__(self, recipe: DistillationRecipe, teacher: BaseModel, resolution: Resolution) -> None:
        self._recipe = recipe
        self._teacher = teacher
        self._resolution = resolution

    def identity(self) -> dict[str, Any]:
        """See `TeacherAnswers.identity`."""
        recipe = self._recipe
        return {
            "version": ANSWERS_VERSION,
            "model": self._teacher.digest,
            "max_tokens": recipe.max_tokens,
            "temperature": recipe.temperature,
            "seed": recipe.seed if recipe.temperature else None,
            "dtype": self._dtype,
            "attention": self._resolution.values["attention"],
            "batch_size": recipe.batch_size,
        }

    def rewrite(self, examples: Iterable[Example]) -> Iterator[Example | tuple[Example, str]]:
        """See `TeacherAnswers.rewrite`."""
        import torch

        from kitchen_resources.datasets.renderers import renderer_of
        from kitchen_resources.datasets.templating import load_template, load_tokenizer

        assert self._teacher.folder is not None
        template = load_template(None, load_tokenizer(self._teacher.folder))
        renderer = renderer_of(self._teacher, template)
        dialogue, sample = renderer.dialogue(), self._sampler(renderer)
        rows = iter(examples)
        while chunk := list(islice(rows, _CHUNK)):
            questions = [
                question_of(_for_teacher(example, conversational=template is not None), renderer) for example in chunk
            ]
            with preserved_numerics():
                torch.set_num_threads(self._resolution.threads)
                answers = iter(sample([prompt for prompt, _ in questions if prompt]))
            for example, (prompt, _) in zip(chunk, questions, strict=True):
                if not prompt:
                    yield example, "it asks nothing that the teacher could answer"
                    continue
                action = dialogue.decode(next(answers))
                if not action.ended:
                    yield example, f"the teacher's answer isn't over after max_tokens {self._recipe.max_tokens}"
                elif not action.text.strip():
                    yield example, "the teacher's answer is empty"
                else:
                    yield _answered(example, action.text)

    @property
    def _dtype(self) -> str:
        return "bfloat16" if self._resolution.values["precision"] == "bf16" else "float32"

    def _sampler(self, renderer: Any) -> Any:
        import transformers
        from transformers import GenerationConfig

        from kitchen_resources.evaluation.sampling import Sampler, Sampling
        from kitchen_resources.training.pytorch.models import load_causal_lm

        transformers.utils.logging.disable_progress_bar()
        recipe = self._recipe
        device, attention = to_run_here(self._resolution)
        model = load_causal_lm(
            self._teacher.folder,  # type: ignore[arg-type]  # checked by `rewrite`
            dtype=self._dtype,
            attention=attention,
        )
        sampling = Sampling(
            temperature=recipe.temperature,
            top_p=1.0,
            top_k=0,
            max_tokens=recipe.max_tokens,
            stop_token_ids=renderer.stop_token_ids,
            pad_token_id=renderer.pad_token_id,
            batch_size=recipe.batch_size,
            seed=str(recipe.seed),
        )
        # What the teacher's own generation_config.json says isn't asked for: n-grams that may not come twice, for one.
        model.generation_config = GenerationConfig()
        return Sampler(model.to(device).eval(), sampling)


def _for_teacher(example: Example, *, conversational: bool) -> Example:
    """A row of raw text as a conversation where the teacher has a chat template."""
    if not conversational or example.shape != "prompt_completion":
        return example
    asked = {"role": "user", "content": example.prompt}
    return replace(example, shape="messages", messages=(asked, {"role": "assistant", "content": example.completion}))


def _answered(example: Example, text: str) -> Example:
    if example.shape == "prompt_completion":
        return replace(example, completion=text)
    return replace(example, messages=(*example.messages[:-1], {"role": "assistant", "content": text}))
