"""What every test shares: one thread, no progress bars, no telemetry, nothing of the user's own settings."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests import together
from tests.object_store import CREDENTIALS, ObjectStore, object_store

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
for _name in ("KITCHEN_STORE", "KITCHEN_RECIPES", "KITCHEN_SCRATCH", "DAGSTER_HOME"):
    os.environ.pop(_name, None)
for _name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[_name]
os.environ.update(CREDENTIALS)

# With torch, transformers and dagster loaded, collections by Python's own thresholds were a tenth of all time.
gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server, started once by the process that first needs it."""
    folder = tmp_path_factory.mktemp("s3")
    os.environ["KITCHEN_SCRATCH"] = str(folder / "scratch")
    with object_store(folder / "server") as server:
        yield server
    del os.environ["KITCHEN_SCRATCH"]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """See `tests.together`."""
    return together.scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes longest is begun first."""
    if config.getoption("markexpr") == "full":
        together.in_order(items)
