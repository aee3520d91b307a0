"""Bounds on how long the hub's client waits.

The client retries by itself: API calls and downloads five times with 1, 2, 4, 8, 8 seconds in between, also
on 429 and 5xx. Two of its waits have no bound (huggingface_hub 2.4): it lists a repository without a
time-out, and it sleeps for as long as `Retry-After` says. Hooks on its HTTP client bound both, for our
requests only. Files in Xet storage come through another downloader, which gives up by itself (after 288 s
when nothing listens).
"""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

LIBRARY_NAME = "crucible-kitchen"
REQUEST_TIMEOUT_S = 30.0
# The hub's own rate limits count in windows of 300 s, so no honest answer asks for more.
MAX_ASKED_WAIT_S = 300

_RETRIED = {408, 429, 500, 502, 503, 504}
_WINDOW_REST = re.compile(r";\s*t\s*=\s*(\d+)")


class AskedToWait(Exception):
    """The hub asks to wait longer than anyone should.

    Args:
        seconds: The wait asked for.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__(f"it asks to wait {seconds} s, and at most {MAX_ASKED_WAIT_S} s are waited")
        self.seconds = seconds


def bound_waits() -> None:
    """Put the bounds on the client's HTTP session, which it replaces after a failed connection."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    hooks = get_session().event_hooks
    if _bound_timeout not in hooks["request"]:
        hooks["request"].append(_bound_timeout)
    if _refuse_long_wait not in hooks["response"]:
        hooks["response"].append(_refuse_long_wait)


def _is_ours(request: "httpx2.Request") -> bool:
    return request.headers.get("user-agent", "").startswith(f"{LIBRARY_NAME}/")


def _bound_timeout(request: "httpx2.Request") -> None:
    timeout = request.extensions.get("timeout", {})
    if _is_ours(request):
        bounded = {kind: timeout.get(kind) or REQUEST_TIMEOUT_S for kind in ("connect", "read", "write", "pool")}
        request.extensions["timeout"] = bounded


def _refuse_long_wait(response: "httpx2.Response") -> None:
    if response.status_code not in _RETRIED or not _is_ours(response.request):
        return
    asked = [response.headers.get("retry-after", "").strip()]
    if response.status_code == 429:
        asked += _WINDOW_REST.findall(response.headers.get("ratelimit", ""))
    seconds = max((int(text) for text in asked if text.isdecimal()), default=0)
    if seconds > MAX_ASKED_WAIT_S:
        raise AskedToWait(seconds)
