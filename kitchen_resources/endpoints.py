"""Which endpoints a credential may be sent to.

Whoever can launch a run can name an endpoint, and the adapter would send its token there. So an endpoint
other than the SDK's default must be listed, by whoever runs the code location, in
`KITCHEN_ALLOWED_ENDPOINTS`: full URLs, separated by commas. Loopback addresses are always allowed.
"""

import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from kitchen_resources.errors import ConfigError

ALLOWED_ENDPOINTS = "KITCHEN_ALLOWED_ENDPOINTS"

_DEFAULT_PORTS = {"http": 80, "https": 443}
# Only what RFC 3986 allows: two parsers may read a tab, a backslash or a non-ASCII dot differently, and the
# one that sends the token is not the one that checks here.
_URL = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")
_HOST_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


@dataclass(frozen=True)
class Endpoint:
    """A parsed endpoint: where requests go, and the path they start with."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        """The endpoint in one canonical form: lower case, no default port, no slash at the end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is `localhost`, in 127.0.0.0/8, or ::1."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def covers(self, other: "Endpoint") -> bool:
        """Whether `other` has this scheme, host and port, and lies at or below this path."""
        same_origin = (self.scheme, self.host, self.port) == (other.scheme, other.host, other.port)
        return same_origin and f"{other.path}/".startswith(f"{self.path}/")


def check_endpoint(url: str, default: str, *, where: str = "endpoint") -> str:
    """The endpoint in canonical form, when credentials may be sent to it.

    Args:
        url: The endpoint asked for.
        default: The SDK's own default endpoint, which is always allowed.
        where: The setting that the endpoint comes from, for the message.

    Returns:
        `scheme://host[:port][/path]`, lower case but for the path, without a slash at the end.

    Raises:
        ConfigError: The URL isn't a plain http(s) endpoint, carries credentials, or is neither the default,
            nor loopback, nor listed; or an entry of the list is not a plain endpoint.
    """
    endpoint = _parse(url, where=where)
    if endpoint.is_loopback or _parse(default, where=where).covers(endpoint):
        return endpoint.url
    listed = _listed_endpoints()
    if any(entry.covers(endpoint) for entry in listed):
        return endpoint.url
    raise ConfigError(
        f"{endpoint.url} is not an endpoint that credentials may be sent to",
        where=where,
        fix=f"if you trust it: export {ALLOWED_ENDPOINTS}="
        + ",".join([*(entry.url for entry in listed), endpoint.url])
        + " where the code location starts",
    )


def _listed_endpoints() -> list[Endpoint]:
    entries = (entry.strip() for entry in os.environ.get(ALLOWED_ENDPOINTS, "").split(","))
    return [_parse(entry, where=ALLOWED_ENDPOINTS) for entry in entries if entry]


def _parse(url: str, *, where: str) -> Endpoint:
    if not _URL.fullmatch(url):
        raise _refused("it holds characters that a URL can't hold", where)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused(f"it can't be parsed ({type(error).__name__})", where) from None
    if "@" in parts.netloc:
        raise _refused("it carries a user name or password, which would end up in logs", where)
    if parts.scheme not in _DEFAULT_PORTS:
        raise _refused("it doesn't start with http:// or https://", where)
    if "?" in url or "#" in url:
        raise _refused("it has a query or a fragment", where)
    if any(segment in (".", "..") for segment in parts.path.split("/")) or "%" in parts.path:
        raise _refused("its path has `.`, `..` or % in it", where)
    host = _host(parts.hostname or "", where=where)
    path = parts.path.rstrip("/")
    return Endpoint(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port, path)


def _host(text: str, *, where: str) -> str:
    host = text.lower().removesuffix(".")
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise _refused("its host is not a valid IPv6 address", where) from None
    if not _HOST_NAME.fullmatch(host):
        raise _refused("its host is not a plain host name or address", where)
    return host


def _refused(reason: str, where: str) -> ConfigError:
    # The URL itself is not repeated: a malformed one may carry a password.
    return ConfigError(
        f"the endpoint is refused: {reason}",
        where=where,
        fix="write it as https://host or https://host:port/path",
    )
