"""The embedded model, tokenizer and data sets: the same bytes everywhere, and right in what they say."""

import errno
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from kitchen_resources import embedded
from kitchen_resources.digests import digest_bytes, digest_file, digest_json
from kitchen_resources.embedded import model
from kitchen_resources.embedded.tokenizer import byte_characters, tokenizer_files
from kitchen_resources.errors import ConfigError, DataError

# A change here is a change of identity: a finished run of the built-in recipes would be trained anew.
FILES = {
    "chat_template.jinja": "fe52653f93d6d85e9c0b5ed290e2ffabd68819e0cbcc42e4744517d0d714a79b",
    "config.json": "48b7a17214865983d13a63b54e354c5e8fb0c6df3931e70c1c8e844f1f0a9099",
    "generation_config.json": "e70192951dd2f223367cb1bda9247ce459086dde6c41ed416d8fdb91e9d974cf",
    "model.safetensors": "990bf68750ed4a0227e5ad1a4dfcc4f8bcd6e9008d639c53f0665132dee4cd7d",
    "tokenizer.json": "5016325f9c2771dcd010db7402ff341c38abe27676033d392a5dc22966e9c66b",
    "tokenizer_config.json": "157734300e28b89928ac7e37b1df9c0e488efc2a3097d30ea5bb6a8ae9486110",
}
ROWS = {
    "dates": "a321c74086dbd481fed064fcfd809fc56bbafffb5ae67f7c8a721e3023ad762e",
    "reverse": "39326bbbc35b5ee2c310e2ef33e1fa1b2d60f1ae84e7e334daca2643c01c7040",
    "date_pairs": "86f3342ed11d30f40462e89ac6e9799312a17cf5082cc63ce113067a58f32b66",
}

EVERY_CHARACTER_LENGTH = "plain, é, €, 漢字, 🍰, \x00\t\r\n, two  spaces, \u2028, e\u0301"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pairs(name: str, seed: int = 0) -> Iterator[tuple[str, str]]:
    """Question and right answer of each row; of a pair the chosen one."""
    for row in embedded.rows(name, seed=seed):
        user, assistant = row["messages"] if "messages" in row else [*row["prompt"], *row["chosen"]]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        yield user["content"], assistant["content"]


# The bytes.


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_bytes_of_every_file_are_pinned(name: str) -> None:
    assert digest_bytes(model.model_files()[name]) == FILES[name]


def test_there_is_no_file_that_is_not_pinned() -> None:
    assert model.model_files().keys() == FILES.keys()


def test_a_seed_moves_the_weights_and_nothing_else() -> None:
    first, second = model.model_files(seed=0), model.model_files(seed=1)
    assert [name for name in first if first[name] != second[name]] == ["model.safetensors"]


def test_the_digest_of_the_model_is_that_of_its_written_folder(tmp_path: Path) -> None:
    embedded.write_model(tmp_path / "model", seed=2)
    written = {path.name: digest_file(path) for path in (tmp_path / "model").iterdir()}
    assert embedded.model_digest(seed=2) == digest_json(written)
    assert embedded.model_digest(seed=2) != embedded.model_digest()


def test_the_config_names_no_library_version() -> None:
    files = model.model_files()
    assert b"version" not in files["config.json"] + files["generation_config.json"]


# The weights.


def test_weights_are_the_uniform_numbers_of_pcg64_in_the_order_of_names() -> None:
    weights = model.initial_weights({"b.weight": (2, 3), "a.weight": (4, 5), "a.norm.weight": (7,)}, seed=3)
    generator = np.random.Generator(np.random.PCG64(3))
    bound = 0.02 * math.sqrt(3)
    expected_a = ((generator.random((4, 5)) * 2 - 1) * bound).astype(np.float32)
    expected_b = ((generator.random((2, 3)) * 2 - 1) * bound).astype(np.float32)
    assert list(weights) == ["a.norm.weight", "a.weight", "b.weight"]
    assert weights["a.weight"].tobytes() == expected_a.tobytes()
    assert weights["b.weight"].tobytes() == expected_b.tobytes()


