"""Keeping rows out of training: seeded, exact in number, and disjoint by content."""

import hashlib
import json
from typing import TYPE_CHECKING

from kitchen_resources.datasets.port import Example

if TYPE_CHECKING:
    import numpy

    Keys = numpy.ndarray[tuple[int], numpy.dtype[numpy.void]]

KEY_BYTES = 16


def content_key(example: Example) -> bytes:
    """16 bytes that two rows share if and only if all their content is the same."""
    content: list[object] = [
        example.shape,
        list(example.messages),
        list(example.tools),
        example.prompt,
        example.completion,
        example.text,
    ]
    if example.shape == "preference":
        content += [example.chosen, example.rejected]
    if example.shape == "problem":
        content.append(example.problem)
    return _key(content)


def prompt_key(example: Example) -> bytes:
    """16 bytes that two rows share if and only if they ask the same: all before the last assistant's answer.

    A problem is its own prompt: a game may begin with the same words for all of them.
    Pairs of raw text without a prompt ask nothing; they share it when their answers are the same, whichever is chosen.
    """
    if example.shape == "problem":
        return _key(["problem", example.problem])
    if example.shape == "preference":
        if example.messages:
            return _key(["messages", list(example.messages), list(example.tools)])
        if example.prompt:
            return _key(["prompt", example.prompt])
        return _key(["pair", *sorted(map(str, (example.chosen, example.rejected)))])
    if example.shape == "messages":
        answers = [index for index, message in enumerate(example.messages) if message.get("role") == "assistant"]
        asked = example.messages[: answers[-1]] if answers else example.messages
        return _key(["messages", list(asked), list(example.tools)])
    if example.shape == "prompt_completion":
        return _key(["prompt", example.prompt])
    return _key(["text", example.text])


def choose_held_out(
    prompts: "Keys", contents: "Keys", *, share: float, seed: int
) -> "numpy.ndarray[tuple[int], numpy.dtype[numpy.bool_]]":
    """Which rows to hold out, so that no prompt is on both sides.

    Rows with one prompt stay together. Groups are taken in the order of a hash of seed and prompt, as far as they
    fit into the share: one large group can't empty the training set. At least one group is held out, the smallest
    where none fits, and at least one is left to train on. Where all rows share one prompt, they are told apart by
    their whole content instead.

    Args:
        prompts: `prompt_key` of each row, shape (n,).
        contents: `content_key` of each row, shape (n,).
        share: Share of rows to hold out, 0 <= share < 1.
        seed: Other seeds give other splits.

    Returns:
        True for the rows to hold out, shape (n,).
    """
    import numpy

    held_out = numpy.zeros(len(prompts), dtype=bool)
    if share <= 0 or len(prompts) < 2:
        return held_out
    groups, membership, sizes = numpy.unique(prompts, return_inverse=True, return_counts=True)
    if len(groups) == 1:
        groups, membership, sizes = numpy.unique(contents, return_inverse=True, return_counts=True)
    if len(groups) == 1:
        return held_out
    salt = f"held-out/{seed}/".encode()
    order = sorted(range(len(groups)), key=lambda index: hashlib.sha256(salt + groups[index].tobytes()).digest())
    wanted = min(round(share * len(prompts)), len(prompts) - 1)
    chosen = numpy.zeros(len(groups), dtype=bool)
    taken = 0
    for index in order:
        if taken + sizes[index] <= wanted:
            chosen[index] = True
            taken += sizes[index]
    if taken == 0:
        chosen[min(order, key=lambda index: sizes[index])] = True
    return chosen[membership.reshape(-1)]


def as_keys(keys: bytes | bytearray) -> "Keys":
    """Concatenated keys as an array of shape (n,)."""
    import numpy

    return numpy.frombuffer(bytes(keys), dtype=f"V{KEY_BYTES}")


def repeated(keys: "Keys") -> "numpy.ndarray[tuple[int], numpy.dtype[numpy.bool_]]":
    """True for every row that repeats an earlier one, shape (n,)."""
    import numpy

    _, first = numpy.unique(keys, return_index=True)
    repeats = numpy.ones(len(keys), dtype=bool)
    repeats[first] = False
    return repeats


def _key(content: list[object]) -> bytes:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]
