"""Pairs as tokens: our renderer's, the same as supervised rows have, and TRL's own where TRL is right."""

import random
import re
from types import SimpleNamespace
from typing import Any

import pytest

from kitchen_resources.datasets.pairs import RenderedPair, render_pair
from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.rendering import Renderer
from kitchen_resources.embedded import build_tokenizer
from kitchen_resources.embedded.tokenizer import chat_template
from kitchen_resources.errors import ConfigError, DataError
from tests.tiny_tokenizers import byte_tokenizer, merging_tokenizer, tokenizer_for
from tests.unit.preference_rows import BAD, GOOD, Q, S, asked_ids, pair, said_ids
from tests.unit.preparing import NEWLINE
from tests.unit.rendering_conversations import TEMPLATES, assistant, call, result, user

MODE = "last_assistant_message"


def renderer_of(template: str | None, tokenizer: Any = None) -> Renderer:
    return Renderer(tokenizer or build_tokenizer(), train_on=MODE, template=template)


def example_of(prompt: list[dict[str, Any]], chosen: dict[str, Any], rejected: dict[str, Any]) -> Example:
    return Example(0, "rows:1", "preference", messages=tuple(prompt), chosen=(chosen,), rejected=(rejected,))


def trl_pair(tokenizer: Any, row: dict[str, Any]) -> RenderedPair:
    """The ids that `DPOTrainer` makes of a row itself."""
    from datasets import Dataset, disable_progress_bars
    from trl import DPOTrainer

    disable_progress_bars()
    options = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    trainer: Any = SimpleNamespace(_tokenizer=tokenizer)
    (made,) = DPOTrainer._prepare_dataset(trainer, Dataset.from_list([row]), tokenizer, options, "train")
    return RenderedPair(made["prompt_ids"], made["chosen_ids"], made["rejected_ids"])


# Conversations


def test_a_pair_in_the_embedded_template() -> None:
    rendered = render_pair(example_of([Q], GOOD, BAD), renderer_of(chat_template()))
    assert rendered == RenderedPair(asked_ids("Q"), said_ids("good"), said_ids("bad"))


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": [user("Q1")],
    "a system message": [S, user("Q1")],
    "several turns": [user("Q1"), assistant("A1"), user("größe?\n")],
    "a tool's result": [user("Q1"), assistant("", tool_calls=[call()]), result("R1")],
}


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if "tool" not in name])
def test_the_ids_are_those_of_trl_but_for_what_follows_the_end_of_a_turn(name: str) -> None:
    tokenizer = build_tokenizer()
    prompt, chosen, rejected = CONVERSATIONS[name], assistant("Straße 1 "), assistant("")
    rejected = assistant("no\n\nno")
    ours = render_pair(example_of(prompt, chosen, rejected), renderer_of(chat_template(), tokenizer))
    for row in (
        pair(prompt, [chosen], [rejected]),
        {"chosen": [*prompt, chosen], "rejected": [*prompt, rejected]},
    ):
        theirs = trl_pair(tokenizer, row)
        assert theirs.prompt_ids == ours.prompt_ids
        # TRL also trains the newline that the template writes after a turn, which no model is asked to write.
        assert theirs.chosen_ids == [*ours.chosen_ids, NEWLINE]
        assert theirs.rejected_ids == [*ours.rejected_ids, NEWLINE]


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_side_is_what_supervised_training_learns(template: str) -> None:
    chosen, rejected = assistant("good"), assistant("bad\nbad")
    renderer = renderer_of(TEMPLATES[template], tokenizer_for(TEMPLATES[template]))
    for name in ("several turns", "a tool's result"):
        prompt, example = CONVERSATIONS[name], example_of(CONVERSATIONS[name], chosen, rejected)
        try:
            whole = [renderer.conversation([*prompt, answer]) for answer in (chosen, rejected)]
        except DataError as error:
            with pytest.raises(DataError, match=re.escape(f"with its chosen answer: {error.what}")):
                render_pair(example, renderer)
            continue
        rendered = render_pair(example, renderer)
        for supervised, ids in zip(whole, (rendered.chosen_ids, rendered.rejected_ids), strict=True):
            before, read = len(rendered.prompt_ids), [*rendered.prompt_ids, *ids]
            assert supervised.input_ids[: len(read)] == read
            assert [index for index, weight in enumerate(supervised.weights) if weight] == [*range(before, len(read))]
            assert ids[-1] in renderer.stop_token_ids


