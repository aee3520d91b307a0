"""The S3 client. Imports boto3, so it is imported only where a bucket is opened."""

from typing import Any

import boto3
from botocore.config import Config
from dagster_aws.s3 import S3Resource

from kitchen_resources.blobs.s3_failures import CHANCE, is_passing, is_unreached

_FIRST_PAUSE_S = 1.0
_MOST_DOUBLINGS = 4


class KitchenS3(S3Resource):
    """Dagster's S3 resource, with the time limits that it has no fields for.

    Its own client waits 60 s for an answer, and as long again each time that it asks once more: a lease would run out
    over a single lost packet.
    """

    timeout_s: float = 10.0

    def get_client(self) -> Any:
        """A client that repeats what fails for a passing reason, and signs as every S3 service now asks for."""
        config = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},
            connect_timeout=min(self.timeout_s, 10.0),
            read_timeout=self.timeout_s,
            signature_version="s3v4",
            tcp_keepalive=True,
            max_pool_connections=16,
        )
        session = boto3.session.Session(profile_name=self.profile_name)
        client = session.client(
            "s3",
            region_name=self.region_name,
            endpoint_url=self.endpoint_url,
            use_ssl=self.use_ssl,
            verify=self.verify,
            config=config,
        )
        client.meta.events.register("needs-retry.s3", _Patience(self.max_attempts))
        return client


class _Patience:
    """Repeats a request, as boto3's own modes do, but for long enough, and with random numbers of its own.

    Pauses grow to about 1, 2, 4, 8, 16 s, and are at least half of that: with six attempts a service may be away for
    15 s. In boto3's mode `standard` they are 1.6 s in all at most, and its quota ends all patience after 35 failures.
    Both modes draw their pauses from the `random` module, whose state is part of a training state: a heartbeat that
    was repeated would change the bits of a run.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts

    def __call__(
        self, attempts: int, response: tuple[Any, Any] | None, caught_exception: Exception | None, **about: Any
    ) -> float | None:
        """How long to wait before the next attempt; None when there is none."""
        if attempts >= self._attempts:
            return None
        status, code = (0, "") if response is None else _told(*response)
        if not (is_passing(status, code) or is_unreached(caught_exception)):
            return None
        return CHANCE.uniform(0.5, 1.0) * _FIRST_PAUSE_S * float(2 ** min(attempts - 1, _MOST_DOUBLINGS))


def _told(http: Any, parsed: Any) -> tuple[int, str]:
    """Status and code of an answer."""
    return int(http.status_code), str(parsed.get("Error", {}).get("Code", ""))
