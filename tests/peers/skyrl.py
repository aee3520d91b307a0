"""A real server of the Tinker API on this machine: SkyRL, on its JAX backend, in an environment of its own.

It is started for the tests, and stopped by the ids of its processes. What it needs to run beside Python 3.11 is said in
docs/decisions/0019-remote-services.md.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.peers.server_process import ServerProcess

KEY = "tml-a-key-for-the-tests"
ENVIRONMENT = Path(__file__).parents[2] / ".venv" / "peers" / "skyrl"


class SkyRL(ServerProcess):
    """A SkyRL server.

    Args:
        folder: Where it keeps database, checkpoints and logs.
        model: Folder of the base that it serves.
        adapters: Places for adapters.
    """

    def __init__(self, folder: Path, model: Path, *, adapters: int = 8) -> None:
        super().__init__(folder, model)
        self._adapters = adapters

    @property
    def health(self) -> str:
        """See `ServerProcess.health`."""
        return f"{self.url}/api/v1/healthz"

    def environment(self) -> Mapping[str, str]:
        """See `ServerProcess.environment`."""
        return {
            "VIRTUAL_ENV": str(ENVIRONMENT),
            "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "UV_OFFLINE": "1",
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(ENVIRONMENT / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }

    def command(self) -> Sequence[str]:
        """See `ServerProcess.command`."""
        assert (ENVIRONMENT / "bin" / "uv").exists(), "the peer isn't installed: make peers"
        return [
            *("uv", "run", "--no-project", "--active", "-m", "skyrl.tinker.api"),
            *("--base-model", str(self.model), "--backend", "jax", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--checkpoints-base", str(self.folder / "checkpoints")),
            *("--database-url", f"sqlite:///{self.folder / 'tinker.db'}"),
            *("--session-timeout-sec", "60", "--session-cleanup-interval-sec", "15"),
            *("--backend-config", f'{{"max_lora_adapters": {self._adapters}, "max_lora_rank": 8}}'),
        ]


@contextmanager
def skyrl(folder: Path, model: Path, *, adapters: int = 8) -> Iterator[SkyRL]:
    """A running server, killed in the end."""
    with SkyRL(folder, model, adapters=adapters) as server:
        yield server
