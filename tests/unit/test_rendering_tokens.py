"""White space, empty and repeated contents, characters of many bytes, merged tokens, and their weights."""

from typing import Any

import pytest

from kitchen_resources.datasets.chat_template import ChatTemplate
from kitchen_resources.datasets.encoding import Encoded, Span, token_weights
from kitchen_resources.datasets.marking import mark_conversation
from kitchen_resources.datasets.templating import load_template
from kitchen_resources.errors import DataError
from tests.tiny_tokenizers import byte_tokenizer, merging_tokenizer
from tests.unit.rendering_conversations import (
    TEMPLATES,
    assistant,
    call,
    chatml,
    learned,
    reason,
    renderer,
    result,
    shipped,
    system,
    user,
)

# White space, empty and repeated contents, unicode


def test_white_space_at_the_ends_of_contents_stays_where_the_template_keeps_it() -> None:
    chat = [user("\n Q\t"), assistant(" A \n\n"), user("\n"), assistant("B")]
    assert learned(chatml("all_messages"), chat) == "\n Q\t<|im_end|>… A \n\n<|im_end|>…\n<|im_end|>…B<|im_end|>"
    used = shipped("llama3", "all_messages")
    assert learned(used, chat[:2]) == "Q<|eot_id|>…A<|eot_id|>"
    assert reason(used, chat) == (
        "message 2 (user) has no certain place: its content is not whole, once, in what the template writes"
    )
    assert learned(shipped("llama3", "last_assistant_message"), chat) == "B<|eot_id|>"


def test_white_space_that_the_template_strips_is_not_mistaken_for_the_headers() -> None:
    # The header ends with a newline, and so does the white space that is stripped.
    chat = [user("\nQ\n"), assistant("\nA\n")]
    assert learned(shipped("gemma", "all_messages"), chat) == "Q<end_of_turn>…A<end_of_turn>"
    assert learned(shipped("lfm2", "all_messages"), chat) == "\nQ\n<|im_end|>…\nA\n<|im_end|>"


def test_the_end_of_a_turn_before_a_message_without_a_place_is_not_guessed() -> None:
    chat = [user("Q"), assistant(" "), user("\n"), assistant("B")]
    assert reason(shipped("llama3", "all_messages"), chat) == (
        "message 0 (user) is followed by an empty message, so the end of its turn can't be told"
    )
    assert reason(shipped("llama3"), chat) == (
        "message 1 (assistant) is followed by no token that ends its turn: the model would never learn to stop"
    )
    assert learned(shipped("llama3"), [user("Q"), assistant(" ")]) == "<|eot_id|>"


def test_an_empty_answer_trains_its_end_token() -> None:
    chat = [user("Q"), assistant(""), user(""), assistant("B")]
    assert learned(chatml("all_messages"), chat) == "Q<|im_end|>…<|im_end|>…<|im_end|>…B<|im_end|>"
    assert learned(shipped("llama3_training"), chat) == "<|eot_id|>…B<|eot_id|>"
    assert learned(shipped("glm4moe_training"), [user("Q"), assistant("")]) == "\n<think></think><|user|>"


def test_same_contents_are_told_apart_by_their_place() -> None:
    chat = [system("user"), user("user"), assistant("user"), user("assistant"), assistant("assistant")]
    assert learned(chatml(), chat) == "user<|im_end|>…assistant<|im_end|>"
    used = chatml("customized")
    marked = [{**message, "weight": weight} for message, weight in zip(chat, (0, 1, 0, 0, 1), strict=True)]
    rendered = used.conversation(marked)
    text = used.tokenizer.decode(rendered.input_ids[: rendered.weights.index(1.0)])
    assert text == "<|im_start|>system\nuser<|im_end|>\n<|im_start|>user\n"


@pytest.mark.parametrize(
    "content",
    [
        "🙂",
        "👩‍👩‍👧",
        "e\u0301a\u0308",
        "日本語。",
        "\u202eabc",
        "a\u00a0b",
        "\U0010ffff",
        "😀\n🙃 ",
        "\ud7ff",
        "ﷺ",
    ],
)
@pytest.mark.parametrize("template", ["lfm2_training", "llama3_training", "qwen3_training", "gptoss", "phi3"])
def test_characters_of_many_bytes(template: str, content: str) -> None:
    used = shipped(template, "all_messages")
    rendered = used.conversation([user(content), assistant(content)])
    assert used.tokenizer.decode(rendered.input_ids) == rendered.text
    kept = content.strip() if template.startswith("llama3") else content
    assert rendered.trained_text(used.tokenizer).count(kept) == 2
    trained_bytes = sum(rendered.weights)
    plain = used.conversation([user("Q"), assistant("Q")])
    assert trained_bytes - sum(plain.weights) == 2 * (len(kept.encode()) - 1)


