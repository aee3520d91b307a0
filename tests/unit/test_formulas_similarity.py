"""How alike texts are: words of many scripts, runs, signatures against the exact likeness, bands against their formula."""

import math
import random

import numpy
import pytest

from kitchen_resources.formulas.similarity import (
    BANDS,
    PERMUTATIONS,
    band,
    is_unspaced,
    jaccard,
    plain,
    runs,
    signature,
    words,
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", []),
        ("?! … 🙂", []),
        ("What's 12+7, Ada?", ["what", "s", "12", "7", "ada"]),
        ("snake_case STRASSE straße", ["snake", "case", "strasse", "strasse"]),
        ("\ufb01ne \uff21\uff42\uff43", ["fine", "abc"]),
        ("e\u0301te\u0301 \u00e9t\u00e9", ["été", "été"]),
        ("東京は大きい city", ["東", "京", "は", "大", "き", "い", "city"]),
        ("city東京", ["city", "東", "京"]),
        # Hindi: vowel signs are part of a word. Thai: a letter with its marks.
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u0940",
            ["\u0939\u093f\u0928\u094d\u0926\u0940", "\u0915\u0940"],
        ),
        ("\u0e17\u0e35\u0e48", ["\u0e17\u0e35\u0e48"]),
    ],
)
def test_words_are_those_that_a_reader_would_compare(text: str, found: list[str]) -> None:
    assert words(text) == found


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 12 + 7?", "what is  12 + 7", True),
        ("What is 12 + 7?", "What is 12 - 7?", False),
        ("What is C#?", "What is C++?", False),
        ("\u0915\u0940", "\u0915\u093e", False),
        ("Caf\u00e9!", "Cafe\u0301", True),
        ("東京は。", "東京は", True),
    ],
)
def test_plain_texts_keep_their_signs(one: str, other: str, same: bool) -> None:
    assert (plain(one) == plain(other)) == same


def test_a_text_is_unspaced_by_most_of_its_words() -> None:
    assert is_unspaced(words("東京は大きい city"))
    assert not is_unspaced(words("the city of 東京 is very large"))
    assert not is_unspaced([])


def test_long_texts_are_signed_in_parts() -> None:
    shingles = runs([str(number) for number in range(10_000)], 1)
    parts = [signature(shingles[at : at + 100]) for at in range(0, 10_000, 100)]
    assert (signature(shingles) == numpy.stack(parts).min(axis=0)).all()


def test_runs_are_of_that_many_words_in_their_order() -> None:
    text = ["the", "cat", "sat", "on", "the", "mat", "the", "cat", "sat"]
    hashes = runs(text, 3)
    assert hashes.shape == (7,)
    assert hashes[0] == hashes[6]
    assert len(set(hashes.tolist())) == 6
    assert runs(["sat", "cat", "the"], 3)[0] != hashes[0]
    assert runs([], 3).shape == (0,)


def test_a_short_text_is_one_run_and_no_beginning_of_a_longer_one() -> None:
    assert runs(["the", "cat"], 5).tolist() == runs(["the", "cat"], 2).tolist()
    assert runs(["the", "cat"], 5)[0] not in runs(["the", "cat", "sat"], 5)
    assert runs(["cat"], 1).dtype == numpy.uint64


def test_hashes_are_the_same_on_every_machine() -> None:
    hashes = runs(["what", "is", "two", "plus", "two"], 3)
    assert hashes.tolist() == [8969272742438558368, 14273858624154038797, 16245974724664090935]
    assert signature(hashes)[:4].tolist() == [226304890, 2499246135, 2246500982, 281543012]


def alike(likeness: float, size: int, seed: int) -> tuple[numpy.ndarray, numpy.ndarray]:  # type: ignore[type-arg]
    """Two sets of that many members together, of which the share is in both."""
    members = numpy.random.default_rng(seed).integers(0, 2**63, size, dtype=numpy.uint64)
    both = round(likeness * size)
    half = both + (size - both) // 2
    return members[:half], numpy.concatenate([members[:both], members[half:]])


@pytest.mark.parametrize("likeness", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_signatures_estimate_the_likeness(likeness: float) -> None:
    agreed = []
    for seed in range(100):
        one, other = alike(likeness, 200, seed)
        assert jaccard(numpy.unique(one), numpy.unique(other)) == likeness
        agreed.append((signature(one) == signature(other)).mean())
    # Five standard errors of a mean over 100 pairs of 64 places.
    assert abs(numpy.mean(agreed) - likeness) <= 5 * math.sqrt(likeness * (1 - likeness) / (100 * PERMUTATIONS))


def test_a_signature_does_not_depend_on_order_and_repeats() -> None:
    shingles = runs([str(number) for number in range(50)], 5)
    shuffled = shingles.tolist() * 2
    random.Random(3).shuffle(shuffled)
    assert (signature(shingles) == signature(numpy.array(shuffled, numpy.uint64))).all()


@pytest.mark.parametrize(("likeness", "least", "most"), [(0.8, 0.99, 1.0), (0.5, 0.54, 0.74), (0.2, 0.0, 0.08)])
def test_texts_that_are_alike_share_a_band(likeness: float, least: float, most: float) -> None:
    """The bounds are five standard errors around 1 - (1 - likeness**4)**16, of 500 pairs."""
    shared = 0
    for seed in range(500):
        both = numpy.stack([signature(each) for each in alike(likeness, 200, seed)])
        shared += any(len(set(band(both, index).tolist())) == 1 for index in range(BANDS))
    assert least <= shared / 500 <= most


def test_bands_of_one_signature_differ() -> None:
    one = signature(runs(["a", "b", "c"], 2))[None]
    assert len({int(band(one, index)[0]) for index in range(BANDS)}) == BANDS


def test_nothing_is_alike_to_nothing() -> None:
    nothing = numpy.empty(0, numpy.uint64)
    assert jaccard(nothing, nothing) == jaccard(nothing, runs(["a"], 1)) == 0.0
