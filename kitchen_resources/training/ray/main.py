"""The entry point of a Ray job: its own process is the first worker, and actors are the others.

python -m kitchen_resources.training.ray.main FOLDER PROCESSES CPUS GPUS
"""

import os
import socket
import sys
from pathlib import Path
from typing import Any


def main(folder: Path, processes: int, cpus: float, gpus: float) -> int:
    """Work as the first of several; returns the exit status."""
    from kitchen_resources.training.worker.main import main as work

    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    others = []
    if processes > 1:
        import ray

        ray.init(log_to_driver=True)
        place["MASTER_ADDR"] = ray.util.get_node_ip_address()
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Rank)
        others = [actor.remote({**place, "RANK": str(rank)}) for rank in range(1, processes)]
    os.environ.update({**place, "RANK": "0", "LOCAL_RANK": "0"})
    running = [other.work.remote(str(folder)) for other in others]
    status = work(folder)
    if running:
        import ray

        statuses = [status, *ray.get(running)] if status == 0 else [status]
        status = max(statuses)
    return status


class Rank:
    """A worker beside the first one."""

    def __init__(self, place: dict[str, str]) -> None:
        # Ray shows each actor its own GPUs only, so that each finds one under number 0.
        os.environ.update({**place, "LOCAL_RANK": "0"})

    def work(self, folder: str) -> int:
        """Work until told to end; returns the exit status."""
        from kitchen_resources.training.worker.main import main as work

        return work(Path(folder))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
    return port


def _arguments(given: list[str]) -> tuple[Any, ...]:
    folder, processes, cpus, gpus = given
    return Path(folder), int(processes), float(cpus), float(gpus)


if __name__ == "__main__":
    sys.exit(main(*_arguments(sys.argv[1:])))
