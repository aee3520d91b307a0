"""What went wrong between here and a bucket, told as the errors of the blob port."""

import random
from typing import Any

from kitchen_resources.errors import BlobError

MISSING = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})
PRECONDITION = frozenset({"412", "PreconditionFailed"})
CONFLICT = frozenset({"409", "ConditionalRequestConflict", "OperationAborted"})

_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch"})
_EXPIRED = frozenset({"ExpiredToken", "RequestExpired", "TokenRefreshRequired", "InvalidToken"})
# Of status 400: what was sent isn't what arrived.
_DAMAGED = frozenset({"BadDigest", "XAmzContentSHA256Mismatch", "RequestTimeout"})
_PASSING = frozenset({429, 500, 502, 503, 504})
# By name, because botocore is imported only where a bucket is used.
_UNREACHED = frozenset(
    {"ConnectionError", "HTTPClientError", "ConnectTimeoutError", "ReadTimeoutError", "EndpointConnectionError"}
)
_BROKEN = frozenset({"ResponseStreamingError", "IncompleteReadError", "FlexibleChecksumError"})
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})


CHANCE = random.Random()
"""Of its own: the state of the `random` module is part of a training state, and a store that is away must not move it."""


def code_of(error: BaseException | None) -> str:
    """The service's code of an error, or its HTTP status where there is no body; empty when it isn't the service's."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def attempts_of(error: BaseException) -> int:
    """How often the client had repeated the request when the service answered with this error."""
    response: dict[str, Any] = getattr(error, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("RetryAttempts", 0))


def is_broken(error: BaseException) -> bool:
    """Whether an answer broke off, or arrived damaged: asking again may bring it whole.

    The client itself repeats only requests that it has no answer to.
    """
    return bool(_names(error) & _BROKEN)


def is_passing(status: int, code: str) -> bool:
    """Whether a service that answers so may well answer otherwise a moment later."""
    return status in _PASSING or code in _DAMAGED


def is_unreached(error: BaseException | None) -> bool:
    """Whether a request has no answer."""
    return error is not None and bool(_names(error) & _UNREACHED)


def is_of_client(error: BaseException) -> bool:
    """Whether an error comes from the S3 client, and not from the code around it."""
    return type(error).__module__.partition(".")[0] in ("botocore", "boto3", "s3transfer", "urllib3")


def as_blob_error(error: BaseException, *, where: str) -> BlobError:
    """An error of the S3 client as one of the port: what the service said, and what to do about it."""
    # The transfer manager tells only that it has tried often enough.
    error = getattr(error, "last_exception", error)
    code = code_of(error)
    response: dict[str, Any] = getattr(error, "response", None) or {}
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"{status} {code}".strip() if code and code != str(status) else str(status or type(error).__name__)
    if code == "NoSuchBucket":
        return BlobError("the bucket isn't there", where=where, fix="create it, or correct KITCHEN_STORE")
    if _names(error) & _NO_CREDENTIALS:
        return BlobError(
            "no credentials for the bucket were found",
            where=where,
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or give the machine a role",
        )
    if code in _EXPIRED:
        return BlobError(f"the credentials have run out ({said})", where=where, fix="renew them, then run again")
    if status in (401, 403) or code in _DENIED:
        return BlobError(
            f"access was denied ({said})",
            where=where,
            fix="these credentials need s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload on the "
            "store's prefix and s3:ListBucket on the bucket",
        )
    if is_passing(status, code) or code in CONFLICT or _names(error) & (_BROKEN | _UNREACHED):
        return BlobError(
            f"the store failed, also when asked again ({said}: {error})",
            where=where,
            fix="nothing is lost: run again when the store answers",
            retriable=True,
        )
    return BlobError(f"the store refused ({said}: {error})", where=where, fix="see what it said")


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
