"""Trainings of `tests.gpu.training` as processes that can be killed."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent


class Training:
    """A training in a process of its own."""

    def __init__(self, folder: Path, case: str, device: str = "cuda") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.training", str(folder), case, device],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> dict[str, Any]:
        """What it says at its end."""
        out, error = self._process.communicate()
        assert self._process.returncode == 0, error[-4000:]
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
        return found

    def kill_after(self, epoch: int) -> None:
        """SIGKILL as soon as an epoch is done."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line == json.dumps({"epoch": epoch}) + "\n":
                self._process.kill()
        self._process.communicate()
        assert self._process.returncode == -signal.SIGKILL
