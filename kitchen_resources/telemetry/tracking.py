"""MLflow: a run of the tracking server for each run of the kitchen, by its REST API.

Not by its client, which draws from Python's `random` as training does, tells its makers of its use, and takes two seconds
to import; see decision 0023.
"""

import base64
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from kitchen_resources.telemetry.jsonl import plain
from kitchen_resources.telemetry.port import Event

_TIMEOUT_S = 10.0
_PREFIXES = {"training.step": "step/", "training.epoch": "epoch/", "training.eval": "", "eval.complete": ""}


class MlflowHandler:
    """Logs metrics by step, and how a run ended; one MLflow run for each Dagster run of a recipe.

    Measurements of steps, epochs and evaluations are metrics: `step/loss` at the step, `epoch/loss` at the epoch's last
    one, `held_out/loss` for evaluations. The MLflow run is tagged with the Dagster run, by which a later process of the
    same run finds it. Credentials are MLflow's own environment variables.

    Args:
        tracking_uri: The server, such as `http://127.0.0.1:5000`.
        experiment: Name of the experiment; made where it isn't there.
    """

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        self._server = _Server(tracking_uri)
        self._experiment = experiment
        self._runs: dict[tuple[str, str], str] = {}
        self._going: dict[str, str] = {}
        """The run that is going on of each recipe, whose step events don't name it."""

    def handle(self, event: Event) -> None:
        """See `Handler.handle`.

        Raises:
            OSError: The server can't be asked, or refuses.
        """
        about = event.metadata
        recipe = str(about.get("recipe", ""))
        if "run" in about:
            self._going[recipe] = str(about["run"])
        run = self._going.get(recipe)
        if run is None:
            return
        tags: dict[str, Any] = {}
        if event.name == "dataset.prepared":
            tags = {"kitchen.dataset_digest": about["digest"]}
        elif event.name == "model.registered":
            tags = {"kitchen.registered": f"{about['name']} version {about['version']}"}
        elif event.name == "workflow.run.exception":
            tags = {"kitchen.error": about["error"]}
        elif event.name in _PREFIXES:
            tags = {"kitchen.fingerprint": about["fingerprint"]}
        if tags:
            self._log(self._run(recipe, run, event), event, tags)
        if event.name == "workflow.run.stop":
            status = "FINISHED" if about["success"] else "FAILED"
            told = {"run_id": self._run(recipe, run, event), "status": status, "end_time": _stamp(event)}
            self._server.post("runs/update", told)

    def close(self) -> None:
        """See `Handler.close`."""

    def _log(self, run_id: str, event: Event, tags: Mapping[str, Any]) -> None:
        prefix = _PREFIXES.get(event.name)
        values = {} if prefix is None else {f"{prefix}{k}": plain(v) for k, v in event.measurements.items()}
        step = int(event.metadata.get("step", 0))
        metrics = [
            {"key": name, "value": float(value), "timestamp": _stamp(event), "step": step}
            for name, value in values.items()
            if value is not None
        ]
        named = [{"key": name, "value": str(value)[:5000]} for name, value in tags.items()]
        self._server.post("runs/log-batch", {"run_id": run_id, "metrics": metrics, "tags": named})

    def _run(self, recipe: str, run: str, event: Event) -> str:
        """The MLflow run, made once for a Dagster run and recipe, when its first event comes."""
        if (recipe, run) not in self._runs:
            experiment = self._experiment_id()
            tags = {"kitchen.run": run, "kitchen.recipe": recipe}
            named = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
            query = {"experiment_ids": [experiment], "filter": named, "max_results": 1}
            found = self._server.post("runs/search", query).get("runs", [])
            if not found:
                made = {
                    "experiment_id": experiment,
                    "run_name": f"{recipe} {run[:8]}",
                    # Without it a run began in 1970, and the UI lists runs in any order.
                    "start_time": _stamp(event),
                    "tags": [{"key": name, "value": value} for name, value in tags.items()],
                }
                found = [self._server.post("runs/create", made)["run"]]
            self._runs[recipe, run] = found[0]["info"]["run_id"]
        return self._runs[recipe, run]

    def _experiment_id(self) -> str:
        named = urllib.parse.quote(self._experiment)
        try:
            found = self._server.get(f"experiments/get-by-name?experiment_name={named}")
            return str(found["experiment"]["experiment_id"])
        except FileNotFoundError:
            made = self._server.post("experiments/create", {"name": self._experiment})
            return str(made["experiment_id"])


class _Server:
    """A tracking server, by its REST API."""

    def __init__(self, uri: str) -> None:
        self._api = f"{uri.rstrip('/')}/api/2.0/mlflow/"

    def get(self, path: str) -> dict[str, Any]:
        """Ask for something."""
        return self._ask(urllib.request.Request(self._api + path))

    def post(self, path: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """Send something."""
        return self._ask(urllib.request.Request(self._api + path, data=json.dumps(value).encode()))

    def _ask(self, request: urllib.request.Request) -> dict[str, Any]:
        """The answer.

        Raises:
            FileNotFoundError: There is no such thing.
            OSError: It can't be asked, or refuses.
        """
        request.add_header("Content-Type", "application/json")
        for name, value in _credentials().items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                found: dict[str, Any] = json.loads(answer.read() or b"{}")
                return found
        except urllib.error.HTTPError as error:
            said = error.read(500).decode(errors="replace")
            kind = FileNotFoundError if error.code == 404 else OSError
            raise kind(f"MLflow answers {error.code}: {said}") from None


def _credentials() -> dict[str, str]:
    """As MLflow's own client reads them."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if token:
        return {"Authorization": f"Bearer {token}"}
    name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if name:
        return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}
    return {}


def _stamp(event: Event) -> int:
    """Milliseconds since 1970."""
    return round(event.time * 1000)
