"""A recipe's renderer: which tokenizer and template, and what identifies it."""

import json
from pathlib import Path

import pytest

from kitchen_resources.datasets.renderers import RecipeRenderer, make_renderer
from kitchen_resources.digests import digest_bytes
from kitchen_resources.embedded.tokenizer import chat_template, tokenizer_files
from kitchen_resources.errors import ConfigError
from kitchen_resources.training.base_models import resolve_base, simulated_base, tokenizer_digest
from kitchen_resources.training.port import BaseModel
from tests.unit.dataset_rows import chat
from tests.unit.preparing import END, PAD, chat_ids, recipe_of

QUESTION_AND_ANSWER = chat("Q", "A")["messages"]


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    """A base model of which there is only what makes tokens."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name, data in {**tokenizer_files(), "config.json": b"{}"}.items():
        (folder / name).write_bytes(data)
    files = {path.name: digest_bytes(path.read_bytes()) for path in folder.iterdir()}
    return BaseModel("model", folder, "digest of the weights too", files)


def renderer_of(base: BaseModel, **fields: object) -> RecipeRenderer:
    return make_renderer(recipe_of("rows", **fields), base)


def test_the_model_s_own_tokenizer_and_template(base: BaseModel) -> None:
    made = renderer_of(base)
    assert (made.template, made.own_template, made.simulated, made.conversational) == (
        chat_template(),
        True,
        False,
        True,
    )
    rendered = made.renderer.conversation(QUESTION_AND_ANSWER)
    assert rendered.input_ids == chat_ids("Q", "A")[0]
    assert made.rendering == {
        "tokenizer": tokenizer_digest(base),
        "rendering_version": 1,
        "train_on": "last_assistant_message",
        "template_digest": digest_bytes(chat_template().encode()),
        "template_date": None,
        "tokenizer_class": made.rendering["tokenizer_class"],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "stop_token_ids": [END],
        "stop_strings": [],
    }
    assert made.renderer.pad_token_id == PAD
    assert json.loads(json.dumps(made.rendering)) == made.rendering


def test_a_model_that_is_not_there_borrows_the_embedded_tokenizer(base: BaseModel) -> None:
    made = renderer_of(simulated_base("org/huge"))
    assert (made.simulated, made.rendering["tokenizer"]) == (True, "simulated")
    assert made.renderer.conversation(QUESTION_AND_ANSWER).input_ids == chat_ids("Q", "A")[0]
    assert made.rendering != renderer_of(base).rendering


def test_a_built_in_template_in_the_model_s_place(base: BaseModel) -> None:
    made = renderer_of(base, chat_template="role_colon")
    assert (made.own_template, made.conversational) == (False, True)
    assert made.template is not None
    rendered = made.renderer.conversation(QUESTION_AND_ANSWER)
    assert rendered.text != renderer_of(base).renderer.conversation(QUESTION_AND_ANSWER).text
    assert made.rendering["template_digest"] == digest_bytes(made.template.encode())


def test_no_template_for_raw_text(base: BaseModel) -> None:
    made = renderer_of(base, chat_template="none")
    assert (made.template, made.own_template, made.conversational) == (None, False, False)
    assert made.rendering["template_digest"] is None
    assert made.renderer.completion("Q", "A").input_ids == [*b"QA", END]


def test_a_model_without_a_template(base: BaseModel) -> None:
    assert base.folder is not None
    (base.folder / "chat_template.jinja").unlink()
    made = renderer_of(base)
    assert (made.template, made.own_template, made.conversational) == (None, True, False)


def test_what_is_trained_is_the_recipe_s(base: BaseModel) -> None:
    made = renderer_of(base, train_on="all_tokens")
    assert made.rendering["train_on"] == "all_tokens"
    assert sum(made.renderer.conversation(QUESTION_AND_ANSWER).weights) == len(chat_ids("Q", "A")[0]) - 1


def test_the_tokenizer_s_files_identify_it_and_the_weights_do_not(base: BaseModel) -> None:
    def identity(**files: str) -> object:
        other = BaseModel("other", base.folder, "other", {**base.files, **files})
        return renderer_of(other).rendering["tokenizer"]

    same = identity()
    weights = {"model.safetensors": "x", "config.json": "x", "generation_config.json": "x"}
    assert identity(**weights) == same == renderer_of(base).rendering["tokenizer"]
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "vocab.txt", "spiece.model"):
        assert identity(**{name: "x"}) != same


@pytest.mark.parametrize("template", ["chatmll", "missing.jinja"])
def test_an_unknown_template_is_refused(base: BaseModel, template: str) -> None:
    with pytest.raises(ConfigError, match=rf"^chat_template: .*{template}"):
        renderer_of(base, chat_template=template)


def test_the_embedded_model_is_rendered_by_its_files(tmp_path: Path) -> None:
    made = renderer_of(resolve_base("embedded:tiny", tmp_path))
    assert not made.simulated
    assert made.renderer.conversation(QUESTION_AND_ANSWER).input_ids == chat_ids("Q", "A")[0]
