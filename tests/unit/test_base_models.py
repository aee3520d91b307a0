"""Base models: what a recipe may name, what their digest covers, and what is counted of them."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import load_file, save, save_file

from kitchen_resources.digests import digest_json
from kitchen_resources.embedded.model import model_files, parameter_shapes
from kitchen_resources.errors import ConfigError, HubError
from kitchen_resources.training import base_models
from kitchen_resources.training.base_models import (
    read_config,
    resolve_base,
    safetensors_shapes,
    simulated_base,
    tokenizer_digest,
)
from kitchen_resources.training.port import BaseModel
from tests.loopback_hub import LoopbackHub, hub_in_use, leave_network

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

READ = {
    "config.json": b'{"model_type": "tiny"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b"{}",
    "vocab.json": b"{}",
    "vocab.txt": b"a\nb\n",
    "merges.txt": b"#version: 0.2\n",
    "chat_template.jinja": b"{{ messages }}",
    "chat_template.json": b"{}",
    "tokenizer.model": b"\x0a\x0b\x0c",
}
"""Files that a model or its tokenizer is made of, besides the weights."""
TOKENIZER = set(READ) - {"config.json", "generation_config.json"}


def tensors(rows: int = 3) -> dict[str, Any]:
    return {"a.weight": numpy.arange(rows * 4, dtype=numpy.float32).reshape(rows, 4), "b.bias": numpy.ones(5, "<f4")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with every file that is read: 17 weights."""
    made = tmp_path / "model"
    made.mkdir()
    for name, data in READ.items():
        (made / name).write_bytes(data)
    save_file(tensors(), made / "model.safetensors")
    return made


