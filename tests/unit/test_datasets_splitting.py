"""Held-out rows: how many, which, and disjoint by content; and the keys that tell rows apart."""

import hashlib
from typing import Any

import numpy
import pytest

from kitchen_resources.datasets.port import Example
from kitchen_resources.datasets.splitting import (
    KEY_BYTES,
    as_keys,
    choose_held_out,
    content_key,
    prompt_key,
    repeated,
)
from tests.unit.dataset_rows import chat, examples_of

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
TOOL = {"function": {"name": "f"}}


def keys(*names: object) -> Any:
    return as_keys(b"".join(hashlib.sha256(repr(name).encode()).digest()[:KEY_BYTES] for name in names))


def held_out(prompts: list[Any], contents: list[Any] | None = None, *, share: float, seed: int = 0) -> list[int]:
    chosen = choose_held_out(keys(*prompts), keys(*(contents or range(len(prompts)))), share=share, seed=seed)
    assert chosen.shape == (len(prompts),)
    return [int(index) for index in numpy.flatnonzero(chosen)]


# How many


@pytest.mark.parametrize(
    ("rows", "share", "count"),
    [
        (1000, 0.1, 100),
        (1000, 0.999, 999),
        (1000, 0.0001, 1),
        (1000, 0.0, 0),
        (7, 0.5, 4),
        (5, 0.5, 2),
        (10, 0.99, 9),
        (2, 0.01, 1),
        (2, 0.99, 1),
        (1, 0.5, 0),
        (0, 0.5, 0),
    ],
)
def test_as_many_rows_as_the_share_says(rows: int, share: float, count: int) -> None:
    assert len(held_out(list(range(rows)), share=share)) == count


