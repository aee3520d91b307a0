"""The three built-in templates, token by token, in every mode."""

from typing import Any

import pytest

from kitchen_resources.datasets.rendering import TRAIN_ON, Rendered, Renderer
from kitchen_resources.datasets.templating import load_template
from kitchen_resources.errors import ConfigError, DataError
from tests.tiny_tokenizers import CHATML, LLAMA3, byte_tokenizer
from tests.unit.rendering_conversations import assistant, result, system, user

CHAT = [system("S"), user("Q"), assistant("A"), user("R"), assistant("B")]
# `a¦b¦c` below: b is trained, a and c are not.
MODES = TRAIN_ON[:-1]


def renderer(template: str, train_on: str, **options: Any) -> Renderer:
    special = {"chatml": CHATML, "llama3": LLAMA3, "role_colon": ()}[template]
    options = {"eos": "</s>", "bos": "<s>" if template == "role_colon" else None, **options}
    tokenizer = byte_tokenizer(special, **options)
    return Renderer(tokenizer, train_on=train_on, template=load_template(template, tokenizer))


def barred(rendered: Rendered, tokenizer: Any) -> str:
    """The text with a bar wherever trained and untrained tokens meet."""
    pieces: list[str] = []
    before = False
    for token, weight in zip(rendered.input_ids, rendered.weights, strict=True):
        if (weight > 0) != before:
            pieces.append("¦")
            before = weight > 0
        pieces.append(tokenizer.decode([token]))
    return "".join(pieces)


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        (
            "last_assistant_message",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n¦B<|im_end|>¦\n",
        ),
        (
            "all_assistant_messages",
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n¦A<|im_end|>¦\n"
            "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n¦B<|im_end|>¦\n",
        ),
        (
            "all_messages",
            "<|im_start|>system\n¦S<|im_end|>¦\n<|im_start|>user\n¦Q<|im_end|>¦\n<|im_start|>assistant\n¦A<|im_end|>¦\n"
            "<|im_start|>user\n¦R<|im_end|>¦\n<|im_start|>assistant\n¦B<|im_end|>¦\n",
        ),
        (
            "all_tokens",
            "<|im_start|>¦system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n",
        ),
        (
            "all_user_and_system_messages",
            "<|im_start|>system\n¦S<|im_end|>¦\n<|im_start|>user\n¦Q<|im_end|>¦\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\n¦R<|im_end|>¦\n<|im_start|>assistant\nB<|im_end|>\n",
        ),
    ],
)
def test_chatml(train_on: str, expected: str) -> None:
    used = renderer("chatml", train_on)
    assert barred(used.conversation(CHAT), used.tokenizer) == expected


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        (
            "last_assistant_message",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n¦A<|eot_id|>",
        ),
        (
            "all_messages",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n¦S<|eot_id|>¦<|start_header_id|>user"
            "<|end_header_id|>\n\n¦Q<|eot_id|>¦<|start_header_id|>assistant<|end_header_id|>\n\n¦A<|eot_id|>",
        ),
        (
            "all_tokens",
            "<|begin_of_text|>¦<|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
            "<|end_header_id|>\n\nQ<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>",
        ),
        (
            "all_user_and_system_messages",
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n¦S<|eot_id|>¦<|start_header_id|>user"
            "<|end_header_id|>\n\n¦Q<|eot_id|>¦<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>",
        ),
    ],
)
def test_llama3(train_on: str, expected: str) -> None:
    used = renderer("llama3", train_on)
    assert barred(used.conversation(CHAT[:3]), used.tokenizer) == expected