@pytest.mark.parametrize("used_plane", ["\U000f0000\U000f0001", "\U00100000 x"])
def test_private_characters_of_one_plane_are_text(used_plane: str) -> None:
    assert (
        learned(chatml("all_messages"), [user(used_plane), assistant("A")]) == f"{used_plane}<|im_end|>…A<|im_end|>"
    )


def test_private_characters_of_both_planes_are_refused() -> None:
    assert "both private planes of Unicode" in reason(chatml(), [user("\U000f0000\U00100000"), assistant("A")])


# Tokens and borders


def test_a_token_across_the_start_of_an_answer_is_refused_by_name() -> None:
    # Without word borders, "\nParis" becomes one token, which the generation prompt does not have.
    tokenizer = merging_tokenizer(["assistant\nParis"] * 4)
    used = chatml("last_assistant_message", tokenizer)
    assert reason(used, [user("Q"), assistant("Paris")]) == (
        "message 1 (assistant): its trained text begins inside the token 'assistant\\nParis', which holds "
        "text of both sides"
    )
    assert learned(used, [user("Q"), assistant("Rome")]) == "Rome<|im_end|>"
    assert learned(chatml("all_tokens", tokenizer), [user("Q"), assistant("Paris")]).endswith("Paris<|im_end|>\n")


def test_a_token_across_the_end_of_a_question_is_refused_only_where_it_is_trained() -> None:
    template = TEMPLATES["gemma3"]
    sentences = ["abc\n\nxyz"] * 4
    tokenizer = merging_tokenizer(sentences, ("<start_of_turn>", "<end_of_turn>"), bos="<s>", eos="<end_of_turn>")
    chat = [system("abc"), user("xyz"), assistant("A")]
    # The template sets "\n\n" between them, and "abc\n\nxyz" is one token.
    assert reason(renderer(template, "all_messages", tokenizer), chat) == (
        "message 0 (system): its trained text ends inside the token 'abc\\n\\nxyz', which holds text of both sides"
    )
    used = renderer(template, "last_assistant_message", tokenizer)
    assert learned(used, chat) == "A<end_of_turn>"


def encoded(*pieces: tuple[int, int]) -> Encoded:
    return Encoded("abcdef", list(range(len(pieces))), [s for s, _ in pieces], [e for _, e in pieces])


def test_a_token_in_two_spans_of_one_weight_is_trained() -> None:
    tokens = encoded((0, 1), (1, 4), (4, 6))
    spans = [Span(1, 3, 0.5, "a"), Span(3, 6, 0.5, "b")]
    assert token_weights(tokens, spans) == [0, 0.5, 0.5]
    with pytest.raises(DataError, match="a: its trained text ends inside the token 'bcd'"):
        token_weights(tokens, [Span(1, 3, 0.5, "a"), Span(3, 6, 1.0, "b")])
    assert token_weights(tokens, [Span(1, 4, 0.5, "a"), Span(4, 6, 1.0, "b")]) == [0, 0.5, 1.0]


def test_a_token_of_no_character_is_trained_inside_a_span_and_refused_at_its_start() -> None:
    tokens = encoded((0, 1), (1, 1), (1, 3), (3, 3), (3, 6))
    assert token_weights(tokens, [Span(0, 6, 1.0, "a")]) == [0, 1, 1, 1, 1]
    assert token_weights(tokens, [Span(3, 3, 1.0, "a")]) == [0] * 5
    with pytest.raises(DataError, match="a: its trained text begins inside the token ''"):
        token_weights(tokens, [Span(1, 3, 1.0, "a")])


def test_all_bytes_of_a_character_lie_on_its_side_of_a_border() -> None:
    # Four byte tokens of one character, then a token that holds its last byte and the next character.
    tokens = encoded((0, 1), (1, 2), (1, 2), (1, 2), (1, 2), (2, 3))
    assert token_weights(tokens, [Span(1, 2, 1.0, "a")]) == [0, 1, 1, 1, 1, 0]
    assert token_weights(tokens, [Span(2, 3, 1.0, "a")]) == [0, 0, 0, 0, 0, 1]
    with pytest.raises(DataError, match="begins inside the token 'bc'"):
        token_weights(encoded((0, 1), (1, 2), (1, 3), (3, 4)), [Span(2, 4, 1.0, "a")])


