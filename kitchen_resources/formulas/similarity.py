"""How alike two texts are: words, runs of words, MinHash signatures and their bands.

A run of `n` words in a row is a shingle. Two texts are as alike as the share of their shingles that they have in common
(Jaccard). A MinHash signature keeps of each of many hash functions the least value over the shingles; the share of
places at which two signatures agree estimates that (Broder 1997). Cut into bands, signatures of texts that are alike
agree in one band at least, and those of others seldom do (Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, 3.4).
"""

import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import regex
import xxhash

if TYPE_CHECKING:
    import numpy

    Hashes = numpy.ndarray[tuple[int], numpy.dtype[numpy.uint64]]

# A letter of a script that is written without spaces is a word by itself, with the marks on it.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(
    rf"[[{_UNSPACED}]&&[\p{{L}}\p{{N}}]]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}]]+", regex.V1
)
_ALONE = regex.compile(rf"[{_UNSPACED}]", regex.V1)
_BLOCK = 4096
_ODD = 0x9E3779B97F4A7C15
PERMUTATIONS, BANDS = 64, 16


def words(text: str) -> list[str]:
    """The words of a text, without case, punctuation and ways to write one letter.

    Args:
        text: Any text; letters of Chinese, Japanese, Thai, Lao, Khmer and Burmese are words by themselves.
    """
    found: list[str] = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return found


def is_unspaced(found: list[str]) -> bool:
    """Whether most words of a text are single letters of a script that is written without spaces."""
    return 2 * sum(1 for word in found if _ALONE.match(word)) > len(found)


def plain(text: str) -> str:
    """A text without case, ways to write one letter, runs of white space and what ends a sentence; signs stay."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(" .!?。")


def runs(found: list[str], n: int) -> "Hashes":
    """A 64-bit hash of each run of `n` words: shape (len(found) - n + 1,), or of all words where there are fewer.

    Args:
        found: From `words`.
        n: Words in a run, at least 1.

    Returns:
        Hashes in the order of the text; none of no words.
    """
    import numpy

    if not found:
        return numpy.empty(0, dtype=numpy.uint64)
    n = min(n, len(found))
    each = numpy.fromiter(map(_word_hash, found), dtype=numpy.uint64, count=len(found))
    count = len(found) - n + 1
    total = numpy.full(count, n, dtype=numpy.uint64)
    for offset in range(n):
        # A polynomial over the words' hashes, modulo 2**64.
        total = total * numpy.uint64(_ODD) + each[offset : offset + count]
    return _mixed(total)


def signature(shingles: "Hashes") -> Any:
    """The MinHash signature of a set of shingles.

    Args:
        shingles: Hashes, shape (n,), n of at least 1; their order and repeats don't matter.

    Returns:
        uint32, shape (`PERMUTATIONS`,).
    """
    import numpy

    factors, summands = _functions()
    least = numpy.full(PERMUTATIONS, numpy.uint64(2**64 - 1))
    for at in range(0, len(shingles), _BLOCK):
        values = shingles[at : at + _BLOCK, None] * factors + summands
        least = numpy.minimum(least, values.min(axis=0))
    return (least >> numpy.uint64(32)).astype(numpy.uint32)


def band(signatures: Any, index: int) -> "Hashes":
    """A hash of one band of each signature.

    Args:
        signatures: uint32, shape (n, `PERMUTATIONS`).
        index: Which band, below `BANDS`.

    Returns:
        Hashes, shape (n,). Texts of likeness 0.8 share one of the bands with probability 0.9998, of 0.5 with 0.64, of
        0.2 with 0.03.
    """
    import numpy

    width = PERMUTATIONS // BANDS
    total = numpy.zeros(len(signatures), dtype=numpy.uint64)
    for place in range(index * width, (index + 1) * width):
        total = _mixed(total * numpy.uint64(_ODD) + signatures[:, place] + numpy.uint64(1))
    return total


def jaccard(one: "Hashes", other: "Hashes") -> float:
    """The share of shingles that two texts have in common, 0 to 1.

    Args:
        one: Its shingles, each once: shape (n,).
        other: Likewise, shape (m,).
    """
    import numpy

    shared = len(numpy.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared) if shared else 0.0


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode("utf-8", "surrogatepass"))


@lru_cache(maxsize=1)
def _functions() -> tuple[Any, Any]:
    """Factors and summands of the hash functions: multiply and shift (Dietzfelbinger et al. 1997), always the same."""
    import numpy

    numbers = [xxhash.xxh3_64_intdigest(f"minhash {index}".encode()) for index in range(2 * PERMUTATIONS)]
    drawn = numpy.array(numbers, dtype=numpy.uint64)
    return drawn[:PERMUTATIONS] | numpy.uint64(1), drawn[PERMUTATIONS:]


def _mixed(values: "Hashes") -> "Hashes":
    """Each bit of a hash into all others (the finalizer of MurmurHash3)."""
    import numpy

    values = (values ^ (values >> numpy.uint64(33))) * numpy.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> numpy.uint64(33))) * numpy.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> numpy.uint64(33))