@pytest.mark.parametrize(
    ("train_on", "expected"),
    [
        ("last_assistant_message", "<s>User: Q\n\nAssistant: A\n\nUser: R\n\nAssistant:¦ B\n\nUser:"),
        ("all_assistant_messages", "<s>User: Q\n\nAssistant:¦ A\n\n¦User: R\n\nAssistant:¦ B\n\nUser:"),
        ("all_messages", "<s>User:¦ Q\n\n¦Assistant:¦ A\n\n¦User:¦ R\n\n¦Assistant:¦ B\n\nUser:"),
        ("all_tokens", "<s>¦User: Q\n\nAssistant: A\n\nUser: R\n\nAssistant: B\n\nUser:"),
        (
            "all_user_and_system_messages",
            "<s>User:¦ Q\n\n¦Assistant: A\n\nUser:¦ R\n\n¦Assistant: B\n\nUser:",
        ),
    ],
)
def test_role_colon(train_on: str, expected: str) -> None:
    used = renderer("role_colon", train_on)
    assert barred(used.conversation(CHAT[1:]), used.tokenizer) == expected


def test_role_colon_trains_the_last_nine_bytes_of_one_question_and_answer() -> None:
    used = renderer("role_colon", "last_assistant_message")
    rendered = used.conversation([user("Q"), assistant("A")])
    assert rendered.text == "<s>User: Q\n\nAssistant: A\n\nUser:"
    assert rendered.weights == [0.0] * 20 + [1.0] * 9
    assert used.tokenizer.decode(rendered.input_ids) == rendered.text


def test_role_colon_without_a_bos_token_and_with_the_user_last() -> None:
    used = renderer("role_colon", "all_messages", bos=None)
    assert barred(used.conversation([system("S"), user("Q")]), used.tokenizer) == "System:¦ S\n\n¦User:¦ Q\n\n"


def test_role_colon_is_prompted_without_the_text_that_ends_answers() -> None:
    used = renderer("role_colon", "all_messages")
    assert used.prompt_text(CHAT[1:4]) == "<s>User: Q\n\nAssistant: A\n\nUser: R\n\nAssistant:"
    assert used.stop_strings == ("\n\nUser:",)
    assert used.tokenizer.convert_ids_to_tokens(list(used.stop_token_ids)) == ["</s>"]


@pytest.mark.parametrize("template", ["chatml", "llama3", "role_colon"])
def test_the_context_of_an_answer_is_the_generation_prompt_token_by_token(template: str) -> None:
    used = renderer(template, "last_assistant_message")
    rendered = used.conversation(CHAT)
    prompt = used.generation_prompt(CHAT[:-1])
    assert rendered.input_ids[: len(prompt)] == prompt
    assert rendered.weights[: len(prompt)] == [0.0] * len(prompt)
    assert rendered.weights[len(prompt)] == 1.0


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_templates_whose_tokens_the_tokenizer_lacks_are_refused(template: str) -> None:
    tokenizer = byte_tokenizer((), eos="</s>")
    with pytest.raises(ConfigError, match="role_colon, which needs no tokens of its own") as caught:
        Renderer(tokenizer, train_on="all_messages", template=load_template(template, tokenizer))
    missing = {
        "chatml": "<|im_end|>, <|im_start|>",
        "llama3": "<|begin_of_text|>, <|end_header_id|>, <|eot_id|>, <|start_header_id|>",
    }
    assert caught.value.what == (
        f"the template writes {missing[template]}; the tokenizer lacks them and would split them"
    )


@pytest.mark.parametrize("template", ["chatml", "llama3", "role_colon"])
def test_stop_tokens_and_description(template: str) -> None:
    used = renderer(template, "all_messages")
    ends = {"chatml": ["<|im_end|>"], "llama3": ["<|eot_id|>"], "role_colon": []}[template]
    stops = used.tokenizer.convert_tokens_to_ids(["</s>", *ends])
    assert used.stop_token_ids == tuple(sorted(stops))
    described = used.describe()
    assert described["train_on"] == "all_messages"
    assert described["stop_token_ids"] == sorted(stops)
    assert described["pad_token"] == "<|pad|>"
    assert described["template_date"] is None
    assert len(described["template_digest"]) == 64


def test_customized_takes_flags_and_weights_message_by_message() -> None:
    used = renderer("chatml", "customized")
    rendered = used.conversation(
        [
            system("S", trainable=False),
            user("Q", trainable=True),
            assistant("A", weight=0.25),
            user("R", weight=0),
            assistant("B", weight=1),
        ]
    )
    pairs = zip(rendered.input_ids, rendered.weights, strict=True)
    learned = [(used.tokenizer.decode([token]), weight) for token, weight in pairs if weight]
    assert learned == [
        ("Q", 1),
        ("<|im_end|>", 1),
        ("A", 0.25),
        ("<|im_end|>", 0.25),
        ("B", 1),
        ("<|im_end|>", 1),
    ]