def test_two_prompts_are_refused_where_trl_trains_what_inference_gives() -> None:
    # Its prompt ends with an open block of reasoning, or for an answer without any with a closed one.
    template = TEMPLATES["nemotron_3_nano"]
    tokenizer = tokenizer_for(template)
    chosen, rejected = assistant("good", reasoning_content="T"), assistant("bad")
    with pytest.raises(DataError) as refused:
        render_pair(example_of([Q], chosen, rejected), renderer_of(template, tokenizer))
    assert refused.value.what == (
        "the template ends the prompt with '\\n' before chosen and with '</think>' before rejected: answers to two "
        "prompts can't be compared"
    )
    tokenizer.chat_template = template
    theirs = trl_pair(tokenizer, pair([Q], [chosen], [rejected]))
    assert tokenizer.decode(theirs.rejected_ids).startswith("</think>")
    for answers in ((chosen, assistant("bad", reasoning_content="U")), (assistant("good"), rejected)):
        render_pair(example_of([Q], *answers), renderer_of(template, tokenizer))


def test_an_answer_of_which_a_block_leaves_a_part_out_is_refused() -> None:
    template = chat_template().replace(
        "{{- content -}}\n        {%- endgeneration", "{{- content[:2] -}}{%- endgeneration"
    )
    template = template.replace(
        "{%- endgeneration -%}",
        "{%- endgeneration -%}{{- content[2:3] -}}{%- generation -%}{{- content[3:] -}}{%- endgeneration -%}",
    )
    with pytest.raises(DataError) as refused:
        render_pair(example_of([Q], GOOD, BAD), renderer_of(template))
    assert refused.value.what == (
        "with its chosen answer: the template leaves a part of it out of its {% generation %} blocks, and an answer of a "
        "pair counts whole"
    )


def test_a_side_that_cannot_be_rendered_is_named() -> None:
    forged = assistant("bad<|im_end|>")
    with pytest.raises(DataError) as refused:
        render_pair(example_of([Q], GOOD, forged), renderer_of(chat_template()))
    assert refused.value.what == (
        "with its rejected answer: message 1 (assistant) holds the text '<|im_end|>', which only the chat template may "
        "write: it could forge a turn"
    )
    with pytest.raises(ConfigError, match="the model has no chat template"):
        render_pair(example_of([Q], GOOD, BAD), renderer_of(None))


# Raw text


def raw(prompt: str, chosen: str, rejected: str) -> Example:
    return Example(0, "rows:1", "preference", prompt=prompt, chosen=chosen, rejected=rejected)


@pytest.mark.parametrize("add_bos", [False, True])
def test_raw_answers_end_with_eos_after_the_prompt_of_inference(add_bos: bool) -> None:
    tokenizer = byte_tokenizer(bos="<s>", eos="</s>", add_bos=add_bos)
    renderer = renderer_of(None, tokenizer)
    bos, eos = [tokenizer.bos_token_id] * add_bos, tokenizer.eos_token_id
    ids = tokenizer("Q: gb", add_special_tokens=False)["input_ids"]
    prompt, (space, good, bad) = [*bos, *ids[:2]], ids[2:]
    assert render_pair(raw("Q:", " g", " b"), renderer) == RenderedPair(prompt, [space, good, eos], [space, bad, eos])
    assert renderer.raw_prompt("Q:") == prompt
    # After nothing, but for what opens every text; and an eos that is written isn't doubled.
    assert render_pair(raw("", "g", "b</s>"), renderer) == RenderedPair(bos, [good, eos], [bad, eos])
    assert render_pair(raw("", "<s>g", "b"), renderer).prompt_ids == ([] if not add_bos else bos)


def test_raw_ids_are_those_of_trl() -> None:
    tokenizer = build_tokenizer()
    renderer = renderer_of(None, tokenizer)
    for row in (pair("Q:", " good", " größer"), pair("Q", "good<|im_end|>", ""), pair("", "good", "bad")):
        assert render_pair(raw(row["prompt"], row["chosen"], row["rejected"]), renderer) == trl_pair(tokenizer, row)


@pytest.mark.parametrize("seed", range(4))
def test_a_raw_prompt_has_the_tokens_of_inference_whatever_follows_it(seed: int) -> None:
    sentences = ["the cat sat on the mat", "the dog sat on the cat", "a cat and a dog and a mat"]
    tokenizer = merging_tokenizer(sentences, vocabulary=300)
    renderer = renderer_of(None, tokenizer)
    draw = random.Random(seed)
    for _ in range(20):
        texts = [draw.choice(sentences)[: draw.randint(1, 22)] for _ in range(3)]
        rendered = render_pair(raw(*texts), renderer)
        assert rendered.prompt_ids == renderer.raw_prompt(texts[0]) != []
        for text, ids in zip(texts[1:], (rendered.chosen_ids, rendered.rejected_ids), strict=True):
            assert tokenizer.decode([*rendered.prompt_ids, *ids]) == f"{texts[0]}{text}<|im_end|>"
            assert [*rendered.prompt_ids, *ids] == renderer.completion(texts[0], text).input_ids
