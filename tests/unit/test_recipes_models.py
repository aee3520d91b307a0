"""Preflight on the base model: each kind of folder that can't be trained, what is said of it, and the estimates."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_identities import resolution

from kitchen_resources.datasets.sources import NoopDatasets
from kitchen_resources.embedded import write_model
from kitchen_resources.errors import ConfigError, KitchenError
from kitchen_resources.training.base_models import safetensors_shapes
from kitchen_resources.training.preflight import PreflightReport, preflight
from kitchen_resources.training.trl.backend import TrlTrainer
from tests.engine import Engine, UnmarkedTrainer

Change = Callable[[Path], object]


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in a folder."""
    folder = tmp_path_factory.mktemp("models") / "sound"
    write_model(folder)
    return folder


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Callable[[Change], str]:
    """A copy of a sound model folder, changed."""

    def make(change: Change) -> str:
        folder = tmp_path / "model"
        shutil.copytree(sound, folder)
        for path in folder.iterdir():
            path.chmod(0o644)
        change(folder)
        return str(folder)

    return make


def checked(model: str, adapter: Any = None, **fields: Any) -> PreflightReport:
    engine = Engine(adapter=adapter or UnmarkedTrainer(), datasets=NoopDatasets(10))
    return preflight(engine.launch(model=model, **fields))


def refusal(model: str, adapter: Any = None) -> str:
    """What is said of a model, without the folder it lies in."""
    with pytest.raises(KitchenError) as refused:
        checked(model, adapter)
    assert type(refused.value) is ConfigError
    return str(refused.value).replace(f"{Path(model).parent}/", "")


def remove(*names: str) -> Change:
    return lambda folder: [(folder / name).unlink() for name in names]


