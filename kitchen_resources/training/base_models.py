"""Base models: from what a recipe names to a local folder of safetensors, and its digest."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kitchen_resources.digests import FileDigests, digest_json
from kitchen_resources.errors import ConfigError
from kitchen_resources.training.port import BaseModel

EMBEDDED = "embedded:"
EMBEDDED_MODELS = ("tiny",)

_NAMES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "chat_template.jinja",
        "chat_template.json",
    }
)
_SUFFIXES = (".safetensors.index.json", ".model")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZER_NAMES = _NAMES - {"config.json", "generation_config.json"}


def resolve_base(reference: str, cache: Path, field: str = "model") -> BaseModel:
    """The base model that a recipe names.

    Args:
        reference: A local folder, a hub id (`org/name` or `org/name@revision`), or `embedded:tiny`.
        cache: Local folder for what is made or remembered here.
        field: The recipe's field that names it, for messages.

    Raises:
        ConfigError: It isn't there, has no weights, or only pickled ones.
        HubError: A hub can't deliver it.
    """
    digests = FileDigests(cache / "file-digests.json")
    if not reference:
        raise ConfigError(
            "no base model is named", where=field, fix=f"{field}: a local folder, a hub id, or embedded:tiny"
        )
    if reference.startswith(EMBEDDED):
        return _of_folder(reference, _embedded(reference, cache, field), digests, field)
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return _of_folder(reference, folder, digests, field)
    return _of_hub(reference, digests, field)


def simulated_base(reference: str) -> BaseModel:
    """A base model without weights, for a backend that has none."""
    return BaseModel(reference, None, digest_json({"simulated": reference}), {}, simulated=True)


def tokenizer_digest(base: BaseModel) -> str:
    """Digest of the files that decide how text becomes tokens."""
    return digest_json(
        {name: sha for name, sha in base.files.items() if name in TOKENIZER_NAMES or name.endswith(".model")}
    )


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's config.json.

    Raises:
        ConfigError: It is missing or not JSON.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(
            "has no config.json", where=f"model {folder}", fix="name a folder that save_pretrained wrote"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"its config.json is not JSON: {error}", where=f"model {folder}", fix="save it again"
        ) from error
    if not isinstance(config, dict):
        raise ConfigError("its config.json is not an object", where=f"model {folder}", fix="save it again")
    return config


def safetensors_shapes(path: Path) -> dict[str, list[int]]:
    """Shape of each tensor of a safetensors file, from its header alone.

    Raises:
        ConfigError: It isn't such a file.
    """
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > 100 << 20:
                raise ValueError(f"a header of {length} bytes")
            header: Mapping[str, Any] = json.loads(stream.read(length))
        tensors = [item for name, item in header.items() if name != "__metadata__"]
        whole = 8 + length + max((item["data_offsets"][1] for item in tensors), default=0)
        if path.stat().st_size != whole:
            raise ValueError(f"{path.stat().st_size} bytes of {whole}")
        return {name: item["shape"] for name, item in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"is not a safetensors file: {error}", where=str(path), fix="save or download it again"
        ) from error


def _embedded(reference: str, cache: Path, field: str) -> Path:
    from kitchen_resources import embedded

    name = reference.removeprefix(EMBEDDED)
    if name not in EMBEDDED_MODELS:
        choices = ", ".join(EMBEDDED + model for model in EMBEDDED_MODELS)
        raise ConfigError(f"there is no embedded model {name!r}", where=field, fix=f"{field}: one of {choices}")
    # Named by its digest: another version of the kitchen may make another model.
    folder = cache / "models" / f"embedded-{name}-{embedded.model_digest()[:12]}"
    embedded.write_model(folder)
    return folder


def _of_hub(reference: str, digests: FileDigests, field: str) -> BaseModel:
    from kitchen_resources.hub import fetch_model, is_repo_id

    repo_id, _, revision = reference.partition("@")
    if not is_repo_id(repo_id):
        raise ConfigError(
            "there is no such folder, and it isn't a hub id",
            where=f"{field} {reference!r}",
            fix=f"{field}: a local folder, a hub id such as org/name, or embedded:tiny",
        )
    snapshot = fetch_model(repo_id, revision=revision or None)
    return _of_folder(reference, snapshot.folder, digests, field, revision=snapshot.commit, note=snapshot.note)


def _of_folder(
    reference: str, folder: Path, digests: FileDigests, field: str, *, revision: str = "", note: str = ""
) -> BaseModel:
    where = f"{field} {reference!r}"
    _require_whole_model(folder, where)
    weights = _weight_files(folder, where)
    others = [path for path in folder.iterdir() if path.name in _NAMES or path.name.endswith(_SUFFIXES)]
    shapes = {name: shape for path in weights for name, shape in safetensors_shapes(path).items()}
    files = {path.name: digests(path) for path in sorted([*weights, *others])}
    return BaseModel(
        reference=reference,
        folder=folder.resolve(),
        digest=digest_json(files),
        files=files,
        parameters=sum(_product(shape) for shape in shapes.values()),
        bytes=sum(path.stat().st_size for path in weights),
        revision=revision,
        note=note,
    )


def _require_whole_model(folder: Path, where: str) -> None:
    is_whole = (folder / "config.json").is_file()
    if (folder / "adapter_config.json").is_file():
        # Transformers lays an adapter that lies beside a model on it, unasked.
        what = "beside its weights, which would be laid on them" if is_whole else "without its base"
        raise ConfigError(
            f"holds a LoRA adapter {what}",
            where=where,
            fix="merge it first (export: merged), and name the merged folder",
        )
    if not is_whole:
        raise ConfigError("has no config.json", where=where, fix="name a folder that save_pretrained wrote")
    read_config(folder)


def _weight_files(folder: Path, where: str) -> list[Path]:
    """The safetensors files that transformers reads: `model.safetensors` where it is, else what its index names."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    named = _indexed(index, where) if index.is_file() else []
    missing = [name for name in named if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"its index names {missing[0]}, which is missing", where=where, fix="download it again")
    if whole.is_file() or named:
        return [whole] if whole.is_file() else [folder / name for name in named]
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if found:
        raise ConfigError(
            f"its weights are in {found[0]}, and neither model.safetensors nor its index is there",
            where=where,
            fix="download it again, or save it by save_pretrained",
        )
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise ConfigError(
            f"its weights are pickled ({pickled[0]}), and loading a pickle can run any code",
            where=where,
            fix="convert it in an environment you trust: model.save_pretrained(folder) writes safetensors",
        )
    raise ConfigError("has no weights (*.safetensors)", where=where, fix="name a folder that save_pretrained wrote")


def _indexed(index: Path, where: str) -> list[str]:
    """The weight files that a model's index names."""
    try:
        weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted(set(map(str, weights.values())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"its {index.name} is no index of weights: {error!r}", where=where, fix="download it again"
        ) from error


def _product(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
