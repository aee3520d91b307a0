"""Which files of a repository are fetched, and which repositories can't be used at all."""

import glob
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from kitchen_resources.errors import HubError
from kitchen_resources.hub.repo import Kind, Repo

# Of the repository's top folder only: nothing is loaded from others, and they often repeat the weights.
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "tekken.json",
    "*.model",
    "chat_template.jinja",
    "chat_template.json",
)
CHAT_TEMPLATES = "additional_chat_templates/*"
DATA_FILES = ("*.jsonl", "*.json", "*.csv", "*.parquet", "*.arrow")
DATASET_FILES = (*DATA_FILES, "README.md", "*.yaml")
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")

_DEFAULT_ENDPOINT = "https://huggingface.co"
_UNSAFE_CHARACTER = re.compile(r"[\x00-\x1f\x7f\\]")
_DRIVE = re.compile(r"[A-Za-z]:")
_SHOWN = 5


def wanted_files(kind: Kind, names: Iterable[str]) -> list[str]:
    """The files, of those that a repository lists, that training can read; sorted."""
    if kind == "dataset":
        return sorted(name for name in names if _matches(name, DATASET_FILES))
    wanted = [name for name in names if _is_model_file(name)]
    # Mistral's repositories hold the same weights twice; transformers never reads the consolidated ones.
    usual = [name for name in wanted if not _is_consolidated(name)]
    if any(_matches(name, ("model*.safetensors",)) for name in usual):
        wanted = usual
    return sorted(wanted)


def download_patterns(kind: Kind, wanted: Iterable[str]) -> list[str]:
    """The glob patterns that select the wanted files, and no other listed one."""
    # One pattern a file would compare every file with every other; data sets can have 100,000 files.
    return list(DATASET_FILES) if kind == "dataset" else [glob.escape(name) for name in wanted]


def check_usable(repo: Repo, names: list[str], endpoint: str) -> None:
    """Refuse a repository that training can't read, from its list of files.

    Raises:
        HubError: A name leads out of the folder; or there are no weights as safetensors, no config, or no
            data files.
    """
    unsafe = [name for name in names if _leads_out(name)]
    unsafe += [name for name in wanted_files(repo.kind, names) if _is_ambiguous(name)]
    if unsafe:
        raise HubError(
            f"it lists a file that would be written outside its folder: {unsafe[0][:200]!r}",
            where=repo.title,
            fix="don't use this repository, and report it to the hub",
        )
    if repo.kind == "model":
        _check_model(repo, names, endpoint)
    elif not any(_matches(name, DATA_FILES) for name in names):
        raise _no_data_files(repo, names, endpoint)


def _check_model(repo: Repo, names: list[str], endpoint: str) -> None:
    top = [name for name in names if "/" not in name]
    if not any(_matches(name, ("*.safetensors",)) for name in top):
        raise _no_weights(repo, names, endpoint)
    if not {"config.json", "adapter_config.json"} & set(top):
        raise HubError(
            "it has weights, but neither config.json nor adapter_config.json",
            where=repo.title,
            fix=f"choose a repository in the transformers layout; its files: {repo.page(endpoint)}/tree/main",
        )


def _no_weights(repo: Repo, names: list[str], endpoint: str) -> HubError:
    below = sorted({name.rsplit("/", 1)[0] for name in names if name.endswith(".safetensors")})
    if below:
        return HubError(
            f"its safetensors weights are not in the top folder but in {_some(below)}",
            where=repo.title,
            fix="choose a repository whose top folder holds config.json and the weights",
        )
    pickled = [name for name in names if _matches(name, PICKLED)]
    if pickled:
        return HubError(
            f"its weights are only there as pickles ({_some(pickled)}), which are refused: reading a pickle "
            "can run any code that is in it",
            where=repo.title,
            fix=_conversion(repo, endpoint),
        )
    if gguf := [name for name in names if name.endswith(".gguf")]:
        return HubError(
            f"its weights are only there as GGUF ({_some(gguf)}), a format for inference, mostly quantized",
            where=repo.title,
            fix=f"train the model it was made from (`base_model` on {repo.page(endpoint)})",
        )
    return HubError(
        f"it has no weights: no .safetensors file, only {_some(names)}",
        where=repo.title,
        fix=f"check the name and the revision on {repo.page(endpoint)}/tree/{repo.revision}",
    )


def _conversion(repo: Repo, endpoint: str) -> str:
    # The Space opens a pull request as SFconvertbot (transformers/safetensors_conversion.py reads the same).
    by_bot = (
        f"if {repo.page(endpoint)}/discussions has a pull request of SFconvertbot, use revision "
        f"refs/pr/<its number>, or let {_DEFAULT_ENDPOINT}/spaces/safetensors/convert open one; otherwise "
        if endpoint == _DEFAULT_ENDPOINT
        else ""
    )
    return (
        f"{by_bot}convert it to a local folder, where running its pickle does no harm: "
        f"AutoModelForCausalLM.from_pretrained({repo.repo_id!r}, use_safetensors=False)"
        ".save_pretrained(folder)"
    )


def _no_data_files(repo: Repo, names: list[str], endpoint: str) -> HubError:
    scripts = [name for name in names if name.endswith(".py")]
    found = f"only {_some(names)}" + ("; scripts of data sets are never run" if scripts else "")
    # The hub's dataset viewer converts public data sets, and publishes the files on this branch.
    converted = "use revision refs/convert/parquet, if the data set has it; otherwise "
    return HubError(
        f"it has no data files ({', '.join(DATA_FILES)}): {found}",
        where=repo.title,
        fix=(converted if endpoint == _DEFAULT_ENDPOINT else "") + "convert the data to JSONL or Parquet",
    )


def _is_model_file(name: str) -> bool:
    if _matches(name, PICKLED):
        return False
    return _matches(name, MODEL_FILES if "/" not in name else (CHAT_TEMPLATES,))


def _is_consolidated(name: str) -> bool:
    return _matches(name, ("consolidated*.safetensors", "consolidated*.safetensors.index.json"))


def _leads_out(name: str) -> bool:
    plain = name.replace("\\", "/")
    return plain.startswith("/") or ".." in plain.split("/")


def _is_ambiguous(name: str) -> bool:
    if _UNSAFE_CHARACTER.search(name):
        return True
    return any(part in ("", ".") or _DRIVE.match(part) is not None for part in name.split("/"))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_SHOWN])
    return (shown or "nothing") + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
