"""Tiny tokenizers for tests: made in milliseconds, from nothing."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

CHATML = ("<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")

_TOKEN_LIKE = re.compile(r"<\|?[A-Za-z_]+\|?>|<\|\"\|>|<\uff5c[^\uff5c]+\uff5c>|\[gMASK\]|\[/?INST\]")
# Tags that templates write as text, not as control tokens.
_TEXT = re.compile(r"</?(tools?|functions?|parameters?|arg_\w+|image|name|description|type|enum|required|SYS)>")
_ADDED_ONLY = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def byte_tokenizer(
    special: Sequence[str] = CHATML,
    *,
    added: Sequence[str] = (),
    bos: str | None = None,
    eos: str | None = "<|im_end|>",
    pad: str | None = "<|pad|>",
    add_bos: bool = False,
    **options: Any,
) -> Any:
    """A tokenizer of 256 bytes, the special tokens, and added tokens that are not special.

    Decoding gives the text back, for every text.
    """
    from tokenizers import models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={symbol: index for index, symbol in enumerate(alphabet)}, merges=[])
    return _finish(model, special, added=added, bos=bos, eos=eos, pad=pad, add_bos=add_bos, **options)


def merging_tokenizer(
    sentences: Iterable[str], special: Sequence[str] = CHATML, *, vocabulary: int = 400, **options: Any
) -> Any:
    """A byte-level BPE trained on a few sentences, without word borders: it merges across them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
        min_frequency=1,
    )
    trained.train_from_iterator(sentences, trainer)
    return _finish(trained.model, special, **options)


def _finish(
    model: Any,
    special: Sequence[str],
    *,
    added: Sequence[str] = (),
    bos: str | None = None,
    eos: str | None = "<|im_end|>",
    pad: str | None = "<|pad|>",
    add_bos: bool = False,
    **options: Any,
) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    named = [token for token in (pad, bos, eos) if token is not None]
    backend.add_special_tokens([AddedToken(token, special=True) for token in dict.fromkeys([*named, *special])])
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    if add_bos:
        pieces = [(bos, backend.token_to_id(bos))]
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=pieces)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=pad, eos_token=eos, bos_token=bos, **options)


def tokens_in(template: str) -> list[str]:
    """The control tokens that a template's source names, in order of appearance."""
    found = dict.fromkeys(match.group() for match in _TOKEN_LIKE.finditer(template))
    return [token for token in found if not _TEXT.fullmatch(token) and token not in _ADDED_ONLY]


def tokenizer_for(template: str) -> Any:
    """A byte tokenizer with the tokens that a template's source names, `<s>` as BOS and `</s>` as EOS."""
    return byte_tokenizer(tokens_in(template), added=_ADDED_ONLY, bos="<s>", eos="</s>")


def trl_templates() -> dict[str, str]:
    """The chat templates that TRL ships, by name."""
    import importlib.util

    found = importlib.util.find_spec("trl")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "chat_templates"
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