def test_norms_are_ones_and_biases_zeros() -> None:
    weights = model.initial_weights({"norm.weight": (3,), "q_proj.bias": (2,)}, seed=0)
    assert weights["norm.weight"].tolist() == [1.0, 1.0, 1.0]
    assert weights["q_proj.bias"].tolist() == [0.0, 0.0]


def test_weights_have_the_standard_deviation_that_the_config_states() -> None:
    head = model.initial_weights(model.parameter_shapes(), seed=0)["lm_head.weight"]
    # The standard error of a uniform variable's deviation is below 0.02 / sqrt(n), here 0.00016.
    assert head.std() == pytest.approx(model.CONFIG["initializer_range"], abs=0.0005)
    assert head.mean() == pytest.approx(0.0, abs=0.0005)


# The folder.


def test_a_folder_written_twice_is_the_same_and_a_written_one_is_left_alone(tmp_path: Path) -> None:
    embedded.write_model(tmp_path / "deep" / "one")
    embedded.write_model(tmp_path / "two")
    inode = (tmp_path / "two" / "config.json").stat().st_ino
    embedded.write_model(tmp_path / "two")
    assert contents(tmp_path / "deep" / "one") == contents(tmp_path / "two") == model.model_files()
    assert (tmp_path / "two" / "config.json").stat().st_ino == inode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "two"]