def test_a_block_that_follows_another_message_belongs_to_nobody() -> None:
    source = (
        "{% for m in messages %}{{ '[' + m.role + ']' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% generation %}{{ eos_token }}{% endgeneration %}"
    )
    template = ChatTemplate(source, {"eos_token": "</s>"})
    asked = mark_conversation(template, [user("Q"), assistant("A"), user("R")], None)
    assert [[asked.text[s:e] for s, e in place.marks] for place in asked.places] == [[], ["A"], []]
    answered = mark_conversation(template, [user("Q"), assistant("A")], None)
    assert [answered.text[s:e] for s, e in answered.places[1].marks] == ["A", "</s>"]


def test_a_merging_tokenizer_counts_the_tokens_of_answers() -> None:
    tokenizer = merging_tokenizer(["the cat sat on the mat"] * 4, vocabulary=300)
    used = chatml("all_assistant_messages", tokenizer)
    rendered = used.conversation([user("the cat"), assistant("the mat"), user("the cat"), assistant("on the mat")])
    alone = len(tokenizer("the mat")["input_ids"]) + len(tokenizer("on the mat")["input_ids"])
    assert alone < len("the mat" + "on the mat")
    assert sum(rendered.weights) == alone + 2


def test_templated_text_has_the_bos_tokens_that_the_template_writes_and_no_other() -> None:
    tokenizer = byte_tokenizer((), bos="<s>", eos="</s>", add_bos=True)
    used = renderer(load_template("role_colon", tokenizer) or "", "all_tokens", tokenizer)
    rendered = used.conversation([user("Q"), assistant("A")])
    assert rendered.input_ids.count(tokenizer.bos_token_id) == 1
    assert rendered.input_ids[0] == tokenizer.bos_token_id
    assert used.generation_prompt([user("Q")]).count(tokenizer.bos_token_id) == 1


def test_settings_saved_in_the_tokenizer_do_not_cut_pad_or_split() -> None:
    tokenizer = byte_tokenizer(model_max_length=8, split_special_tokens=True)
    tokenizer.backend_tokenizer.enable_truncation(max_length=4)
    tokenizer.backend_tokenizer.enable_padding(length=64)
    used = chatml("last_assistant_message", tokenizer)
    assert used.conversation([user("Q"), assistant("A")]) == chatml("last_assistant_message").conversation(
        [user("Q"), assistant("A")]
    )


def test_a_long_conversation_is_rendered_twice_and_not_once_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rendered: list[int] = []
    render = ChatTemplate.render

    def counted(self: Any, messages: Any, *args: Any, **more: Any) -> Any:
        rendered.append(len(messages))
        return render(self, messages, *args, **more)

    used = shipped("qwen3_training")
    monkeypatch.setattr(ChatTemplate, "render", counted)
    turns = [
        user("Q"),
        assistant("", reasoning_content="T", tool_calls=[call()]),
        result("R"),
        assistant("A"),
    ]
    assert learned(used, turns * 20).count("T\n</think>\n\n<tool_call>\n") == 20
    assert rendered == [80, 80]


def test_rows_do_not_influence_each_other() -> None:
    chat = [user("Q"), assistant("A"), user("R"), assistant("B")]
    other = [user("  Q\n"), assistant("", tool_calls=[call()]), result("R"), assistant("B")]
    for name in ("qwen3_training", "lfm2_2_5", "gemma4_v5", "glm4moe_training"):
        used = shipped(name, "last_assistant_message")
        first = used.conversation(chat)
        used.conversation(other)
        assert used.conversation(chat) == first == shipped(name, "last_assistant_message").conversation(chat)


def test_the_callers_messages_are_not_changed() -> None:
    chat = [user("Q", trainable=False, extra=None), assistant("A", trainable=True)]
    before = [dict(message) for message in chat]
    chatml("customized").conversation(chat)
    assert chat == before


def test_dates_in_templates_are_the_same_every_day() -> None:
    used = shipped("llama3_2", "last_assistant_message")
    assert "Today Date: 26 Jul 2024\n" in used.conversation([user("Q"), assistant("A")]).text
    assert used.describe()["template_date"] == "2024-07-26"
