"""Collections of garbage at chosen moments, and a store that has some."""

from typing import Any

from kitchen_resources.blobs.content import ContentStore
from kitchen_resources.blobs.garbage import read_marker
from kitchen_resources.digests import digest_bytes
from kitchen_resources.storage.collection import Collected, collect
from tests.engine import Engine, register

NOW = 1_800_000_000.0
DAY = 24 * 3600.0
ORPHAN = b"nobody names this"
SHA256 = digest_bytes(ORPHAN)


def collected(blobs: Any, days: float = 0.0, **how: Any) -> Collected:
    """What a collection does, some days after the first."""
    return collect(blobs, **{"grace_s": DAY, "launch_age_s": 30 * DAY, "clock": lambda: NOW + days * DAY, **how})


def state(blobs: Any, sha256: str = SHA256) -> str:
    found = read_marker(blobs, sha256)
    return found.marker.state if found else ""


def keys(engine: Engine) -> list[str]:
    return list(engine.blobs.list(""))


def engine_with_orphan() -> Engine:
    """A store with a finished and registered run, and a blob that nothing names."""
    engine = Engine()
    register(engine, engine.finish(keep_last=3).head, 9)
    ContentStore(engine.blobs).put(ORPHAN)
    return engine
