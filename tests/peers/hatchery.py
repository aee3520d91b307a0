"""A server of the wire of Fireworks' Training SDK on this machine: Hatchery, behind the vendor's paths.

It runs by this environment's own packages; its own two, and what those need besides, lie in a folder of their own. See
docs/decisions/0031-fireworks.md.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.peers.hatchery_app import SITE, TRAINERS
from tests.peers.server_process import ServerProcess


class Hatchery(ServerProcess):
    """A Hatchery server."""

    @property
    def trainers(self) -> str:
        """Where the Training SDK finds it."""
        return f"{self.url}{TRAINERS}"

    @property
    def health(self) -> str:
        """See `ServerProcess.health`."""
        return f"{self.url}/count"

    def environment(self) -> Mapping[str, str]:
        """See `ServerProcess.environment`."""
        return {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}

    def command(self) -> Sequence[str]:
        """See `ServerProcess.command`."""
        assert (SITE / "hatchery").is_dir(), "the peer isn't installed: make peers"
        return [
            *(sys.executable, "-m", "tests.peers.hatchery_app"),
            *(str(self.folder / "data"), str(self.model), str(self.port)),
        ]