@pytest.mark.parametrize("seed", range(20))
def test_rows_of_one_prompt_stay_together_within_the_share(seed: int) -> None:
    prompts = [index // 3 for index in range(300)]
    chosen = held_out(prompts, share=0.1, seed=seed)
    assert len(chosen) == 30
    assert {prompts[index] for index in chosen}.isdisjoint(prompts[i] for i in range(300) if i not in chosen)


@pytest.mark.parametrize("seed", range(20))
def test_a_prompt_that_most_rows_share_is_not_held_out(seed: int) -> None:
    prompts = [*["hello"] * 900, *range(100)]
    chosen = held_out(prompts, share=0.1, seed=seed)
    assert chosen == list(range(900, 1000))
    assert len(held_out(prompts, share=0.05, seed=seed)) == 50
    assert min(held_out(prompts, share=0.05, seed=seed)) >= 900


@pytest.mark.parametrize("seed", range(20))
def test_where_no_prompt_fits_the_rarest_is_held_out(seed: int) -> None:
    assert held_out(["a", "b", "a", "b", "b"], share=0.2, seed=seed) == [0, 2]


# Which


def test_the_rows_of_a_seed_stay_what_they_are() -> None:
    assert held_out(list(range(20)), share=0.2, seed=0) == [7, 11, 13, 15]
    assert held_out(list(range(20)), share=0.2, seed=1) == [2, 12, 17, 19]


def test_which_rows_depends_on_prompts_and_seed_alone() -> None:
    prompts = [f"p{index}" for index in range(100)]
    chosen = {prompts[index] for index in held_out(prompts, share=0.2, seed=3)}
    turned = list(reversed(prompts))
    assert {turned[index] for index in held_out(turned, ["x"] * 100, share=0.2, seed=3)} == chosen
    others = [frozenset(held_out(prompts, share=0.2, seed=seed)) for seed in range(10)]
    assert len(set(others)) == 10


@pytest.mark.parametrize("seed", range(10))
def test_a_larger_share_or_more_rows_keep_the_split(seed: int) -> None:
    prompts = list(range(200))
    few, many = (set(held_out(prompts, share=share, seed=seed)) for share in (0.1, 0.3))
    assert few < many
    grown = set(held_out([*prompts, *range(1000, 1050)], share=0.1, seed=seed))
    assert len(grown) == 25
    # Rows that were added push others out of the split or pull them in, as many as it takes and no more.
    old = grown & set(prompts)
    assert old <= few or few <= old


def test_every_row_is_held_out_by_some_seed() -> None:
    times = numpy.zeros(50)
    for seed in range(400):
        times[held_out(list(range(50)), share=0.2, seed=seed)] += 1
    # 80 expected, standard deviation 8.
    assert times.min() > 45
    assert times.max() < 115


# One prompt for all


def test_rows_of_one_prompt_are_told_apart_by_their_content() -> None:
    contents = ["a", "b", "a", "c", "d", "e", "f", "g", "h", "i"]
    for seed in range(10):
        chosen = held_out(["write a joke"] * 10, contents, share=0.3, seed=seed)
        assert len(chosen) == 3
        assert (0 in chosen) == (2 in chosen)


def test_rows_that_are_all_the_same_are_not_split() -> None:
    assert held_out(["a"] * 10, ["b"] * 10, share=0.5) == []


# Keys


def test_the_prompt_is_what_comes_before_the_last_answer() -> None:
    base = examples_of({"messages": [Q, A, {"role": "user", "content": "R"}, A]})[0]
    same: list[list[Any]] = [[Q, A, {"role": "user", "content": "R"}, {"role": "assistant", "content": "other"}]]
    same.append([*same[0][:3], A, {"role": "user", "content": "thanks"}])
    other: list[list[Any]] = [[Q, A], [A, Q, A], [Q, {"role": "assistant", "content": "x"}, *same[0][2:]], [Q]]
    assert {prompt_key(examples_of({"messages": messages})[0]) for messages in same} == {prompt_key(base)}
    for messages in other:
        assert prompt_key(examples_of({"messages": messages})[0]) != prompt_key(base)
    assert prompt_key(examples_of({"messages": list(base.messages), "tools": [TOOL]})[0]) != prompt_key(base)


def test_a_conversation_without_an_answer_is_its_own_prompt() -> None:
    rows = [{"messages": [Q, Q]}, {"messages": [Q]}, {"messages": [Q, A]}]
    found = [prompt_key(example) for example in examples_of(*rows)]
    assert found[1] == found[2] != found[0]


def test_prompts_of_raw_text() -> None:
    pairs = examples_of({"prompt": "Q", "completion": "A"}, {"prompt": "Q", "completion": "B"}, conversational=False)
    assert prompt_key(pairs[0]) == prompt_key(pairs[1])
    assert prompt_key(Example(0, "", "prompt_completion", prompt="R")) != prompt_key(pairs[0])
    texts = examples_of({"text": "Q"}, {"text": "Q"}, {"text": "R"})
    assert prompt_key(texts[0]) == prompt_key(texts[1]) != prompt_key(texts[2])
    assert len({prompt_key(texts[0]), prompt_key(pairs[0]), prompt_key(examples_of({"messages": [Q]})[0])}) == 3


def test_the_content_is_all_that_a_row_holds_and_not_its_place() -> None:
    one = Example(1, "a", "messages", messages=(Q, A), tools=(TOOL,))
    turned = {"content": "A", "role": "assistant"}
    assert content_key(one) == content_key(Example(2, "b", "messages", messages=(Q, turned), tools=(TOOL,)))
    others = [
        Example(1, "a", "messages", messages=(A, Q), tools=(TOOL,)),
        Example(1, "a", "messages", messages=(Q, A)),
        Example(1, "a", "messages", messages=(Q, {**A, "name": "x"}), tools=(TOOL,)),
        Example(1, "a", "prompt_completion", prompt="QA"),
        Example(1, "a", "prompt_completion", completion="QA"),
        Example(1, "a", "prompt_completion", prompt="Q", completion="A"),
        Example(1, "a", "text", text="QA"),
    ]
    assert len({content_key(one), *map(content_key, others)}) == 8


def test_keys_have_their_bytes_whatever_the_text() -> None:
    (example,) = examples_of(chat("größe \u2028 \U0001f600", "\0"))
    assert (len(content_key(example)), len(prompt_key(example))) == (KEY_BYTES, KEY_BYTES)


def test_repeated_rows_are_those_after_the_first() -> None:
    assert repeated(keys("a", "b", "a", "c", "b", "a")).tolist() == [False, False, True, False, True, True]
    assert repeated(keys("a", "b")).tolist() == [False, False]
    assert repeated(as_keys(b"")).tolist() == []


def test_keys_that_end_with_zeros_are_told_apart() -> None:
    zeros = as_keys(b"a" + b"\0" * 15 + b"a" + b"\0" * 14 + b"b" + b"a" + b"\0" * 15)
    assert repeated(zeros).tolist() == [False, False, True]
    assert choose_held_out(zeros, zeros, share=0.5, seed=0).tolist() in ([False, True, False], [True, False, True])
