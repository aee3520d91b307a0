"""Choosing a chat template, and loading and preparing a tokenizer."""

from pathlib import Path
from typing import TYPE_CHECKING

from kitchen_resources.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN_TEMPLATES = ("chatml", "llama3", "role_colon")

_TEMPLATES = Path(__file__).parent / "templates"
_SUFFIXES = (".jinja", ".j2")
_CHOICES = "chat_template: chatml (or llama3, role_colon, none, or a path that ends in .jinja)"
# Tokens that vocabularies keep for padding, or for nothing; `<unk>` never occurs in byte-level or
# byte-fallback text.
_PAD_CANDIDATES = (
    "<|pad|>",
    "<pad>",
    "[PAD]",
    "<|finetune_right_pad_id|>",
    "<|padding|>",
    "<PAD>",
    "<\uff5c\u2581pad\u2581\uff5c>",
    "<unk>",
    "[UNK]",
    "<|unk|>",
)


def load_template(chat_template: str | None, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The source of the chat template that a recipe chooses.

    Args:
        chat_template: None for the tokenizer's own; "none" for none, so that only raw text can be trained;
            the name of a built-in template; or the path of a `.jinja` or `.j2` file.
        tokenizer: The model's tokenizer.

    Returns:
        Jinja source; None when there is no template.

    Raises:
        ConfigError: The name is unknown, or the file can't be read.
    """
    if chat_template is None:
        return _own_template(tokenizer)
    if chat_template == "none":
        return None
    if chat_template in BUILT_IN_TEMPLATES:
        return (_TEMPLATES / f"{chat_template}.jinja").read_text(encoding="utf-8")
    if not chat_template.endswith(_SUFFIXES):
        raise ConfigError(
            f"{chat_template!r} is neither a built-in template nor a .jinja file",
            where="chat_template",
            fix=_CHOICES,
        )
    try:
        return Path(chat_template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{chat_template} can't be read: {error}", where="chat_template", fix=_CHOICES) from error


def _own_template(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    own: str | dict[str, str] | None = tokenizer.chat_template
    if not isinstance(own, dict):
        return own or None
    if "default" not in own:
        raise ConfigError(
            f"the model has several chat templates ({', '.join(sorted(own))}) and none is the default",
            where="chat_template",
            fix="write one of them to a file: chat_template: path/to/it.jinja",
        )
    return own["default"]


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load a fast tokenizer from a local folder: no network, no code of the model's.

    Raises:
        ConfigError: The folder holds no tokenizer, or none that tells the place of its tokens in the text.
    """
    from transformers import AutoTokenizer

    fix = "model: a folder or hub id with a tokenizer.json"
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder", where="model", fix=fix)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_fast=True
        )
    # A damaged tokenizer.json fails in the Rust library with a bare Exception, so nothing narrower catches
    # it.
    except Exception as error:
        raise ConfigError(f"no tokenizer can be loaded from {folder}: {error}", where="model", fix=fix) from error
    if not tokenizer.is_fast:
        raise ConfigError(
            f"{type(tokenizer).__name__} doesn't tell where in the text its tokens are",
            where="model",
            fix=fix,
        )
    return tokenizer


def ensure_pad_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Give a tokenizer a pad token from its own vocabulary, where it has none. The vocabulary is never
    changed.

    Returns:
        The pad token: the tokenizer's own, else a token that is there for it or for nothing, else the eos
            token.

    Raises:
        ConfigError: There is neither of them.
    """
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        # With eos as pad, libraries that mask every pad id also mask the eos that a model must learn. Not
        # here: labels and weights are made token by token, and padding is added to them later, by length.
        for candidate in (*_PAD_CANDIDATES, tokenizer.eos_token):
            if candidate is not None and candidate in vocabulary:
                tokenizer.pad_token = candidate
                break
        else:
            raise ConfigError(
                "the tokenizer has no pad token, none that could be one, and no eos token",
                where="model",
                fix="set pad_token in its tokenizer_config.json",
            )
    return str(tokenizer.pad_token)