def write(name: str, content: str | bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def both(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def longer(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")


INDEX = "model.safetensors.index.json"
SHARDS = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
NO_CODE = "name a model that transformers has itself; code that comes with a model is never run"

FOLDERS: dict[str, tuple[Change, str]] = {
    "no weights": (
        remove("model.safetensors"),
        "model 'model': has no weights (*.safetensors)\n  fix: name a folder that save_pretrained wrote",
    ),
    "only pickled weights": (
        both(remove("model.safetensors"), write("pytorch_model.bin", b"\x80\x04.")),
        "model 'model': its weights are pickled (pytorch_model.bin), and loading a pickle can run any code\n"
        "  fix: convert it in an environment you trust: model.save_pretrained(folder) writes safetensors",
    ),
    "an adapter alone": (
        both(remove("config.json"), write("adapter_config.json", "{}")),
        "model 'model': holds a LoRA adapter without its base\n"
        "  fix: merge it first (export: merged), and name the merged folder",
    ),
    "no config": (
        remove("config.json"),
        "model 'model': has no config.json\n  fix: name a folder that save_pretrained wrote",
    ),
    "a config that is no JSON": (write("config.json", "{"), "model model: its config.json is not JSON: Expecting "),
    "a config that is no object": (
        write("config.json", "[]"),
        "model model: its config.json is not an object\n  fix: save it again",
    ),
    "an index of a missing shard": (
        both(write(INDEX, SHARDS), write("model-1.safetensors", b"")),
        "model 'model': its index names model-2.safetensors, which is missing\n  fix: download it again",
    ),
    "an index that leads out of the folder": (
        write(INDEX, '{"weight_map": {"a": "../model/model.safetensors"}}'),
        "model 'model': its index names ../model/model.safetensors, which is missing\n",
    ),
    "an index that is no JSON": (
        write(INDEX, "{"),
        "model 'model': its model.safetensors.index.json is no index of weights: JSONDecodeError(",
    ),
    "an index of nothing": (
        write(INDEX, "{}"),
        "model 'model': its model.safetensors.index.json is no index of weights: KeyError('weight_map')\n"
        "  fix: download it again",
    ),
    "an index that is a list": (
        write(INDEX, '{"weight_map": ["a"]}'),
        "model 'model': its model.safetensors.index.json is no index of weights: AttributeError(",
    ),
    "weights cut short": (cut, "model/model.safetensors: is not a safetensors file: "),
    "weights with something behind": (longer, "model/model.safetensors: is not a safetensors file: "),
    "weights that are none": (
        write("model.safetensors", b"PK\x03\x04"),
        "model/model.safetensors: is not a safetensors file: unpack requires a buffer of 8 bytes\n"
        "  fix: save or download it again",
    ),
    "a header that is none": (
        write("model.safetensors", b"\x02" + bytes(7) + b"[]"),
        "model/model.safetensors: is not a safetensors file: ",
    ),
    "no tokenizer": (
        remove("tokenizer.json", "tokenizer_config.json"),
        "chat_template: the template writes <|im_end|>, <|im_start|>; the tokenizer lacks them and would split them\n",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_can_not_be_trained(model: Callable[[Change], str], case: str) -> None:
    change, said = FOLDERS[case]
    assert refusal(model(change)).startswith(said)


def test_a_sound_folder_is_accepted_with_what_lies_beside(model: Callable[[Change], str]) -> None:
    folder = model(both(write("pytorch_model.bin", b"x"), write("README.md", "x"), write("training_args.bin", b"x")))
    assert checked(folder).backend == "noop"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "/no/such/folder",
            "model '/no/such/folder': there is no such folder, and it isn't a hub id\n"
            "  fix: model: a local folder, a hub id such as org/name, or embedded:tiny",
        ),
        ("embedded:large", "model: there is no embedded model 'large'\n  fix: model: one of embedded:tiny"),
    ],
)
def test_a_model_that_is_not_there(model: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(model)
    assert str(refused.value) == said


# The trl backend, which reads the config as transformers does.


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {},
            f"model model: its config can't be used: Unrecognized model in model. Should have a .*\n  fix: {NO_CODE}",
        ),
        (
            {"model_type": "nonsense"},
            f"model model: its config can't be used: The checkpoint .* model type `nonsense` but .*\n  fix: {NO_CODE}",
        ),
        (
            {"model_type": "own", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}},
            f"model model: its config can't be used: The repository model contains custom code .*\n  fix: {NO_CODE}",
        ),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            "model model: t5 is no causal language model\n  fix: name one that writes text",
        ),
    ],
    ids=["nothing", "unknown", "code of its own", "another task"],
)
def test_an_architecture_that_can_not_be_trained(
    model: Callable[[Change], str], config: dict[str, Any], said: str
) -> None:
    folder = model(both(write("config.json", json.dumps(config)), write("configuration_own.py", "raise SystemExit")))
    assert re.fullmatch(said, refusal(folder, TrlTrainer(device="cpu")))


def test_weights_that_the_folder_lacks_are_not_made_up(model: Callable[[Change], str]) -> None:
    from safetensors.numpy import load_file, save_file

    from kitchen_resources.training.pytorch.models import load_causal_lm

    folder = Path(model(lambda folder: None))
    weights = load_file(folder / "model.safetensors")
    lost = "model.layers.0.mlp.down_proj.weight"
    kept = {name: array for name, array in weights.items() if name != lost}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError) as refused:
        load_causal_lm(folder, dtype="float32", attention="eager")
    assert str(refused.value).startswith(f"model {folder}: lacks 1 of the model's weights, such as {lost}\n  fix: ")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_causal_lm(folder, dtype="float32", attention="eager").num_parameters() > 100_000


# Estimates.


def numbers(sound: Path) -> dict[str, int]:
    config = json.loads((sound / "config.json").read_text())
    shapes = safetensors_shapes(sound / "model.safetensors")
    return {
        "parameters": sum(rows * (columns or [1])[0] for rows, *columns in shapes.values()),
        "hidden": config["hidden_size"],
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "inner": config["intermediate_size"],
        "adaptable": sum(sum(shape) for name, shape in shapes.items() if len(shape) == 2 and ".layers." in name),
    }


