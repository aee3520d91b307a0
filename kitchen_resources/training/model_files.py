"""An exported model's files: as stored, and as a folder."""

import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore, StoredFile
from kitchen_resources.errors import CheckpointError
from kitchen_resources.registry.port import ModelFiles


def write_model_folder(content: ContentStore, model: ModelFiles, target: Path) -> Path:
    """Write a stored model to a folder of its own: copies, so that nothing done to them reaches the store.

    Args:
        content: The store.
        model: What to write.
        target: Folder; when it is there already it is taken to be this model.

    Raises:
        CheckpointError: A file is missing or damaged.
    """
    if target.is_dir():
        return target
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        for name, file in model.files.items():
            path = draft / name
            if path.resolve().is_relative_to(draft.resolve()) is False:
                raise CheckpointError(f"the model names the file {name!r}", where=str(target))
            path.parent.mkdir(parents=True, exist_ok=True)
            link = path.with_name(f"{path.name}.stored")
            content.get_file(file.sha256, link)
            shutil.copyfile(link, path)
            link.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.rename(target)
        except OSError:
            # Another process wrote the same model meanwhile.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def files_as_json(model: ModelFiles) -> dict[str, Any]:
    """A model's files as stored."""
    return {
        "kind": model.kind,
        "digest": model.digest,
        "files": {name: {"sha256": file.sha256, "size": file.size} for name, file in model.files.items()},
    }


def files_from_json(value: Mapping[str, Any]) -> ModelFiles:
    """A stored model's files."""
    files = {name: StoredFile(file["sha256"], file["size"]) for name, file in value["files"].items()}
    return ModelFiles(files=files, kind=value["kind"], digest=value["digest"])
