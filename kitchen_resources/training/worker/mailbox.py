"""Files by which a launcher and its workers, which share a disk, tell each other what to do.

What workers tell travels through Dagster Pipes; what they are told lies here, one numbered file for each answer. The
launcher holds a lock as long as it lives: workers whose launcher is gone end.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kitchen_resources.blobs.flocks import locked
from kitchen_resources.digests import canonical_json

_PAUSE_S = 0.01
_LOOK_S = 0.5
"""How often a worker that waits looks whether its launcher lives, in seconds."""

_ALIVE = "launcher.lock"


class LauncherGone(Exception):
    """The process that started the workers is no more."""


class Mailbox:
    """See the module.

    Args:
        folder: A folder that launcher and workers see.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Be the launcher: alive while the context lasts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._opened() as folder, locked(_ALIVE, os.O_CREAT | os.O_RDWR, folder=folder):
            yield

    def put(self, name: str, value: Mapping[str, Any]) -> None:
        """Leave a message; whoever reads it reads all of it."""
        draft = self.folder / f"{name}.draft"
        draft.write_bytes(canonical_json(dict(value)))
        draft.rename(self.folder / f"{name}.json")

    def get(self, name: str) -> dict[str, Any] | None:
        """A message, or None when it isn't there yet."""
        with suppress(FileNotFoundError):
            value: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_bytes())
            return value
        return None

    def wait(self, name: str) -> dict[str, Any]:
        """A message, when it comes.

        Raises:
            LauncherGone: It never will.
        """
        looked = time.monotonic()
        while (value := self.get(name)) is None:
            if time.monotonic() - looked >= _LOOK_S:
                self.require_launcher()
                looked = time.monotonic()
            time.sleep(_PAUSE_S)
        return value

    def require_launcher(self) -> None:
        """End a worker whose launcher is gone.

        Raises:
            LauncherGone: It is.
        """
        try:
            with self._opened() as folder, locked(_ALIVE, os.O_RDWR, folder=folder, wait=False):
                pass
        except BlockingIOError:
            return
        except FileNotFoundError as error:
            raise LauncherGone from error
        raise LauncherGone

    @contextmanager
    def _opened(self) -> Iterator[int]:
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield folder
        finally:
            os.close(folder)