def activations(n: dict[str, int], *, rows: int, tokens: int, width: int) -> float:
    """Bytes of the activations of one layer whose attention kernel holds no scores, written out."""
    return rows * tokens * (20 * n["hidden"] + 4 * n["inner"]) * width


def test_the_estimates_of_full_fine_tuning(sound: Path) -> None:
    n = numbers(sound)
    report = checked(str(sound), TrlTrainer(device="cpu"), batch_size=4, max_length=32)
    assert (report.backend, report.device) == ("trl", "cpu")
    # Weights, gradients and two moments in fp32.
    state = 16 * n["parameters"]
    assert report.memory_bytes == int(state + n["layers"] * activations(n, rows=4, tokens=32, width=4))
    assert report.state_bytes == 12 * n["parameters"]
    scores = n["layers"] * 4 * 32 * 2.5 * n["heads"] * 32 * 4
    eager = checked(str(sound), TrlTrainer(device="cpu"), batch_size=4, max_length=32, attention="eager")
    assert eager.memory_bytes - report.memory_bytes == scores
    # Weights stay in fp32 beside arithmetic in bf16.
    mixed = checked(str(sound), TrlTrainer(device="cpu"), batch_size=4, max_length=32, precision="bf16")
    assert mixed.memory_bytes == int(state + n["layers"] * activations(n, rows=4, tokens=32, width=2))
    sgd = checked(str(sound), TrlTrainer(device="cpu"), batch_size=4, max_length=32, optimizer="sgd")
    assert report.memory_bytes - sgd.memory_bytes == 8 * n["parameters"]
    assert sgd.state_bytes == 4 * n["parameters"]


def test_recomputed_activations_take_less(sound: Path) -> None:
    n = numbers(sound)
    report = checked(str(sound), TrlTrainer(device="cpu"), batch_size=8, max_length=64, gradient_checkpointing=True)
    kept = 8 * 64 * n["hidden"] * 4 * n["layers"] + activations(n, rows=8, tokens=64, width=4)
    assert report.memory_bytes == int(16 * n["parameters"] + kept)


def test_the_estimates_of_a_lora(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = numbers(sound)
    fields: dict[str, Any] = {"batch_size": 4, "max_length": 32, "precision": "bf16"}
    report = checked(str(sound), TrlTrainer(device="cpu"), lora={"rank": 8}, **fields)
    trained = 8 * n["layers"] * (8 * n["hidden"] + 3 * (n["hidden"] + n["inner"]))
    # A frozen base in bf16; gradients and moments of what is trained in fp32.
    state = 2 * n["parameters"] + 12 * trained
    assert report.memory_bytes == int(state + n["layers"] * activations(n, rows=4, tokens=32, width=2))
    assert report.state_bytes == 12 * trained
    # What a LoRA on every linear layer of this model really has.
    assert 0.5 < trained / (8 * n["adaptable"]) < 2
    # The library isn't needed to estimate, and isn't there on every machine.
    monkeypatch.setattr("kitchen_resources.training.pytorch.sizing.require_quantization", lambda bits: None)
    quantized = checked(str(sound), TrlTrainer(device="cpu"), lora={"rank": 8}, quantization="4bit", **fields)
    assert report.memory_bytes - quantized.memory_bytes == 1.5 * n["parameters"]


def test_the_fixed_resolution_of_the_fingerprints_is_what_the_backend_answers(sound: Path) -> None:
    engine = Engine(adapter=TrlTrainer(device="cpu"), datasets=NoopDatasets(10))
    for fields in ({}, {"lora": {"rank": 4}, "precision": "bf16"}, {"optimizer": "adafactor", "attention": "eager"}):
        launch = engine.launch(model=str(sound), **fields)
        fixed, found = resolution(launch.recipe), launch.resolution
        assert (fixed.algorithm, fixed.values, fixed.device) == (found.algorithm, found.values, found.device)
