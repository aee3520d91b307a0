"""Random conversations in every template, against an oracle that knows nothing of the renderer.

The oracle renders with `apply_chat_template`, finds an answer's start by its generation prompt, finds where a
content lies by putting another one in its place, and has a table, made by hand, of what ends a turn.
"""

import random
from datetime import datetime
from typing import Any

import pytest

from kitchen_resources.datasets.chat_template import FIXED_DATE
from kitchen_resources.datasets.rendering import Rendered, Renderer
from kitchen_resources.datasets.templating import BUILT_IN_TEMPLATES, load_template
from kitchen_resources.errors import DataError
from tests.tiny_tokenizers import (
    CHATML,
    LLAMA3,
    byte_tokenizer,
    merging_tokenizer,
    tokenizer_for,
    trl_templates,
)

TEMPLATES = trl_templates()
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseek": "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "diffusion": "<turn|>",
    "gemma4": "<turn|>",
    "gemma": "<end_of_turn>",
    "glm": "<|user|>",
    "gptoss": "<|end|>",
    "idefics": "<end_of_utterance>",
    "smolvlm": "<end_of_utterance>",
    "lfm": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "llava": "</s>",
    "muse": "<|eot|>",
    "nemotron": "<|im_end|>",
    "phi": "<|end|>",
    "qwen": "<|im_end|>",
    "chatml": "<|im_end|>",
}
NO_END_OF_QUESTIONS = ("deepseek", "glm")
PARTS = ("idefics", "smolvlm", "llava")
ONLY_LAST_ANSWERS = ("qwen3", "qwen3_5_think", "qwen3_5_nothink", "qwen3_6")
PIECES = (
    *("a", "Paris", "two words", "7", "\n", "\n\n", " ", "  ", "\t"),
    *("\u00e9", "e\u0301", "\U0001f642", "\U0001f469\u200d\U0001f469", "\u65e5\u672c\u8a9e", "\ufdfa"),
    *("<|", "|>", "im_end", "assistant\n", "user", "User:", "system", "[INST", "</"),
    *("{{ x }}", "{% if %}", "'", '"', "\\", "<b>", "&amp;"),
)


def content(dice: random.Random) -> str:
    while not (text := "".join(dice.choices(PIECES, k=dice.randint(1, 6)))).strip():
        pass
    return text


def conversation(dice: random.Random, template: str) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if dice.random() < 0.5 and template not in ("gemma", "gemma_training"):
        messages.append({"role": "system", "content": content(dice)})
    for _ in range(dice.randint(1, 4)):
        messages.append({"role": "user", "content": content(dice)})
        messages.append({"role": "assistant", "content": content(dice)})
    if dice.random() < 0.3:
        messages[-1]["content"] = messages[-2]["content"]
    return messages


class Oracle:
    def __init__(self, template: str, tokenizer: Any) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.end = next((end for name, end in ENDS.items() if template.startswith(name)), "")
        self.thinking = {"enable_thinking": False} if template.startswith("nemotron") else {}

    def write(self, messages: list[dict[str, Any]], **more: Any) -> str:
        given: Any = [{"role": m["role"], "content": m["content"]} for m in messages]
        if self.template.startswith(PARTS):
            given = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in given]
        source = TEMPLATES.get(self.template) or load_template(self.template, None)
        return str(self.tokenizer.apply_chat_template(given, chat_template=source, tokenize=False, **more))

    def place(self, messages: list[dict[str, Any]], index: int) -> tuple[int, int]:
        text = self.write(messages)
        other = self.write([{**m, "content": "☃☃"} if at == index else m for at, m in enumerate(messages)])
        shorter = min(len(text), len(other))
        start = next(at for at in range(shorter) if text[at] != other[at])
        behind = next(at for at in range(1, shorter) if text[-at] != other[-at]) - 1
        return start, len(text) - behind

    def span(self, messages: list[dict[str, Any]], index: int) -> tuple[int, int]:
        text = self.write(messages)
        start, end = self.place(messages, index)
        if messages[index]["role"] != "assistant":
            # A white space alone may stand between a content and the token that ends its turn.
            rest = text[end:]
            ended = len(rest) - len(rest.lstrip()) + len(self.end)
            closed = rest.lstrip().startswith(self.end) and not self.template.startswith(NO_END_OF_QUESTIONS)
            if self.template.startswith("llava") and rest.startswith(" [/INST]"):
                return start, end + len(" [/INST]")
            return start, end + ended if closed else end
        prompt = self.write(messages[:index], add_generation_prompt=True, **self.thinking)
        assert text.startswith(prompt)
        ends = [self.end, "<|return|>"] if self.template.startswith("gptoss") else [self.end]
        return len(prompt), min(text.index(token, end) + len(token) for token in ends if token in text[end:])

    def trained_text(self, messages: list[dict[str, Any]], trained: list[bool]) -> str:
        text, reached, pieces = self.write(messages), -1, []
        for index in (index for index, yes in enumerate(trained) if yes):
            start, end = self.span(messages, index)
            assert start >= reached
            if start == reached:
                pieces[-1] += text[start:end]
            else:
                pieces.append(text[start:end])
            reached = end
        return "…".join(pieces)