def shard(folder: Path, **index: Any) -> None:
    """Take the weights of a folder apart into two files and an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name, file in zip(sorted(weights), SHARDS, strict=True):
        save_file({name: weights[name]}, folder / file)
    names = dict(zip(sorted(weights), SHARDS, strict=True))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names, **index}))


def base_of(folder: Path) -> BaseModel:
    return resolve_base(str(folder), folder.parent / "cache")


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def refusal(reference: str, cache: Path) -> str:
    with pytest.raises(ConfigError) as refused:
        resolve_base(reference, cache)
    return str(refused.value)


# What is known of a folder.


def test_a_folder(folder: Path) -> None:
    base = base_of(folder)
    names = [*READ, "model.safetensors"]
    assert base == BaseModel(
        reference=str(folder),
        folder=folder,
        digest=base.digest,
        files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
        parameters=17,
        bytes=(folder / "model.safetensors").stat().st_size,
        revision="",
        note="",
        simulated=False,
    )
    assert base.digest == digest_json(base.files)


def test_home_and_relative_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    for reference in ("~/model", "model", "./model/", "model/../model"):
        base = resolve_base(reference, folder.parent / "cache")
        assert (base.reference, base.folder, base.digest) == (reference, folder, base_of(folder).digest)


@pytest.mark.parametrize("name", [*READ, "model.safetensors"])
def test_one_bit_of_any_file_moves_the_digest(folder: Path, name: str) -> None:
    before = base_of(folder)
    # Of a JSON file the last byte but one, so that it stays one.
    if name.endswith(".json"):
        (folder / name).write_bytes(READ[name] + b"\n")
    else:
        flip(folder / name)
    after = base_of(folder)
    assert after.digest != before.digest
    assert {file for file in before.files if after.files[file] != before.files[file]} == {name}
    assert (tokenizer_digest(after) != tokenizer_digest(before)) is (name in TOKENIZER)


@pytest.mark.parametrize("name", sorted(set(READ) - {"config.json"}))
def test_a_file_less_moves_the_digest(folder: Path, name: str) -> None:
    before = base_of(folder)
    (folder / name).unlink()
    assert base_of(folder).digest != before.digest


def test_a_file_under_another_name_moves_the_digest(folder: Path) -> None:
    before = base_of(folder)
    (folder / "vocab.txt").rename(folder / "merges.txt")
    (folder / "other.model").write_bytes((folder / "tokenizer.model").read_bytes())
    assert base_of(folder).digest != before.digest


def test_what_is_not_read_does_not_move_the_digest(folder: Path) -> None:
    before = base_of(folder)
    for name in ("README.md", ".gitattributes", "pytorch_model.bin", "consolidated.safetensors", "training_args.bin"):
        (folder / name).write_bytes(b"anything")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"anything")
    assert base_of(folder) == before


def test_a_copy_elsewhere_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "other name"
    copy.mkdir(parents=True)
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert resolve_base(str(copy), tmp_path / "cache").digest == base_of(folder).digest


def test_files_are_hashed_once_and_again_when_they_change(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest_file = base_models.FileDigests.__call__.__globals__["digest_file"]

    def counted(path: Path) -> str:
        read.append(path.name)
        digest: str = digest_file(path)
        return digest

    monkeypatch.setattr("kitchen_resources.digests.digest_file", counted)
    monkeypatch.setattr("kitchen_resources.digests.time.time_ns", lambda: 4 * 10**18)
    first = base_of(folder)
    assert sorted(read) == sorted([*READ, "model.safetensors"])
    assert base_of(folder) == first
    assert len(read) == 13
    (folder / "tokenizer.json").write_text('{"version": "2.0", "longer": 1}')
    assert base_of(folder).digest != first.digest
    assert read[13:] == ["tokenizer.json"]


# Weights.


def test_shards_are_what_the_index_names(folder: Path) -> None:
    whole = base_of(folder)
    shard(folder)
    (folder / "model-00003-of-00003.safetensors").write_bytes(b"of another download")
    base = base_of(folder)
    assert base.parameters == whole.parameters == 17
    assert base.bytes == sum((folder / name).stat().st_size for name in SHARDS)
    assert set(base.files) == {*READ, INDEX, *SHARDS}
    for name in SHARDS:
        before = base_of(folder).digest
        flip(folder / name)
        assert base_of(folder).digest != before


def test_model_safetensors_goes_before_shards_as_in_transformers(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    shard(folder)
    (folder / "model.safetensors").write_bytes(weights)
    base = base_of(folder)
    assert (base.parameters, base.bytes) == (17, len(weights))
    assert set(base.files) == {*READ, INDEX, "model.safetensors"}


@pytest.mark.parametrize("name", ["consolidated.safetensors", SHARDS[0], "adapter_model.safetensors"])
def test_weights_under_another_name_are_not_read(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert refusal(str(folder), folder.parent / "cache") == (
        f"model '{folder}': its weights are in {name}, and neither model.safetensors nor its index is there\n"
        "  fix: download it again, or save it by save_pretrained"
    )


def test_an_index_of_no_file_is_no_model(folder: Path) -> None:
    shard(folder, weight_map={})
    assert f"its weights are in {SHARDS[0]}" in refusal(str(folder), folder.parent / "cache")


@pytest.mark.parametrize(
    ("whole", "said"), [(True, "beside its weights, which would be laid on them"), (False, "without its base")]
)
def test_an_adapter_in_the_folder_is_refused(folder: Path, whole: bool, said: str) -> None:
    (folder / "adapter_config.json").write_text("{}")
    if not whole:
        (folder / "config.json").unlink()
    assert refusal(str(folder), folder.parent / "cache") == (
        f"model '{folder}': holds a LoRA adapter {said}\n"
        "  fix: merge it first (export: merged), and name the merged folder"
    )


def test_shapes_come_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weights = {
        "scalar": numpy.float32(1.0),
        "empty": numpy.zeros((0, 7), "<f4"),
        "cube": numpy.zeros((2, 3, 4), "<i2"),
    }
    path.write_bytes(save({name: numpy.asarray(array) for name, array in weights.items()}, metadata={"format": "pt"}))
    assert safetensors_shapes(path) == {"scalar": [], "empty": [0, 7], "cube": [2, 3, 4]}


@pytest.mark.parametrize(
    "header",
    [b"[]", b"3", b"null", b"{", b'{"a": 1}', b'{"a": {"shape": [1]}}', b'{"a": {"shape": [1], "data_offsets": []}}'],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ConfigError) as refused:
        safetensors_shapes(path)
    assert str(refused.value).startswith(f"{path}: is not a safetensors file: ")
    assert refused.value.fix == "save or download it again"


def test_a_header_of_terabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 42) + b"{}")
    with pytest.raises(ConfigError, match="a header of 4398046511104 bytes"):
        safetensors_shapes(path)


# Other references.


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("", "model: no base model is named\n  fix: model: a local folder, a hub id, or embedded:tiny"),
        ("embedded:", "model: there is no embedded model ''\n  fix: model: one of embedded:tiny"),
        (
            "./no folder",
            "model './no folder': there is no such folder, and it isn't a hub id\n"
            "  fix: model: a local folder, a hub id such as org/name, or embedded:tiny",
        ),
    ],
)
def test_a_reference_to_nothing(tmp_path: Path, reference: str, said: str) -> None:
    assert refusal(reference, tmp_path) == said
    assert list(tmp_path.iterdir()) == []


def test_the_embedded_model(tmp_path: Path) -> None:
    base = resolve_base("embedded:tiny", tmp_path)
    assert base.files == {name: hashlib.sha256(data).hexdigest() for name, data in model_files().items()}
    assert base.parameters == sum(int(numpy.prod(shape)) for shape in parameter_shapes().values())
    assert base.folder is not None
    assert base.folder.is_relative_to(tmp_path / "models")
    assert (base.reference, base.revision, base.note, base.simulated) == ("embedded:tiny", "", "", False)
    assert resolve_base("embedded:tiny", tmp_path) == base
    # Somebody else's cache: the same model.
    assert resolve_base("embedded:tiny", tmp_path / "other").digest == base.digest


def test_an_embedded_model_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    base = resolve_base("embedded:tiny", tmp_path)
    assert base.folder is not None
    flip(base.folder / "model.safetensors")
    assert "the folder isn't the embedded model: model.safetensors" in refusal("embedded:tiny", tmp_path)


def test_a_simulated_base() -> None:
    base = simulated_base("org/name")
    assert (base.reference, base.folder, base.files, base.parameters, base.simulated) == (
        "org/name",
        None,
        {},
        0,
        True,
    )
    assert base.digest == simulated_base("org/name").digest != simulated_base("org/other").digest


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no config.json"),
        (b"{", "its config.json is not JSON: "),
        (b"\xff", "its config.json is not JSON: "),
        (b"3", "its config.json is not an object"),
    ],
)
def test_reading_a_config(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_config(tmp_path)
    assert str(refused.value).startswith(f"model {tmp_path}: {said}")
    (tmp_path / "config.json").write_text('{"model_type": "ü"}', encoding="utf-8")
    assert read_config(tmp_path) == {"model_type": "ü"}


# Hubs.


@pytest.fixture
def with_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    with hub_in_use(monkeypatch, tmp_path / "hub") as hub:
        yield hub


def test_a_model_of_a_hub(with_hub: LoopbackHub, tmp_path: Path) -> None:
    files = {**model_files(), "README.md": b"---\n---\n"}
    first = with_hub.model("org/tiny").commit(files)
    local = resolve_base("embedded:tiny", tmp_path)
    base = resolve_base("org/tiny", tmp_path)
    # The same bytes are the same model, wherever they come from.
    assert (base.digest, base.files, base.parameters) == (local.digest, local.files, local.parameters)
    assert (base.reference, base.revision, base.simulated) == ("org/tiny", first, False)
    assert base.folder is not None
    assert read_config(base.folder)["model_type"] == "qwen3"


def test_a_revision_of_a_hub_model(with_hub: LoopbackHub, tmp_path: Path) -> None:
    old = with_hub.model("org/tiny").commit(model_files(seed=0))
    new = with_hub.model("org/tiny").commit(model_files(seed=1))
    bases = {name: resolve_base(f"org/tiny{name}", tmp_path) for name in ("", "@main", f"@{old}", f"@{new}")}
    assert [base.revision for base in bases.values()] == [new, new, old, new]
    assert bases[f"@{old}"].digest != bases[""].digest == bases["@main"].digest == bases[f"@{new}"].digest


def test_a_cached_copy_is_used_and_said(
    with_hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hub.model("org/tiny").commit(model_files())
    online = resolve_base("org/tiny", tmp_path)
    assert online.note == ""
    leave_network(monkeypatch)
    offline = resolve_base("org/tiny", tmp_path)
    assert (offline.digest, offline.revision) == (online.digest, online.revision)
    assert "cache" in offline.note


def test_a_hub_model_that_is_not_there(with_hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(HubError):
        resolve_base("org/none", tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda files: files.pop("config.json"), "config.json"),
        (
            lambda files: files.update({"model.safetensors": files["model.safetensors"][:-1]}),
            "is not a safetensors file",
        ),
        (lambda files: files.update({"adapter_config.json": b"{}"}), "beside its weights"),
    ],
    ids=["no config", "cut weights", "adapter"],
)
def test_a_hub_model_is_checked_like_a_folder(
    with_hub: LoopbackHub, tmp_path: Path, change: Callable[[dict[str, bytes]], object], said: str
) -> None:
    files = model_files()
    change(files)
    with_hub.model("org/broken").commit(files)
    with pytest.raises((ConfigError, HubError), match=said):
        resolve_base("org/broken", tmp_path)
