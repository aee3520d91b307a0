"""The question and the answer in a row, for evaluations that let the model answer."""

from typing import Any

from kitchen_resources.datasets.port import Example


def is_asked(example: Example) -> bool:
    """Whether a row has a question, and an answer to compare with."""
    if example.shape == "messages":
        *asked, last = example.messages
        return bool(asked) and last.get("role") == "assistant" and isinstance(last.get("content"), str)
    if example.shape == "preference":
        return isinstance(example.chosen, str) or isinstance(example.chosen[-1].get("content"), str)
    return example.shape == "prompt_completion"


def question_of(example: Example, renderer: Any) -> tuple[list[int], str | None]:
    """What to give the model of a row, and what it should answer; None where there is no answer to compare.

    Of a pair the answer is the chosen one.
    """
    if not is_asked(example):
        return [], None
    if example.shape == "messages":
        *asked, last = example.messages
        return renderer.generation_prompt(asked, tools=list(example.tools) or None), last["content"]
    if example.shape == "prompt_completion":
        return renderer.raw_prompt(example.prompt), example.completion
    if isinstance(example.chosen, str):
        return renderer.raw_prompt(example.prompt), example.chosen
    prompt = renderer.generation_prompt(list(example.messages), tools=list(example.tools) or None)
    return prompt, example.chosen[-1]["content"]
