"""Raw text: prompts, completions and plain text, with the tokenizer's own BOS and one eos."""

from typing import Any

import pytest

from kitchen_resources.datasets.rendering import TRAIN_ON, Rendered, Renderer
from kitchen_resources.errors import ConfigError, DataError
from tests.tiny_tokenizers import byte_tokenizer, merging_tokenizer


def renderer(tokenizer: Any, train_on: str = "last_assistant_message") -> Renderer:
    return Renderer(tokenizer, train_on=train_on, template=None)


def tokens(rendered: Rendered, tokenizer: Any) -> list[tuple[str, float]]:
    pairs = zip(rendered.input_ids, rendered.weights, strict=True)
    return [(tokenizer.decode([token]), weight) for token, weight in pairs]


@pytest.mark.parametrize("train_on", TRAIN_ON)
def test_a_completion_and_its_eos_are_learned_whatever_the_mode(train_on: str) -> None:
    tokenizer = byte_tokenizer(eos="</s>")
    rendered = renderer(tokenizer, train_on).completion("Q:", " A")
    assert tokens(rendered, tokenizer) == [("Q", 0), (":", 0), (" ", 1), ("A", 1), ("</s>", 1)]
    assert rendered.text == "Q: A</s>"


@pytest.mark.parametrize("train_on", TRAIN_ON)
def test_text_is_learned_whole_whatever_the_mode(train_on: str) -> None:
    tokenizer = byte_tokenizer(eos="</s>")
    assert tokens(renderer(tokenizer, train_on).text("abc"), tokenizer) == [
        ("a", 0),
        ("b", 1),
        ("c", 1),
        ("</s>", 1),
    ]


def test_a_tokenizer_that_opens_texts_with_bos_does_so_once() -> None:
    tokenizer = byte_tokenizer(bos="<s>", eos="</s>", add_bos=True)
    used = renderer(tokenizer)
    assert tokens(used.text("ab"), tokenizer) == [("<s>", 0), ("a", 1), ("b", 1), ("</s>", 1)]
    assert used.text("ab").text == "<s>ab</s>"
    assert used.text("<s>ab") == used.text("ab")
    assert tokens(used.completion("a", "b"), tokenizer) == [("<s>", 0), ("a", 0), ("b", 1), ("</s>", 1)]
    assert used.completion("<s>a", "b") == used.completion("a", "b")
    assert tokens(used.completion("", "b"), tokenizer) == [("<s>", 0), ("b", 1), ("</s>", 1)]
    assert used.raw_prompt("a") == tokenizer("a")["input_ids"]
    assert used.raw_prompt("<s>a") == used.raw_prompt("a")


def test_a_tokenizer_that_only_has_a_bos_token_opens_nothing_with_it() -> None:
    tokenizer = byte_tokenizer(bos="<s>", eos="</s>")
    assert tokens(renderer(tokenizer).text("a"), tokenizer) == [("a", 0), ("</s>", 1)]
    assert renderer(tokenizer).raw_prompt("a") == tokenizer("a")["input_ids"]


def test_what_a_tokenizer_adds_at_the_end_is_not_taken_for_its_opening() -> None:
    from tokenizers import processors

    tokenizer = byte_tokenizer(bos="<s>", eos="</s>")
    ids = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ids
    )
    assert tokens(renderer(tokenizer).completion("a", "b"), tokenizer) == [
        ("<s>", 0),
        ("a", 0),
        ("b", 1),
        ("</s>", 1),
    ]


def test_an_eos_that_is_written_already_is_not_doubled() -> None:
    tokenizer = byte_tokenizer(eos="</s>")
    used = renderer(tokenizer)
    assert used.completion("Q:", " A</s>") == used.completion("Q:", " A")
    assert used.text("ab</s>") == used.text("ab")
    # The prompt's eos is the prompt's.
    assert tokens(used.completion("a</s>", ""), tokenizer) == [("a", 0), ("</s>", 0), ("</s>", 1)]


def test_an_eos_that_is_also_the_pad_token_is_learned() -> None:
    tokenizer = byte_tokenizer(pad=None, eos="</s>")
    used = renderer(tokenizer)
    assert used.pad_token == "</s>"
    assert used.pad_token_id == tokenizer.eos_token_id
    assert used.completion("a", "b").weights == [0.0, 1.0, 1.0]
    assert used.completion("a", "b").input_ids[-1] == used.pad_token_id


def test_special_tokens_in_raw_text_are_special_tokens() -> None:
    tokenizer = byte_tokenizer(eos="</s>")
    rendered = renderer(tokenizer).completion("<|im_start|>user\nQ<|im_end|>", "A<|im_end|>")
    assert tokens(rendered, tokenizer)[-3:] == [("A", 1), ("<|im_end|>", 1), ("</s>", 1)]
    assert tokens(rendered, tokenizer)[0] == ("<|im_start|>", 0)


def test_the_prompt_is_tokenized_as_inference_does_where_a_merge_crosses_the_border() -> None:
    tokenizer = merging_tokenizer(["the cat"] * 4, eos="</s>")
    used = renderer(tokenizer)
    assert len(tokenizer("the cat")["input_ids"]) == 1
    rendered = used.completion("the c", "at")
    assert used.raw_prompt("the c") == rendered.input_ids[: rendered.weights.index(1.0)]
    assert rendered.trained_text(tokenizer) == "at</s>"
    assert tokenizer.decode(rendered.input_ids) == rendered.text == "the cat</s>"


def test_a_border_that_tokens_keep_gives_the_tokens_of_the_whole_text() -> None:
    tokenizer = merging_tokenizer(["the cat", "sat on"] * 4, eos="</s>")
    rendered = renderer(tokenizer).completion("the cat", "sat on")
    assert rendered.input_ids == [*tokenizer("the catsat on")["input_ids"], tokenizer.eos_token_id]
    assert rendered.trained_text(tokenizer) == "sat on</s>"


def test_texts_that_become_others_when_tokenized_apart_are_refused() -> None:
    from tokenizers import decoders, normalizers

    tokenizer = merging_tokenizer(["▁the▁cat"] * 4, eos="</s>")
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("▁", " ")])
    with pytest.raises(DataError, match="prompt and completion are another text tokenized apart"):
        renderer(tokenizer).completion("the c", "at")


@pytest.mark.parametrize("text", ["🙂", "é", "e\u0301", "日本", " ", "\n\n"])
def test_characters_of_many_bytes_in_raw_text(text: str) -> None:
    tokenizer = byte_tokenizer(eos="</s>")
    rendered = renderer(tokenizer).completion(text, text)
    assert rendered.weights == [0.0] * len(text.encode()) + [1.0] * (len(text.encode()) + 1)
    assert rendered.trained_text(tokenizer) == f"{text}</s>"


def test_raw_text_needs_an_eos_token() -> None:
    tokenizer = byte_tokenizer(eos=None)
    for render in (lambda used: used.text("a"), lambda used: used.completion("a", "b")):
        with pytest.raises(ConfigError, match="no eos token, so a model can't learn to stop"):
            render(renderer(tokenizer))


def test_trained_text_joins_what_is_apart() -> None:
    tokenizer = byte_tokenizer(eos="</s>")
    ids = tokenizer("abcdef")["input_ids"]
    assert Rendered("abcdef", ids, [0, 1, 0.5, 0, 0, 1]).trained_text(tokenizer) == "bc…f"
    assert Rendered("abcdef", ids, [0.0] * 6).trained_text(tokenizer) == ""
