"""A SkyRL server for a module's tests, and what is trained on it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kitchen_resources.embedded import write_model
from kitchen_resources.training.tinker.backend import TinkerTrainer
from tests.fireworks_server import FireworksServer, fireworks_server
from tests.peers.adapters import trained_adapter
from tests.peers.hatchery import Hatchery
from tests.peers.hatchery_app import KEY as FIREWORKS_KEY
from tests.peers.jobs_bench import ACCOUNT, jobs_bench
from tests.peers.service_bench import ServiceBench
from tests.peers.skyrl import KEY, SkyRL, skyrl


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The SDKs leave connections to the garbage collection."""
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
        # dagster-ray's reader is of a class that Dagster says may change.
        item.add_marker(pytest.mark.filterwarnings("ignore:Function .PipesMessageReader"))


@pytest.fixture(autouse=True, scope="session")
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_API_KEY", KEY)
        patch.setenv("FIREWORKS_API_KEY", FIREWORKS_KEY)
        patch.delenv("TINKER_BASE_URL", raising=False)
        yield


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base that the server serves, which the recipes name."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[SkyRL]:
    with skyrl(tmp_path_factory.mktemp("skyrl"), base) as running:
        yield running


@pytest.fixture(scope="module")
def hatchery(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Iterator[Hatchery]:
    with Hatchery(tmp_path_factory.mktemp("hatchery"), base) as running:
        yield running


@pytest.fixture
def trainer(server: SkyRL, base: Path) -> Callable[..., TinkerTrainer]:
    """Makes the backend."""

    def make(**how: Any) -> TinkerTrainer:
        return TinkerTrainer(str(base), **{"base_url": server.url, "deadline_s": 120.0, **how})

    return make


def no_key_in(folder: Path) -> None:
    """Nothing that was written holds the key."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"a-key-for-the-tests" not in path.read_bytes(), path
    assert os.environ["TINKER_API_KEY"] == KEY
    assert os.environ["FIREWORKS_API_KEY"] == FIREWORKS_KEY


# Managed jobs.


@pytest.fixture(scope="session")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return trained_adapter(base, tmp_path_factory.mktemp("adapter"))


@pytest.fixture
def job_server(adapter: dict[str, bytes]) -> Iterator[FireworksServer]:
    with fireworks_server(key=FIREWORKS_KEY, account=ACCOUNT) as running:
        running.adapter_files = lambda job: dict(adapter)
        yield running


@pytest.fixture
def job_bench(tmp_path: Path, job_server: FireworksServer, base: Path) -> Iterator[ServiceBench]:
    yield jobs_bench(tmp_path, job_server, base)
    no_key_in(tmp_path)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"X-Goog-Sign" not in path.read_bytes(), (
            f"{path} has a link that opens something"
        )
