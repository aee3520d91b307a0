"""The S3 client. Imports boto3, so it is imported only where a bucket is opened."""

from typing import Any

import boto3
from botocore.config import Config
from dagster_aws.s3 import S3Resource


class KitchenS3(S3Resource):
    """Dagster's S3 resource, with the time limits that it has no fields for.

    Its own client waits 60 s for an answer, and as long again each time that it asks once more: a lease would run out
    over a single lost packet.
    """

    timeout_s: float = 30.0

    def get_client(self) -> Any:
        """A client that repeats what fails for a passing reason, and signs as every S3 service now asks for."""
        config = Config(
            # Its pauses grow to 1, 2, 4, 8, 16 s. Those of the mode "standard" are 1.6 s in all at most, and its quota
            # ends all patience after 35 failures: a service that restarts would cost the run.
            retries={"total_max_attempts": self.max_attempts, "mode": "legacy"},
            connect_timeout=min(self.timeout_s, 10.0),
            read_timeout=self.timeout_s,
            signature_version="s3v4",
            tcp_keepalive=True,
            max_pool_connections=16,
        )
        session = boto3.session.Session(profile_name=self.profile_name)
        return session.client(
            "s3",
            region_name=self.region_name,
            endpoint_url=self.endpoint_url,
            use_ssl=self.use_ssl,
            verify=self.verify,
            config=config,
        )
