"""What the runs of a recipe know of each other, and the epochs of one launch."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kitchen_resources.digests import canonical_json
from kitchen_resources.errors import EarlierFailure
from kitchen_resources.launch import Launch
from kitchen_resources.recipes.identity import changes


@dataclass(frozen=True)
class KnownRun:
    """A run that a recipe has had.

    Attributes:
        fingerprint: Of the run.
        identity: What the fingerprint is over.
    """

    fingerprint: str
    identity: Mapping[str, Any]


def remember_run(launch: Launch, fingerprint: str, identity: Mapping[str, Any]) -> None:
    """Note a run of the launch's recipe, so that later launches can say what moved."""
    record = {"fingerprint": fingerprint, "identity": dict(identity), "created": time.time()}
    launch.ports.blobs.put_if_absent(f"recipes/{launch.name}/runs/{fingerprint}.json", canonical_json(record))


def _newest_other_run(launch: Launch, fingerprint: str) -> KnownRun | None:
    """The newest run of the launch's recipe besides the one with this fingerprint."""
    others = [run for run in launch.known_runs() if run["fingerprint"] != fingerprint]
    return KnownRun(others[-1]["fingerprint"], others[-1]["identity"]) if others else None


def moved_notes(launch: Launch, fingerprint: str, identity: Mapping[str, Any], *, steps: int) -> tuple[str, ...]:
    """What a person should know before a new run: what moved since the last run of the recipe, and what that costs.

    Args:
        launch: The launch.
        fingerprint: Of the new run.
        identity: What the fingerprint is over.
        steps: Optimiser steps that it trains.
    """
    before = _newest_other_run(launch, fingerprint)
    if before is None:
        return (f"run {fingerprint[:12]} is new",)
    moved = "; ".join(changes(before.identity, identity))
    notes = [f"run {fingerprint[:12]} is new; since run {before.fingerprint[:12]} moved: {moved}"]
    if launch.recipe.continue_from is None and launch.checkpoints.head(before.fingerprint).entries():
        notes.append(
            f"it trains {steps} steps from the start; to go on from what is there instead, "
            f"write continue_from: {before.fingerprint[:12]}"
        )
    return tuple(notes)


class FailureMark:
    """Left by an epoch that failed, so that the later epochs of the same launch, which Dagster starts, fail at once.

    Args:
        launch: The launch.
        fingerprint: Of its run.
    """

    def __init__(self, launch: Launch, fingerprint: str) -> None:
        self._launch = launch
        self._key = f"launches/{launch.run_id}/failed-{fingerprint[:16]}"

    def leave(self, error: BaseException) -> None:
        """Note an error; the first one stays.

        Raises:
            KitchenError: The store doesn't answer.
        """
        self._launch.ports.blobs.put_if_absent(self._key, f"{type(error).__name__}: {error}"[:2000].encode())

    def raise_if_left(self) -> None:
        """Fail when an earlier epoch has failed.

        Raises:
            EarlierFailure: It has.
        """
        mark = self._launch.ports.blobs.get(self._key)
        if mark is not None:
            raise EarlierFailure(
                f"an earlier epoch of this run failed: {mark.data.decode()}",
                where=f"recipe {self._launch.name}",
                fix="see that epoch's error; then run again, it goes on from what is published",
            )
