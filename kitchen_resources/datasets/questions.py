"""The question and the answer in a row, for evaluations that let the model answer."""

from typing import Any

from kitchen_resources.datasets.port import Example


def question_of(example: Example, renderer: Any) -> tuple[list[int], str | None]:
    """What to give the model of a row, and what it should answer; None where there is no answer to compare."""
    if example.shape == "messages":
        *asked, last = example.messages
        if asked and last.get("role") == "assistant" and isinstance(last.get("content"), str):
            return renderer.generation_prompt(asked, tools=list(example.tools) or None), last["content"]
    if example.shape == "prompt_completion":
        return renderer.raw_prompt(example.prompt), example.completion
    return [], None
