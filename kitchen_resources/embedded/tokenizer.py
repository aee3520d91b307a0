"""The embedded model's tokenizer: one token a byte, three tokens that mark turns, and a chat template.

The files are written from literals here, and not by a library's `save_pretrained`, so that the model's
digest, and with it the identity of what was trained on it, stays the same across library versions.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

SPECIAL_TOKENS = (PAD, TURN_START, TURN_END)
"""Their ids follow the bytes: 256, 257, 258."""

VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)
PAD_ID = 256
TURN_END_ID = 258

MAX_LENGTH = 2048
"""Tokens, that is bytes, that the model takes. Rotary positions need no parameters, so it costs nothing."""

_CHAT_TEMPLATE = Path(__file__).parent.parent / "datasets" / "templates" / "chatml.jinja"


def byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary, in the order of bytes.

    A printable byte stands for itself, the others take the characters from U+0100 on. Source:
    `bytes_to_unicode` of GPT-2 (Radford et al. 2019), which the `ByteLevel` pre-tokenizer follows.
    """
    printable = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    substitutes = iter(range(256, 512))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]


def chat_template() -> str:
    """Jinja source of the chat template: the built-in `chatml`."""
    return _CHAT_TEMPLATE.read_text(encoding="utf-8")


def tokenizer_files() -> dict[str, bytes]:
    """The tokenizer as the files that `from_pretrained` reads, by name."""
    return {
        "chat_template.jinja": chat_template().encode(),
        "tokenizer.json": _json(_TOKENIZER),
        "tokenizer_config.json": _json({"tokenizer_class": "PreTrainedTokenizerFast", **_SETTINGS}),
    }


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer itself, without a folder.

    A token's id is the byte it stands for, so any text survives `decode(encode(text))`.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(json.dumps(_TOKENIZER))
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template(), **_SETTINGS)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


_SETTINGS: dict[str, Any] = {
    "pad_token": PAD,
    "eos_token": TURN_END,
    "additional_special_tokens": [TURN_START],
    "model_max_length": MAX_LENGTH,
    "clean_up_tokenization_spaces": False,
}

_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}

_TOKENIZER: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": 256 + index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in enumerate(SPECIAL_TOKENS)
    ],
    "normalizer": None,
    "pre_tokenizer": _BYTE_LEVEL,
    "post_processor": None,
    "decoder": _BYTE_LEVEL,
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {character: byte for byte, character in enumerate(byte_characters())},
        "merges": [],
    },
}
