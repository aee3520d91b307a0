"""Notes of launches that are long over: by whose stages they would be read nobody asks any more.

A launch's notes are small, but name what it prepared and made, and so keep it. Without them a re-execution of the
launch prepares again. Their age is what they say themselves: a store's own times are lost when it is copied.
"""

import json
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from kitchen_resources.blobs.content import CONTENT
from kitchen_resources.blobs.garbage import GARBAGE
from kitchen_resources.blobs.listing import list_sizes
from kitchen_resources.blobs.port import BlobStore
from kitchen_resources.storage.marking import SEARCHED_BYTES, is_payload

LAUNCHES = "launches/"

_QUOTED = re.compile(rb'"([A-Za-z0-9_=@+-][A-Za-z0-9._=@+-]*)"')
_UNSTOPPED = 2
"""A launch that has written no end of its own is taken to be over at this many times the age."""


@dataclass
class LaunchNotes:
    """The notes of one launch.

    Attributes:
        keys: Their keys; those by which its age is known come last.
        times: When its parts were started or finished, in seconds since 1970.
        runs: Dagster runs that its notes name: itself, and those that executed it again.
        started: Recipes that it has started.
        stopped: Recipes that it has brought to an end.
        fingerprints: Training runs that its notes name.
        unreadable: Whether a note can't be read.
    """

    keys: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    runs: set[str] = field(default_factory=set)
    started: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)
    fingerprints: set[str] = field(default_factory=set)
    unreadable: bool = False


def old_launches(
    blobs: BlobStore, *, now: float, older_than_s: float, held: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """The launches whose notes may go: their keys in the order in which to delete them, by launch.

    Kept are notes of an unknown age, those of a launch of which a part is going on, and those that anything outside the
    notes names: a version names the launch that registered it.

    Args:
        blobs: The store.
        now: Seconds since 1970.
        older_than_s: Least age, in seconds.
        held: The Dagster run that trains it now, by fingerprint of the training run.
    """
    launches = _read(blobs)
    old = {name for name in launches if _is_over(name, launches, now, older_than_s, held)}
    if old:
        old -= _named(blobs, old)
    return {name: tuple(launches[name].keys) for name in sorted(old)}


def _is_over(
    name: str, launches: Mapping[str, LaunchNotes], now: float, older_than_s: float, held: Mapping[str, str]
) -> bool:
    launch = launches[name]
    parts = [launch, *(launches[run] for run in sorted(launch.runs - {name}) if run in launches)]
    times = [time for part in parts for time in part.times]
    if not times or any(part.unreadable for part in parts):
        return False
    going_on = {name, *launch.runs} & set(held.values()) or launch.fingerprints & set(held)
    stopped = all(part.started <= part.stopped for part in parts)
    return not going_on and now - max(times) > older_than_s * (1 if stopped else _UNSTOPPED)


def _read(blobs: BlobStore) -> dict[str, LaunchNotes]:
    launches: dict[str, LaunchNotes] = {}
    for key in blobs.list(LAUNCHES):
        _, name, *rest = key.split("/")
        launch = launches.setdefault(name, LaunchNotes())
        try:
            has_age = _read_note(blobs, key, rest, launch)
        except (ValueError, TypeError, KeyError, AttributeError):
            launch.unreadable, has_age = True, False
        # Its age last: a collection that is killed in between finds the rest as old as it was.
        launch.keys.insert(len(launch.keys) if has_age else 0, key)
    return launches


def _read_note(blobs: BlobStore, key: str, rest: list[str], launch: LaunchNotes) -> bool:
    """Read what a note says of its launch; whether it tells the age."""
    if len(rest) == 1:
        what, _, recipe = rest[0].partition("-")
        if what == "started":
            stored = blobs.get(key)
            if stored is not None:
                launch.times.append(float(stored.data))
                launch.started.add(recipe)
            return True
        if what == "stopped":
            launch.stopped.add(recipe)
        return False
    if rest[0] == "io":
        return False
    value = _json(blobs, key)
    if "run" in value:
        launch.runs.add(str(value["run"]))
    if rest[-1].startswith("steps-"):
        launch.runs.add(rest[-1].removeprefix("steps-").removesuffix(".json"))
    if rest[-1] == "run.json":
        launch.fingerprints.add(str(value["fingerprint"]))
    if rest[-1] == "registered.json":
        launch.times.append(float(value["at"]))
        return True
    return False


def _json(blobs: BlobStore, key: str) -> Mapping[str, Any]:
    stored = blobs.get(key)
    value = json.loads(stored.data) if stored is not None else {}
    if not isinstance(value, dict):
        raise ValueError(f"{key} holds no table")
    return value


def _named(blobs: BlobStore, names: Set[str]) -> set[str]:
    """Those of the launches that an object outside the notes names."""
    return {name for key in _others(blobs) for name in _quoted(blobs, key) if name in names}


def _others(blobs: BlobStore) -> Iterator[str]:
    for key, size in list_sizes(blobs, ""):
        if not key.startswith((CONTENT, GARBAGE, LAUNCHES)) and not is_payload(key) and size <= SEARCHED_BYTES:
            yield key


def _quoted(blobs: BlobStore, key: str) -> Iterator[str]:
    stored = blobs.get(key)
    if stored is not None:
        yield from (match.group(1).decode() for match in _QUOTED.finditer(stored.data))


def remove_launch(blobs: BlobStore, keys: tuple[str, ...]) -> int:
    """Delete the notes of a launch; how many there were."""
    return sum(blobs.delete(key) for key in keys)