@pytest.fixture(autouse=True)
def fixed_date(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return FIXED_DATE

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Frozen)


def is_refused(template: str, messages: list[dict[str, Any]], trained: list[bool]) -> bool:
    answers = [at for at, yes in enumerate(trained) if yes and messages[at]["role"] == "assistant"]
    if template.startswith("deepseek") or template == "glm4moe":
        return bool(answers)
    return template in ONLY_LAST_ANSWERS and any(at < len(messages) - 1 for at in answers)


@pytest.mark.parametrize("template", [*TEMPLATES, "chatml", "llama3"])
def test_trained_text_is_the_oracles(template: str) -> None:
    built_in = template in BUILT_IN_TEMPLATES and template not in TEMPLATES
    tokenizer = byte_tokenizer((*CHATML, *LLAMA3)) if built_in else tokenizer_for(TEMPLATES[template])
    source = load_template(template, tokenizer) if built_in else TEMPLATES[template]
    used = Renderer(tokenizer, train_on="customized", template=source)
    oracle, dice = Oracle(template, tokenizer), random.Random(template)
    refused = 0
    for _ in range(12):
        messages = conversation(dice, template)
        trained = [dice.random() < 0.5 for _ in messages]
        given = [{**m, "trainable": yes} for m, yes in zip(messages, trained, strict=True)]
        if is_refused(template, messages, trained):
            refused += 1
            with pytest.raises(DataError, match=r"is written otherwise|ends with no token"):
                used.conversation(given)
            continue
        rendered = used.conversation(given)
        assert rendered.text == oracle.write(messages)
        assert tokenizer.decode(rendered.input_ids) == rendered.text
        assert rendered.trained_text(tokenizer) == oracle.trained_text(messages, trained)
    assert refused < 12


def rendered_or_none(used: Renderer, messages: list[dict[str, Any]]) -> Rendered | None:
    """None where a token crosses a border, or a content happens to hold what stands between turns."""
    try:
        return used.conversation(messages)
    except DataError as error:
        if not error.what.endswith(("which holds text of both sides", "it could forge a turn")):
            raise
        return None


@pytest.mark.parametrize("template", BUILT_IN_TEMPLATES)
@pytest.mark.parametrize("seed", range(3))
def test_with_a_merging_tokenizer_context_and_answer_are_those_of_inference(template: str, seed: int) -> None:
    dice = random.Random(seed)
    sentences = [message["content"] for _ in range(10) for message in conversation(dice, template)]
    special = (*CHATML, *LLAMA3)
    tokenizer = merging_tokenizer(
        [*sentences, "user\n", "Assistant:", "User:"], special, vocabulary=500, bos="<s>", eos="</s>"
    )
    source = load_template(template, tokenizer)
    used = Renderer(tokenizer, train_on="last_assistant_message", template=source)
    rendered_rows = 0
    for _ in range(40):
        messages = conversation(dice, template)
        rendered = rendered_or_none(used, messages)
        if rendered is None:
            continue
        rendered_rows += 1
        prompt = used.generation_prompt(messages[:-1])
        assert rendered.input_ids[: len(prompt)] == prompt
        assert rendered.weights[: len(prompt)] == [0.0] * len(prompt)
        learned = tokenizer.decode(rendered.input_ids[len(prompt) :])
        assert learned.startswith((" " if template == "role_colon" else "") + messages[-1]["content"])
        assert tokenizer.decode(rendered.input_ids) == rendered.text
    assert rendered_rows >= 5
