"""Choosing a template, loading a tokenizer, and its pad token."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kitchen_resources.datasets.rendering import Renderer
from kitchen_resources.datasets.templating import (
    BUILT_IN_TEMPLATES,
    ensure_pad_token,
    load_template,
    load_tokenizer,
)
from kitchen_resources.errors import ConfigError
from tests.tiny_tokenizers import byte_tokenizer
from tests.unit.rendering_conversations import assistant, user


def test_the_tokenizers_own_template_is_the_default() -> None:
    tokenizer = byte_tokenizer()
    assert load_template(None, tokenizer) is None
    tokenizer.chat_template = "{{ 'own' }}"
    assert load_template(None, tokenizer) == "{{ 'own' }}"
    assert load_template("none", tokenizer) is None


def test_of_several_own_templates_the_default_is_taken() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    assert load_template(None, tokenizer) == "a"
    tokenizer.chat_template = {"rag": "a", "tool_use": "b"}
    with pytest.raises(ConfigError, match=r"several chat templates \(rag, tool_use\) and none is the default"):
        load_template(None, tokenizer)


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
def test_built_in_templates_mark_what_the_model_writes(name: str) -> None:
    source = load_template(name, byte_tokenizer())
    assert source is not None
    assert "{%- generation -%}" in source


def test_a_template_file_is_read(tmp_path: Path) -> None:
    for suffix in ("jinja", "j2"):
        path = tmp_path / f"own.{suffix}"
        path.write_text("{{ 'é' }}", encoding="utf-8")
        assert load_template(str(path), byte_tokenizer()) == "{{ 'é' }}"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("chatMl", "'chatMl' is neither a built-in template nor a .jinja file"),
        ("", "'' is neither a built-in template nor a .jinja file"),
        ("{{ messages }}", "'{{ messages }}' is neither a built-in template nor a .jinja file"),
        (
            "missing.jinja",
            "missing.jinja can't be read: [Errno 2] No such file or directory: 'missing.jinja'",
        ),
    ],
)
def test_other_templates_are_refused_with_the_choices(name: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_template(name, byte_tokenizer())
    assert caught.value.what == reason
    assert caught.value.where == "chat_template"
    assert caught.value.fix == "chat_template: chatml (or llama3, role_colon, none, or a path that ends in .jinja)"


def test_a_template_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.jinja"
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="can't be read: 'utf-8' codec can't decode"):
        load_template(str(path), byte_tokenizer())


def test_a_saved_tokenizer_renders_as_before(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = load_template("chatml", tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    chat = [user("Q"), assistant("A")]
    used = Renderer(loaded, train_on="all_messages", template=load_template(None, loaded))
    before = Renderer(tokenizer, train_on="all_messages", template=tokenizer.chat_template)
    assert used.conversation(chat) == before.conversation(chat)


def test_folders_without_a_tokenizer_are_refused(tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        with pytest.raises(ConfigError, match=r"model: a folder or hub id with a tokenizer\.json"):
            load_tokenizer(folder)
    (tmp_path / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="no tokenizer can be loaded from"):
        load_tokenizer(tmp_path)


def test_code_of_the_model_is_not_run(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["auto_map"] = {"AutoTokenizer": ["own.Own", None]}
    settings["tokenizer_class"] = "Own"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    ran = tmp_path / "ran"
    (tmp_path / "own.py").write_text(f"open({str(ran)!r}, 'w')\n\nclass Own: pass\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="no tokenizer can be loaded from"):
        load_tokenizer(tmp_path)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("special", "eos", "expected"),
    [
        (("<|pad|>", "<unk>"), "</s>", "<|pad|>"),
        (("[PAD]",), "</s>", "[PAD]"),
        (("<|finetune_right_pad_id|>", "<unk>"), "</s>", "<|finetune_right_pad_id|>"),
        (("<unk>",), "</s>", "<unk>"),
        ((), "</s>", "</s>"),
    ],
)
def test_the_pad_token_is_one_that_is_there(special: tuple[str, ...], eos: str, expected: str) -> None:
    tokenizer = byte_tokenizer(special, pad=None, eos=eos)
    size = len(tokenizer)
    assert ensure_pad_token(tokenizer) == expected
    assert tokenizer.pad_token == expected
    assert len(tokenizer) == size


def test_a_pad_token_of_its_own_is_kept() -> None:
    assert ensure_pad_token(byte_tokenizer(("<pad>",), pad="<|im_end|>", eos="</s>")) == "<|im_end|>"


def test_without_anything_to_pad_with_the_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="no pad token, none that could be one, and no eos token"):
        ensure_pad_token(byte_tokenizer((), pad=None, eos=None))


def test_importing_the_renderer_imports_no_heavy_library() -> None:
    code = (
        "import sys, kitchen_resources.datasets.rendering, kitchen_resources.datasets.templating;"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'peft', 'boto3', 'matplotlib', 'jinja2'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
