"""The MLflow handler against a real tracking server."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import kitchen_assets as kitchen
from kitchen_resources.errors import KitchenError

SERVER = Path(__file__).parents[2] / ".venv" / "peers" / "mlflow" / "bin" / "mlflow"
_UP_S = 120
SMALL = {"model": "org/model", "dataset": "rows", "epochs": 2, "batch_size": 16, "evaluations": []}


class Tracking:
    """A tracking server on loopback."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.uri = f"http://127.0.0.1:{port}"
        store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
        self._log = (folder / "server.log").open("wb")
        self._process = subprocess.Popen(
            [str(SERVER), "server", *store, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            cwd=folder,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        for _ in range(_UP_S * 10):
            assert self._process.poll() is None, (folder / "server.log").read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((folder / "server.log").read_text()[-3000:])

    def ask(self, path: str, value: Mapping[str, Any] | None = None) -> Any:
        data = None if value is None else json.dumps(value).encode()
        request = urllib.request.Request(
            f"{self.uri}/api/2.0/mlflow/{path}", data=data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read())

    def runs(self, experiment: str) -> list[dict[str, Any]]:
        """Status, tags and last metrics of an experiment's runs, the oldest first."""
        found = self.ask(f"experiments/get-by-name?experiment_name={experiment}")["experiment"]["experiment_id"]
        runs = self.ask("runs/search", {"experiment_ids": [found]}).get("runs", [])
        assert all(int(run["info"]["start_time"]) > 1_700_000_000_000 for run in runs)
        runs.sort(key=lambda run: int(run["info"]["start_time"]))
        return [
            {
                "id": run["info"]["run_id"],
                "status": run["info"]["status"],
                "tags": {tag["key"]: tag["value"] for tag in run["data"]["tags"]},
                "metrics": {metric["key"]: metric["value"] for metric in run["data"].get("metrics", [])},
            }
            for run in runs
        ]

    def history(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        found = self.ask(f"metrics/get-history?run_id={run_id}&metric_key={metric}")["metrics"]
        return sorted((int(one.get("step", 0)), one["value"]) for one in found)

    def close(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracking]:
    tracking = Tracking(tmp_path_factory.mktemp("mlflow"))
    yield tracking
    tracking.close()


def run(server: Tracking, experiment: str, error: type[Exception] | None = None, **config: Any) -> tuple[str, Any]:
    """A whole run without a backend: its id, and its result."""
    told = {"console": False, "mlflow": {"tracking_uri": server.uri, "experiment": experiment}}
    with dg.DagsterInstance.ephemeral() as instance:
        arguments = ("supervised", {**SMALL, **config}, {**kitchen.noop(), "telemetry": told})
        result = None
        if error is None:
            result = kitchen.run(*arguments, instance=instance)
        else:
            with pytest.raises(error):
                kitchen.run(*arguments, instance=instance)
        return instance.get_runs()[0].run_id, result


def test_a_run_is_one_there_with_its_metrics_by_step(server: Tracking) -> None:
    run_id, result = run(server, "whole")
    (found,) = server.runs("whole")
    assert found["status"] == "FINISHED"
    assert found["tags"]["kitchen.run"] == run_id
    assert found["tags"]["kitchen.recipe"] == "supervised"
    assert found["tags"]["kitchen.fingerprint"] == result.fingerprint
    assert found["tags"]["kitchen.registered"] == "supervised version 1"
    assert len(found["tags"]["kitchen.dataset_digest"]) == 64
    losses = server.history(found["id"], "step/loss")
    assert [step for step, _ in losses] == list(range(1, 9))
    assert losses[-1][1] < losses[0][1]
    assert [step for step, _ in server.history(found["id"], "epoch/loss")] == [4, 8]
    assert found["metrics"]["step/loss"] == losses[-1][1]


def test_a_refused_run_failed_and_says_why(server: Tracking) -> None:
    run(server, "refused", KitchenError, epochs=0)
    (found,) = server.runs("refused")
    assert found["status"] == "FAILED"
    assert found["tags"]["kitchen.error"].startswith("ConfigError: recipe supervised")


def test_two_runs_are_two(server: Tracking) -> None:
    first, _ = run(server, "two")
    second, _ = run(server, "two", seed=1)
    assert [found["tags"]["kitchen.run"] for found in server.runs("two")] == [first, second]


def test_credentials_are_mlflows_own(server: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    from kitchen_resources.telemetry import tracking

    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    assert tracking._credentials() == {"Authorization": "Basic bWU6c2VjcmV0"}
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "token")
    assert tracking._credentials() == {"Authorization": "Bearer token"}
