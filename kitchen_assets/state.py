"""What stages of one launch hand to each other: JSON values in the store, files by digest, and live objects of a process."""

import json
import shutil
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.workplace import workplace
from kitchen_resources.errors import ConfigError
from kitchen_resources.launch import Launch


class State(MutableMapping[str, Any]):
    """JSON values by name: what earlier stages left, and what this one leaves.

    Read from the store when it is first asked for something; a stage that asks for nothing costs no request.

    Args:
        launch: Whose stages share it.
        stage: Name of the stage; what it changes is kept under that.
        before: Names of the steps that are done before it, in order; what a later one left wins.
    """

    def __init__(self, launch: Launch, stage: str, before: Sequence[str]) -> None:
        self._launch = launch
        self._stage = stage
        self._before = before
        self._values: dict[str, Any] | None = None
        self._found: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        try:
            return self._all()[name]
        except KeyError:
            known = ", ".join(sorted(self._all())) or "nothing"
            raise KeyError(f"no stage before {self._stage} left {name!r}; there is {known}") from None

    def __setitem__(self, name: str, value: Any) -> None:
        self._all()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def replace(self, values: Mapping[str, Any]) -> None:
        """Have exactly these values."""
        self._all().clear()
        self._all().update(values)

    def forget_changes(self) -> None:
        """Have again what was read."""
        if self._values is not None:
            self._values = json.loads(json.dumps(self._found))

    def snapshot(self) -> dict[str, Any]:
        """The values as they would be read from the store.

        Raises:
            ConfigError: One is no JSON value.
        """
        for name, value in self._all().items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"state {name!r} is no JSON value: {error}",
                    where=f"stage {self._stage}",
                    fix="keep objects by kitchen.once(name, make), and files by kitchen.keep(folder)",
                ) from None
        copied: dict[str, Any] = json.loads(json.dumps(self._all()))
        return copied

    def save(self) -> None:
        """Note what has changed since it was read; nothing when nothing has."""
        if self._values is None:
            return
        now = self.snapshot()
        changed = {name: value for name, value in now.items() if self._found.get(name, _NOTHING) != value}
        removed = sorted(set(self._found) - set(now))
        if changed or removed:
            self._launch.write(f"state-{self._stage}", {"changed": changed, "removed": removed})
        self._found = now

    def _all(self) -> dict[str, Any]:
        if self._values is None:
            found: dict[str, Any] = {}
            for name in self._before:
                note = self._launch.read(f"state-{name}") or {"changed": {}, "removed": []}
                found.update(note["changed"])
                for gone in note["removed"]:
                    found.pop(gone, None)
            self._found = found
            self._values = json.loads(json.dumps(found))
        assert self._values is not None
        return self._values


_NOTHING = object()


def keep_files(content: ContentStore, folder: Path) -> dict[str, dict[str, Any]]:
    """Put a folder's files into the store; what is returned is a JSON value that names them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {}
    with workplace(content.blobs.scratch(), "keep") as place:
        for number, path in enumerate(paths):
            # A copy: the store may link a file, and whoever wrote this one may write to it again.
            copy = place / str(number)
            shutil.copyfile(path, copy)
            file = content.put_file(copy)
            found[path.relative_to(folder).as_posix()] = {"sha256": file.sha256, "size": file.size}
    return found


def kept_files(content: ContentStore, files: Mapping[str, Mapping[str, Any]], target: Path) -> Path:
    """Bring files that were kept into a folder, every byte verified."""
    for name, file in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content.get_file(file["sha256"], path)
    return target