def test_a_conversation_of_which_nothing_is_trained_has_weights_of_zero() -> None:
    assert not any(renderer("chatml", "all_assistant_messages").conversation([user("Q")]).weights)
    assert not any(renderer("chatml", "customized").conversation([user("Q", trainable=False)]).weights)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (
            [user("Q", trainable=True), assistant("A")],
            "message 1 (assistant) carries neither `trainable` nor `weight`",
        ),
        ([user("Q", trainable=None)], "message 0 (user) carries neither `trainable` nor `weight`"),
        ([user("Q", trainable=True, weight=1)], "message 0 (user) carries both `trainable` and `weight`"),
        ([user("Q", trainable=1)], "message 0 (user) carries `trainable: 1`"),
        ([user("Q", weight=True)], "message 0 (user) carries `weight: True`"),
        ([user("Q", weight=1.5)], "message 0 (user) carries `weight: 1.5`"),
        ([user("Q", weight=float("nan"))], "message 0 (user) carries `weight: nan`"),
    ],
)
def test_customized_refuses_weights_that_it_does_not_understand(messages: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        renderer("chatml", "customized").conversation(messages)
    assert caught.value.what.startswith(reason)


@pytest.mark.parametrize("train_on", MODES)
@pytest.mark.parametrize("key", ["trainable", "weight"])
def test_other_modes_refuse_weights(train_on: str, key: str) -> None:
    with pytest.raises(DataError) as caught:
        renderer("chatml", train_on).conversation(
            [user("Q"), assistant("A", **{key: False if key == "trainable" else 0})]
        )
    assert caught.value.what == f"message 1 (assistant) carries `{key}`, which train_on: {train_on} would ignore"


def test_the_last_message_must_be_the_assistants() -> None:
    with pytest.raises(DataError) as caught:
        renderer("chatml", "last_assistant_message").conversation([user("Q"), assistant("A"), user("R")])
    assert caught.value.what == (
        "the last message is the user's, and train_on: last_assistant_message needs the assistant's"
    )


def test_tool_results_are_messages_but_not_user_messages() -> None:
    chat = [user("Q"), assistant("A"), result("R"), assistant("B")]
    assert (
        renderer("chatml", "all_messages")
        .conversation(chat)
        .trained_text(renderer("chatml", "all_messages").tokenizer)
        == "Q<|im_end|>…A<|im_end|>…R<|im_end|>…B<|im_end|>"
    )
    used = renderer("chatml", "all_user_and_system_messages")
    assert used.conversation(chat).trained_text(used.tokenizer) == "Q<|im_end|>"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "the conversation has no message"),
        (["hi"], "message 0 is a str, not an object"),
        ([{"role": "human", "content": "Q"}], "message 0 has the role 'human', which is none of "),
        ([{"role": "user"}], "message 0 (user) has neither content nor tool calls"),
        ([{"role": "user", "content": 7}], "message 0 (user) has a int as its content, not text"),
        ([user("Q", name=object())], "a message holds a object, which is not a JSON value"),
    ],
)
def test_what_is_not_a_message_is_refused(messages: Any, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        renderer("chatml", "all_messages").conversation(messages)
    assert caught.value.what.startswith(reason)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="'everything' is none of last_assistant_message, all_assistant_messages"):
        renderer("chatml", "everything")


def test_conversations_need_a_template() -> None:
    used = Renderer(byte_tokenizer(), train_on="all_messages", template=None)
    with pytest.raises(
        ConfigError, match=r"chat_template: chatml \(or llama3, role_colon, or a path that ends in .jinja\)"
    ):
        used.conversation([user("Q")])
    assert used.stop_token_ids == (used.tokenizer.eos_token_id,)
    assert used.describe()["template_digest"] is None