def test_the_folder_may_be_read_by_whoever_may_read_its_parent(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    embedded.write_model(tmp_path / "model")
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_first_of_two_processes_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "model", Path.rename

    def after_another_process(draft: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        embedded.write_model(folder)
        return rename(draft, target)

    monkeypatch.setattr(Path, "rename", after_another_process)
    embedded.write_model(folder)
    assert contents(folder) == model.model_files()
    assert list(tmp_path.iterdir()) == [folder]


def test_the_second_of_two_processes_is_refused_when_it_writes_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, rename = tmp_path / "model", Path.rename

    def after_another_process(draft: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        embedded.write_model(folder, seed=1)
        return rename(draft, target)

    monkeypatch.setattr(Path, "rename", after_another_process)
    with pytest.raises(ConfigError, match=r"model\.safetensors"):
        embedded.write_model(folder, seed=0)
    assert contents(folder) == model.model_files(seed=1)


def test_it_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    before_rename: list[int] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_sync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def recorded_rename(draft: Path, target: Path) -> Path:
        before_rename.extend(synced)
        return rename(draft, target)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    embedded.write_model(tmp_path / "model")
    written = [tmp_path / "model", *(tmp_path / "model").iterdir()]
    assert sorted(before_rename) == sorted(path.stat().st_ino for path in written)
    assert synced[len(before_rename) :] == [tmp_path.stat().st_ino]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def full_disk(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        embedded.write_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_rename_that_fails_for_another_reason_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(draft: Path, target: Path) -> Path:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(PermissionError):
        embedded.write_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_changed_file_is_refused_by_name_and_kept(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    embedded.write_model(folder)
    (folder / name).write_bytes(b"mine")
    with pytest.raises(ConfigError) as refusal:
        embedded.write_model(folder)
    assert name in refusal.value.what
    assert refusal.value.where == str(folder)
    assert refusal.value.fix == f"rm -r {folder}"
    assert (folder / name).read_bytes() == b"mine"


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        embedded.write_model(tmp_path)
    assert list(contents(tmp_path)) == ["notes.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    embedded.write_model(tmp_path / "model")
    assert contents(tmp_path / "model") == model.model_files()


# The tokenizer.


@pytest.fixture(scope="module")
def backend() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_files()["tokenizer.json"].decode())


def test_a_token_is_a_byte(backend: Tokenizer) -> None:
    assert backend.encode(EVERY_CHARACTER_LENGTH).ids == list(EVERY_CHARACTER_LENGTH.encode())
    assert backend.decode(list(EVERY_CHARACTER_LENGTH.encode())) == EVERY_CHARACTER_LENGTH


def test_text_of_all_planes_survives(backend: Tokenizer) -> None:
    points = [*range(0xD800), *range(0xE000, 0x110000, 61)]
    text = "".join(map(chr, points))
    assert backend.encode(text).ids == list(text.encode())
    assert backend.decode(backend.encode(text).ids) == text


def test_special_tokens_follow_the_bytes(backend: Tokenizer) -> None:
    ids = backend.encode("<|pad|>a<|im_start|><|im_end|>").ids
    assert ids == [256, ord("a"), 257, 258]
    assert backend.get_vocab_size() == model.CONFIG["vocab_size"] == 259


def test_the_byte_characters_are_those_of_the_pre_tokenizer() -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    assert sorted(byte_characters()) == sorted(ByteLevel.alphabet())
    assert byte_characters()[ord("a")] == "a"
    assert byte_characters()[ord(" ")] == "Ġ"


# The rows.


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_rows_are_pinned(name: str) -> None:
    assert digest_json(list(embedded.rows(name))) == ROWS[name]


def test_every_set_is_pinned() -> None:
    assert embedded.PROCEDURAL.keys() == ROWS.keys()
    assert embedded.DEFAULT_TASK in ROWS


@pytest.mark.parametrize("name", sorted(ROWS))
@pytest.mark.parametrize("seed", [0, 1])
def test_the_rows_are_as_many_as_stated_and_no_question_or_answer_occurs_twice(name: str, seed: int) -> None:
    questions, answers = zip(*pairs(name, seed), strict=True)
    assert len(questions) == len(set(questions)) == len(set(answers)) == embedded.PROCEDURAL[name].count


@pytest.mark.parametrize("name", sorted(ROWS))
def test_another_seed_gives_other_rows(name: str) -> None:
    first, second = list(pairs(name, 0)), list(pairs(name, 1))
    assert first == list(pairs(name, 0))
    assert first[:20] != second[:20]
    assert set(first) != set(second)


def test_dates_are_right_in_all_six_styles() -> None:
    styles = ("%d %B %Y", "%B %d, %Y", "%B %dth %Y", "%d %b %Y", "%b %d %Y", "%d/%m/%Y")
    read: dict[str, int] = dict.fromkeys(styles, 0)
    for question, answer in pairs("dates"):
        plain = question
        for number, ordinal in (
            (1, "1st"),
            (2, "2nd"),
            (3, "3rd"),
            (21, "21st"),
            (22, "22nd"),
            (23, "23rd"),
            (31, "31st"),
        ):
            plain = plain.replace(f" {ordinal} ", f" {number}th ")
        style = next(style for style in styles if _parses(plain, style))
        read[style] += 1
        assert datetime.strptime(plain, style).date().isoformat() == answer
    # May is both a name and its abbreviation, so the counts aren't quite equal.
    assert all(900 < count < 1200 for count in read.values()), read


def test_a_pair_prefers_the_day_first_to_the_answer_of_the_dates() -> None:
    dates = dict(pairs("dates"))
    for row in embedded.rows("date_pairs"):
        (user,), (chosen,), (rejected,) = row["prompt"], row["chosen"], row["rejected"]
        assert (chosen["role"], rejected["role"]) == ("assistant", "assistant")
        assert rejected["content"] == dates[user["content"]]
        year, month, day = rejected["content"].split("-")
        assert chosen["content"] == f"{day}.{month}.{year}"


def test_words_are_answered_backwards() -> None:
    assert all(answer == question[::-1] and len(question) == 4 for question, answer in pairs("reverse"))


def test_rows_of_an_unknown_set_are_refused_with_the_names_there_are() -> None:
    with pytest.raises(DataError) as refusal:
        embedded.rows("poems")
    assert "'poems'" in refusal.value.what
    assert refusal.value.fix == "dataset: embedded:dates or embedded:reverse or embedded:date_pairs"


def _parses(text: str, style: str) -> bool:
    try:
        datetime.strptime(text, style)
    except ValueError:
        return False
    return True


# With the libraries that train it.


def test_importing_it_loads_no_heavy_library() -> None:
    code = (
        "import sys, kitchen_resources.embedded\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'peft', 'tokenizers', 'boto3', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert _python(code) == "[]\n"


LOADED_IN_A_FRESH_PROCESS = """
import json, logging, sys, warnings
from hashlib import sha256
warnings.simplefilter("error")
logged = []
class Handler(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())
from transformers import AutoModelForCausalLM, AutoTokenizer
logging.getLogger("transformers").addHandler(Handler(logging.WARNING))
from kitchen_resources import embedded

folder = sys.argv[1]
model, info = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
loaded, built = AutoTokenizer.from_pretrained(folder), embedded.build_tokenizer()
conversation = [
    {"role": "system", "content": "ISO"},
    {"role": "user", "content": "14 Mär 1987"},
    {"role": "assistant", "content": "1987-03-14"},
]
def facts(tokenizer):
    encoded = tokenizer.apply_chat_template(conversation, return_dict=True, return_assistant_tokens_mask=True)
    trained = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"]) if mask]
    return {
        "text": tokenizer.apply_chat_template(conversation, tokenize=False),
        "prompt": tokenizer.apply_chat_template(conversation[:2], tokenize=False, add_generation_prompt=True),
        "trained": tokenizer.decode(trained),
        "pad": [tokenizer.pad_token, tokenizer.pad_token_id],
        "eos": [tokenizer.eos_token, tokenizer.eos_token_id],
        "bos": tokenizer.bos_token,
        "length": tokenizer.model_max_length,
        "special": sorted(tokenizer.all_special_ids),
        "skipped": tokenizer.decode([257, 72, 105, 258], skip_special_tokens=True),
    }
print(json.dumps({
    "logged": logged,
    "missing": [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]],
    "weights": {name: sha256(tensor.numpy()).hexdigest() for name, tensor in model.state_dict().items()},
    "dtype": str(model.dtype),
    "ends": [model.generation_config.eos_token_id, model.generation_config.pad_token_id],
    "sampled": bool(model.generation_config.do_sample),
    "loaded": facts(loaded),
    "built": facts(built),
}))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("embedded") / "model"
    embedded.write_model(folder)
    facts: dict[str, Any] = json.loads(_python(LOADED_IN_A_FRESH_PROCESS, str(folder)))
    return facts


@pytest.mark.full
@pytest.mark.heavy
def test_it_loads_in_a_fresh_process_without_a_warning(loaded: dict[str, Any]) -> None:
    assert loaded["logged"] == []
    assert loaded["missing"] == []
    assert loaded["dtype"] == "torch.float32"
    assert loaded["ends"] == [258, 256]
    assert loaded["sampled"] is False


@pytest.mark.heavy
def test_what_is_loaded_are_the_weights_that_were_made(loaded: dict[str, Any]) -> None:
    made = model.initial_weights(model.parameter_shapes(), seed=0)
    assert loaded["weights"] == {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in made.items()}


@pytest.mark.heavy
@pytest.mark.parametrize("tokenizer", ["loaded", "built"])
def test_the_chat_template_renders_literally(loaded: dict[str, Any], tokenizer: str) -> None:
    prompt = "<|im_start|>system\nISO<|im_end|>\n<|im_start|>user\n14 Mär 1987<|im_end|>\n<|im_start|>assistant\n"
    assert loaded[tokenizer]["prompt"] == prompt
    assert loaded[tokenizer]["text"] == prompt + "1987-03-14<|im_end|>\n"
    assert loaded[tokenizer]["trained"] == "1987-03-14<|im_end|>"


@pytest.mark.heavy
@pytest.mark.parametrize("tokenizer", ["loaded", "built"])
def test_the_tokenizer_knows_its_special_tokens(loaded: dict[str, Any], tokenizer: str) -> None:
    facts = loaded[tokenizer]
    assert (facts["pad"], facts["eos"], facts["bos"]) == (["<|pad|>", 256], ["<|im_end|>", 258], None)
    assert facts["special"] == [256, 257, 258]
    assert facts["skipped"] == "Hi"
    assert facts["length"] == model.CONFIG["max_position_embeddings"] == 2048


def _python(code: str, *arguments: str) -> str:
    root = str(Path(embedded.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
