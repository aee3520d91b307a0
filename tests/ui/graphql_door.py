"""Dagster's GraphQL API: what a test reads and waits for, and launches that need no browser."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

FINAL = ("SUCCESS", "FAILURE", "CANCELED")
REPOSITORY = {"repositoryLocationName": "kitchen", "repositoryName": "__repository__"}

_LAUNCH = """
mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
  __typename
  ... on LaunchRunSuccess { run { runId } }
  ... on RunConfigValidationInvalid { errors { message } }
  ... on PythonError { message } } }
"""
_TERMINATE = "mutation ($id: String!) { terminateRun(runId: $id) { __typename ... on PythonError { message } } }"
_RUN = """
query ($id: ID!) { runOrError(runId: $id) { ... on Run {
  status jobName parentRunId runConfigYaml
  tags { key value } stepStats { stepKey status startTime } } } }
"""
_EVENTS = """
query ($id: ID!) { logsForRun(runId: $id, limit: 1000) { ... on EventConnection { events {
  __typename ... on MessageEvent { message stepKey eventType } } } } }
"""
_ASSET = """
query ($key: AssetKeyInput!) { assetOrError(assetKey: $key) { ... on Asset {
  definition { dependencyKeys { path } isMaterializable }
  assetMaterializations(limit: 20) {
    runId partition tags { key value }
    metadataEntries { label
      ... on TextMetadataEntry { text } ... on IntMetadataEntry { intRepr } ... on FloatMetadataEntry { floatValue }
      ... on BoolMetadataEntry { boolValue } ... on MarkdownMetadataEntry { mdStr } ... on JsonMetadataEntry { jsonString }
    } } } } }
"""
_RUNS = "query ($filter: RunsFilter) { runsOrError(filter: $filter) { ... on Runs { results { runId } } } }"


@dataclass(frozen=True)
class Materialization:
    """A materialization of an asset.

    Attributes:
        run_id: The run that made it.
        partition: Its partition, or None.
        tags: By key; `dagster/data_version` and `dagster/input_data_version/<asset>` among them.
        metadata: By label; JSON is read, numbers are numbers.
    """

    run_id: str
    partition: str | None
    tags: dict[str, str]
    metadata: dict[str, Any]


@dataclass(frozen=True)
class GraphqlDoor:
    """The API of one web server.

    Attributes:
        url: Address of the UI.
    """

    url: str

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The `data` of an answer.

        Raises:
            AssertionError: The answer has errors.
        """
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                answer = json.load(error)
        assert not answer.get("errors"), answer["errors"]
        data: dict[str, Any] = answer["data"]
        return data

    def is_loaded(self) -> bool:
        """Whether the server answers and the code location is loaded."""
        try:
            answer = self.ask("{ repositoriesOrError { ... on RepositoryConnection { nodes { name } } } }")
        except (OSError, AssertionError):
            return False
        return bool(answer["repositoriesOrError"].get("nodes"))

    def launch(self, job: str, config: dict[str, Any] | None = None) -> str:
        """Launch a job; returns the run's id."""
        selector = {**REPOSITORY, "jobName": job}
        answer = self.ask(_LAUNCH, params={"selector": selector, "runConfigData": config or {}})["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def terminate(self, run_id: str) -> None:
        """Ask for a run's end, as the UI's Terminate does."""
        answer = self.ask(_TERMINATE, id=run_id)["terminateRun"]
        assert answer["__typename"] == "TerminateRunSuccess", answer

    def run(self, run_id: str) -> dict[str, Any]:
        """A run: status, jobName, parentRunId, runConfigYaml, tags by key, steps in the order of their start."""
        run: dict[str, Any] = self.ask(_RUN, id=run_id)["runOrError"]
        started = sorted(
            (step for step in run.pop("stepStats") if step["startTime"]), key=lambda step: step["startTime"]
        )
        return {
            **run,
            "tags": {tag["key"]: tag["value"] for tag in run["tags"]},
            "steps": [(step["stepKey"], step["status"]) for step in started],
        }

    def is_over(self, run_id: str) -> bool:
        """Whether a run has ended."""
        return self.run(run_id)["status"] in FINAL

    def runs_of(self, job: str) -> list[str]:
        """Ids of a job's runs, newest first."""
        return [run["runId"] for run in self.ask(_RUNS, filter={"pipelineName": job})["runsOrError"]["results"]]

    def events(self, run_id: str) -> list[dict[str, Any]]:
        """A run's log in order: __typename, message, stepKey, eventType."""
        events: list[dict[str, Any]] = self.ask(_EVENTS, id=run_id)["logsForRun"]["events"]
        return events

    def materializations(self, recipe: str, stage: str) -> list[Materialization]:
        """The newest materializations of an asset, newest first."""
        asset = self._asset(recipe, stage)
        return [
            Materialization(
                run_id=found["runId"],
                partition=found["partition"],
                tags={tag["key"]: tag["value"] for tag in found["tags"]},
                metadata={entry["label"]: _value(entry) for entry in found["metadataEntries"]},
            )
            for found in asset["assetMaterializations"]
        ]

    def parents(self, recipe: str, stage: str) -> list[str]:
        """Names of the assets that an asset depends on."""
        return sorted("/".join(key["path"]) for key in self._asset(recipe, stage)["definition"]["dependencyKeys"])

    def _asset(self, recipe: str, stage: str) -> dict[str, Any]:
        asset: dict[str, Any] = self.ask(_ASSET, key={"path": [recipe, stage]})["assetOrError"]
        return asset


def _value(entry: dict[str, Any]) -> Any:
    if "jsonString" in entry:
        return json.loads(entry["jsonString"])
    if "intRepr" in entry:
        return int(entry["intRepr"])
    return next((value for key, value in entry.items() if key != "label"), None)
