"""Every chat template that TRL ships, with and without generation blocks: what is trained, to the letter.

`rendering_templates.json` holds, for each conversation and group of templates, the trained text of each mode,
or the reason why it is refused. It was read line by line; a change in it is a change in what is trained.
"""

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from trl.chat_template_utils import has_generation_markers, is_chat_template_stop_token_trained

from kitchen_resources.datasets.chat_template import FIXED_DATE
from kitchen_resources.datasets.rendering import Renderer
from kitchen_resources.errors import DataError
from tests.tiny_tokenizers import tokenizer_for, trl_templates
from tests.unit.rendering_conversations import CONVERSATIONS, Messages

pytestmark = pytest.mark.full

MODES = ("last_assistant_message", "all_assistant_messages", "all_messages", "all_user_and_system_messages")
TEMPLATES = trl_templates()
EXPECTED = json.loads((Path(__file__).parent / "rendering_templates.json").read_text(encoding="utf-8"))


@cache
def renderer(template: str, train_on: str) -> Renderer:
    return Renderer(tokenizer_for(TEMPLATES[template]), train_on=train_on, template=TEMPLATES[template])


def trained(template: str, train_on: str, messages: Messages) -> str | dict[str, str]:
    used = renderer(template, train_on)
    try:
        return used.conversation(messages).trained_text(used.tokenizer)
    except DataError as error:
        return {"refused": error.what}


def expected(template: str, conversation: str) -> dict[str, Any]:
    found = [
        group["trained"]
        for group in EXPECTED
        if group["conversation"] == conversation and template in group["templates"]
    ]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_mode_trains_exactly_this_text_or_says_why_not(template: str) -> None:
    for name, messages in CONVERSATIONS.items():
        for mode in MODES:
            assert trained(template, mode, messages) == expected(template, name)[mode], (name, mode)


@pytest.mark.parametrize("template", TEMPLATES)
def test_all_tokens_trains_everything_after_the_first_token(template: str) -> None:
    used = renderer(template, "all_tokens")
    rendered = used.conversation(CONVERSATIONS["multi"])
    assert rendered.weights == [0.0] + [1.0] * (len(rendered.input_ids) - 1)
    assert used.tokenizer.decode(rendered.input_ids) == rendered.text


@pytest.mark.parametrize("template", TEMPLATES)
def test_text_and_prompt_are_those_of_apply_chat_template(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return FIXED_DATE

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Frozen)
    used = renderer(template, "all_tokens")
    source = TEMPLATES[template]
    for name in ("single", "multi", "reasoning"):
        messages = CONVERSATIONS[name]
        given: Any = messages
        if template.startswith(("llava", "smolvlm", "idefics")):
            given = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
        ask = {"chat_template": source, "tokenize": False}
        prompt = used.tokenizer.apply_chat_template(given[:-1], add_generation_prompt=True, **ask)
        assert used.prompt_text(messages[:-1]) == prompt
        assert used.tokenizer.decode(used.generation_prompt(messages[:-1])) == prompt
        if name != "reasoning":
            text = used.tokenizer.apply_chat_template(given, **ask)
            assert used.conversation(messages).text == text


def test_plain_and_training_template_train_the_same_where_they_write_the_same() -> None:
    compared = 0
    for training in (name for name in TEMPLATES if name.endswith("_training")):
        plain = training.removesuffix("_training")
        for messages in CONVERSATIONS.values():
            for mode in MODES:
                texts = []
                for template in (plain, training):
                    try:
                        rendered = renderer(template, mode).conversation(messages)
                        texts.append((rendered.text, rendered.trained_text(renderer(template, mode).tokenizer)))
                    except DataError:
                        break
                if len(texts) == 2 and texts[0][0] == texts[1][0]:
                    assert texts[0] == texts[1], (training, mode)
                    compared += 1
    assert compared == 625


@pytest.mark.parametrize("template", [name for name in TEMPLATES if has_generation_markers(TEMPLATES[name])])
def test_the_last_trained_token_of_an_answer_is_one_that_generation_stops_at(template: str) -> None:
    used = renderer(template, "last_assistant_message")
    messages = CONVERSATIONS["thinking"] if template.startswith("deepseek") else CONVERSATIONS["single"]
    if template in ("deepseekv3_training", "qwen3_8_training"):
        # Their reasoning is refused above; without it they are as the others.
        messages = [*CONVERSATIONS["tool"]]
    rendered = used.conversation(messages)
    learned = [token for token, weight in zip(rendered.input_ids, rendered.weights, strict=True) if weight]
    assert learned[-1] in used.stop_token_ids
    assert is_chat_template_stop_token_trained(used.tokenizer, TEMPLATES[template]) or template.startswith(
        ("llava", "smolvlm", "idefics")
    )


@pytest.mark.parametrize(
    ("template", "stops"),
    [
        ("qwen3", ["</s>", "<|im_end|>"]),
        ("llama3_1", ["</s>", "<|eot_id|>"]),
        ("gptoss", ["</s>", "<|call|>", "<|return|>"]),
        ("gemma4_v5", ["</s>", "<turn|>", "<|tool_response>"]),
        ("glm4moe_training", ["</s>", "<|observation|>", "<|user|>"]),
        ("cohere2", ["</s>", "<|END_OF_TURN_TOKEN|>"]),
        ("phi3", ["</s>", "<|end|>"]),
        ("llava_next", ["</s>"]),
        ("glm4moe", ["</s>"]),
    ],
)
def test_stop_tokens_are_eos_and_what_ends_a_last_turn(template: str, stops: list[str]) -> None:
    used = renderer(template, "all_messages")
    assert sorted(used.tokenizer.convert_ids_to_tokens(list(used.stop_token_ids))) == sorted(stops)
    assert used.stop_strings == ()
