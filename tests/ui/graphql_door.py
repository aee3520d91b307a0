"""Dagster's GraphQL API: what a test reads and waits for, and launches that need no browser."""

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

FINAL = ("SUCCESS", "FAILURE", "CANCELED")
SELECTOR = {"repositoryLocationName": "kitchen", "repositoryName": "__repository__"}


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
