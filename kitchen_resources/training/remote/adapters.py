"""Adapters as services hand them out: two files, of which the config isn't always whole."""

import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kitchen_resources.errors import BackendError, KitchenError

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


def fetch(url: str, timeout_s: float, *, trusted: str | None = None) -> bytes:
    """What lies at a signed URL; no credential is sent there.

    Args:
        url: Of https, on this machine, or at the service itself; wherever it leads on to as well.
        timeout_s: Of each read, in seconds.
        trusted: Where the service is.

    Raises:
        BackendError: It is of another kind, such as a file of this machine.
    """
    _require_remote(url, trusted)

    class Redirects(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, request: Any, *how: Any) -> Any:
            _require_remote(how[-1], trusted)
            return super().redirect_request(request, *how)

    with urllib.request.build_opener(Redirects).open(urllib.request.Request(url), timeout=timeout_s) as response:
        data: bytes = response.read()
    return data


def _require_remote(url: str, trusted: str | None) -> None:
    place, own = urlsplit(url), urlsplit(trusted or "")
    on_loopback = place.hostname in ("localhost", "127.0.0.1", "::1")
    at_service = own.scheme == "http" and place.netloc == own.netloc
    if place.scheme == "https" or (place.scheme == "http" and (on_loopback or at_service)):
        return
    raise BackendError(
        f"a link of the service leads to {place.scheme}://{place.hostname or ''}", fix="ask the service"
    )


def write_adapter(found: Mapping[str, bytes], target: Path, *, where: str) -> None:
    """Write an adapter's two files into a folder.

    Raises:
        BackendError: One of them is missing.
    """
    from kitchen_resources.training.base_models import safetensors_shapes
    from kitchen_resources.training.pytorch.state import canonical_adapter_config

    missing = [name for name in ADAPTER_FILES if name not in found]
    if missing:
        raise BackendError(f"the adapter that it gives has no {missing[0]}", where=where)
    target.mkdir(parents=True, exist_ok=True)
    weights = target / ADAPTER_FILES[0]
    weights.write_bytes(found[ADAPTER_FILES[0]])
    try:
        # Servers leave open which modules are adapted; peft then takes some of its own choice, and drops the rest silently.
        names = safetensors_shapes(weights)
        adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in names if ".lora_" in name}
        config = {**json.loads(found[ADAPTER_FILES[1]]), "target_modules": sorted(adapted)}
    except (ValueError, TypeError, KitchenError) as error:
        raise BackendError(f"the adapter that it gives can't be read: {error}", where=where) from None
    (target / ADAPTER_FILES[1]).write_bytes(canonical_adapter_config(config))
